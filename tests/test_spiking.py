"""Neurons that integrate and fire: exact spikes and their gradients, networks by hand, Brian2's trains."""

from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import eqjax as ej
from eqjax.fields import (
    DeltaSynapse,
    ExponentialSynapse,
    LeakyIntegrateAndFire,
    SparseWeight,
    SpikingNetwork,
    arrivals,
)
from eqjax.relaxation import EventDriven, FixedStep, fire

RATES = {11.0: 34.5078032801, 12.0: 43.6345966244, 15.0: 62.5542545299, 20.0: 83.8119568393}


def interval(current, refractory=5.0):
    return refractory + 10 * jnp.log(current / (current - 10))


@pytest.mark.parametrize("current", RATES)
def test_the_rate_of_a_neuron(current):
    train = fire(LeakyIntegrateAndFire(current=current), 0.0, t1=200.0, capacity=20)
    count = int(train.counts[0])
    assert jnp.all(jnp.isfinite(train.times[:count])) and jnp.all(jnp.isinf(train.times[count:]))
    assert jnp.all(train.indices == jnp.where(jnp.arange(20) < count, 0, -1)) and train.complete
    intervals = jnp.diff(train.times[:count])
    np.testing.assert_allclose(1000 / intervals, RATES[current], rtol=0, atol=1e-8)
    expected = float(interval(current)) * np.arange(1, count + 1) - 5
    np.testing.assert_allclose(train.times[:count], expected, rtol=0, atol=1e-9)
    assert expected[-1] + interval(current) > 200  # none is missed at the end


def test_gradients_of_a_spike_time_and_the_current_found_from_one():
    def closed(I, R, E, tau, threshold, reset, wait, v0):
        drive = E + R * I
        again = wait + tau * jnp.log((drive - reset) / (drive - threshold))
        return tau * jnp.log((drive - v0) / (drive - threshold)) + 2 * again

    def simulated(I, R, E, tau, threshold, reset, wait, v0):
        neuron = LeakyIntegrateAndFire(tau, E, R, I, threshold, reset, wait)
        return fire(neuron, v0, t1=200.0, capacity=20).times[2]

    simulated = jax.jit(jax.value_and_grad(simulated, argnums=tuple(range(8))))
    values = [jnp.asarray(a) for a in (1.4, 10.0, 0.7, 9.0, 10.5, 1.0, 4.0, 2.0)]
    ours, gradient = simulated(*values)
    theirs, expected = jax.value_and_grad(closed, argnums=tuple(range(8)))(*values)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(jnp.stack(gradient), jnp.stack(expected), rtol=1e-9, atol=1e-10)
    # Newton's method for the current whose third spike comes at 45 ms: 3 τ log(I / (I - 10)) + 2·5 = 45.
    values = [jnp.asarray(a) for a in (13.0, 1.0, 0.0, 10.0, 10.0, 0.0, 5.0, 0.0)]
    for _ in range(7):
        time, slopes = simulated(*values)
        values[0] = values[0] - (time - 45.0) / slopes[0]
    x = np.exp((45.0 - 10) / 30)
    np.testing.assert_allclose(values[0], 10 * x / (x - 1), rtol=1e-10)


DRIVE = (11.0, 9.5, 15.0, 12.5)
WEIGHT = np.array(
    [[0.0, 2.0, -1.5, 0.7], [2.5, 0.0, 1.9, -0.8], [-2.0, 1.2, 0.0, 0.4], [0.9, -1.1, 1.3, 0.0]]
)


