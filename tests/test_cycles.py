"""Branches of cycles against closed forms and SciPy."""

import cycles
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from cycles import ring_orbit

from eqjax import fields
from eqjax.stability import (
    Natural,
    cycle_continuation,
    periodic_orbit,
)


class Band(eqx.Module):
    """The unit circle, of multiplier `exp(-4π)`, and a plane u across it. Twisted, u turns by half a turn each time
    round: multipliers `-exp(2πp)`, `-exp(-2π)`. Otherwise it is a spiral: `exp(2π(p ± iw))`."""

    p: jax.Array
    w: jax.Array
    twisted: bool = eqx.field(static=True)

    def __call__(self, t, z, x):
        ring, u = z["ring"], z["u"]
        c, s = ring
        square = jnp.sum(ring * ring)
        if self.twisted:
            # R(θ/2) diag(p, -1) R(-θ/2), and half a turn
            mean, half = (self.p - 1) / 2, (self.p + 1) / 2
            du = mean * u + half * jnp.stack([c * u[0] + s * u[1], s * u[0] - c * u[1]])
            du = du + 0.5 * jnp.stack([-u[1], u[0]])
        else:
            du = self.p * u + self.w * jnp.stack([-u[1], u[0]])
        return {"ring": (1 - square) * ring + jnp.stack([-s, c]), "u": du - jnp.sum(u * u) * u}


class Rossler(eqx.Module):
    """Rössler's equations with a = b = 0.2."""

    c: jax.Array

    def __call__(self, t, z, x):
        return jnp.stack([-z[1] - z[2], z[0] + 0.2 * z[1], 0.2 + z[2] * (z[0] - self.c)])


@pytest.fixture(scope="module")
def ring_branch():
    return cycles.ring_branch()


def test_a_fold_of_cycles_is_passed_and_the_branch_ends_in_its_hopf_point(ring_branch):
    fold, hopf = ring_branch.special_points
    assert (fold.type, fold.change, fold.status) == ("fold", 1, "converged")
    assert abs(fold.parameter + 0.25) < 1e-9 and abs(jnp.sum(fold.state**2) - 0.5) < 1e-6
    assert abs(fold.multiplier - 1) < 1e-6 and abs(fold.period - 2 * np.pi / 1.1) < 1e-6
    assert hopf.type == "Hopf" and hopf.status == "converged" and hopf.amplitude == 0
    assert abs(hopf.parameter) < 1e-9 and abs(hopf.frequency - 1) < 1e-9
    assert ring_branch.ended == "the cycle shrank to a fixed point"
    low, high = fold.interval
    assert low <= fold.parameter <= high and high - low < 1e-9


def test_every_cycle_of_a_branch_has_its_period_amplitude_and_multiplier(ring_branch):
    p = np.asarray(ring_branch.parameters)
    square = np.sum(np.asarray(ring_branch.states) ** 2, axis=1)
    period = 2 * np.pi / (1 + 0.2 * square)
    multiplier = np.exp(period * (p + 3 * square - 5 * square**2))
    np.testing.assert_allclose(p, square**2 - square, atol=1e-9)
    np.testing.assert_allclose(ring_branch.periods, period, atol=1e-9)
    np.testing.assert_allclose(ring_branch.multipliers[:, 0], multiplier, atol=1e-8)
    np.testing.assert_allclose(ring_branch.amplitudes, np.sqrt(square), rtol=1e-3)
    assert (ring_branch.unstable == (multiplier > 1)).all() and ring_branch.reliable.all()
    assert ring_branch.unstable[0] == 0 and ring_branch.unstable[-1] == 1
    assert jnp.max(ring_branch.drift) < 1e-9 and jnp.max(ring_branch.residuals) < 1e-11


def test_a_branch_of_cycles_prints_itself(ring_branch):
    text = str(ring_branch)
    assert "cycles from 0.5 to" in text and "fold  -0.25" in text.replace("-0.249999999", "-0.25")
    assert "NOT CONVERGED" not in text


@pytest.mark.parametrize("twisted", [True, False])
def test_period_doubling_and_torus_where_a_closed_form_puts_them(twisted):
    field = Band(jnp.asarray(-0.2), jnp.asarray(0.3), twisted)
    start = {"ring": jnp.array([1.0, 0.0]), "u": jnp.zeros(2)}
    orbit = periodic_orbit(field, start, period=6.3, steps=100)
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.p, bounds=(-0.2, 0.15), steps=100, k=3
    )
    (point,) = branch.special_points
    assert abs(point.parameter) < 1e-7 and point.status == "converged"
    assert abs(abs(point.multiplier) - 1) < 1e-9
    if twisted:
        assert (point.type, point.change) == ("period doubling", 1)
        assert abs(point.multiplier + 1) < 1e-7 and abs(point.frequency - 0.5) < 1e-7
    else:
        assert (point.type, point.change) == ("torus", 2)
        assert abs(point.frequency - 0.3) < 1e-7
    growth = np.exp(2 * np.pi * np.asarray(branch.parameters))
    others = np.exp([-2 * np.pi, -4 * np.pi]) if twisted else [np.exp(-4 * np.pi)]
    sizes = [growth if twisted else np.stack([growth, growth]).T.ravel(), others]
    for i, multipliers in enumerate(np.abs(np.asarray(branch.multipliers))):
        leading = [growth[i]] if twisted else [growth[i]] * 2
        np.testing.assert_allclose(multipliers, [*leading, *sizes[1]], atol=1e-6)
    assert branch.states["u"].shape == (branch.parameters.size, 2)


