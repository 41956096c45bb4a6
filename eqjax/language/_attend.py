"""How a transformer's layers attend: the strategies that a GPT-2 block is given.

An attention is a callable `attend(heads, extra) -> (mixed (t, H, d), out)`. It takes what the layer hands it (`Heads`)
and the layer's own slice of `extra`, and returns besides the mixed values whatever of the layer is to be kept.
A cache, extra slots of memory and biased keys are a few lines each: they change the keys, values and mask of
`Heads` (`heads._replace(...)`) and let another attention finish.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .. import analytic
from .._checks import check_count


class Heads(NamedTuple):
    """What a layer hands to its attention, for t tokens, H heads and head width d.

    - `query (t, H, d)`: scaled already, so that a score is a plain product `query · key`.
    - `key`, `value (s, H, d)`: of these t tokens; an attention may put others in front of them.
    - `mask (t, s)`: true where a query may see a key; None means causal.
    - `hidden (t, C)`: the hidden states that enter the layer, before its layer norm.
    """

    query: Float[Array, "t h d"]
    key: Float[Array, "s h d"]
    value: Float[Array, "s h d"]
    mask: Bool[Array, "t s"] | None
    hidden: Float[Array, "t c"]

    def visible(self) -> Bool[Array, "t s"]:
        """The mask, written out if it is None."""
        if self.mask is not None:
            return self.mask
        queries, keys = self.query.shape[0], self.key.shape[0]
        if queries != keys:
            raise ValueError(
                f"`mask` is None (causal) but {queries} queries meet {keys} keys. An attention that adds keys must "
                "also say who sees them: `heads._replace(key=…, value=…, mask=…)`."
            )
        return analytic.causal_mask(queries)


Attend = Callable[[Heads, Any], tuple[Float[Array, "t h d"], Any]]


class DotProduct(eqx.Module):
    """Softmax attention; takes and returns no extra. The softmax is taken in at least float32.

    **Arguments:** `implementation`: None, or `"xla"` or `"cudnn"` for `jax.nn.dot_product_attention`; the last is Flash
    attention, for half precision on a GPU (`ValueError` for other dtypes); a single query is left to `"xla"`. (JAX's own
    takes float64 softmaxes in float32, so None is the default.)

    ```python
    read = lambda tokens: gpt2(tokens, attend=ej.language.DotProduct())  # the default
    ```
    """

    implementation: str | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        if self.implementation not in (None, "xla", "cudnn"):
            raise ValueError(
                f'`implementation` must be None, "xla" or "cudnn", got {self.implementation!r}.'
            )

    def __call__(self, heads: Heads, extra: None = None) -> tuple[Float[Array, "t h d"], None]:
        if self.implementation is None:
            return jnp.einsum("hts,shd->thd", weights(heads), heads.value), None
        seen, causal = heads.visible(), heads.mask is None
        kind: Any = self.implementation
        if kind == "cudnn" and jnp.finfo(heads.query.dtype).bits != 16:
            raise ValueError(
                f'`DotProduct("cudnn")` is for float16 and bfloat16, got queries of {heads.query.dtype}. Cast the model '
                "(`eqjax.tree_cast`), or attend by `DotProduct()`."
            )
        queries, count, _ = heads.query.shape
        if queries == 1:  # its scores are no array that Flash attention would save
            kind = "xla"
        # Causal is a word that Flash attention understands better than a mask, and under `vmap` it wants every head's.
        mask = None if causal else jnp.broadcast_to(seen[None], (count, *seen.shape))
        how = {"mask": mask, "is_causal": causal, "scale": 1.0}
        arrays = heads.query, heads.key, heads.value
        with jax.numpy_dtype_promotion("standard"):  # inside, half precision meets float32
            return jax.nn.dot_product_attention(*arrays, implementation=kind, **how), None


class RingAttention(eqx.Module):
    """Softmax attention among tokens that the devices of a mesh axis share out (`eqjax.analytic.ring_attention`): exact, and no
    device holds more than its own share. Within `jax.shard_map`; causal only; takes and returns no extra.

    **Arguments:** `axis`: of the mesh. `block`: tokens whose scores are there at a time.

    **Raises:** `ValueError` outside of `jax.shard_map`, for a mask, or an odd share of tokens.

    ```python
    attend = ej.language.RingAttention("sequence", block=256)  # `Backprop(context="sequence")`
    assert attend.axis == "sequence"
    ```
    """

    axis: str = eqx.field(default="sequence", static=True)
    block: int = eqx.field(default=512, static=True)

    def __check_init__(self):
        check_count(block=self.block)

    def __call__(self, heads: Heads, extra: None = None) -> tuple[Float[Array, "t h d"], None]:
        if heads.mask is not None:
            raise ValueError(
                "`mask`: tokens in a ring see those before them, and no others. Leave it out."
            )
        q, k, v = (jnp.swapaxes(a, 0, 1) for a in (heads.query, heads.key, heads.value))
        how = {"inverse_temperature": 1.0, "block": self.block}
        return jnp.swapaxes(analytic.ring_attention(q, k, v, self.axis, **how), 0, 1), None

    def positions(self, tokens: int) -> Int[Array, " t"]:
        """Those of the device's own tokens."""
        analytic.ring_size(self.axis)
        return lax.axis_index(self.axis) * tokens + jnp.arange(tokens, dtype=jnp.int32)

    def own(self, key: PRNGKeyArray) -> PRNGKeyArray:
        """A random key of the device's own, since its tokens are."""
        return jax.random.fold_in(key, lax.axis_index(self.axis))


