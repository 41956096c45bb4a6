"""Roots by any procedure, differentiated by the implicit function theorem."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from ..analytic import thrown
from ._gmres import solve_linear

_FAILED = (
    "The derivative of an equilibrium could not be computed: its linear system was not solved. Either (a) the Jacobian is "
    "singular there, as with a conserved quantity, and the equilibrium depends on where it began: say by `conserved=...` "
    "what is conserved, or use `relax`; or (b) the system is hard: pass "
    "`adjoint=optimistix.ImplicitAdjoint(GMRES(rtol=..., restart=..., max_steps=...))`. With `throw=False` it is NaN."
)


@eqx.filter_custom_jvp
def implicit_root(
    force: Any, x: PyTree, z0: PyTree, *, find: Any, linear: Any, throw: Any
) -> tuple[PyTree, Any]:
    """`find()`, a root z of `force(z, x)` and what else is told of it, with `dz = -J⁻¹ ∂F` to any order.

    It does not depend on `z0`, where it began, unless J is singular: then that derivative is a failed one, not 0.

    `linear`: a Lineax solver, or a callable `(force, z, x, product, rhs, transposed) -> solution, failed`. Where it fails the
    derivative is NaN, in that sample of a batch and no other: an error raised in a backward pass would take the whole batch
    with it. With `throw` that is done.
    """
    return find()


@implicit_root.def_jvp
def _(primals, tangents, *, find, linear, throw):
    # What `jax.grad` was given as a Python number arrives as one, or as JAX' own kind of number when it is differentiated
    # again; a number beside what is differentiated stays one, as the field was converted with it.
    def arrays(leaf, tangent):
        number = isinstance(leaf, (float, complex))
        beside = tangent is None and type(leaf) in (float, complex)
        return jnp.asarray(leaf) if number and not beside else leaf

    force, x, z0 = jax.tree.map(arrays, tuple(primals), tuple(tangents))
    *tangents, begun = tangents
    # Once more by name, not by value: so the root's own dependence is seen when this is differentiated again.
    z, told = implicit_root(force, x, z0, find=find, linear=linear, throw=throw)
    _, moved = eqx.filter_jvp(lambda force, x: force(z, x), (force, x), tuple(tangents))
    _, product = jax.linearize(lambda state: force(state, x), z)
    solve = linear if not isinstance(linear, lx.AbstractLinearSolver) else _by_lineax(linear)
    solve = eqx.Partial(_attempt, eqx.Partial(solve, force, z, x), throw)
    anchor = _zero((moved, begun))
    rhs = jax.tree.map(jnp.negative, _whole(moved, z, anchor))
    begun = _whole(begun, z, anchor) if jax.tree.leaves(begun) else None
    dz = _solved(product, rhs, begun, solve)
    return (z, told), (dz, jax.tree.map(lambda _: None, told))


def _by_lineax(solver: lx.AbstractLinearSolver) -> Callable:
    def solve(force, z, x, product, rhs, transposed):
        return solve_linear(product, rhs, solver)[:2]

    return solve


def _zero(tangents: PyTree) -> Array:
    """0, that moves with all of them."""
    first = [leaf.ravel()[0].real.astype(float) for leaf in jax.tree.leaves(tangents)]
    return 0 * jnp.sum(jnp.stack(first))


def _whole(tangent: PyTree, z: PyTree[Array], anchor: Array) -> PyTree[Array]:
    """With zeros where nothing moves; a linear solve is transposed in the whole of its right-hand side or not at all."""

    def filled(t, leaf):
        still = anchor.astype(leaf.dtype)
        return jnp.zeros_like(leaf) + still if t is None else t + still

    return jax.tree.map(filled, tangent, z, is_leaf=lambda leaf: leaf is None)


# Why a second right-hand side. Where J v = ż₀ has a solution the root stands still; where it has none, ż₀ moves a quantity
# that is conserved, and the root with it. Back from there it is the question of the adjoint, which is asked anyway.
def _solved(
    product: Callable, rhs: PyTree[Array], begun: PyTree[Array] | None, solve: Callable
) -> PyTree[Array]:
    """`product(v) = rhs`, and likewise when it is transposed; NaN where that of `begun` has no solution."""
    onward, back = (eqx.Partial(solve, transposed=transposed) for transposed in (False, True))
    if begun is None:
        return jax.lax.custom_linear_solve(product, rhs, onward, transpose_solve=back)
    nothing = lambda v: jax.tree.map(lambda leaf: 0 * leaf, v)
    single = lambda both: lambda v: both((v, v))[0]

    def forwards(both, rhs):
        value, still = (onward(single(both), b) for b in rhs)
        return value, nothing(still)

    def backwards(both, rhs):
        # Of the second nothing comes but whether the first failed.
        value = back(single(both), rhs[0])
        return value, nothing(value)

    value, still = jax.lax.custom_linear_solve(
        lambda pair: tuple(map(product, pair)), (rhs, begun), forwards, transpose_solve=backwards
    )
    return jax.tree.map(jnp.add, value, still)


def _attempt(solve: Callable, throw: bool, product: Callable, rhs: Any, *, transposed: bool) -> Any:
    value, failed = solve(product, rhs, transposed)
    value = jax.tree.map(lambda leaf: jnp.where(failed, jnp.nan, leaf), value)
    return thrown(value, lambda v: eqx.error_if(v, failed, _FAILED)) if throw else value
