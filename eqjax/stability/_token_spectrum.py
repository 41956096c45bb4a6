"""The spectrum of a causal field, token by token."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, Int

from ..relaxation import check_causal
from ._host import on_host


class TokenSpectrum(eqx.Module):
    """`values (T, C)`: all eigenvalues of the own block of every token, by falling real part; together those of the whole
    Jacobian. `abscissas (T,)`: the largest real part of each. `token`: where it is largest."""

    values: Complex[Array, "t c"]
    abscissas: Float[Array, " t"]
    token: Int[Array, ""]


def token_blocks(
    field: Any, z: Float[Array, "t c"], x: Inexact[Array, "t c"]
) -> Float[Array, "t c c"]:
    """The own blocks `∂F_t/∂z_t`, the diagonal of the Jacobian of a causal field at z, in full precision."""
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
    """
    blocks = token_blocks(field, z, x)
    kind = jnp.complex64 if blocks.dtype == jnp.float32 else jnp.complex128
    shape = jax.ShapeDtypeStruct(blocks.shape[:2], kind)
    values = on_host(_sorted, shape, blocks)
    abscissas = values[:, 0].real
    return TokenSpectrum(values, abscissas, jnp.argmax(abscissas))


def _sorted(blocks):
    if not np.all(np.isfinite(blocks)):
        return np.full(blocks.shape[:2], np.nan)
    values = np.linalg.eigvals(blocks)
    return np.take_along_axis(values, np.argsort(-values.real, axis=1), axis=1)
