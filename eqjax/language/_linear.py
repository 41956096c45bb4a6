"""The affine maps of a transformer, of which adapters and 4-bit weights are other kinds."""

import abc

import equinox as eqx
from jaxtyping import Array, Float


class AbstractLinear(eqx.Module):
    """An affine map of `(t, i)` to `(t, o)`; in a stack of blocks its arrays have a leading layer axis."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
        """The map of every row."""

    @abc.abstractmethod
    def plain(self) -> "Linear":
        """The same map as a `Linear`."""


class Linear(AbstractLinear):
    """`x W + b`, with `W (i, o)` as in GPT-2's `Conv1D`."""

    weight: Float[Array, "*l i o"]
    bias: Float[Array, "*l o"]

    def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
        return x @ self.weight + self.bias[None]

    def plain(self) -> "Linear":
        return self