class DroppedOut(eqx.Module):
    """Softmax attention whose weights are dropped out at `rate`; `extra` is the layer's random key."""

    rate: float = eqx.field(static=True)

    def __call__(self, heads: Heads, extra: PRNGKeyArray) -> tuple[Float[Array, "t h d"], None]:
        kept = dropout(weights(heads), self.rate, extra)
        return jnp.einsum("hts,shd->thd", kept, heads.value), None


def weights(heads: Heads) -> Float[Array, "h t s"]:
    """The attention weights; zero where nothing is seen.

    ```python
    query = jnp.ones((3, 2, 2))
    heads = ej.language.Heads(query, query, query, None, jnp.ones((3, 4)))
    assert ej.language.weights(heads)[0, 1].tolist() == [0.5, 0.5, 0]
    ```
    """
    wide = analytic.at_least_float32(heads.query.dtype)
    scores = jnp.einsum("thd,shd->hts", heads.query, heads.key, preferred_element_type=wide)
    seen = jnp.broadcast_to(heads.visible()[None], scores.shape)
    return analytic.softmax(scores, seen).astype(heads.value.dtype)


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Inverted dropout (Srivastava et al. 2014); the identity without a key."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


_put = lax.dynamic_update_slice_in_dim


class Cache(eqx.Module):
    """The keys and values of the tokens read so far, with room for S tokens. Goes in and comes out as a value.

    - `key`, `value (L, S, H, d)`. `valid (S,)`: true where a real token lies, false for padding and empty slots.
    - `length`: slots written.
    """

    key: Float[Array, "l s h d"]
    value: Float[Array, "l s h d"]
    valid: Bool[Array, " s"]
    length: Int[Array, ""]

    def written(
        self, key: Float[Array, "l t h d"], value: Float[Array, "l t h d"], valid: Bool[Array, " t"]
    ) -> "Cache":
        """The cache with t more tokens."""
        return Cache(
            _put(self.key, key, self.length, axis=1),
            _put(self.value, value, self.length, axis=1),
            _put(self.valid, valid, self.length, axis=0),
            self.length + valid.size,
        )


class Cached(eqx.Module):
    """Attention to the tokens of a cache and to new ones, left to `inner` once the cached ones stand in front.

    `valid` and `length` are those of the cache, `new (t,)` says which of the new tokens are no padding. `extra` is
    `(key, value, inner's extra)`, the first two of the cache, and `out` is `(new key, new value, inner's out)`.

    ```python
    reading = ej.language.Cached(ej.language.DotProduct(), jnp.ones(6, bool), jnp.asarray(4), jnp.ones(2, bool))
    ```
    """

    inner: Attend
    valid: Bool[Array, " s"]
    length: Int[Array, ""]
    new: Bool[Array, " t"]

    def __call__(self, heads: Heads, extra: Any) -> tuple[Float[Array, "t h d"], Any]:
        key, value, extra = extra
        key = _put(key, heads.key, self.length, axis=0)
        value = _put(value, heads.value, self.length, axis=0)
        valid = _put(self.valid, self.new, self.length, axis=0)
        token = self.length + jnp.arange(self.new.size, dtype=jnp.int32)
        mask = (jnp.arange(valid.size, dtype=jnp.int32)[None] <= token[:, None]) & valid[None]
        mixed, out = self.inner(heads._replace(key=key, value=value, mask=mask), extra)
        return mixed, (heads.key, heads.value, out)
