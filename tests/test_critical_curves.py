"""Folds and Hopf points in two parameters, against closed forms and scalar roots."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from textbook import special as known

from eqjax import fields
from eqjax.stability import (
    continuation,
    fold_curve,
    hopf_curve,
    load,
    normal_form,
    save,
    switch_curve,
)


class Planar(eqx.Module):
    """Normal forms on the plane of two parameters."""

    a: jax.Array
    b: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, t, z, x):
        p, q = z
        square = p * p + q * q
        if self.kind == "Bogdanov–Takens":
            return jnp.stack([q, self.a + self.b * q + p * p + p * q])
        if self.kind == "cusp":
            return jnp.stack([self.a + self.b * p - p**3, p - q])
        growth, turn = self.a + self.b * square - square**2, 1.3 + self.b * square
        return jnp.stack([growth * p - turn * q, growth * q + turn * p])


BOTH = (lambda f: f.a, lambda f: f.b)


def special(kind, a, b, start, bounds):
    field = Planar(jnp.asarray(a), jnp.asarray(b), kind)
    branch = continuation(field, jnp.array(start), where=BOTH[0], bounds=bounds)
    return field, branch.special_points


def test_a_bogdanov_takens_point_is_where_folds_and_hopf_points_meet():
    """Folds at a = 0, Hopf points at a = -b²."""
    field, (hopf, fold) = special("Bogdanov–Takens", -0.5, 0.4, [-0.7, 0.0], (-1.0, 0.5))
    settings = {"where": BOTH, "bounds": ((-1.0, 0.5), (-1.0, 1.0)), "backwards": True}
    folds = fold_curve(field, fold, **settings)
    assert jnp.max(jnp.abs(folds.parameters[:, 0])) < 1e-12 and "left the bounds" in str(folds)
    (point,) = folds.special_points
    assert point.type == "Bogdanov–Takens" and max(map(abs, point.parameters)) < 1e-12
    hopfs = hopf_curve(field, hopf, **settings)
    a, b = hopfs.parameters.T
    np.testing.assert_allclose(a, -(b**2), atol=1e-11)
    np.testing.assert_allclose(hopfs.frequencies, np.sqrt(2 * abs(b)), atol=1e-8)
    (point,) = hopfs.special_points
    assert point.status == "converged" and max(map(abs, point.parameters)) < 1e-12
    assert hopfs.ended == "the frequency vanished"
    # And from there back onto the curve.
    born = switch_curve(field, point, where=BOTH, to="Hopf")
    again = hopf_curve(*born, **settings | {"backwards": False})
    a, b = again.parameters.T
    np.testing.assert_allclose(a, -(b**2), atol=1e-11)
    assert b[-1] == 1.0
    form = normal_form(field, point, where=BOTH).coefficients
    # v̇ = a + bv + u² + uv as it stands, with the sign of a vector.
    np.testing.assert_allclose(list(map(abs, form.values())), 1, atol=1e-12)
    assert form["a"] * form["b"] > 0


def test_a_cusp_is_where_two_folds_meet(tmp_path):
    """27 a² = 4 b³"""
    field, (fold, _) = special("cusp", -1.0, 1.0, [-1.3, -1.3], (-1.0, 1.0))
    curve = fold_curve(field, fold, where=BOTH, bounds=((-1.0, 1.0), (-1.0, 1.5)), backwards=True)
    (point,) = curve.special_points
    assert point.type == "cusp" and max(map(abs, point.parameters)) < 1e-12
    assert abs(normal_form(field, point, where=BOTH).coefficients["c"] + 0.5) < 1e-12
    a, b = curve.parameters.T
    np.testing.assert_allclose(27 * a**2, 4 * b**3, atol=1e-10)
    assert a[0] > 0 > a[-1] and "cusp" in str(curve)
    save(tmp_path / "curve", curve)
    assert str(load(tmp_path / "curve")) == str(curve)


def test_a_bautin_point_is_where_the_first_lyapunov_coefficient_changes_sign():
    field, (hopf,) = special("Bautin", -0.5, -0.6, [0.0, 0.0], (-0.5, 0.5))
    curve = hopf_curve(field, hopf, where=BOTH, bounds=((-0.5, 0.5), (-1.0, 1.5)))
    (point,) = curve.special_points
    assert point.type == "Bautin" and max(map(abs, point.parameters)) < 1e-12
    assert abs(point.frequency - 1.3) < 1e-12
    # The growth rate is a + b r² - r⁴, and at unit length r² is |w|²·2.
    form = normal_form(field, point, where=BOTH).coefficients
    assert abs(form["l2"] + 4 / 1.3) < 1e-10 and abs(form["l1"]) < 1e-10
    # At unit length of the eigenvector l₁ = 2b/ω.
    np.testing.assert_allclose(curve.tests[:, 0], 2 * curve.parameters[:, 1] / 1.3, atol=1e-9)
    with pytest.raises(ValueError, match='flow "fold"'):
        fold_curve(field, hopf, where=BOTH, bounds=((-0.5, 0.5), (-1.0, 1.5)))
    with pytest.raises(ValueError, match="`where` must be a pair"):
        hopf_curve(field, hopf, where=BOTH[0], bounds=((-0.5, 0.5), (-1.0, 1.5)))


def test_morris_lecar_has_its_bogdanov_takens_point_where_trace_and_determinant_vanish():
    """In the current and the calcium conductance: a scalar root in V for both."""

    def parts(v):
        m, w = 0.5 * (1 + np.tanh((v + 1.2) / 18)), 0.5 * (1 + np.tanh((v - 2) / 30))
        dm, dw = 0.5 / 18 / np.cosh((v + 1.2) / 18) ** 2, 0.5 / 30 / np.cosh((v - 2) / 30) ** 2
        calcium = m + dm * (v - 120)
        # dI/dV = 0 on the curve of equilibria
        g = -(2 + 8 * (w + dw * (v + 84))) / calcium
        trace = -(2 + g * calcium + 8 * w) / 20 - 0.04 * np.cosh((v - 2) / 60)
        return g, trace, 2 * (v + 60) + g * m * (v - 120) + 8 * w * (v + 84)

    grid = np.linspace(-45, 10, 56)
    signs = np.array([parts(v)[1] for v in grid])
    roots = [
        scipy.optimize.brentq(lambda v: parts(v)[1], a, b, xtol=1e-14)
        for a, b, s, t in zip(grid, grid[1:], signs, signs[1:], strict=False)
        if s * t < 0
    ]
    exact = [parts(v)[::2] for v in roots]
    field = fields.MorrisLecar(current=jnp.asarray(90.0))
    current = lambda f: f.current
    (hopf,) = continuation(
        field, jnp.array([-27.0, 0.13]), where=current, bounds=(85.0, 100.0)
    ).special_points
    curve = hopf_curve(
        field, hopf, where=(current, lambda f: f.g_Ca), bounds=((-200.0, 400.0), (1.0, 60.0))
    )
    found = [p.parameters for p in curve.special_points if p.type == "Bogdanov–Takens"]
    assert len(found) == 1
    gap = min(abs(i - found[0][0]) + abs(g - found[0][1]) for g, i in exact)
    assert gap < 1e-8


class Leaky(eqx.Module):
    """`ż = -cz + a W tanh z`, W = 5/4 ± i at 0."""

    a: jax.Array
    b: jax.Array

    def __call__(self, t, z, x):
        return -self.b * z + self.a * (jnp.array([[1.25, -1.0], [1.0, 1.25]]) @ jnp.tanh(z))


def test_the_hopf_curve_and_that_of_its_euler_map_part():
    """Hopf points at a = 4c/5, and of Euler's map `2 (5a/4 - c) + ε |(5/4 + i) a - c|² = 0`; for ε = 1, c = 1 at .6247."""
    a = 0.624695047554424
    field = Leaky(jnp.asarray(a), jnp.asarray(1.0))
    euler = known("–", a, [0.0, 0.0], np.angle((1.25 + 1j) * a), "Neimark–Sacker")
    hopf = known("Hopf", 0.8, [0.0, 0.0], 0.8)
    settings = {"where": BOTH, "bounds": ((0.1, 2.0), (0.2, 2.2)), "backwards": True}
    flow = hopf_curve(field, hopf, **settings)
    a, c = flow.parameters.T
    np.testing.assert_allclose(a, 0.8 * c, atol=1e-11)
    np.testing.assert_allclose(flow.frequencies, a, atol=1e-11)
    settings["bounds"] = ((0.1, 3.0), (0.2, 3.0))
    down = hopf_curve(field, euler, step=1.0, **settings)
    up = hopf_curve(field, euler, step=1.0, **settings | {"backwards": False})
    for curve in (down, up):
        a, c = np.asarray(curve.parameters).T
        multiplier = 1 - c + (1.25 + 1j) * a
        np.testing.assert_allclose(abs(multiplier), 1, atol=1e-11)
        np.testing.assert_allclose(curve.frequencies, np.angle(multiplier), atol=1e-11)
    with pytest.raises(ValueError, match='euler "Neimark–Sacker"'):
        hopf_curve(field, hopf, step=1.0, **settings)