def test_roessler_doubles_its_period_where_scipy_says_so():
    def cycle(c):
        """The cycle and its multipliers by SciPy: shooting at y = 0 with the variational equations."""

        def rhs(t, y):
            z, columns = y[:3], y[3:].reshape(3, 3)
            jacobian = [[0, -1, -1], [1, 0.2, 0], [z[2], 0, z[0] - c]]
            force = [-z[1] - z[2], z[0] + 0.2 * z[1], 0.2 + z[2] * (z[0] - c)]
            return np.r_[force, (np.array(jacobian) @ columns).ravel()]

        def turn(y):
            start = np.r_[y[0], 0.0, y[1], np.eye(3).ravel()]
            done = scipy.integrate.solve_ivp(
                rhs, (0, y[2]), start, method="DOP853", rtol=1e-12, atol=1e-13
            )
            return done.y[:, -1]

        def gap(y):
            end = turn(y)
            matrix = end[3:].reshape(3, 3)
            force = rhs(0, end)[:3]
            derivative = np.stack([matrix[:, 0], matrix[:, 2], force], axis=1)
            derivative[:, :2] -= np.eye(3)[:, [0, 2]]
            return end[:3] - [y[0], 0, y[1]], derivative

        y = np.array([-3.946, 0.0311, 5.762])
        for _ in range(8):
            value, derivative = gap(y)
            y = y - np.linalg.solve(derivative, value)
        return y, np.linalg.eigvals(turn(y)[3:].reshape(3, 3))

    y, _ = cycle(2.7)
    field = Rossler(jnp.asarray(2.7))
    guess = jnp.array([y[0], 0.0, y[1]])
    orbit = periodic_orbit(field, guess, period=y[2], steps=500, k=3)
    assert abs(orbit.period - y[2]) < 1e-8
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.c, bounds=(2.6, 3.0), steps=500, max_points=20
    )
    (point,) = branch.special_points
    assert point.type == "period doubling" and point.change == 1
    y, multipliers = cycle(point.parameter)
    assert abs(min(multipliers.real) + 1) < 1e-7
    assert abs(point.period - y[2]) < 1e-8


def test_a_natural_path_ends_at_the_fold_and_a_callback_ends_it_sooner():
    field, orbit = ring_orbit(0.0, 60)
    settings = {"where": lambda f: f.p, "bounds": (-0.5, 0.6), "backwards": True, "steps": 60}
    branch = cycle_continuation(field, orbit, path=Natural(least=1e-3), **settings)
    assert "no shorter step" in branch.ended and -0.25 < branch.parameters[-1] < -0.2
    seen = []

    def callback(parameter, cycle):
        seen.append((parameter, float(cycle.period)))
        return len(seen) == 3

    branch = cycle_continuation(field, orbit, callback=callback, **settings)
    assert branch.ended == "stopped by the callback" and branch.special_points == ()
    assert seen == list(zip(branch.parameters.tolist(), branch.periods.tolist(), strict=True))
    assert "no special points" in str(branch)


def test_the_cycles_of_the_brusselator_shrink_to_its_hopf_point():
    """Where cycles are no circles around the fixed point, and it lies on no plane of phase."""
    field = fields.Brusselator(b=jnp.asarray(2.3))
    orbit = periodic_orbit(field, jnp.array([1.6, 1.6]), period=6.4, steps=100)
    branch = cycle_continuation(
        field, orbit, where=lambda f: f.b, bounds=(1.5, 3.0), backwards=True, steps=100
    )
    (hopf,) = branch.special_points
    assert hopf.type == "Hopf" and abs(hopf.parameter - 2) < 1e-11 and hopf.amplitude == 0
    assert abs(hopf.frequency - 1) < 1e-11 and jnp.allclose(hopf.state, jnp.array([1.0, 2.0]))
    assert branch.ended == "the cycle shrank to a fixed point" and (branch.unstable == 0).all()
    # Born as the normal form says: the parameter goes with the square of the amplitude.
    ratio = (branch.parameters[-3:] - 2) / branch.amplitudes[-3:] ** 2
    assert jnp.ptp(ratio) < 0.1 * ratio[0]


def test_misuse_of_branches_of_cycles_is_refused():
    field, orbit = ring_orbit(0.5, 60)
    good = {"where": lambda f: f.p, "bounds": (-0.5, 0.6), "steps": 60}
    for change, message in (
        ({"bounds": (0.6, -0.5)}, "low < high"),
        ({"bounds": (-0.5, 0.0)}, "do not hold"),
        ({"where": lambda f: f.nothing}, "picks no leaf"),
        ({"steps": 0}, "`steps` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            cycle_continuation(field, orbit, **good | change)
    fixed = eqx.tree_at(lambda o: o.state, orbit, jnp.array([1e-9, 0.0]))
    with pytest.raises(ValueError, match="No cycle found"):
        cycle_continuation(field, fixed, **good)
    line = eqx.tree_at(lambda o: o.state, orbit, jnp.ones(1))
    with pytest.raises(ValueError, match="one number"):
        cycle_continuation(field, line, **good)
    spiral = eqx.tree_at(lambda o: o.state, orbit, jnp.ones(2, complex))
    with pytest.raises(ValueError, match="Realified"):
        cycle_continuation(field, spiral, **good)
