"""Branches of cycles that go to a loop at a saddle, with periods from quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from eqjax.stability import CycleBranch, homoclinic


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
