"""`equilibrium`: the state at which a field vanishes."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from .._checks import check_arrays, check_count, check_flags, check_kind, check_precision
from ..analytic import is_complex, thrown, tree_finite, tree_held, vary_like
from ..fields import Realified
from ._anderson import Anderson
from ._conserved import Conserving, conserving
from ._fallback import with_scale
from ._fresh import warn_of_fresh
from ._gmres import adjoint_solver
from ._growth import abscissa_of
from ._implicit import implicit_root
from ._loop import solved
from ._refine import Refine, loosened
from ._residual import (
    RESULTS,
    MeasuresForce,
    Solver,
    check_inexact,
    check_structure,
    compiled_once,
    evaluations_told,
    explained,
    promoted,
    residual_ratio,
)
from ._token_order import TokenOrder, settled_in_order


class Equilibrium(eqx.Module):
    """What `equilibrium` returns.

    `value`: the state. `residual`: its force residual `‖F‖ / max(‖z‖, scale)`, recomputed there. `result`: a
    `RESULTS` value. `stats`: `field_evaluations` (calls of F and products with its Jacobian; -1 when a foreign
    solver does not say), `num_steps` and `scale`; from a `Fallback` also `handed_over`, under a `Refine`
    `coarse_evaluations`, a part of the first.
    """

    value: PyTree[Array]
    residual: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


def _force(z, args):
    force, x = args
    return force(z, x)


def _map(z, args):
    return jax.tree.map(jnp.add, z, _force(z, args))


# Why implicit, and why not by the default of Optimistix. z* depends on the parameters by F(z*, θ) = 0 alone,
# so that dz*/dθ = -J⁻¹ ∂F/∂θ whatever path led there; one transposed solve replaces a backward pass through
# all steps. But `ImplicitAdjoint()` without an argument forms J (measured: 57 GiB for 32 windows of 64 tokens
# of width 64, float64); a GMRES never does. And where that fails Optimistix raises, in the middle of a
# backward pass, for the whole batch: here it does so only if asked to `throw`.
def equilibrium(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    solver: Solver = Anderson(rtol=1e-5),
    adjoint: optx.AbstractAdjoint | None = None,
    max_steps: int = 256,
    throw: bool = True,
    conserved: Any = None,
    check: bool = False,
    precision: str | Refine | None = "highest",
) -> Equilibrium:
    """Find `z` with `F(z) = 0` by a solver, for one sample (`jax.vmap` for a batch).

    A fixed-point solver is given the map `z + F(z)`, so its mixing plays the step ε; a root finder is given F.

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt`; evaluated at t = 0.
    - `z0`: initial state, or the `value` of a previous equilibrium (warm start). `x`: clamped input. The derivative in `z0`
      is 0 where the equilibrium does not depend on it, and a failed one where the Jacobian is singular.
    - `solver`: `TokenOrder` for a causal field; `Anderson`, `Broyden`, `Picard`, `NewtonKrylov`, `PseudoTransient`,
      `TimeStepping`, a `Fallback` from one to another, or any Optimistix fixed-point solver or root finder.
    - `adjoint`: how `jax.grad` passes through: by default implicitly, by a matrix-free `GMRES` (rtol 1e-4 in
      float32, 1e-10 in float64); or any Optimistix adjoint.
    - `max_steps`: steps of the solver.
    - `throw`: raise when the state did not settle, or the adjoint solve fails. With `throw=False` look at
      `result`; where the default adjoint fails that sample's derivative is NaN.
    - `conserved`: a callable `c(z)` with what the field conserves, one number or several: the equilibrium is that of the start's
      values, and its derivative in `z0` and `x` is right, where without it J is singular. What is not conserved does not settle.
    - `check`: estimate whether the relaxation would stay, from at most 24 products with J. Solvers but `Picard`, `TimeStepping`
      and `PseudoTransient` also find fixed points that repel it. `stats` then holds `growth`, the largest real part of J's
      eigenvalues; `stable`, whether that is negative, and all went well; and `distance`, the residual over |growth|: about how
      far rest still is, which is much where a field is slow. `ej.stability.check` is sure, and says more.
    - `precision`: of matrix products while settling (`jax.default_matmul_precision`); float32 products in the
      reduced precision that accelerators default to are too coarse to settle. The residual is measured at
      "highest" in any case. None leaves all of it alone; a `Refine` settles coarsely first.

    A solver whose `scale` is None takes that of the problem: the norm of `z0`, or of F(z0) where that is 0, and at most 1.

    **Returns:** an `Equilibrium`. "successful" is overridden when the residual recomputed at the returned
    state exceeds the solver's tolerance.

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.Anderson(rtol=1e-5))
    assert ej.force_residual(field, found.value, x) < 1e-5
    ```
    """
    if isinstance(solver, TokenOrder) and not (
        adjoint is None and isinstance(precision, str | None)
    ):
        raise ValueError(
            "`TokenOrder` has an adjoint of its own, in order, and one precision: leave `adjoint` out, and pass `precision` "
            'as a string such as "highest".'
        )
    check_count(max_steps=max_steps)
    if not isinstance(solver, Solver):
        raise ValueError(
            f"`solver` must be an Optimistix fixed-point solver or root finder, got {solver!r}. "
            "For a Diffrax solver use `relax`, or wrap it in `TimeStepping`."
        )
    check_kind((optx.AbstractAdjoint, type(None)), "an Optimistix adjoint or None", adjoint=adjoint)
    check_flags(throw=throw, check=check)
    if not isinstance(precision, Refine):
        check_precision(precision=precision)
    check_arrays(z0=z0)
    warn_of_fresh(field=field, conserved=conserved)
    z0 = jax.tree.map(jnp.asarray, z0)
    check_inexact(z0)
    closed = next((f for f in (field, conserved) if getattr(f, "__closure__", None)), field)
    if conserved is not None:
        field, x = conserving(field, z0, x, conserved, solver)
    # Around the program, too: what differentiates it is traced when the contexts inside have closed.
    asked = isinstance(precision, str)
    outside = jax.default_matmul_precision(precision) if asked else contextlib.nullcontext()
    with outside, explained(field, z0, x):
        found = _solve(closed)(field, z0, x, solver, adjoint, max_steps, throw, precision)
        return _checked(closed)(found, field, x) if check else found


@compiled_once
def _solve(field, z0, x, solver, adjoint, max_steps, throw, precision):
    if isinstance(solver, TokenOrder):
        with jax.default_matmul_precision(precision):
            found = settled_in_order(field, z0, x, solver, max_steps, throw)
        value, residual, result, stats = found
        if throw:
            value = thrown(value, lambda v: result.error_if(v, result != RESULTS.successful))
        return Equilibrium(value, residual, result, stats)
    if is_complex(z0):
        # As real and imaginary parts: every solver can do that, and Optimistix asks for it.
        real = Realified(field)
        settings = {"adjoint": adjoint, "max_steps": max_steps, "throw": throw}
        found = equilibrium(real, real.split(z0), x, solver=solver, precision=precision, **settings)
        return eqx.tree_at(lambda e: e.value, found, real.join(found.value))
    if isinstance(precision, Refine):
        return _refined(
            field, z0, x, solver, precision, adjoint=adjoint, max_steps=max_steps, throw=throw
        )
    # The residual is measured as the solver measures it; foreign solvers have another notion of error.
    ours = isinstance(solver, MeasuresForce)
    norm = solver.norm if ours else optx.two_norm  # pyright: ignore
    force = jax.eval_shape(eqx.Partial(field, 0.0), z0, x)
    check_structure(z0, force)
    z0 = vary_like(z0, force)

    # Whatever the field closes over becomes visible to differentiation. The precision of a product is fixed when it is
    # traced, which is here.
    begun, highest = eqx.Partial(field, 0.0), None if precision is None else "highest"
    with jax.default_matmul_precision(highest):
        exact = force = eqx.filter_closure_convert(begun, z0, x)
    if precision != highest:
        with jax.default_matmul_precision(precision):
            force = eqx.filter_closure_convert(begun, z0, x)
    fn = _map if isinstance(solver, optx.AbstractFixedPointSolver) else _force
    settings = (fn, solver, z0, (force, x), max_steps)
    with jax.default_matmul_precision(precision):
        if adjoint is None or isinstance(adjoint, optx.ImplicitAdjoint):
            linear = adjoint_solver(z0) if adjoint is None else adjoint.linear_solver
            find = eqx.Partial(solved, *tree_held(settings))
            value, told = implicit_root(exact, x, z0, find=find, linear=linear, throw=throw)
        else:
            value, told = solved(*settings, adjoint)
    result, stats = told
    scale = stats["scale"] if ours else jnp.ones_like(norm(value))
    # The verdict is ours. A foreign solver may measure steps, or judge the iterate before the one it returns.
    held = tree_held((field, value, x))
    # Of what should be conserved and is not the sum may vanish where neither part does.
    with jax.default_matmul_precision(highest):
        finals = held[0].parts(*held[1:]) if isinstance(field, Conserving) else [exact(value, x)]
    # A diagnostic: a gradient through it would ask for a second solve.
    measured = lambda final: residual_ratio(tree_held(final), held[1], norm=norm, scale=scale)
    residual = functools.reduce(jnp.maximum, map(measured, finals))
    result = promoted(result, optx.RESULTS)
    # What the solver itself says of a failure, in more words than Optimistix has.
    told = stats.get("result", RESULTS.successful)
    result = RESULTS.where(told == RESULTS.successful, result, told)
    if solver.rtol is not None and solver.atol is not None:
        asked = solver.rtol + solver.atol / jnp.maximum(norm(value), scale)
        # A hair of slack: the solver's own check used the same formula at the same state.
        # Negated, so that NaN has missed. A tolerance of 0 asks for all steps (`Picard`).
        missed = (asked > 0) & ~(residual <= 1.001 * asked)
        missed = missed & (result == RESULTS.successful)
        result = RESULTS.where(missed, RESULTS.residual_above_tolerance, result)
    # Last, over every other word: Diffrax, for one, reports NaN as too many steps.
    result = RESULTS.where(tree_finite(value) & jnp.isfinite(residual), result, RESULTS.nonfinite)  # pyright: ignore
    if throw:
        value = thrown(value, lambda v: result.error_if(v, result != RESULTS.successful))
    counted = evaluations_told(solver, stats)
    shown = {name: stats[name] for name in ("num_steps", "handed_over") if name in stats}
    shown["scale"] = scale
    shown["field_evaluations"] = jnp.where(counted < 0, -1, counted + 1)
    return Equilibrium(value, residual, result, shown)


@compiled_once
def _checked(found, field, x):
    held, z, x = tree_held((field, found.value, x))
    if is_complex(z):
        held = Realified(held)
        z = held.split(z)
    with jax.default_matmul_precision("highest"):
        growth = abscissa_of(held, z, x)
    told = {
        "growth": growth,
        "stable": (growth < 0) & (found.result == RESULTS.successful),
        "distance": found.residual / jnp.abs(growth).astype(found.residual.dtype),
    }
    return Equilibrium(found.value, found.residual, found.result, found.stats | told)


def _refined(field, z0, x, solver, refine, **kwargs):
    # Held: the solve is not differentiated. What a singular fixed point owes to its start is asked of `z0` below.
    coarse = equilibrium(
        field,
        *tree_held((z0, x)),
        solver=loosened(solver, refine.rtol),
        max_steps=kwargs["max_steps"],
        throw=False,
        precision=refine.coarse,
    )
    # A coarse phase that stopped short is still a good start; only NaN is none.
    usable = coarse.result != RESULTS.nonfinite
    start = jax.tree.map(
        lambda a, b: jnp.where(usable, a, b), tree_held(coarse.value), tree_held(z0)
    )
    # The value of the start, and the derivative of `z0`.
    start = jax.tree.map(lambda a, b: a + (b - tree_held(b)), start, z0)
    solver = with_scale(solver, coarse.stats["scale"])
    found = equilibrium(field, start, x, solver=solver, precision="highest", **kwargs)
    first, then = (part.stats["field_evaluations"] for part in (coarse, found))
    evaluations = jnp.where((first < 0) | (then < 0), -1, first + then)
    steps = coarse.stats["num_steps"] + found.stats["num_steps"]
    stats = {"field_evaluations": evaluations, "coarse_evaluations": first, "num_steps": steps}
    return Equilibrium(found.value, found.residual, found.result, found.stats | stats)
