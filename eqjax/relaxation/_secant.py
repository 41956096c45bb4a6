"""What Anderson and Broyden share: a history of differences, the best iterate, and restarts."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree, ScalarLike

from .._checks import check_count, check_not_negative, check_positive, given
from ._loop import write_rows
from ._residual import check_solver, scale_of


class _SecantState(eqx.Module):
    best_y: PyTree[Array]  # kept here because `terminate` sees the old iterate only
    best_force: Inexact[Array, " n"]
    best_residual: Float[Array, ""]
    age: Int[Array, ""]  # evaluations since the best iterate
    converged: Bool[Array, ""]
    evaluations: Int[Array, ""]
    y: Inexact[Array, " n"]  # where the last step started
    force: Inexact[Array, " n"]
    differences: Inexact[Array, "rows n"]  # of iterates and of forces, by turns
    products: Inexact[Array, "rows rows"]  # of each with each
    count: Int[Array, ""]  # differences stored since the last restart; -1: no previous point
    mixing: Float[Array, ""]
    scale: Float[Array, ""]


# Why these safeguards. A multisecant step decreases nothing in particular: on a non-normal field the residual
# may rise for some steps of a sound iteration, so a rise alone rejects nothing and only `growth` times the
# best does. It may also never settle: so the best iterate is kept and returned, and patience is counted in
# evaluations without a new best, because at the floor of the dtype there is none, whatever the steps.
class AbstractSecant(optx.AbstractFixedPointSolver):
    """A multisecant method with limited memory, `y⁺ = y + ζ f - (ΔY + ζ ΔF) γ` with `f = F(y) = g(y) - y`.

    What differs between the methods is how the coefficients γ of the stored differences are found (Fang & Saad
    2009). Everything that keeps the iteration safe is here: the best iterate, restarts, patience.
    """

    rtol: AbstractVar[ScalarLike]
    atol: AbstractVar[ScalarLike]
    mixing: AbstractVar[ScalarLike]
    window: AbstractVar[int]
    growth: AbstractVar[ScalarLike]
    patience: AbstractVar[int]
    ridge: AbstractVar[ScalarLike | None]
    norm: AbstractVar[Callable[[PyTree], Array]]
    scale: AbstractVar[ScalarLike | None]

    def __check_init__(self):
        check_solver(self)
        check_count(1, 1000, window=self.window)
        check_count(patience=self.patience)
        check_positive(mixing=self.mixing, growth=self.growth)
        check_not_negative(**given(ridge=self.ridge))

    @abc.abstractmethod
    def _coefficients(
        self, products: "Products", age: Int[Array, " m"], mixing: Inexact[Array, ""]
    ) -> Inexact[Array, " m"]:
        """γ; `age` is 0 for the newest difference."""

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        flat, _ = ravel_pytree(y)
        real = jnp.finfo(flat.dtype).dtype
        return _SecantState(
            best_y=y,
            best_force=jnp.zeros_like(flat),
            best_residual=jnp.asarray(jnp.inf, real),
            age=jnp.asarray(0),
            converged=jnp.asarray(False),
            evaluations=jnp.asarray(0),
            y=flat,
            force=jnp.zeros_like(flat),
            differences=jnp.zeros((2 * self.window, flat.size), flat.dtype),
            products=jnp.zeros((2 * self.window, 2 * self.window), _small(flat.dtype)),
            count=jnp.asarray(-1),
            mixing=jnp.asarray(self.mixing, real),
            scale=jnp.asarray(1 if self.scale is None else self.scale, real),
        )

    def step(self, fn, y, args, options, state, tags):
        image, aux = fn(y, args)
        force = jax.tree.map(jnp.subtract, image, y)
        flat, unravel = ravel_pytree(y)
        f, _ = ravel_pytree(force)

        size = self.norm(force)
        scale = jnp.where(state.evaluations == 0, scale_of(self, size, y), state.scale)
        extent = jnp.maximum(self.norm(y), scale)
        residual = size / extent
        better = residual < state.best_residual  # false for NaN
        best_y = jax.tree.map(lambda new, old: jnp.where(better, new, old), y, state.best_y)
        best_force = jnp.where(better, f, state.best_force)
        best_residual = jnp.where(better, residual, state.best_residual)
        # Only a new best can settle, since it is the best that is returned.
        converged = better & (size <= self.atol + self.rtol * extent)

        # A ring: the oldest difference is overwritten where it lies, and nothing is moved. One slot for a whole batch.
        slot = state.evaluations % self.window
        newest = jnp.stack([flat - state.y, f - state.force])
        # The first evaluation has no other before it; and one NaN would stay NaN, whatever its coefficient.
        sound = (state.count >= 0) & jnp.all(jnp.isfinite(newest))
        newest = jnp.where(sound, newest, 0)
        differences = write_rows(state.differences, newest, 2 * slot)

        # Negated, so that NaN is lost too.
        lost = ~(residual <= self.growth * best_residual)
        # The differences made the bad step and describe the field elsewhere: drop them. The next step is then
        # plain damping from the best iterate, with half the mixing, since with the same one it may have been
        # tried before. The count is 0, not -1: from the best iterate the next difference can be taken.
        count = jnp.where(lost, 0, state.count + 1)
        mixing = jnp.where(lost, 0.5 * state.mixing, state.mixing)
        flat = jnp.where(lost, ravel_pytree(best_y)[0], flat)
        f = jnp.where(lost, best_force, f)

        # All that the coefficients need of the history is products: with the newest difference and with the force.
        # So it is read once for them, and once more for the step.
        found = onto(differences, jnp.stack([*newest, f]))
        products = write_rows(state.products.T, found[:, :2].T, 2 * slot).T
        products = write_rows(products, found[:, :2].conj().T, 2 * slot)
        age = (slot - jnp.arange(self.window)) % self.window
        valid = age < count
        held = jnp.repeat(valid, 2)
        zeta = mixing.astype(f.dtype)
        known = Products.of(
            jnp.where(held[:, None] & held[None, :], products, 0), jnp.where(held, found[:, 2], 0)
        )
        gamma = self._coefficients(known, age, mixing.astype(found.dtype)).astype(f.dtype)
        # Rows without a difference must not weigh, whatever the small solve made of them.
        gamma = jnp.where(valid, gamma, 0)
        # Within the span of the history the step is the secant one, and across it plain damping, -ζ being the
        # guess of the inverse Jacobian (Fang & Saad 2009): with γ = 0 this is y + ζ f.
        new = (
            flat
            + zeta * f
            - combined(jnp.stack([gamma, zeta * gamma], axis=1).ravel(), differences)
        )
        state = _SecantState(
            best_y=best_y,
            best_force=best_force,
            best_residual=best_residual,
            age=jnp.where(better, 0, state.age + 1),
            converged=state.converged | converged,
            evaluations=state.evaluations + 1,
            y=flat,
            force=f,
            differences=differences,
            products=products,
            count=count,
            mixing=mixing,
            scale=scale,
        )
        return unravel(new), state, aux

    def terminate(self, fn, y, args, options, state, tags):
        stalled = (state.age >= self.patience) & ~state.converged
        result = optx.RESULTS.where(
            stalled, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return state.converged | stalled, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return state.best_y, aux, {"field_evaluations": state.evaluations, "scale": state.scale}


def _small(dtype):
    """Of what is small: linear algebra asks for float32 at least."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


