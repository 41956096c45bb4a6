"""Neurons with conductances: known bifurcations and periods, Brian2's traces, and conductances learnt from a trace."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.interpolate import CubicSpline

import eqjax as ej
from eqjax.fields import HodgkinHuxley, MorrisLecar
from eqjax.fields._neurons import linoid
from eqjax.stability import continuation, periodic_orbit

ADAPTIVE = {"solver": dfx.Tsit5(), "controller": dfx.PIDController(rtol=1e-9, atol=1e-9)}


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


# Learning


def test_conductances_are_had_back_from_a_voltage_trace(experiment):
    fit_hh = experiment("fit_hh")
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
