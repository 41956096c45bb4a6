"""Attention with memory: local tokens and slots in one softmax, in a GPT-2 or alone."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .. import analytic
from .._checks import check_count, check_number, given
from ..fields import check_heads
from ..language import Attend, DotProduct, GPT2Norm, Heads, Linear, SelfAttention, weights
from ._memory import AbstractRemembering, Memory
from ._slots import AbstractEviction, Fifo, Slots, write


class SlotRecall(eqx.Module):
    """The learned part of a layer's long-term memory, and its settings. In a stack, arrays have a leading layer axis.

    - `gate (H,)`: of every head; starts at 0. Memory replaces local attention by `g = 10 gate`: Adam moves all weights at one
      speed, and a gate has ten times as far to go as they. (Without the 10 it stays shut for thousands of updates.)
    - `weight (C,)`, `bias`: of the salience `sigmoid(h · weight + bias)` with which a token of normalised hidden state h is
      written.
    """

    gate: Float[Array, "*l h"]
    weight: Float[Array, "*l c"]
    bias: Float[Array, "*l"]
    capacity: int = eqx.field(static=True)
    eviction: AbstractEviction = eqx.field(static=True)
    horizon: int | None = eqx.field(static=True)
    threshold: float = eqx.field(static=True)

    @staticmethod
    def init(
        heads: int,
        width: int,
        *,
        layers: tuple[int, ...] = (),
        capacity: int,
        eviction: AbstractEviction | None = None,
        horizon: int | None = None,
        threshold: float = 0.0,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ) -> "SlotRecall":
        """A fresh one: gates at 0, saliences near ½.

        **Arguments:**

        - `heads`, `width`: H and C. `layers`: leading axes of the arrays.
        - `capacity`: slots S, at least 1. `eviction`: who gives way when they are full; `Fifo()` by default.
        - `horizon`: a read reaches the writes of so many segments before it with its gradient, older ones are held
          fixed. None: all of them.
        - `threshold`: tokens of a salience below it are not written; in [0, 1).
        - `dtype`: of the arrays. `key`: of the salience weights.
        """
        check_count(capacity=capacity)
        check_count(0, **given(horizon=horizon))
        check_number("lie in [0, 1)", lambda v: 0 <= v < 1, threshold=threshold)
        dtype = jnp.result_type(float) if dtype is None else dtype
        return SlotRecall(
            jnp.zeros((*layers, heads), dtype),
            jax.random.normal(key, (*layers, width), dtype) * 0.1 * width**-0.5,
            jnp.zeros(layers, dtype),
            capacity,
            Fifo() if eviction is None else eviction,
            horizon,
            threshold,
        )

    def salience(self, hidden: Float[Array, "t c"]) -> Float[Array, " t"]:
        """How much of a slot each token is worth, in (0, 1)."""
        return jax.nn.sigmoid(analytic.layer_norm(hidden) @ self.weight + self.bias[None])

    def write(
        self,
        slots: Slots,
        key: Float[Array, "t h d"],
        value: Float[Array, "t h d"],
        salience: Float[Array, " t"],
        real: Bool[Array, " t"],
        memory: Memory,
    ) -> Slots:
        """One layer's slots after a segment; `real` is false for padding, `memory` tells what was read before it."""
        number = memory.tokens + jnp.cumsum(real, dtype=jnp.int32) - 1
        salience = salience.astype(slots.salience.dtype)
        valid = real & (salience >= self.threshold)
        tokens = Slots.tokens(key, value, valid, salience, number, memory.segments)
        return write(slots, tokens, self.eviction)


class Fused(eqx.Module):
    """Attention to local tokens and to slots: `local + g · (fused - local)`.

    `local` is what `inner` makes of the tokens alone. `fused` is one softmax over the slots, whose scores have the
    logarithm of their salience added, and the tokens; empty slots take no part in it.

    `segment` is the number of this segment, `new (t,)` says which queries are no padding. `extra` is `(SlotRecall, Slots)` of
    the layer, and `out` is the slots as they were read, and the salience of the t tokens.
    """

    segment: Int[Array, ""]
    new: Bool[Array, " t"]
    inner: Attend = DotProduct()

    def __call__(
        self, heads: Heads, extra: tuple[SlotRecall, Slots]
    ) -> tuple[Float[Array, "t h d"], Any]:
        recall, slots = extra
        if recall.horizon is not None:
            slots = slots.since(self.segment - recall.horizon)
        local, _ = self.inner(heads, None)
        both = _joined(heads, slots)
        shares = weights(both)
        fused = jnp.einsum("hts,shd->thd", shares, both.value)
        taken = jnp.mean(shares[..., : recall.capacity], axis=0, dtype=slots.mass.dtype)
        mass = jnp.sum(jnp.where(self.new[:, None], taken, 0), axis=0)
        slots = slots.attended(lax.stop_gradient(mass), jnp.sum(self.new, dtype=jnp.int32))
        mixed = local + 10 * recall.gate[None, :, None] * (fused - local)
        return mixed, (slots, recall.salience(heads.hidden))


