"""Neurons and phase oscillators: known bifurcations and periods, exact spikes and their gradients, Brian2's traces."""

import hashlib
import importlib.util
import json
from functools import partial
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

import eqjax as ej
from eqjax.fields import (
    DeltaSynapse,
    ExponentialSynapse,
    HodgkinHuxley,
    Kuramoto,
    KuramotoNetwork,
    LeakyIntegrateAndFire,
    MorrisLecar,
    SparseWeight,
    SpikingNetwork,
    order_parameter,
)
from eqjax.fields._connections import of_several
from eqjax.fields._neurons import linoid
from eqjax.relaxation import EventDriven, FixedStep, fire
from eqjax.stability import continuation, periodic_orbit

HERE = Path(__file__).parent
ADAPTIVE = {"solver": dfx.Tsit5(), "controller": dfx.PIDController(rtol=1e-9, atol=1e-9)}


@pytest.fixture(scope="module")
def brian2():
    stored = json.loads((HERE / "data" / "brian2.json").read_text("utf-8"))
    text = json.dumps(stored["data"], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == stored["about"]["sha256"]
    assert (HERE.parent / stored["about"]["script"]).exists() and stored["about"]["brian2"]
    return stored["data"]


# Conductances


def test_the_removable_singularity_is_right_in_every_derivative():
    # The n-th derivative of u/(1 - exp(-u)) at 0 is the n-th Bernoulli number.
    bernoulli = (1, 1 / 2, 1 / 6, 0, -1 / 30)
    f = linoid
    for number in bernoulli:
        np.testing.assert_allclose(f(0.0 * jnp.ones(())), number, rtol=1e-13, atol=1e-15)
        # both sides of the place where the series ends
        near, far = (f(jnp.asarray(0.5 + d)) for d in (-1e-12, 1e-12))
        np.testing.assert_allclose(near, far, rtol=1e-7, atol=1e-8)
        f = jax.jit(jax.grad(f))
    u = jnp.linspace(-3.0, 3.0, 61)
    np.testing.assert_allclose(linoid(u) - linoid(-u), u, atol=1e-14)
    assert linoid(jnp.asarray(0.3, "float32")).dtype == jnp.float32
    assert jnp.isfinite(linoid(jnp.asarray(-1e4))) and linoid(jnp.asarray(1e4)) == 1e4


def textbook(z, current, temperature=6.3):
    """Hodgkin & Huxley's equations in NumPy."""
    v, m, h, n = z
    an = 0.01 * (v + 55) / (1 - np.exp(-(v + 55) / 10))
    am = 0.1 * (v + 40) / (1 - np.exp(-(v + 40) / 10))
    ah, bh = 0.07 * np.exp(-(v + 65) / 20), 1 / (1 + np.exp(-(v + 35) / 10))
    bm, bn = 4 * np.exp(-(v + 65) / 18), 0.125 * np.exp(-(v + 65) / 80)
    ionic = 120 * m**3 * h * (v - 50) + 36 * n**4 * (v + 77) + 0.3 * (v + 54.387)
    q = 3 ** ((temperature - 6.3) / 10)
    gates = [q * (a * (1 - g) - b * g) for a, b, g in ((am, bm, m), (ah, bh, h), (an, bn, n))]
    return np.array([current - ionic, *gates])


def test_hodgkin_huxley_is_the_textbook():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.uniform(-90, 50, (1, 7)), rng.uniform(0, 1, (3, 7))])
    for temperature in (6.3, 16.3):
        field = HodgkinHuxley(current=7.0, temperature=temperature)
        np.testing.assert_allclose(
            field(0.0, jnp.asarray(z), None), textbook(z, 7.0, temperature), rtol=1e-12, atol=1e-12
        )
    # At the singular potentials and next to them, the Jacobian is that of nearby ones.
    jacobian = jax.jacfwd(lambda z: HodgkinHuxley()(0.0, z))
    for v in (-40.0, -55.0):
        at, near = (jacobian(jnp.array([v + d, 0.3, 0.4, 0.5])) for d in (0.0, 1e-6))
        np.testing.assert_allclose(at, near, rtol=1e-5, atol=1e-7)
    rest = HodgkinHuxley().clamped(-65.0)
    np.testing.assert_allclose(rest[1:], [0.0529, 0.5961, 0.3177], atol=1e-4)
    assert jnp.max(jnp.abs(HodgkinHuxley()(0.0, rest)[1:])) < 1e-15


