"""Branches of cycles that leave others, and cycles of driven fields, against closed forms and SciPy."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from eqjax.stability import (
    Forced,
    cycle_continuation,
    load,
    periodic_orbit,
    save,
    switch,
)
from eqjax.stability._cycle_points import bounded, log_size
from eqjax.stability._multipliers import log_multipliers


class Ribbon(eqx.Module):
    """The unit circle with a plane u that turns by half a turn each time round, and a line w. In the turned frame
    `u̇ = (p, -1) u - |u|² u`: at p = 0 the period doubles, and `|u|² = p`. At p = 1/10 `ẇ = (p - 1/10) w - w³` leaves."""

    p: jax.Array

    def __call__(self, t, z, x):
        (c, s), u, w = z[:2], z[2:4], z[4]
        mean, half = (self.p - 1) / 2, (self.p + 1) / 2
        du = mean * u + half * jnp.stack([c * u[0] + s * u[1], s * u[0] - c * u[1]])
        du = du + 0.5 * jnp.stack([-u[1], u[0]]) - jnp.sum(u * u) * u
        ring = (1 - c**2 - s**2) * z[:2] + jnp.stack([-s, c])
        return jnp.concatenate([ring, du, ((self.p - 0.1) * w - w**3)[None]])


class Duffing(eqx.Module):
    """`ẍ + ẋ/5 + x + x³ = cos(ωt)/2`"""

    omega: jax.Array

    def __call__(self, t, z, x):
        drive = 0.5 * jnp.cos(self.omega * t)
        return jnp.stack([z[1], drive - 0.2 * z[1] - z[0] - z[0] ** 3])


def period(field):
    return 2 * jnp.pi / field.omega


@pytest.fixture(scope="module")
def ribbon():
    where = lambda f: f.p
    field = Ribbon(jnp.asarray(-0.1))
    start = jnp.array([1.0, 0, 0, 0, 0])
    orbit = periodic_orbit(field, start, period=6.3, intervals=6)
    return field, where, cycle_continuation(field, orbit, where=where, bounds=(-0.1, 0.15))


def test_a_branch_of_cycles_is_left_where_the_period_doubles(ribbon):
    field, where, branch = ribbon
    doubling, crossing = branch.special_points
    assert (doubling.type, crossing.type) == ("period doubling", "branch point")
    assert abs(doubling.parameter) < 1e-9 and abs(crossing.parameter - 0.1) < 1e-6
    other, cycle = switch(field, branch, doubling, where=where, size=0.2)
    p = other.p
    assert p > 0.01 and abs(jnp.sum(cycle.state[2:4] ** 2) - p) < 1e-8 and not cycle.state[4]
    assert abs(cycle.period - 4 * np.pi) < 1e-8
    logs = cycle.log_multipliers.real / (4 * np.pi)
    exact = sorted([0.0, p - 0.1, -2 * p, -1 - p, -2.0], reverse=True)
    np.testing.assert_allclose(logs, exact, atol=1e-6)


def test_a_doubled_branch_is_entered_before_what_happens_next_on_it(ribbon, caplog):
    """At p = 1/10, where w leaves the doubled cycles as well: a longer step than that is cut."""
    field, where, branch = ribbon
    other, cycle = switch(field, branch, branch.special_points[0], where=where, size=0.6)
    assert 0.01 < other.p < 0.1 and cycle.stable
    settings = {"where": where, "bounds": (0.01, 0.15)}
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        doubled = cycle_continuation(
            other, cycle, callback=lambda p, cycle: not cycle.stable, **settings
        )
    # Steps along a branch are the program of the step onto it.
    compiled = [r.getMessage() for r in caplog.records]
    assert any("_on_better_mesh" in text for text in compiled)
    assert not any("jit(advance)" in text for text in compiled)
    (crossing,) = doubled.special_points
    assert crossing.type == "branch point" and abs(crossing.parameter - 0.1) < 1e-6
    assert abs(crossing.period - 4 * np.pi) < 1e-8 and doubled.ended == "stopped by the callback"


def test_a_branch_of_cycles_is_left_at_a_branch_point(ribbon, tmp_path):
    field, where, branch = ribbon
    # Of a file, as of the branch.
    save(tmp_path / "branch", branch)
    crossing = load(tmp_path / "branch").special_points[1]
    sides = [switch(field, branch, crossing, where=where, size=size) for size in (0.1, -0.1)]
    for other, cycle in sides:
        assert other.p > 0.1001 and abs(cycle.state[4] ** 2 - (other.p - 0.1)) < 1e-8
    assert sides[0][1].state[4] * sides[1][1].state[4] < 0
    with pytest.raises(ValueError, match='got "fold"'):
        switch(field, branch, dataclasses.replace(crossing, type="fold"), where=where)
    with pytest.raises(ValueError, match="were shot"):
        switch(field, branch, dataclasses.replace(crossing, profile=None), where=where)


def stroboscopic(state, omega):
    """By how much a turn of the drive moves a state of Duffing's equation, and its multipliers, by SciPy."""

    def rhs(t, y):
        jacobian = np.array([[0, 1], [-1 - 3 * y[0] ** 2, -0.2]])
        force = 0.5 * np.cos(omega * t) - 0.2 * y[1] - y[0] - y[0] ** 3
        return np.r_[y[1], force, (jacobian @ y[2:].reshape(2, 2)).ravel()]

    start = np.r_[state, 1, 0, 0, 1]
    settings = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-12}
    end = scipy.integrate.solve_ivp(rhs, (0, 2 * np.pi / omega), start, **settings).y[:, -1]
    return end[:2] - np.asarray(state), np.linalg.eigvals(end[2:].reshape(2, 2))


