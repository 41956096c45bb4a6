"""Causal fields: one token at a time is the whole, and the whole is block lower triangular."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.analytic import causal_mask
from eqjax.fields import AbstractCausalField, EnergyBlock, MonotoneBlock, RealBlock, ThickBlock
from eqjax.homeostasis import chain_gain, chain_penalty, token_growth_penalty, token_growth_rates
from eqjax.relaxation import AndersonTypeI, TokenOrder
from eqjax.stability import (
    SpectrumResults,
    check,
    classify,
    continuation,
    spectrum,
    token_blocks,
    token_spectrum,
)

T, C = 5, 4
BLOCKS = {
    "thick": (ThickBlock, {"qknorm": True}),
    "real": (RealBlock, {"nonreciprocity": 0.7}),
    "monotone": (MonotoneBlock, {}),
}


@eqx.filter_jit
def built(kind, settings):
    return kind(C, 2, key=jax.random.key(0), **settings)


@pytest.fixture(params=BLOCKS)
def field(request):
    return built(*BLOCKS[request.param])


def state(seed=1):
    z, x = jax.random.normal(jax.random.key(seed), (2, T, C))
    return z, x


@pytest.mark.parametrize("kind", [float, complex])
def test_a_token_after_the_others_feels_what_it_feels_in_the_whole(field, kind):
    z, x = state()
    z = z.astype(kind) * (1 if kind is float else 1 + 0.3j)

    @eqx.filter_jit
    def compared(field, z, x):
        memory, whole = field.remember(z), field(0.0, z, x)
        ones = [field.after(0.0, z[t : t + 1], x[t : t + 1], memory, t) for t in range(T)]
        # What is not yet known of later tokens does not matter, however wrong.
        blank = jax.tree.map(lambda leaf: leaf.at[2:].set(1e3), memory)
        return whole, jnp.concatenate(ones), field.after(0.0, z[2:4], x[2:4], blank, 2)

    whole, ones, two = compared(field, z, x)
    np.testing.assert_allclose(ones, whole, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(two, whole[2:4], rtol=1e-12, atol=1e-13)


def test_the_jacobian_is_block_lower_triangular_and_has_the_eigenvalues_of_its_own_blocks(field):
    z, x = state()
    dense = np.asarray(eqx.filter_jit(jax.jacfwd(lambda z: field(0.0, z, x)))(z))
    blocks = dense.transpose(0, 2, 1, 3)  # token, token, channel, channel
    assert all(not blocks[t, s].any() for t in range(T) for s in range(t + 1, T))

    expected = np.linalg.eigvals(dense.reshape(T * C, T * C))
    found = token_spectrum(field, z, x)
    distance = np.abs(expected[:, None] - np.asarray(found.values).ravel()[None]).min(axis=1)
    assert (
        distance.max() < 1e-6
    )  # of a matrix that is far from normal, eigenvalues are known no better
    own = [np.linalg.eigvals(blocks[t, t]).real.max() for t in range(T)]
    np.testing.assert_allclose(found.abscissas, own, rtol=1e-10)
    assert found.token == np.argmax(own)


def test_the_spectrum_of_a_causal_field_is_taken_by_blocks(field):
    z, x = state()
    dense = np.asarray(eqx.filter_jit(jax.jacfwd(lambda z: field(0.0, z, x)))(z)).reshape(
        T * C, T * C
    )
    found, every = spectrum(field, z, x, k=5), np.linalg.eigvals(dense)
    assert found.result == SpectrumResults.successful
    ordered = every[np.argsort(-every.real)]
    np.testing.assert_allclose(found.values.real, ordered[:5].real, atol=1e-6)
    for value, vector in zip(found.values, found.vectors, strict=True):
        v = np.asarray(vector).ravel()
        assert np.linalg.norm(v) == pytest.approx(1) and v[
            np.argmax(np.abs(v))
        ].imag == pytest.approx(0)
        np.testing.assert_allclose(dense @ v, value * v, atol=1e-9)
    by_token = token_spectrum(field, z, x)
    for value, token in zip(found.values, found.tokens, strict=True):
        assert np.abs(by_token.values[token] - value).min() < 1e-12
        assert f"{int(token)}" in str(found)
    # A mode does not move the tokens before its own.
    first = np.abs(found.vectors).max(axis=2) > 0
    np.testing.assert_array_equal(first.argmax(axis=1), found.tokens)

    verdict = check(field, z, x, step=0.3, k=4)
    np.testing.assert_allclose(verdict.abscissa, ordered[0].real, atol=1e-6)
    multipliers = np.sort(np.abs(1 + 0.3 * every))[::-1]
    np.testing.assert_allclose(np.abs(verdict.multipliers), multipliers[:4], atol=1e-6)
    assert "token" in str(verdict) and not verdict.fixed_point


def test_a_search_that_is_asked_for_is_made():
    searched = spectrum(built(*BLOCKS["thick"]), *state(), k=2, which="LR")
    assert searched.tokens is None and searched.products > 2


def test_a_spectrum_by_blocks_in_a_batch_and_of_equal_blocks():
    # Without attention all tokens of one input are alike: every eigenvalue comes T times.
    field = ThickBlock(C, 2, attention_gain=0.0, key=jax.random.key(0))
    z, x = (jnp.tile(row[:1], (T, 1)) for row in state())
    both = jax.vmap(lambda s: spectrum(field, s * z, x, k=T, throw=False))(
        jnp.array([1.0, jnp.nan])
    )
    good = both.result == SpectrumResults.successful
    np.testing.assert_array_equal(good, [True, False])
    np.testing.assert_allclose(both.values[0], both.values[0][0], rtol=1e-12)
    np.testing.assert_array_equal(np.sort(both.tokens[0]), np.arange(T))


def test_alone_every_token_has_its_force_and_its_own_block(field):
    z, x = state()

    @eqx.filter_jit
    def compared(field):
        past = field.remember(z)
        alone = lambda u: field.alone(0.0, u, x, past)
        return alone(z), field(0.0, z, x), jax.jacfwd(alone)(z), token_blocks(field, z, x)

    alone, whole, jacobian, blocks = compared(field)
    np.testing.assert_allclose(alone, whole, rtol=1e-12, atol=1e-13)
    expected = np.zeros((T, C, T, C))
    for t in range(T):
        expected[t, :, t] = blocks[t]
    np.testing.assert_allclose(jacobian, expected, rtol=1e-11, atol=1e-13)


def test_growth_by_token_is_that_of_its_own_block():
    field, (z, x), key, step = built(*BLOCKS["thick"]), state(), jax.random.key(3), 0.1
    settings = {"step": step, "warmup": 20, "steps": 6, "noise": 0.0}
    rates = eqx.filter_jit(token_growth_rates)(field, z, x, key, **settings)
    blocks, v = np.asarray(token_blocks(field, z, x)), np.asarray(field(0.0, z, x))
    turned = []
    for t in range(T):
        euler, u = np.eye(C) + step * blocks[t], v[t]
        for _ in range(20):
            u = euler @ u / np.linalg.norm(euler @ u)
        turned.append(u)
        grown = np.linalg.norm(np.linalg.matrix_power(euler, 6) @ u)
        np.testing.assert_allclose(rates[t], np.log(grown) / (6 * step), rtol=1e-9)

    # Its gradient is that of dense blocks, the direction held: they feel the keys of earlier tokens, too.
    def dense(field):
        J = jax.jacfwd(lambda z: field(0.0, z, x))(z)
        euler = jnp.eye(C)[None] + step * jnp.stack([J[t, :, t] for t in range(T)])
        grown = jax.vmap(lambda e, u: jnp.linalg.matrix_power(e, 6) @ u)(euler, jnp.stack(turned))
        return jnp.sum(jnp.log(jnp.linalg.norm(grown, axis=1))) / (6 * step)

    total = lambda field: jnp.sum(token_growth_rates(field, z, x, key, **settings))
    found, expected = eqx.filter_jit(
        lambda f: (eqx.filter_grad(total)(f), eqx.filter_grad(dense)(f))
    )(field)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    # A sum of hinges: a margin that one token alone misses is felt in full.
    second, worst = np.sort(rates)[-2:]
    penalty = eqx.filter_jit(token_growth_penalty)(
        field, z, x, key, margin=-(second + worst) / 2, **settings
    )
    np.testing.assert_allclose(penalty, ((worst - second) / 2) ** 2, rtol=1e-9)


def test_the_gain_of_the_chain_is_that_of_dense_matrices_and_so_is_its_gradient():
    field, (z, x), key = built(*BLOCKS["thick"]), state(), jax.random.key(3)
    z = 0.3 * z
    solver = TokenOrder(AndersonTypeI(1e-11, window=4), flow=None)
    r = jax.random.normal(key, (T, C))

    def dense(field):
        J = jax.jacfwd(lambda z: field(0.0, z, x))(z).reshape(T * C, T * C)
        same = np.kron(np.eye(T), np.ones((C, C)))
        v = jnp.linalg.solve(J, (J * same) @ r.ravel())
        return jnp.linalg.norm(v) / jnp.linalg.norm(r)

    @eqx.filter_jit
    def both(gain):
        return eqx.filter_value_and_grad(gain)(field)

    found = both(lambda field: chain_gain(field, z, x, key, solver=solver))
    value, gradient = both(dense)
    np.testing.assert_allclose(found[0], value, rtol=1e-9)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    penalty = eqx.filter_jit(chain_penalty)(field, z, x, key, limit=0.5 * value, solver=solver)
    np.testing.assert_allclose(penalty, np.log(2) ** 2, rtol=1e-8)


class Turning(AbstractCausalField):
    """Tokens that turn, each with growth `p - x₀` of its own, and are pushed by the earlier ones."""

    p: jax.Array

    def __call__(self, t, z, x):
        return self.given(t, z, x, self.remember(z), causal_mask(len(z)))

    def remember(self, z):
        return z

    def given(self, t, z, x, memory, seen):
        pushed = jnp.where(seen, 0.5, 0.0).astype(z.dtype) @ memory - 0.5 * z
        square = jnp.sum(z * z, axis=1, keepdims=True)
        return (self.p - x[:, :1] - square) * z + 2 * jnp.stack([-z[:, 1], z[:, 0]], 1) + pushed


def test_a_branch_says_whose_token_loses_stability():
    field, x = Turning(jnp.asarray(0.0)), jnp.array([[0.9, 0.0], [0.4, 0.0], [0.7, 0.0]])
    branch = continuation(field, jnp.zeros((3, 2)), x, where=lambda f: f.p, bounds=(0.0, 1.0))
    found = [(point.flow, point.token) for point in branch.special_points]
    assert found == [("Hopf", 1), ("Hopf", 2), ("Hopf", 0)]
    np.testing.assert_allclose([p.parameter for p in branch.special_points], [0.4, 0.7, 0.9])
    assert str(classify(branch)).endswith("frequency 2, of token 1")


def test_other_fields_have_no_token_spectrum():
    block = EnergyBlock(C, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="AbstractCausalField"):
        token_spectrum(block, *state())
