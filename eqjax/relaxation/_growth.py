"""How fast a disturbance of a fixed point grows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Inexact, PyTree

from ..analytic import at_least_float32, vary_like

PRODUCTS, _SQUARINGS = 24, 24


def abscissa_of(field: Callable[..., Any], z: PyTree[Array], x: PyTree) -> Float[Array, ""]:
    """An estimate of the largest real part of the eigenvalues of `dF/dz`, from at most 24 products with it (Arnoldi)."""
    flat, unravel = ravel_pytree(z)
    force = lambda flat: ravel_pytree(field(0.0, unravel(flat), x))[0]
    value, product = jax.linearize(force, flat)
    count, eps = min(PRODUCTS, flat.size), jnp.finfo(flat.dtype).eps
    start = np.random.default_rng(0).normal(size=flat.size)
    first = vary_like(jnp.asarray(start / np.linalg.norm(start), flat.dtype), flat, value)

    def extend(carry, j):
        basis, v = carry
        basis = basis.at[j].set(v)
        w = product(v)
        length, column = jnp.linalg.norm(w), jnp.zeros(count, flat.dtype)
        for _ in range(2):  # once more, against rounding
            overlap = basis @ w
            w, column = w - overlap @ basis, column + overlap
        rest = jnp.linalg.norm(w)
        # What is left of a space that is mapped into itself is rounding.
        closed = rest <= 100 * eps * length
        v = jnp.where(closed, 0, w / jnp.where(closed, 1, rest))
        return (basis, v), (column, jnp.where(closed, 0, rest), jnp.any(basis[j] != 0))

    blank = vary_like(jnp.zeros((count, flat.size), flat.dtype), first)
    _, (columns, below, used) = jax.lax.scan(extend, (blank, first), jnp.arange(count))
    matrix = columns.T + jnp.diag(below[:-1], -1)
    size = jnp.max(jnp.sum(jnp.abs(matrix), axis=0))
    # Directions that there are not decay fast.
    return _abscissa(matrix - jnp.diag(jnp.where(used, 0, 2 * size)))


# Why by squaring. The largest real part is the logarithm of the spectral radius of the exponential: products of a small matrix,
# on any device, where the eigenvalues of one that is not symmetric are to be had on a CPU only.
def _abscissa(matrix: Inexact[Array, "m m"]) -> Float[Array, ""]:
    matrix = matrix.astype(at_least_float32(matrix.dtype))
    size = jnp.max(jnp.sum(jnp.abs(matrix), axis=0))
    unit = jnp.where(size > 0, size, 1)
    matrix, one = matrix / unit, jnp.eye(len(matrix), dtype=matrix.dtype)
    # Of norm 1 the series has all its digits after 20 terms.
    terms = jnp.arange(20, 0, -1, dtype=matrix.dtype)
    power, _ = jax.lax.scan(lambda m, k: (one + matrix @ m / k, None), one + 0 * matrix, terms)

    def square(carry, weight):
        rate, power = carry
        length = jnp.linalg.norm(power)
        power = power / length
        return (rate + weight * jnp.log(length), power @ power), None

    weights = 0.5 ** jnp.arange(_SQUARINGS, dtype=matrix.dtype)
    return unit * jax.lax.scan(square, (0 * unit, power), weights)[0][0]
