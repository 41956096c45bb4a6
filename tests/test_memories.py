"""Associative memories of graded neurons: energies that fall, limits in closed form, codes corrected."""

from functools import partial

import chex
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import Phase, given, settings, strategies as st

from eqjax.analytic import squared_error
from eqjax.fields import (
    AssociativeMemory,
    Blocks,
    ClampedMemory,
    ContinuousHopfield,
    EnergyTransformer,
    EquilibriumModel,
    LogCosh,
    Polynomial,
    Quadratic,
    Softmax,
    Spherical,
    hamming_memory,
    pattern_memory,
    xor_memory,
)
from eqjax.gradients import (
    AsymEP,
    EnergyEP,
    OracleAdjoint,
    VectorFieldEP,
)
from eqjax.relaxation import GMRES, Anderson, relax

# Energy and gradients


LAGRANGIANS = (Quadratic(), Softmax(2.0), Polynomial(2), Polynomial(3), Spherical(), LogCosh(1.5))


@partial(jax.jit, static_argnums=(0, 1))
def descent(kind, pair, seed):
    """Energies along a relaxation from a random state of a random network, and dE/dt at its start."""
    keys = jax.random.split(jax.random.key(seed), 5)
    if kind == "graded":
        weight = jax.random.normal(keys[0], (4, 4))
        field = ContinuousHopfield(weight + weight.T, jax.random.normal(keys[1], (4,)), time=0.7)
        z0 = 2 * jax.random.normal(keys[2], (4,))
    else:
        field = AssociativeMemory(
            jax.random.normal(keys[0], (3, 4)),
            visible=LAGRANGIANS[pair[0]],
            hidden=LAGRANGIANS[pair[1]],
            hidden_bias=jax.random.normal(keys[1], (3,)),
            hidden_time=0.5,
        )
        z0 = jax.random.normal(keys[2], (4,)), jax.random.normal(keys[3], (3,))
    x = jax.random.normal(keys[4], (4,))
    found = relax(field, z0, x, step=0.01, steps=400, saveat=dfx.SaveAt(t0=True, steps=True))
    path = jax.vmap(lambda z: field.energy(z, x))(found.trajectory)
    return path, jax.jvp(lambda z: field.energy(z, x), (z0,), (field(0.0, z0, x),))[1]


PAIRS = [("graded", ()), *(("memory", p) for p in ((0, 1), (4, 1), (5, 3), (4, 2), (5, 5)))]


@pytest.mark.parametrize(("kind", "pair"), PAIRS, ids=str)
@settings(max_examples=6, phases=[Phase.generate])
@given(seed=st.integers(0, 2**16))
def test_energy_falls_for_convex_lagrangians(kind, pair, seed):
    path, rate = descent(kind, pair, jnp.asarray(seed))
    assert np.all(np.diff(path) < 1e-10) and rate < 0
    np.testing.assert_allclose((path[1] - path[0]) / 0.01, rate, rtol=0.2)


def test_energy_of_graded_neurons_is_hopfields():
    # -½ gᵀWg - (b + x)·g + Σ ∫ artanh(s)/β ds from 0 to g, Hopfield 1984, eq. 5
    weight, u = jax.random.normal(jax.random.key(0), (4, 4)), jnp.array([0.3, -1.0, 2.0, 0.0])
    weight, beta = weight + weight.T, 1.7
    field = ContinuousHopfield(weight, lagrangian=LogCosh(beta))
    g = np.tanh(beta * np.asarray(u))
    integral = (g * np.arctanh(g) + 0.5 * np.log1p(-(g**2))) / beta
    want = -0.5 * g @ weight @ g - 0.2 * g.sum() + integral.sum()
    chex.assert_trees_all_close(field.energy(u, 0.2), want, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(
        field(0.0, u, 0.2), jnp.asarray(weight @ g) + 0.2 - u, rtol=1e-12, atol=1e-12
    )
    # Weights that training has made asymmetric act by their symmetric part.
    skewed = eqx.tree_at(lambda f: f.weight, field, weight + jnp.triu(weight, 1) - jnp.tril(weight))
    symmetric = 0.5 * (skewed.weight + skewed.weight.T)
    chex.assert_trees_all_close(
        skewed(0.0, u, 0.0), jnp.asarray(symmetric @ g) - u, rtol=1e-12, atol=1e-12
    )
    complex_state = field(0.0, u.astype(complex), 0.2)
    chex.assert_trees_all_close(complex_state.real, field(0.0, u, 0.2), rtol=1e-12, atol=1e-12)


def readout(z):
    return jax.tree.leaves(z)[0]


def start(x):
    return x, jnp.zeros(3)


def relative(a, b):
    a, b = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(t)]) for t in (a, b))
    return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)


