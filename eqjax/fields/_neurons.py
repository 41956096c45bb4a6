"""Conductance-based neurons, as they are written: mV, ms, mS/cm², µF/cm² and µA/cm² throughout."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Inexact

from ._base import AbstractForceField, hyperparameter, scalar


class HodgkinHuxley(AbstractForceField):
    """The squid axon (Hodgkin & Huxley 1952), z = (V, m, h, n), at rest near -65 mV:

    `C V̇ = I - g_Na m³h (V - E_Na) - g_K n⁴ (V - E_K) - g_L (V - E_L)`, `ṁ = φ (α_m (1 - m) - β_m m)`, and so h and n.

    The state of one neuron has the shape (4,), that of a population (4, n); or `jax.vmap` over neurons of shape (4,),
    where each has its own steps. A fixed step too large for the model (Euler above .07 ms, fourth order above .1 ms)
    diverges at the first spike, which `relax` reports as `nonfinite`.

    **Arguments:** each a number, or an array (n,) for a population. All are hyperparameters; to fit, see `trainable`.

    - `g_Na`, `g_K`, `g_L`: conductances, mS/cm², at least 0. `E_Na`, `E_K`, `E_L`: reversal potentials, mV.
    - `C`: capacitance, µF/cm², above 0. `current`: I, µA/cm².
    - `temperature`: °C. Gates are faster by φ = 3^((temperature - 6.3)/10).
    - `stimulus`: a function of time (ms) that is added to the current, µA/cm²; any callable, a module too. So is the
      clamped input `x` of a call, if not None.

    Repetitive firing begins and ends in Hopf bifurcations at I = 9.7754 and 154.52.

    **Raises:** `ValueError` on a negative conductance or a capacitance not above 0.

    ```python
    neuron = ej.fields.HodgkinHuxley(current=10.0)
    rest = jnp.array([-65.0, 0.053, 0.596, 0.318])
    assert abs(neuron(0.0, rest)[0] - 10) < 0.1  # at rest all that drives it is the current
    ```
    """

    g_Na: Float[Array, "..."] = hyperparameter(default=120.0)
    g_K: Float[Array, "..."] = hyperparameter(default=36.0)
    g_L: Float[Array, "..."] = hyperparameter(default=0.3)
    E_Na: Float[Array, "..."] = hyperparameter(default=50.0)
    E_K: Float[Array, "..."] = hyperparameter(default=-77.0)
    E_L: Float[Array, "..."] = hyperparameter(default=-54.387)
    C: Float[Array, "..."] = hyperparameter(default=1.0)
    current: Float[Array, "..."] = hyperparameter(default=0.0)
    temperature: Float[Array, "..."] = hyperparameter(default=6.3)
    stimulus: Callable[[Any], Any] | None = None

    def __check_init__(self):
        check_sign(self, "a conductance in mS/cm²", "g_Na", "g_K", "g_L")
        check_sign(self, "a capacitance in µF/cm²", "C", zero=False)

    def rates(self, v: Inexact[Array, "*population"]) -> tuple[tuple[Array, Array], ...]:
        """Opening and closing rates (α, β) in 1/ms of m, h and n at the potential v in mV, at 6.3 °C."""
        return (
            (linoid((v + 40) / 10), 4 * jnp.exp(-(v + 65) / 18)),
            (0.07 * jnp.exp(-(v + 65) / 20), jax.nn.sigmoid((v + 35) / 10)),
            (0.1 * linoid((v + 55) / 10), 0.125 * jnp.exp(-(v + 65) / 80)),
        )

    def clamped(self, v: Any) -> Inexact[Array, "4 *population"]:
        """The state in which all gates have settled at the potential `v`, mV: a natural start."""
        v = scalar(v)
        return jnp.stack([v, *(alpha / (alpha + beta) for alpha, beta in self.rates(v))])

    def __call__(
        self, t: Any, z: Inexact[Array, "4 *population"], x: Any = None
    ) -> Inexact[Array, "4 *population"]:
        p = matched(self, z)
        v, m, h, n = z
        sodium = p.g_Na * m**3 * h * (v - p.E_Na)
        potassium = p.g_K * n**4 * (v - p.E_K)
        inward = injected(p, t, v, x) - sodium - potassium - p.g_L * (v - p.E_L)
        pace = 3 ** ((p.temperature - 6.3) / 10)
        gates = (
            pace * (alpha * (1 - gate) - beta * gate)
            for (alpha, beta), gate in zip(self.rates(v), (m, h, n), strict=True)
        )
        return jnp.stack([inward / p.C, *gates])


class MorrisLecar(AbstractForceField):
    """The barnacle muscle fibre (Morris & Lecar 1981), z = (V, w), with calcium in equilibrium:

    `C V̇ = I - g_Ca m∞(V) (V - E_Ca) - g_K w (V - E_K) - g_L (V - E_L)`, `ẇ = φ (w∞(V) - w) cosh((V - V₃)/2V₄)`,
    `m∞ = ½ (1 + tanh((V - V₁)/V₂))`, `w∞ = ½ (1 + tanh((V - V₃)/V₄))`.

    The defaults are the set in which firing begins and ends in Hopf bifurcations, at I = 93.858 and 212.02 (Rinzel &
    Ermentrout 1989, "Analysis of neural excitability and oscillations"). Populations, `stimulus`, `x` and errors are
    those of `HodgkinHuxley`.

    **Arguments:** `g_Ca`, `g_K`, `g_L`: mS/cm². `E_Ca`, `E_K`, `E_L`, `V1` to `V4`: mV. `C`: µF/cm². `rate`: φ, 1/ms.
    `current`: I, µA/cm².

    ```python
    neuron = ej.fields.MorrisLecar(current=100.0)
    assert neuron(0.0, jnp.array([-60.0, 0.0])).shape == (2,)
    ```
    """

    g_Ca: Float[Array, "..."] = hyperparameter(default=4.4)
    g_K: Float[Array, "..."] = hyperparameter(default=8.0)
    g_L: Float[Array, "..."] = hyperparameter(default=2.0)
    E_Ca: Float[Array, "..."] = hyperparameter(default=120.0)
    E_K: Float[Array, "..."] = hyperparameter(default=-84.0)
    E_L: Float[Array, "..."] = hyperparameter(default=-60.0)
    V1: Float[Array, "..."] = hyperparameter(default=-1.2)
    V2: Float[Array, "..."] = hyperparameter(default=18.0)
    V3: Float[Array, "..."] = hyperparameter(default=2.0)
    V4: Float[Array, "..."] = hyperparameter(default=30.0)
    C: Float[Array, "..."] = hyperparameter(default=20.0)
    rate: Float[Array, "..."] = hyperparameter(default=0.04)
    current: Float[Array, "..."] = hyperparameter(default=0.0)
    stimulus: Callable[[Any], Any] | None = None

    def __check_init__(self):
        check_sign(self, "a conductance in mS/cm²", "g_Ca", "g_K", "g_L")
        check_sign(self, "a capacitance in µF/cm²", "C", zero=False)

    def __call__(
        self, t: Any, z: Inexact[Array, "2 *population"], x: Any = None
    ) -> Inexact[Array, "2 *population"]:
        p = matched(self, z)
        v, w = z
        calcium = p.g_Ca * 0.5 * (1 + jnp.tanh((v - p.V1) / p.V2)) * (v - p.E_Ca)
        potassium = p.g_K * w * (v - p.E_K)
        inward = injected(p, t, v, x) - calcium - potassium - p.g_L * (v - p.E_L)
        depth = (v - p.V3) / p.V4
        opening = p.rate * (0.5 * (1 + jnp.tanh(depth)) - w) * jnp.cosh(depth / 2)
        return jnp.stack([inward / p.C, opening])


def linoid(u: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """`u / (1 - exp(-u))`, which is 1 at the removable singularity u = 0; right there in every derivative."""
    # Bernoulli's series, to eps within 0.5; the quotient's derivatives lose digits like 1/u² and more.
    near = jnp.abs(u) < 0.5
    inside = jnp.where(near, u, jnp.zeros_like(u))
    outside = jnp.where(near, jnp.ones_like(u), u)
    square, tail = inside * inside, jnp.zeros_like(u)
    for coefficient in _BERNOULLI:
        tail = (tail + coefficient) * square
    return jnp.where(near, 1 + inside / 2 + tail, -outside / jnp.expm1(-outside))


# B_2k / (2k)! for k = 7 … 1
_BERNOULLI = (
    1 / 74724249600,
    -691 / 1307674368000,
    1 / 47900160,
    -1 / 1209600,
    1 / 30240,
    -1 / 720,
    1 / 12,
)


def matched(field: Any, z: Inexact[Array, "..."]) -> Any:
    """The field with all its numbers in the type of the state."""
    cast = lambda leaf: leaf.astype(z.dtype) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(cast, field)


def injected(field: Any, t: Any, v: Array, x: Any) -> Array:
    """Constant current, stimulus and clamped input together."""
    current = field.current
    for extra in (x, None if field.stimulus is None else field.stimulus(t)):
        if extra is not None:
            current = current + jnp.asarray(extra).astype(v.dtype)
    return current


def check_sign(field: Any, what: str, *names: str, zero: bool = True) -> None:
    """Refuse what is below 0 (or 0, if that is no value for it either), where it is known."""
    for name in names:
        if rejected(field, name, lambda value: ~(value >= 0 if zero else value > 0)):
            bound = "at least 0" if zero else "above 0"
            raise ValueError(f"`{name}` is {what} and must be {bound}, got {getattr(field, name)}.")


def rejected(field: Any, name: str, wrong: Callable[[Any], Any]) -> bool:
    """Whether a parameter has a value already, and one that is `wrong`."""
    value = getattr(field, name)
    # NumPy, because under `jit` JAX would trace even what it does with constants.
    known = eqx.is_array(value) and not isinstance(value, Tracer)
    return known and bool(np.any(wrong(np.asarray(value))))
