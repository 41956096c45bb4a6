"""Whether a fixed point that was found is one that the relaxation would stay at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.relaxation import Anderson, NewtonKrylov, Picard, TimeStepping, equilibrium
from eqjax.relaxation._growth import abscissa_of


def test_the_growth_of_a_disturbance_is_that_of_the_dense_jacobian():
    rng = np.random.default_rng(0)
    rate = jax.jit(jax.vmap(lambda a: abscissa_of(lambda t, z, x: x @ z, jnp.zeros(len(a)), a)))
    for size in (1, 24, 40):
        one, draws = np.eye(size), rng.normal(size=(3, size, size)) / size**0.5
        matrices = np.stack([draws[0] - one, draws[1] - 2 * one, -draws[2] @ draws[2].T - one])
        told, exact = rate(jnp.asarray(matrices)), np.linalg.eigvals(matrices).real.max(1)
        assert np.allclose(told, exact, atol=1e-5 if size <= 24 else 0.1)
        assert np.array_equal(told < 0, exact < 0)


def test_a_fixed_point_that_repels_is_told():
    """z - z³: quasi-Newton and Newton go to 0 from nearby, which repels; the flow goes to 1."""
    field = lambda t, z, x: z - z**3
    start, stable = jnp.array([0.1, 0.2]), []
    for solver in (NewtonKrylov(1e-8), Picard(1e-8)):
        found = equilibrium(field, start, solver=solver, check=True)
        value = float(found.value[0])
        assert np.allclose(found.stats["growth"], 1 - 3 * value**2, atol=1e-6)
        stable.append(bool(found.stats["stable"]))
        assert stable[-1] == (value > 0.5)
    assert stable == [False, True]


def test_complex_conserving_and_unsettled_ones():
    turning = equilibrium(
        lambda t, z, x: (-0.5 + 2j) * z + 1,
        jnp.zeros(2, complex),
        solver=NewtonKrylov(1e-10),
        check=True,
    )
    assert np.isclose(turning.stats["growth"], -0.5) and turning.stats["stable"]
    exchange = lambda t, z, x: jnp.stack([-3 * z[0] + z[1], 3 * z[0] - z[1]])
    start = jnp.array([2.0, 0.0])
    kept = equilibrium(exchange, start, solver=Picard(1e-8), conserved=jnp.sum, check=True)
    assert np.isclose(kept.stats["growth"], -1) and kept.stats["stable"]
    cut = equilibrium(
        lambda t, z, x: 1 - z,
        jnp.zeros(2),
        solver=Picard(1e-8),
        max_steps=3,
        check=True,
        throw=False,
    )
    assert not cut.stats["stable"] and np.isclose(cut.stats["growth"], -1)


@pytest.mark.parametrize("solver", [Anderson(1e-5), TimeStepping(1e-5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_unit_of_time_is_told(solver, dtype):
    """A fast field is right or not successful; one that is slow beyond the tolerance is far from rest, and says so."""

    @jax.jit
    def settled(rate):
        field = lambda t, z, x: rate * (x - z * (1 + z**2))
        x, z0 = jnp.array([0.5, 2.0, -1.0], dtype), jnp.array([1.0, 0.5, 0.2], dtype)
        found = equilibrium(field, z0, x, solver=solver, throw=False, check=True)
        return found.value, found.stats

    right, _ = settled(jnp.ones((), dtype))
    for rate in (1e4, 1e8, 1e-8):
        value, told = settled(jnp.asarray(rate, dtype))
        near = bool(jnp.max(jnp.abs(value - right)) < 1e-3)
        assert near or not told["stable"] or told["distance"] > 0.1