def test_gradients_need_the_energy_or_the_correction():
    keys = jax.random.split(jax.random.key(5), 3)
    patterns = 0.8 * jax.random.normal(keys[0], (3, 4))
    field = AssociativeMemory(patterns, visible=LogCosh(), hidden=Softmax(3.0), hidden_time=0.5)
    model = EquilibriumModel(lambda u: u, field, readout, start=start)
    batch = 0.7 * jax.random.normal(keys[1], (2, 4)), jax.random.normal(keys[2], (2, 4))
    settle = Anderson(1e-12)
    oracle = OracleAdjoint(free=settle, adjoint_solver=GMRES(1e-12))
    exact = oracle(model, squared_error, batch)
    assert jnp.all(exact.report.accepted)

    def error(kind, beta):
        estimator = kind(free=settle, nudged=Anderson(1e-10), beta=jnp.asarray(beta))
        return relative(estimator(model, squared_error, batch).grads, exact.grads)

    contrast, corrected, plain = (
        [error(kind, beta) for beta in (1e-3, 5e-4)] for kind in (EnergyEP, AsymEP, VectorFieldEP)
    )
    for errors in (contrast, corrected):
        assert errors[1] < 1e-4 and 3.6 < errors[0] / errors[1] < 4.4  # O(β²)
    assert min(plain) > 1 and abs(plain[0] / plain[1] - 1) < 1e-4  # whatever β


# Limits and codes


@jax.jit
def slow_and_adiabatic(tau, z0, x):
    keys = jax.random.split(jax.random.key(0), 2)
    memory = AssociativeMemory(
        jax.random.normal(keys[0], (5, 3)),
        visible=LogCosh(),
        hidden=Softmax(2.0),
        hidden_bias=jax.random.normal(keys[1], (5,)),
    )
    memory = eqx.tree_at(lambda m: m.hidden_time, memory, tau)
    effective = memory.adiabatic()
    whole = relax(memory, effective.complete(z0), x, step=1e-3, steps=1500).value[0]
    return whole, relax(effective, z0, x, step=1e-3, steps=1500).value


def test_fast_hidden_neurons_follow_the_effective_dynamics():
    z0, x = jnp.array([1.0, -0.5, 0.2]), jnp.array([0.3, 0.0, -0.2])
    distances = []
    for tau in (0.04, 0.02):
        whole, effective = slow_and_adiabatic(jnp.asarray(tau), z0, x)
        distances.append(jnp.linalg.norm(whole - effective))
    assert distances[0] < 0.02 and 1.8 < distances[0] / distances[1] < 2.2  # O(τ_h)


