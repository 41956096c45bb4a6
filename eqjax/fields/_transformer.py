"""The equilibrium transformer block in its thick, energy and real modes (see `monotone` for the fourth).

State `z (T, C)` per sample, clamped input `x (T, C)`; leak `c`, attention gain `α` (it scales W_O).
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, PRNGKeyArray, PyTree

from .._checks import check_count, check_key
from ..analytic import scale, shift
from ._base import (
    AbstractEnergyField,
    AbstractSplitField,
    hyperparameter,
    negative_gradient,
    scalar,
)
from ._causal import AbstractCausalField
from ._parts import MLP, Attention, AttentionEnergy, HopfieldEnergy, LayerNorm, check_heads

_State = Inexact[Array, "t c"]


def _sublayers(
    attention: type,
    second: type,
    width: int,
    heads: int,
    qknorm: bool,
    residual_scale: float,
    expansion: int,
    key: PRNGKeyArray,
) -> tuple[LayerNorm, Any, LayerNorm, Any]:
    """Both sublayers of a block, each after its norm."""
    check_heads(width, heads)
    check_count(expansion=expansion)
    check_key(key=key)
    k1, k2 = jax.random.split(key)
    return (
        LayerNorm(width),
        attention(width, heads, qknorm=qknorm, residual_scale=residual_scale, key=k1),
        LayerNorm(width),
        second(width, expansion=expansion, residual_scale=residual_scale, key=k2),
    )


class ThickBlock(AbstractSplitField, AbstractCausalField):
    """The pre-LN transformer block as a force, causal and non-reciprocal:

    `F(z) = x - (1 + c) z + α Attn(LN₁ z) + MLP(LN₂ z)`.

    **Arguments:**

    - `width`: channels C. `heads`: must divide `width`.
    - `leak`: c, `attention_gain`: α; scalar arrays that training leaves alone.
    - `qknorm`: RMS-normalise queries and keys per head.
    - `residual_scale`: factor on the initial W_O and W_down.
    - `expansion`: hidden width of the MLP over C. `key`: random key of the initial weights.

    ```python
    block = ej.fields.ThickBlock(width=4, heads=2, leak=1.0, key=key)
    assert block(0.0, tokens, tokens).shape == tokens.shape and block.causal
    ```
    """

    causal: ClassVar[bool] = True
    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    leak: Float[Array, ""] = hyperparameter()
    attention_gain: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        leak: float = 1.0,
        attention_gain: float = 1.0,
        qknorm: bool = False,
        residual_scale: float = 1.0,
        expansion: int = 4,
        key: PRNGKeyArray,
    ):
        parts = _sublayers(Attention, MLP, width, heads, qknorm, residual_scale, expansion, key)
        self.norm1, self.attention, self.norm2, self.mlp = parts
        self.leak, self.attention_gain = scalar(leak), scalar(attention_gain)

    def reciprocal(self, t: Any, z: _State, x: _State) -> _State:
        return shift(scale(z, -(1 + self.leak)), x)

    def nonreciprocal(self, t: Any, z: _State, x: _State) -> _State:
        return self.attended(z) + self.transformed(z)

    def remember(self, z: _State) -> tuple[Array, Array]:
        return self.attention.remember(self.norm1(z))

    def given(
        self, t: Any, z: _State, x: _State, memory: PyTree[Array], seen: Bool[Array, "t m"]
    ) -> _State:
        return self.reciprocal(t, z, x) + self.attended(z, memory, seen) + self.transformed(z)

    def attended(
        self,
        z: _State,
        memory: PyTree[Array] = None,
        seen: Bool[Array, "t m"] | None = None,
    ) -> _State:
        """The attention branch, `α Attn(LN₁ z)`."""
        return scale(self.attention(self.norm1(z), memory, seen), self.attention_gain)

    def attends(self, z: _State) -> Inexact[Array, "h t t"]:
        """How much every token attends to itself and each before it, `(heads, T, T)`: rows that sum to 1."""
        return self.attention.weights(self.norm1(z))

    def transformed(self, z: _State) -> _State:
        """The MLP branch, `MLP(LN₂ z)`."""
        return self.mlp(self.norm2(z))


class EnergyBlock(AbstractEnergyField):
    """The conservative block: attention and memory are tied and the force is `-∂E/∂z` of

    `E(z) = (1 + c)/2 ‖z‖² - ⟨x, z⟩ + α E_attn(LN₁ z) + E_memory(LN₂ z)`,

    differentiated *through* the layer norms, so the Jacobian is symmetric. The energy is bounded below,
    because layer-normed states are bounded.

    Symmetric attention lets a key feel later queries: the block is **not causal** (`causal` is false) and
    next-token training refuses it.

    **Arguments:** as `ThickBlock`; `residual_scale` scales the initial patterns, queries and keys.

    ```python
    block = ej.fields.EnergyBlock(width=4, heads=2, key=key)
    assert not block.causal  # a key feels later queries
    ```
    """

    causal: ClassVar[bool] = False
    norm1: LayerNorm
    attention: AttentionEnergy
    norm2: LayerNorm
    memory: HopfieldEnergy
    leak: Float[Array, ""] = hyperparameter()
    attention_gain: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        leak: float = 1.0,
        attention_gain: float = 1.0,
        qknorm: bool = False,
        residual_scale: float = 1.0,
        expansion: int = 4,
        key: PRNGKeyArray,
    ):
        parts = _sublayers(
            AttentionEnergy, HopfieldEnergy, width, heads, qknorm, residual_scale, expansion, key
        )
        self.norm1, self.attention, self.norm2, self.memory = parts
        self.leak, self.attention_gain = scalar(leak), scalar(attention_gain)

    def energy(self, z: _State, x: _State) -> Inexact[Array, ""]:
        confinement = 0.5 * jnp.sum(scale(z * z, 1 + self.leak)) - jnp.sum(scale(z, x))
        attended = scale(self.attention(self.norm1(z)), self.attention_gain)
        return confinement + attended + self.memory(self.norm2(z))


class RealBlock(AbstractSplitField, AbstractCausalField):
    """Conservative clamp and memory plus a damped non-reciprocal attention:

    `F(z) = x - z - ∂E_memory(LN₂ z)/∂z + s (α Attn(LN₁ z) - c z)`.

    At `s = 0` the block is a causal gradient flow; `s` turns the non-reciprocal part on.

    **Arguments:** as `ThickBlock`, and `nonreciprocity`: s, a scalar that training leaves alone.

    ```python
    block = ej.fields.RealBlock(width=4, heads=2, nonreciprocity=0.5, key=key)
    assert block.causal
    ```
    """

    causal: ClassVar[bool] = True
    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    memory: HopfieldEnergy
    leak: Float[Array, ""] = hyperparameter()
    attention_gain: Float[Array, ""] = hyperparameter()
    nonreciprocity: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        leak: float = 1.0,
        attention_gain: float = 1.0,
        nonreciprocity: float = 1.0,
        qknorm: bool = False,
        residual_scale: float = 1.0,
        expansion: int = 4,
        key: PRNGKeyArray,
    ):
        parts = _sublayers(
            Attention, HopfieldEnergy, width, heads, qknorm, residual_scale, expansion, key
        )
        self.norm1, self.attention, self.norm2, self.memory = parts
        self.leak, self.attention_gain = scalar(leak), scalar(attention_gain)
        self.nonreciprocity = scalar(nonreciprocity)

    def reciprocal(self, t: Any, z: _State, x: _State) -> _State:
        pull = negative_gradient(lambda state: self.memory(self.norm2(state)), z)
        return shift(pull - z, x)

    def nonreciprocal(
        self,
        t: Any,
        z: _State,
        x: _State,
        memory: PyTree[Array] = None,
        seen: Bool[Array, "t m"] | None = None,
    ) -> _State:
        attended = scale(self.attention(self.norm1(z), memory, seen), self.attention_gain)
        return scale(attended - scale(z, self.leak), self.nonreciprocity)

    def attends(self, z: _State) -> Inexact[Array, "h t t"]:
        """How much every token attends to itself and each before it, `(heads, T, T)`: rows that sum to 1."""
        return self.attention.weights(self.norm1(z))

    def remember(self, z: _State) -> tuple[Array, Array]:
        return self.attention.remember(self.norm1(z))

    def given(
        self, t: Any, z: _State, x: _State, memory: PyTree[Array], seen: Bool[Array, "t m"]
    ) -> _State:
        return self.reciprocal(t, z, x) + self.nonreciprocal(t, z, x, memory, seen)