def by_hand(drive, weight, tau_s, t1, refractory=5.0, tau=10.0):
    """An independent simulation: closed forms between events, Brent's method for the crossings."""
    n, t = len(drive), 0.0
    drive, v, s, ready = np.array(drive), np.zeros(n), np.zeros(n), np.full(n, -np.inf)
    spikes = []

    def at(i, d):
        kernel = 0.0
        if tau_s:
            kernel = s[i] * tau_s / (tau_s - tau) * (np.exp(-d / tau_s) - np.exp(-d / tau))
        return drive[i] + (v[i] - drive[i]) * np.exp(-d / tau) + kernel

    while t < t1:
        active = np.flatnonzero(ready <= t)
        over = [i for i in active if v[i] >= 10]
        stop = min([t1, *ready[ready > t]]) - t
        hits = [(0.0, i) for i in over]
        for i in () if over else active:
            grid = np.linspace(0, stop, 400)
            crossed = np.flatnonzero(np.diff(np.sign(at(i, grid) - 10)) > 0)
            if crossed.size:
                a, b = grid[crossed[0]], grid[crossed[0] + 1]
                hits.append(
                    (scipy.optimize.brentq(lambda d, i=i: at(i, d) - 10, a, b, xtol=1e-14), i)
                )
        d, spiking = min(hits) if hits else (stop, None)
        v[active] = [at(i, d) for i in active]
        s *= np.exp(-d / tau_s) if tau_s else 0.0
        t += d
        if hits:
            spikes.append((t, spiking))
            if tau_s:
                s += weight[:, spiking]
            else:
                v[active] += weight[active, spiking]
            v[spiking], ready[spiking] = 0.0, t + refractory
        elif stop < t1 - t:
            t = min(ready[ready >= t - 1e-12], default=t)
    return spikes


def network(weight, synapse, drive=DRIVE):
    return SpikingNetwork(LeakyIntegrateAndFire(current=jnp.asarray(drive)), weight, synapse)


SYNAPSES = {"delta": (DeltaSynapse(), None), "exponential": (ExponentialSynapse(4.0), 4.0)}


@pytest.mark.parametrize("name", SYNAPSES)
def test_a_network_spikes_as_by_hand(name):
    synapse, tau_s = SYNAPSES[name]
    expected = by_hand(DRIVE, WEIGHT, tau_s, 80.0)
    times, indices = zip(*expected, strict=True)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(weight, drive):
        train = fire(network(weight, synapse, drive), jnp.zeros(4), t1=80.0, capacity=30)
        return train.times[len(times) - 1], train

    (_, train), gradient = run(jnp.asarray(WEIGHT), jnp.asarray(DRIVE))
    assert 10 < len(times) < 30 and int(jnp.sum(train.counts)) == len(times)
    assert list(train.indices[: len(times)]) == list(indices)
    np.testing.assert_allclose(train.times[: len(times)], times, rtol=0, atol=1e-8)
    # Uncoupled, it fires at other times: the coupling did something.
    (_, alone), _ = run(jnp.zeros((4, 4)), jnp.asarray(DRIVE))
    assert not np.allclose(alone.times[: len(times)], times, atol=0.1)
    # The gradient of the last spike time in all weights and drives, against differences by hand.
    rng = np.random.default_rng(0)
    for _ in range(2):
        dw, dd = rng.normal(size=(4, 4)), rng.normal(size=4)
        ends = [by_hand(DRIVE + e * dd, WEIGHT + e * dw, tau_s, 80.0) for e in (1e-5, -1e-5)]
        assert all([i for _, i in end][: len(times)] == list(indices) for end in ends)
        difference = (ends[0][len(times) - 1][0] - ends[1][len(times) - 1][0]) / 2e-5
        ours = np.sum(gradient[0] * dw) + np.sum(gradient[1] * dd)
        np.testing.assert_allclose(ours, difference, rtol=1e-5, atol=1e-6)


def test_it_goes_on_where_it_ended_and_over_trials():
    net = network(jnp.asarray(WEIGHT), ExponentialSynapse(4.0))
    run = jax.jit(partial(fire, capacity=30))
    whole = run(net, jnp.zeros(4), t1=80.0)
    first = run(net, jnp.zeros(4), t1=33.0)
    second = run(net, first.state, t0=33.0, t1=80.0)
    a, b = int(jnp.sum(first.counts)), int(jnp.sum(second.counts))
    joined = np.concatenate([first.times[:a], second.times[:b]])
    np.testing.assert_allclose(joined, whole.times[: a + b], rtol=0, atol=1e-8)
    np.testing.assert_allclose(first.counts + second.counts, whole.counts)
    np.testing.assert_allclose(second.state.v, whole.state.v, atol=1e-8)
    trials = jax.vmap(lambda v: fire(net, v, t1=80.0, capacity=30))(
        jnp.stack([jnp.zeros(4), jnp.array([1.0, 8.0, 3.0, 5.0])])
    )
    np.testing.assert_allclose(trials.times[0], whole.times, rtol=0, atol=1e-9)
    assert not np.allclose(trials.times[1][:5], whole.times[:5])


