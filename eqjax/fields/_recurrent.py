"""Recurrent networks as force fields."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from .. import analytic
from .._checks import (
    check_callable,
    check_count,
    check_key,
    check_memory,
    check_not_negative,
    check_number,
)
from ._base import AbstractForceField, hyperparameter, scalar
from ._parts import normal


class RecurrentField(AbstractForceField):
    """A rate network `F(z) = x - z + φ(z) W + b` whose coupling has bounded strength and asymmetry:

    `W = γ (√(1 - r²) S/‖S‖_F + r A/‖A‖_F)`, S and A the symmetric and antisymmetric parts of the weight.

    Then `‖W‖_F = γ` and `‖antisym(W)‖_F / ‖W‖_F = r` exactly, whatever training does to the weight.

    **Arguments:** `size`: units n ≥ 2. `strength`: γ ≥ 0. `asymmetry`: r in [0, 1]. `activation`: φ, holomorphic
    if complex states are wanted (tanh by default). `key`: random key of the weight.
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
