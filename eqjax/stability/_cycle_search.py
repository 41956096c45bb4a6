"""A cycle by collocation, from a state near it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ..analytic import tree_held
from ._collocation import Linearised, Profile, better_mesh, linearised, redrawn, worse_mesh
from ._cycle_newton import Rows, corrected, first_turn, newton_step, once
from ._forced import Forced, closing_of, flat_force, without_phase
from ._jacobian import check_autonomous
from ._multipliers import along_the_flow, log_multipliers
from ._path import after
from ._shooting import DRIFT

DEGREE = 6
# Meshes that are tried one after another, each half the way nearer to equal errors, and the last one worse.
ROUNDS = 4


@eqx.filter_jit
def collocated(field, z0, x, period, intervals, k, tol, max_steps) -> dict[str, Any]:
    """The entries of a `PeriodicOrbit`."""
    flat, unravel = ravel_pytree(z0)
    closing = None
    if isinstance(field, Forced):
        length = field.length.astype(flat.dtype)
        turns = jnp.maximum(jnp.round(tree_held(period / length)), 1)
        flat, period = jnp.append(flat, jnp.zeros_like(turns)), turns * length
        closing = tree_held(closing_of(turns, flat.size))
    else:
        check_autonomous(field, z0, x)  # here, so that a second call does not trace the field
    held = tree_held((field, x))

    def force(z, q, problem=held):
        field, x = problem
        return flat_force(field, unravel, x)(z)

    zero = jnp.zeros_like(period)
    start = first_turn(lambda z: force(z, zero), flat, period, intervals, DEGREE, closing)
    profile, solved, error = tree_held(adapted(force, tree_held(start), zero, tol, max_steps))
    rows = Rows.at(force, profile, zero)
    system = linearised(force, profile, zero)
    size = jnp.maximum(jnp.linalg.norm(profile.nodes[0]), 1)
    residual = jnp.max(jnp.linalg.norm(system.columns[:, :, -1], axis=1)) / size
    # A fixed point also returns, but does not move on the way.
    moving = jnp.linalg.norm(force(profile.nodes[0], zero)) * profile.period > jnp.sqrt(tol) * size
    # Once more, which moves nothing and carries the derivative: the matrix is held, the equations are not.
    live = system.towards(lambda z, q: force(z, q, (field, x)), profile, zero)
    step, _ = newton_step(live, profile, zero, rows)
    moved = jax.tree.map(jnp.add, profile, step)
    known, exact = tree_held(after((profile, system), step))
    logs, drift = floquet(force, known, exact, zero, k, max(1, 16 // flat.size))
    converged = solved & moving & (drift < DRIFT) & jnp.all(jnp.isfinite(logs.imag))
    rounding = 4 * jnp.finfo(flat.dtype).eps * profile.period
    return {
        "state": unravel(without_phase(moved.nodes[0], closing)),
        "period": moved.period,
        "log_multipliers": logs,
        "residual": residual,
        "converged": converged,
        "period_error": error + rounding,
        "drift": jnp.where(moving & solved, drift, jnp.nan),
        "profile": profile,
    }


def adapted(force: Callable, start: Profile, q: Array, tol: Array, max_steps: int):
    """A cycle of the least period on a mesh that fits it, whether there is one, and about the error of its period."""

    def body(carry):
        profile, best, solved, left, _ = carry
        rows = Rows.at(force, profile, q)
        found = corrected(force, profile, q, rows, tol, max_steps)
        probed = left == 1
        change = jnp.where(found.converged, jnp.abs(found.profile.period - best.period), jnp.nan)
        # One that is lost on a new mesh stays as it was.
        better = found.converged & ~probed
        kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), found.profile, best)
        short, repeats = once(kept)
        repeats &= better
        kept = jax.tree.map(lambda a, b: jnp.where(repeats, a, b), short, kept)
        # On one mesh more, a worse one, its error shows.
        left = jnp.where(
            repeats, ROUNDS, jnp.where(better | probed, left - 1, jnp.minimum(left - 1, 1))
        )
        widths = jnp.where(left == 1, worse_mesh(kept.widths), better_mesh(kept))
        return redrawn(kept, widths), kept, solved | better, left, change

    carry = start, start, jnp.asarray(False), jnp.asarray(ROUNDS), jnp.zeros_like(q)
    _, best, solved, _, change = jax.lax.while_loop(lambda carry: carry[3] > 0, body, carry)
    return best, solved, change


def floquet(force: Callable, profile: Profile, system: Linearised, q: Array, k: int, parts: int):
    """Logarithms of the k largest multipliers, that along the cycle among them, and by how much this one misses 1."""
    velocity = jax.vmap(lambda z: force(z, q))
    across, along = along_the_flow(system.transfer, velocity(profile.nodes))
    if parts > 1:
        # Where it contracts strongly a turn is taken in smaller parts than its curve needs.
        finer = redrawn(profile, jnp.repeat(profile.widths / parts, parts))
        transfer = linearised(force, finer, q).transfer
        across, _ = along_the_flow(transfer, velocity(finer.nodes))
    found, drift = log_multipliers(across, k), jnp.abs(jnp.expm1(along))
    if profile.closing is None:
        found = jnp.append(found, along.astype(found.dtype))
    return found[jnp.argsort(-found.real, stable=True)[:k]], drift
