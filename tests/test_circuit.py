"""The crossbar circuit: Kirchhoff's law is the memory's force, and ngspice integrates what Diffrax does."""

import functools
import re
import shutil

import chex
import circuits
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from circuits import LAST
from scipy.interpolate import PchipInterpolator

from eqjax.fields import (
    AssociativeMemory,
    ClampedMemory,
    Crossbar,
    LogCosh,
    Softmax,
    hamming_memory,
    to_spice,
    xor_memory,
)
from eqjax.relaxation import relax

UNIT = 1e-3
GRID = np.linspace(0.0, LAST, 4001)
netlists = functools.cache(circuits.netlists)


def random_memory(seed, **lagrangians):
    keys = jax.random.split(jax.random.key(seed), 3)
    return AssociativeMemory(
        jax.random.uniform(keys[0], (3, 4)),
        visible_bias=0.3 * jax.random.normal(keys[1], (4,)),
        hidden_bias=0.3 * jax.random.normal(keys[2], (3,)),
        hidden_time=0.4,
        **lagrangians,
    )


def random_state(seed, n, m):
    a, b = jax.random.split(jax.random.key(seed + 100))
    return jax.random.normal(a, (n,)), jax.random.normal(b, (m,))


@jax.jit
def diffrax_trace(circuit, z0, x, times):
    return relax(
        circuit,
        z0,
        x,
        solver=dfx.Tsit5(),
        controller=dfx.PIDController(rtol=1e-8, atol=1e-10),
        step=1e-7,
        t1=LAST,
        max_steps=100_000,
        saveat=dfx.SaveAt(ts=times),
    ).trajectory


@pytest.fixture(scope="module")
def live():
    """Times and voltages by ngspice, computed once. Where there is no ngspice, what asks for them is not run."""
    if not shutil.which("ngspice"):
        pytest.skip("NOT RUN: ngspice is not installed; its committed traces stand in for it")
    return functools.cache(lambda name: circuits.simulate(netlists()[name]))


@pytest.fixture(params=["committed", "live"])
def trace(request):
    """Times and voltages of a circuit by its name: those that are committed, and those of ngspice where it is."""
    if request.param == "live":
        return request.getfixturevalue("live")
    return lambda name: circuits.stored(name, netlists()[name])


@functools.cache
def our_trace(name):
    return np.concatenate(diffrax_trace(*circuits.circuits()[name], GRID), axis=1)


def deviation(name, trace):
    """Largest distance of the two traces over the largest voltage, and the last voltages of ngspice."""
    times, theirs = trace(name)
    ours = np.stack([np.interp(times, GRID, column) for column in our_trace(name).T], axis=1)
    assert np.ptp(ours, axis=0).max() > 0.4  # something happens
    return np.abs(ours - theirs).max() / np.abs(ours).max(), theirs[-1]


@pytest.mark.parametrize("seed", range(3))
def test_kirchhoffs_law_is_the_force_of_the_memory(seed):
    memory = random_memory(seed, visible=LogCosh(1.7), hidden=Softmax(2.0))
    z, x = random_state(seed, 4, 3), jnp.array([0.1, -0.4, 0.0, 2.0])
    force = Crossbar(memory, resistance=2e4, unit=UNIT)(0.0, z, x)
    chex.assert_trees_all_close(
        jax.tree.map(lambda f: UNIT * f, force), memory(0.0, z, x), rtol=1e-12, atol=1e-12
    )
    held = ClampedMemory(memory, (2, 0))
    z, x = (z[0][:2], z[1]), jnp.array([0.7, -0.2])
    force = Crossbar(held, unit=UNIT)(0.0, z, x)
    chex.assert_trees_all_close(
        jax.tree.map(lambda f: UNIT * f, force), held(0.0, z, x), rtol=1e-12, atol=1e-12
    )


def test_a_finite_gain_departs_as_its_inverse():
    memory, z = random_memory(0), random_state(0, 4, 3)
    exact = jnp.concatenate(memory(0.0, z, 0.5))
    errors = [
        jnp.linalg.norm(jnp.concatenate(Crossbar(memory, unit=1.0, gain=a)(0.0, z, 0.5)) - exact)
        for a in (1e3, 1e4)
    ]
    assert 1e-4 < errors[0] < 0.1 and errors[0] / errors[1] == pytest.approx(10, rel=0.02)
    # The amplifier's own law, o = A (f - line) with u = line - o, holds at what is called the line.
    circuit = Crossbar(memory, gain=20.0)
    _, h, _, f = circuit.complete(z, 0.5)
    line = circuit.lines(z, 0.5)[1]
    np.testing.assert_allclose(line - h, 20.0 * (f - line), rtol=1e-12)


