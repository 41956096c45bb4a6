"""A bounded external memory of keys and values: what a slot holds, how tokens are written, which slot gives way."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ..analytic import at_least_float32


class Slots(eqx.Module):
    """S slots of memory for H heads of width d; with no leading axis, what one slot holds. Empty ones are all zero.

    - `key`, `value (S, H, d)`. `valid (S,)`: false for an empty slot.
    - `salience (S,)`: weight of the slot in a softmax, as if it were there so many times; of a token in (0, 1).
    - `written (S,)`: number of the token that was written. `segment (S,)`: of the segment it was in.
    - `mass (S,)`: attention received so far, mean over the heads. `reads (S,)`: from so many queries.
    """

    key: Float[Array, "*s h d"]
    value: Float[Array, "*s h d"]
    valid: Bool[Array, "*s"]
    salience: Float[Array, "*s"]
    written: Int[Array, "*s"]
    segment: Int[Array, "*s"]
    mass: Float[Array, "*s"]
    reads: Int[Array, "*s"]

    @staticmethod
    def tokens(
        key: Float[Array, "*t h d"],
        value: Float[Array, "*t h d"],
        valid: Bool[Array, "*t"],
        salience: Float[Array, "*t"],
        written: Int[Array, "*t"],
        segment: Int[Array, ""],
    ) -> "Slots":
        """What t tokens would put into slots; those that are not `valid` are never written."""
        mass, reads = jnp.zeros_like(salience), jnp.zeros(valid.shape, jnp.int32)
        segments = jnp.broadcast_to(segment, valid.shape)
        return Slots(key, value, valid, salience, written, segments, mass, reads)

    @staticmethod
    def empty(shape: tuple[int, ...], heads: int, width: int, dtype: DTypeLike) -> "Slots":
        """Empty slots, `shape` of them."""
        state = jnp.zeros((*shape, heads, width), dtype)
        zero, none = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        salience = jnp.zeros(shape, at_least_float32(dtype))
        return Slots.tokens(state, state, none, salience, zero, jnp.zeros((), jnp.int32))

    def __getitem__(self, index: Any) -> "Slots":
        return jax.tree.map(lambda leaf: leaf[index], self)

    def put(self, index: Int[Array, ""], new: "Slots") -> "Slots":
        """These slots with `new` at `index`; unchanged if it is not valid."""
        here = (jnp.arange(self.valid.size, dtype=jnp.int32) == index) & new.valid
        # A choice and not a scatter: in a loop over tokens, all leaves are then one kernel.
        return jax.tree.map(lambda a, b: jnp.where(along(here, a), b[None], a), self, new)

    def first(self, rank: Array) -> Int[Array, ""]:
        """An empty slot, or if there is none the one of the lowest `rank (S,)`; of equals the oldest."""
        lowest = rank == jnp.min(jnp.where(self.valid, rank, jnp.max(rank)))
        age = jnp.where(lowest, self.written, jnp.iinfo(jnp.int32).max)
        return jnp.argmin(jnp.where(self.valid, age, -1)).astype(jnp.int32)

    def attended(self, mass: Float[Array, " s"], queries: Int[Array, ""]) -> "Slots":
        """The slots after `queries` more queries have attended to them with `mass` in all."""
        reads = self.reads + jnp.where(self.valid, queries, 0)
        return eqx.tree_at(lambda s: (s.mass, s.reads), self, (self.mass + mass, reads))

    def since(self, segment: Int[Array, ""]) -> "Slots":
        """The same slots, those written before `segment` held fixed under differentiation."""
        recent = self.segment >= segment
        cut = lambda leaf: jnp.where(along(recent, leaf), leaf, lax.stop_gradient(leaf))
        kept = cut(self.key), cut(self.value), cut(self.salience)
        return eqx.tree_at(lambda s: (s.key, s.value, s.salience), self, kept)


def along(mask: Bool[Array, "*s"], leaf: Array) -> Bool[Array, "..."]:
    """A mask of slots, to be broadcast against one of their leaves."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))


class AbstractEviction(eqx.Module):
    """How a token gets its slot: `eviction(slots, token) -> slots`. Empty slots are filled first.

    `blind`: whether it only decides what stands where, and neither reads nor changes what slots hold. It is then shown
    slots without keys and values, and these are moved once, at the end of a segment.
    """

    blind: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, slots: Slots, new: Slots) -> Slots:
        """The slots after one token; the same ones if it is not valid."""


