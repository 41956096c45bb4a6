"""Small fields whose answers are known, for the tests of settling, of spectra and of branches."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from eqjax import fields


class Linear(eqx.Module):
    """`ż = A z`, or `A z + x`."""

    matrix: jax.Array

    def __call__(self, t, z, x):
        return self.matrix @ z if x is None else self.matrix @ z + x


class Counted(eqx.Module):
    """A field that counts, on the host, how often it is evaluated."""

    field: eqx.Module
    note: Callable[[], None] = eqx.field(static=True)

    def __init__(self, field, count):
        # Equal lists would share one compiled program, and so one list; no two functions are equal.
        self.field, self.note = field, lambda: count.append(1)

    def __call__(self, t, z, x):
        jax.debug.callback(self.note)
        return self.field(t, z, x)


class BrusselatorWave(eqx.Module):
    """The Brusselator wave model, linearised about its uniform state; z = (u, v), each on n points."""

    length: jax.Array
    alpha: float = 2.0
    beta: float = 5.45
    diffusion: tuple[float, float] = (0.008, 0.004)

    def __call__(self, t, z, x):
        u, v = z
        scale = ((u.size + 1) / self.length) ** 2

        def laplacian(a):
            padded = jnp.pad(a, 1)
            return scale * (padded[2:] + padded[:-2] - 2 * a)

        a2 = self.alpha**2
        return (
            self.diffusion[0] * laplacian(u) + (self.beta - 1) * u + a2 * v,
            self.diffusion[1] * laplacian(v) - self.beta * u - a2 * v,
        )


class Gain(eqx.Module):
    """`ż = -z + α W tanh z`: true Hopf at α = .8 with ω = .8; Euler with ε = 1 gives up at α = .6247."""

    gain: jax.Array = fields.hyperparameter(default=0.1)
    weight: jax.Array = eqx.field(default_factory=lambda: jnp.array([[1.25, -1.0], [1.0, 1.25]]))

    def __call__(self, t, z, x):
        return -z + self.gain.astype(z.dtype) * (self.weight.astype(z.dtype) @ jnp.tanh(z))


class Polynomial(eqx.Module):
    """`ż = Σ (a_i + p b_i) w^i`, w = z - c sin p: one structure, compiled once, for many bifurcations."""

    p: jax.Array
    a: jax.Array
    b: jax.Array
    c: jax.Array

    def __init__(self, p, a=(0, 0, 0, 0), b=(0, 0, 0, 0), c=0):
        self.p, self.a, self.b, self.c = (jnp.asarray(v, float) for v in (p, a, b, c))

    def __call__(self, t, z, x):
        w = z - self.c * jnp.sin(self.p)
        return sum((self.a[i] + self.p * self.b[i]) * w**i for i in range(4))


def folding(p):
    """`ż = p + z²`"""
    return Polynomial(p, a=(0, 0, 1, 0), b=(1, 0, 0, 0))


def forked(p, c=0):
    """`ẇ = p w - w³`"""
    return Polynomial(p, a=(0, 0, 0, -1), b=(0, 1, 0, 0), c=c)


class Map(eqx.Module):
    """A map as a field: `g(z) - z`, to be stepped with ε = 1."""

    p: jax.Array
    rule: object = eqx.field(static=True)

    def __call__(self, t, z, x):
        return self.rule(z, self.p) - z


def p_of(field):
    return field.p
