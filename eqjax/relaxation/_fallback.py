"""One solver after another, as an Optimistix fixed-point solver."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from .._checks import check_count
from ._loop import solved
from ._quorum import AbstractAround
from ._residual import RESULTS, MeasuresForce, evaluations_told, is_met, scale_of


class _FallbackState(eqx.Module):
    y: PyTree[Array]
    residual: Float[Array, ""]  # after `first`
    met: Bool[Array, ""]
    done: Bool[Array, ""]  # `then` has run
    solved: optx.RESULTS
    told: RESULTS
    evaluations: Int[Array, ""]  # -1: a solver did not say
    steps: Int[Array, ""]
    scale: Float[Array, ""]


class Fallback(optx.AbstractFixedPointSolver):
    """Run `first`; where it does not settle, hand its state to `then`.

    The state is handed over when its force is smaller than that of the start, otherwise `then` begins at the
    start, too. Both may be any Optimistix fixed-point solver or root finder, or another `Fallback`. `first` has
    settled when its state meets the tolerance of `then`, which is that of the whole. Under `vmap` only the
    samples that did not settle go on; the others keep their state to the bit.

    **Arguments:** `first`, `then`; `first_steps`, `then_steps`: most steps of each (`max_steps` of
    `equilibrium` then counts for nothing).

    `stats`: `field_evaluations` and `num_steps` of both together, the two residuals measured between them
    included, and `handed_over`: whether `then` was needed.

    ```python
    solver = ej.relaxation.Fallback(ej.Picard(rtol=1e-5), ej.NewtonKrylov(rtol=1e-5), first_steps=3)
    found = ej.equilibrium(field, start, x, solver=solver)
    assert found.stats["handed_over"] and found.residual < 1e-5
    ```
    """

    first: optx.AbstractFixedPointSolver | optx.AbstractRootFinder
    then: optx.AbstractFixedPointSolver | optx.AbstractRootFinder
    first_steps: int = eqx.field(default=256, static=True)
    then_steps: int = eqx.field(default=256, static=True)

    def __check_init__(self):
        for name in ("first", "then"):
            solver = getattr(self, name)
            if not isinstance(solver, (optx.AbstractFixedPointSolver, optx.AbstractRootFinder)):
                raise ValueError(
                    f"`{name}` must be an Optimistix fixed-point solver or root finder, got {solver!r}. "
                    "Wrap a Diffrax solver in `TimeStepping`."
                )
        check_count(first_steps=self.first_steps, then_steps=self.then_steps)

    @property
    def rtol(self) -> ScalarLike:
        return self.then.rtol

    @property
    def atol(self) -> ScalarLike:
        return self.then.atol

    @property
    def norm(self) -> Callable[[PyTree], Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.then.norm if isinstance(self.then, MeasuresForce) else optx.two_norm

    @property
    def scale(self) -> ScalarLike | None:
        return self.then.scale if isinstance(self.then, MeasuresForce) else 1.0  # pyright: ignore

    def _measure(self, fn, y, args, scale):
        """The force residual of `y`, and whether it meets the tolerance."""
        size = self.norm(jax.tree.map(jnp.subtract, fn(y, args)[0], y))
        return size / jnp.maximum(self.norm(y), scale), is_met(self, size, y, scale)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        found = _run(fn, self.first, y, args, self.first_steps)
        value, solved, told, evaluations, steps, scale = found
        # One for both: the second may begin elsewhere.
        measured = 1 if scale is not None or self.scale is not None else 2
        if scale is None or self.scale is not None:
            force = jax.tree.map(jnp.subtract, fn(y, args)[0], y)
            scale = scale_of(self, self.norm(force), y)
        residual, met = self._measure(fn, value, args, scale)
        return _FallbackState(
            y=value,
            residual=residual,
            met=met,
            done=jnp.asarray(False),
            solved=solved,
            told=told,
            evaluations=_sum(evaluations, measured),
            steps=steps,
            scale=scale,
        )

    def step(self, fn, y, args, options, state, tags):
        begun, _ = self._measure(fn, y, args, state.scale)
        better = state.residual < begun  # false for NaN
        start = jax.tree.map(lambda a, b: jnp.where(better, a, b), state.y, y)
        _, aux = fn(y, args)  # only for its aux: an unused force is compiled away
        value, solved, told, evaluations, steps, _ = _run(
            fn, with_scale(self.then, state.scale), start, args, self.then_steps
        )
        state = _FallbackState(
            y=value,
            residual=state.residual,
            met=state.met,
            done=jnp.asarray(True),
            solved=solved,
            told=told,
            evaluations=_sum(state.evaluations, evaluations, 1),
            steps=state.steps + steps,
            scale=state.scale,
        )
        return value, state, aux

    def terminate(self, fn, y, args, options, state, tags):
        result = optx.RESULTS.where(state.done, state.solved, optx.RESULTS.successful)
        return state.met | state.done, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        settled = state.met | (state.solved == optx.RESULTS.successful)
        stats = {
            "num_steps": state.steps,
            "handed_over": state.done,
            "result": RESULTS.where(settled, RESULTS.successful, state.told),
            "field_evaluations": state.evaluations,
            "scale": state.scale,
        }
        return state.y, aux, stats


def _run(fn, solver, y, args, max_steps):
    """Value, result, what the solver adds to it, evaluations (-1 if unknown), steps and scale (or None) of a solve."""
    fixed_point = isinstance(solver, optx.AbstractFixedPointSolver)
    image = lambda y, args: fn(y, args)[0]
    force = lambda y, args: jax.tree.map(jnp.subtract, image(y, args), y)
    value, (result, stats) = solved(image if fixed_point else force, solver, y, args, max_steps)
    evaluations = evaluations_told(solver, stats)
    words = stats.get("result", RESULTS.successful)
    return value, result, words, evaluations, stats["num_steps"], stats.get("scale")


def _sum(first, *others):
    """Evaluations in all: unknown where one of them is."""
    for other in others:
        first = jnp.where((first < 0) | (jnp.asarray(other) < 0), -1, first + other)
    return first


def with_tolerance(solver: Any, change: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """`solver` with the tolerances `change(rtol, atol)`; within one that goes on to another, or is around another, too.

    ```python
    tighter = ej.relaxation.with_tolerance(ej.Anderson(1e-5), lambda rtol, atol: (rtol / 10, atol))
    assert tighter.rtol < 1e-5
    ```
    """
    if isinstance(solver, Fallback):
        parts = tuple(with_tolerance(part, change) for part in (solver.first, solver.then))
        return eqx.tree_at(lambda s: (s.first, s.then), solver, parts)
    if isinstance(solver, AbstractAround):
        return eqx.tree_at(lambda s: s.solver, solver, with_tolerance(solver.solver, change))
    return eqx.tree_at(lambda s: (s.rtol, s.atol), solver, change(solver.rtol, solver.atol))


def with_scale(solver: Any, scale: ScalarLike) -> Any:
    """`solver` with that `scale`, where it was given none; within one that goes on to another, or is around another, too."""
    if isinstance(solver, Fallback):
        parts = tuple(with_scale(part, scale) for part in (solver.first, solver.then))
        return eqx.tree_at(lambda s: (s.first, s.then), solver, parts)
    if isinstance(solver, AbstractAround):
        return eqx.tree_at(lambda s: s.solver, solver, with_scale(solver.solver, scale))
    if not isinstance(solver, MeasuresForce) or solver.scale is not None:
        return solver
    return eqx.tree_at(lambda s: s.scale, solver, scale, is_leaf=lambda leaf: leaf is None)


# Why one for all steps. The start of a step has no unit: near rest at 0, or where the unknown is an increment, it is smaller
# than the rounding of what it is added to.
def with_step_scale(solver: Any, scale: ScalarLike) -> Any:
    """A Diffrax solver whose root finder, if it has one, measures by that `scale` where it was given none."""
    if (finder := getattr(solver, "root_finder", None)) is None:
        return solver
    return eqx.tree_at(lambda s: s.root_finder, solver, with_scale(finder, scale))