def test_single_precision_and_one_compilation():
    chex.clear_trace_counter()

    @eqx.filter_jit
    @chex.assert_max_traces(n=1)
    def run(neuron, t1):
        return fire(neuron, jnp.zeros(1, "float32"), t1=t1, capacity=20)

    for current in (12.0, 15.0):
        neuron = ej.tree_cast(LeakyIntegrateAndFire(current=current), "float32")
        train = run(neuron, jnp.asarray(200.0, "float32"))
        assert train.times.dtype == jnp.float32
        count = int(train.counts[0])
        expected = float(interval(current)) * np.arange(1, count + 1) - 5
        np.testing.assert_allclose(train.times[:count], expected, rtol=2e-5)


def test_spikes_at_once_and_chains_of_spikes():
    """Three equal neurons spike together; a fourth, silent by itself, is pushed across by them at that very time."""
    weight = np.zeros((4, 4))
    weight[3, :3] = 4.0
    neuron = LeakyIntegrateAndFire(
        current=jnp.array([15.0, 15.0, 15.0, 2.0]), refractory=0.0 * jnp.ones(4)
    )
    net = SpikingNetwork(neuron, jnp.asarray(weight))
    train = fire(net, jnp.zeros(4), t1=80.0, capacity=30)
    period = float(interval(15.0, 0.0))
    np.testing.assert_allclose(train.times[:4], period, atol=1e-9)
    assert list(train.counts) == [7, 7, 7, 7] and sorted(train.indices[:4]) == [0, 1, 2, 3]

    def pushed(current):
        varied = eqx.tree_at(lambda s: s.neurons.current, net, current)
        train = fire(varied, jnp.zeros(4), t1=80.0, capacity=30)
        return train.times[jnp.argmax(train.indices == 3)]

    # It spikes when the last of the three does, so with it its time varies.
    slope = jax.grad(pushed)(neuron.current)
    np.testing.assert_allclose(jnp.sum(slope), jax.grad(interval)(15.0), rtol=1e-8)
    assert slope[3] == 0


def test_fixed_steps_converge_at_the_stated_order():
    neuron = LeakyIntegrateAndFire(
        current=jnp.array([11.0, 12.5, 15.0]), refractory=jnp.array([5.0, 0.013, 0.0])
    )
    exact = fire(neuron, jnp.zeros(3), t1=100.0, capacity=40)
    errors = []
    for step in (0.2, 0.1, 0.05):
        train = fire(neuron, jnp.zeros(3), t1=100.0, capacity=40, scheme=FixedStep(step))
        assert jnp.all(train.counts == exact.counts)
        errors.append(
            max(
                np.max(np.abs(train.times[train.indices == i] - exact.times[exact.indices == i]))
                for i in range(3)
            )
        )
    assert errors[0] < 0.2**2 and errors[1] < 0.35 * errors[0] and errors[2] < 0.35 * errors[1]
    # Coupled, spikes arrive up to a step late.
    net = network(jnp.asarray(WEIGHT), ExponentialSynapse(4.0))
    exact = fire(net, jnp.zeros(4), t1=80.0, capacity=30)
    count = int(jnp.sum(exact.counts))
    errors = []
    for step in (0.04, 0.02, 0.01):
        train = fire(net, jnp.zeros(4), t1=80.0, capacity=30, scheme=FixedStep(step))
        assert jnp.all(train.counts == exact.counts)
        errors.append(np.max(np.abs(train.times[:count] - exact.times[:count])))
    assert errors[0] < 0.2 and errors[1] < 0.7 * errors[0] and errors[2] < 0.7 * errors[1]
    # The removable singularity τ_s = τ.
    equal, near = (
        fire(
            network(jnp.asarray(WEIGHT), ExponentialSynapse(tau)),
            jnp.zeros(4),
            t1=40.0,
            capacity=30,
            scheme=FixedStep(0.1),
        )
        for tau in (10.0, 10.0 + 1e-7)
    )
    np.testing.assert_allclose(equal.times, near.times, atol=1e-5)


