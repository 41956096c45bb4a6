"""By what the linear systems of a state are solved."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._checks import check_kind
from ..relaxation import solve_linear
from ._jacobian import jacobian
from ._pattern import local_pattern
from ._sparse import SparseLU

# A matrix of so many rows is sooner factored than approached by products, and the units of its rows do not matter then.
DENSE = 400
# And of so many it is not worth while to look for a pattern.
SMALL = 100


def direct_solver(product: Callable[[Array], Array], like: Any) -> lx.AbstractLinearSolver | None:
    """What factors a Jacobian with this product: `SparseLU` where neighbours are coupled only, LU of a small one, or None."""
    pattern = local_pattern(product, like) if like.size > SMALL else None
    if pattern is not None:
        return SparseLU(pattern)
    return lx.LU() if like.size <= DENSE else None


def solver_of(
    linear_solver: Any, field: Callable[..., Any], z: PyTree, x: PyTree
) -> lx.AbstractLinearSolver | None:
    """A caller's `linear_solver`, with its pattern where that is missing, or what fits the field; None for GMRES."""
    if linear_solver is None:
        if optax.tree.size(z) <= SMALL:
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


# Why not `lineax.linear_solve`: transposed it raises where its solver fails, in terms of that solver, and takes a whole batch
# with the one sample that failed.
def solution_of(
    product: Callable[[Any], Any], right: PyTree[Array], solver: lx.AbstractLinearSolver
) -> PyTree[Array]:
    """The solution of `product(v) = right`; NaN where the solver failed, also in a derivative, forwards and in reverse."""

    # As one vector, since JAX transposes in the whole of the right-hand side or not at all.
    flat, unravel = ravel_pytree(right)

    def attempt(product, right):
        value, failed, _ = solve_linear(product, right, solver)
        return jnp.where(failed, jnp.nan, value)

    apply = lambda v: ravel_pytree(product(unravel(v)))[0]
    return unravel(jax.lax.custom_linear_solve(apply, flat, attempt, transpose_solve=attempt))
