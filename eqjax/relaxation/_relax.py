"""`relax`: let a field settle in time."""

import math
from collections.abc import Callable
from typing import Any, get_origin

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import (
    check_arrays,
    check_callable,
    check_count,
    check_key,
    check_kind,
    check_not_negative,
    check_number,
    check_positive,
    check_precision,
    given,
)
from ..analytic import tree_finite, tree_held, varies
from ..fields import AbstractSplitField
from ._fallback import with_step_scale
from ._once import reverse_once
from ._residual import (
    RESULTS,
    check_inexact,
    check_structure,
    compiled_once,
    explained,
    promoted,
    residual_ratio,
)


class Relaxation(eqx.Module):
    """What `relax` returns.

    `value`: the final state. `residual`: its force residual `‖F‖ / max(‖z‖, scale)`. `result`: a `RESULTS` value.
    `stats`: `field_evaluations` (-1 when the Diffrax solver does not let them be counted) and `num_steps`.
    `times`, `trajectory`: what `saveat` asked for, else None.
    """

    value: PyTree[Array]
    residual: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Any]
    times: Float[Array, " n"] | None = None
    trajectory: PyTree[Array] | None = None


def relax(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    solver: dfx.AbstractSolver = dfx.Euler(),
    step: ScalarLike = 0.1,
    controller: dfx.AbstractStepSizeController | None = None,
    steps: int | None = None,
    t1: ScalarLike | None = None,
    max_steps: int = 4096,
    temperature: ScalarLike | None = None,
    key: PRNGKeyArray | None = None,
    saveat: dfx.SaveAt | None = None,
    adjoint: dfx.AbstractAdjoint = dfx.RecursiveCheckpointAdjoint(),
    throw: bool = True,
    norm: Callable[[PyTree], Array] = optx.two_norm,
    scale: ScalarLike = 1.0,
    precision: str | None = "highest",
) -> Relaxation:
    """Integrate `dz/dt = F(z)` from `z0`, for one sample (`jax.vmap` for a batch).

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt`. `z0`: initial state. `x`: clamped input.
    - `solver`: any Diffrax solver; with Euler, `step` is ε of `z ← z + ε F(z)`. `BackwardEuler` for stiff
      fields. `IMEXEuler`, or Diffrax' `KenCarp3` and its like, take an `AbstractSplitField`: its reciprocal part
      implicitly, its non-reciprocal part explicitly.
    - `step`: the (initial) step. `controller`: a Diffrax step-size controller; None keeps the step fixed.
    - `steps` or `t1`: exactly one of the number of fixed steps and the final time.
    - `max_steps`: bound on the steps when only `t1` is known.
    - `temperature`: T ≥ 0 adds the noise `√(2T) dW` of overdamped Langevin dynamics and needs `key`.
    - `saveat`: a Diffrax `SaveAt`; its states come back as `trajectory`.
    - `adjoint`: how `jax.grad` passes through: checkpointed backpropagation (memory grows as √steps), once in reverse; or
      any Diffrax adjoint, of which `diffrax.DirectAdjoint()` has derivatives forwards and of any order.
    - `norm`, `scale`: of the reported residual. `throw`, `precision`: as for `equilibrium`.

    **Returns:** a `Relaxation`. `successful` says that the horizon was reached with finite numbers, not that
    the state has settled: that is what `residual` says.

    To see whether a fixed point is stable, start at it plus a small perturbation, some 1e-3 of it, and relax for
    several times the slowest time of the field: the state returns to a stable fixed point and leaves an
    unstable one.

    ```python
    found = ej.relax(field, start, x, step=0.1, steps=400)
    assert found.residual < 1e-5
    ```
    """
    if (steps is None) == (t1 is None):
        raise ValueError(f"Give exactly one of `steps` and `t1`, got steps={steps} and t1={t1}.")
    _check_times(step, steps, t1, max_steps, controller)
    _check_ways(solver, controller, saveat, adjoint, norm, precision)
    check_positive(scale=scale)
    if (temperature is None) != (key is None):
        raise ValueError("`temperature` and `key` go together: give both, or neither.")
    if temperature is not None:
        check_not_negative(temperature=temperature)
        check_key(key=key)
        if isinstance(_terms(field, solver), dfx.MultiTerm):
            raise ValueError(
                f"`temperature` goes with a solver of one drift term, got {solver!r}. Try `diffrax.Euler()`."
            )
    check_arrays(z0=z0)
    z0 = jax.tree.map(jnp.asarray, z0)
    check_inexact(z0)
    if varies((z0, x)):
        raise ValueError(
            "`z0` or `x` differs between devices, and the loop of Diffrax cannot be checked for that: pass `check_vma=False` to "
            "`jax.shard_map`, or settle by `equilibrium`, which is checked."
        )
    # Python floats would promote a float32 state when x64 is on.
    real = jnp.finfo(jnp.result_type(*jax.tree.leaves(z0))).dtype
    step = jnp.asarray(step, real)
    t0 = jnp.zeros((), real)
    end = steps * step if steps is not None else jnp.asarray(t1, real)
    if isinstance(solver, dfx.AbstractImplicitSolver):
        with explained(field, z0, x):
            solver = with_step_scale(solver, _unit(*tree_held((field, t0, z0, x, step))))
    if isinstance(adjoint, dfx.RecursiveCheckpointAdjoint):
        with explained(field, z0, x):
            field, z0, x = reverse_once(field, t0, z0, x)
    terms = _terms(field, solver)
    if temperature is not None:
        terms = dfx.MultiTerm(terms, _langevin_noise(z0, temperature, t0, end, step, key))
    extra = [] if saveat is None else [saveat.subs]
    with jax.default_matmul_precision(precision), explained(field, z0, x):
        solution: Any = dfx.diffeqsolve(
            terms,
            solver,
            t0=t0,
            t1=end,
            dt0=step,
            y0=z0,
            args=x,
            stepsize_controller=dfx.ConstantStepSize() if controller is None else controller,
            saveat=dfx.SaveAt(subs=[dfx.SubSaveAt(t1=True), *extra]),
            adjoint=adjoint,
            max_steps=max_steps if steps is None else steps,
            throw=False,
        )
    value = jax.tree.map(lambda a: a[0], solution.ys[0])
    residual = _residual(field)(field, end, value, x, norm, scale, precision)
    # Diffrax calls a NaN state "max_steps_reached".
    # And it integrates backwards, or not at all, where a traced time says so.
    forwards = (step > 0) & (end >= 0) & jnp.isfinite(end)
    result = promoted(solution.result, dfx.RESULTS)
    result = RESULTS.where(tree_finite(value) & forwards, result, RESULTS.nonfinite)  # pyright: ignore
    if throw:
        value = result.error_if(value, result != RESULTS.successful)
    taken = solution.stats["num_steps"]
    counted = count_evaluations(solver, taken)
    evaluations = jnp.asarray(-1) if counted is None else counted + 1  # one for the residual
    stats = {"field_evaluations": evaluations, "num_steps": taken}
    times, trajectory = (None, None) if saveat is None else (solution.ts[1], solution.ys[1])
    return Relaxation(value, jax.lax.stop_gradient(residual), result, stats, times, trajectory)


