"""Newton's method where a factorisation is dear and a solve by it is not."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from ._sparse import SparseLU


class _At(NamedTuple):
    """A candidate, the correction there, its size beside that of the last one, and what to do next."""

    y: PyTree[Array]
    change: PyTree[Array]
    size: Array
    ratio: Array
    length: Array
    more: Array


# Why not `NewtonKrylov`: it judges by the force, which on a fine grid is a sum of large terms that cancel and does not fall
# below their rounding, and it factors at every step. Corrections by one matrix tell the distance to the root in the units of
# the state, whatever those of the force (natural monotonicity: Deuflhard 2004, NLEQ-ERR), and cost a solve each.
def chord(
    equations: Callable[[Any], Any],
    size: Callable[[Any], Array],
    solver: SparseLU,
    most: int,
    start: PyTree[Array],
) -> tuple[PyTree[Array], Array, Array]:
    """A root near `start`, whether it is one, and how many matrices were factored.

    By one factorisation as long as each correction is less than .3 of the last one, and halved steps where they grow.
    """
    one = size(start) * 0 + 1
    eps = jnp.finfo(one.dtype).eps
    fine, floor = eps**0.75, eps**0.5

    def arrived(at):
        # At the floor of rounding corrections shrink no more.
        return (at.size <= fine) | ((at.size <= floor) & ~(at.ratio <= 0.3))

    def outer(carry):
        at, count = carry
        _, product = jax.linearize(equations, at.y)
        system = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: at.y))
        state = solver.init(system, {})
        correction = lambda y: solver.compute(state, equations(y), {})[0]

        def inner(at):
            y = jax.tree.map(lambda a, d: a - at.length * d, at.y, at.change)
            change = correction(y)
            ratio = size(change) / at.size
            good = ratio <= 1 - 0.25 * at.length
            new = _At(y, change, size(change), ratio, at.length, (at.length == 1) & (ratio <= 0.3))
            shorter = at._replace(ratio=ratio, length=at.length / 2, more=at.length > 2.0**-9)
            # Of a correction at the floor nothing is gained, and it is no failure.
            shorter = shorter._replace(more=shorter.more & (at.size > floor))
            return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, shorter)

        change = correction(at.y)
        begun = _At(at.y, change, size(change), 0 * one, one, at.more)
        at = jax.lax.while_loop(lambda at: at.more & ~(at.size <= fine), inner, begun)
        # Where the shortest step did not help either, and where a solve failed, the next matrix would be the same.
        lost = (at.length <= 2.0**-9) | ~jnp.isfinite(at.size)
        return at._replace(more=~arrived(at) & ~lost), count + 1

    nothing = jax.tree.map(jnp.zeros_like, start)
    begun = _At(start, nothing, jnp.inf * one, 0 * one, one, one > 0)
    going = lambda carry: carry[0].more & (carry[1] < most)
    at, count = jax.lax.while_loop(going, outer, (begun, jnp.asarray(0)))
    return at.y, arrived(at), count
