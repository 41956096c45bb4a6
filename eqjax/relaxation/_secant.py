"""What Anderson and Broyden share: a history of differences, the best iterate, and restarts."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree, ScalarLike

from ._residual import check_tolerance


class _SecantState(eqx.Module):
    best_y: PyTree[Array]  # kept here because `terminate` sees the old iterate only
    best_force: Inexact[Array, " n"]
    best_residual: Float[Array, ""]
    age: Int[Array, ""]  # evaluations since the best iterate
    converged: Bool[Array, ""]
    evaluations: Int[Array, ""]
    y: Inexact[Array, " n"]  # where the last step started
    force: Inexact[Array, " n"]
    dy: Inexact[Array, "m n"]
    df: Inexact[Array, "m n"]
    count: Int[Array, ""]  # differences stored since the last restart; -1: no previous point
    mixing: Float[Array, ""]


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
    norm: AbstractVar[Callable[[PyTree], Array]]
    scale: AbstractVar[ScalarLike]

    def __check_init__(self):
        check_tolerance(self.rtol, self.atol)
        if self.window < 1:
            raise ValueError(f"`window` must be at least 1, got {self.window}.")
        if isinstance(self.mixing, (int, float)) and not self.mixing > 0:
            raise ValueError(f"`mixing` must be above 0, got {self.mixing}.")

    @abc.abstractmethod
    def _coefficients(
        self,
        dy: Inexact[Array, "m n"],
        df: Inexact[Array, "m n"],
        f: Inexact[Array, " n"],
        age: Int[Array, " m"],
        mixing: Inexact[Array, ""],
    ) -> Inexact[Array, " m"]:
        """γ; rows of `dy`, `df` that hold no difference are zero, and `age` is 0 for the newest."""

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        flat, _ = ravel_pytree(y)
        real = jnp.finfo(flat.dtype).dtype
        history = jnp.zeros((self.window, flat.size), flat.dtype)
        return _SecantState(
            best_y=y,
            best_force=jnp.zeros_like(flat),
            best_residual=jnp.asarray(jnp.inf, real),
            age=jnp.asarray(0),
            converged=jnp.asarray(False),
            evaluations=jnp.asarray(0),
            y=flat,
            force=jnp.zeros_like(flat),
            dy=history,
            df=history,
            count=jnp.asarray(-1),
            mixing=jnp.asarray(self.mixing, real),
        )

    def step(self, fn, y, args, options, state, tags):
        image, aux = fn(y, args)
        force = jax.tree.map(jnp.subtract, image, y)
        flat, unravel = ravel_pytree(y)
        f, _ = ravel_pytree(force)

        size, extent = self.norm(force), jnp.maximum(self.norm(y), self.scale)
        residual = size / extent
        better = residual < state.best_residual  # false for NaN
        best_y = jax.tree.map(lambda new, old: jnp.where(better, new, old), y, state.best_y)
        best_force = jnp.where(better, f, state.best_force)
        best_residual = jnp.where(better, residual, state.best_residual)
        # Only a new best can settle, since it is the best that is returned.
        converged = better & (size <= self.atol + self.rtol * extent)

        # Negated, so that NaN is lost too.
        lost = ~(residual <= self.growth * best_residual)
        has_previous = state.count >= 0
        # A ring: the oldest difference is overwritten where it lies, and nothing is moved.
        slot = jnp.maximum(state.count, 0) % self.window
        dy = state.dy.at[slot].set(jnp.where(has_previous, flat - state.y, 0))
        df = state.df.at[slot].set(jnp.where(has_previous, f - state.force, 0))
        # The differences made the bad step and describe the field elsewhere: drop them. The next step is then
        # plain damping from the best iterate, with half the mixing, since with the same one it may have been
        # tried before. The count is 0, not -1: from the best iterate the next difference can be taken.
        count = jnp.where(lost, 0, state.count + 1)
        mixing = jnp.where(lost, 0.5 * state.mixing, state.mixing)
        flat = jnp.where(lost, ravel_pytree(best_y)[0], flat)
        f = jnp.where(lost, best_force, f)

        valid = (jnp.arange(self.window) < count)[:, None]
        # Not by their coefficients alone: a difference that is not finite is NaN even times 0.
        dy, df = jnp.where(valid, dy, 0), jnp.where(valid, df, 0)
        zeta = mixing.astype(f.dtype)
        age = (slot - jnp.arange(self.window)) % self.window
        gamma = self._coefficients(dy, df, f, age, zeta)
        # Rows without a difference must not weigh, whatever the small solve made of them.
        gamma = jnp.where(valid[:, 0], gamma, 0)
        # Within the span of the history the step is the secant one, and across it plain damping, -ζ being the
        # guess of the inverse Jacobian (Fang & Saad 2009): with γ = 0 this is y + ζ f.
        new = flat + zeta * f - gamma @ dy - zeta * (gamma @ df)
        state = _SecantState(
            best_y=best_y,
            best_force=best_force,
            best_residual=best_residual,
            age=jnp.where(better, 0, state.age + 1),
            converged=state.converged | converged,
            evaluations=state.evaluations + 1,
            y=flat,
            force=f,
            dy=dy,
            df=df,
            count=count,
            mixing=mixing,
        )
        return unravel(new), state, aux

    def terminate(self, fn, y, args, options, state, tags):
        stalled = (state.age >= self.patience) & ~state.converged
        result = optx.RESULTS.where(
            stalled, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return state.converged | stalled, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return state.best_y, aux, {"field_evaluations": state.evaluations}


# Why unit rows. Differences shrink by orders of magnitude as the iteration converges. Scaled, their Gram
# matrix has a unit diagonal, its condition is that of the directions alone, and one ridge suits all steps.
def unit_rows(
    differences: Inexact[Array, "m n"],
) -> tuple[Inexact[Array, "m n"], Float[Array, " m"]]:
    """The rows scaled to length 1, and their lengths; 1 for a row of zeros."""
    size = jnp.sqrt(jnp.sum(jnp.abs(differences) ** 2, axis=1))
    size = jnp.where(size > 0, size, jnp.ones_like(size))
    return differences / size[:, None].astype(differences.dtype), size


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
    return jnp.linalg.solve(matrix + jnp.diag(jnp.where(empty, 1, ridge * side)), rhs)
