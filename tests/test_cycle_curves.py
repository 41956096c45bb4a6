"""Critical cycles in two parameters, where closed forms put them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cycles import special

from eqjax.stability import Forced, cycle_curve
from eqjax.stability._profile import Closing, curve_on


class Bautin(eqx.Module):
    """`ṙ = p r + s r³ - r⁵`, `θ̇ = 1`: cycles fold at `p = -s²/4`, where `r² = s/2` (Kuznetsov 2004, ch. 8.3)."""

    p: jax.Array
    s: jax.Array

    def __call__(self, t, z, x):
        square = jnp.sum(z * z)
        growth = self.p + self.s * square - square**2
        return growth * z + jnp.stack([-z[1], z[0]])


MET = 0.31


class Band(eqx.Module):
    """The unit circle and a plane u across it, which turns by half a turn each time round, or by the angle 2πs: at
    `p = s²` the period doubles, or a torus with the frequency s leaves, supercritical
    for s below .31."""

    p: jax.Array
    s: jax.Array
    twisted: bool = eqx.field(static=True)

    def __call__(self, t, z, x):
        ring, u = z[:2], z[2:]
        c, s = ring
        growth = self.p - self.s**2
        turned = jnp.stack([-u[1], u[0]])
        if self.twisted:
            mean, half = (growth - 1) / 2, (growth + 1) / 2
            du = mean * u + half * jnp.stack([c * u[0] + s * u[1], s * u[0] - c * u[1]])
            du = du + 0.5 * turned
        else:
            du = growth * u + self.s * turned
        ring = (1 - jnp.sum(ring * ring)) * ring + jnp.stack([-s, c])
        return jnp.concatenate([ring, du + (self.s - MET) * jnp.sum(u * u) * u])


class Driven(eqx.Module):
    """`ẇ = p + 2sw - w²` about a response to a drive of frequency s: it folds at `p = -s²`, where w = s."""

    p: jax.Array
    s: jax.Array

    def __call__(self, t, z, x):
        c, s = jnp.cos(self.s * t), jnp.sin(self.s * t)
        u = z - c
        return self.p + 2 * self.s * u - u * u - self.s * s


def response(p, s):
    """The fold of a drive, at which w = s."""
    period = 2 * np.pi / s
    curve = lambda t: jnp.stack([jnp.cos(2 * jnp.pi * jnp.asarray(t)) + s, jnp.asarray(t)], 1)
    profile = curve_on(curve, jnp.full(8, 1 / 8), jnp.log(period), 6)
    closing = Closing(jnp.ones(2), jnp.array([0.0, 1.0]))
    return eqx.tree_at(
        lambda point: (point.profile, point.state, point.period),
        critical("fold", p, 1.0, 2, 0.0),
        (profile._replace(closing=closing), profile.nodes[0, :1], period),
    )


def critical(kind, p, radius, size, frequency):
    """A circle as a special point of a branch."""
    zeros = jnp.zeros(size - 2)
    circle = lambda t: jnp.stack(
        [
            jnp.concatenate([radius * jnp.array([jnp.cos(a), jnp.sin(a)]), zeros])
            for a in 2 * np.pi * np.asarray(t)
        ]
    )
    profile = curve_on(circle, jnp.full(6, 1 / 6), jnp.log(2 * jnp.pi), 6)
    return special(kind, profile, p, frequency)


@pytest.mark.parametrize("kind", ["fold", "period doubling", "torus"])
def test_a_critical_cycle_is_followed_through_two_parameters(kind):
    fold = kind == "fold"
    s = 0.8 if fold else 0.3
    field = Band(jnp.asarray(0.09), jnp.asarray(s), kind == "period doubling")
    point = critical(kind, s**2, 1.0, 4, s if kind == "torus" else 0.5)
    if fold:
        field = Bautin(jnp.asarray(-(s**2) / 4), jnp.asarray(s))
        point = critical(kind, -(s**2) / 4, np.sqrt(s / 2), 2, 0.0)
    curve = cycle_curve(
        field,
        point,
        where=(lambda f: f.p, lambda f: f.s),
        bounds=((-1.0, 1.0), (0.2, 0.9)),
        max_points=4,
    )
    p, s = np.asarray(curve.parameters).T
    assert len(s) == 4 and s[-1] > s[0] + 0.01 and "4 cycles from" in str(curve)
    np.testing.assert_allclose(p, -(s**2) / 4 if fold else s**2, atol=1e-8)
    np.testing.assert_allclose(curve.periods, 2 * np.pi, rtol=1e-8)
    frequency = {"fold": 0 * s, "period doubling": 0.5 + 0 * s, "torus": s}[kind]
    np.testing.assert_allclose(curve.frequencies, frequency, atol=1e-8)
    degenerate = {"period doubling": "generalised period doubling", "torus": "Chenciner"}
    assert [p.type for p in curve.special_points] == ([] if fold else [degenerate[kind]])
    for point in curve.special_points:
        np.testing.assert_allclose(point.parameters, (MET**2, MET), atol=1e-8)
    squares = np.sum(np.asarray(curve.states[:, :2]) ** 2, axis=1)
    np.testing.assert_allclose(squares, s / 2 if fold else 1, atol=1e-8)


def test_a_critical_response_is_followed_with_its_drive():
    s = 0.8
    curve = cycle_curve(
        Forced(Driven(jnp.asarray(-(s**2)), jnp.asarray(s)), lambda f: 2 * jnp.pi / f.s),
        response(-(s**2), s),
        where=(lambda f: f.field.p, lambda f: f.field.s),
        bounds=((-1.0, 1.0), (0.2, 0.9)),
        max_points=3,
    )
    p, s = np.asarray(curve.parameters).T
    assert len(s) == 3 and s[-1] > s[0] + 0.01
    np.testing.assert_allclose(p, -(s**2), atol=1e-7)
    np.testing.assert_allclose(curve.periods, 2 * np.pi / s, rtol=1e-10)
    np.testing.assert_allclose(curve.states, 1 + s[:, None], atol=1e-6)


def test_misuse_of_curves_of_cycles_is_refused():
    field = Bautin(jnp.asarray(-0.16), jnp.asarray(0.8))
    where = (lambda f: f.p, lambda f: f.s)
    settings = {"where": where, "bounds": ((-1.0, 1.0), (0.2, 0.9))}
    with pytest.raises(ValueError, match='got "Hopf"'):
        cycle_curve(field, critical("Hopf", -0.16, 0.6, 2, 1.0), **settings)
    fold = critical("fold", -0.16, 0.6, 2, 0.0)
    with pytest.raises(ValueError, match="must be a pair"):
        cycle_curve(field, fold, **settings | {"where": where[:1]})
    with pytest.raises(ValueError, match="by collocation"):
        cycle_curve(field, eqx.tree_at(lambda p: p.profile, fold, None), **settings)
    with pytest.raises(ValueError, match="`Forced` if and only"):
        cycle_curve(Forced(field, 1.0), fold, **settings | {"where": where})