def test_current_stimulus_and_input_add_up():
    z = HodgkinHuxley().clamped(-60.0)
    alone = HodgkinHuxley(current=6.0)(2.0, z)
    shared = HodgkinHuxley(current=1.0, stimulus=lambda t: 2.0 * t)(2.0, z, jnp.asarray(1.0))
    np.testing.assert_allclose(alone, shared, rtol=1e-15)
    w = jnp.array([-20.0, 0.1])
    shared = MorrisLecar(current=1.0, stimulus=lambda t: 2.0 * t)(2.0, w, jnp.asarray(1.0))
    np.testing.assert_allclose(MorrisLecar(current=6.0)(2.0, w), shared, rtol=1e-15)


@pytest.mark.parametrize("field", [HodgkinHuxley(), MorrisLecar()], ids=lambda f: type(f).__name__)
def test_populations_types_and_complex_states(field):
    size = 4 if isinstance(field, HodgkinHuxley) else 2
    rng = np.random.default_rng(1)
    z = jnp.asarray(np.vstack([rng.uniform(-80, 30, (1, 5)), rng.uniform(0, 1, (size - 1, 5))]))
    together = field(0.0, z)
    apart = jax.vmap(lambda z: field(0.0, z), in_axes=1, out_axes=1)(z)
    np.testing.assert_allclose(together, apart, rtol=1e-12)
    different = eqx.tree_at(lambda f: f.g_K, field, jnp.linspace(1.0, 2.0, 5))
    assert different(0.0, z).shape == z.shape
    single = field(jnp.zeros((), "float32"), z.astype("float32"))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, together, rtol=1e-3, atol=1e-2)
    # Complex step: the imaginary part is the derivative.
    one, direction = z[:, 0], jnp.asarray(rng.normal(size=size))
    stepped = field(0.0, jax.lax.complex(one, 1e-30 * direction)).imag / 1e-30
    _, derivative = jax.jvp(lambda z: field(0.0, z), (one,), (direction,))
    np.testing.assert_allclose(stepped, derivative, rtol=1e-11)


def test_hodgkin_huxley_fires_between_its_hopf_points():
    field = HodgkinHuxley()
    branch = continuation(
        field, field.clamped(-65.0), where=lambda f: f.current, bounds=(0.0, 200.0), k=4
    )
    first, second = branch.special_points
    assert abs(first.parameter - 9.775437995393) < 1e-9 and first.change == 2
    assert abs(second.parameter - 154.522433665808) < 1e-9 and second.change == -2


@pytest.mark.parametrize("current, period", [(10.0, 14.63620998983), (20.0, 11.56469747727)])
def test_hodgkin_huxley_has_its_period(current, period):
    field = HodgkinHuxley(current=current)
    started = ej.relax(
        field, field.clamped(-60.0), **ADAPTIVE, step=0.01, t1=100.0, max_steps=20_000
    )
    orbit = periodic_orbit(field, started.value, period=1.01 * period, steps=2000, k=2)
    assert abs(orbit.period - period) < 1e-10 and orbit.stable


@pytest.mark.parametrize("step", [0.08, 0.2, 1.0, 5.0])
def test_a_step_too_large_is_flagged(step):
    field = HodgkinHuxley(current=10.0)
    z0 = field.clamped(-65.0)
    found = ej.relax(field, z0, step=step, t1=100.0, throw=False)
    assert found.result == ej.RESULTS.nonfinite
    assert ej.relax(field, z0, step=0.05, t1=100.0).result == ej.RESULTS.successful


def test_negative_conductances_are_refused():
    with pytest.raises(ValueError, match="`g_K` is a conductance"):
        HodgkinHuxley(g_K=-1.0)
    with pytest.raises(ValueError, match="`g_Na`"):
        HodgkinHuxley(g_Na=jnp.asarray(-1.0))
    with pytest.raises(ValueError, match="`C` is a capacitance"):
        MorrisLecar(C=0.0)
    with pytest.raises(ValueError, match="`g_Ca`"):
        MorrisLecar(g_Ca=jnp.array([1.0, -1.0]))


