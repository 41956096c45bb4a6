"""GPT-2 with memory: recurrences for what just happened, slots for what happened long ago."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import analytic
from .._checks import check_callable, check_count, check_key, check_kind, check_tokens, given
from ..analytic import FactoredLogits
from ..language import GPT2, Cache, Cached, DotProduct, RecurrentLayer, adapted_maps, counted
from ._attention_memory import Fused, SlotRecall
from ._memory import AbstractRemembering, Memory
from ._slots import AbstractEviction, Slots

Cell = Callable[..., Any]


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
        cell: Cell,
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


class Segment(eqx.Module):
    """A segment that is being read: its tokens are local, and go to the slots once it is closed.

    - `memory`: as at its beginning, but for the recurrent states and for what attention the slots got.
    - `cache`: keys and values of its tokens. `salience (M, P)`: of its tokens, in the layers that remember.
    """

    memory: Memory
    cache: Cache
    salience: Float[Array, "m p"] | None


class MemoryGPT2(AbstractRemembering):
    """A GPT-2 that remembers, for ONE sequence (`jax.vmap` for a batch): `logits, memory = model(tokens, memory)`.

    A text of any length is read in segments of at most n_positions tokens. Between them go the states of an `early`
    recurrence (after the embeddings) and a `late` one (before the last layer norm), and in some `layers` S slots of keys and
    values, attended to together with the local tokens. All gates start at 0: a fresh model has the logits of its GPT-2.

    **Arguments:**

    - `gpt2`: a `GPT2`, also with adapters or 4-bit weights.
    - `early`, `late`: cells such as `equinox.nn.GRUCell` (the default) or `equinox.nn.LSTMCell`; None for none.
      `units`: of each cell, C by default.
    - `capacity`: slots S in every one of `layers`; 0 for none. `layers`: by default the one three quarters up.
    - `eviction`, `horizon`, `threshold`: as in `SlotRecall.init`. The horizon is of one read; through several layers, and
      through recurrent states, gradient goes further, as far as the segments differentiated together.
    - `key`: of the new weights.

    ```python
    remembering = ej.memory.MemoryGPT2(gpt2, capacity=5, key=key)
    logits, memory = jax.eval_shape(remembering, tokens, remembering.memory())
    assert logits.shape == (4, 8)
    ```
    """

    gpt2: GPT2
    early: ShortTermMemory | None
    late: ShortTermMemory | None
    recall: SlotRecall | None
    layers: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        gpt2: GPT2,
        *,
        early: Cell | None = eqx.nn.GRUCell,
        late: Cell | None = eqx.nn.GRUCell,
        units: int | None = None,
        capacity: int = 256,
        layers: tuple[int, ...] | None = None,
        eviction: AbstractEviction | None = None,
        horizon: int | None = None,
        threshold: float = 0.0,
        key: PRNGKeyArray,
    ):
        check_kind(GPT2, "a `GPT2`", gpt2=gpt2)
        check_callable("cell(width, units, key=key)", **given(early=early, late=late))
        check_count(0, capacity=capacity)
        check_count(**given(units=units))
        check_key(key=key)
        config, dtype = gpt2.config, gpt2.wte.dtype
        layers = (3 * config.n_layer // 4,) if layers is None else tuple(sorted(set(layers)))
        if not layers or not all(0 <= layer < config.n_layer for layer in layers):
            raise ValueError(
                f"`layers` must be some of 0 … {config.n_layer - 1}, got {layers}. For no slots, `capacity=0`."
            )
        keys = jax.random.split(key, 3)
        self.gpt2 = gpt2
        kept = {"capacity": capacity, "eviction": eviction, "horizon": horizon}
        kept |= {"threshold": threshold, "layers": (len(layers),), "dtype": dtype, "key": keys[2]}
        made = lambda cell, key: (
            cell and ShortTermMemory(cell, config.n_embd, units=units, dtype=dtype, key=key)
        )
        self.early, self.late = made(early, keys[0]), made(late, keys[1])
        self.layers = layers if capacity else ()
        self.recall = SlotRecall.init(config.n_head, config.n_embd, **kept) if capacity else None

    def memory(self) -> Memory:
        """An empty memory."""
        config, slots = self.gpt2.config, None
        if self.recall is not None:
            shape = len(self.layers), self.recall.capacity
            width = config.n_embd // config.n_head
            slots = Slots.empty(shape, config.n_head, width, self.gpt2.wte.dtype)
        early, late = (part and part.initial() for part in (self.early, self.late))
        return Memory.empty(slots, early, late)

    def about(self) -> dict[str, Any]:
        scales = [node.scale for node in adapted_maps(self.gpt2).values()]
        return {"config": self.gpt2.config.to_dict(), "layers": self.layers, "lora": scales}

    def __call__(
        self,
        tokens: Int[Array, " t"],
        memory: Memory | None = None,
        *,
        mask: Bool[Array, " t"] | None = None,
    ) -> tuple[Float[Array, "t v"], Memory]:
        """Read one segment: the logits of the next token after every token, and the memory with the segment in it.

        For read-only use drop the new memory; `model.read` does so.

        **Arguments:** `tokens (t,)`, t ≤ n_positions. `memory`: an empty one by default. `mask (t,)`: false for padding,
        which is neither seen nor remembered.
        """
        check_tokens(tokens=tokens)
        logits, memory = self.factored(tokens, memory, mask=mask)
        return logits.array, memory

    def factored(
        self,
        tokens: Int[Array, " t"],
        memory: Memory | None = None,
        *,
        mask: Bool[Array, " t"] | None = None,
    ) -> tuple[FactoredLogits, Memory]:
        """What `model(tokens, ...)` returns, with logits that are not multiplied out."""
        segment = self.open(self.memory() if memory is None else memory, tokens.shape[0])
        logits, segment = self._extend(tokens, segment, mask)
        return logits, self.close(segment)

    def read(
        self,
        tokens: Int[Array, " t"],
        memory: Memory | None = None,
        *,
        mask: Bool[Array, " t"] | None = None,
    ) -> Float[Array, "t v"]:
        """The logits alone, `(t, V)`."""
        return self(tokens, memory, mask=mask)[0]

    def open(self, memory: Memory, size: int | None = None) -> Segment:
        """Begin a segment with room for `size` tokens, n_positions by default."""
        limit = self.gpt2.config.n_positions
        size = limit if size is None else size
        if not 1 <= size <= limit:
            raise ValueError(
                f"`tokens`: a segment has 1 to n_positions={limit} tokens, got {size}. Read longer texts in several segments: "
                "`segment_loss` and `reply` do so."
            )
        cache, salience = self.gpt2.cache(size), None
        if self.recall is not None:
            salience = jnp.zeros((len(self.layers), size), self.recall.weight.dtype)
        return Segment(self.check(memory), cache, salience)

    def extend(
        self, tokens: Int[Array, " t"], segment: Segment, *, mask: Bool[Array, " t"] | None = None
    ) -> tuple[Float[Array, "t v"], Segment]:
        """Read `tokens` after those of an open segment: their logits `(t, V)`, and the segment with them in it.

        Where the segment has no room left, an error at run time.
        """
        full = segment.cache.length + tokens.shape[0] > segment.cache.valid.size
        told = "the segment has no room for these tokens: `close` it and `open` another."
        logits, segment = self._extend(tokens, eqx.error_if(segment, full, told), mask)
        return logits.array, segment

    def _extend(self, tokens, segment, mask):
        memory, cache = segment.memory, segment.cache
        new = jnp.ones(tokens.shape, bool) if mask is None else mask
        positions = counted(new, jnp.sum(cache.valid, dtype=jnp.int32))
        h = self.gpt2.embed(jnp.where(new, tokens, 0), positions)
        early, late = memory.early, memory.late
        if self.early is not None:
            h, early = self.early(h, early, new)
        parts = []
        for remembers, start, stop in self._runs():
            inner, extra = DotProduct(), None
            if remembers:
                mine = slice(self.layers.index(start), self.layers.index(start) + stop - start)
                inner = Fused(memory.segments, new)
                extra = jax.tree.map(lambda a, mine=mine: a[mine], (self.recall, memory.slots))
            attend = Cached(inner, cache.valid, cache.length, new)
            extra = cache.key[start:stop], cache.value[start:stop], extra
            h, out = self.gpt2.run(h, attend, extra, start=start, stop=stop)
            parts.append(out)
        key, value = (jnp.concatenate([part[i] for part in parts]) for i in (0, 1))
        slots, salience = memory.slots, segment.salience
        if self.recall is not None:
            outs = [part[2] for part in parts if part[2] is not None]
            slots, fresh = jax.tree.map(lambda *a: jnp.concatenate(a), *outs)
            salience = lax.dynamic_update_slice_in_dim(salience, fresh, cache.length, axis=1)
        if self.late is not None:
            h, late = self.late(h, late, new)
        memory = Memory(slots, early, late, memory.segments, memory.tokens)
        return self.gpt2.readout(h), Segment(memory, cache.written(key, value, new), salience)

    def close(self, segment: Segment) -> Memory:
        """Write the segment's tokens to the slots."""
        memory, cache, recall = segment.memory, segment.cache, self.recall
        slots = memory.slots
        if recall is not None:
            key, value = (a[np.array(self.layers)] for a in (cache.key, cache.value))
            write = jax.vmap(lambda s, k, v, w: recall.write(s, k, v, w, cache.valid, memory))
            slots = write(slots, key, value, segment.salience)
        return memory.after(cache.valid, slots=slots)

    def _runs(self) -> Iterator[tuple[bool, int, int]]:
        """The layers in runs of those that remember and those that do not."""
        every = range(self.gpt2.config.n_layer)
        for remembers, run in itertools.groupby(every, lambda layer: layer in self.layers):
            start, *more = run
            yield remembers, start, start + len(more) + 1


def memory_parameters(model: MemoryGPT2) -> PyTree[bool]:
    """Which leaves belong to the memory and not to its GPT-2: what to train with the GPT-2 frozen.

    With adapters too: `jax.tree.map(operator.or_, memory_parameters(model), adapters(model))`.

    ```python
    mask = ej.memory.memory_parameters(remembering)
    assert mask.early.gate and not mask.gpt2.wte
    ```
    """
    marks = jax.tree.map(eqx.is_inexact_array, model)
    return eqx.tree_at(lambda m: m.gpt2, marks, jax.tree.map(lambda _: False, model.gpt2))