def test_the_adiabatic_limit_is_the_softmax_of_distances():
    patterns, beta = jax.random.normal(jax.random.key(1), (5, 3)), 2.5
    field = pattern_memory(patterns, beta=beta, visible_time=0.5).adiabatic()
    v = jnp.array([0.4, -0.3, 0.8])
    squares = np.sum((np.asarray(patterns) - np.asarray(v)) ** 2, axis=1)
    f = scipy.special.softmax(-beta / 2 * squares)
    chex.assert_trees_all_close(
        field(0.0, v, 0.0),
        jnp.asarray(f @ (np.asarray(patterns) - np.asarray(v))) / 0.5,
        rtol=1e-12,
        atol=1e-12,
    )
    energy = -scipy.special.logsumexp(-beta / 2 * squares) / beta
    chex.assert_trees_all_close(field.energy(v, 0.0), energy, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(
        field(0.0, v, 0.0), -2 * jax.grad(field.energy)(v, 0.0), rtol=1e-12, atol=1e-12
    )


def test_a_clamped_memory_is_the_memory_with_neurons_held():
    memory = AssociativeMemory(jax.random.normal(jax.random.key(2), (4, 3)), visible=Spherical())
    held, h = ClampedMemory(memory, (2,)), jnp.arange(4.0)
    x, v = jnp.array([0.7]), jnp.array([0.1, -0.4])
    whole = memory(0.0, (jnp.array([0.1, -0.4, 0.7]), h), 0.0)
    chex.assert_trees_all_close(
        held(0.0, (v, h), x), (whole[0][:2], whole[1]), rtol=1e-14, atol=1e-12
    )
    chex.assert_trees_all_close(
        held.energy((v, h), x), memory.energy(held.complete((v, h), x), 0.0), rtol=1e-9, atol=1e-12
    )
    for clamped in ((0, 0), (3,), (0, 1, 2)):
        with pytest.raises(ValueError, match="`clamped` must name visible neurons among 0 … 2"):
            ClampedMemory(memory, clamped)
    with pytest.raises(ValueError, match="`beta` must be above 0"):
        pattern_memory(jnp.ones((2, 2)), beta=0.0)


@jax.jit
def xor(beta, bits):
    field = eqx.tree_at(lambda f: f.memory.hidden.beta, xor_memory(), beta)
    settle = lambda x: relax(field, (jnp.full(1, 0.5), jnp.zeros(4)), x, step=0.02, steps=1000)
    return jax.vmap(settle)(bits).value[0][:, 0]


def test_xor():
    bits = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    want = jnp.array([0.0, 1.0, 1.0, 0.0])
    for beta, margin in ((0.5, 0.005), (10.0, 0.4999)):
        signed = (xor(jnp.asarray(beta), bits) - 0.5) * (2 * want - 1)
        assert jnp.all(signed > margin), signed


@jax.jit
def decoded(beta, received):
    field = eqx.tree_at(lambda f: f.hidden.beta, hamming_memory(), beta)
    settle = lambda v: relax(field, (v, jnp.zeros(16)), 0.0, step=0.02, steps=1000)
    return jnp.round(jax.vmap(settle)(received).value[0])


def test_hamming_code():
    words = hamming_memory().patterns
    distances = np.sum(np.asarray(words)[:, None] != np.asarray(words)[None], axis=-1)
    assert words.shape == (16, 7) and np.min(distances + 7 * np.eye(16)) == 3
    flipped = jnp.abs(words[:, None] - jnp.eye(7)[None]).reshape(112, 7)
    received = jnp.concatenate([words, flipped])
    sent = jnp.concatenate([words, jnp.repeat(words, 7, axis=0)])
    for beta in (3.0, 10.0):
        np.testing.assert_array_equal(decoded(jnp.asarray(beta), received), sent)
    right = jnp.all(decoded(jnp.asarray(2.0), received) == sent, axis=1)
    assert jnp.all(right[:16]) and not jnp.any(right[16:])


# The energy transformer


@jax.jit
def transformer_path(x, key):
    field = EnergyTransformer(3, 2, 4, visible=LogCosh(), key=key)
    field = eqx.tree_at(lambda f: f.memory_bias, field, jnp.array([0.2, -0.1]))
    z0 = field.initial(x)
    found = relax(field, z0, x, step=1e-3, steps=500, saveat=dfx.SaveAt(t0=True, steps=True))
    return jax.vmap(lambda z: field.energy(z, x))(found.trajectory), found.value


def test_the_energy_transformer_is_its_equations():
    beta, bias = 0.7, jnp.array([0.1, 0.2, 0.3])
    field = EnergyTransformer(3, 2, 4, beta=beta, key=jax.random.key(0))
    attention_bias = jnp.array([0.1, -0.2, 0.0, 5.0])
    field = eqx.tree_at(lambda f: (f.visible_bias, f.attention_bias), field, (bias, attention_bias))
    keys = jax.random.split(jax.random.key(1), 3)
    x, v, h = (jax.random.normal(k, s) for k, s in zip(keys, ((3, 3), (3,), (5,)), strict=True))
    attention, memory = scipy.special.softmax(beta * h[:3]), np.maximum(h[3:], 0)
    recalled = np.concatenate([attention, memory]) @ np.concatenate([x, field.patterns])
    force_v = (recalled + bias - v) / 0.1
    overlap = np.concatenate([x, field.patterns]) @ v
    force_h = (overlap + np.concatenate([attention_bias[:3], np.zeros(2)]) - h) / 0.01
    chex.assert_trees_all_close(
        field(0.0, (v, h), x), (jnp.asarray(force_v), jnp.asarray(force_h)), rtol=1e-12, atol=1e-12
    )
    energy = (
        0.5 * np.sum((v - bias) ** 2) - 0.5 * np.sum(bias**2)
        - v @ recalled
        + attention @ (h[:3] - attention_bias[:3]) + memory @ h[3:]
        - scipy.special.logsumexp(beta * h[:3]) / beta - 0.5 * np.sum(memory**2)
    )  # fmt: skip
    chex.assert_trees_all_close(field.energy((v, h), x), energy, rtol=1e-12, atol=1e-12)


def test_tokens_are_appended_and_their_order_means_nothing():
    x = jax.random.normal(jax.random.key(2), (3, 3))
    path, (v, h) = transformer_path(x, jax.random.key(3))
    assert jnp.all(jnp.diff(path) < 1e-10) and path[-1] < path[0]
    turned = transformer_path(jnp.roll(x, 1, axis=0), jax.random.key(3))[1]
    np.testing.assert_allclose(turned[0], v, rtol=1e-10)
    np.testing.assert_allclose(turned[1][:3], jnp.roll(h[:3], 1), rtol=1e-10)
    field = EnergyTransformer(3, 2, 3, key=jax.random.key(3))
    longer = jnp.concatenate([x, x[:1]])
    with pytest.raises(ValueError, match="The context has 4 tokens, and there is room for 3"):
        field(0.0, field.initial(longer), longer)
    with pytest.raises(ValueError, match="`beta` must be above 0"):
        EnergyTransformer(3, 2, 3, beta=0.0, key=jax.random.key(3))
    with pytest.raises(ValueError, match="`sizes` must give each"):
        Blocks((Quadratic(),), (2, 3))
    with pytest.raises(ValueError, match="There are 2 neurons in the blocks, got 3"):
        Blocks((Quadratic(),), (2,))(jnp.ones(3))


def test_the_capacity_grows_as_predicted(experiment):
    capacity = experiment("capacity")
    mean, spread = capacity.measured(partial(Polynomial, 3), 24, 80, draws=8)
    predicted = capacity.prediction(3, 24, 80)
    assert abs(mean - predicted) < 3 * spread < predicted and predicted > 0.005
    assert 1.9 < np.log2(capacity.held(3, 128, 0.01) / capacity.held(3, 64, 0.01)) < 2.1
