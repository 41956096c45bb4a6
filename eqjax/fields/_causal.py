"""Fields of tokens in which a token feels itself and the ones before it."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Int, PyTree

from ._base import AbstractForceField


class AbstractCausalField(AbstractForceField):
    """A field on `z (T, C)` with input `x (T, C)` in which token t feels the tokens s ≤ t only, and those only through
    what is remembered of them (keys and values).

    So its Jacobian is block lower triangular in tokens: its eigenvalues are those of the T own blocks `∂F_t/∂z_t`, its
    equilibrium is found token after token, and its adjoint from the last token back to the first. The plain call
    `field(t, z, x)` must be `given(t, z, x, remember(z), causal_mask(T))`.
    """

    @abc.abstractmethod
    def remember(self, z: Inexact[Array, "n c"]) -> PyTree[Array]:
        """What tokens leave for later ones to see: arrays with a leading axis of n tokens, each token by itself."""

    @abc.abstractmethod
    def given(
        self,
        t: Any,
        z: Inexact[Array, "n c"],
        x: Inexact[Array, "n c"],
        memory: PyTree[Array],
        seen: Bool[Array, "n m"],
    ) -> Inexact[Array, "n c"]:
        """The force on n tokens, of which each sees those of the m remembered ones that `seen` allows (itself among
        them)."""

    def after(
        self,
        t: Any,
        z: Inexact[Array, "n c"],
        x: Inexact[Array, "n c"],
        past: PyTree[Array],
        start: Int[Array, ""] | int,
    ) -> Inexact[Array, "n c"]:
        """The force on tokens `start … start + n - 1`: row by row that of the plain call. `past`: the memory of all T
        tokens, of which only entries before `start` are read."""
        memory = written(past, self.remember(z), start)
        size = jax.tree.leaves(memory)[0].shape[0]
        seen = jnp.arange(size)[None] <= start + jnp.arange(z.shape[0])[:, None]
        return self.given(t, z, x, memory, seen)

    def alone(
        self, t: Any, z: Inexact[Array, "n c"], x: Inexact[Array, "n c"], past: PyTree[Array]
    ) -> Inexact[Array, "n c"]:
        """The force on every token with the ones before it held at `past`, the memory of all n: that of the plain call where
        `past` is `remember(z)`, but its Jacobian has the own blocks only."""
        each = jnp.arange(z.shape[0])
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), past, self.remember(z))
        seen = jnp.concatenate([each[None] < each[:, None], each[None] == each[:, None]], axis=1)
        return self.given(t, z, x, both, seen)


def written(
    memory: PyTree[Array], new: PyTree[Array], start: Int[Array, ""] | int
) -> PyTree[Array]:
    """The memory with entries `new` from index `start`.

    ```python
    assert ej.fields.written(start, jnp.ones(1), 2).tolist() == [0, 0, 1, 0]
    ```
    """
    place = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
    return jax.tree.map(place, memory, new)