def by_steps(current):
    neuron = LeakyIntegrateAndFire(current=current)
    return fire(neuron, 0.0, t1=20.0, capacity=2, scheme=FixedStep(0.1)).times[0]


def test_many_spikes_in_one_step_arrive_as_few_do():
    """A step with more spikes than are delivered one by one, against the same network with a silent tail."""
    weight = jnp.full((40, 40), -0.05)
    drive = jnp.where(jnp.arange(40) < 30, 15.0, 12.0)
    synapse, scheme = ExponentialSynapse(4.0), FixedStep(0.05)
    large = fire(
        network(weight, synapse, drive), jnp.zeros(40), t1=60.0, capacity=400, scheme=scheme
    )
    # Thirty equal neurons and ten others are two, with the weights of all they stand for.
    pair = jnp.array([[-1.5, -0.5], [-1.5, -0.5]])
    small = fire(
        network(pair, synapse, (15.0, 12.0)), jnp.zeros(2), t1=60.0, capacity=20, scheme=scheme
    )
    for i, j in ((0, 0), (39, 1)):
        ours, theirs = (t.times[t.indices == k] for t, k in ((large, i), (small, j)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert large.counts[0] > large.counts[39] > 0


def test_sparse_weights_are_the_dense_ones():
    """Trains of a network with half of its weights absent, step by step and event by event, either way of storing them."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(12, 12)) * (rng.random((12, 12)) < 0.5)
    weight[:, 5] = 0.0  # a neuron that reaches nobody
    sparse = SparseWeight.from_dense(weight)
    drive = np.linspace(10.5, 14.0, 12)
    for scheme in (FixedStep(0.1), EventDriven()):
        trains = [
            fire(
                network(w, ExponentialSynapse(4.0), drive),
                jnp.zeros(12),
                t1=60.0,
                capacity=60,
                scheme=scheme,
            )
            for w in (jnp.asarray(weight), sparse)
        ]
        assert trains[0].counts.sum() > 15
        np.testing.assert_array_equal(trains[0].indices, trains[1].indices)
        np.testing.assert_allclose(trains[0].times, trains[1].times, rtol=1e-12)


@pytest.mark.parametrize("many", [False, True])
def test_spikes_bring_their_weights_on_every_device(monkeypatch, many):
    """Both ways of summing the rows of those who spike, whatever device this is, against the product."""
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(300, 300)) * (rng.random((300, 300)) < 0.1)
    spiking = jnp.asarray(rng.random(300) < (0.5 if many else 0.01))
    for device in ("cpu", "default"):
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, **ways: ways[device](x))
        for form in (jnp.asarray(weight), SparseWeight.from_dense(weight)):
            found = arrivals(form).of_several(spiking)
            np.testing.assert_allclose(found, weight @ np.asarray(spiking, float), atol=1e-12)


def test_few_are_corrected_as_all_are_computed(monkeypatch):
    """A CPU's steps, other devices', and those of trials side by side, with refractory times within a step and beyond it."""
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(40, 40)) * (rng.random((40, 40)) < 0.2)
    neurons = LeakyIntegrateAndFire(
        current=jnp.asarray(rng.uniform(9, 20, 40)), refractory=jnp.asarray([0.1, 2.3] * 20)
    )
    form = SparseWeight.from_dense(weight)
    net = SpikingNetwork(neurons, form, ExponentialSynapse(jnp.asarray(rng.uniform(3, 12, 40))))

    def run(v, capacity):
        return fire(net, v, t1=40.0, capacity=capacity, scheme=FixedStep(0.4))

    v = jnp.asarray(rng.uniform(0, 12, 40))
    few, trials = run(v, 400), jax.vmap(lambda v: run(v, 400))(jnp.stack([v, v - 1]))
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *a, **ways: ways["default"](*a))
    every = run(v, 401)
    assert int(few.counts.sum()) > 100 and few.complete
    for other in (every, jax.tree.map(lambda a: a[0], trials)):
        np.testing.assert_array_equal(other.indices[:400], few.indices)
        np.testing.assert_allclose(other.times[:400], few.times, rtol=1e-12)
        np.testing.assert_allclose(other.state.v, few.state.v, atol=1e-11)
        np.testing.assert_allclose(other.state.s, few.state.s, atol=1e-11)


def test_a_train_that_is_not_complete_is_flagged():
    neuron = LeakyIntegrateAndFire(current=15.0)
    for scheme in (EventDriven(), FixedStep(0.1)):
        short = fire(neuron, 0.0, t1=200.0, capacity=3, scheme=scheme, throw=False)
        assert not short.complete and jnp.all(jnp.isfinite(short.times))
        with pytest.raises(Exception, match="capacity"):
            fire(neuron, 0.0, t1=200.0, capacity=3, scheme=scheme)
        exact = fire(neuron, 0.0, t1=50.0, capacity=3, scheme=scheme)
        assert exact.complete and exact.counts[0] == 3
        lost = fire(neuron, jnp.nan, t1=50.0, capacity=3, scheme=scheme, throw=False)
        assert not lost.complete


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: LeakyIntegrateAndFire(tau=0.0), "`tau`"),
        (lambda: LeakyIntegrateAndFire(refractory=-1.0), "`refractory`"),
        (lambda: LeakyIntegrateAndFire(reset=10.0), "`reset` must lie below"),
        (lambda: SpikingNetwork(LeakyIntegrateAndFire(), jnp.zeros((2, 3))), "`weight`"),
        (lambda: SparseWeight(jnp.array([[0], [3]]), jnp.zeros((2, 1))), "`targets`"),
        (lambda: SparseWeight(jnp.array([[0], [1]]), jnp.zeros((2, 2))), "`targets`"),
        (
            lambda: fire(
                network(jnp.zeros((3, 3)), DeltaSynapse()), jnp.zeros(4), t1=1.0, capacity=1
            ),
            "`weight`",
        ),
        (lambda: fire(LeakyIntegrateAndFire(), 0.0, t1=1.0, capacity=0), "`capacity`"),
        (lambda: FixedStep(0.0), "`step`"),
        (
            lambda: fire(LeakyIntegrateAndFire(), 0.0, t1=1.0, capacity=1, scheme=FixedStep(0.3)),
            "whole number",
        ),
        (
            lambda: jax.jit(
                lambda t1: fire(LeakyIntegrateAndFire(), 0.0, t1=t1, capacity=1, scheme=FixedStep())
            )(1.0),
            "while tracing",
        ),
        (lambda: jax.grad(by_steps)(12.0), "FixedStep has no gradient"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_networks_spike_as_in_brian2(brian2):
    """Brian2 puts spikes, and ends of refractory times, on a grid of 0.001 ms: each may be late by a step or two."""
    for case in brian2["integrate_and_fire"]:
        synapse = DeltaSynapse()
        if case["synapse"] == "exponential":
            synapse = ExponentialSynapse(case["synapse_tau"])
        net = network(jnp.asarray(case["weight"]), synapse, case["drive"])
        train = fire(net, jnp.zeros(4), t1=case["duration"], capacity=40)
        for i in range(4):
            ours = train.times[train.indices == i]
            theirs = np.array(case["times"])[np.array(case["indices"]) == i]
            assert len(ours) == len(theirs) >= 3
            late = theirs - ours
            rank = 1 + np.arange(len(ours))
            assert np.all(np.abs(late) < 4 * case["step"] * rank), late
