"""Implicit differentiation whose failures stay with their sample."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree


@eqx.filter_custom_vjp
def attach(state_and_force: tuple[PyTree, PyTree], force: Any, x: PyTree, solver: Any) -> PyTree:
    """`z`, unchanged, with the reverse-mode derivative of the implicit function theorem.

    **Arguments:** `(z, F(z))`, the second carrying the derivative in the parameters, with z held fixed in it; the
    function `force(z, x)` and `x`, held fixed; `solver`: a Lineax solver of `Jᵀλ = -ḡ`.

    Where that solve fails the derivative is NaN, in that sample of a batch and no other: an error raised in
    a backward pass would take the whole batch with it.
    """
    return state_and_force[0]


@attach.def_fwd
def _(perturbed, state_and_force, force, x, solver):
    return state_and_force[0], None


@attach.def_bwd
def _(residuals, cotangent, perturbed, state_and_force, force, x, solver):
    z, _ = state_and_force
    _, transpose = jax.vjp(lambda state: force(state, x), z)
    operator = lx.FunctionLinearOperator(lambda v: transpose(v)[0], jax.eval_shape(lambda: z))
    solution = lx.linear_solve(operator, jax.tree.map(jnp.negative, cotangent), solver, throw=False)
    failed = solution.result != lx.RESULTS.successful

    def mark(leaf: Array) -> Array:
        return jnp.where(failed, jnp.nan, leaf)

    return jax.tree.map(jnp.zeros_like, z), jax.tree.map(mark, solution.value)
