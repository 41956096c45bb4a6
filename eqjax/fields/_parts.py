"""The sublayers from which the equilibrium blocks are built."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, PRNGKeyArray, PyTree

from .. import analytic
from .._checks import check_count, check_finite_number, check_key, check_memory, refuse


def normal(key: PRNGKeyArray, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
    check_key(key=key)
    return std * jax.random.normal(key, shape)


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that cannot be split into heads."""
    check_count(0, width=width, heads=heads)
    check_memory(f"`width` {width}: an attention", 16.0 * width * width)
    if width < 1 or heads < 1 or width % heads:
        raise ValueError(
            f"`width` must be a positive multiple of `heads`, got width={width} and heads={heads}. "
            f"Choose a width such as {max(heads, 1) * max(1, round(width / max(heads, 1)))}."
        )


class LayerNorm(eqx.Module):
    """Layer norm with gain and bias over the last axis (`width`), analytic."""

    weight: Float[Array, " c"]
    bias: Float[Array, " c"]

    def __init__(self, width: int):
        self.weight, self.bias = jnp.ones(width), jnp.zeros(width)

    def __call__(self, z: Inexact[Array, "t c"]) -> Inexact[Array, "t c"]:
        return analytic.layer_norm(z, self.weight, self.bias)


class Attention(eqx.Module):
    """Causal multi-head softmax attention with independent Q, K, V and O, no biases.

    **Arguments:** `width` (C), `heads`; `qknorm`: RMS-normalise queries and keys per head, which bounds every
    logit by `sqrt(C / heads)`; `residual_scale`: factor on the initial O.
    """

    # Along which axis a mesh with an axis `tensor` cuts them: heads, and what they write back (Shoeybi et al. 2019).
    tensor_axes: ClassVar[dict[str, int]] = {"query": 1, "key": 1, "value": 1, "output": 0}
    query: Float[Array, "c c"]
    key: Float[Array, "c c"]
    value: Float[Array, "c c"]
    output: Float[Array, "c c"]
    heads: int = eqx.field(static=True)
    qknorm: bool = eqx.field(static=True)
    ring: analytic.TokenRing | None

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qknorm: bool = False,
        residual_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        check_heads(width, heads)
        check_key(key=key)
        check_finite_number(residual_scale=residual_scale)
        q, k, v, o = (normal(s, (width, width), width**-0.5) for s in jax.random.split(key, 4))
        self.query, self.key, self.value, self.output = q, k, v, residual_scale * o
        self.heads, self.qknorm, self.ring = heads, qknorm, None

    def remember(self, g: Inexact[Array, "n c"]) -> tuple[Array, Array]:
        """Keys and values, `(n, C)` each."""
        return self._normed(analytic.matmul(g, self.key)), analytic.matmul(g, self.value)

    def __call__(
        self,
        g: Inexact[Array, "n c"],
        memory: tuple[Inexact[Array, "m c"], Inexact[Array, "m c"]] | None = None,
        seen: Bool[Array, "n m"] | None = None,
        inverse_temperature: float | None = None,
    ) -> Inexact[Array, "n c"]:
        """What n tokens read of those remembered that they have `seen`; by default of one another, causally."""
        whole = memory is None and seen is None
        memory = self.remember(g) if memory is None else memory
        query = self._normed(analytic.matmul(g, self.query))
        q, k, v = (analytic.heads(rows, self.heads) for rows in (query, *memory))
        if whole and self.ring is not None:
            mixed = self.ring(q, k, v, inverse_temperature)
        else:
            seen = analytic.causal_mask(g.shape[0]) if seen is None else seen
            mixed = analytic.attention(q, k, v, seen, inverse_temperature)
        return analytic.matmul(analytic.unheads(mixed), self.output)

    def weights(
        self, g: Inexact[Array, "n c"], inverse_temperature: float | None = None
    ) -> Inexact[Array, "h n n"]:
        """How much every token reads of itself and each before it, by head: rows that sum to 1."""
        query = self._normed(analytic.matmul(g, self.query))
        q, k = (analytic.heads(rows, self.heads) for rows in (query, self.remember(g)[0]))
        each = jnp.broadcast_to(jnp.eye(len(g), dtype=g.dtype)[None], (self.heads, len(g), len(g)))
        return analytic.attention(q, k, each, analytic.causal_mask(len(g)), inverse_temperature)

    def _normed(self, rows: Inexact[Array, "n c"]) -> Inexact[Array, "n c"]:
        if not self.qknorm:
            return rows
        split = rows.reshape(rows.shape[0], self.heads, -1)
        return analytic.rms_norm(split).reshape(rows.shape)