class Fifo(AbstractEviction):
    """The oldest slot gives way.

    ```python
    layer = ej.memory.AttentionWithMemory(4, 2, capacity=5, eviction=ej.memory.Fifo(), key=key)
    ```
    """

    blind: ClassVar[bool] = True

    def __call__(self, slots: Slots, new: Slots) -> Slots:
        return slots.put(slots.first(slots.written), new)


class LeastAttended(AbstractEviction):
    """The slot that got the least attention per query since it was written gives way; those not read yet go last.

    ```python
    layer = ej.memory.AttentionWithMemory(4, 2, capacity=5, eviction=ej.memory.LeastAttended(), key=key)
    ```
    """

    blind: ClassVar[bool] = True

    def __call__(self, slots: Slots, new: Slots) -> Slots:
        rate = slots.mass / jnp.maximum(slots.reads, 1).astype(slots.mass.dtype)
        return slots.put(slots.first(jnp.where(slots.reads > 0, rate, jnp.inf)), new)


class LeastSalient(AbstractEviction):
    """The least salient slot gives way, unless the new token is less salient still: then that is not written.

    ```python
    layer = ej.memory.AttentionWithMemory(4, 2, capacity=5, eviction=ej.memory.LeastSalient(), key=key)
    ```
    """

    blind: ClassVar[bool] = True

    def __call__(self, slots: Slots, new: Slots) -> Slots:
        i = slots.first(slots.salience)
        wanted = new.valid & ~(slots.valid[i] & (slots.salience[i] > new.salience))
        return slots.put(i, eqx.tree_at(lambda s: s.valid, new, wanted))


class Summarise(AbstractEviction):
    """The oldest slot is merged into the one whose key is most like its own, and so makes room.

    Keys and values become means weighted by salience, and saliences add up. Two slots of the same key are then worth what
    they were before in every softmax (proportional attention; Bolya et al. 2023). For gradients the merged slot counts
    as written when the older one was.

    ```python
    layer = ej.memory.AttentionWithMemory(4, 2, capacity=5, eviction=ej.memory.Summarise(), key=key)
    ```
    """

    def __call__(self, slots: Slots, new: Slots) -> Slots:
        i = slots.first(slots.written)
        old, others = slots[i], slots.valid & (jnp.arange(slots.valid.size, dtype=jnp.int32) != i)
        keys = lax.stop_gradient(slots.key).reshape(slots.valid.size, -1)
        norms = jnp.sqrt(jnp.sum(keys * keys, axis=-1))
        similar = keys @ keys[i] / jnp.where(norms == 0, 1, norms)
        j = jnp.argmax(jnp.where(others, similar, -jnp.inf)).astype(jnp.int32)
        both = new.valid & old.valid & others[j]
        return slots.put(j, _merged(slots[j], old, both)).put(i, new)


def _merged(a: Slots, b: Slots, valid: Bool[Array, ""]) -> Slots:
    total = jnp.where(valid, a.salience + b.salience, 1)
    share = (a.salience / total).astype(a.key.dtype)
    return Slots(
        key=share * a.key + (1 - share) * b.key,
        value=share * a.value + (1 - share) * b.value,
        valid=valid,
        salience=total,
        written=jnp.maximum(a.written, b.written),
        segment=jnp.minimum(a.segment, b.segment),
        mass=a.mass + b.mass,
        reads=jnp.maximum(a.reads, b.reads),
    )


def write(slots: Slots, tokens: Slots, eviction: AbstractEviction) -> Slots:
    """Write tokens one after another, so that segments of any length leave the same slots behind.

    **Arguments:** `slots`: S of them. `tokens`: t candidates, `Slots.tokens(…)`. `eviction`: who gives way when all are full.

    **Returns:** S slots. Keys, values and saliences of the tokens in them receive gradient.
    """
    if not eviction.blind:
        return _one_by_one(slots, tokens, eviction)
    # In place of contents the evictions move the numbers of those that they come from.
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), slots, tokens)
    index = jnp.arange(both.valid.size, dtype=jnp.int32)
    named = eqx.tree_at(lambda s: (s.key, s.value), lax.stop_gradient(both), (index, index))
    size = slots.valid.size
    return both[_one_by_one(named[:size], named[size:], eviction).key]


def _one_by_one(slots: Slots, tokens: Slots, eviction: AbstractEviction) -> Slots:
    return lax.scan(lambda slots, new: (eviction(slots, new), None), slots, tokens)[0]
