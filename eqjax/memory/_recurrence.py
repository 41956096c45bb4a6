"""Short-term memory: a recurrent network along the tokens, added to the hidden states."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from .. import analytic
from ..language import RecurrentLayer


class ShortTermMemory(eqx.Module):
    """`h + gate · (r W)`, where r is what a recurrent cell makes of the normalised h. The gate starts at 0: the identity.

    The state comes in and goes out, so that one segment or many give the same.

    **Arguments:** `cell`: such as `equinox.nn.GRUCell`, `equinox.nn.LSTMCell` or `eqjax.language.SimpleRNNCell`, called as
    `cell(width, units, key=key)`. `width`: C. `units`: of the cell, C by default. `dtype`: of everything.
    """

    recurrent: RecurrentLayer
    weight: Float[Array, "r c"]
    gate: Float[Array, " c"]

    def __init__(
        self,
        cell: Callable[..., Any],
        width: int,
        *,
        units: int | None = None,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        units, dtype = units or width, jnp.result_type(float) if dtype is None else dtype
        k1, k2 = jax.random.split(key)
        self.recurrent = analytic.tree_cast(RecurrentLayer(cell(width, units, key=k1)), dtype)
        self.weight = jax.random.normal(k2, (units, width), dtype) * units**-0.5
        self.gate = jnp.zeros(width, dtype)

    def initial(self) -> PyTree[Array]:
        """The state before the first token, all zero."""
        return self.recurrent.initial()

    def __call__(
        self, h: Float[Array, "t c"], state: PyTree[Array], mask: Bool[Array, " t"]
    ) -> tuple[Float[Array, "t c"], PyTree[Array]]:
        """**Arguments:** `h (t, C)`; `state`; `mask (t,)`: false for padding, at which the state stands still.

        **Returns:** the new hidden states, and the state after the last token.
        """

        def cell(inputs, state):
            x, real = inputs
            new = self.recurrent.cell(x, state)
            return jax.tree.map(lambda a, b: jnp.where(real, a, b), new, state)

        state, states = RecurrentLayer(cell)((analytic.layer_norm(h), mask), state)
        # Of a state in several parts, as the pair of an LSTM, the first is the output.
        r = jax.tree.leaves(states)[0]
        return h + self.gate[None] * (r @ self.weight), state
