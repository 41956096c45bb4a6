"""Points of codimension two on curves of cycles, where the matrix of a driven plane puts them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from cycles import special

from eqjax.stability import Forced, PseudoArclength, cycle_curve, load, save
from eqjax.stability._profile import Closing, curve_on

MEET = 0.045  # the second parameter, or its like, at which a coefficient vanishes


class Plane(eqx.Module):
    """`ẇ₁ = w₂`, `ẇ₂ = c₀ + c₁ w₁ + c₂ w₂ + g w₁² w₂ + k w₁³` about a response to a drive of period 2π, in a frame that
    turns by as many half turns meanwhile as `twist` says.

    As a torus `c₁ = -s`, with angles 2π√s, `c₂ = p` and `g = s - .045`; where the period doubles `c₁ = p - s²`, `c₂ = s`
    and `k = .045 - s`; at a fold `c₀ = p`, `c₁ = s`, `c₂ = s - .045` and `k = -1`, so that `s = 3w²` and `p = -2w³`."""

    p: jax.Array
    s: jax.Array
    twist: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, t, z, x):
        c, s = jnp.cos(0.5 * self.twist * t), jnp.sin(0.5 * self.twist * t)
        u = z - jnp.stack([jnp.cos(t), jnp.sin(t)])
        a, b = c * u[0] + s * u[1], c * u[1] - s * u[0]
        p, q = self.p, self.s
        growth = {
            "torus": lambda: -q * a + p * b + (q - MEET) * a * a * b,
            "period doubling": lambda: (p - q * q) * a + q * b + (MEET - q) * a**3,
            "fold": lambda: p + q * a + (q - MEET) * b - a**3,
        }[self.kind]()
        du = jnp.stack([c * b - s * growth, s * b + c * growth])
        turned = jnp.stack([-u[1], u[0]])
        return du + 0.5 * self.twist * turned + jnp.stack([-jnp.sin(t), jnp.cos(t)])


def follow(kind, p, s, w=0.0, frequency=0.0, twist=1.0, **settings):
    rows = lambda t: [jnp.cos(2 * jnp.pi * t) + w, jnp.sin(2 * jnp.pi * t), t]
    curve = lambda t: jnp.stack(rows(jnp.asarray(t)), 1)
    profile = curve_on(curve, jnp.full(6, 1 / 6), jnp.log(2 * jnp.pi), 6)
    profile = profile._replace(closing=Closing(jnp.ones(3), jnp.array([0.0, 0.0, 1.0])))
    point = special(kind, profile, p, frequency, size=2)
    field = Plane(jnp.asarray(p), jnp.asarray(s), jnp.asarray(twist), kind)
    return cycle_curve(
        Forced(field, 2 * jnp.pi),
        point,
        where=(lambda f: f.field.p, lambda f: f.field.s),
        bounds=((-1.0, 1.0), (-0.5, 0.5)),
        path=PseudoArclength(first=0.1, most=0.2),
        **settings,
    )


def places(curve):
    assert all(p.status == "converged" and p.error < 1e-7 for p in curve.special_points), curve
    return [(p.type, *p.parameters) for p in curve.special_points]


def agree(found, expected, atol=1e-8):
    assert [name for name, *_ in found] == [name for name, *_ in expected]
    np.testing.assert_allclose(
        [place for _, *place in found], [place for _, *place in expected], atol=atol
    )


def test_tori_meet_resonances_and_change_their_stability(tmp_path):
    """Of angles π - 2π√s, and 2π√s."""
    curve = follow("torus", 0.0, 0.05, frequency=0.5 - 0.05**0.5, backwards=True)
    agree(
        places(curve),
        [
            ("Chenciner", 0.0, MEET),
            ("1:3 resonance", 0.0, 1 / 36),
            ("1:2 resonance", 0.0, 0.0),
        ],
    )
    assert curve.ended == "the multipliers met at -1"
    save(tmp_path / "curve.zip", curve)
    assert "Chenciner" in str(load(tmp_path / "curve.zip"))
    start = {"frequency": 0.01**0.5, "twist": 0.0}
    curve = follow("torus", 0.0, 0.01, **start, backwards=True)
    agree(places(curve), [("1:1 resonance", 0.0, 0.0)])
    assert curve.ended == "the multipliers met at 1"
    curve = follow("torus", 0.0, 0.06, frequency=0.06**0.5, twist=0.0, max_points=2)
    agree(places(curve), [("1:4 resonance", 0.0, 1 / 16)])


def test_doublings_become_degenerate():
    curve = follow("period doubling", 0.1**2, 0.1, backwards=True, max_points=3)
    expected = [("generalised period doubling", MEET**2, MEET), ("1:2 resonance", 0.0, 0.0)]
    agree(places(curve), expected)
    assert abs(curve.special_points[0].period - 2 * np.pi) < 1e-8


def test_folds_have_cusps():
    """And two multipliers 1 where c₂ = 0."""
    w, other = 0.15, 2 * (MEET / 3) ** 1.5
    curve = follow("fold", -2 * w**3, 3 * w * w, w, twist=0.0, backwards=True, max_points=8)
    agree(places(curve), [("1:1 resonance", -other, MEET), ("cusp of cycles", 0.0, 0.0)])
