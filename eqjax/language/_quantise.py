"""Frozen 4-bit weights: NormalFloat-4 in blocks (QLoRA, Dettmers et al. 2023)."""

import math
from statistics import NormalDist
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8

from ._linear import AbstractLinear, Linear
from ._lora import AdaptedLinear, each_linear

_Model = TypeVar("_Model", bound=PyTree)
_BLOCK = 64


def _levels() -> tuple[float, ...]:
    quantile, tail = NormalDist().inv_cdf, (1 - 1 / 30 + 1 - 1 / 32) / 2
    below, above = ([quantile(tail + (0.5 - tail) * i / n) for i in range(n)] for n in (7, 8))
    return tuple(x / above[0] for x in (*(-q for q in below), 0.0, *reversed(above)))


# Quantiles of a normal distribution, 7 below and 8 above an exact 0, scaled to [-1, 1] (appendix E of the paper).
NF4 = _levels()


class QuantisedLinear(AbstractLinear):
    """`x W + b` with W in 4 bits: `codes` holds two of the 16 levels in a byte, `largest` scales blocks of 64."""

    codes: UInt8[Array, "*l n half"]
    largest: Float[Array, "*l n"] = eqx.field(metadata={"hyperparameter": True})
    bias: Float[Array, "*l o"] = eqx.field(metadata={"hyperparameter": True})
    inputs: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
        return self.plain()(x)

    def plain(self) -> Linear:
        codes = jnp.stack([self.codes >> 4, self.codes & 15], axis=-1)
        values = jnp.asarray(NF4, self.largest.dtype)[codes.astype(jnp.int32)]
        *layers, n, half, _ = values.shape
        shape = (*layers, self.inputs, self.bias.shape[-1])
        values = values.reshape(*layers, n, 2 * half) * self.largest[..., None]
        values = values.reshape(*layers, -1)[..., : math.prod(shape[-2:])]
        return Linear(values.reshape(shape), self.bias)


def _quantised(linear: Linear) -> QuantisedLinear:
    *layers, i, o = linear.weight.shape
    flat = linear.weight.reshape(*layers, i * o)
    flat = jnp.pad(flat, [(0, 0)] * len(layers) + [(0, -(i * o) % _BLOCK)])
    blocks = flat.reshape(*layers, -1, _BLOCK)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    levels = jnp.asarray(NF4, blocks.dtype)
    unit = blocks / jnp.where(largest == 0, 1, largest)[..., None]
    # The nearest level is found by the midpoints between them.
    codes = jnp.searchsorted((levels[1:] + levels[:-1]) / 2, unit).astype(jnp.uint8)
    pairs = codes.reshape(*codes.shape[:-1], -1, 2)
    return QuantisedLinear((pairs[..., 0] << 4) | pairs[..., 1], largest, linear.bias, i)


def quantise(model: _Model) -> _Model:
    """The model with its linear maps in frozen 4-bit weights, also those under adapters.

    Embeddings, layer norms and biases stay as they are. A weight takes 4 bits and 1/64 number. Training leaves the
    quantised maps alone; `lora(quantise(model), …)` is QLoRA, `merge` writes the weights out again.
    """

    def small(_, node):
        if isinstance(node, AdaptedLinear):
            return AdaptedLinear(small(_, node.base), node.a, node.b, node.scale)
        return _quantised(node) if isinstance(node, Linear) else node

    return each_linear(small, model)
