"""Points of codimension two, their normal forms and the curves that meet there, against closed forms and scalar roots."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from eqjax.stability import (
    PseudoArclength,
    SpecialPoint,
    fold_curve,
    hopf_curve,
    normal_form,
    switch_curve,
)

BOTH = (lambda f: f.a, lambda f: f.b)
FAST = PseudoArclength(first=0.05, most=0.2, turn=0.6)


def special(kind, parameter, state, frequency=0.0):
    """A special point whose place is known."""
    return SpecialPoint(
        parameter=parameter,
        interval=(parameter, parameter),
        state=jnp.array(state),
        flow=kind,
        euler="–",
        change=0,
        change_euler=0,
        status="converged",
        value=1j * frequency,
        frequency=frequency,
        index=0,
    )


class Disguised(eqx.Module):
    """A real mode u and two pairs, `u̇ = a + u² - r₁ - 2r₂`, growth rates `b + 0.6u - r₁` and `0.3 + u - r₂/2 - r₁` with
    frequencies 1.3 and 2.9, in coordinates that are bent and mixed. Pair one: zero–Hopf at a = b = 0, and Hopf–Hopf where
    u = -0.3."""

    a: jax.Array
    b: jax.Array
    mix: jax.Array

    @classmethod
    def at(cls, a, b):
        rng = np.random.default_rng(0)
        mix = jnp.asarray(np.eye(5) + 0.15 * rng.standard_normal((5, 5)))
        return cls(jnp.asarray(a), jnp.asarray(b), mix)

    def __call__(self, t, z, x):
        y = jnp.linalg.solve(self.mix, z)
        u, q, r, s, v = y[0], y[1] - 0.2 * y[0] ** 2, y[2] - 0.1 * y[0] * y[3], y[3], y[4]
        one, two = q * q + r * r, s * s + v * v
        du = self.a + u * u - one - 2 * two
        first, second = self.b + 0.6 * u - one, 0.3 + u - 0.5 * two - one
        dq, dr = first * q - 1.3 * r, first * r + 1.3 * q
        ds, dv = second * s - 2.9 * v, second * v + 2.9 * s
        flow = [du, dq + 0.4 * u * du, dr + 0.1 * (du * s + u * ds), ds, dv]
        return self.mix @ jnp.stack(flow)

    def state(self, u):
        return self.mix @ jnp.array([u, 0.2 * u * u, 0.0, 0.0, 0.0])


def test_a_hopf_curve_meets_a_fold_and_another_pair():
    bounds = ((-0.5, 0.2), (-0.4, 0.5))
    settings = {"where": BOTH, "bounds": bounds, "path": FAST}
    field = Disguised.at(-0.36, 0.36)
    hopf = special("Hopf", -0.36, field.state(-0.6), 1.3)
    curve = hopf_curve(field, hopf, backwards=True, **settings)
    found = {p.type: p for p in curve.special_points}
    zero, double = found["zero–Hopf"], found["Hopf–Hopf"]
    assert zero.status == double.status == "converged"
    np.testing.assert_allclose(zero.parameters, 0, atol=1e-12)
    np.testing.assert_allclose(double.parameters, (-0.09, 0.18), atol=1e-12)
    np.testing.assert_allclose(double.frequencies, (1.3, 2.9), atol=1e-11)
    form = normal_form(field, zero, where=BOTH).coefficients
    assert abs(form["theta"] - 0.6) < 1e-11 and form["b"] * form["c"] < 0
    # u follows as (r₁ + 2 r₂) / 2u₀ and adds to both growth rates.
    slope = 1 / (2 * -0.3)
    p11, p12, p21, p22 = 0.6 * slope - 1, 1.2 * slope, slope - 1, 2 * slope - 0.5
    form = normal_form(field, double, where=BOTH).coefficients
    assert abs(form["p12"] / form["p22"] - p12 / p22) < 1e-10
    assert abs(form["p21"] / form["p11"] - p21 / p11) < 1e-10
    assert np.sign(form["p11"]) == np.sign(p11)
    # The second pair's own curve: u = -0.3, whatever b is.
    other = hopf_curve(*switch_curve(field, double, where=BOTH, to="Hopf"), **settings)
    np.testing.assert_allclose(other.parameters[:, 0], -0.09, atol=1e-11)
    np.testing.assert_allclose(other.frequencies, 2.9, atol=1e-10)
    folds = fold_curve(*switch_curve(field, zero, where=BOTH, to="fold"), **settings)
    np.testing.assert_allclose(folds.parameters[:, 0], 0, atol=1e-11)
    with pytest.raises(ValueError, match="`to` must be 'Hopf' at a Hopf–Hopf point"):
        switch_curve(field, double, where=BOTH, to="fold")


class Oxidation(eqx.Module):
    """CO on platinum (Bykov, Yablonskii & Kim 1978): a = k₂, b = λ."""

    a: jax.Array
    b: jax.Array

    def __call__(self, t, state, _):
        x, y, s = state
        z = 1 - x - y - s
        first = 5 * z**2 - 2 * x**2 - 10 * x * y
        return jnp.stack([first, self.a * z - 0.1 * y - 10 * x * y, 0.0675 * (z - self.b * s)])


def equilibrium(z, ratio):
    """State and k₂ of the oxidation by z; complex arguments give derivatives."""
    w = 1 - z * (1 + 1 / ratio)
    # 8x² - 10wx + 5z² = 0
    x = (10 * w - np.sqrt(100 * w**2 - 160 * z**2 + 0j)) / 16
    y = w - x
    return x, y, (0.1 * y + 10 * x * y) / z


def test_the_cusp_and_bogdanov_takens_points_of_the_oxidation_of_co():
    """Folds are where dk₂/dz = 0 on the curve of equilibria, cusps where d²k₂/dz² = 0 too; at Bogdanov–Takens points the last
    two coefficients of the characteristic polynomial vanish."""
    circle = np.exp(2j * np.pi * np.arange(16) / 16)

    def slopes(z, ratio, h=1e-2):
        values = np.array([equilibrium(z * (1 + h * c), ratio)[2] for c in circle])
        return [(values * circle**-k).mean().real / h**k for k in (1, 2)]

    def jacobian(z, ratio):
        x, y, k2 = (v.real for v in equilibrium(z, ratio))
        dz = -np.ones(3)
        rows = [10 * z * dz, k2 * dz, 0.0675 * dz]
        rows[0] = rows[0] + [-4 * x - 10 * y, -10 * x, 0]
        rows[1] = rows[1] + [-10 * y, -0.1 - 10 * x, 0]
        rows[2] = rows[2] + [0, 0, -0.0675 * ratio]
        return np.array(rows)

    def double_zero(u):
        matrix = jacobian(*u)
        minors = (np.trace(matrix) ** 2 - np.trace(matrix @ matrix)) / 2
        return [np.linalg.det(matrix), minors]

    begin = scipy.optimize.brentq(lambda z: slopes(z, 0.4)[0], 0.15, 0.3, xtol=1e-15)
    x, y, k2 = (v.real for v in equilibrium(begin, 0.4))
    field = Oxidation(jnp.asarray(k2), jnp.asarray(0.4))
    fold = special("fold", float(k2), [x, y, begin / 0.4])
    print(fold, double_zero)
