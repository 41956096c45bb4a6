"""By what the linear systems of a state are solved."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, PyTree

from .._checks import check_kind
from ._jacobian import jacobian
from ._pattern import local_pattern
from ._sparse import SparseLU

# A matrix of so many rows is sooner factored than approached by products, and the units of its rows do not matter then.
DENSE = 400


def direct_solver(product: Callable[[Array], Array], like: Any) -> lx.AbstractLinearSolver | None:
    """What factors a Jacobian with this product: LU of a small one, `SparseLU` where neighbours are coupled only, or None."""
    if like.size <= DENSE:
        return lx.LU()
    pattern = local_pattern(product, like)
    return None if pattern is None else SparseLU(pattern)


def solver_of(
    linear_solver: lx.AbstractLinearSolver | None, field: Callable[..., Any], z: PyTree, x: PyTree
) -> lx.AbstractLinearSolver | None:
    """A caller's `linear_solver`, with its pattern where that is missing, or what fits the field; None for GMRES."""
    if linear_solver is None:
        if optax.tree.size(z) <= DENSE:
            return lx.LU()
        J = jacobian(field, z, x)
        return direct_solver(J.mv, jax.eval_shape(lambda: J.force))
    check_kind(
        lx.AbstractLinearSolver,
        "a Lineax solver such as `SparseLU()`, `lineax.LU()` or `GMRES(...)`",
        linear_solver=linear_solver,
    )
    if isinstance(linear_solver, SparseLU) and linear_solver.pattern is None:
        return SparseLU.of(field, z, x)
    return linear_solver


class OrNaN(lx.AbstractLinearSolver):
    """A solver that returns NaN where it failed: also transposed, where a derivative would be wrong without a word."""

    solver: lx.AbstractLinearSolver

    def init(self, operator, options):
        return self.solver.init(operator, options)

    def compute(self, state, vector, options):
        value, result, stats = self.solver.compute(state, vector, options)
        failed = result != lx.RESULTS.successful
        return jax.tree.map(lambda a: jnp.where(failed, jnp.nan, a), value), result, stats

    def transpose(self, state, options):
        return self.solver.transpose(state, options)

    def conj(self, state, options):
        return self.solver.conj(state, options)

    def assume_full_rank(self):
        return True


def solved(
    product: Callable[[Any], Any], right: PyTree[Array], solver: lx.AbstractLinearSolver
) -> PyTree[Array]:
    """The solution of `product(v) = right`, NaN where there is none; differentiable in both."""
    operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: right))
    return lx.linear_solve(operator, right, OrNaN(solver), throw=False).value