@pytest.mark.parametrize("bits", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_ngspice_computes_xor(bits, trace):
    distance, last = deviation(f"xor {bits[0]}{bits[1]}", trace)
    assert distance < 1e-3 and round(last[0]) == bits[0] ^ bits[1]


def test_ngspice_corrects_a_hamming_word(trace):
    distance, last = deviation("hamming", trace)
    assert distance < 1e-3
    np.testing.assert_array_equal(np.round(last[:7]), hamming_memory().patterns[circuits.WORD])


def test_ngspice_integrates_the_device_that_was_made(trace):
    device, z0, x = circuits.circuits()["device"]
    nominal = Crossbar(xor_memory())
    assert not jnp.allclose(device.hidden_row.cancel, nominal.hidden_row.cancel, rtol=1e-3)
    distance, last = deviation("device", trace)
    assert distance < 1e-3 and round(last[0]) == 1
    # and no other: mismatch and gain are seen
    plain = diffrax_trace(nominal, z0, x, GRID)
    assert np.abs(np.concatenate(plain, axis=1)[-1] - last).max() > 0.02


def test_every_activation_has_its_spice_expression(trace):
    u = jnp.array(circuits.POTENTIALS)
    ours = np.concatenate([jax.grad(lagrangian)(u) for lagrangian in circuits.lagrangians()])
    np.testing.assert_allclose(trace("activations")[1][-1], ours, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", circuits.NAMES)
def test_the_committed_traces_are_those_of_ngspice(name, live):
    (then, stored), (now, voltages) = circuits.stored(name, netlists()[name]), live(name)
    assert len(then) > 5 and then[-1] == pytest.approx(now[-1], rel=1e-6)
    ours = PchipInterpolator(now, voltages)(then)  # another ngspice steps elsewhere
    assert np.abs(ours - stored).max() < 1e-3 * np.abs(stored).max()


def test_a_trace_stands_for_its_own_netlist_only():
    netlist = netlists()["xor 01"]
    circuits.stored("xor 01", netlist)
    for other in (
        netlists()["xor 10"],
        netlist.replace("E", "F"),
        netlist.replace("1e-08", "2e-08"),
    ):
        assert other != netlist
        with pytest.raises(AssertionError, match="another netlist"):
            circuits.stored("xor 01", other)


def test_weights_are_resistors_and_only_activations_are_behavioural():
    circuit = Crossbar(hamming_memory(), resistance=1e5)
    netlist = to_spice(circuit, (jnp.zeros(7), jnp.zeros(16)), t1=LAST)
    wires = re.findall(r"^Rx(\d+)_(\d+) lh\1 lv\2 (\S+)$", netlist, re.M)
    conductance = np.zeros((16, 7))
    for mu, i, ohms in wires:
        conductance[int(mu), int(i)] = 1 / float(ohms)
    np.testing.assert_allclose(conductance, circuit.conductance, rtol=1e-11)
    kinds = {line[0] for line in netlist.splitlines() if line[0].isalpha()}
    assert kinds == set("BCERVlqrsw")  # and the commands of the control block
    assert len(re.findall(r"^B", netlist, re.M)) == 23  # one a neuron
    assert all(float(c) == 1e-9 for c in re.findall(r"^Ch\S+ \S+ \S+ (\S+)", netlist, re.M))


def test_misuse_is_refused():
    memory = random_memory(0)
    with pytest.raises(ValueError, match="no resistor has a negative"):
        Crossbar(eqx.tree_at(lambda m: m.patterns, memory, -memory.patterns))
    for name in ("resistance", "unit", "gain"):
        with pytest.raises(ValueError, match=f"`{name}` must be above 0"):
            Crossbar(memory, **{name: 0.0})
    z0 = random_state(0, 4, 3)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda z: len(to_spice(memory, z, t1=LAST)))(z0)
    with pytest.raises(ValueError, match="`t1` must be above 0"):
        to_spice(memory, z0, t1=0.0)
    trained = eqx.tree_at(lambda c: c.conductance, Crossbar(memory), -jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="negative conductances"):
        to_spice(trained, z0, t1=LAST)
    broken = eqx.tree_at(lambda c: c.hidden_row.leak, Crossbar(memory), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"hidden_row\.leak"):
        to_spice(broken, z0, t1=LAST)
    with pytest.raises(ValueError, match="No SPICE expression"):
        to_spice(random_memory(0, hidden=functools.partial(jnp.sum)), z0, t1=LAST)