def test_morris_lecar_fires_between_its_hopf_points():
    """By hand: steady currents where the trace of the 2×2 Jacobian vanishes, by Brent's method on V."""
    m, w = (lambda v, a=a, b=b: 0.5 * (1 + np.tanh((v - a) / b)) for a, b in ((-1.2, 18), (2, 30)))
    speed = lambda v: 0.04 * np.cosh((v - 2) / 60)
    slope = lambda f, v: (f(v + 1e-5) - f(v - 1e-5)) / 2e-5
    current = lambda v: 4.4 * m(v) * (v - 120) + 8 * w(v) * (v + 84) + 2 * (v + 60)
    vv = lambda v: -(4.4 * (slope(m, v) * (v - 120) + m(v)) + 8 * w(v) + 2) / 20
    expected = []
    for low, high in ((-40, -15), (-5, 20)):
        v = scipy.optimize.brentq(lambda v: vv(v) - speed(v), low, high, xtol=1e-12)
        turning = 8 * (v + 84) / 20 * speed(v) * slope(w, v) - speed(v) ** 2
        expected.append((current(v), np.sqrt(turning)))
    branch = continuation(
        MorrisLecar(),
        jnp.array([-60.0, 0.015]),
        where=lambda f: f.current,
        bounds=(0.0, 250.0),
        k=2,
    )
    assert len(branch.special_points) == 2
    for point, (at, frequency) in zip(branch.special_points, expected, strict=True):
        assert abs(point.parameter - at) < 1e-6 and abs(point.frequency - frequency) < 1e-7
    assert abs(expected[0][0] - 93.858) < 1e-3 and abs(expected[1][0] - 212.019) < 1e-3


def upward_zeros(t, v):
    """Upward zero crossings of a cubic spline through the trace."""
    from scipy.interpolate import CubicSpline

    roots = CubicSpline(t, v)
    return np.array([r for r in roots.roots(extrapolate=False) if roots(r, 1) > 0])


def test_hodgkin_huxley_traces_are_those_of_brian2(brian2):
    """Same equations, Brian2's RK4 at 0.005 ms against Tsit5 at 1e-10."""
    for trace in brian2["hodgkin_huxley"]:
        swing = lambda t, trace=trace: trace["swing"] * jnp.sin(2 * jnp.pi * t / trace["period"])
        field = HodgkinHuxley(current=trace["drive"], stimulus=swing)
        dense = jnp.arange(0.0, trace["duration"], 0.01)
        found = ej.relax(
            field,
            jnp.array(trace["start"]),
            **ADAPTIVE,
            step=0.01,
            t1=trace["duration"],
            max_steps=20_000,
            saveat=dfx.SaveAt(ts=dense),
        )
        v = np.asarray(found.trajectory[:, 0])
        spikes = upward_zeros(np.asarray(dense), v)
        assert len(spikes) == len(trace["spikes"]) >= 3
        np.testing.assert_allclose(spikes, trace["spikes"], atol=2e-6)
        np.testing.assert_allclose(v[::10], trace["v"], atol=1e-3)


# Integrate and fire

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
    traced = eqx.debug.assert_max_traces(
        lambda neuron, t1: fire(neuron, jnp.zeros(1, "float32"), t1=t1, capacity=20), max_traces=1
    )
    run = eqx.filter_jit(traced)
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
            found = of_several(form, 300)(spiking)
            np.testing.assert_allclose(found, weight @ np.asarray(spiking, float), atol=1e-12)


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
        (lambda: KuramotoNetwork(jnp.zeros(3), jnp.zeros((3, 2))), "`weight`"),
        (lambda: KuramotoNetwork(jnp.zeros(3), jnp.zeros((2, 2))), "`weight`"),
        (lambda: Kuramoto(jnp.zeros(3))(0.0, jnp.zeros(2)), "one phase each"),
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


# Phases


