"""Single cycles and Lyapunov exponents against closed forms and published values."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from toys import Map

from eqjax import fields
from eqjax.stability import (
    finite_time_exponents,
    hopf_normal_form,
    lyapunov,
    periodic_orbit,
)

# Cycles


def test_van_der_pol_has_its_period_and_multiplier():
    field, z0 = fields.VanDerPol(), jnp.array([2.0, 0.0])
    orbit = periodic_orbit(field, z0, period=6.6)
    assert abs(orbit.period - 6.663286859323) < 1e-11 and orbit.stable
    assert abs(jnp.log(orbit.transverse[0].real) + 7.0589328088) < 1e-9
    assert abs(orbit.multipliers[0] - 1) < 1e-11 and "stable cycle of period 6.663286" in str(orbit)
    stiffer = periodic_orbit(fields.VanDerPol(2.0), z0, period=7.6)
    assert abs(stiffer.period - 7.629874479675) < 1e-10
    assert abs(jnp.log(stiffer.transverse[0].real) + 18.1786) < 2e-4
    # From the fixed point "every period" would do: that is no cycle.
    fallen = periodic_orbit(field, jnp.array([1e-9, 0.0]), period=6.6, throw=False)
    assert not fallen.converged
    with pytest.raises(Exception, match="No cycle found"):
        periodic_orbit(field, jnp.array([1e-9, 0.0]), period=6.6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_cycle_of_stuart_landau_stable_or_not(sign):
    """Radius √(μ/l), period 2π/(ω - c μ/l), multiplier exp(-2μT): shooting finds the unstable cycle as well."""
    field = fields.StuartLandau(growth=0.3 * sign, saturation=sign, shear=0.5)
    orbit = periodic_orbit(field, jnp.array([0.55, 0.0]), period=7.4)
    period = 2 * np.pi / (1 - 0.15)
    assert abs(orbit.period - period) < 1e-11
    assert abs(jnp.linalg.norm(orbit.state) - np.sqrt(0.3)) < 1e-11
    multiplier = np.exp(-2 * 0.3 * sign * period)
    np.testing.assert_allclose(orbit.transverse.real, [multiplier], rtol=1e-10)
    assert bool(orbit.stable) == (sign > 0)


# Exponents


def test_lorenz_exponents():
    found = lyapunov(
        fields.Lorenz(),
        jnp.array([1.0, 1.0, 20.0]),
        step=0.01,
        steps=200_000,
        transient=2000,
        every=10,
    )
    assert abs(found.exponents[0] - 0.906) < 4 * found.errors[0] and found.errors[0] < 0.01
    assert abs(found.exponents[1]) < 4 * found.errors[1]
    assert abs(jnp.sum(found.exponents) + 41 / 3) < 1e-6  # the divergence is constant
    assert abs(found.dimension - 2.062) < 0.005


def test_exponents_of_maps_and_linear_fields():
    cat = Map(jnp.asarray(1.0), lambda z, p: jnp.mod(jnp.array([[2.0, 1.0], [1.0, 1.0]]) @ z, p))
    settings = {"step": 1.0, "steps": 200, "solver": dfx.Euler()}
    found = lyapunov(cat, jnp.array([0.1, 0.2]), transient=40, **settings)
    np.testing.assert_allclose(found.exponents, [0.962423650119207, -0.962423650119207], rtol=1e-13)
    batch = jax.vmap(lambda z: lyapunov(cat, z, transient=40, k=1, **settings).exponents)(
        jnp.array([[0.1, 0.2], [0.7, 0.3]])
    )
    np.testing.assert_allclose(batch, 0.962423650119207, rtol=1e-13)
    # Stable, and yet it grows at first: the singular values of exp(A T).
    matrix = jnp.array([[-1.0, 10.0], [0.0, -2.0]])
    grown = finite_time_exponents(lambda t, z, x: matrix @ z, jnp.zeros(2), step=0.01, steps=50)
    propagator = scipy.linalg.expm(0.5 * np.asarray(matrix))
    exact = np.log(np.linalg.svd(propagator, compute_uv=False)) / 0.5
    np.testing.assert_allclose(grown, exact, rtol=1e-9)
    assert grown[0] > 1
    flow = lyapunov(
        lambda t, z, x: matrix @ z, jnp.ones(2), step=0.05, steps=400, transient=600, every=2
    )
    np.testing.assert_allclose(flow.exponents, [-1, -2], atol=1e-6)


def test_misuse_of_cycles_and_exponents_is_refused():
    field, z = fields.VanDerPol(), jnp.array([2.0, 0.0])
    with pytest.raises(ValueError, match="`period`"):
        periodic_orbit(field, z, period=-1.0)
    with pytest.raises(ValueError, match="`steps`"):
        lyapunov(field, z, step=0.1, steps=7)
    with pytest.raises(ValueError, match="`k`"):
        lyapunov(field, z, step=0.1, steps=10, k=3)
    with pytest.raises(ValueError, match="`step`"):
        finite_time_exponents(field, z, step=0.0, steps=10)
    for call in (
        lambda: periodic_orbit(lambda t, z, x: z, z.astype(complex), period=1.0),
        lambda: lyapunov(lambda t, z, x: z, z.astype(complex), step=0.1, steps=10),
        lambda: hopf_normal_form(lambda t, z, x: z, z.astype(complex)),
    ):
        with pytest.raises(ValueError, match="Realified"):
            call()
