"""What a circuit dissipates, and amplifiers of finite bandwidth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.fields import (
    AssociativeMemory,
    Crossbar,
    FiniteBandwidth,
    LogCosh,
    Softmax,
    perturbed,
    xor_memory,
)
from eqjax.relaxation import relax


def crossbar():
    keys = jax.random.split(jax.random.key(0), 3)
    memory = AssociativeMemory(
        jax.random.uniform(keys[0], (3, 4)),
        visible=LogCosh(1.7),
        hidden=Softmax(2.0),
        visible_bias=0.3 * jax.random.normal(keys[1], (4,)),
        hidden_bias=0.3 * jax.random.normal(keys[2], (3,)),
        hidden_time=0.4,
    )
    return perturbed(Crossbar(memory), 0.05, jax.random.key(1))


STATE = jnp.array([0.4, -0.3, 0.9, 0.1]), jnp.array([0.2, -0.5, 0.3])


def test_heat_is_the_sum_over_resistors():
    circuit, x = crossbar(), jnp.array([0.1, -0.4, 0.0, 2.0])
    g, f = np.tanh(1.7 * np.asarray(STATE[0])), np.exp(2 * np.asarray(STATE[1]))
    f = f / f.sum()
    heat = sum(
        float(circuit.conductance[i, j]) * (f[i] - g[j]) ** 2 for i in range(3) for j in range(4)
    )
    rows = (
        (circuit.visible_row, STATE[0], g, circuit.visible_bias + x),
        (circuit.hidden_row, STATE[1], f, circuit.hidden_bias),
    )
    for row, u, line, bias in rows:
        for k in range(len(u)):
            heat += float(row.leak[k] * u[k] ** 2 + row.source[k] * bias[k] ** 2)
            heat += float(row.cancel[k]) * line[k] ** 2
    np.testing.assert_allclose(circuit.power(STATE, x), heat, rtol=1e-12)


def test_held_lines_heat_the_crossbar_only():
    circuit = Crossbar(xor_memory())
    z, x = (jnp.array([0.5]), jnp.zeros(4)), jnp.array([0.0, 1.0])
    g, f = np.array([0.0, 1.0, 0.5]), np.full(4, 0.25)
    patterns, unit = np.asarray(circuit.conductance), 1e-5
    heat = np.sum(patterns * (f[:, None] - g[None]) ** 2)
    heat += unit * (0.5**2 + 2 * 0.5**2)  # the free neuron: R₂, and the self-term of two patterns
    heat += np.sum(unit * np.asarray(circuit.hidden_bias) ** 2 + patterns.sum(axis=1) * f**2)
    np.testing.assert_allclose(circuit.power(z, x), heat, rtol=1e-12)


@jax.jit
def states(circuit, bandwidth):
    device = FiniteBandwidth(circuit, bandwidth)
    ideal = relax(circuit, STATE, 0.0, step=1e-7, t1=5e-4, max_steps=5000).value
    slow = relax(device, device.initial(STATE), 0.0, step=1e-7, t1=5e-4, max_steps=5000).value
    resting = relax(device, slow, 0.0, step=2e-7, t1=2e-2, max_steps=100_000).value
    settled = relax(circuit, slow[0], 0.0, step=2e-6, t1=2e-2, max_steps=10_000).value
    return ideal, slow, resting, settled


def test_a_finite_bandwidth_departs_as_its_inverse_and_rests_where_the_ideal_does():
    circuit, apart = crossbar(), []
    for bandwidth in (2e5, 4e5):
        (v, h), slow, resting, settled = states(circuit, jnp.asarray(bandwidth))
        apart.append(jnp.max(jnp.abs(jnp.concatenate([v - slow[0][0], h - slow[0][1]]))))
        np.testing.assert_allclose(resting[0][0], settled[0], atol=1e-6)
        lines = FiniteBandwidth(circuit, jnp.asarray(bandwidth)).lines(resting)
        np.testing.assert_allclose(lines[0], circuit.lines(resting[0], 0.0)[0], atol=1e-6)
    assert 1e-4 < apart[1] < apart[0] < 0.1
    np.testing.assert_allclose(apart[0] / apart[1], 2, rtol=0.1)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="`bandwidth` must be above 0"):
        FiniteBandwidth(crossbar(), 0.0)
    with pytest.raises(ValueError, match="`crossbar` has clamped lines"):
        FiniteBandwidth(Crossbar(xor_memory()), 1e6)
