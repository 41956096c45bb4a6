"""Cycles, branches and spectra that were told wrongly: multiples of a period, dropped drives, copies of a mode."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Linear, Polynomial, p_of

from eqjax.stability import (
    SpectrumResults,
    continuation,
    finite_time_exponents,
    lyapunov,
    periodic_orbit,
    spectrum,
)
from eqjax.stability._bifurcation import Stretch, crossings


class Place(NamedTuple):
    s: float
    converged: bool
    parameter: float


class VanDerPol(eqx.Module):
    mu: jax.Array
    drive: float = 0.0

    def __call__(self, t, z, x):
        force = jnp.stack([z[1], self.mu * (1 - z[0] ** 2) * z[1] - z[0]])
        return force + self.drive * jnp.sin(t) * jnp.ones(2) if self.drive else force


START, KEY = jnp.array([2.0, 0.0]), jax.random.key(0)


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


def ring(n):
    return np.roll(np.eye(n), 1, 0) + np.roll(np.eye(n), -1, 0) - 2 * np.eye(n)


def torus_of(n, m):
    return np.kron(ring(n), np.eye(m)) + np.kron(np.eye(n), ring(m))


@pytest.mark.parametrize("which", ["LR", "LM"])
@pytest.mark.parametrize(("n", "m"), [(6, 6), (5, 7)])
def test_equal_eigenvalues_are_all_found(which, n, m):
    """On a torus: multiplicities 4 and 8 where it is square, 2 and 4 where it is not."""
    a = torus_of(n, m)
    exact = np.linalg.eigvalsh(a)
    exact = exact[::-1] if which == "LR" else exact
    for key in (KEY, jax.random.key(1)):
        found = spectrum(Linear(jnp.asarray(a)), jnp.zeros(len(a)), k=10, which=which, key=key)
        assert np.all(found.converged) and np.allclose(found.values, exact[:10], rtol=0, atol=1e-12)
        assert np.linalg.matrix_rank(np.asarray(found.vectors)) == 10


def test_equal_eigenvalues_in_a_batch():
    """One sample needs searches that another does not, and neither notices."""
    a = jnp.asarray(
        np.stack([torus_of(6, 6), np.diag(-np.arange(36.0)), np.full((36, 36), np.nan)])
    )
    run = lambda a: spectrum(Linear(a), jnp.zeros(36), k=10, key=KEY, throw=False)
    found, alone = jax.vmap(run)(a), run(a[0])
    assert np.allclose(found.values[0], alone.values, atol=1e-12)
    assert int(found.products[0]) == int(alone.products) != int(found.products[1])
    assert np.allclose(found.values[1], -np.arange(10.0), atol=1e-12)
    assert not found.converged[2].any()


def test_equal_eigenvalues_that_could_not_be_looked_for_are_told():
    field, z = Linear(jnp.asarray(torus_of(6, 6))), jnp.zeros(36)
    most = int(spectrum(field, z, k=10, key=KEY).restarts) - 1
    found = spectrum(field, z, k=10, max_restarts=most, key=KEY, throw=False)
    assert np.median(found.residuals) < 1e-10 and not found.converged.any()
    assert found.result == SpectrumResults.eigenpairs_not_converged


class Forked(eqx.Module):
    """`ż = T z + p z - z³`"""

    p: jax.Array
    coupling: jax.Array

    def __call__(self, t, z, x):
        return self.coupling @ z + self.p * z - z**3


def test_modes_that_cross_together_are_one_branch_point():
    field = Forked(jnp.asarray(-0.05), jnp.asarray(ring(24)))
    branch = continuation(field, jnp.zeros(24), where=p_of, bounds=(-0.1, 0.3))
    exact = 2 - 2 * np.cos(2 * np.pi * np.arange(3) / 24)
    points = branch.special_points
    assert [(p.flow, p.change) for p in points] == [("branch point", c) for c in (1, 2, 2)]
    assert np.allclose([p.parameter for p in points], exact, atol=1e-7)
    below = np.asarray(branch.parameters)[:, None] > exact
    assert np.array_equal(branch.unstable, below @ np.array([1, 2, 2]))
    assert np.all(branch.reliable)


def test_half_a_pair_among_the_modes_changes_the_count_by_a_plain_number():
    first, last = Place(0.0, True, 0.0), Place(1.0, True, 1.0)
    leg = Stretch(lambda s: Place(s, True, s), 1.0, first, last, 0, 1e-9)
    values = lambda p: np.array([p.s - 0.3 + 1j])
    ((_, found, value, change),) = crossings(leg, values, np.real, 0, 1)
    assert type(change) is int and change == 2
    assert abs(found[0] - 0.3) < 1e-9 and abs(value - 1j) < 1e-9
