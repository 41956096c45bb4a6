"""Elementary functions written once, right on real *and* complex arrays.

Every function here is holomorphic in its array arguments near the real axis, so the same field serves
real states, complex nudges and complex-step differentiation. Masks, targets and shifts are not
differentiated.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Inexact


def _like(parameter: Array, z: Array) -> Array:
    """Give `parameter` leading axes so that it broadcasts against `z` without rank promotion."""
    return jnp.expand_dims(parameter, tuple(range(z.ndim - parameter.ndim)))


def scale(z: Inexact[Array, "..."], weight: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`z * weight` over the trailing axes, for a real weight and a real or complex `z`.

    ```python
    assert ej.analytic.scale(z, 2 * x).tolist() == [2j] * 4
    ```
    """
    weight = _like(weight, z)
    if jnp.iscomplexobj(z) and not jnp.iscomplexobj(weight):
        return lax.complex(z.real * weight, z.imag * weight)
    return z * weight


def shift(z: Inexact[Array, "..."], bias: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`z + bias` over the trailing axes, for a real bias and a real or complex `z`.

    ```python
    assert ej.analytic.shift(z, x).tolist() == [1 + 1j] * 4
    ```
    """
    bias = _like(bias, z)
    if jnp.iscomplexobj(z) and not jnp.iscomplexobj(bias):
        return lax.complex(z.real + bias, z.imag)
    return z + bias


def matmul(
    z: Inexact[Array, "*batch n"], weight: Inexact[Array, "n m"]
) -> Inexact[Array, "*batch m"]:
    """`z @ weight`; a complex `z` meets a real weight as two real products (no cast of the weight).

    ```python
    assert ej.analytic.matmul(z, jnp.eye(4)).tolist() == (z).tolist()
    ```
    """
    if jnp.iscomplexobj(z) and not jnp.iscomplexobj(weight):
        return lax.complex(z.real @ weight, z.imag @ weight)
    return z @ weight


def _masked_exp(logits: Array, mask: Array | None, axis: int) -> tuple[Array, Array]:
    """`exp(logits - top)` with masked entries exactly zero, and `top`, taken over valid entries only."""
    real = logits.real
    if mask is not None:
        mask = jnp.broadcast_to(mask, logits.shape)
        real = jnp.where(mask, real, -jnp.inf)
    top = jnp.max(real, axis=axis, keepdims=True)
    top = lax.stop_gradient(jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top)))
    shifted = logits - top.astype(logits.dtype)
    if mask is None:
        return jnp.exp(shifted), top
    # Masked entries are replaced before the exponential, so neither value nor gradient can overflow.
    powers = jnp.exp(jnp.where(mask, shifted, jnp.zeros_like(shifted)))
    return jnp.where(mask, powers, jnp.zeros_like(powers)), top


def softmax(
    logits: Inexact[Array, "..."], mask: Bool[Array, "..."] | None = None, axis: int = -1
) -> Inexact[Array, "..."]:
    """Softmax over `axis`, restricted to entries where `mask` is true.

    **Arguments:** `logits`, real or complex; `mask`, broadcastable to `logits`, true = valid.

    **Returns:** an array of the same shape and dtype; masked entries are exactly 0, and so is a slice with
    no valid entry.

    ```python
    assert ej.analytic.softmax(start).tolist() == [0.25] * 4
    ```
    """
    powers, _ = _masked_exp(logits, mask, axis)
    total = jnp.sum(powers, axis=axis, keepdims=True)
    return powers / jnp.where(total == 0, jnp.ones_like(total), total)


def logsumexp(
    logits: Inexact[Array, "..."], mask: Bool[Array, "..."] | None = None, axis: int = -1
) -> Inexact[Array, "..."]:
    """`log Σ exp(logits)` over the valid entries of `axis` (at least one must be valid).

    ```python
    assert jnp.isclose(ej.analytic.logsumexp(start), jnp.log(4.0))
    ```
    """
    powers, top = _masked_exp(logits, mask, axis)
    return jnp.log(jnp.sum(powers, axis=axis)) + jnp.squeeze(top, axis).astype(logits.dtype)


def softplus(z: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """`log(1 + e^z)`, without overflow.

    ```python
    assert jnp.allclose(ej.analytic.softplus(start), jnp.log(2.0))
    ```
    """
    return logsumexp(jnp.stack([z, jnp.zeros_like(z)], axis=-1))


def gelu(z: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """The tanh form of GELU (Hendrycks & Gimpel 2016; GPT-2's `gelu_new`).

    ```python
    assert ej.analytic.gelu(start).tolist() == start.tolist()
    ```
    """
    return 0.5 * z * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (z + 0.044715 * z * z * z)))


def layer_norm(
    z: Inexact[Array, "*batch n"],
    weight: Float[Array, " n"] | None = None,
    bias: Float[Array, " n"] | None = None,
    eps: float = 1e-5,
) -> Inexact[Array, "*batch n"]:
    """Layer norm over the last axis. The variance is `mean((z - mean)²)` without a conjugate: holomorphic.

    ```python
    assert not ej.analytic.layer_norm(x).any()
    ```
    """
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    return rms_norm(centred, weight, bias, eps)


def rms_norm(
    z: Inexact[Array, "*batch n"],
    weight: Float[Array, " n"] | None = None,
    bias: Float[Array, " n"] | None = None,
    eps: float = 1e-5,
) -> Inexact[Array, "*batch n"]:
    """RMS norm over the last axis, `z / sqrt(mean(z²) + eps)`, with optional gain and bias.

    ```python
    assert jnp.allclose(ej.analytic.rms_norm(x), x, rtol=1e-4)
    ```
    """
    out = z / jnp.sqrt(jnp.mean(z * z, axis=-1, keepdims=True) + eps)
    out = out if weight is None else scale(out, weight)
    return out if bias is None else shift(out, bias)


def causal_mask(length: int) -> Bool[Array, "length length"]:
    """True where a query (row) may see a key (column): keys at or before the query.

    ```python
    assert ej.analytic.causal_mask(2).tolist() == [[True, False], [True, True]]
    ```
    """
    return jnp.tril(jnp.ones((length, length), bool))


def heads(z: Inexact[Array, "t c"], n: int) -> Inexact[Array, "h t d"]:
    """Split channels into `n` heads: `(T, C) → (n, T, C/n)`.

    ```python
    assert ej.analytic.heads(jnp.ones((3, 4)), 2).shape == (2, 3, 2)
    ```
    """
    return jnp.swapaxes(z.reshape(z.shape[0], n, -1), 0, 1)


def unheads(z: Inexact[Array, "h t d"]) -> Inexact[Array, "t c"]:
    """The inverse of `heads`: `(n, T, d) → (T, n·d)`.

    ```python
    assert ej.analytic.unheads(ej.analytic.heads(jnp.ones((3, 4)), 2)).shape == (3, 4)
    ```
    """
    return jnp.swapaxes(z, 0, 1).reshape(z.shape[1], -1)


def attention(
    q: Inexact[Array, "h t d"],
    k: Inexact[Array, "h s d"],
    v: Inexact[Array, "h s e"],
    mask: Bool[Array, "t s"] | None = None,
    inverse_temperature: float | None = None,
) -> Inexact[Array, "h t e"]:
    """Softmax attention `softmax(β q kᵀ) v` per head, `β = 1/sqrt(d)` unless given (Vaswani et al. 2017).

    ```python
    found = ej.analytic.attention(q, q, q, ej.analytic.causal_mask(3))
    assert found.shape == q.shape and jnp.all(found[:, 0] == q[:, 0])
    ```
    """
    beta = q.shape[-1] ** -0.5 if inverse_temperature is None else inverse_temperature
    scores = jnp.einsum("htd,hsd->hts", q, k) * beta
    weights = softmax(scores, None if mask is None else jnp.broadcast_to(mask[None], scores.shape))
    return jnp.einsum("hts,hse->hte", weights, v)


def is_complex(tree) -> bool:
    """Whether any array of `tree` is complex.

    ```python
    assert ej.analytic.is_complex(z) and not ej.analytic.is_complex(x)
    ```
    """
    return any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(tree))


def tree_complex(tree):
    """`tree` with its real arrays as complex ones.

    ```python
    assert ej.analytic.is_complex(ej.analytic.tree_complex({"state": x})["state"])
    ```
    """
    return jax.tree.map(lambda a: lax.complex(a, jnp.zeros_like(a)), tree)


def at_least_float32(dtype: Any) -> Any:
    """The dtype, or float32 for half precision.

    ```python
    assert ej.analytic.at_least_float32(jnp.bfloat16) == jnp.float32
    ```
    """
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def tree_cast(tree, dtype):
    """`tree` with every inexact array leaf cast to `dtype` (a float64 probe of a float32 model, say).

    ```python
    assert ej.tree_cast(field, jnp.float16).weight.dtype == jnp.float16
    ```
    """
    return jax.tree.map(
        lambda leaf: (
            leaf.astype(dtype)
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            else leaf
        ),
        tree,
    )


def tree_held(tree):
    """`tree` with its arrays held fixed under differentiation.

    ```python
    square = lambda z: jnp.sum(z * ej.analytic.tree_held(z))
    assert jax.grad(square)(x).tolist() == x.tolist()  # half of what it is without
    ```
    """
    # Anew as arrays: of a Python number given to `jax.grad`, what is held is that number again.
    return jax.tree.map(
        lambda leaf: jnp.asarray(lax.stop_gradient(leaf)) if isinstance(leaf, jax.Array) else leaf,
        tree,
    )


def tree_finite(tree):
    """Whether every number of `tree` is finite.

    ```python
    assert ej.analytic.tree_finite({"state": x})
    ```
    """
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def tree_where(condition, new, old):
    """`new` where the scalar condition holds, else `old`; leaves that are no arrays are those of `new`.

    ```python
    assert ej.analytic.tree_where(jnp.asarray(True), {"z": x}, {"z": start})["z"].all()
    ```
    """
    return jax.tree.map(
        lambda a, b: jnp.where(condition, a, b) if isinstance(a, jax.Array) else a, new, old
    )