def _unit(field, t0, z0, x, step):
    """Of a state: the size of the start, or of its first step where that is more; at most 1, and 1 where both are 0."""
    size = jnp.maximum(optx.two_norm(z0), jnp.abs(step) * optx.two_norm(field(t0, z0, x)))
    return jnp.where(size > 0, jnp.minimum(size, 1), jnp.ones_like(size))


def _check_times(step, steps, t1, max_steps, controller):
    check_positive(step=step)
    check_count(1, 2**31 - 1, max_steps=max_steps, **given(steps=steps))
    finite = lambda t: 0 <= t < math.inf
    check_number("be a finite time, at least 0", finite, **given(t1=t1))
    if steps is not None and controller is not None:
        raise ValueError(
            f"`steps` goes with a fixed step, got controller={controller}. With a controller give the final time `t1`."
        )


def _check_ways(solver, controller, saveat, adjoint, norm, precision):
    check_kind(dfx.AbstractSolver, "a Diffrax solver", solver=solver)
    controllers = dfx.AbstractStepSizeController
    check_kind(controllers, "a Diffrax step-size controller", **given(controller=controller))
    check_kind(dfx.SaveAt, "a `diffrax.SaveAt`", **given(saveat=saveat))
    check_kind(dfx.AbstractAdjoint, "a Diffrax adjoint", adjoint=adjoint)
    check_callable("of a state, such as `optimistix.two_norm`", norm=norm)
    check_precision(precision=precision)


@compiled_once
def _residual(field, t, z, x, norm, scale, precision):
    with jax.default_matmul_precision(None if precision is None else "highest"):
        force = field(t, z, x)
    check_structure(z, force)  # one number for all was broadcast
    return residual_ratio(force, z, norm=norm, scale=scale)


def _terms(field, solver):
    """The force as one term, or split in two where the solver treats one part implicitly."""
    implicit = isinstance(solver, dfx.AbstractImplicitSolver)
    if not implicit or get_origin(solver.term_structure) is not dfx.MultiTerm:
        return dfx.ODETerm(field)
    if not isinstance(field, AbstractSplitField):
        raise ValueError(
            f"`solver` {type(solver).__name__} needs a field split into an explicit and an implicit part, got "
            f"{type(field).__name__}. Give an `AbstractSplitField` (with `reciprocal` and `nonreciprocal`), or a "
            "solver of the whole force such as `BackwardEuler`."
        )
    return dfx.MultiTerm(dfx.ODETerm(field.nonreciprocal), dfx.ODETerm(field.reciprocal))


def _langevin_noise(z0, temperature, t0, end, step, key):
    amplitude = jnp.sqrt(2 * jnp.asarray(temperature, step.dtype))
    structure = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), z0)
    path = dfx.VirtualBrownianTree(t0, end, tol=step / 2, shape=structure, key=key)

    def diffusion(t, z, x):
        return lx.DiagonalLinearOperator(
            jax.tree.map(lambda a: jnp.full_like(a, amplitude.astype(a.dtype)), z)
        )

    return dfx.ControlTerm(diffusion, path)


def count_evaluations(solver: dfx.AbstractSolver, steps: Array) -> Array | None:
    """Field evaluations of `steps` explicit Runge–Kutta steps; None for solvers that do not let them be counted."""
    if isinstance(solver, dfx.Euler):
        return steps
    if isinstance(solver, dfx.AbstractERK):
        tableau: Any = solver.tableau
        if tableau.fsal:  # the last stage of a step is the first of the next
            return steps * (tableau.num_stages - 1) + 1
        return steps * tableau.num_stages
    return None