def test_a_driven_field_is_followed_through_the_frequency_of_its_drive():
    """Over both folds of the resonance of Duffing's oscillator; between them pairs of multipliers far from normal."""
    field = Forced(Duffing(jnp.asarray(1.3)), period)
    orbit = periodic_orbit(field, jnp.array([1.0, 1.0]), period=4.8, intervals=16)
    assert orbit.stable and abs(orbit.period - 2 * np.pi / 1.3) < 1e-12
    assert orbit.log_multipliers.shape == (2,) and orbit.state.shape == (2,)
    branch = cycle_continuation(field, orbit, where=lambda f: f.field.omega, bounds=(1.3, 1.8))
    folds = branch.special_points
    assert [point.type for point in folds] == ["fold", "fold"]
    np.testing.assert_allclose(branch.periods * branch.parameters, 2 * np.pi, rtol=1e-12)
    for point in folds:
        gap, multipliers = stroboscopic(point.state, point.parameter)
        assert np.max(abs(gap)) < 1e-9 and min(abs(multipliers - 1)) < 1e-6
    for i in (0, len(branch.periods) // 2, -1):
        gap, multipliers = stroboscopic(branch.states[i], float(branch.parameters[i]))
        assert np.max(abs(gap)) < 1e-9
        np.testing.assert_allclose(
            np.sort_complex(branch.multipliers[i]), np.sort_complex(multipliers), atol=1e-7
        )


def test_a_drive_of_another_period_is_refused():
    field = Duffing(jnp.asarray(1.3))
    start = {"period": 4.8}
    with pytest.raises(ValueError, match="not periodic in t"):
        periodic_orbit(Forced(field, 4.0), jnp.ones(2), **start)
    with pytest.raises(ValueError, match="must be positive"):
        periodic_orbit(Forced(field, -1.0), jnp.ones(2), **start)
    with pytest.raises(ValueError, match="no `steps`"):
        periodic_orbit(Forced(field, period), jnp.ones(2), steps=100, **start)
    with pytest.raises(ValueError, match="Forced"):
        periodic_orbit(field, jnp.ones(2), **start)


def test_a_pair_far_from_normal_is_one():
    """One matrix whose columns differ a thousandfold, with the eigenvalues exp(±i/2)."""
    scale = jnp.diag(jnp.array([1.0, 1e3]))
    turn = jnp.array([[jnp.cos(0.5), -jnp.sin(0.5)], [jnp.sin(0.5), jnp.cos(0.5)]])
    found = log_multipliers((scale @ turn @ jnp.linalg.inv(scale))[None], 2)
    np.testing.assert_allclose(found, [0.5j, -0.5j], atol=1e-12)


def test_multipliers_are_compared_whatever_their_sizes():
    logs = np.array([-184.2, -1e-3, 0.0, 92.1, 900.0]) + 1j * np.array([0, np.pi, 2, 0, 0])
    found = bounded(logs)
    np.testing.assert_allclose([log_size(v) for v in found], logs.real, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(np.exp(1j * np.angle(found)), np.exp(1j * logs.imag))
