"""The unit of a state does not matter."""

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
        value, residual, _ = settled(1.0, start)
        expected = np.linalg.norm(start) or np.linalg.norm([0.5, 2.0, -1.0])
        assert np.allclose(value * (1 + value**2), [0.5, 2.0, -1.0], atol=1e-5)
        for unit in (1e-9, 1e6):
            same, measured, told = settled(unit, start)
            assert np.allclose(same, value, atol=5e-6) and max(measured, residual) <= 1.001e-6
            assert told["scale"] == 1 if unit > 1 else np.isclose(told["scale"] / unit, expected)


def test_no_start_loosens_what_is_asked():
    """Far away, or at rest with a fast mode: the slow one must settle, too."""
    rates = jnp.array([1e4, 1.0])
    field = lambda t, z, x: rates * (1 - z)
    for start in (jnp.zeros(2), jnp.array([1e4, 0.0])):
        found = equilibrium(field, start, solver=NewtonKrylov(1e-5))
        assert np.allclose(found.value, 1, atol=2e-5) and found.stats["scale"] == 1


def test_a_scale_that_is_given_is_kept():
    field = lambda t, z, x: 1e-6 - z
    found = equilibrium(field, jnp.zeros(1), solver=Anderson(1e-5, scale=1.0))
    assert found.stats["scale"] == 1 and found.value == 0
    nothing = equilibrium(lambda t, z, x: -z, jnp.zeros(1), solver=Anderson(1e-5))
    assert nothing.stats["scale"] == 1 and nothing.residual == 0
