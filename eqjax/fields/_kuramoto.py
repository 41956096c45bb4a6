"""Phase oscillators that pull each other into step; the input `x` of the fields is not used."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from .. import analytic
from .._checks import check_array
from ._base import AbstractForceField, hyperparameter


class Kuramoto(AbstractForceField):
    """`θ̇_i = ω_i + (K/n) Σ_j sin(θ_j - θ_i)` (Kuramoto 1975), every oscillator coupled to every other.

    By the order parameter, `θ̇_i = ω_i + K r sin(ψ - θ_i)`, in O(n). For many oscillators with a symmetric unimodal
    density g of frequencies, r departs from 0 at `K_c = 2 / (π g(0))`; for a Lorentzian of half-width γ,
    `r = √(1 - 2γ/K)` beyond K_c = 2γ.

    **Arguments:** `frequencies (n,)`: ω in rad per unit of time. `coupling`: K.

    ```python
    oscillators = ej.fields.Kuramoto(jnp.array([-1.0, 1.0]), coupling=2.0)
    assert jnp.abs(oscillators(0.0, jnp.array([-0.25, 0.25]) * jnp.pi)).max() < 1e-12  # locked: 2 ω = K sin Δθ
    ```
    """

    frequencies: Float[Array, " n"]
    coupling: Float[Array, ""] = hyperparameter(default=1.0)

    def __call__(self, t: Any, z: Inexact[Array, " n"], x: Any = None) -> Inexact[Array, " n"]:
        check_phases(z, self.frequencies)
        sine, cosine = jnp.sin(z), jnp.cos(z)
        pull = jnp.mean(sine) * cosine - jnp.mean(cosine) * sine
        return analytic.shift(analytic.scale(pull, self.coupling), self.frequencies)


class KuramotoNetwork(AbstractForceField):
    """`θ̇_i = ω_i + Σ_j W_ij sin(θ_j - θ_i)`, on any network, directed or signed. O(n²), by two products with W.

    `KuramotoNetwork(frequencies, jnp.full((n, n), K / n))` is `Kuramoto(frequencies, K)`.

    **Arguments:** `frequencies (n,)`: ω in rad per unit of time. `weight (n, n)`: `weight[i, j]` is how j pulls i.

    **Raises:** `ValueError` if the weight is not square or not of the oscillators' number.

    ```python
    oscillators = ej.fields.KuramotoNetwork(two, jnp.zeros((2, 2)))
    assert jnp.all(oscillators(0.0, two) == two)  # each by itself
    ```
    """

    frequencies: Float[Array, " n"]
    weight: Float[Array, "_ _"]

    def __check_init__(self):
        check_coupling(self.weight, self.frequencies.size)

    def __call__(self, t: Any, z: Inexact[Array, " n"], x: Any = None) -> Inexact[Array, " n"]:
        check_phases(z, self.frequencies)
        sine, cosine = jnp.sin(z), jnp.cos(z)
        pull = jnp.stack([sine, cosine])
        from_sine, from_cosine = analytic.matmul(pull, self.weight.T)
        return analytic.shift(cosine * from_sine - sine * from_cosine, self.frequencies)


def order_parameter(phases: Float[Array, "*batch n"]) -> Complex[Array, "*batch"]:
    """`r e^{iψ} = mean_j e^{iθ_j}` over the last axis: r is 1 in step, and about n^-½ for phases at random.

    **Arguments:** `phases (…, n)`, rad. **Returns:** a complex array (…).

    ```python
    assert jnp.isclose(jnp.abs(ej.fields.order_parameter(x)), 1)  # all in step
    ```
    """
    return jax.lax.complex(jnp.mean(jnp.cos(phases), axis=-1), jnp.mean(jnp.sin(phases), axis=-1))


def check_coupling(weight: Any, size: int) -> None:
    """Refuse a coupling that is no square matrix of the network's size."""
    check_array(np.floating, 2, "a square matrix, (n, n)", weight=weight)
    if weight.shape != (size, size):
        raise ValueError(
            f"`weight` couples {size} units and must have the shape {(size, size)}, got {weight.shape}: `weight[i, j]` "
            "is the effect of j on i. Pad with zeros where there is no connection."
        )


def check_phases(z: Array, frequencies: Array) -> None:
    if z.shape != frequencies.shape:
        raise ValueError(
            f"The state has the shape {z.shape}, but there are {frequencies.size} oscillators: one phase each."
        )
