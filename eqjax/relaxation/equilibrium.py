"""`equilibrium`: the state at which a field vanishes."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from .anderson import Anderson
from .gmres import GMRES
from .implicit import attach
from .residual import RESULTS, residual_ratio


class Equilibrium(eqx.Module):
    """What `equilibrium` returns.

    `value`: the state. `residual`: its force residual `‖F‖ / max(‖z‖, scale)`, recomputed there. `result`: a
    `RESULTS` value. `stats`: `field_evaluations` (calls of F and products with its Jacobian; -1 when a foreign
    solver does not say) and `num_steps`.
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


def _held(tree):
    return jax.tree.map(lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, tree)


def equilibrium(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    solver: optx.AbstractFixedPointSolver | optx.AbstractRootFinder = Anderson(rtol=1e-5),
    adjoint: optx.AbstractAdjoint | None = None,
    max_steps: int = 256,
    throw: bool = True,
    precision: str | None = "highest",
) -> Equilibrium:
    """Find `z` with `F(z) = 0` by a solver, for one sample (`jax.vmap` for a batch).

    A fixed-point solver is given the map `z + F(z)`, so its mixing plays the step ε; a root finder is given F.

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt`; evaluated at t = 0.
    - `z0`: initial state, or the `value` of a previous equilibrium (warm start). `x`: clamped input.
    - `solver`: `Anderson`, `Picard`, `NewtonKrylov` or any Optimistix fixed-point solver or root finder.
    - `adjoint`: how `jax.grad` passes through: by default implicitly, by a matrix-free `GMRES` (rtol 1e-4 in
      float32, 1e-10 in float64); or any Optimistix adjoint.
    - `max_steps`: steps of the solver.
    - `throw`: raise when the state did not settle, or the adjoint solve fails. With `throw=False` look at
      `result`; the default adjoint is then reverse-mode only, and where it fails that sample's gradient is NaN.
    - `precision`: of matrix products while settling (`jax.default_matmul_precision`); float32 products in the
      reduced precision that accelerators default to are too coarse to settle. None leaves it alone.

    **Returns:** an `Equilibrium`. "successful" is overridden when the residual recomputed at the returned
    state exceeds the solver's tolerance.
    """
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    if not isinstance(solver, (optx.AbstractFixedPointSolver, optx.AbstractRootFinder)):
        raise ValueError(
            f"`solver` must be an Optimistix fixed-point solver or root finder, got {solver!r}. "
            "For a Diffrax solver use `relax`."
        )
    # The residual is measured as the solver measures it; foreign solvers have another notion of error.
    ours = hasattr(solver, "scale")
    norm, scale = (solver.norm, solver.scale) if ours else (optx.two_norm, 1.0)  # pyright: ignore
    z0 = jax.tree.map(jnp.asarray, z0)
    _check_structure(field, z0, x)
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(z0))
    # As tight as the dtype allows on a stiff field, whose solves stagnate above the rounding unit.
    linear = GMRES(rtol=1e-4 if eps > 1e-10 else 1e-10)
    # Whatever the field closes over becomes visible to differentiation.
    force = eqx.filter_closure_convert(lambda z, x: field(0.0, z, x), z0, x)
    # What the solve itself must not differentiate, because `attach` does.
    isolated = adjoint is None and not throw
    start, args = _held((z0, (force, x))) if isolated else (z0, (force, x))
    adjoint = optx.ImplicitAdjoint(linear) if adjoint is None else adjoint
    fixed_point = isinstance(solver, optx.AbstractFixedPointSolver)
    verb: Any = optx.fixed_point if fixed_point else optx.root_find
    fn = _map if fixed_point else _force
    with jax.default_matmul_precision(precision):
        solution = verb(fn, solver, start, args, adjoint=adjoint, max_steps=max_steps, throw=False)
        value = solution.value
        final = force(value, x)
    residual = residual_ratio(*_held((final, value)), norm=norm, scale=scale)
    result = RESULTS.promote(solution.result)
    if solver.rtol is not None and solver.atol is not None:
        asked = solver.rtol + solver.atol / jnp.maximum(norm(value), scale)
        # A hair of slack: the solver's own check used the same formula at the same state.
        missed = (asked > 0) & ~(residual <= 1.001 * asked)
        missed = missed & (result == RESULTS.successful)
        result = RESULTS.where(missed, RESULTS.residual_above_tolerance, result)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(value)]))
    result = RESULTS.where(finite & jnp.isfinite(residual), result, RESULTS.nonfinite)  # pyright: ignore
    if isolated:
        value = attach((value, final), *args, linear)
    if throw:
        value = result.error_if(value, result != RESULTS.successful)
    steps = solution.stats["num_steps"]
    counted = solution.stats.get("field_evaluations")
    if counted is None:
        counted = steps if isinstance(solver, optx.FixedPointIteration) else None
    evaluations = jnp.asarray(-1) if counted is None else counted + 1
    return Equilibrium(
        value, residual, result, {"field_evaluations": evaluations, "num_steps": steps}
    )


def _check_structure(field, z0, x):
    """The force must look like the state, leaf by leaf; say where it does not."""
    out = jax.eval_shape(lambda z, x: field(0.0, z, x), z0, x)
    ours, theirs = (jax.tree.map(lambda a: (a.shape, a.dtype.name), t) for t in (z0, out))
    if jax.tree.structure(z0) != jax.tree.structure(out) or ours != theirs:
        raise ValueError(
            f"`field(t, z, x)` must return an array for every leaf of `z`, of the same shape and dtype. "
            f"z: {ours}; force: {theirs}. Give `z0` the shape of the state, and model and data one dtype."
        )
