"""A cycle by collocation, from a state near it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ..analytic import tree_held
from ._collocation import defect, linearised
from ._cycle_newton import Rows, corrected, newton_step
from ._cycle_start import first_turn
from ._forced import Forced, closing_of, flat_force, without_phase
from ._host import on_host
from ._jacobian import check_autonomous
from ._multipliers import floquet
from ._path import after
from ._profile import Closing, Profile, better_mesh, once, redrawn, worse_mesh
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
    # Whatever the field closes over becomes visible to differentiation.
    flow = eqx.filter_closure_convert(flat_force(field, unravel, x), flat)
    held = tree_held(flow)
    force = lambda z, q: held(z)
    zero = jnp.zeros_like(period)
    start = first_turn(lambda z: force(z, zero), flat, period, intervals, DEGREE, closing)
    profile, solved, error = tree_held(adapted(force, tree_held(start), zero, tol, max_steps))
    size = jnp.maximum(jnp.linalg.norm(profile.nodes[0]), 1)
    residual = defect(force, profile, zero) / size
    # A fixed point also returns, but does not move on the way.
    moving = jnp.linalg.norm(force(profile.nodes[0], zero)) * profile.period > jnp.sqrt(tol) * size
    known = tree_held(after(profile, residual))
    logs, drift = floquet(force, known, zero, k)
    if closing is None:
        # Of the one along the cycle `drift` tells what is not 0.
        logs = jnp.append(logs, jnp.zeros(1, logs.dtype))
    logs = logs[jnp.argsort(-logs.real, stable=True)[:k]]
    live = solution(flow, known)
    converged = solved & moving & (drift < DRIFT) & jnp.all(jnp.isfinite(logs.imag))
    rounding = 4 * jnp.finfo(flat.dtype).eps * profile.period
    return {
        "state": unravel(without_phase(live.nodes[0], closing)),
        "period": live.period,
        "log_multipliers": logs,
        "residual": residual,
        "converged": converged,
        "period_error": error + rounding,
        "drift": jnp.where(moving & solved, drift, jnp.nan),
        "profile": profile,
    }


@eqx.filter_custom_jvp
def solution(flow: Callable, profile: Profile) -> Profile:
    """A profile that solves its equations, as a function of the force."""
    return profile


# One Newton step more, which moves nothing, carries the derivative: its matrix is held, the equations are not.
@solution.def_jvp
def _(primals, tangents):
    flow, profile = primals
    zero = jnp.zeros_like(profile.log_period)
    force = lambda z, q: flow(z)
    rows, system = Rows.at(force, profile, zero), linearised(force, profile, zero)

    def step(flow):
        live = system.towards(lambda z, q: flow(z), profile, zero)
        return newton_step(live, profile, zero, rows)[0]

    return profile, eqx.filter_jvp(step, (flow,), (tangents[0],))[1]


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
        closing = kept.closing or ()
        shapes = jax.eval_shape(lambda: (tuple(kept[:4]), tuple(kept[:4]), left))
        state = left, better.astype(left.dtype)
        drawn, short, left = on_host(next_mesh, shapes, *state, *kept[:4], *closing)
        complete = lambda parts: Profile(*parts, closing=kept.closing)
        return complete(drawn), complete(short), solved | better, left, change

    carry = start, start, jnp.asarray(False), jnp.asarray(ROUNDS), jnp.zeros_like(q)
    _, best, solved, _, change = jax.lax.while_loop(lambda carry: carry[3] > 0, body, carry)
    return best, solved, change


def next_mesh(left, better, *kept) -> tuple:
    """Of the best profile so far its entries on the mesh to try next, as run through once, and how many meshes are left;
    `better`: whether it is new."""
    profile = Profile(*kept[:4], closing=Closing(*kept[4:]) if kept[4:] else None)
    with np.errstate(all="ignore"):
        short, repeats = once(profile) if better else (profile, False)
        if repeats:
            profile, left = short, ROUNDS
        else:
            left = left - 1 if better or left == 1 else min(left - 1, 1)
        # On one mesh more, a worse one, its error shows.
        widths = worse_mesh(profile.widths) if left == 1 else better_mesh(profile)
        return tuple(redrawn(profile, widths)[:4]), tuple(profile[:4]), left
