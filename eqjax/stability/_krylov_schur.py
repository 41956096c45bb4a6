"""Krylov–Schur: some eigenvalues of an operator that is known only by its products."""

import abc
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, Inexact, Int, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_count, given
from ..analytic import is_complex, matmul
from ..fields import on_complex_vectors
from ._decomposition import RANKS, WHICH, decompose, drawn, norm, unit
from ._host import eigen, leading, on_host


class Eigenpairs(eqx.Module):
    """What `krylov_schur` returns, most wanted pair first; of a conjugate pair the one above the axis is first.

    - `values (k,)`, complex.
    - `vectors`: in the structure of the start, complex, leading axis k; unit length, largest entry real positive.
    - `residuals`: `‖A v - μ v‖ / max(|μ|, eps^⅔ s)`, from products made at the end.
    - `converged`: residual at most `tol`, or `‖A v - μ v‖` at most `20 eps s √restarts`, the rounding that gathers; and
      a second search has seen that no copy of an eigenvalue is missing before them.
    - `magnitude`: s, the size of `A r` for a random unit r: the root mean square of A's singular values, roughly.
    - `products`: of A with a vector, all told. `restarts`: of the Krylov space.
    """

    values: Complex[Array, " k"]
    vectors: PyTree[Array]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    magnitude: Float[Array, ""]
    products: Int[Array, ""]
    restarts: Int[Array, ""]


class Transformed(NamedTuple):
    """A transform at work on one A. `apply`: `v -> (f(A) v, products with A that it took)`; `faithful`: which
    eigenvalues of A stood out because they are wanted; `products`: spent on setting it up."""

    apply: Callable[[Array], tuple[Array, Array]]
    faithful: Callable[[Array], Array]
    products: Array


class AbstractTransform(eqx.Module):
    """A function f(A) with the eigenvectors of A, in whose spectrum the wanted eigenvalues of A stand out as
    `which` says. The eigenvalues of A itself are read off by projecting it on the subspace found."""

    which: eqx.AbstractVar[str]

    @abc.abstractmethod
    def prepare(self, mv: Callable, noise: Array) -> Transformed:
        """f(A) for the product `mv` with A, on flat vectors like the random `noise`."""

    @abc.abstractmethod
    def dtype(self, dtype: Any) -> Any:
        """The dtype in which f(A) acts for an A of `dtype`: complex where f has no real form."""

    @abc.abstractmethod
    def rank(self, values: Array) -> Array:
        """How wanted each eigenvalue of A is (larger is more); in real arithmetic, conjugates alike."""


def everything(values: Array) -> Array:
    """The `faithful` of a transform that cannot mislead."""
    return jnp.ones(values.shape, bool)


class Plain(AbstractTransform):
    """A itself: the eigenvalues at the edge of its spectrum that `which` names (see `krylov_schur`)."""

    which: str = eqx.field(default="LR", static=True)

    def __check_init__(self):
        if self.which not in WHICH:
            raise ValueError(
                f"`which` must be one of {', '.join(WHICH)}, got {self.which!r}. For the eigenvalues nearest to "
                "a point pass transform=ShiftInvert(point)."
            )

    def prepare(self, mv, noise):
        one = jnp.asarray(1)
        return Transformed(lambda v: (mv(v), one), everything, jnp.asarray(0))

    def dtype(self, dtype):
        return dtype

    def rank(self, values):
        return WHICH[self.which](values)


# Why restarts, and why of a Schur form. The edge that is wanted of a stiff spectrum shows last: an Arnoldi
# run of 120 vectors still gets the sign of the Brusselator wave's rightmost eigenvalue wrong, and each vector
# costs memory and all inner products. A restart filters the rest of the spectrum out. ARPACK's implicit one
# (Sorensen 1992) does the same in exact arithmetic, but by QR steps that are unstable in the forward sense
# and need deflation and purging by cases; to cut a Schur form is one rotation (Stewart 2001).
def krylov_schur(
    mv: Callable[[PyTree[Array]], PyTree[Array]],
    start: PyTree[Array],
    *,
    k: int = 6,
    which: str | None = None,
    transform: AbstractTransform | None = None,
    ncv: int | None = None,
    tol: ScalarLike | None = None,
    max_restarts: int = 1000,
    key: PRNGKeyArray,
) -> Eigenpairs:
    """Eigenvalues of a linear operator A at an edge of its spectrum, or where a transform looks for them.

    The Krylov–Schur method (Stewart 2001): an Arnoldi decomposition of `ncv` vectors is truncated to the
    invariant subspace of its most wanted Ritz values, in a real Schur form if A is real, so that conjugate pairs
    stay together, and is grown again. Half of the vectors are kept, a thick restart (Wu & Simon 2000), and more as
    pairs converge. Gram–Schmidt is done twice; where the Krylov space is exhausted it goes on from a random vector, and so
    it does when all k > 1 have converged, until that brings nothing new: one vector sees one copy of each eigenvalue.
    The small Schur forms come from LAPACK on the host, one call a restart; everything else is one compiled loop, and
    under `vmap` every sample stops by itself.

    **Arguments:**

    - `mv`: the product, `v -> A v`; linear (over the complex numbers if `start` is complex).
    - `start`: the first Krylov vector, any pytree of one dtype.
    - `k`: how many eigenvalues; at most the size of the space.
    - `which`: "LR" rightmost (the default), "SR" leftmost, "LM" of largest magnitude, "LI" of largest imaginary
      part in magnitude. A `transform` (`ShiftInvert`, `Propagator`) says itself what it finds.
    - `ncv`: Krylov vectors kept, by default `max(2k + 1, 20)`; no more than the size of the space are used.
    - `tol`: stop when `‖A v - μ v‖ ≤ tol |μ|`; by default eps^⅔, which is 4e-11 in float64 and 2e-5 in float32.
    - `max_restarts`: when to give up. `key`: of the random vectors from which the search goes on.

    **Returns:** `Eigenpairs`. If `k` cuts a conjugate pair, its member above the real axis is returned. An eigenvalue
    that is repeated comes as often as it occurs, or up to k. Not differentiable; see `eigenvalue`.

    ```python
    found = ej.stability.krylov_schur(lambda v: 2 * v, origin + 1, k=1, key=key)
    assert jnp.allclose(found.values.real, 2)
    ```
    """
    transform = resolve(which, transform)
    check_sizes(k, ncv, max_restarts, optax.tree.size(start))
    # An array, so that another tolerance does not compile anew.
    tol = None if tol is None else jnp.asarray(tol)
    return _krylov_schur(mv, start, k, transform, ncv, tol, max_restarts, key)


