"""The first Lyapunov coefficient of a Hopf point against closed forms and the planar formula."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import fields
from eqjax.stability import hopf_normal_form


def planar_coefficient(field, z):
    """4a/ω of Guckenheimer & Holmes (1983, eq. 3.4.11), in the coordinates that make A a rotation by ω."""
    values, vectors = np.linalg.eig(np.asarray(jax.jacfwd(lambda z: field(0.0, z, None))(z)))
    i = np.argmax(values.imag)
    omega, q = values[i].imag, vectors[:, i] / np.linalg.norm(vectors[:, i])
    frame = jnp.stack([jnp.asarray(q.real), -jnp.asarray(q.imag)], axis=1)

    def turned(y):
        return jnp.linalg.solve(frame, field(0.0, z + frame @ y, None))

    second = np.asarray(jax.jacfwd(jax.jacfwd(turned))(jnp.zeros(2)))
    third = np.asarray(jax.jacfwd(jax.jacfwd(jax.jacfwd(turned)))(jnp.zeros(2)))
    (fxx, fxy, fyy), (gxx, gxy, gyy) = second[:, [0, 0, 1], [0, 1, 1]]
    cubic = third[0, 0, 0, 0] + third[0, 0, 1, 1] + third[1, 0, 0, 1] + third[1, 1, 1, 1]
    quadratic = fxy * (fxx + fyy) - gxy * (gxx + gyy) - fxx * gxx + fyy * gyy
    return 4 / omega * (cubic + quadratic / omega) / 16


class RescaledVanDerPol(eqx.Module):
    """`ẍ - (μ - x²) ẋ + x = 0` at μ = 0; in the usual scaling the nonlinearity vanishes there too, and l₁ with it."""

    def __call__(self, t, z, x):
        return jnp.stack([z[1], -z[0] - z[0] ** 2 * z[1]])


def test_hopf_normal_forms():
    # ‖q‖ = 1 makes |z|² = 2 |a|²: Stuart–Landau has l₁ = -2 l / ω.
    field = fields.StuartLandau(growth=0.0, frequency=2.0, saturation=-3.0, shear=0.7)
    found = hopf_normal_form(field, jnp.zeros(2))
    assert abs(found.l1 - 3) < 1e-10 and abs(found.frequency - 2) < 1e-12
    assert not found.supercritical and "subcritical" in str(found)
    rho = 470 / 19
    c = np.sqrt(8 / 3 * (rho - 1))
    lorenz = hopf_normal_form(fields.Lorenz(rho=rho), jnp.array([c, c, rho - 1]))
    # ω² = β (σ + ρ) there (the characteristic polynomial has a factor μ² + ω²); subcritical (Marsden & McCracken 1976)
    assert not lorenz.supercritical
    assert abs(lorenz.frequency - np.sqrt(8 / 3 * (10 + rho))) < 1e-10
    none = hopf_normal_form(lambda t, z, x: -z * jnp.array([1.0, 2.0]), jnp.zeros(2))
    assert jnp.isnan(none.l1)


@pytest.mark.parametrize("name", ["Brusselator", "van der Pol", "FitzHugh–Nagumo"])
def test_the_normal_form_is_the_planar_formula_in_the_plane(name):
    if name == "Brusselator":
        field, z, sign = fields.Brusselator(1.3, 2.69), jnp.array([1.3, 2.69 / 1.3]), -1
    elif name == "van der Pol":
        field, z, sign = RescaledVanDerPol(), jnp.zeros(2), -1
    else:
        field, sign = fields.FitzHughNagumo(current=0.331281337454746), 1
        v = -np.sqrt(1 - 0.08 * 0.8)  # trace zero
        z = jnp.array([v, (v + 0.7) / 0.8])
    found = hopf_normal_form(field, z)
    assert jnp.sign(found.l1) == sign and found.residual < 1e-10
    np.testing.assert_allclose(found.l1, planar_coefficient(field, z), rtol=1e-9)
    if name == "van der Pol":
        assert abs(found.l1 + 0.25) < 1e-12
