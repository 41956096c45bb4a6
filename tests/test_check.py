"""Whether the flow, and Euler's method, stay at what a solver found."""

import jax
import jax.numpy as jnp
import numpy as np
from toys import forked

from eqjax.relaxation import NewtonKrylov, equilibrium
from eqjax.stability import check


def test_check_tells_a_stable_fixed_point_from_one_that_newton_found():
    field = forked(1.0)
    saddle = equilibrium(field, jnp.array([0.1]), solver=NewtonKrylov(rtol=1e-10))
    assert abs(float(saddle.value[0])) < 1e-9
    verdict = check(field, saddle)
    assert not verdict.holds and verdict.fixed_point and abs(verdict.abscissa - 1) < 1e-9
    assert "leaves" in str(verdict)
    stable = check(field, jnp.array([1.0]), step=0.9)
    assert stable.holds and stable.holds_euler and "stays" in str(stable)
    coarse = check(field, jnp.array([1.0]), step=1.1)  # 1 + 1.1 · (-2) = -1.2
    assert coarse.holds and not coarse.holds_euler
    np.testing.assert_allclose(coarse.multipliers, [-1.2 + 0j], rtol=1e-9)
    adrift = check(field, jnp.array([0.5]), step=0.9)
    assert not (adrift.fixed_point or adrift.holds or adrift.holds_euler)
    assert abs(adrift.residual - 0.375) < 1e-12 and "no fixed point" in str(adrift)
    broken = check(field, jnp.array([jnp.nan]))
    assert not broken.holds and not broken.fixed_point
    batch = jax.vmap(lambda z: check(field, z, step=1.1))(jnp.array([[1.0], [0.0], [0.5]]))
    shown = str(batch).split("sample ")
    assert (
        len(shown) == 4 and "stays" in shown[1] and "leaves" in shown[2] and "no fixed" in shown[3]
    )
    assert batch.holds.tolist() == [True, False, False]
    assert batch.holds_euler.tolist() == [False, False, False]


def test_a_fast_mode_far_from_the_axis_is_seen_by_euler_alone():
    rates = jnp.array([-0.1, -0.2, -0.3, -30.0])
    verdict = check(lambda t, z, x: rates * z, jnp.zeros(4), step=0.1, k=1)
    assert verdict.holds and not verdict.holds_euler
    assert abs(verdict.abscissa + 0.1) < 1e-10
