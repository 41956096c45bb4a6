"""Points of codimension two, their normal forms and the curves that meet there, against closed forms and scalar roots."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from textbook import special

from eqjax.stability import (
    PseudoArclength,
    fold_curve,
    hopf_curve,
    normal_form,
    switch_curve,
)

BOTH = (lambda f: f.a, lambda f: f.b)
FAST = PseudoArclength(first=0.05, most=0.2, turn=0.6)


class Disguised(eqx.Module):
    """A real mode u and two pairs, `u̇ = a + u² - r₁ - 2r₂`, growth rates `b + 0.6u - r₁` and `0.3 + u - r₂/2 - r₁` with
    frequencies 1.3 and 2.9, in coordinates that are bent and mixed. Pair one: zero–Hopf at a = b = 0, and Hopf–Hopf where
    u = -0.3."""

    a: jax.Array
    b: jax.Array
    mix: jax.Array
    unmix: jax.Array

    @classmethod
    def at(cls, a, b):
        rng = np.random.default_rng(0)
        mix = np.eye(5) + 0.15 * rng.standard_normal((5, 5))
        return cls(*map(jnp.asarray, (a, b, mix, np.linalg.inv(mix))))

    def __call__(self, t, z, x):
        y = self.unmix @ z
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
    bounds = ((-0.5, 0.2), (-0.1, 0.5))
    settings = {"where": BOTH, "bounds": bounds, "path": FAST}
    field = Disguised.at(-0.36, 0.36)
    hopf = special("Hopf", -0.36, field.state(-0.6), 1.3)
    curve = hopf_curve(field, hopf, backwards=True, **settings)
    found = {p.type: p for p in curve.special_points}
    assert set(found) == {"zero–Hopf", "Hopf–Hopf"}  # and no Bautin point at the pole of l₁
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
    there, fold = switch_curve(field, zero, where=BOTH, to="fold")
    assert abs(fold.parameter) < 1e-12 and fold.flow == "fold"
    # From above it is met on the curve of folds, too.
    above = eqx.tree_at(BOTH[1], there, jnp.asarray(0.3))
    folds = fold_curve(above, fold, backwards=True, **settings)
    np.testing.assert_allclose(folds.parameters[:, 0], 0, atol=1e-11)
    (again,) = folds.special_points
    np.testing.assert_allclose(again.parameters, 0, atol=1e-12)
    np.testing.assert_allclose(again.frequencies, 1.3, atol=1e-11)
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


def test_the_cusp_and_bogdanov_takens_points_of_the_oxidation_of_co():
    """As MatCont's manual has them (Dhooge, Govaerts, Kuznetsov et al.), coefficients included, up to the sign of vectors."""
    x, y, s = 0.0854, 0.297, 0.386
    roots = scipy.optimize.fsolve(
        lambda u: [*_oxidation(u[:3], u[3]), _determinant(u[:3], u[3])],
        [x, y, s, 1.2233],
    )
    field = Oxidation(jnp.asarray(roots[3]), jnp.asarray(0.6))
    fold = special("fold", float(roots[3]), roots[:3].tolist())
    bounds = ((0.5, 2.0), (0.1, 0.9))
    curve = fold_curve(field, fold, where=BOTH, bounds=bounds, backwards=True)
    found = {p.type: p for p in curve.special_points}
    cusp, double = found["cusp"], found["Bogdanov–Takens"]
    np.testing.assert_allclose(cusp.parameters, (1.006408, 0.355991), atol=6e-7)
    np.testing.assert_allclose(double.parameters, (1.161199, 0.722339), atol=6e-7)
    assert abs(abs(normal_form(field, cusp, where=BOTH).coefficients["c"]) - 0.3627844) < 1e-5
    form = normal_form(field, double, where=BOTH).coefficients
    a, b = (form[name] * np.sign(form["a"]) for name in "ab")
    assert abs(a - 4.822563e-2) < 1e-6 and abs(b - 1.937632) < 1e-5
    # The Jacobian there has 0 for a double eigenvalue.
    at = Oxidation(*map(jnp.asarray, double.parameters))
    values = np.linalg.eigvals(jax.jacfwd(lambda z: at(0.0, z, None))(double.state))
    assert np.sort(abs(values))[1] < 1e-6


