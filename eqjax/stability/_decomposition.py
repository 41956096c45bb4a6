"""Krylov decompositions: how they grow, and how they are restarted."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int

from ._host import on_host, truncate

# What "most wanted first" means; written with methods that NumPy and JAX arrays share.
WHICH: dict[str, Callable[[Any], Any]] = {
    "LR": lambda values: values.real,
    "SR": lambda values: -values.real,
    "LM": lambda values: abs(values),
    "LI": lambda values: abs(values.imag),
}


def _rational(values):
    """How far to the right `λ = c + s/θ` is, as `s / (c - Re λ)`, of those θ that any λ within `Rightmost`'s bounds has."""
    size, left = abs(values), -values.real
    possible = (left > 0) & (abs(values.imag) <= 1.01 * left) & (size <= 1.01)
    return np.where(possible, size**2 / np.where(possible, left, 1), 0.0)


# What a transform may ask for beside that.
RANKS = WHICH | {"rational": _rational}


class Decomposition(NamedTuple):
    """A Krylov decomposition `A V = V S + v bᴴ` (Stewart 2001) of `size` vectors.

    Row i of `basis` is the i-th orthonormal vector and row `size` is v; rows beyond are zero. The columns before
    `size` of `projection` hold S in the rows before `size`, and bᴴ in row `size`. The first `wanted` vectors span
    the invariant subspace sought.
    """

    basis: Inexact[Array, "m+1 n"]
    projection: Inexact[Array, "m+1 m"]
    size: Int[Array, ""]
    wanted: Int[Array, ""]
    locked: Float[Array, " k"]
    done: Bool[Array, ""]
    complete: Bool[Array, ""]
    products: Int[Array, ""]
    restarts: Int[Array, ""]


# Why a second search. A Krylov space holds one vector of each eigenspace, that of its start: of a symmetric field most
# eigenvalues come once for twice or four times. Blocks of vectors must be as wide as the multiplicity, which is not known.
# With what has converged locked, a new random vector sees the next copy, or, as the best of what is left, that there is none.
def decompose(operator, start, key, *, k, which, ncv, tol, max_restarts) -> Decomposition:
    """Restart until the leading `k` Ritz values (`k + 1` where a pair would be cut) have converged, and none is missing."""
    m, eps = ncv, float(jnp.finfo(start.dtype).eps)
    # In the whole space there is nothing left to be missed, and of one value no copy matters.
    again = k > 1 and m < start.size
    reduce = functools.partial(truncate, k=k, rank=RANKS[which], eps=eps, again=again)
    tol, zero = jnp.asarray(tol, jnp.finfo(start.dtype).dtype), jnp.asarray(0, jnp.int32)
    basis = jnp.zeros((m + 1, start.size), start.dtype).at[0].set(unit(start))
    projection, nothing = jnp.zeros((m + 1, m), start.dtype), jnp.full(k, jnp.nan, tol.dtype)
    shapes = jax.eval_shape(lambda: (projection[:m], projection, zero, zero, nothing, zero, zero))

    def cycle(state):
        # Never the same twice; not shifted, for under a shift a field may be symmetric.
        fresh = drawn(key, state.restarts + 1, start)
        basis, projection, more = expand(operator, state.basis, state.projection, state.size, fresh)
        # The host must know, for the last restart keeps the wanted vectors only.
        last = (state.restarts + 1 >= max_restarts).astype(jnp.int32)
        rotation, projection, size, wanted, locked, ended, anew = on_host(
            reduce, shapes, projection, tol, last, state.locked
        )
        # A Schur form is block triangular, so the columns kept still satisfy A V = V S + v bᴴ with the last
        # vector as v: nothing need be multiplied anew.
        kept = jnp.zeros_like(basis).at[:m].set(rotation.T @ basis[:m])
        following = jnp.where(anew > 0, orthogonal(fresh, kept), basis[m])
        return Decomposition(
            basis=kept.at[size].set(following),
            projection=projection,
            size=size,
            wanted=wanted,
            locked=locked,
            done=ended > 0,
            complete=ended > 1,
            products=state.products + more,
            restarts=state.restarts + 1,
        )

    # A compiled loop: all but the small Schur forms stays on the device, under `jit` and `vmap`.
    no = jnp.asarray(False)
    state = Decomposition(basis, projection, zero, zero, nothing, no, no, zero, zero)
    return jax.lax.while_loop(lambda s: ~s.done, cycle, state)


def drawn(key, count, like):
    """A Gaussian vector, another one for each count."""
    return jax.random.normal(jax.random.fold_in(key, count), like.shape, like.dtype)


def orthogonal(v, basis):
    """The unit vector of what of v lies outside of an orthonormal basis."""
    for _ in range(2):
        v = v - (basis.conj() @ v) @ basis
    return unit(v)


def expand(operator, basis, projection, size, noise):
    """Arnoldi steps from `size` vectors to all; returns basis, projection and the products made.

    Where the Krylov space is exhausted they go on from `noise`, shifted so that no two vectors are alike.
    """
    m, eps = projection.shape[1], jnp.finfo(basis.dtype).eps

    def step(carry):
        basis, projection, j, products = carry

        def attempt(carry):
            w, column, tries, _ = carry
            length, total = norm(w), jnp.zeros_like(column)
            # Classical Gram–Schmidt, twice: two matrix products, orthogonal to rounding, as in `GMRES`.
            for _ in range(2):  # rows of the basis not yet written are zero and take no part
                overlap = basis.conj() @ w
                w, total = w - overlap @ basis, total + overlap
            beta = norm(w)
            # What is left of an exhausted space is rounding. The coupling to the new vector is then 0,
            # exactly: the spaces do not know of each other.
            fine = beta > 10 * eps * length
            total = total.at[j + 1].set(jnp.where(fine, beta, 0).astype(w.dtype))
            w = jnp.where(
                fine, w / jnp.where(fine, beta, 1).astype(w.dtype), jnp.roll(noise, j + tries)
            )
            # The random vector is no image under A: its overlaps do not enter the column.
            return w, jnp.where(tries == 0, total, column), tries + 1, fine

        w, cost = operator(basis[j])
        fresh = (w, jnp.zeros(m + 1, w.dtype), jnp.zeros_like(j), jnp.asarray(False))
        # A random vector may lie in the space by bad luck, or because the space is all there is: four tries.
        w, column, _, fine = jax.lax.while_loop(lambda c: ~c[3] & (c[2] < 4), attempt, fresh)
        return (
            basis.at[j + 1].set(
                jnp.where(fine, w, 0)
            ),  # zero: there is nothing beyond the whole space
            projection.at[:, j].set(column),
            j + 1,
            products + cost.astype(products.dtype),
        )

    start = (basis, projection, size, jnp.zeros_like(size))
    basis, projection, _, products = jax.lax.while_loop(lambda c: c[2] < m, step, start)
    return basis, projection, products


def norm(v):
    return jnp.sqrt(jnp.sum(abs(v) ** 2))


def unit(v):
    size = norm(v)
    return v / jnp.where(size > 0, size, 1).astype(v.dtype)


# Why not `jax.random`: a start need not be random, only like nothing else, and Threefry was a third of what was compiled.
def scattered(shape: tuple[int, ...], seed: Any, dtype: Any) -> Array:
    """Numbers between -1 and 1 without a pattern."""
    real = jnp.finfo(dtype).dtype
    count = jnp.arange(1, 1 + math.prod(shape), dtype=real).reshape(shape)
    turned = 43758.5453 * jnp.sin(12.9898 * count + 78.233 * jnp.asarray(seed, real))
    return (2 * (turned - jnp.floor(turned)) - 1).astype(dtype)
