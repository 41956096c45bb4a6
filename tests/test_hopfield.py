"""Hopfield networks of binary neurons: exact laws of recall, learning rules, and an energy that never rises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import Phase, given, settings, strategies as st

from eqjax.fields import (
    Asynchronous,
    BinaryHopfield,
    ContinuousHopfield,
    Synchronous,
    hebb,
    pseudo_inverse,
    recall,
    storkey,
)

N = 1000
FEW = settings(max_examples=10, phases=[Phase.generate])


def signs(key, shape, dtype="float64"):
    return jax.random.rademacher(key, shape, jnp.dtype(dtype))


@jax.jit
def energies(network, s, key):
    """The energy after every single update of a sweep, in a random order."""

    def update(s, i):
        one = jnp.arange(s.size) == i
        s = jnp.where(one, Synchronous().sweep(network, s, None), s)
        return s, network.energy(s)

    s, path = jax.lax.scan(update, s, jax.random.permutation(key, s.size))
    return s, path


@FEW
@given(seed=st.integers(0, 2**16))
def test_energy_never_rises_when_one_neuron_at_a_time_is_updated(seed):
    a, b, c, d = jax.random.split(jax.random.key(seed), 4)
    weight = jax.random.normal(a, (12, 12))
    weight = jnp.abs(jnp.eye(12) * weight) + (1 - jnp.eye(12)) * (weight + weight.T)
    network = BinaryHopfield(weight, jax.random.normal(b, (12,)))
    cue = signs(c, (12,))
    last, path = energies(network, cue, d)
    steps = jnp.diff(path, prepend=network.energy(cue)[None])
    assert jnp.all(steps < 1e-12)
    assert path[-1] < network.energy(cue) or jnp.all(last == cue)
    # A whole sweep is those updates, one after the other.
    np.testing.assert_array_equal(Asynchronous().sweep(network, cue, d), last)
    # At the end no neuron wants to change.
    found = recall(network, cue, key=d)
    assert found.fixed
    np.testing.assert_array_equal(Synchronous().sweep(network, found.state, None), found.state)


def test_all_at_once_may_cycle_and_that_is_said():
    network = BinaryHopfield(jnp.array([[0.0, -1.0], [-1.0, 0.0]]))
    cue = jnp.array([1.0, 1.0])
    found = recall(network, cue, order=Synchronous(), max_sweeps=7)
    assert not found.fixed and found.sweeps == 7
    np.testing.assert_array_equal(found.state, -cue)
    found = recall(network, cue, key=jax.random.key(0))
    assert found.fixed and found.state[0] == -found.state[1] and network.energy(found.state) == -1
    # No field, no change: a neuron of field 0 stays; a threshold decides.
    idle = BinaryHopfield(jnp.zeros((2, 2)))
    assert jnp.all(
        recall(idle, jnp.array([1.0, -1.0]), order=Synchronous()).state == jnp.array([1.0, -1.0])
    )
    tilted = BinaryHopfield(jnp.zeros((2, 2)), jnp.array([1.0, -1.0]))
    assert jnp.all(recall(tilted, cue, order=Synchronous()).state == jnp.array([-1.0, 1.0]))


def one_step_error(key, load):
    patterns = signs(key, (load, N), "float32")
    # Whole numbers, so that ties are ties.
    network = BinaryHopfield(jnp.round(N * hebb(patterns)))
    after = jax.vmap(lambda s: Synchronous().sweep(network, s, None))(patterns)
    return jnp.mean((after != patterns).astype(float))


@pytest.mark.parametrize("load", [100, 138])
def test_one_step_error_is_the_exact_law(load):
    keys = jax.random.split(jax.random.key(1), 40)
    errors = np.asarray(jax.jit(lambda k: jax.lax.map(partial(one_step_error, load=load), k))(keys))
    k = (N - 1) * (load - 1)
    # P[Bin(K, ½) < (K - (N-1))/2], strictly: a neuron of field zero stays
    law = scipy.stats.binom.cdf(int(np.ceil((k - (N - 1)) / 2)) - 1, k, 0.5)
    asymptote = 0.5 * scipy.special.erfc((N / (2 * load)) ** 0.5)
    assert abs(errors.mean() - law) < 2 * errors.std(ddof=1) / len(errors) ** 0.5 < 0.06 * law
    assert abs(asymptote / law - 1) < 0.07


@partial(jax.jit, static_argnums=1)
def overlap(keys, load):
    def one(key):
        a, b = jax.random.split(key)
        patterns = signs(a, (load, N), "float32")
        found = recall(BinaryHopfield(hebb(patterns)), patterns[0], key=b, max_sweeps=50)
        return jnp.mean(found.state * patterns[0])

    return jax.lax.map(one, keys)


def test_retrieval_collapses_around_a_load_of_138_thousandths():
    keys = jax.random.split(jax.random.key(3), 6)
    below, above = (np.median(overlap(keys, load)) for load in (120, 180))
    assert below > 0.97 and above < 0.7


def naive_storkey(patterns):
    n = patterns.shape[1]
    w = np.zeros((n, n))
    for xi in patterns:
        old = w.copy()
        for i in range(n):
            for j in range(n):
                if i != j:
                    h_ij = sum(old[i, k] * xi[k] for k in range(n) if k not in (i, j))
                    h_ji = sum(old[j, k] * xi[k] for k in range(n) if k not in (i, j))
                    w[i, j] += (xi[i] * xi[j] - xi[i] * h_ji - h_ij * xi[j]) / n
    return w


def test_learning_rules_against_their_definitions():
    patterns = signs(jax.random.key(0), (5, 9))
    x = np.asarray(patterns)
    np.testing.assert_allclose(storkey(patterns), naive_storkey(x), atol=1e-14)
    outer = sum(np.outer(s, s) for s in x) / 9
    np.testing.assert_allclose(hebb(patterns), outer - np.diag(np.diag(outer)), atol=1e-14)
    projected = pseudo_inverse(patterns)
    diagonal = np.diag(np.linalg.pinv(x) @ x)
    np.testing.assert_allclose(x @ projected, x * (1 - diagonal), atol=1e-12)
    for rule in (hebb, storkey, pseudo_inverse):
        weight = rule(patterns)
        np.testing.assert_allclose(weight, weight.T, atol=1e-14)
        assert not np.any(np.diag(weight))


def test_capacity_goes_up_from_hebb_to_storkey_to_projection():
    n, kept = 100, []
    patterns = signs(jax.random.key(5), (40, n))
    for rule in (hebb, storkey, pseudo_inverse):
        network = BinaryHopfield(rule(patterns))
        after = jax.vmap(lambda s: Synchronous().sweep(network, s, None))(patterns)
        kept.append(float(jnp.mean(jnp.all(after == patterns, axis=1).astype(float))))
    assert kept[0] < 0.1 and kept[0] < kept[1] < 1 and kept[2] == 1


def test_misuse_of_hopfield_networks_is_refused():
    bits = jnp.array([[0.0, 1.0, 1.0]])
    for rule in (hebb, storkey, pseudo_inverse):
        with pytest.raises(
            ValueError, match=r"`patterns` must hold only -1 and \+1.*2 \* bits - 1"
        ):
            rule(bits)
        with pytest.raises(Exception, match=r"`patterns` must hold only"):
            jax.block_until_ready(jax.jit(rule)(bits))
    square = jnp.eye(3)
    for network in (BinaryHopfield, ContinuousHopfield):
        with pytest.raises(ValueError, match="`weight` must be square"):
            network(jnp.ones((3, 2)))
        with pytest.raises(ValueError, match="must be symmetric.*differs from its transpose by 1"):
            network(square.at[0, 1].set(1.0))
        with pytest.raises(ValueError, match="must be symmetric"):
            network(square * jnp.nan)
        with pytest.raises(ValueError, match="must have the shape"):
            network(square, jnp.zeros(2))
    with pytest.raises(ValueError, match="negative self-couplings"):
        BinaryHopfield(-square)
    with pytest.raises(ValueError, match="`time` must be above 0"):
        ContinuousHopfield(square, time=0.0)
    network, cue = BinaryHopfield(square), jnp.ones(3)
    with pytest.raises(ValueError, match="give `key="):
        recall(network, cue)
    with pytest.raises(ValueError, match="`cue` must hold only"):
        recall(network, 0.5 * cue, order=Synchronous())
    with pytest.raises(ValueError, match="one entry for each"):
        recall(network, jnp.ones(4), order=Synchronous())
    with pytest.raises(ValueError, match="`max_sweeps`"):
        recall(network, cue, order=Synchronous(), max_sweeps=0)
