"""Losses of one sample, holomorphic in the outputs."""

import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Inexact, Int, Num

from .._checks import check_arrays, check_count, given, refuse
from ._functions import at_least_float32, logsumexp


class FactoredLogits(eqx.Module):
    """The logits `hidden @ headᵀ` as their two factors, for `cross_entropy` to read a few tokens at a time.

    With V tokens in the vocabulary the logits are by far the largest array of a language model's training step. Here
    at most `chunk` tokens (of every sample, under `vmap`) have theirs, and the backward pass computes them anew (Chen
    et al. 2016). Products are in the dtype of the factors, forward and backward; logits, their log-sum-exp and
    the sum of the head's gradients over the chunks are in at least float32.

    **Arguments:** `hidden (..., C)`; `head (V, C)`, which has no batch axis: make these logits and read their loss under
    one `vmap`. `chunk`: tokens, at least 1.

    ```python
    logits = ej.analytic.FactoredLogits(jnp.zeros((3, 4)), jnp.ones((8, 4)))
    assert jnp.isclose(ej.cross_entropy(logits, jnp.arange(3)), jnp.log(8.0))
    ```
    """

    hidden: Float[Array, "... c"]
    head: Float[Array, "v c"]
    chunk: int = eqx.field(static=True, default=128)

    def __check_init__(self):
        check_count(chunk=self.chunk)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the logits, `(..., V)`."""
        return *self.hidden.shape[:-1], self.head.shape[0]

    @property
    def array(self) -> Float[Array, "... v"]:
        """The logits, multiplied out."""
        return _product(self.hidden, self.head)


def cross_entropy(
    logits: Inexact[Array, "... vocab"] | FactoredLogits,
    targets: Int[Array, "..."],
    weights: Float[Array, "..."] | None = None,
    *,
    ignore: int = -100,
) -> Inexact[Array, ""]:
    """Mean cross-entropy in nats over all leading axes (the *token mean*); holomorphic in `logits`.

    **Arguments:** `logits (..., V)`, an array or `FactoredLogits`; integer `targets (...)` in `[0, V)`, or `ignore`
    where nothing is asked; `weights (...)` of the tokens, at least 0, by which the mean is taken. It is 0 where
    nothing is asked at all.

    **Raises:** `ValueError` if shapes differ, or a target is another number; under tracing that one gives NaN.

    ```python
    loss = ej.cross_entropy(jnp.zeros((5, 8)), jnp.arange(5))  # logits of 5 tokens of 8, and which they are
    assert jnp.isclose(loss, jnp.log(8.0))
    ```
    """
    factored = isinstance(logits, FactoredLogits)
    if not factored:
        check_arrays(logits=logits)
        if jnp.ndim(logits) < 1 or not jnp.issubdtype(jnp.result_type(logits), jnp.inexact):
            refuse("logits", "be floating-point numbers, (..., V)", logits)
    check_arrays(targets=targets, **given(weights=weights))
    if not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        refuse("targets", "be whole numbers, the ids of tokens", targets)
    _same_shape("targets", targets, logits.shape[:-1])
    if weights is not None:
        _same_shape("weights", weights, targets.shape)
    asked = targets != ignore
    known = check_ids("targets", targets, logits.shape[-1], also=ignore)
    index = jnp.where(known & asked, targets, 0)
    if factored:
        losses = _chunked(logits.hidden, logits.head, index, logits.chunk)
    else:
        losses = _surprise(logits, index)
    losses = jnp.where(known, losses, jnp.nan)
    share = jnp.where(asked, 1 if weights is None else weights, 0).astype(losses.dtype)
    total = jnp.sum(share)
    return jnp.sum(jnp.where(asked, losses, 0) * share) / jnp.where(total == 0, 1, total)


def squared_error(outputs: Inexact[Array, "..."], targets: Num[Array, "..."]) -> Inexact[Array, ""]:
    """`½ Σ (outputs - targets)²`, without a conjugate: holomorphic in `outputs`.

    **Raises:** `ValueError` if the shapes differ.

    ```python
    assert ej.squared_error(x, start) > 0 == ej.squared_error(x, x)
    ```
    """
    check_arrays(outputs=outputs, targets=targets)
    _same_shape("targets", targets, outputs.shape)
    difference = outputs - targets.astype(outputs.dtype)
    return 0.5 * jnp.sum(difference * difference)


def rows(table: Inexact[Array, "v c"], index: Int[Array, " t"]) -> Inexact[Array, "t c"]:
    """`table[index]`, NaN where there is no such row.

    ```python
    assert jnp.isnan(ej.analytic.rows(jnp.eye(4), jnp.array([1, 4]))[1]).all()
    ```
    """
    return table.at[index].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def check_ids(
    name: str, ids: Int[Array | np.ndarray, "..."], size: int, also: int = 0
) -> Bool[Array | np.ndarray, "..."]:
    """Which `ids` lie in `[0, size)` or are `also`.

    JAX reads beyond the end of an array as its last entry, and below 0 from the end: neither is what was meant.

    **Raises:** `ValueError` where one does not, if they are known.
    """
    known = ((ids >= 0) & (ids < size)) | (ids == also)
    if not isinstance(known, Tracer) and not bool(known.all()):
        wrong = np.asarray(ids)[~np.asarray(known)]
        raise ValueError(f"`{name}` must lie in [0, {size}), got {wrong.flat[0]}.")
    return known


def _same_shape(name, value, wanted):
    # Broadcast, a loss would be a plausible number of something else.
    if value.shape != wanted:
        raise ValueError(f"`{name}` must have shape {wanted}, got {value.shape}.")


def _surprise(logits, index):
    """`-log p` of the tokens `index`."""
    # Compared, not indexed: the derivative is one pass over the logits, without a scatter into zeros.
    asked = jax.nn.one_hot(index, logits.shape[-1], dtype=bool)
    return logsumexp(logits) - jnp.sum(jnp.where(asked, logits, 0), axis=-1)


@functools.partial(jax.jit, static_argnums=3)
def _chunked(hidden, head, index, chunk):
    """`_surprise` of factored logits, `chunk` tokens at a time."""
    count = index.size
    parts = max(1, -(-count // chunk))
    if parts == 1:
        return _surprise(_product(hidden, head), index)
    size = -(-count // parts)
    cut = lambda a: jnp.pad(a, [(0, parts * size - count)] + [(0, 0)] * (a.ndim - 1))
    flat = cut(hidden.reshape(count, -1)).reshape(parts, size, -1), cut(index.ravel())
    # A scan adds up gradients in the dtype of what it is given.
    wide = head.astype(at_least_float32(head.dtype))

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan prevents it already
    def read(part):
        hidden, index = part
        return _surprise(_product(hidden, wide.astype(head.dtype)), index)

    losses = jax.lax.map(read, (flat[0], flat[1].reshape(parts, size)))
    return losses.ravel()[:count].reshape(index.shape)


@jax.custom_jvp
def _product(hidden, head):
    wide = at_least_float32(hidden.dtype)
    return jnp.einsum("...c,vc->...v", hidden, head, preferred_element_type=wide)


@functools.partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(primals, tangents):
    # The rule of a half-precision product with float32 results would multiply in float32 on the way back.
    (hidden, head), logits = primals, _product(*primals)
    zero = lambda tangent: isinstance(tangent, SymbolicZero)
    pairs = (tangents[0], head), (hidden, tangents[1])
    moved = [a @ b.T for a, b in pairs if not (zero(a) or zero(b))]
    return logits, functools.reduce(operator.add, moved).astype(logits.dtype)
