"""One loop for a whole batch: how our solvers iterate, alone and under `vmap`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Int, PyTree, ScalarLike

from ..analytic import tree_finite, tree_where, while_loop
from ._quorum import Quorum
from ._residual import MeasuresForce, Solver


# Why not `lax.while_loop` under `vmap` as it is. Where each sample has a predicate of its own, JAX copies the whole carry
# at every step, finished or not: Anderson's history, the basis of GMRES. Here the predicate is one for the batch, so that
# nothing is copied; each sample's answer is kept by hand when it is there, and what its loop makes of it later is not read.
@jax.custom_batching.custom_vmap
def _tally(going: Int[Array, ""], samples: Int[Array, ""]) -> tuple[Array, Array]:
    """How many go on, of how many samples: summed over whatever axes `vmap` adds."""
    return going, samples


@_tally.def_vmap
def _(size, batched, going, samples):
    sums = (
        jnp.sum(count, axis=0, dtype=count.dtype) if over else count * size
        for count, over in zip((going, samples), batched, strict=True)
    )
    return _tally(*sums), (False, False)


def wanted(going: Bool[Array, ""], settled: ScalarLike = 1.0) -> Bool[Array, ""]:
    """Whether a loop goes on: one answer for the whole batch, that less than the fraction `settled` of it has ended."""
    waiting, samples = _tally(going.astype(jnp.int32), jnp.ones((), jnp.int32))
    if isinstance(settled, (int, float)) and settled == 1:
        return waiting > 0
    ended = (samples - waiting).astype(jnp.float32)
    # With a hair of slack: .95 of 20 samples is 19, whatever rounding makes of it.
    return ended < settled * samples.astype(jnp.float32) - 1e-3


# Why not `.at[].set`: batched it is a scatter, although the place is one for all, and the whole is copied around it.
def _written(rows, new, place):
    return jax.lax.dynamic_update_slice_in_dim(rows, new, place, rows.ndim - 2)


@jax.custom_batching.custom_vmap
def write_rows(rows: Array, new: Array, place: Int[Array, ""]) -> Array:
    """`rows`, of shape `(..., m, n)`, with `new`, of shape `(..., k, n)`, from index `place` of the last axis but one."""
    return _written(rows, new, place)


@write_rows.def_vmap
def _(size, batched, rows, new, place):
    if batched[2]:  # a place for each sample, in a loop of Optimistix' own: then it is a scatter
        return jax.vmap(_written, [0 if over else None for over in batched])(rows, new, place), True
    rows, new = (
        leaf if over else jnp.broadcast_to(leaf, (size, *leaf.shape))
        for leaf, over in zip((rows, new), batched[:2], strict=True)
    )
    return write_rows(rows, new, place), True


def while_wanted(going: Callable, step: Callable, start: PyTree) -> PyTree:
    """`lax.while_loop` in one loop for the whole batch, for a small carry: that of an ended sample stands still.

    ```python
    assert ej.relaxation.while_wanted(lambda n: n < 5, lambda n: n + 2, jnp.asarray(0)) == 6
    ```
    """
    body = lambda carry: tree_where(going(carry), step(carry), carry)
    return while_loop(lambda carry: wanted(going(carry)), body, start)


class Answer(NamedTuple):
    """What a solver has found, and how it ended."""

    value: PyTree[Array]
    result: optx.RESULTS
    stats: dict[str, Any]


class _Carry(NamedTuple):
    y: PyTree[Array]
    state: PyTree[Array]
    step: Int[Array, ""]  # one number for the batch
    ended: Bool[Array, ""]
    answer: Answer


def iterate(
    fn: Callable,
    solver: Solver,
    y0: PyTree[Array],
    args: PyTree,
    max_steps: int,
) -> tuple[PyTree[Array], tuple[optx.RESULTS, dict[str, Any]]]:
    """Value, and result and stats: what `optimistix.fixed_point` and `root_find` do with a solver, in one loop for the
    whole batch. Not differentiable.

    `fn(y, args)` has no auxiliary output.
    """
    settled = solver.settled if isinstance(solver, Quorum) else 1.0
    with_aux = lambda y, args: (fn(y, args), None)
    tags: frozenset[object] = frozenset()

    def seen(y, state, count):
        ended, result = solver.terminate(with_aux, y, args, {}, state, tags)
        value, _, stats = solver.postprocess(with_aux, y, None, args, {}, state, tags, result)
        # An iterate may be lost and the best one kept, or the answer of one solver and the start of another.
        lost = ~(tree_finite(y) | tree_finite(value))
        result = optx.RESULTS.where(lost, optx.RESULTS.nonfinite, result)
        return ended | lost, Answer(value, result, stats | {"num_steps": count})

    state = solver.init(with_aux, y0, args, {}, eqx.filter_eval_shape(fn, y0, args), None, tags)
    dynamic, static = eqx.partition(state, eqx.is_array)
    zero = jnp.zeros((), jnp.int32)
    start = _Carry(y0, dynamic, zero, *seen(y0, state, zero))

    def going(carry):
        return wanted(~carry.ended & (carry.step < max_steps), settled)

    def step(carry):
        y, state, _ = solver.step(
            with_aux, carry.y, args, {}, eqx.combine(carry.state, static), tags
        )
        ended, answer = seen(y, state, carry.step + 1)
        return _Carry(
            y=y,
            state=eqx.filter(state, eqx.is_array),
            step=carry.step + 1,
            ended=carry.ended | ended,
            answer=tree_where(carry.ended, carry.answer, answer),
        )

    final = while_loop(going, step, start)
    value, result, stats = final.answer
    unfinished = optx.RESULTS.nonlinear_max_steps_reached
    return value, (optx.RESULTS.where(final.ended, result, unfinished), stats)


def solved(
    fn: Callable,
    solver: Solver,
    y0: PyTree[Array],
    args: PyTree,
    max_steps: int,
    adjoint: optx.AbstractAdjoint | None = None,
) -> tuple[PyTree[Array], tuple[optx.RESULTS, dict[str, Any]]]:
    """Value, and result and stats: by `iterate`; of a foreign solver, or one that is differentiated step by step, by the
    loop of Optimistix.

    `fn`: the map of a fixed-point solver, the force of a root finder.
    """
    if adjoint is None and isinstance(solver, MeasuresForce):
        return iterate(fn, solver, y0, args, max_steps)
    fixed_point = isinstance(solver, optx.AbstractFixedPointSolver)
    verb: Any = optx.fixed_point if fixed_point else optx.root_find
    adjoint = optx.ImplicitAdjoint() if adjoint is None else adjoint
    found = verb(fn, solver, y0, args, adjoint=adjoint, max_steps=max_steps, throw=False)
    return found.value, (found.result, found.stats)