def _oxidation(state, k2, ratio=0.6):
    x, y, s = state
    z = 1 - x - y - s
    first = 5 * z**2 - 2 * x**2 - 10 * x * y
    return np.array([first, k2 * z - 0.1 * y - 10 * x * y, 0.0675 * (z - ratio * s)])


def _determinant(state, k2):
    step = 1e-20j  # a complex step, so to rounding
    columns = [_oxidation(state + step * unit, k2).imag / 1e-20 for unit in np.eye(3)]
    return np.linalg.det(np.array(columns).T)


class Folding(eqx.Module):
    """`u̇ = a + ...` in three kinds: a fold, a transcritical point and pitchforks, of the first of two modes; the second
    follows as `v = u²`."""

    a: jax.Array
    b: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, t, z, x):
        u, v = z
        first = {
            "fold": 3 * self.a + self.b * v,
            "transcritical": self.a * u + self.b * v,
            "pitchfork": self.a * u + self.b * u * v,
            "flip": -2 * u - self.a * u + self.b * u * v,
        }[self.kind]
        return jnp.stack([first, u * u - v])


@pytest.mark.parametrize("b", [-0.7, 0.7])
@pytest.mark.parametrize("kind", ["fold", "transcritical", "pitchfork", "flip"])
def test_normal_forms_of_points_of_codimension_one(kind, b):
    """On the centre manifold v = u² (under the map, u² again, for both squares return in one step)."""
    field = Folding(jnp.asarray(0.0), jnp.asarray(b), kind)
    flow = {"transcritical": "branch point", "pitchfork": "branch point", "flip": "–"}
    euler = "flip" if kind == "flip" else "–"
    point = special(flow.get(kind, kind), 0.0, [0.0, 0.0], euler=euler)
    form = normal_form(field, point, where=BOTH[0], step=1.0)
    said, told = form.coefficients, str(form)
    if kind == "fold":
        assert abs(said["a"] * said["b"] - 3 * b) < 1e-12
        assert ("below" if b > 0 else "above") in told
    elif kind == "transcritical":
        assert "transcritical" in told and abs(abs(said["a"]) - 0.7) < 1e-12
        assert abs(said["b"] - 1) < 1e-12
    elif kind == "pitchfork":
        assert abs(said["d"] - b) < 1e-12 and abs(said["a"]) < 1e-12
        assert f"{'super' if b < 0 else 'sub'}critical pitchfork" in told
    else:
        assert abs(said["c"] - b) < 1e-12
        assert f"{'super' if b > 0 else 'sub'}critical flip" in told
    with pytest.raises(ValueError, match="`where` must be one function"):
        normal_form(field, point, where=BOTH)


class Ringing(eqx.Module):
    """`ẇ = (1.3i + b|w|²) w`, or the map `w ↦ exp(1.3i) (1 + b|w|²) w` less w."""

    a: jax.Array
    b: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, t, z, x):
        square = self.b * jnp.sum(z * z)
        turned = jnp.stack([-z[1], z[0]])
        if self.kind == "Hopf":
            return 1.3 * turned + square * z
        return (1 + square) * (np.cos(1.3) * z + np.sin(1.3) * turned) - z


@pytest.mark.parametrize("kind", ["Hopf", "Neimark–Sacker"])
def test_normal_forms_of_pairs(kind):
    """With an eigenvector of unit length |z|² = 2|w|²."""
    field = Ringing(jnp.asarray(0.0), jnp.asarray(-0.4), kind)
    flow, euler = ("Hopf", "–") if kind == "Hopf" else ("–", kind)
    point = special(flow, 0.0, [0.0, 0.0], 1.3, euler)
    form = normal_form(field, point, where=BOTH[0], step=1.0)
    (value,) = form.coefficients.values()
    assert abs(value - (-0.8 / 1.3 if kind == "Hopf" else -0.8)) < 1e-12
    assert f"supercritical {kind}" in str(form)
    if kind != "Hopf":
        with pytest.raises(ValueError, match="`step` is missing"):
            normal_form(field, point, where=BOTH[0])
