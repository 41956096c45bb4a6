"""Floquet multipliers from the transfer matrices of a cycle, whatever their sizes."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from ._collocation import propagated
from ._decomposition import scattered
from ._host import on_host
from ._profile import Profile


def across_the_flow(transfer: Array, flow: Array) -> Array:
    """Transfer matrices on the planes across the flow, (N, n-1, n-1): derivatives of Poincaré maps, and so free of the
    multiplier 1, and of the defective pair that it forms in a fold. `flow (N, n)`: the velocity at each node."""
    frames = jnp.linalg.qr(flow[:, :, None], mode="complete")[0][:, :, 1:]
    return jnp.einsum("Nji,Njk,Nkl->Nil", jnp.roll(frames, -1, 0), transfer, frames)


def along_the_flow(transfer: Array, flow: Array) -> Array:
    """The logarithm of the multiplier along the flow, which is 0 but for the error of the integration."""
    after = jnp.roll(flow, -1, 0)
    carried = jnp.einsum("Nij,Nj->Ni", transfer, flow)
    # Step by step: over a whole turn what grows beside it would drown it.
    ratio = jnp.sum(after * carried, axis=1) / jnp.sum(after * after, axis=1)
    return jnp.sum(jnp.log(jnp.abs(ratio)))


def floquet(force: Callable, profile: Profile, q: Array, k: int) -> tuple[Array, Array]:
    """Logarithms of the k largest multipliers across a cycle, and by how much that along it, 1, is missed."""
    parts, n = max(1, 16 // profile.nodes.shape[1]), profile.nodes.shape[1]
    flow = jax.vmap(lambda z: force(z, q))(profile.nodes)
    whole, transfer = propagated(force, profile, q, parts)
    along = along_the_flow(whole, flow)
    # At the nodes the curve is known best: from there the velocity is carried along.
    step = lambda v, matrix: (jnp.einsum("Nij,Nj->Ni", matrix, v), v)
    _, between = jax.lax.scan(step, flow, jnp.swapaxes(transfer, 0, 1))
    between = jnp.swapaxes(between, 0, 1).reshape(-1, n)
    across = across_the_flow(transfer.reshape(-1, n, n), between)
    return log_multipliers(across, k), jnp.abs(jnp.expm1(along))


# Why not the eigenvalues of the product: the smallest of 1e-80 and 1 would be rounding. Orthogonal iteration around the
# turn (Bojanczyk, Golub & Van Dooren 1992) keeps each factor by itself, and sizes as sums of logarithms. It parts what
# differs in size; what hardly does is left in blocks, whose eigenvalues are those of a small scaled matrix.
def log_multipliers(
    transfer: Float[Array, "N n n"], k: int, sweeps: int = 40
) -> Complex[Array, " k"]:
    """Logarithms of the k largest eigenvalues of the product of the matrices, the first one rightmost."""
    n = transfer.shape[1]
    # Two more than asked, so that the cut falls among those that are not.
    width = min(k + 2, n)

    def step(carry, matrix):
        Q, sizes, product = carry
        Q, R = jnp.linalg.qr(matrix @ Q)
        # As rows that are scaled to 1 on the diagonal, and the logarithms of the scales.
        diagonal = jnp.abs(jnp.diagonal(R))
        grown = sizes + jnp.log(jnp.maximum(diagonal, jnp.finfo(R.dtype).tiny))
        weights = R * jnp.exp(jnp.minimum(sizes[None] - grown[:, None], 600.0))
        return (Q, grown, weights @ product), None

    def sweep(carry):
        start, last, _, _, taken = carry
        zero = jnp.zeros(width, start.dtype)
        eye = jnp.eye(width, dtype=start.dtype)
        (end, sizes, product), _ = jax.lax.scan(step, (start, zero, eye), transfer)
        return end, sizes, (start.T @ end, product), last, taken + 1

    def unsettled(carry):
        _, sizes, _, last, taken = carry
        change = jnp.max(jnp.abs(sizes - last))
        return (taken < 3) | ((taken < sweeps) & (change > 1e-12 * jnp.max(jnp.abs(sizes))))

    begin = jnp.eye(n, width, dtype=transfer.dtype)
    # Mixed, so that no direction is left out by a symmetry.
    begin = jnp.linalg.qr(begin + 0.1 * scattered(begin.shape, 0, begin.dtype))[0]
    eye, zero = jnp.eye(width, dtype=begin.dtype), jnp.zeros(width, begin.dtype)
    carry = begin, zero, (eye, eye), zero, jnp.asarray(0)
    _, sizes, (turn, product), _, _ = jax.lax.while_loop(unsettled, sweep, carry)
    dtype = np.result_type(begin.dtype, np.complex64)
    found = on_host(blocks, jax.ShapeDtypeStruct((width,), dtype), turn, product, sizes)
    return found[:k]


def blocks(turn, product, sizes):
    """Logarithms of the eigenvalues of `turn diag(exp(sizes)) product`, block by block of similar sizes."""
    if not all(np.all(np.isfinite(a)) for a in (turn, product, sizes)):
        return np.full(len(sizes), np.nan, complex)
    # Of a pair, too, one direction may grow far more in a turn than the other, but which one changes from turn to turn:
    # what has parted stays so. Beyond that ratio there is nothing to keep together.
    coupled = [np.max(abs(turn[b:, :b])) for b in range(1, len(sizes))]
    apart = np.diff(sizes) < np.where(np.array(coupled) < 1e-12, -1, -25)
    cuts = [0, *(np.flatnonzero(apart) + 1), len(sizes)]
    values = []
    for a, b in itertools.pairwise(cuts):
        top = sizes[a]
        block = turn[a:b, a:b] @ (np.exp(sizes[a:b] - top)[:, None] * product[a:b, a:b])
        with np.errstate(divide="ignore"):
            found = np.log(np.linalg.eigvals(block.astype(float)).astype(complex)) + top
        values += list(found)
    values: Any = np.array(values)
    # The pairs stay together, the one above the axis first.
    return values[np.lexsort((-values.imag, -np.round(values.real, 9)))]
