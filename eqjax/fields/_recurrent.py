"""Recurrent networks as force fields."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from .. import analytic
from .._checks import (
    check_array,
    check_callable,
    check_count,
    check_key,
    check_memory,
    check_not_negative,
    check_number,
    refuse,
)
from ._base import AbstractForceField, hyperparameter, scalar
from ._parts import normal


class RecurrentField(AbstractForceField):
    """A rate network `F(z) = x - z + φ(z) W + b` whose coupling has bounded strength and asymmetry:

    `W = γ (√(1 - r²) S/‖S‖_F + r A/‖A‖_F)`, S and A the symmetric and antisymmetric parts of the weight.

    Then `‖W‖_F = γ` and `‖antisym(W)‖_F / ‖W‖_F = r` exactly, whatever training does to the weight.

    **Arguments:** `size`: units n ≥ 2. `strength`: γ ≥ 0. `asymmetry`: r in [0, 1]. `activation`: φ, holomorphic
    if complex states are wanted (tanh by default). `key`: random key of the weight.

    ```python
    network = ej.fields.RecurrentField(4, strength=0.5, asymmetry=0.8, key=key)
    assert jnp.all(network(0.0, start, x) == x + network.bias)
    ```
    """

    activation: Callable[[Any], Any] = eqx.field(static=True)
    weight: Float[Array, "n n"]
    bias: Float[Array, " n"]
    strength: Float[Array, ""] = hyperparameter()
    asymmetry: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        size: int,
        *,
        strength: float = 1.0,
        asymmetry: float = 0.5,
        activation: Callable[[Any], Any] = jnp.tanh,
        key: PRNGKeyArray,
    ):
        check_count(0, size=size)
        check_key(key=key)
        check_callable("of an array, such as `jnp.tanh`", activation=activation)
        check_memory(f"`size` {size}: the weight", 4.0 * size * size)
        if size < 2:
            raise ValueError(f"`size` must be at least 2 (one unit has no asymmetry), got {size}.")
        # The ratio ‖antisym(W)‖/‖W‖, and a norm.
        check_number("lie in [0, 1]", lambda v: 0 <= v <= 1, asymmetry=asymmetry)
        check_not_negative(strength=strength)
        self.weight, self.bias = normal(key, (size, size), size**-0.5), jnp.zeros(size)
        self.strength, self.asymmetry = scalar(strength), scalar(asymmetry)
        self.activation = activation

    def coupling(self) -> Float[Array, "n n"]:
        """The effective weight W."""
        symmetric = 0.5 * (self.weight + self.weight.T)
        antisymmetric = 0.5 * (self.weight - self.weight.T)
        r = self.asymmetry
        return self.strength * (
            jnp.sqrt(1 - r * r) * symmetric / jnp.linalg.norm(symmetric)
            + r * antisymmetric / jnp.linalg.norm(antisymmetric)
        )

    def __call__(
        self, t: Any, z: Inexact[Array, " n"], x: Inexact[Array, " n"]
    ) -> Inexact[Array, " n"]:
        driven = analytic.matmul(self.activation(z), self.coupling()) - z
        return analytic.shift(driven, x + self.bias)


class GainNetwork(AbstractForceField):
    """A rate network whose coupling has a gain, `F(z) = x - z + α W tanh z`: the smallest field that is lost in two ways.

    By default two neurons, of which all is known: the origin has the eigenvalues `-1 + α (5/4 ± i)`. The flow loses it at
    α = .8 in a Hopf bifurcation with ω = .8, Euler's steps with ε = 1 at α = .6247 already.

    **Arguments:** `gain`: α. `weight`: W `(n, n)`, where `weight[i, j]` is how j drives i. The input x `(n,)` may be None.

    **Raises:** `ValueError` if the weight is not square.

    ```python
    network = ej.fields.GainNetwork(gain=0.5)
    assert not network(0.0, jnp.zeros(2)).any()
    ```
    """

    gain: Float[Array, ""] = hyperparameter(default=0.1)
    weight: Float[Array, "_ _"] = eqx.field(
        default_factory=lambda: jnp.array([[1.25, -1.0], [1.0, 1.25]])
    )

    def __check_init__(self):
        check_array(np.floating, 2, "a square matrix, (n, n)", weight=self.weight)
        if self.weight.shape[0] != self.weight.shape[1]:
            refuse("weight", "be a square matrix, (n, n)", self.weight)

    def __call__(
        self, t: Any, z: Inexact[Array, " n"], x: Inexact[Array, " n"] | None = None
    ) -> Inexact[Array, " n"]:
        driven = analytic.scale(analytic.matmul(jnp.tanh(z), self.weight.T), self.gain) - z
        return driven if x is None else analytic.shift(driven, x)
