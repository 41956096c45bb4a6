"""Losses of one sample, holomorphic in the outputs."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Inexact, Int, Num

from .._checks import check_arrays, given, refuse
from ._functions import logsumexp


def cross_entropy(
    logits: Inexact[Array, "... vocab"],
    targets: Int[Array, "..."],
    weights: Float[Array, "..."] | None = None,
    *,
    ignore: int = -100,
) -> Inexact[Array, ""]:
    """Mean cross-entropy in nats over all leading axes (the *token mean*); holomorphic in `logits`.

    **Arguments:** `logits (..., V)`; integer `targets (...)` in `[0, V)`, or `ignore` where nothing is asked; `weights
    (...)` of the tokens, at least 0, by which the mean is taken. It is 0 where nothing is asked at all.

    **Raises:** `ValueError` if shapes differ, or a target is another number; under tracing that one gives NaN.
    """
    check_arrays(logits=logits, targets=targets, **given(weights=weights))
    if jnp.ndim(logits) < 1 or not jnp.issubdtype(jnp.result_type(logits), jnp.inexact):
        refuse("logits", "be floating-point numbers, (..., V)", logits)
    if not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        refuse("targets", "be whole numbers, the ids of tokens", targets)
    _same_shape("targets", targets, logits[..., 0])
    if weights is not None:
        _same_shape("weights", weights, targets)
    asked = targets != ignore
    known = check_ids("targets", targets, logits.shape[-1], also=ignore)
    picked = jnp.take_along_axis(logits, jnp.where(known & asked, targets, 0)[..., None], axis=-1)
    losses = jnp.where(known, logsumexp(logits) - picked[..., 0], jnp.nan)
    share = jnp.where(asked, 1 if weights is None else weights, 0).astype(losses.dtype)
    total = jnp.sum(share)
    return jnp.sum(jnp.where(asked, losses, 0) * share) / jnp.where(total == 0, 1, total)


def squared_error(outputs: Inexact[Array, "..."], targets: Num[Array, "..."]) -> Inexact[Array, ""]:
    """`½ Σ (outputs - targets)²`, without a conjugate: holomorphic in `outputs`.

    **Raises:** `ValueError` if the shapes differ.
    """
    check_arrays(outputs=outputs, targets=targets)
    _same_shape("targets", targets, outputs)
    difference = outputs - targets.astype(outputs.dtype)
    return 0.5 * jnp.sum(difference * difference)


def rows(table: Inexact[Array, "v c"], index: Int[Array, " t"]) -> Inexact[Array, "t c"]:
    """`table[index]`, NaN where there is no such row."""
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
    if value.shape != wanted.shape:
        raise ValueError(f"`{name}` must have shape {wanted.shape}, got {value.shape}.")