def _joined(heads: Heads, slots: Slots) -> Heads:
    """The tokens with the slots in front. A key's log-salience is one more coordinate, where queries have a 1."""
    bias = jnp.log(jnp.where(slots.valid, slots.salience, 1)).astype(heads.key.dtype)
    bias = jnp.concatenate([bias, jnp.zeros(heads.key.shape[0], bias.dtype)])
    key = jnp.concatenate([slots.key, heads.key])
    bias = jnp.broadcast_to(bias[:, None, None], (*key.shape[:2], 1))
    one = jnp.ones((*heads.query.shape[:2], 1), heads.query.dtype)
    seen = heads.visible()
    slots_seen = jnp.broadcast_to(slots.valid[None], (seen.shape[0], slots.valid.size))
    return heads._replace(
        query=jnp.concatenate([heads.query, one], axis=-1),
        key=jnp.concatenate([key, bias], axis=-1),
        value=jnp.concatenate([slots.value, heads.value]),
        mask=jnp.concatenate([slots_seen, seen], axis=1),
    )


class AttentionWithMemory(AbstractRemembering):
    """A causal attention layer that remembers: `x + c_proj(attend(ln x))`, with slots that outlast the segment.

    For ONE sequence, `jax.vmap` for a batch: `y, memory = layer(x, memory)` with x of shape `(t, C)`.

    **Arguments:** `width`: C. `heads`: H, a divisor of C. `capacity`: slots S. `key`: of the weights. `eviction`, `horizon`,
    `threshold`: as in `SlotRecall.init`. `dtype`: of the weights.

    ```python
    layer = ej.memory.AttentionWithMemory(4, 2, capacity=5, key=key)
    y, memory = jax.eval_shape(layer, jnp.ones((3, 4)), layer.memory())
    assert y.shape == (3, 4) and memory.slots.valid.shape == (5,)
    ```
    """

    ln: GPT2Norm
    attn: SelfAttention
    recall: SlotRecall

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        capacity: int,
        eviction: AbstractEviction | None = None,
        horizon: int | None = None,
        threshold: float = 0.0,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        check_heads(width, heads)
        dtype = jnp.result_type(float) if dtype is None else dtype
        k1, k2, k3 = jax.random.split(key, 3)

        def linear(key, out):
            weight = jax.random.normal(key, (width, out), dtype) * width**-0.5
            return Linear(weight, jnp.zeros(out, dtype))

        self.ln = GPT2Norm(jnp.ones(width, dtype), jnp.zeros(width, dtype), 1e-5)
        self.attn = SelfAttention(linear(k1, 3 * width), linear(k2, width), heads)
        kept = {"capacity": capacity, "eviction": eviction, "horizon": horizon}
        self.recall = SlotRecall.init(
            heads, width, threshold=threshold, dtype=dtype, key=k3, **kept
        )

    def memory(self) -> Memory:
        """An empty memory."""
        weight, heads = self.recall.weight, self.attn.heads
        slots = Slots.empty((self.recall.capacity,), heads, weight.shape[-1] // heads, weight.dtype)
        return Memory.empty(slots, None, None)

    def about(self) -> dict[str, Any]:
        return {"heads": self.attn.heads}

    def __call__(
        self,
        x: Float[Array, "t c"],
        memory: Memory | None = None,
        *,
        mask: Bool[Array, " t"] | None = None,
    ) -> tuple[Float[Array, "t c"], Memory]:
        """**Arguments:** `x (t, C)`; `memory`: an empty one by default; `mask (t,)`: false for padding.

        **Returns:** the outputs `(t, C)`, and the memory with these tokens in it.
        """
        memory = self.memory() if memory is None else self.check(memory)
        new = jnp.ones(x.shape[0], bool) if mask is None else mask
        query, key, value = self.attn.project(self.ln(x))
        scale = query.shape[-1] ** -0.5
        seen = analytic.causal_mask(x.shape[0]) & new[None]
        mixed, (slots, salience) = Fused(memory.segments, new)(
            Heads(query * scale, key, value, seen, x),
            (self.recall, memory.slots),  # pyright: ignore[reportArgumentType]
        )
        slots = self.recall.write(slots, key, value, salience, new, memory)
        return x + self.attn.c_proj(mixed.reshape(x.shape[0], -1)), memory.after(new, slots=slots)
