"""Normal forms of maps against closed forms."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.stability import load, map_normal_form, save


def logistic(t, z, x):
    return x * z * (1 - z)


def henon(t, z, x):
    a, b = x
    return {"x": 1 - a * z["x"] ** 2 + z["y"], "y": b * z["x"]}


def delayed(t, z, x):
    """The delayed logistic map (Maynard Smith 1968): a pair exp(±iπ/3) at x = 2."""
    return jnp.stack([x * z[0] * (1 - z[1]), z[0]])


def test_the_logistic_map_doubles_and_folds():
    """A flip with `f″²/4 + f‴/6` = 9 at r = 3, and a crossing, which is no fold, with f″/2 = -1 at r = 1."""
    flip = map_normal_form(logistic, jnp.array([2 / 3]), 3.0)
    assert flip.type == "flip" and flip.supercritical and abs(flip.coefficient - 9) < 1e-12
    assert abs(flip.multiplier + 1) < 1e-12 and flip.residual < 1e-15
    fold = map_normal_form(logistic, jnp.zeros(1), 1.0)
    assert fold.type == "fold" and abs(abs(fold.coefficient) - 1) < 1e-12


def test_henon_doubles_as_the_closed_form_says():
    """At `a = 3(1 - b)²/4`, where `2ax = 1 - b`, the coefficient is `a² / ((1 - b²)(1 + b²))`."""
    b = 0.3
    a = 0.75 * (1 - b) ** 2
    x = (1 - b) / (2 * a)
    found = map_normal_form(henon, {"x": jnp.asarray(x), "y": jnp.asarray(b * x)}, (a, b))
    exact = a**2 / ((1 - b**2) * (1 + b**2))
    assert found.type == "flip" and abs(found.coefficient - exact) < 1e-10
    assert "supercritical flip" in str(found)


def test_the_delayed_logistic_map_bears_a_circle(tmp_path):
    """Its radius, averaged, grows as the coefficient says: `|ζ|² = -Re(λ - λ₀)/λ₀ / d`, with `d|λ|/dr = 1/4` at r = 2."""
    found = map_normal_form(delayed, jnp.array([0.5, 0.5]), 2.0)
    assert found.type == "Neimark–Sacker" and found.supercritical
    assert abs(found.multiplier - np.exp(1j * np.pi / 3)) < 1e-12
    r, z = 2.002, np.array([0.51, 0.5])
    for _ in range(20000):
        z = np.array([r * z[0] * (1 - z[1]), z[0]])
    q = np.array([np.exp(1j * np.pi / 3), 1]) / np.sqrt(2)
    p = np.array([1, -np.exp(1j * np.pi / 3)])
    p = p / np.vdot(q, p)
    fixed, squares = 1 - 1 / r, []
    for _ in range(6000):
        z = np.array([r * z[0] * (1 - z[1]), z[0]])
        squares.append(abs(np.vdot(p, z - fixed)) ** 2)
    growth = np.log(abs(np.linalg.eigvals([[1, -r * fixed], [1, 0]])[0]))
    assert abs(-growth / np.mean(squares) / float(found.coefficient) - 1) < 0.02
    save(tmp_path / "form", found)
    assert eqx.tree_equal(load(tmp_path / "form"), found)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="400 at most"):
        map_normal_form(logistic, jnp.zeros(401), 1.0)
    with pytest.raises(ValueError, match="complex"):
        map_normal_form(logistic, jnp.zeros(1, complex), 1.0)
