"""The crossbar circuit: Kirchhoff's law is the memory's force, and ngspice integrates what Diffrax does."""

import re
import subprocess
from functools import partial

import chex
import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.fields import (
    AssociativeMemory,
    ClampedMemory,
    Crossbar,
    LogCosh,
    Polynomial,
    Quadratic,
    Softmax,
    Spherical,
    hamming_memory,
    perturbed,
    to_spice,
    xor_memory,
)
from eqjax.fields._circuit import expression
from eqjax.relaxation import relax

UNIT, LAST = 1e-3, 6e-3
GRID = np.linspace(0.0, LAST, 4001)


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


def ngspice_trace(netlist, folder):
    """Times and capacitor voltages. Where ngspice is missing this fails, as it should."""
    (folder / "memory.cir").write_text(netlist, "utf-8")
    done = subprocess.run(
        ["ngspice", "-b", "memory.cir"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = np.loadtxt(folder / "memory.txt")
    assert table[-1, 0] == pytest.approx(LAST, rel=1e-6), done.stdout + done.stderr
    return table[:, 0], table[:, 1:]


def deviation(circuit, z0, x, folder):
    """Largest distance of the two traces over the largest voltage, and the last voltages of ngspice."""
    times, theirs = ngspice_trace(to_spice(circuit, z0, x, t1=LAST), folder)
    ours = np.concatenate(diffrax_trace(circuit, z0, x, GRID), axis=1)
    ours = np.stack([np.interp(times, GRID, column) for column in ours.T], axis=1)
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
def test_ngspice_computes_xor(bits, tmp_path):
    z0, x = (jnp.full(1, 0.5), jnp.zeros(4)), jnp.array(bits, float)
    distance, last = deviation(Crossbar(xor_memory()), z0, x, tmp_path)
    assert distance < 1e-3 and round(last[0]) == bits[0] ^ bits[1]


def test_ngspice_corrects_a_hamming_word(tmp_path):
    memory = hamming_memory()
    word = memory.patterns[11]
    received = word.at[2].set(1 - word[2])
    distance, last = deviation(Crossbar(memory), (received, jnp.zeros(16)), 0.0, tmp_path)
    assert distance < 1e-3
    np.testing.assert_array_equal(np.round(last[:7]), word)


def test_ngspice_integrates_the_device_that_was_made(tmp_path):
    nominal = Crossbar(xor_memory(), gain=30.0)
    device = perturbed(nominal, 0.05, jax.random.key(1))
    assert not jnp.allclose(device.hidden_row.cancel, nominal.hidden_row.cancel, rtol=1e-3)
    z0, x = (jnp.full(1, 0.5), jnp.zeros(4)), jnp.array([1.0, 0.0])
    distance, last = deviation(device, z0, x, tmp_path)
    assert distance < 1e-3 and round(last[0]) == 1
    # and no other: mismatch and gain are seen
    plain = diffrax_trace(Crossbar(xor_memory()), z0, x, GRID)
    assert np.abs(np.concatenate(plain, axis=1)[-1] - last).max() > 0.02


def test_every_activation_has_its_spice_expression(tmp_path):
    lagrangians = (Quadratic(), Polynomial(3), LogCosh(0.7), Softmax(1.5), Spherical())
    u = jnp.array([0.6, -1.1, 0.3])
    nodes = [f"V(u{k})" for k in range(3)]
    shapes = [shape for lagrangian in lagrangians for shape in expression(lagrangian, nodes)]
    deck = ["* activations", *(f"Vu{k} u{k} 0 {u[k]}" for k in range(3))]
    deck += [f"B{i} a{i} 0 V={shape}" for i, shape in enumerate(shapes)]
    names = " ".join(f"v(a{i})" for i in range(len(shapes)))
    deck += [
        ".tran 1 1",
        f".control\nset wr_singlescale\nrun\nwrdata memory.txt {names}\nquit 0\n.endc\n.end",
    ]
    (tmp_path / "memory.cir").write_text("\n".join(deck), "utf-8")
    subprocess.run(["ngspice", "-b", "memory.cir"], cwd=tmp_path, capture_output=True, check=True)
    theirs = np.loadtxt(tmp_path / "memory.txt")[-1, 1:]
    ours = np.concatenate([jax.grad(lagrangian)(u) for lagrangian in lagrangians])
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-9)


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
        to_spice(random_memory(0, hidden=partial(jnp.sum)), z0, t1=LAST)