def test_a_curve_of_neimark_sacker_points_passes_its_resonances():
    """Of the map z + F(z) of Bogdanov and Takens: b = -s, a = -s², cos θ = 1 - s. Its two ends are those on the real axis."""
    field = Planar(jnp.asarray(-0.64), jnp.asarray(-0.8), "Bogdanov–Takens")
    point = known("–", -0.64, [-0.8, 0.0], np.arccos(0.2), "Neimark–Sacker")
    settings = {"where": BOTH, "bounds": ((-5.0, 0.5), (-3.0, 0.5)), "step": 1.0}
    down = hopf_curve(field, point, **settings, backwards=True)
    up = hopf_curve(field, point, **settings)
    found = {p.type: p for p in (*down.special_points, *up.special_points)}
    for k, s in ((1, 0.0), (2, 2.0), (3, 1.5), (4, 1.0)):
        there = found[f"1:{k} resonance"]
        np.testing.assert_allclose(there.parameters, (-s * s, -s), atol=1e-11)
        assert there.status == "converged"
        assert abs(there.frequency - 2 * np.pi / k * (k > 1)) < 1e-6
    assert down.ended == "the multipliers met at -1" and up.ended == "the frequency vanished"
    form = normal_form(field, point, where=BOTH[0], step=1.0)
    assert abs(form.coefficients["d"] - float(down.tests[0, 0])) < 1e-9
    with pytest.raises(ValueError, match="no normal form of a 1:4 resonance point"):
        normal_form(field, found["1:4 resonance"], where=BOTH, step=1.0)