# Sums and not matrix products: of so few rows and columns a product is bound by memory, and for some of these shapes
# cuBLAS takes fourteen times as long as a sum (86 against 6 µs on an H100).
def onto(rows, vectors):
    """Products of each row with each of `vectors`."""
    wide = _small(rows.dtype)
    return jnp.sum(rows.conj()[:, None] * vectors[None], axis=-1, dtype=wide)


def combined(weights, rows):
    return jnp.sum(weights[:, None] * rows, axis=0)


class Products(NamedTuple):
    """Scalar products of the stored differences, of iterates Y and of forces F. Zero where a row holds none.

    `yf` holds `⟨Yᵢ, Fⱼ⟩`, conjugate in the first, and so on; `y` and `f` hold those with the force.
    """

    yy: Inexact[Array, "m m"]
    yf: Inexact[Array, "m m"]
    ff: Inexact[Array, "m m"]
    y: Inexact[Array, " m"]
    f: Inexact[Array, " m"]

    @classmethod
    def of(cls, products: Inexact[Array, "rows rows"], onto: Inexact[Array, " rows"]) -> "Products":
        """From those of rows that stand by turns."""
        upper, lower = products[::2], products[1::2]
        return cls(upper[:, ::2], upper[:, 1::2], lower[:, 1::2], onto[::2], onto[1::2])


