"""The exact equilibrium gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx

from .._checks import check_count
from ..fields import trainable
from ..relaxation import (
    Anderson,
    Solver,
    TokenOrder,
    adjoint_solver,
    equilibrium,
    linear_in_order,
    solve_linear,
    with_tolerance,
)
from ._estimate import Accept
from ._response import AbstractAdjointEstimator, Adjoint, Response, in_adjoint_coordinates


class OracleAdjoint(AbstractAdjointEstimator):
    """The gradient of `L(z*)` by the implicit function theorem: `Jᵀa = -∂L/∂z*`, solved by products with Jᵀ.

    *Objective: equilibrium.* Pineda (1987), Almeida (1987); as in deep equilibrium models (Bai et al. 2019).

    **Arguments:**

    - `free`: solver of the free phase, as for `equilibrium`; `free_steps`: its budget.
    - `adjoint_solver`: a Lineax solver (`GMRES`, `lineax.BiCGStab`, or a dense one such as `lineax.LU` for tests),
      or an Optimistix fixed-point solver (`Anderson`), whose tolerance then speaks of the adjoint residual; a
      `TokenOrder` goes back through the tokens, as by default after a free phase in order. Otherwise by default a `GMRES`
      as tight as the dtype allows (rtol 1e-4 in float32, 1e-10 in float64).
    - `adjoint_steps`: budget of an Optimistix adjoint solver (a Lineax solver has its own `max_steps`).
    - `accept`: per-sample thresholds. `trains`: function from models to a mask of the trained arrays.

    A linear solve that fails shows in `report.adjoint_residual`, and its sample is not accepted.

    ```python
    estimate = ej.OracleAdjoint()(model, ej.squared_error, batch)
    assert estimate.report.accepted.all() and jnp.all(estimate.grads.field.weight == exact)
    ```
    """

    free: Solver = Anderson(rtol=1e-5)
    adjoint_solver: lx.AbstractLinearSolver | Solver | None = None
    free_steps: int = 256
    adjoint_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable

    def __check_init__(self):
        check_count(adjoint_steps=self.adjoint_steps)
        kinds = (lx.AbstractLinearSolver, optx.AbstractFixedPointSolver, type(None))
        if not isinstance(self.adjoint_solver, kinds):
            raise ValueError(
                "`adjoint_solver` must be a Lineax linear solver or an Optimistix fixed-point solver, got "
                f"{self.adjoint_solver!r}."
            )

    def adjoint(self, response: Response) -> Adjoint:
        given, default = self.adjoint_solver, adjoint_solver(response.pull)
        if given is None and isinstance(self.free, TokenOrder):
            given = with_tolerance(self.free, lambda *_: (default.rtol, 0.0))
        solver = default if given is None else given
        if isinstance(solver, TokenOrder):
            at = (response.field, response.z, response.x, -response.pull)  # pyright: ignore
            found = linear_in_order(*at, solver, self.adjoint_steps, reverse=True)
            return Adjoint(found.value, found.evaluations)
        if isinstance(solver, lx.AbstractLinearSolver):
            pushed = jax.tree.map(jnp.negative, response.pull)
            value, _, stats = solve_linear(response.vjp, pushed, solver)
            return Adjoint(value, jnp.asarray(stats.get("num_steps", -1)))

        def residual(t, a, x):
            return jax.tree.map(jnp.add, response.vjp(a), response.pull)

        start = jax.tree.map(jnp.zeros_like, response.pull)
        solver, steps = in_adjoint_coordinates(solver), self.adjoint_steps
        solution = equilibrium(residual, start, solver=solver, max_steps=steps, throw=False)
        return Adjoint(solution.value, solution.stats["field_evaluations"])