def in_ring(model: PyTree, ring: analytic.TokenRing | None) -> PyTree:
    """`model`, or a field, whose causal attention shares its tokens out over the devices of `ring`; None: over none.

    The same to rounding, and in all derivatives. What is remembered token by token (`TokenOrder`) stays on one device.

    **Raises:** `ValueError` if there is no `Attention` in it.

    ```python
    assert ej.fields.in_ring(ej.fields.ThickBlock(4, 2, key=key), None).causal
    ```
    """
    mine = lambda node: isinstance(node, Attention)
    if not any(map(mine, jax.tree.leaves(model, is_leaf=mine))):
        refuse("model", "have causal attention, as `ThickBlock` has", model)
    none = lambda leaf: leaf is None
    put = lambda node: (
        eqx.tree_at(lambda a: a.ring, node, ring, is_leaf=none) if mine(node) else node
    )
    return jax.tree.map(put, model, is_leaf=mine)


class MLP(eqx.Module):
    """Two-layer tanh-GELU perceptron of hidden width `expansion · width`, applied per token."""

    tensor_axes: ClassVar[dict[str, int]] = {"up": 1, "up_bias": 0, "down": 0}
    up: Float[Array, "c m"]
    up_bias: Float[Array, " m"]
    down: Float[Array, "m c"]
    down_bias: Float[Array, " c"]

    def __init__(
        self, width: int, *, expansion: int = 4, residual_scale: float = 1.0, key: PRNGKeyArray
    ):
        hidden, (up, down) = expansion * width, jax.random.split(key)
        self.up, self.up_bias = normal(up, (width, hidden), width**-0.5), jnp.zeros(hidden)
        self.down = residual_scale * normal(down, (hidden, width), hidden**-0.5)
        self.down_bias = jnp.zeros(width)

    def __call__(self, g: Inexact[Array, "t c"]) -> Inexact[Array, "t c"]:
        hidden = analytic.gelu(analytic.shift(analytic.matmul(g, self.up), self.up_bias))
        return analytic.shift(analytic.matmul(hidden, self.down), self.down_bias)


class AttentionEnergy(eqx.Module):
    """`-(1/β) Σ_heads Σ_queries log Σ_keys exp(β q·k)`, the attention of the energy transformer
    (Hoover et al. 2023, eq. 3), keys limited to the query's past. Its force on a *key* comes from later
    queries, so no causal mask makes the dynamics causal."""

    query: Float[Array, "c c"]
    key: Float[Array, "c c"]
    heads: int = eqx.field(static=True)
    qknorm: bool = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, qknorm: bool, residual_scale: float, key):
        check_heads(width, heads)
        std = residual_scale * width**-0.5
        q, k = (normal(s, (width, width), std) for s in jax.random.split(key))
        self.query, self.key, self.heads, self.qknorm = q, k, heads, qknorm

    def __call__(self, g: Inexact[Array, "t c"]) -> Inexact[Array, ""]:
        q, k = (analytic.heads(analytic.matmul(g, w), self.heads) for w in (self.query, self.key))
        if self.qknorm:
            q, k = analytic.rms_norm(q), analytic.rms_norm(k)
        beta = q.shape[-1] ** -0.5
        scores = beta * jnp.einsum("htd,hsd->hts", q, k)
        mask = jnp.broadcast_to(analytic.causal_mask(g.shape[0])[None], scores.shape)
        return -jnp.sum(analytic.logsumexp(scores, mask)) / beta


class HopfieldEnergy(eqx.Module):
    """`-½ Σ_tokens Σ_memories softplus(ξ·g + b)²`, a dense associative memory with tied patterns `ξ`.

    The smooth rectifier replaces the usual ReLU (Hoover et al. 2023, eq. 5) so that the force is analytic.
    """

    patterns: Float[Array, "c m"]
    bias: Float[Array, " m"]

    def __init__(self, width: int, *, expansion: int, residual_scale: float, key: PRNGKeyArray):
        hidden = expansion * width
        self.patterns = normal(key, (width, hidden), residual_scale * hidden**-0.5)
        self.bias = jnp.zeros(hidden)

    def __call__(self, g: Inexact[Array, "t c"]) -> Inexact[Array, ""]:
        overlap = analytic.softplus(analytic.shift(analytic.matmul(g, self.patterns), self.bias))
        return -0.5 * jnp.sum(overlap * overlap)
