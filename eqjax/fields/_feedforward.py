"""Feed-forward networks as force fields: the forward pass is where they settle."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from .. import analytic
from .._checks import check_count, check_key, check_kind
from ._base import AbstractForceField
from ._model import EquilibriumModel, clamp
from ._parts import normal

States = tuple[Inexact[Array, " _"], ...]


class FeedForward(AbstractForceField):
    """A feed-forward network whose layers relax towards what the layer below asks of them:

    `F_k = -h_k + σ(h_{k-1} W_k + b_k)`, k = 1 … L, with `h_0 = x` and the last layer linear. The state is (h_1, …, h_L).

    There is one equilibrium, the forward pass, and every solver finds it: `J + 1` is nilpotent, so that Picard with ε = 1
    is there after L steps. Its adjoint equation `Jᵀa = -∂L/∂z` is back-propagation (LeCun 1988; Scellier & Bengio 2017).

    **Arguments:** `sizes`: of the input and of every layer, at least two numbers. `activation`: σ of the hidden layers,
    by default the logistic function; holomorphic if complex states are wanted. `key`: random key of the weights.

    **Raises:** `ValueError` for fewer than two sizes, or one below 1.

    ```python
    network = ej.fields.FeedForward([4, 3, 2], key=key)
    force = network(0.0, (jnp.zeros(3), jnp.zeros(2)), x)
    assert [f.shape for f in force] == [(3,), (2,)]
    ```
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    activation: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Callable[[Any], Any] = jax.nn.sigmoid,
        key: PRNGKeyArray,
    ):
        check_kind((tuple, list), "a list of whole numbers", sizes=sizes)
        for size in sizes:
            check_count(0, sizes=size)
        check_key(key=key)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                "`sizes` must name the input and at least one layer, each with one unit or more, such as (2, 4, 1); got "
                f"{tuple(sizes)}."
            )
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = itertools.pairwise(sizes)
        self.weights = tuple(normal(k, s, s[0] ** -0.5) for k, s in zip(keys, shapes, strict=True))
        self.biases = tuple(jnp.zeros(size) for size in sizes[1:])
        self.activation = activation

    def layer(self, k: int, below: Inexact[Array, " _"]) -> Inexact[Array, " _"]:
        """What the k-th layer is asked for, k = 0 … L-1, by the layer below it."""
        asked = analytic.shift(analytic.matmul(below, self.weights[k]), self.biases[k])
        return asked if k == len(self.weights) - 1 else self.activation(asked)

    def forward(self, x: Inexact[Array, " _"]) -> States:
        """The forward pass, all layers of it: the equilibrium under x. The last is the output."""
        layers = range(len(self.weights))
        states = itertools.accumulate(layers, lambda h, k: self.layer(k, h), initial=x)
        return tuple(states)[1:]

    def initial(self, x: Inexact[Array, " _"]) -> States:
        """The state at rest: all layers zero."""
        return tuple(jnp.zeros(bias.shape, x.dtype) for bias in self.biases)

    def __call__(self, t: Any, z: States, x: Inexact[Array, " _"]) -> States:
        below = (x, *z[:-1])
        return tuple(self.layer(k, h) - z[k] for k, h in enumerate(below))


class _Rest(eqx.Module):
    """`x -> z0`: layers of the given sizes, all zero."""

    sizes: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x):
        return tuple(jnp.zeros(size, x.dtype) for size in self.sizes)


def _last(states):
    return states[-1]


def feed_forward_model(
    sizes: Sequence[int],
    *,
    activation: Callable[[Any], Any] = jax.nn.sigmoid,
    key: PRNGKeyArray,
) -> EquilibriumModel:
    """A `FeedForward` network as a model: inputs `(sizes[0],)` are clamped, the last layer `(sizes[-1],)` answers.

    **Arguments, raises:** as for `FeedForward`.

    ```python
    network = ej.fields.feed_forward_model([4, 3, 2], key=key)
    assert [h.shape for h in network.initial(x)] == [(3,), (2,)]
    ```
    """
    field = FeedForward(sizes, activation=activation, key=key)
    return EquilibriumModel(
        encoder=clamp, field=field, decoder=_last, start=_Rest(tuple(sizes[1:]))
    )
