"""Normal forms of critical cycles, against averages that are known in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cycles import special

from eqjax.stability import Forced, normal_form
from eqjax.stability._profile import Closing, curve_on


class Band(eqx.Module):
    """The unit circle and a plane across it, whose axes e and e' turn half round each time, `θ̇ = 1 + κ P²`. Along them
    `Ṗ = p P + c P³ + g cos(θ/2) P Q` and `Q̇ = -Q + h cos(θ/2) P²`."""

    p: jax.Array
    c: float = 0.7
    g: float = 2.0
    h: float = 0.5
    kappa: float = 0.3

    def __call__(self, t, z, x):
        (a, b), u = z[:2], z[2:]
        # Products of the axes, which are whole turns: e eᵀ u, P², PQ, e cos(θ/2), e' cos(θ/2).
        along = 0.5 * jnp.stack([u[0] + a * u[0] + b * u[1], u[1] + b * u[0] - a * u[1]])
        squared, mixed = along @ along, 0.5 * (a * 2 * u[0] * u[1] - b * (u[0] ** 2 - u[1] ** 2))
        first, other = 0.5 * jnp.stack([1 + a, b]), 0.5 * jnp.stack([-b, 1 + a])
        pace = 1 + self.kappa * squared
        du = (self.p + self.c * squared) * along - (u - along)
        du = du + self.g * mixed * first + self.h * squared * other
        du = du + 0.5 * pace * jnp.stack([-u[1], u[0]])
        ring = (1 - a * a - b * b) * jnp.stack([a, b]) + pace * jnp.stack([-b, a])
        return jnp.concatenate([ring, du])


class Plane(eqx.Module):
    """The unit circle, `θ̇ = 1 + κ|v|²`, and across it v = exp(-iθ) u with `v̇ = (p + iω) v` and more, of which the
    averaged cubic term is known (Guckenheimer & Holmes 1983, eq. 3.4.11)."""

    p: jax.Array
    omega: float = 0.37
    kappa: float = 0.3

    def more(self, v):
        x, y = v
        return jnp.stack([x * x + 0.5 * x * y - 0.3 * x**3, y * y - 2 * x * y + 0.4 * x * x * y])

    def averaged(self):
        fxx, fxy, fyy, gxx, gxy, gyy = 2, 0.5, 0, 0, -2, 2
        cubic = -0.3 * 6 + 0.4 * 2
        mixed = fxy * (fxx + fyy) - gxy * (gxx + gyy) - fxx * gxx + fyy * gyy
        return cubic / 16 + mixed / (16 * self.omega)

    def plane(self, v):
        return self.p * v + self.omega * jnp.stack([-v[1], v[0]]) + self.more(v)

    def __call__(self, t, z, x):
        (a, b), u = z[:2], z[2:]
        pace = 1 + self.kappa * u @ u
        v = jnp.stack([a * u[0] + b * u[1], a * u[1] - b * u[0]])
        dv = self.plane(v)
        du = jnp.stack([a * dv[0] - b * dv[1], b * dv[0] + a * dv[1]])
        du = du + pace * jnp.stack([-u[1], u[0]])
        ring = (1 - a * a - b * b) * jnp.stack([a, b]) + pace * jnp.stack([-b, a])
        return jnp.concatenate([ring, du])


class Turning(eqx.Module):
    """`ṙ = p - (r - 1)²` and `θ̇ = 1 - s (r - 1)`: as ξ = s (r - 1), `ξ̇ = s p - ξ²/s`."""

    p: jax.Array
    s: float = 0.6

    def __call__(self, t, z, x):
        r = jnp.sqrt(z @ z)
        growth = (self.p - (r - 1) ** 2) / r
        return growth * z + (1 - self.s * (r - 1)) * jnp.stack([-z[1], z[0]])


class Driven(eqx.Module):
    """`ż = p - w² + w³` about a response, `w = z - cos ωt`, by a drive whose frequency is part of the field."""

    p: jax.Array
    omega: float = 1.5

    def __call__(self, t, z, x):
        w = z - jnp.cos(self.omega * t)
        return self.p - w**2 + w**3 - self.omega * jnp.sin(self.omega * t)


def circle(kind, size, frequency=0.0):
    """The unit circle as a special point of a branch."""
    angles = lambda t: 2 * np.pi * jnp.asarray(t)
    rows = lambda t: [jnp.cos(angles(t)), jnp.sin(angles(t)), *[0 * angles(t)] * (size - 2)]
    widths, log_period = jnp.full(16, 1 / 16), jnp.log(2 * jnp.pi)
    curve = lambda t: jnp.stack(rows(t), 1)
    return special(kind, curve_on(curve, widths, log_period, 6), frequency=frequency)


def test_a_period_doubles_as_the_average_says():
    """`Q = h P² (cos(θ/2) + sin(θ/2)/2) / (1 + 1/4)`, and so `Ṗ = (c + .4 g h) P³`."""
    for c, word in ((0.7, "subcritical"), (-0.7, "supercritical")):
        found = normal_form(
            Band(jnp.asarray(0.2), c), circle("period doubling", 4), where=parameter
        )
        assert abs(found.coefficients["c"] - (c + 0.4)) < 1e-8 and word in str(found)


def test_a_torus_is_born_as_the_average_says():
    """With `v = ξ (1, -i)/√2` and its conjugate, |v|² is 2|ξ|²."""
    field = Plane(jnp.asarray(0.2))
    found = normal_form(field, circle("torus", 4, 1.37), where=parameter)
    assert abs(found.coefficients["d"] - 2 * field.averaged()) < 1e-8


def test_a_fold_of_cycles_has_a_side():
    found = normal_form(Turning(jnp.asarray(0.1)), circle("fold", 2), where=parameter)
    assert abs(found.coefficients["a"] + 1 / 0.6) < 1e-8
    assert abs(found.coefficients["b"] - 0.6) < 1e-8
    assert found.verdict == "two cycles above the parameter, none beyond"


def test_a_driven_response_folds():
    field = Forced(Driven(jnp.asarray(0.1)), lambda f: 2 * jnp.pi / f.omega)
    times = lambda t: jnp.stack([jnp.cos(2 * jnp.pi * t), t], 1)
    profile = curve_on(times, jnp.full(16, 1 / 16), jnp.log(2 * jnp.pi / 1.5), 6)
    profile = profile._replace(closing=Closing(jnp.ones(2), jnp.array([0.0, 1.0])))
    point = special("fold", profile, size=1)
    found = normal_form(field, point, where=lambda f: f.field.p)
    a, b = found.coefficients.values()  # of w or of -w
    np.testing.assert_allclose([abs(a), a * b], [1, -1], atol=1e-8)


def test_what_has_no_normal_form_is_told():
    field, point = Turning(jnp.asarray(0.1)), circle("branch point", 2)
    with pytest.raises(ValueError, match="branch point of cycles"):
        normal_form(field, point, where=parameter)
    shot = eqx.tree_at(lambda p: p.profile, circle("fold", 2), None)
    with pytest.raises(ValueError, match="that were shot"):
        normal_form(field, shot, where=parameter)


def parameter(field):
    return field.p