@eqx.filter_jit
def _krylov_schur(mv, start, k, transform, ncv, tol, max_restarts, key):
    flat, unravel = ravel_pytree(start)

    def apply(v):
        return ravel_pytree(mv(unravel(v)))[0]

    pairs, _ = eigenpairs(apply, flat, key, k, transform, ncv, tol, max_restarts)
    return eqx.tree_at(lambda p: p.vectors, pairs, unravel_complex(unravel, pairs.vectors))


def resolve(which: str | None, transform: AbstractTransform | None) -> AbstractTransform:
    """The transform that `which` and `transform` ask for together."""
    if transform is None:
        return Plain("LR" if which is None else which)
    if which is not None:
        raise ValueError(
            f"`transform={type(transform).__name__}(...)` says itself which eigenvalues it finds: leave out "
            f"`which={which!r}`."
        )
    return transform


def check_sizes(k: int, ncv: int | None, max_restarts: int, n: int) -> None:
    """Refuse counts that make no sense for a space of n dimensions."""
    check_count(0, k=k, **given(ncv=ncv))
    if not 1 <= k <= n:
        raise ValueError(f"`k` must lie between 1 and the size of the state, {n}, got {k}.")
    if ncv is not None and ncv < min(k + 2, n):
        raise ValueError(
            f"`ncv` must be at least k + 2 = {k + 2} to leave room to search, got {ncv}. Leave it out, or try "
            f"ncv={max(2 * k + 1, 20)}."
        )
    check_count(max_restarts=max_restarts)


def unravel_complex(unravel: Callable, rows: Complex[Array, "k n"]) -> PyTree[Array]:
    """Complex vectors in the structure of a state that may be real."""
    probe = jax.eval_shape(unravel, jax.ShapeDtypeStruct(rows.shape[1:], rows.real.dtype))
    each = jax.vmap(unravel)
    return each(rows) if is_complex(probe) else on_complex_vectors(each)(rows)


class Subspace(NamedTuple):
    """An invariant subspace, real where A is: `images = A basis`, row by row.

    Rows from `size` on are zero: `size` is k, or k + 1 where k would cut a conjugate pair.
    """

    basis: Inexact[Array, "q n"]
    images: Inexact[Array, "q n"]
    values: Complex[Array, " q"]
    vectors: Complex[Array, "q n"]
    size: Int[Array, ""]


class Found(NamedTuple):
    """An invariant subspace before its eigenvectors are told: `basis`, `images` and `size` as of `Subspace`; the rest as of
    `Eigenpairs`. `faithful`: as of `Transformed`."""

    basis: Inexact[Array, "q n"]
    images: Inexact[Array, "q n"]
    size: Int[Array, ""]
    magnitude: Float[Array, ""]
    complete: Bool[Array, ""]
    products: Int[Array, ""]
    restarts: Int[Array, ""]
    faithful: Callable[[Array], Array]


# Why: compiled, the search is most of what a first call waits for; and where the basis holds the whole space it ends with
# what the matrix tells at once.
def all_columns(mv, start, k, which) -> Found:
    """All columns of a small A, and its most wanted subspace."""
    n = start.size
    columns = jax.vmap(mv)(jnp.eye(n, dtype=start.dtype))
    shapes = jax.eval_shape(lambda: (columns[: k + 1], jnp.asarray(0, jnp.int32)))
    basis, size = on_host(functools.partial(leading, k=k, rank=RANKS[which]), shapes, columns.T)
    return Found(
        basis=basis,
        images=matmul(basis, columns),
        size=size,
        magnitude=norm(columns) / n**0.5,
        complete=jnp.all(jnp.isfinite(columns)),
        products=jnp.asarray(n, jnp.int32),
        restarts=jnp.asarray(1, jnp.int32),
        faithful=everything,
    )


