"""Settling a causal field token after token, and its adjoint from the last token back to the first."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree, ScalarLike

from .._checks import check_count, check_positive, given
from ..analytic import tree_finite, tree_held
from ..fields import AbstractCausalField, written
from ._anderson import AndersonTypeI
from ._fallback import with_scale, with_tolerance
from ._implicit import implicit_root
from ._in_order import InOrder, moving_window, scanned, settled_alone
from ._quorum import AbstractAround
from ._residual import RESULTS, MeasuresForce, scale_of
from ._secant import AbstractSecant
from ._triangular import TriangularSolve


# Why in order. A causal field's Jacobian is block lower triangular in tokens. A joint iteration over the window sees a
# matrix far from normal, whose transient growth along the tokens outlasts any patience; each own block is tame. So a token
# is settled when the ones before it are, and the adjoint, whose matrix is upper triangular, is found in reverse.
class TokenOrder(AbstractAround):
    """Settle an `AbstractCausalField` token after token, or a few that move along side by side, each by a solver of its own.

    For `equilibrium`, for the `free` phase of an estimator, for the `adjoint_solver` of `OracleAdjoint` and the solver of a
    `Nudge`. A tolerance speaks of every token by itself: `‖F_t‖ ≤ atol + rtol · max(‖z_t‖, scale)`, and a residual is that
    of the worst one; those of all are in `stats["token_residuals"]`. A `scale` of None is that of the largest token at the
    start (see `equilibrium`). What its solver does not settle goes on, token by token, by Newton's method from its best state,
    and then by small steps of the flow; a token that does not settle then, too, is held at its best state, and the ones
    after it are settled given that. `max_steps` is for each token. Nothing is said of the start: the derivative in `z0` is 0.

    **Arguments:**

    - `solver`: settles a token: by default `AndersonTypeI`, which finds tokens that `Anderson` loses (where ‖F‖ has a
      minimum that is no zero); or `NewtonKrylov`, a `Fallback` from one to another, any solver of ours.
    - `chunk`: tokens that take their steps side by side, each with coefficients of its own, by an `Anderson`,
      `AndersonTypeI` or `Broyden`: when the first has settled, the next one joins. (In linear solves by minimal residuals over
      three times the solver's `window` of products with its own block.) More work in fewer steps, one after another: worth it
      where a step is bound by latency, as on a GPU.
    - `flow`: step ε of the flow, of which at most ten times `max_steps` are taken; None for neither Newton nor flow.

    **Raises:** `ValueError` for a solver that does not measure the force, or a field that is not causal.

    ```python
    order = ej.TokenOrder(chunk=16)  # sixteen tokens side by side, for a GPU
    estimator = ej.OracleAdjoint(free=order, adjoint_solver=order)
    assert estimator.free.chunk == 16
    ```
    """

    solver: optx.AbstractFixedPointSolver | optx.AbstractRootFinder = AndersonTypeI(1e-5, window=6)
    chunk: int = eqx.field(default=1, static=True)
    flow: ScalarLike | None = 0.1

    def __check_init__(self):
        check_positive(**given(flow=self.flow))
        check_count(chunk=self.chunk)
        together = AbstractSecant if self.chunk > 1 else MeasuresForce
        if not isinstance(self.solver, together):
            kinds = "an `Anderson`, `AndersonTypeI` or `Broyden`, or `chunk` 1"
            kinds = kinds if self.chunk > 1 else "one that measures the force, such as `Anderson`"
            raise ValueError(f"`solver` must be {kinds}, got {self.solver!r}.")

    def init(self, *args, **kwargs):
        raise ValueError(
            "`TokenOrder` settles a causal field in `equilibrium` and in the estimators: elsewhere the field is not seen. "
            "Pass the solver inside of it."
        )

    step = terminate = postprocess = init

    def residuals(
        self, force: Inexact[Array, "t c"], z: Inexact[Array, "t c"]
    ) -> Float[Array, " t"]:
        """`‖F_t‖ / max(‖z_t‖, scale)` of every token, by a scale that is known."""
        norm = jax.vmap(self.norm)
        return norm(force) / jnp.maximum(norm(z), self.scale)  # pyright: ignore

    def settled(self, force, z, slack: float = 1.001) -> Bool[Array, " t"]:
        """Which tokens meet the tolerance, with a hair of slack for another order of sums."""
        norm = jax.vmap(self.norm)
        extent = jnp.maximum(norm(z), self.scale)  # pyright: ignore
        return norm(force) <= slack * (self.atol + self.rtol * extent)

    def scaled(self, force, z) -> "TokenOrder":
        """With the `scale` of a start z under `force`, where none was given: that of its largest token."""
        largest = lambda rows: rows[jnp.argmax(jax.vmap(self.norm)(rows))]
        return with_scale(self, scale_of(self, self.norm(largest(force)), largest(z)))


def check_causal(field: Any, z: Any) -> None:
    """Refuse a field that cannot be settled in order."""
    if not isinstance(field, AbstractCausalField):
        raise ValueError(
            f"`TokenOrder` settles an `AbstractCausalField`, such as `ThickBlock`; got {type(field).__name__}. Settle it as a "
            "whole: pass the solver inside of it."
        )
    if not (isinstance(z, jax.Array) and z.ndim == 2):
        raise ValueError(f"`z0` must be one array `(T, C)` to be settled in order, got {z!r}.")


# The window itself


def forward(field, z0, x, solver: TokenOrder, max_steps: int) -> InOrder:
    """The equilibrium, token after token."""
    blank = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
    memory = jax.tree.map(blank, jax.eval_shape(field.remember, z0))
    if min(solver.chunk, z0.shape[0]) > 1:
        return moving_window(solver, max_steps, field, z0, x, memory)

    def stage(memory, start, begin, x):
        force = lambda u: field.after(0.0, u, x, memory, start)
        return force, begin, lambda u: written(memory, field.remember(u), start)

    return scanned(solver, max_steps, memory, (z0, x), stage)


def settled_after(
    field: AbstractCausalField,
    z0: Inexact[Array, "1 c"],
    x: Inexact[Array, "1 c"],
    memory: PyTree[Array],
    start: Int[Array, ""] | int,
    solver: TokenOrder,
    max_steps: int = 256,
) -> tuple[Inexact[Array, "1 c"], Float[Array, ""]]:
    """One token after those in `memory`: its state, from `z0`, and its residual.

    ```python
    memory = jax.tree.map(jnp.zeros_like, block.remember(tokens))
    settle = lambda z: ej.relaxation.settled_after(block, z, z, memory, 0, ej.TokenOrder())
    assert jax.eval_shape(settle, tokens[:1])[0].shape == (1, 4)
    ```
    """
    force = lambda u: field.after(0.0, u, x, memory, start)
    solver = solver.scaled(force(z0), z0) if solver.scale is None else solver
    value, _ = settled_alone(force, z0, solver, max_steps)
    return value, solver.residuals(force(value), value)[0]


def settled_in_order(field, z0, x, solver: TokenOrder, max_steps: int, throw: bool):
    """Value, result, worst residual and stats, with an implicit derivative that is solved in order."""
    check_causal(field, z0)
    eps = float(jnp.finfo(z0.dtype).eps)
    exact = with_tolerance(solver, lambda *_: (1e-4 if eps > 1e-10 else 1e-10, 0.0))
    linear = TriangularSolve(exact, max_steps)
    force, begun = eqx.Partial(field, 0.0), tree_held((field, z0, x))
    measured = int(solver.scale is None)
    if measured:
        solver = solver.scaled(tree_held(force(z0, x)), begun[1])
    find = eqx.Partial(_found, *begun, tree_held(solver), max_steps)
    value, steps = implicit_root(force, x, None, find=find, linear=linear, throw=throw)
    # A diagnostic: a gradient through it would ask for a second solve.
    final, state = tree_held((force(value, x), value))
    residuals, met = solver.residuals(final, state), solver.settled(final, state)
    result = RESULTS.where(jnp.all(met), RESULTS.successful, RESULTS.residual_above_tolerance)
    finite = tree_finite((final, state))
    result = RESULTS.where(finite, result, RESULTS.nonfinite)  # pyright: ignore
    evaluations, inner = steps
    scale = jnp.asarray(solver.scale, residuals.dtype)
    stats = {"token_residuals": residuals, "num_steps": inner, "scale": scale}
    stats["field_evaluations"] = evaluations + 1 + measured
    return value, jnp.max(residuals), result, stats


def _found(field, z0, x, solver, max_steps):
    found = forward(field, z0, x, solver, max_steps)
    return found.value, (found.evaluations, found.steps)
