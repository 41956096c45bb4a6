"""Roots by any procedure, differentiated by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

_FAILED = (
    "The derivative of an equilibrium could not be computed: its linear system was not solved. Either (a) the Jacobian is "
    "singular there, as with a conserved quantity, and the equilibrium depends on where it began: use `relax`, or take "
    "the conserved quantity out of the state; or (b) the system is hard: pass "
    "`adjoint=optimistix.ImplicitAdjoint(GMRES(rtol=..., restart=..., max_steps=...))`. With `throw=False` it is NaN."
)


@eqx.filter_custom_jvp
def implicit_root(
    force: Any, x: PyTree, *, find: Any, linear: Any, throw: Any
) -> tuple[PyTree, Any]:
    """`find()`, a root z of `force(z, x)` and what else is told of it, with `dz = -J⁻¹ ∂F` to any order.

    `linear`: a Lineax solver, or a callable `(force, z, x, product, rhs, transposed) -> solution, failed`. Where it fails the derivative is NaN, in that sample of a batch and no other: an error
    raised in a backward pass would take the whole batch with it. With `throw` that is done.
    """
    return find()


@implicit_root.def_jvp
def _(primals, tangents, *, find, linear, throw):
    # What `jax.grad` was given as a Python number arrives as one.
    arrays = lambda leaf: jnp.asarray(leaf) if isinstance(leaf, (float, complex)) else leaf
    primals = force, x = jax.tree.map(arrays, tuple(primals))
    # Once more by name, not by value: so the root's own dependence is seen when this is differentiated again.
    z, told = implicit_root(force, x, find=find, linear=linear, throw=throw)
    _, moved = eqx.filter_jvp(lambda force, x: force(z, x), primals, tangents)
    _, product = jax.linearize(lambda state: force(state, x), z)
    solve = linear if not isinstance(linear, lx.AbstractLinearSolver) else _by_lineax(linear)
    solve = eqx.Partial(solve, force, z, x)
    dz = _solved(product, jax.tree.map(jnp.negative, moved), solve, throw)
    return (z, told), (dz, jax.tree.map(lambda _: None, told))


def _by_lineax(solver: lx.AbstractLinearSolver) -> Callable:
    def solve(force, z, x, product, rhs, transposed):
        operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: rhs))
        found = lx.linear_solve(operator, rhs, solver, throw=False)
        return found.value, found.result != lx.RESULTS.successful

    return solve


def _solved(product: Callable, rhs: PyTree[Array], solve: Callable, throw: bool) -> PyTree[Array]:
    """`product(v) = rhs`, and likewise when it is transposed."""

    def solved(product, rhs, transposed):
        value, failed = solve(product, rhs, transposed)
        value = jax.tree.map(lambda leaf: jnp.where(failed, jnp.nan, leaf), value)
        return eqx.error_if(value, failed, _FAILED) if throw else value

    onward, back = (eqx.Partial(solved, transposed=transposed) for transposed in (False, True))
    return jax.lax.custom_linear_solve(product, rhs, onward, transpose_solve=back)
