"""The unit of a problem does not matter: that of its state, nor that of its time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.relaxation import (
    Anderson,
    Broyden,
    Fallback,
    NewtonKrylov,
    Picard,
    PseudoTransient,
    Quorum,
    TimeStepping,
    equilibrium,
)

SOLVERS = [
    Anderson(1e-6),
    Broyden(1e-6),
    Quorum(Anderson(1e-6), 0.5),
    Picard(1e-6),
    TimeStepping(1e-6),
    NewtonKrylov(1e-6),
    PseudoTransient(1e-6),
    Fallback(Picard(1e-6), NewtonKrylov(1e-6), 2),
]


@pytest.mark.parametrize("solver", SOLVERS)
def test_states_of_any_unit_settle_alike(solver):
    """`F = x - z (1 + z²/u²)`, z* = u z₁: from 0, and from a start in units of u."""

    @jax.jit
    def settled(unit, start):
        field = lambda t, z, x: x - z * (1 + (z / unit) ** 2)
        x = unit * jnp.array([0.5, 2.0, -1.0])
        found = equilibrium(field, unit * start, x, solver=solver, throw=False)
        return found.value / unit, found.residual, found.stats

    for start in (jnp.zeros(3), jnp.array([1.0, 0.5, 0.2])):
        value, residual, stats = settled(1.0, start)
        assert np.allclose(value * (1 + value**2), [0.5, 2.0, -1.0], atol=1e-5)
        for unit in (1e-9, 1e6):
            same, measured, told = settled(unit, start)
            assert np.allclose(same, value, rtol=1e-6) and np.isclose(measured, residual, rtol=0.3)
            assert np.isclose(told["scale"], unit * stats["scale"])
            assert told["num_steps"] == stats["num_steps"]


def test_a_force_of_another_unit_of_time_has_settled_at_its_root():
    """From 0, in float32: to a tolerance of the size of the state it could not."""
    x = jnp.array([1.0, 2.0], jnp.float32)
    field = lambda t, z, x: 1e8 * (x - z)
    found = equilibrium(field, jnp.zeros_like(x), x, solver=Anderson(1e-5, mixing=5e-9))
    assert np.allclose(found.value, x, rtol=1e-5) and found.stats["scale"] > 1e8


def test_a_scale_that_is_given_is_kept():
    field = lambda t, z, x: 1e-6 - z
    found = equilibrium(field, jnp.zeros(1), solver=Anderson(1e-5, scale=1.0))
    assert found.stats["scale"] == 1 and found.value == 0
    nothing = equilibrium(lambda t, z, x: -z, jnp.zeros(1), solver=Anderson(1e-5))
    assert nothing.stats["scale"] == 1 and nothing.residual == 0