# Why unit rows. Differences shrink by orders of magnitude as the iteration converges. Scaled, their Gram
# matrix has a unit diagonal, its condition is that of the directions alone, and one ridge suits all steps.
def lengths(gram: Inexact[Array, "m m"]) -> Inexact[Array, " m"]:
    """Of rows, by which products become those of unit rows; 1 for a row of zeros."""
    size = jnp.sqrt(jnp.diagonal(gram))
    return jnp.where(size == 0, jnp.ones_like(size), size)


# Why a ridge. Directions that agree to rounding make the Gram matrix singular; then their coefficients are
# huge and of opposite signs, and the step is the rounding of their difference.
def tikhonov(ridge: ScalarLike | None, dtype: DTypeLike) -> Inexact[Array, ""]:
    """The ridge as given, or 10 units of rounding."""
    return jnp.asarray(10 * float(jnp.finfo(dtype).eps) if ridge is None else ridge, dtype)


def solve_oblique(
    matrix: Inexact[Array, "m m"], rhs: Inexact[Array, " m"], ridge: Inexact[Array, ""]
) -> Inexact[Array, " m"]:
    """`matrix γ = rhs` for a matrix without a sign: `ridge` moves each diagonal entry away from zero."""
    # F is about -I where the relaxation contracts, so the diagonal is negative as a rule: a ridge that is
    # added, as in least squares, would move it towards zero.
    side = jnp.where(jnp.real(jnp.diagonal(matrix)) < 0, -1, 1).astype(matrix.dtype)
    # An entry of exactly zero is a row that holds nothing: its coefficient is dropped by the caller.
    empty = jnp.all(matrix == 0, axis=1)
    return solve_small(matrix + jnp.diag(jnp.where(empty, 1, ridge * side)), rhs)


# Why not LAPACK's LU on a GPU: there it is a dozen calls of a library, each of them short, for a handful of numbers, and
# one that cannot be part of a CUDA graph keeps the whole loop out of it. Without pivots a step may be bad, where the matrix
# has no sign: then it is caught like any other, by its residual.
def solve_small(matrix: Inexact[Array, "m m"], rhs: Inexact[Array, " m"]) -> Inexact[Array, " m"]:
    """`matrix γ = rhs` for a few unknowns."""
    return jax.lax.platform_dependent(matrix, rhs, cuda=eliminated, default=jnp.linalg.solve)


def eliminated(matrix: Inexact[Array, "m m"], rhs: Inexact[Array, " m"]) -> Inexact[Array, " m"]:
    """`matrix γ = rhs` by Gauss–Jordan elimination without pivots."""
    rows = jnp.concatenate([matrix, rhs[:, None]], axis=1)
    for k in range(rhs.size):
        pivot = rows[k] / rows[k, k]
        others = rows - rows[:, k, None] * pivot[None, :]
        rows = jnp.where((jnp.arange(rhs.size) == k)[:, None], pivot[None, :], others)
    return rows[:, -1]