def test_all_to_all_is_the_full_matrix():
    rng = np.random.default_rng(2)
    frequencies, phases = (jnp.asarray(rng.normal(size=50)) for _ in range(2))
    fast = Kuramoto(frequencies, coupling=1.7)(0.0, phases)
    slow = KuramotoNetwork(frequencies, jnp.full((50, 50), 1.7 / 50))(0.0, phases)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-14)
    weight = rng.normal(size=(50, 50))
    difference = np.asarray(phases)[None, :] - np.asarray(phases)[:, None]
    direct = frequencies + np.sum(weight * np.sin(difference), axis=1)
    found = KuramotoNetwork(frequencies, jnp.asarray(weight))(0.0, phases)
    np.testing.assert_allclose(found, direct, atol=1e-13)
    np.testing.assert_allclose(
        order_parameter(phases), np.mean(np.exp(1j * np.asarray(phases))), atol=1e-15
    )
    assert order_parameter(jnp.zeros((2, 5), "float32")).dtype == jnp.complex64
    # Holomorphic: a complex step gives the derivative.
    stepped = Kuramoto(frequencies)(0.0, jax.lax.complex(phases, 1e-30 * frequencies)).imag / 1e-30
    _, derivative = jax.jvp(lambda z: Kuramoto(frequencies)(0.0, z), (phases,), (frequencies,))
    np.testing.assert_allclose(stepped, derivative, rtol=1e-11, atol=1e-13)


def coherence(frequencies, coupling, key, step=0.1, duration=150.0):
    """Mean of r over the last third of a run from phases at random."""
    phases = jax.random.uniform(key, frequencies.shape, maxval=2 * jnp.pi)
    ts = jnp.linspace(2 * duration / 3, duration, 200)
    found = ej.relax(
        Kuramoto(frequencies, coupling),
        phases,
        solver=dfx.Heun(),
        step=step,
        steps=round(duration / step),
        saveat=dfx.SaveAt(ts=ts),
    )
    return float(jnp.mean(jnp.abs(order_parameter(found.trajectory))))


def test_the_order_parameter_is_that_of_the_theory(key):
    n = 2000
    quantiles = (np.arange(n) + 0.5) / n
    lorentz = jnp.asarray(np.tan(np.pi * (quantiles - 0.5)))
    gauss = jnp.asarray(scipy.stats.norm.ppf(quantiles))
    assert abs(coherence(lorentz, 4.0, key) - np.sqrt(0.5)) < n**-0.5
    assert abs(coherence(gauss, 2.0, key) - 0.715173956683183) < n**-0.5
    # K_c = 1.5958: below it nothing but fluctuations, above it the root of Kuramoto's equation.
    assert coherence(gauss, 1.4, key) < 5 * n**-0.5

    def excess(r, K=1.75):
        pull = lambda a: np.cos(a) ** 2 * scipy.stats.norm.pdf(K * r * np.sin(a))
        return 1 - K * scipy.integrate.quad(pull, -np.pi / 2, np.pi / 2)[0]

    expected = scipy.optimize.brentq(excess, 0.05, 1)
    assert 0.4 < expected < 0.6 and abs(coherence(gauss, 1.75, key) - expected) < 2 * n**-0.5


# Learning


@pytest.fixture(scope="module")
def fit_hh():
    spec = importlib.util.spec_from_file_location(
        "fit_hh", HERE.parent / "experiments" / "fit_hh.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_conductances_are_had_back_from_a_voltage_trace(fit_hh):
    truth = HodgkinHuxley(stimulus=fit_hh.stimulus)
    times = jnp.arange(0.0, 9.0, 0.15)
    target = fit_hh.voltage(truth, times, 0.06)
    assert jnp.max(target) > 20  # it spikes
    start = fit_hh.with_conductances(truth, [jnp.asarray(g) for g in fit_hh.START])
    logarithms = jnp.log(jnp.stack(fit_hh.conductances(start)))
    distance = jax.jit(lambda g: fit_hh.distance(g, start, times, target, 0.06))
    gradient = jax.grad(distance)(logarithms)
    for i in range(3):
        shift = 1e-6 * jnp.eye(3)[i]
        difference = (distance(logarithms + shift) - distance(logarithms - shift)) / 2e-6
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-4)
    fitted, losses = fit_hh.fit(start, times, target, steps=12, step=0.06)
    np.testing.assert_allclose(losses[0], distance(logarithms), rtol=1e-9)
    assert losses[-1] < 1e-6 * losses[0]
    found = jnp.stack(fit_hh.conductances(fitted))
    np.testing.assert_allclose(found, [120.0, 36.0, 0.3], rtol=1e-4)
    figure = fit_hh.picture(times, target, target, fit_hh.voltage(fitted, times, 0.06), losses)
    assert len(figure.axes) == 2
