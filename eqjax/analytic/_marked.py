"""Loops over the few marked places of a long array."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

_BITS = 32


def for_marked(
    mask: Bool[Array, " n"], body: Callable[[Int[Array, ""], Any], Any], start: PyTree
) -> PyTree:
    """`state = body(j, state)` for every j with `mask[j]`, in order: as many rounds as there are such places.

    On a CPU, where few of thousands are marked; under `vmap` all samples wait for the one with most.

    **Arguments:** `mask`; `body`, which keeps the structure of the state; `start`: the state before the first.

    **Returns:** the state after the last.

    ```python
    mask = jnp.array([True, False, True, False])
    assert ej.analytic.for_marked(mask, lambda j, total: total + j, jnp.asarray(0)) == 2
    ```
    """
    # A listing by cumulated sums takes five times as long as all that follows; words of bits are soon searched.
    marks = jnp.pad(mask, (0, -mask.size % _BITS)).reshape(-1, _BITS)
    worth = jnp.left_shift(jnp.uint32(1), jnp.arange(_BITS, dtype=jnp.uint32))
    words = jnp.sum(jnp.where(marks, worth, jnp.uint32(0)), axis=1, dtype=jnp.uint32)

    def one(carry):
        words, state = carry
        at = jnp.argmax(words != 0)
        lowest = words[at] & -words[at]
        j = at * _BITS + (_BITS - 1 - lax.clz(lowest)).astype(at.dtype)
        return words.at[at].set(words[at] ^ lowest), body(j, state)

    return lax.while_loop(lambda carry: jnp.any(carry[0] != 0), one, (words, start))[1]