def searched(mv, start, key, k, transform, ncv, tol, max_restarts) -> Found:
    """The most wanted subspace by Krylov–Schur."""
    noise = drawn(key, 0, start)
    transformed = transform.prepare(mv, noise)
    found = decompose(
        transformed.apply,
        # A state of zeros, say, makes no direction.
        jnp.where(norm(start) > 0, start, noise),
        key,
        k=k,
        which=transform.which,
        ncv=ncv,
        # An error that is small for f(A) may not be so for A, and transforms converge fast: go to the floor.
        tol=tol if isinstance(transform, Plain) else jnp.zeros_like(tol),
        max_restarts=max_restarts,
    )
    # One Rayleigh–Ritz step with A itself: values and true residuals alike, transformed or not.
    # Sizes are static: a row for the second of a pair is always carried, and masked where there is none.
    q = min(k + 1, start.size)
    inside = jnp.arange(q, dtype=jnp.int32) < found.wanted
    basis = jnp.where(inside[:, None], found.basis[:q], 0)
    # The last row measures A itself, in the same batch: E ‖A r‖² = ‖A‖_F² / n for a random unit r.
    images = jax.vmap(mv)(jnp.concatenate([basis, unit(noise)[None]]))
    products = found.products + transformed.products.astype(jnp.int32) + found.wanted + 1
    return Found(
        basis,
        images[:q],
        found.wanted,
        norm(images[q]),
        found.complete,
        products,
        found.restarts,
        transformed.faithful,
    )


def eigenpairs(mv, start, key, k, transform, ncv, tol, max_restarts):
    """`krylov_schur` on flat vectors: the pairs, and the invariant subspace in which they were found."""
    n, real, dtype = start.size, jnp.finfo(start.dtype).dtype, transform.dtype(start.dtype)
    each = 1 if dtype == start.dtype else 2  # products with A behind one with a complex vector
    if each == 2:
        mv, start = on_complex_vectors(mv), start.astype(dtype)
    tol = jnp.asarray(jnp.finfo(real).eps ** (2 / 3) if tol is None else tol, real)
    ncv = min(max(2 * k + 1, 20) if ncv is None else ncv, n)
    if ncv == n and isinstance(transform, Plain):
        found = all_columns(mv, start, k, transform.which)
    else:
        found = searched(mv, start, key, k, transform, ncv, tol, max_restarts)
    basis, images, size, magnitude, complete, products, restarts, faithful = found
    q = basis.shape[0]
    inside = jnp.arange(q, dtype=jnp.int32) < size
    dtype = np.result_type(real, np.complex64)
    shapes = jax.ShapeDtypeStruct((q,), dtype), jax.ShapeDtypeStruct((q, q), dtype)
    values, weights = on_host(eigen, shapes, basis.conj() @ images.T, size)
    # The sort is stable, and LAPACK has the one above the axis first: pairs stay in that order.
    order = jnp.argsort(jnp.where(inside, -transform.rank(values), jnp.inf))
    values, weights = values[order], weights[:, order].T
    vectors = matmul(weights, basis)
    # An eigenvector is free up to a phase, in which two runs, or two points of a branch, would differ.
    top = jnp.take_along_axis(vectors, jnp.argmax(abs(vectors), axis=1, keepdims=True), axis=1)
    phase = jnp.where(inside[:, None], top.conj() / abs(top).astype(dtype), 1)
    weights, vectors = phase * weights, phase * vectors
    defects = matmul(weights, images) - values[:, None] * vectors

    residuals, converged = judged(
        jnp.linalg.norm(defects, axis=1), values, magnitude, restarts, tol
    )
    pairs = Eigenpairs(
        values=values[:k],
        vectors=vectors[:k],
        residuals=residuals[:k],
        converged=(converged & complete & faithful(values))[:k],
        magnitude=magnitude,
        products=each * products,
        restarts=restarts,
    )
    return pairs, Subspace(basis, images, values, vectors, size)


def judged(defects, values, magnitude, restarts, tol) -> tuple[Array, Array]:
    """Relative residuals from `‖A v - μ v‖`, and which of them are at the tolerance or at the rounding floor."""
    eps = jnp.finfo(magnitude.dtype).eps
    tol = eps ** (2 / 3) if tol is None else tol
    # At a fold μ is about 0, and no rounding is small relative to that. ARPACK's criterion has eps^⅔ in its
    # place (Lehoucq, Sorensen & Yang 1998); here it is in the units of A.
    extent = jnp.maximum(abs(values), eps ** (2 / 3) * magnitude)
    # The basis is rotated once a restart, and the errors of that add up like a random walk.
    floor = 20 * eps * magnitude * jnp.sqrt(restarts.astype(magnitude.dtype))
    converged = defects <= jnp.maximum(tol * extent, floor)
    return defects / jnp.where(extent > 0, extent, 1), converged
