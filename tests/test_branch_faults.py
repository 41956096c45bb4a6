"""Cycles and branches that were told wrongly: multiples of a period, drives that were dropped, tangents that turn."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from toys import Polynomial, p_of

from eqjax.stability import continuation, finite_time_exponents, lyapunov, periodic_orbit


class VanDerPol(eqx.Module):
    mu: jax.Array
    drive: float = 0.0

    def __call__(self, t, z, x):
        force = jnp.stack([z[1], self.mu * (1 - z[0] ** 2) * z[1] - z[0]])
        return force + self.drive * jnp.sin(t) * jnp.ones(2) if self.drive else force


START = jnp.array([2.0, 0.0])


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 5, 6])
def test_the_least_period_is_returned(multiple):
    orbit = periodic_orbit(VanDerPol(jnp.asarray(1.0)), START, period=6.66 * multiple, steps=400)
    assert jnp.isclose(orbit.period, 6.663286859323, rtol=1e-8)
    assert jnp.isclose(jnp.log(orbit.transverse[0].real), -7.0589328088, rtol=1e-6)


def test_the_error_of_a_period_is_told():
    """van der Pol at μ = 10: 19.0783696, and less than the error that is told away from it."""
    for steps, most in ((1000, 1e-3), (4000, 1e-6)):
        orbit = periodic_orbit(VanDerPol(jnp.asarray(10.0)), START, period=19.0, steps=steps)
        error = jnp.abs(orbit.period - 19.07836957)
        assert error < 3 * orbit.period_error + 1e-8 and orbit.period_error < most
        assert "±" in str(orbit)


def test_a_drive_is_refused_wherever_it_hides():
    driven = VanDerPol(jnp.asarray(1.0), drive=0.1)
    called = lambda t, z, x: driven(t, z, x)
    for field in (driven, jax.jit(called), eqx.filter_jit(driven), jax.checkpoint(called)):
        with pytest.raises(ValueError, match="depends on t"):
            periodic_orbit(field, START, period=6.6)
    with pytest.raises(ValueError, match="depends on t"):
        lyapunov(driven, START, step=0.1, steps=100)
    with pytest.raises(ValueError, match="depends on t"):
        finite_time_exponents(driven, START, step=0.1, steps=10)
    free = eqx.filter_jit(VanDerPol(jnp.asarray(1.0)))
    assert jnp.isfinite(lyapunov(free, START, step=0.1, steps=100).exponents).all()


def test_the_side_branch_of_a_pitchfork_ends_in_a_branch_point():
    """-z³ - pz from z = √-p: the branch turns round at p = 0 without a change of stability."""
    field = Polynomial(-1.0, a=(0, 0, 0, -1), b=(0, -1, 0, 0))
    branch = continuation(field, jnp.array([1.0]), where=p_of, bounds=(-2.0, 1.0))
    (point,) = branch.special_points
    assert point.flow == "branch point" and point.change == 0 and abs(point.parameter) < 1e-6
    assert branch.states[-1] < 0 and abs(branch.parameters[-1] + 2) < 1e-12


def test_a_branch_may_start_on_a_fold():
    field = Polynomial(0.0, a=(0, 0, -1, 0), b=(1, 0, 0, 0))
    branch = continuation(field, jnp.zeros(1), where=p_of, bounds=(-1.0, 2.0))
    assert abs(branch.parameters[-1] - 2) < 1e-12
    assert jnp.allclose(branch.states[:, 0] ** 2, branch.parameters, atol=1e-10)


class TwoPairs(eqx.Module):
    p: jax.Array

    def __call__(self, t, z, x):
        turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
        a, b = z[:2], z[2:]
        rising = (self.p - 1e-3) * a + turn @ a - a * jnp.sum(a * a)
        falling = -(self.p + 1e-3) * b + 2.5 * turn @ b - b * jnp.sum(b * b)
        return jnp.concatenate([rising, falling])


def test_pairs_that_cross_in_opposite_directions_are_both_seen():
    field = TwoPairs(jnp.asarray(-0.5))
    branch = continuation(field, jnp.zeros(4), where=p_of, bounds=(-0.6, 0.5))
    first, second = branch.special_points
    assert (first.flow, first.change, second.flow, second.change) == ("Hopf", -2, "Hopf", 2)
    assert abs(first.parameter + 1e-3) < 1e-9 and abs(first.frequency - 2.5) < 1e-9
    assert abs(second.parameter - 1e-3) < 1e-9 and abs(second.frequency - 1.0) < 1e-9
