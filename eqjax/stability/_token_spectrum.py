"""The spectrum of a causal field, token by token."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, Int

from ..fields import AbstractCausalField, on_complex_vectors, written
from ..relaxation import check_causal
from ._host import on_host

WIDEST = 512  # channels, up to which a block is formed unasked


class TokenSpectrum(eqx.Module):
    """`values (T, C)`: all eigenvalues of the own block of every token, by falling real part; together those of the whole
    Jacobian. `abscissas (T,)`: the largest real part of each. `token`: where it is largest."""

    values: Complex[Array, "t c"]
    abscissas: Float[Array, " t"]
    token: Int[Array, ""]


def token_blocks(
    field: Any, z: Float[Array, "t c"], x: Inexact[Array, "t c"]
) -> Float[Array, "t c c"]:
    """The own blocks `∂F_t/∂z_t`, the diagonal of the Jacobian of a causal field at z, in full precision.

    ```python
    block = ej.fields.ThickBlock(4, 2, key=key)
    tokens = jnp.ones((3, 4))
    blocks = jax.eval_shape(lambda z: ej.stability.token_blocks(block, z, z), tokens)
    assert blocks.shape == (3, 4, 4)
    ```
    """
    check_causal(field, z)
    past = field.remember(z)

    def block(inputs):
        t, state, clamped = inputs
        own = lambda u: field.after(0.0, u[None], clamped[None], past, t)[0]
        return jax.jacfwd(own)(state)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(block, (jnp.arange(z.shape[0]), z, x))


# Why not the whole: J is block lower triangular, so that these are its eigenvalues, all C · T of them, and exact where those
# of a matrix so far from normal are hardly to be had. And they name the token.
@eqx.filter_jit
def token_spectrum(field: Any, z: Float[Array, "t c"], x: Inexact[Array, "t c"]) -> TokenSpectrum:
    """All eigenvalues of a causal field's Jacobian at z, by the tokens they belong to.

    **Arguments:** `field`: an `AbstractCausalField`; `z`, `x`: state and input of one sample (`jax.vmap` for a batch).

    **Raises:** `ValueError` for a field that is not causal.

    ```python
    block = ej.fields.ThickBlock(4, 2, attention_gain=0.0, residual_scale=0.0, key=key)  # F = x - 2 z
    found = ej.stability.token_spectrum(block, jnp.ones((3, 4)), jnp.ones((3, 4)))
    assert jnp.allclose(found.abscissas, -2)
    ```
    """
    values, _, _, _ = _decomposed(token_blocks(field, z, x), 1)
    abscissas = values[:, 0].real
    return TokenSpectrum(values, abscissas, jnp.argmax(abscissas))


def by_blocks(field: Any, z: Any, *asked: Any) -> bool:
    """Whether a spectrum is that of own blocks: of a causal field, if no setting of a search is `asked` for."""
    causal = isinstance(field, AbstractCausalField)
    one = isinstance(z, (jax.Array, np.ndarray)) and z.ndim == 2
    idle = all(setting is None for setting in asked)
    return idle and causal and one and jnp.isrealobj(z) and z.shape[1] <= WIDEST


class TokenModes(NamedTuple):
    """The k rightmost modes of the whole: eigenvalues, vectors `(k, T · C)`, and the tokens they belong to; and all values."""

    values: Complex[Array, " k"]
    vectors: Complex[Array, "k n"]
    tokens: Int[Array, " k"]
    every: Complex[Array, "t c"]


def token_modes(field: Any, z: Float[Array, "t c"], x: Inexact[Array, "t c"], k: int) -> TokenModes:
    """A mode of a token moves it and those after it: its own part is an eigenvector of the block, and the others follow in
    order, by substitution."""
    blocks, memory = token_blocks(field, z, x), field.remember(z)
    every, values, tokens, own = _decomposed(blocks, k)
    eye = jnp.eye(z.shape[1], dtype=values.dtype)
    still = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, values.dtype), memory)

    def mode(value, token, own):
        # Off the eigenvalue by rounding, as in inverse iteration: a later token may have the same one.
        off = 10 * jnp.finfo(z.dtype).eps * (1 + jnp.abs(value))
        near = value + off.astype(value.dtype)

        def one(moved, inputs):
            s, u, clamped, block = inputs
            after = lambda past: field.after(0.0, u[None], clamped[None], past, s)[0]
            push = lambda v: jax.jvp(after, (memory,), (v,))[1]
            note = lambda v: jax.jvp(field.remember, (u[None],), (v[None],))[1]
            driven = -on_complex_vectors(push)(moved)
            follows = jnp.linalg.solve(block.astype(eye.dtype) - near * eye, driven)
            v = jnp.where(s < token, 0, jnp.where(s == token, own, follows))
            return written(moved, on_complex_vectors(note)(v), s), v

        _, rows = jax.lax.scan(one, still, (jnp.arange(z.shape[0]), z, x, blocks))
        flat = rows.ravel()
        largest = flat[jnp.argmax(jnp.abs(flat))]
        turned = flat * (largest.conj() / jnp.abs(largest).astype(flat.dtype))
        return turned / jnp.linalg.norm(turned).astype(flat.dtype)

    with jax.default_matmul_precision("highest"):
        vectors = jax.vmap(mode)(values, tokens, own)
    return TokenModes(values, vectors, tokens, every)


def _decomposed(blocks, k):
    """All eigenvalues by token, and the k rightmost with their tokens and own vectors."""
    count, width, _ = blocks.shape
    kind = jnp.complex64 if blocks.dtype == jnp.float32 else jnp.complex128
    shapes = (
        jax.ShapeDtypeStruct((count, width), kind),
        jax.ShapeDtypeStruct((k,), kind),
        jax.ShapeDtypeStruct((k,), jnp.int32),
        jax.ShapeDtypeStruct((k, width), kind),
    )
    every, values, tokens, own = on_host(functools.partial(_by_lapack, k), shapes, blocks)
    return every, values, tokens.astype(int), own


def _by_lapack(k, blocks):
    count, width, _ = blocks.shape
    if not np.all(np.isfinite(blocks)):
        empty = np.full((count, width), np.nan)
        return empty, empty.ravel()[:k], np.zeros(k), np.full((k, width), np.nan)
    values: Any = np.linalg.eigvals(blocks).astype(complex)
    # Of a pair, whose real parts are the same number, the one above the axis first.
    values = np.take_along_axis(values, np.lexsort((-values.imag, -values.real), axis=1), axis=1)
    token = np.repeat(np.arange(count), width)
    first = np.lexsort((-values.imag.ravel(), token, -values.real.ravel()))[:k]
    chosen, tokens = values.ravel()[first], token[first]
    pairs = {t: np.linalg.eig(blocks[t]) for t in set(tokens.tolist())}
    own = [_taken(*pairs[t], value) for t, value in zip(tokens.tolist(), chosen, strict=True)]
    return values, chosen, tokens, np.stack(own)


def _taken(values, vectors, value):
    """The eigenvector of a value; each is given once, so that a multiple one gets several."""
    nearest = np.argmin(np.abs(values - value))
    values[nearest] = np.inf
    return vectors[:, nearest]
