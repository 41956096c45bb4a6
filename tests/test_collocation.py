"""Cycles by collocation: stiff ones, unstable ones, multipliers of any size, and their derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import fields
from eqjax.stability import continuation, cycle_continuation, load, periodic_orbit, save, switch
from eqjax.stability._multipliers import log_multipliers

START = jnp.array([2.0, 0.0])


def van_der_pol(mu, period):
    return periodic_orbit(fields.VanDerPol(jnp.asarray(mu)), START, period=period)


# Periods by DOP853 and Radau at 1e-13; the logarithms are integrals of the divergence μ (1 - x²).
@pytest.mark.parametrize(
    ("mu", "guess", "period", "logarithm"),
    [
        (1.0, 6.6, 6.663286859323, -7.0589328088),
        (5.0, 11.0, 11.612230668, -85.452),
        (10.0, 19.0, 19.07836957, None),
        (20.0, 36.0, 34.682323, None),
        (100.0, 163.0, 162.83707, None),
    ],
)
def test_relaxation_oscillations_are_stable_cycles(mu, guess, period, logarithm):
    orbit = van_der_pol(mu, guess)
    assert orbit.stable and abs(orbit.period - period) < orbit.period_error + 1e-5
    assert orbit.period_error < 1e-6 * mu and orbit.drift < 1e-3
    if logarithm is not None:
        assert abs(orbit.log_multipliers[1].real - logarithm) < 1e-4


def test_an_integration_that_fails_makes_no_cycle():
    """1000 explicit steps a turn are too few at μ = 20, and the multiplier along the cycle tells."""
    field = fields.VanDerPol(jnp.asarray(20.0))
    assert not periodic_orbit(field, START, period=34.7, steps=1000, throw=False).converged
    with pytest.raises(Exception, match="or none, for collocation"):
        periodic_orbit(field, START, period=34.7, steps=1000)


def test_the_period_is_differentiable():
    period = lambda mu: van_der_pol(mu, 6.6).period
    slope = jax.grad(period)(jnp.asarray(1.0))
    assert abs(slope - (period(1.0001) - period(0.9999)) / 2e-4) < 1e-8


def test_multipliers_of_any_size_stay_right_beside_one_another():
    """A product of known eigenvalues, taken apart into factors in other bases."""
    key, count = jax.random.key(0), 50
    bases = jnp.linalg.qr(jax.random.normal(key, (count, 4, 4)))[0]
    exact = np.array([90.0, 0.3, -0.2, -180.0])
    turn = lambda angle: jnp.array(
        [[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]
    )
    block = jax.scipy.linalg.block_diag(
        jnp.exp(exact[:1] / count)[:, None],
        jnp.exp(0.05 / count) * turn(0.01),
        jnp.exp(exact[3:] / count)[:, None],
    )
    factors = jnp.roll(bases, -1, 0) @ block[None] @ jnp.swapaxes(bases, 1, 2)
    found = log_multipliers(factors, 4)
    assert jnp.allclose(found, jnp.array([90, 0.05 + 0.5j, 0.05 - 0.5j, -180]), atol=1e-10)


def test_the_cycle_of_a_hopf_point_is_had_in_one_call():
    """Stuart–Landau: radius √μ, period `2π / (1 - μ/2)`, and one multiplier `exp(-2μT)`."""
    where = lambda f: f.growth
    field = fields.StuartLandau(growth=jnp.asarray(-0.5), shear=0.5)
    branch = continuation(field, jnp.zeros(2), where=where, bounds=(-0.5, 0.5))
    born, cycle = switch(field, branch, branch.special_points[0], where=where, size=0.1)
    mu = where(born)
    assert mu > 1e-3 and abs(jnp.sum(cycle.state**2) - mu) < 1e-10 and cycle.stable
    assert abs(cycle.period - 2 * np.pi / (1 - mu / 2)) < 1e-9
    assert abs(cycle.log_multipliers[1].real + 2 * mu * cycle.period) < 1e-9
    branch = cycle_continuation(born, cycle, where=where, bounds=(-0.5, 0.5))
    assert abs(branch.parameters[-1] - 0.5) < 1e-12
    np.testing.assert_allclose(branch.amplitudes, np.sqrt(branch.parameters), rtol=1e-3)


def test_hodgkin_huxley_cycles_from_a_fold_to_their_hopf_point(tmp_path):
    """Stable at I = 7 with a multiplier of 1e-58; the unstable branch is folded twice more (Rinzel & Miller 1980)."""
    field = fields.HodgkinHuxley(current=jnp.asarray(7.0))
    orbit = periodic_orbit(field, jnp.array([-60.0, 0.1, 0.5, 0.35]), period=16.0)
    assert orbit.stable and orbit.log_multipliers[-1].real < -100
    save(tmp_path / "orbit", orbit)
    assert eqx.tree_equal(load(tmp_path / "orbit"), orbit)
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.current, bounds=(5.0, 20.0), backwards=True
    )
    folds = [point.parameter for point in branch.special_points if point.type == "fold"]
    hopf = branch.special_points[-1]
    assert hopf.type == "Hopf" and abs(hopf.parameter - 9.775437995393) < 1e-9
    # To the digits that Rinzel & Miller have.
    np.testing.assert_allclose(folds, [6.26, 7.92, 7.84], atol=0.01)
    assert branch.reliable.all() and jnp.max(branch.drift) < 1e-8
