"""Settling in token order, and back: against the whole window, dense linear algebra, and the oracle."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.analytic import cross_entropy
from eqjax.fields import AbstractCausalField, EnergyBlock, ThickBlock
from eqjax.gradients import (
    Accept,
    AdjointCoordinates,
    AsymEP,
    Nudge,
    OracleAdjoint,
    ProbeCorrection,
    SharedAdjoint,
    VectorFieldEP,
    agreement,
)
from eqjax.language import equilibrium_lm
from eqjax.relaxation import (
    RESULTS,
    Anderson,
    AndersonTypeI,
    NewtonKrylov,
    Picard,
    TokenOrder,
    equilibrium,
    linear_in_order,
)

T, C = 6, 8
TIGHT = AndersonTypeI(1e-12, window=6)
ORDERS = {
    "tokens": TokenOrder(TIGHT),
    "chunks": TokenOrder(TIGHT, chunk=4),
    "newton": TokenOrder(NewtonKrylov(1e-12)),
}


@eqx.filter_jit
def case():
    field = ThickBlock(C, 2, qknorm=True, key=jax.random.key(0))
    x, w = jax.random.normal(jax.random.key(1), (2, T, C))
    return field, 3 * x, w


@eqx.filter_jit
def settled(field, x, solver, max_steps=100):
    found = equilibrium(field, x, x, solver=solver, max_steps=max_steps, throw=False)
    return found


@pytest.fixture(scope="module")
def truth():
    """Equilibrium, Jacobian, and force, without any of the code under test."""
    field, x, _ = case()
    jacobian = jax.jit(jax.jacfwd(lambda z: field(0.0, z, x)))
    z, solve = x, jax.jit(lambda j, f: jnp.linalg.solve(j.reshape(T * C, -1), f.ravel()))
    for _ in range(500):
        z = z + 0.1 * field(0.0, z, x)
    for _ in range(4):
        z = z - solve(jacobian(z), field(0.0, z, x)).reshape(T, C)
    assert jnp.max(jnp.abs(field(0.0, z, x))) < 1e-13
    return z, np.asarray(jacobian(z)).reshape(T * C, T * C)


@pytest.mark.parametrize("order", ORDERS)
def test_the_equilibrium_is_that_of_the_window(order, truth):
    field, x, _ = case()
    found = settled(field, x, ORDERS[order])
    assert found.result == RESULTS.successful
    np.testing.assert_allclose(found.value, truth[0], rtol=0, atol=1e-10)
    residuals = found.stats["token_residuals"]
    assert residuals.shape == (T,) and found.residual == jnp.max(residuals) < 1.1e-12
    # 6 tokens in chunks of 3 (4 does not divide the window) take fewer steps than one by one.
    assert found.stats["num_steps"] < 40 if order == "chunks" else True


@pytest.mark.parametrize("order", ["tokens", "chunks"])
def test_derivatives_are_solved_for_in_order_forward_and_back(order, truth):
    field, x, w = case()

    @eqx.filter_jit
    def both(x, v):
        settle = lambda x: equilibrium(field, x, x, solver=ORDERS[order]).value
        (pushed,) = jax.jvp(settle, (x,), (v,))[1:]
        return pushed, jax.grad(lambda x: jnp.sum(w * settle(x)))(x)

    pushed, pulled = both(x, w)
    flat = np.asarray(w).ravel()  # dF/dx = 1, so that dz/dx = -J⁻¹
    np.testing.assert_allclose(
        pushed.ravel(), -np.linalg.solve(truth[1], flat), rtol=1e-7, atol=1e-8
    )
    np.testing.assert_allclose(
        pulled.ravel(), -np.linalg.solve(truth[1].T, flat), rtol=1e-7, atol=1e-8
    )


def test_complex_states_and_neighbours():
    field, x, _ = case()
    run = eqx.filter_jit(
        lambda x: equilibrium(field, x, x, solver=TokenOrder(TIGHT, chunk=3)).value
    )
    turned = run(jax.lax.complex(x, jnp.full_like(x, 0.01)))
    real = run(x)
    # Holomorphic: to first order the imaginary part is dz/dx · .01.
    moved = eqx.filter_jit(lambda: jax.jvp(run, (x,), (jnp.full_like(x, 0.01),))[1])()
    np.testing.assert_allclose(turned.imag, moved, rtol=2e-3, atol=2e-4)
    spoilt = jnp.stack([x, jnp.nan * x, 2 * x])
    many = lambda xs: jax.vmap(lambda x: settled(field, x, TokenOrder(TIGHT, chunk=3)))(xs)
    many = eqx.filter_jit(many)
    with_nan, without = many(spoilt), many(jnp.stack([x, x, 2 * x]))
    np.testing.assert_array_equal(with_nan.value[::2], without.value[::2])
    np.testing.assert_allclose(with_nan.value[0], real, atol=1e-11)
    np.testing.assert_array_equal(with_nan.result == RESULTS.successful, [True, False, True])


def test_a_token_that_is_not_settled_is_told_and_held():
    field, x, _ = case()
    found = settled(field, x, TokenOrder(Picard(1e-6, step_size=0.5), flow=None), 8)
    assert found.result == RESULTS.residual_above_tolerance
    assert jnp.all(jnp.isfinite(found.value)) and found.stats["token_residuals"].max() > 1e-6


class Cubic(AbstractCausalField):
    """`F_t = x_t + ¼ Σ_{s ≤ t} z_s - z_t (1 + z_t²/u²)`: in units of u it is one field."""

    unit: jax.Array

    def remember(self, z):
        return z

    def given(self, t, z, x, memory, seen):
        return x + 0.25 * seen.astype(z.dtype) @ memory - z * (1 + (z / self.unit) ** 2)

    def __call__(self, t, z, x):
        return self.given(t, z, x, z, jnp.tri(z.shape[0], dtype=bool))


@pytest.mark.parametrize(
    "solver",
    [TokenOrder(Anderson(1e-6)), TokenOrder(TIGHT, 3), TokenOrder(NewtonKrylov(1e-6))],
)
def test_tokens_of_any_unit_settle_alike(solver):
    x = jnp.array([[0.3, -0.2], [2.0, 1.0], [0.0, 0.1]])

    @jax.jit
    def run(unit, start):
        settle = lambda x: equilibrium(
            Cubic(unit), unit * start, unit * x, solver=solver, throw=False
        )
        pulled = jax.grad(lambda x: jnp.sum(settle(x).value) / unit)(x)
        found = settle(x)
        return found.value / unit, pulled, found.residual, found.stats["scale"]

    for start in (jnp.zeros((3, 2)), jnp.array([[0.0, 0.0], [0.1, 0.2], [0.3, 0.0]])):
        value, pulled, residual, scale = run(1.0, start)
        assert np.allclose(Cubic(jnp.ones(()))(0.0, value, x), 0, atol=5e-6)
        first = start if np.any(start) else x
        assert np.isclose(scale, min(1, np.linalg.norm(first, axis=1).max()))
        for unit in (1e-9, 1e6):
            same, back, measured, told = run(unit, start)
            assert max(measured, residual) <= 1.001 * solver.rtol
            assert np.allclose(same, value, atol=5e-6) and np.allclose(back, pulled, atol=5e-5)
            most = unit * np.linalg.norm(first, axis=1).max()
            assert np.isclose(told, min(1, most), atol=0)


# Gradients


@eqx.filter_jit
def language():
    model = equilibrium_lm(11, 12, 16, 4, qknorm=True, embedding_scale=3.0, key=jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 13), 0, 11)
    return model, (tokens[:, :-1], tokens[:, 1:])


@pytest.fixture(scope="module")
def exact():
    model, batch = language()
    oracle = OracleAdjoint(free=TokenOrder(AndersonTypeI(1e-11, window=6)))
    return oracle(model, cross_entropy, batch)


def test_type_one_finds_the_token_that_type_two_loses(exact):
    assert exact.report.accepted.all() and exact.report.free_residual.max() < 1.1e-11
    model, (tokens, _) = language()
    x = model.encode(tokens[0])
    lost = settled(model.field, x, TokenOrder(Anderson(1e-11), flow=None))
    # The last token: -.34 is the rightmost eigenvalue of its own block, and the flow gets there.
    assert lost.stats["token_residuals"][-1] > 1e-3 and lost.result != RESULTS.successful
    # And so does the last resort, alone or in a chunk.
    for chunk in (1, 4):
        order = TokenOrder(Anderson(1e-11), chunk=chunk)
        assert settled(model.field, x, order).result == RESULTS.successful


def test_the_oracle_in_order_is_the_oracle(exact):
    model, batch = language()
    whole = OracleAdjoint(free=AndersonTypeI(1e-11))(model, cross_entropy, batch)
    cosine, error = agreement(exact.grads, whole.grads)
    assert cosine > 1 - 1e-12 and error < 1e-8
    assert exact.report.adjoint_residual.max() < 1e-9


def test_asymep_in_reverse_sweeps_finds_the_adjoint(exact):
    model, batch = language()
    nudge = Nudge(
        TokenOrder(AndersonTypeI(1e-5, window=6), chunk=4), contrast=SharedAdjoint(), radius=1e-3
    )
    estimator = AsymEP(free=TokenOrder(AndersonTypeI(1e-11, window=6)), nudged=nudge)
    found = estimator(model, cross_entropy, batch)
    cosine, error = agreement(found.grads, exact.grads)
    assert cosine > 0.999998 and error < 2e-3
    assert found.report.accepted.all() and found.report.displacement.max() < 1.1e-3
    assert found.report.adjoint_residual.max() < 1e-4


def test_the_sweeps_settle_the_nudged_force_and_not_only_its_linear_part(exact):
    """At a nudge so coarse that its curvature shows, against the phases settled as a whole, by the same contrast."""
    model, batch = language()
    free = TokenOrder(AndersonTypeI(1e-11, window=6))
    coarse = {"contrast": SharedAdjoint(), "radius": 0.03, "steps": 600}

    @eqx.filter_jit
    def both(model, batch):
        in_order = Nudge(TokenOrder(AndersonTypeI(1e-9, window=6)), **coarse)
        whole = Nudge(AndersonTypeI(1e-9, patience=200), **coarse)
        return [AsymEP(free=free, nudged=n)(model, cross_entropy, batch) for n in (in_order, whole)]

    swept, settled = both(model, batch)
    assert settled.report.accepted.all() and swept.report.accepted.all()
    far = agreement(settled.grads, exact.grads)[1]
    assert agreement(swept.grads, settled.grads)[1] < 0.02 * far < 0.02 * 0.1


class Broken(AbstractCausalField):
    """A causal field of which one token, in one sample, has no equilibrium: its clamped input is 100."""

    inner: ThickBlock

    def remember(self, z):
        return self.inner.remember(z)

    def given(self, t, z, x, memory, seen):
        force = self.inner.given(t, z, x, memory, seen)
        return jnp.where(x[:, :1] > 99, 1.0 + z**2, force)

    def __call__(self, t, z, x):
        return self.given(t, z, x, self.remember(z), jnp.tri(z.shape[0], dtype=bool))


class Clamped(eqx.Module):
    """The language model with one more input: what marks a token as hopeless."""

    model: eqx.Module
    field: AbstractCausalField

    def encode(self, inputs):
        tokens, hopeless = inputs
        return jnp.where(hopeless[:, None] > 0, 100.0, self.model.encode(tokens))

    def initial(self, x):
        return jnp.where(x > 99, 0.0, x)

    def decode(self, z):
        return self.model.decode(z)


@pytest.mark.parametrize("kind", [OracleAdjoint, AsymEP])
def test_the_settled_prefix_counts_exactly(kind):
    model, (tokens, targets) = language()
    clamped = Clamped(model, Broken(model.field))
    free = TokenOrder(AndersonTypeI(1e-9, window=6), flow=None)
    settings = {"accept": Accept(1e-6, prefix=True), "free_steps": 60, "free": free}
    if kind is AsymEP:
        nudge = Nudge(TokenOrder(AndersonTypeI(1e-9, window=6)), contrast=SharedAdjoint())
        settings["nudged"] = nudge
    estimator, cut = kind(**settings), 5
    hopeless = jnp.zeros_like(tokens).at[1, cut].set(1)
    found = estimator(clamped, cross_entropy, ((tokens, hopeless), targets))
    assert found.report.accepted.all() and found.report.free_residual.max() < 1e-6
    unsettled = found.report.unsettled
    assert unsettled[1] >= 1 / tokens.shape[1] and not unsettled[::2].any()

    # By the window that ends there, and the loss masked by ignored labels, with the whole's normalisation.
    def part(outputs, targets):
        return cross_entropy(outputs, targets) * jnp.mean((targets >= 0).astype(outputs.dtype))

    masked = targets.at[1, cut:].set(-100)
    healthy = jnp.zeros_like(hopeless)
    exact = OracleAdjoint(free=free)(clamped, part, ((tokens, healthy), masked))
    cosine, error = agreement(found.grads, exact.grads)
    assert cosine > 1 - 1e-10 and error < 1e-5
    # Its neighbours do not feel it, to the last bit.
    alone = estimator(clamped, cross_entropy, ((tokens, healthy), targets))
    for name in ("loss", "free_residual", "adjoint_residual"):
        one, other = getattr(found.report, name), getattr(alone.report, name)
        np.testing.assert_array_equal(one[::2], other[::2])
    np.testing.assert_array_equal(found.states[::2], alone.states[::2])
    with pytest.raises(ValueError, match="prefix"):
        OracleAdjoint(accept=Accept(prefix=True))


def test_misuse_is_refused():
    field, x, _ = case()
    conserved = EnergyBlock(C, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="AbstractCausalField"):
        equilibrium(conserved, x, x, solver=TokenOrder())
    with pytest.raises(ValueError, match=r"\(T, C\)"):
        equilibrium(field, x[0], x[0], solver=TokenOrder())
    with pytest.raises(ValueError, match="`solver`"):
        TokenOrder(NewtonKrylov(1e-5), chunk=2)
    with pytest.raises(ValueError, match="`chunk`"):
        TokenOrder(chunk=0)
    with pytest.raises(ValueError, match="SharedAdjoint"):
        Nudge(TokenOrder(), contrast=AdjointCoordinates())
    model, batch = language()
    nudge = Nudge(TokenOrder(), contrast=SharedAdjoint())
    for estimator in (
        AsymEP(nudged=nudge, correction=ProbeCorrection()),
        AsymEP(nudged=nudge, state_noise=1e-3),
        VectorFieldEP(nudged=nudge),
    ):
        with pytest.raises(ValueError, match="TokenOrder"):
            estimator(model, cross_entropy, batch, key=jax.random.key(0))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_chain_that_amplifies_is_solved_by_a_window_that_moves(reverse):
    """Answers to answers along 24 tokens grow by a thousand on the way: the rounding of that must not stay."""
    z = jnp.ones((24, 2), jnp.float32)
    field = Cubic(jnp.float32(1e3))
    dense = np.asarray(jax.jacfwd(lambda u: field(0.0, u, z))(z), np.float64).reshape(48, 48)
    rhs = jax.random.normal(jax.random.key(3), (3, 24, 2), jnp.float32).at[1, 5].set(jnp.nan)

    @jax.jit
    def solve(rhs, rtol):
        order = TokenOrder(AndersonTypeI(rtol, window=3), chunk=16, flow=None)
        one = lambda rhs: linear_in_order(field, z, z, rhs, order, 400, reverse)
        found = jax.vmap(one)(rhs)
        return found.value, found.steps

    right = np.linalg.solve(dense.T if reverse else dense, np.asarray(rhs[::2]).reshape(2, 48).T).T
    size = np.linalg.norm(np.asarray(rhs[::2]).reshape(2, 48), axis=1)
    # A few steps a token; one that is not finite is not waited for, nor what the dtype does not hold.
    for rtol, most in ((1e-4, 5), (1e-9, 40)):
        value, steps = solve(rhs, rtol)
        left = (np.asarray(value[::2], np.float64) - right.reshape(2, 24, 2)).reshape(2, 48)
        left = left @ (dense if reverse else dense.T)
        assert np.all(np.linalg.norm(left, axis=1) <= 2e-4 * size)
        assert np.all(steps < 24 * most), steps
