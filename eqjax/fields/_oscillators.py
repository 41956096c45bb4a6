"""Small autonomous oscillators whose bifurcations are known in closed form; their input `x` is not used."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractForceField, hyperparameter


class Brusselator(AbstractForceField):
    """`u̇ = A - (B + 1) u + u² v`, `v̇ = B u - u² v` (Prigogine & Lefever 1968), z = (u, v).

    The fixed point (A, B/A) loses stability in a Hopf bifurcation at B = 1 + A², where ω = A.

    **Arguments:** `a`, `b`: A > 0 and B.

    ```python
    oscillator = ej.fields.Brusselator(a=2.0, b=3.0)
    assert not oscillator(0.0, jnp.array([2.0, 1.5])).any()  # at rest in (A, B/A)
    ```
    """

    a: Float[Array, ""] = hyperparameter(default=1.0)
    b: Float[Array, ""] = hyperparameter(default=1.5)

    def __call__(self, t: Any, z: Float[Array, " 2"], x: Any = None) -> Float[Array, " 2"]:
        u, v = z
        made, spent = self.b * u, u * u * v
        return jnp.stack([self.a - made - u + spent, made - spent])


class Lorenz(AbstractForceField):
    """`ẋ = σ (y - x)`, `ẏ = x (ρ - z) - y`, `ż = x y - β z` (Lorenz 1963).

    The origin splits in a pitchfork at ρ = 1; its two offspring, at `x = y = ±√(β (ρ - 1))`, `z = ρ - 1`, lose
    stability in a subcritical Hopf bifurcation at `ρ = σ (σ + β + 3) / (σ - β - 1)`, 470/19 by default.

    ```python
    butterfly = ej.fields.Lorenz(rho=28.0)
    assert not butterfly(0.0, jnp.zeros(3)).any()
    ```
    """

    sigma: Float[Array, ""] = hyperparameter(default=10.0)
    rho: Float[Array, ""] = hyperparameter(default=28.0)
    beta: Float[Array, ""] = hyperparameter(default=8 / 3)

    def __call__(self, t: Any, z: Float[Array, " 3"], x: Any = None) -> Float[Array, " 3"]:
        a, b, c = z
        return jnp.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c])


class FitzHughNagumo(AbstractForceField):
    """`v̇ = v - v³/3 - w + I`, `ẇ = φ (v + a - b w)` (FitzHugh 1961; Nagumo et al. 1962), z = (v, w).

    At rest for weak and for strong currents; in between, from one Hopf bifurcation to the other, it fires.

    **Arguments:** `a`, `b`; `rate`: φ; `current`: I.

    ```python
    neuron = ej.fields.FitzHughNagumo(current=0.5)
    assert jnp.allclose(neuron(0.0, jnp.zeros(2)), jnp.array([0.5, 0.08 * 0.7]))
    ```
    """

    a: Float[Array, ""] = hyperparameter(default=0.7)
    b: Float[Array, ""] = hyperparameter(default=0.8)
    rate: Float[Array, ""] = hyperparameter(default=0.08)
    current: Float[Array, ""] = hyperparameter(default=0.0)

    def __call__(self, t: Any, z: Float[Array, " 2"], x: Any = None) -> Float[Array, " 2"]:
        v, w = z
        recovery = self.rate * (v + self.a - self.b * w)
        return jnp.stack([v - v**3 / 3 - w + self.current, recovery])


class VanDerPol(AbstractForceField):
    """`ẍ - μ (1 - x²) ẋ + x = 0` (van der Pol 1926), z = (x, ẋ).

    The origin turns unstable at μ = 0, where ω = 1: a degenerate Hopf point, since what is nonlinear vanishes there too.

    **Arguments:** `damping`: μ.

    ```python
    oscillator = ej.fields.VanDerPol(damping=1.0)
    assert oscillator(0.0, jnp.array([1.0, 2.0])).tolist() == [2, -1]
    ```
    """

    damping: Float[Array, ""] = hyperparameter(default=1.0)

    def __call__(self, t: Any, z: Float[Array, " 2"], x: Any = None) -> Float[Array, " 2"]:
        position, speed = z
        return jnp.stack([speed, self.damping * (1 - position**2) * speed - position])


class StuartLandau(AbstractForceField):
    """`ȧ = (μ + iω) a - (l + ic) |a|² a`, the normal form of a Hopf bifurcation, z = (Re a, Im a).

    For l > 0 supercritical: beyond μ = 0 a cycle of radius `√(μ/l)`, period `2π / (ω - c μ/l)` and Floquet multiplier
    `exp(-2μT)`. For l < 0 subcritical.

    **Arguments:** `growth`: μ; `frequency`: ω; `saturation`: l; `shear`: c.

    ```python
    oscillator = ej.fields.StuartLandau(growth=1.0, frequency=2.0)
    assert oscillator(0.0, jnp.array([1.0, 0.0])).tolist() == [0, 2]  # round its cycle
    ```
    """

    growth: Float[Array, ""] = hyperparameter(default=1.0)
    frequency: Float[Array, ""] = hyperparameter(default=1.0)
    saturation: Float[Array, ""] = hyperparameter(default=1.0)
    shear: Float[Array, ""] = hyperparameter(default=0.0)

    def __call__(self, t: Any, z: Float[Array, " 2"], x: Any = None) -> Float[Array, " 2"]:
        squared = jnp.sum(z * z)
        growing = self.growth - self.saturation * squared
        turning = self.frequency - self.shear * squared
        return growing * z + turning * jnp.stack([-z[1], z[0]])
