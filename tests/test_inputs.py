"""Inputs that were taken without a word: times, tokens, units of time, currents that begin late, tolerances."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from eqjax.analytic import check_ids, cross_entropy, squared_error
from eqjax.fields import EquilibriumModel, LeakyIntegrateAndFire, RecurrentField
from eqjax.gradients import OracleAdjoint
from eqjax.language import CharTokenizer, equilibrium_lm
from eqjax.relaxation import (
    RESULTS,
    EventDriven,
    NewtonKrylov,
    TimeStepping,
    equilibrium,
    fire,
    relax,
)

LOGITS = jnp.arange(15.0).reshape(3, 5) ** 0.5


def by_hand(targets, weights):
    losses = scipy.special.logsumexp(LOGITS, -1) - np.asarray(LOGITS)[np.arange(3), targets]
    return np.average(losses, weights=weights)


def test_cross_entropy_is_a_mean_over_what_is_asked(key):
    targets = jnp.array([1, 4, 2])
    assert jnp.isclose(cross_entropy(LOGITS, targets), by_hand(targets, None), rtol=1e-12)
    weights = jnp.array([0.5, 2.0, 1.0])
    weighted = cross_entropy(LOGITS, targets, weights)
    assert jnp.isclose(weighted, by_hand(targets, weights), rtol=1e-12)
    ignored = cross_entropy(LOGITS, targets.at[1].set(-100))
    assert jnp.isclose(ignored, by_hand(targets, [1, 0, 1]), rtol=1e-12)
    assert cross_entropy(LOGITS, jnp.full(3, -100)) == 0
    gradient = jax.grad(cross_entropy)(LOGITS, targets.at[1].set(-100))
    assert not gradient[1].any() and gradient[0].any()


@pytest.mark.parametrize("target", [-1, 5, 99])
def test_targets_out_of_range_are_refused_and_nan_where_unknown(target):
    targets = jnp.array([1, target, 2])
    with pytest.raises(ValueError, match=rf"`targets` must lie in \[0, 5\), got {target}"):
        cross_entropy(LOGITS, targets)
    assert jnp.isnan(jax.jit(cross_entropy)(LOGITS, targets))
    with pytest.raises(ValueError, match="`ids`"):
        check_ids("ids", targets, 5)


def test_a_loss_is_never_broadcast():
    with pytest.raises(ValueError, match=r"`targets` must have shape \(4,\), got \(4, 1\)"):
        squared_error(jnp.ones(4), jnp.zeros((4, 1)))
    with pytest.raises(ValueError, match="`weights`"):
        cross_entropy(LOGITS, jnp.zeros(3, int), jnp.ones((3, 1)))
    assert squared_error(jnp.ones(4), jnp.zeros(4, int)) == 2


@pytest.mark.parametrize("t1", [float("nan"), float("inf"), -1.0])
def test_no_time_is_no_relaxation(t1):
    with pytest.raises(ValueError, match="`t1` must be a finite time"):
        relax(lambda t, z, x: -z, jnp.ones(2), t1=t1)
    told = jax.jit(lambda t1: relax(lambda t, z, x: -z, jnp.ones(2), t1=t1, throw=False).result)
    assert told(1.0) == RESULTS.successful
    if t1 > 0 or np.isnan(t1):  # Diffrax refuses a traced time that is negative
        assert told(t1) != RESULTS.successful


def test_a_traced_step_does_not_go_backwards():
    told = jax.jit(
        lambda step: relax(lambda t, z, x: -z, jnp.ones(2), step=step, steps=5, throw=False).result
    )
    assert told(-0.1) != RESULTS.successful and told(0.1) == RESULTS.successful


@pytest.mark.parametrize("rate", [1.0, 100.0, 1e4, 1e8])
def test_time_steps_find_the_unit_of_time(rate):
    """The same field in other units of time: the same root, in about as many steps."""
    solver = TimeStepping(1e-8)
    found = equilibrium(
        lambda t, z, x: rate * (1 - z - 0.1 * z**3),
        jnp.zeros(()),
        solver=TimeStepping(0.0, atol=1e-8 * rate),
    )
    assert jnp.isclose(found.value, 0.9216989942, rtol=1e-7)
    assert found.stats["num_steps"] < 60
    left = equilibrium(lambda t, z, x: -rate * (z - 1), jnp.zeros(()), solver=solver)
    assert jnp.isclose(left.value, 1.0, rtol=1e-7)


# v = R I (1 - exp(-t/τ)) reaches the threshold of 10 mV after -τ log(1 - 10 / R I), τ = 10 ms.
@pytest.mark.parametrize(
    ("current", "duration", "intervals"),
    [(20.0, 40.0, 3), (700.0, 0.2, 1), (100.0, 2.0, 1)],
)
@pytest.mark.parametrize("declared", [False, True])
def test_a_neuron_at_rest_sees_the_current_come(current, duration, intervals, declared):
    neuron = LeakyIntegrateAndFire(
        stimulus=lambda t: jnp.where((t > 50) & (t < 50 + duration), current, 0.0)
    )
    scheme = EventDriven(jumps=jnp.array([50, 50 + duration])) if declared else EventDriven()
    found = fire(neuron, 0.0, t1=100.0, capacity=4, scheme=scheme)
    first = -10 * np.log(1 - 10 / current)
    want = 50 + first + (first + 5) * np.arange(intervals)
    assert found.complete and found.counts[0] == intervals
    assert np.allclose(found.times[:intervals], want, rtol=0, atol=1e-6)


def test_tokens_that_are_none_are_refused_or_nan(key):
    model = equilibrium_lm(10, 4, 8, 2, key=key)
    for token in (-1, 10, 99):
        inputs = jnp.array([token, 1])
        with pytest.raises(ValueError, match=rf"`inputs` must lie in \[0, 10\), got {token}"):
            model.encode(inputs)
        assert jnp.isnan(jax.jit(lambda u: model.encode(u))(inputs)[0]).all()
        with pytest.raises(ValueError, match="`ids`"):
            CharTokenizer("0123456789").decode([1, token])


def test_the_oracle_is_as_exact_as_its_dtype(key):
    """Its own linear solve, on a field settled to rounding."""
    field = RecurrentField(6, strength=2.0, asymmetry=0.7, key=key)
    model = EquilibriumModel(eqx.nn.Identity(), field, eqx.nn.Identity())
    batch = jnp.ones((2, 6)), jnp.zeros((2, 6))
    estimate = OracleAdjoint(free=NewtonKrylov(1e-12))(model, squared_error, batch)
    assert estimate.report.adjoint_residual.max() < 1e-9
