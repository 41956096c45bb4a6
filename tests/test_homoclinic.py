"""Branches of cycles that go to a loop at a saddle, with periods from quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from eqjax.stability import CurvePoint, CycleBranch, homoclinic, homoclinic_curve


class Loop(eqx.Module):
    """`ẋ = y, ẏ = x - x² + y (p - H)` with `H = y²/2 - x²/2 + x³/3`: cycles are the curves H = p, from -1/6 to the loop at
    p = 0; shifted."""

    p: jax.Array
    shift: jax.Array

    def __call__(self, t, z, _):
        x, y = z - self.shift
        energy = y**2 / 2 - x**2 / 2 + x**3 / 3
        return jnp.stack([y, x - x**2 + y * (self.p - energy)])


def cycles(parameters):
    """The branch at these parameters, from the turning points and the quadrature of dx/y."""
    states, periods = [], []
    for p in parameters:
        roots = np.sort(np.roots([-2 / 3, 1, 0, 2 * p]).real)
        low, high = roots[1:]
        # x = m - r cos θ takes the roots out of y² = (2/3)(x - r₀)(x - low)(high - x).
        speed = lambda a, low=low, high=high, other=roots[0]: np.sqrt(
            1.5 / (0.5 * (low + high) - 0.5 * (high - low) * np.cos(a) - other)
        )
        periods.append(2 * scipy.integrate.quad(speed, 0, np.pi, epsabs=1e-13, limit=500)[0])
        states.append([high, 0.0])
    m = len(parameters)
    ones = jnp.ones(m)
    return CycleBranch(
        parameters=jnp.asarray(parameters),
        states=jnp.asarray(states) + 0.3,
        periods=jnp.asarray(periods),
        amplitudes=ones,
        log_multipliers=jax.lax.complex(jnp.log(0.1) * ones, 0 * ones)[:, None],
        unstable=np.zeros(m, int),
        residuals=0 * ones,
        drift=0 * ones,
        reliable=ones > 0,
        special_points=(),
        ended="",
    )


def test_the_period_tells_where_the_loop_is():
    field = Loop(jnp.asarray(-0.1), jnp.asarray(0.3))
    found = homoclinic(field, cycles(-np.geomspace(1e-3, 1e-6, 8)), where=lambda f: f.p)
    assert found.converged and "homoclinic loop at" in str(found) and not found.shilnikov
    # The law's next term is of second order in exp(-λT).
    assert abs(found.parameter) < 1e-9 and abs(found.parameter) < 10 * found.error
    np.testing.assert_allclose(found.saddle, [0.3, 0.3], atol=1e-12)
    np.testing.assert_allclose(found.values, [1, -1], atol=1e-8)
    assert abs(found.saddle_quantity) < 1e-8 and not found.focus


def test_a_branch_that_ends_elsewhere_goes_to_none():
    field = Loop(jnp.asarray(-0.1), jnp.asarray(0.3))
    found = homoclinic(field, cycles(np.linspace(-0.14, -0.08, 5)), where=lambda f: f.p)
    assert not found.converged
    with pytest.raises(ValueError, match="takes four"):
        homoclinic(field, cycles([-0.1, -0.05]), where=lambda f: f.p)


class Born(eqx.Module):
    """`u̇ = v, v̇ = β₁ + β₂ v + a u² + b u v` in mixed coordinates, with a mode that follows, and β curved in p and q."""

    p: jax.Array
    q: jax.Array
    a: float = -0.8
    b: float = 1.3

    def unfolding(self, p, q):
        return p + 0.6 * q + 1.5 * q * q, q - 0.4 * p

    def __call__(self, t, z, x):
        u, v, w = z[0] - 0.5 * z[1], 1.2 * z[1], z[2]
        first, second = self.unfolding(self.p, self.q)
        du, dv = v, first + second * v + self.a * u * u + self.b * u * v
        return jnp.stack([du + dv / 2.4, dv / 1.2, u * u - 3 * w])


def bogdanov_takens(kind="Bogdanov–Takens"):
    return CurvePoint(
        type=kind,
        parameters=(0.0, 0.0),
        state=jnp.zeros(3),
        frequencies=(),
        error=0.0,
        status="converged",
        index=0,
    )


WHERE = {"where": (lambda f: f.p, lambda f: f.q), "bounds": ((-0.5, 0.5), (-0.5, 0.5))}


def test_loops_are_followed_from_where_they_are_born():
    """In the unit ε of `β₁ = -4ε⁴/a` there is `β₂ = (b/a) ε² (10/7 + 288/2401 (b/a)² ε² + …)` (Al-Hdaibat et al. 2016)."""
    field = Born(jnp.asarray(0.1), jnp.asarray(0.2))
    found = homoclinic_curve(field, bogdanov_takens(), intervals=40, max_points=3, **WHERE)
    first, second = field.unfolding(*np.asarray(found.parameters).T)
    square, ratio = np.sqrt(-field.a * first / 4), field.b / field.a
    expected = 10 / 7 + 288 / 2401 * ratio**2 * square
    assert found.residuals.max() < 1e-13 and len(found.amplitudes) == 3
    assert (np.diff(found.amplitudes) > 0).all() and "3 homoclinic orbits" in str(found)
    np.testing.assert_allclose(
        second / (ratio * square), expected, atol=2 * ratio**4 * np.max(square) ** 2
    )
    # Of the saddle of the plane, at u² = -β₁/a: σ is the trace there.
    trace = second + field.b * 2 * square / field.a
    np.testing.assert_allclose(found.saddle_quantities, trace, rtol=1e-9)


def test_loops_are_born_at_bogdanov_takens_points_only():
    field = Born(jnp.asarray(0.0), jnp.asarray(0.0))
    with pytest.raises(ValueError, match='must be of type "Bogdanov–Takens", got "cusp"'):
        homoclinic_curve(field, bogdanov_takens("cusp"), **WHERE)
    with pytest.raises(ValueError, match="degenerate"):
        homoclinic_curve(Born(field.p, field.q, b=0.0), bogdanov_takens(), **WHERE)
