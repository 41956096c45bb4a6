"""GPT-2 (Radford et al. 2019), whose blocks are written once and told how to attend (see `attend`)."""

import abc
import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import analytic
from .._checks import check_key, check_kind, check_memory, check_tokens
from ..analytic import FactoredLogits
from ._attend import Attend, Cache, Cached, DotProduct, DroppedOut, Heads, RingAttention, dropout
from ._gpt2_config import ACTIVATIONS, GPT2Config


class AbstractLinear(eqx.Module):
    """An affine map of `(t, i)` to `(t, o)`; in a stack of blocks its arrays have a leading layer axis."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
        """The map of every row."""

    @abc.abstractmethod
    def plain(self) -> "Linear":
        """The same map as a `Linear`."""


class Linear(AbstractLinear):
    """`x W + b`, with `W (i, o)` as in GPT-2's `Conv1D`.

    ```python
    double = ej.language.Linear(2 * jnp.eye(4), jnp.zeros(4))
    assert jnp.all(double(state) == 2 * state)
    ```
    """

    weight: Float[Array, "*l i o"]
    bias: Float[Array, "*l o"]

    def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
        return x @ self.weight + self.bias[None]

    def plain(self) -> "Linear":
        return self


class GPT2Norm(eqx.Module):
    """Layer norm with gain and bias, computed in at least float32."""

    weight: Float[Array, "*l c"]
    bias: Float[Array, "*l c"]
    eps: float = eqx.field(static=True)

    def __call__(self, h: Float[Array, "t c"]) -> Float[Array, "t c"]:
        wide = analytic.at_least_float32(h.dtype)
        x, weight, bias = (a.astype(wide) for a in (h, self.weight, self.bias))
        return analytic.layer_norm(x, weight, bias, self.eps).astype(h.dtype)


class SelfAttention(eqx.Module):
    """The projections of attention: `c_attn` to queries, keys and values, `c_proj` back from the heads."""

    c_attn: AbstractLinear
    c_proj: AbstractLinear
    heads: int = eqx.field(static=True)

    def project(self, x: Float[Array, "t c"]) -> list[Float[Array, "t h d"]]:
        """Queries (not scaled), keys and values."""
        parts = jnp.split(self.c_attn(x), 3, axis=-1)
        return [part.reshape(x.shape[0], self.heads, -1) for part in parts]


class GPT2MLP(eqx.Module):
    """The two-layer perceptron of a block."""

    c_fc: AbstractLinear
    c_proj: AbstractLinear
    activation: str = eqx.field(static=True)

    def __call__(self, x: Float[Array, "t c"]) -> Float[Array, "t c"]:
        return self.c_proj(ACTIVATIONS[self.activation](self.c_fc(x)))


class GPT2Block(eqx.Module):
    """One layer: `h += c_proj(attend(ln_1 h))`, then `h += mlp(ln_2 h)`."""

    ln_1: GPT2Norm
    attn: SelfAttention
    ln_2: GPT2Norm
    mlp: GPT2MLP

    def __call__(
        self,
        h: Float[Array, "t c"],
        attend: Attend,
        extra: Any,
        *,
        scale: Float[Array, ""],
        mask: Bool[Array, "t t"] | None,
        rate: float,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "t c"], Any]:
        k1, k2 = (None, None) if key is None else jax.random.split(key)
        query, keys, values = self.attn.project(self.ln_1(h))
        mixed, out = attend(Heads(query * scale, keys, values, mask, h), extra)
        h = h + dropout(self.attn.c_proj(mixed.reshape(h.shape[0], -1)), rate, k1)
        return h + dropout(self.mlp(self.ln_2(h)), rate, k2), out


class GPT2(eqx.Module):
    """A GPT-2 language model for ONE sequence (`jax.vmap` for a batch): int tokens `(t,)` in, logits `(t, V)` out.

    `GPT2.init(config, key)` makes a fresh one, `load_gpt2` reads one. `model(tokens)` is `unembed(run(embed(tokens)))`;
    models built on it call these three themselves, with an attention of their own.

    - `wte (V, C)`, `wpe (P, C)`: token and position embeddings. `lm_head (V, C)`: None where tied to `wte`.
    - `blocks`: a `GPT2Block` whose arrays have a leading axis of L layers. `ln_f`: the last layer norm.
    - `config`: the `GPT2Config`.

    A token outside `[0, V)` or a position outside `[0, P)` makes NaN, never another token's logits.

    ```python
    gpt2 = ej.language.GPT2.init(config, key)
    assert gpt2(tokens).shape == (6, 8)
    ```
    """

    wte: Float[Array, "v c"]
    wpe: Float[Array, "p c"]
    blocks: GPT2Block
    ln_f: GPT2Norm
    lm_head: Float[Array, "v c"] | None
    config: GPT2Config = eqx.field(static=True)

    @staticmethod
    def init(config: GPT2Config, key: PRNGKeyArray) -> "GPT2":
        """GPT-2's initialisation: N(0, .02²), projections onto the residual stream `/ sqrt(2 L)`, biases 0."""
        check_kind(GPT2Config, "a `GPT2Config`", config=config)
        check_key(key=key)
        layers, c, inner = config.n_layer, config.n_embd, config.inner
        tied, epsilon = config.tie_word_embeddings, config.layer_norm_epsilon
        shapes = {
            "wte": (config.vocab_size, c),
            "wpe": (config.n_positions, c),
            "c_attn": (layers, c, 3 * c),
            "attn.c_proj": (layers, c, c),
            "c_fc": (layers, c, inner),
            "mlp.c_proj": (layers, inner, c),
            "lm_head": (0 if tied else config.vocab_size, c),
        }
        # One draw for all: every other one would be compiled anew.
        ends = list(itertools.accumulate(map(math.prod, shapes.values())))
        check_memory(f"`config`: a GPT-2 of {ends[-1]:,} parameters", 4.0 * ends[-1])
        draws = config.initializer_range * jax.random.normal(key, (ends[-1],))
        parts = dict(zip(shapes, jnp.split(draws, ends[:-1]), strict=True))
        matrix = lambda name: parts[name].reshape(shapes[name])
        norm = lambda *stack: GPT2Norm(jnp.ones((*stack, c)), jnp.zeros((*stack, c)), epsilon)

        def linear(name):
            weight = matrix(name) * ((2 * layers) ** -0.5 if name.endswith("c_proj") else 1)
            return Linear(weight, jnp.zeros((layers, weight.shape[-1])))

        attn = SelfAttention(linear("c_attn"), linear("attn.c_proj"), heads=config.n_head)
        mlp = GPT2MLP(linear("c_fc"), linear("mlp.c_proj"), config.activation_function)
        return GPT2(
            wte=matrix("wte"),
            wpe=matrix("wpe"),
            blocks=GPT2Block(norm(layers), attn, norm(layers), mlp),
            ln_f=norm(),
            lm_head=None if tied else matrix("lm_head"),
            config=config,
        )

    def embed(
        self, tokens: Int[Array, " t"], positions: Int[Array, " t"] | None = None
    ) -> Float[Array, "t c"]:
        """Token plus position embeddings; positions 0, 1, … unless given."""
        check_tokens(tokens=tokens)
        if not tokens.size:
            raise ValueError("`tokens` must hold at least one token.")
        limit = self.config.n_positions
        if positions is None:
            if tokens.shape[0] > limit:
                raise ValueError(
                    f"`tokens` has {tokens.shape[0]} tokens and the model's context is n_positions={limit}. "
                    "Crop it to its last tokens, or cut it into segments."
                )
            positions = jnp.arange(tokens.shape[0])
        return analytic.rows(self.wte, tokens) + analytic.rows(self.wpe, positions)

    def run(
        self,
        h: Float[Array, "t c"],
        attend: Attend | None = None,
        extra: PyTree = None,
        *,
        mask: Bool[Array, "t t"] | None = None,
        start: int = 0,
        stop: int | None = None,
        key: PRNGKeyArray | None = None,
        gradient_checkpointing: bool = False,
    ) -> tuple[Float[Array, "t c"], PyTree]:
        """Pass hidden states through the blocks `start:stop`, in one scan.

        **Arguments:**

        - `h`: `(t, C)`. `mask (t, t)`: who sees whom, True = seen; by default causal.
        - `attend`: callable `(Heads, extra) -> (mixed (t, H, d), out)`; by default `DotProduct()`.
        - `extra`: a pytree whose leaves have a leading axis over these layers; each gets its slice.
        - `key`: turns dropout on, at the rates of the configuration (that of attention weights only if `attend`
          is the default).
        - `gradient_checkpointing`: keep only what enters each layer for the backward pass, and compute the layer anew
          there (Chen et al. 2016): a third more work, for memory that hardly grows with the layers.

        **Returns:** the hidden states, and every layer's `out`, stacked.
        """
        layers = range(self.config.n_layer)[start:stop]
        blocks, static = eqx.partition(self.blocks, eqx.is_array)
        if len(layers) < self.config.n_layer:
            blocks = jax.tree.map(lambda leaf: leaf[start:stop], blocks)
        scales = jnp.asarray(self.config.score_scales[start:stop], h.dtype)
        keys = None
        if key is not None:
            keys, others = jax.random.split(key, (2, len(layers)))
            if attend is None and self.config.attn_pdrop > 0:
                attend, extra = DroppedOut(self.config.attn_pdrop), others
        chosen = DotProduct() if attend is None else attend
        shared = {"mask": mask, "rate": self.config.resid_pdrop}

        def layer(h, inputs):
            block, scale, extra, key = inputs
            return eqx.combine(block, static)(h, chosen, extra, scale=scale, key=key, **shared)

        if gradient_checkpointing:
            layer = jax.checkpoint(layer, prevent_cse=False)  # a scan prevents it already
        return lax.scan(layer, h, (blocks, scales, extra, keys))

    @property
    def head(self) -> Float[Array, "v c"]:
        """The embeddings that read the logits out."""
        return self.wte if self.lm_head is None else self.lm_head

    def readout(self, h: Float[Array, "t c"]) -> FactoredLogits:
        """The last layer norm, and the logits as two factors."""
        return FactoredLogits(self.ln_f(h), self.head)

    def unembed(self, h: Float[Array, "t c"]) -> Float[Array, "t v"]:
        """The last layer norm and the logits, in at least float32."""
        return self.readout(h).array

    def __call__(self, tokens: Int[Array, " t"], **settings: Any) -> Float[Array, "t v"]:
        """The logits of the next token after every token; the settings are those of `factored`."""
        return self.factored(tokens, **settings).array

    def factored(
        self,
        tokens: Int[Array, " t"],
        *,
        positions: Int[Array, " t"] | None = None,
        mask: Bool[Array, " t"] | None = None,
        attend: Attend | None = None,
        key: PRNGKeyArray | None = None,
        gradient_checkpointing: bool = False,
    ) -> FactoredLogits:
        """What `model(tokens, ...)` returns, not multiplied out: what a training loss should read.

        **Arguments:**

        - `tokens`: `(t,)`, t ≤ P. `mask (t,)`: false for padding, which no token sees; its own logits mean nothing.
        - `positions`: by default the number of valid tokens before each (0, 1, … without padding).
        - `attend`, `gradient_checkpointing`: as in `run`, with no extra. `key`: turns dropout on. With `RingAttention()` these
          are the tokens of one device of several, and their logits.
        """
        if isinstance(attend, RingAttention):
            positions = self._positions(attend, tokens.shape[0]) if positions is None else positions
            key = None if key is None else attend.own(key)
        drop, key = (None, None) if key is None else jax.random.split(key)
        seen = None
        if mask is not None:
            seen = analytic.causal_mask(tokens.shape[0]) & mask[None]
            tokens = jnp.where(mask, tokens, 0)  # padding may be anything
            positions = counted(mask) if positions is None else positions
        h = dropout(self.embed(tokens, positions), self.config.embd_pdrop, drop)
        how = {"key": key, "gradient_checkpointing": gradient_checkpointing}
        return self.readout(self.run(h, attend, mask=seen, **how)[0])

    def _positions(self, ring: RingAttention, tokens: int) -> Int[Array, " t"]:
        whole, limit = tokens * analytic.ring_size(ring.axis), self.config.n_positions
        if whole > limit:
            raise ValueError(
                f"`tokens` are {whole} on all devices of `{ring.axis}`, and the model's context is n_positions={limit}."
            )
        return ring.positions(tokens)

    def hidden(self, tokens: Int[Array, " t"]) -> Float[Array, "n t c"]:
        """The hidden states that enter each of the L blocks, and those that leave the last: `(L + 1, t, C)`."""
        kept = lambda heads, _: (DotProduct()(heads)[0], heads.hidden)
        last, entered = self.run(self.embed(tokens), kept)
        return jnp.concatenate([entered, last[None]])

    def cache(self, size: int | None = None) -> Cache:
        """An empty cache with room for `size` tokens, padding included; n_positions by default."""
        config, size = self.config, self.config.n_positions if size is None else size
        shape = (config.n_layer, size, config.n_head, config.n_embd // config.n_head)
        empty = jnp.zeros(shape, self.wte.dtype)
        return Cache(empty, empty, jnp.zeros(size, bool), jnp.zeros((), jnp.int32))

    def extend(
        self,
        tokens: Int[Array, " t"],
        cache: Cache,
        *,
        mask: Bool[Array, " t"] | None = None,
        attend: Attend | None = None,
    ) -> tuple[Float[Array, "t v"], Cache]:
        """Read `tokens` after those in `cache`: their logits `(t, V)`, and the cache with them in it.

        **Arguments:** `tokens (t,)`; `mask (t,)`, false for padding; `attend`: as in `run`, with no extra.

        Where the cache has no room left, an error at run time.
        """
        new = jnp.ones(tokens.shape, bool) if mask is None else mask
        full = cache.length + new.size > cache.valid.size
        length = eqx.error_if(
            cache.length,
            full,
            "the cache has no room for these tokens: make a larger one with `model.cache(size)`, or start a new one with "
            "the last tokens.",
        )
        chosen = Cached(DotProduct() if attend is None else attend, cache.valid, length, new)
        positions = counted(new, jnp.sum(cache.valid, dtype=jnp.int32))
        h = self.embed(jnp.where(new, tokens, 0), positions)
        h, (key, value, _) = self.run(h, chosen, (cache.key, cache.value, None))
        return self.unembed(h), cache.written(key, value, new)


def known(model: GPT2, prompt: Int[Array, " p"], mask: Bool[Array, " p"]) -> Int[Array, " p"]:
    """The prompt, and an error at run time if the model has no embedding for one of its tokens.

    ```python
    assert ej.language.known(gpt2, tokens, jnp.ones(6, bool)).tolist() == tokens.tolist()
    ```
    """
    wrong = mask & ((prompt < 0) | (prompt >= model.config.vocab_size))
    return eqx.error_if(
        prompt.astype(jnp.int32),
        jnp.any(wrong),
        f"`prompt` has tokens outside of the model's vocabulary, 0 … {model.config.vocab_size - 1}. Do they come from "
        "another tokenizer?",
    )


def counted(mask: Bool[Array, " t"], before: Int[Array, ""] | int = 0) -> Int[Array, " t"]:
    """The position of every token: how many valid ones, and `before`, came before it.

    ```python
    assert ej.language.counted(jnp.array([False, True, True]))[1:].tolist() == [0, 1]
    ```
    """
    return jnp.maximum(before + jnp.cumsum(mask, dtype=jnp.int32) - 1, 0)
