"""From a branch of cycles onto another one, at a branch point or a period doubling."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._collocation import condensed, expanded, linearised
from ._cycle_newton import across
from ._cycle_points import CyclePoint
from ._cycle_problems import Collocated, in_phase
from ._cycles import PeriodicOrbit
from ._jacobian import state_dtype
from ._parameter import Line, find, replaced
from ._path import advance
from ._profile import Closing, Profile, extent, rolled


def off_cycle(field, branch, point: CyclePoint, x, *, where, size, k, key) -> tuple[Any, Any]:
    """The field and the cycle of the other branch."""
    if point.type not in ("branch point", "period doubling"):
        raise ValueError(
            f'`point` must be a special point of type "branch point" or "period doubling", got "{point.type}": no branches '
            "of cycles cross there."
        )
    if point.profile is None or point.tangent is None:
        raise ValueError(
            "`point` is of cycles that were shot: continue without `steps`, by collocation, to leave their branch."
        )
    real = state_dtype(point.state)
    index, value = find(field, where)
    # Of the types that `cycle_continuation` gives them: it goes on with the program of the step.
    field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
    span = jnp.ptp(branch.parameters).astype(real)
    line = Line(field, jnp.asarray(point.parameter, real), span, index)
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, point.state))
    profile, (ahead, pace) = jax.tree.map(jnp.asarray, (point.profile, point.tangent))
    problem = Collocated(
        line=line,
        x=x,
        tol=jnp.asarray(float(jnp.finfo(real).eps) ** 0.75, real),
        key=jax.random.key(0) if key is None else key,
        unravel=unravel,
        k=min(k, flat.size if profile.closing is not None else flat.size - 1),
        max_steps=jnp.asarray(30, int),
    )
    if point.type == "period doubling":
        profile, ahead = doubled(profile), doubled(ahead, jnp.zeros_like(span))
    base, aside, normal = _aside(problem, profile, ahead, pace / span)
    found: Any = None
    passed: Any = None
    # Where the other branch bends soon, only a shorter step is near its prediction.
    for part in (1, 0.5, 0.25, 0.1, 0.03):
        found = advance(problem, base, aside, normal, jnp.asarray(part * size, real))
        orbit = PeriodicOrbit.at(found, unravel)
        if orbit.converged:
            new = line.at(found.y[1]), orbit
            if _nearest(branch, point, found):
                return new
            passed = passed or new
    if passed is None:
        raise ValueError(
            f"`switch` found no cycle on another branch: residual {float(found.residual):.1e}. Try another `size`."
        )
    return passed


# Why counted. Each next period doubling comes after a fifth of the parameter's way: a step that was short on the last branch
# goes past it, and the branch that begins there never shows it.
def _nearest(branch, point: CyclePoint, found) -> bool:
    """Whether nothing has happened on the new branch since it left: stabilities are exchanged where branches cross, and
    so its cycles have as many unstable multipliers as those of the old one on the other side."""
    before, after = (int(branch.unstable[point.index + i]) for i in (0, 1))
    if abs(after - before) != 1:
        return True
    ahead = float(branch.parameters[point.index + 1] - branch.parameters[point.index])
    logs: Any = np.real(found.found.logs)
    count = int(np.sum(logs > np.sqrt(np.finfo(logs.dtype).eps)))
    return count == (before if float(found.y[1]) * ahead > 0 else after)


def doubled(profile: Profile, once: Any = None) -> Profile:
    """A cycle run through twice, or a tangent to it; `once`: what that adds to the logarithm of the period."""
    closing, nodes, slopes = profile.closing, profile.nodes, profile.slopes
    again = nodes, slopes
    if closing is not None:
        again = nodes * closing.signs + closing.jump, slopes * closing.signs
        closing = Closing(closing.signs**2, (1 + closing.signs) * closing.jump)
    late = jnp.log(2.0).astype(nodes.dtype) if once is None else once
    return Profile(
        0.5 * jnp.concatenate([profile.widths, profile.widths]),
        jnp.concatenate([nodes, again[0]]),
        jnp.concatenate([slopes, again[1]]),
        profile.log_period + late,
        closing,
    )


# Why the singular vector: there the equations with the parameter held are singular, by what leads off the branch, and by
# that alone. Why square to the tangent at the first node: what the corrector is bordered with must vanish on the branch
# that is known (Keller 1977), or lead back to it.
@eqx.filter_jit
def _aside(problem, profile, ahead, pace):
    """Where to set out, the direction that leads off, and the normal."""
    zero = jnp.zeros_like(pace)
    force, n = problem.force, profile.nodes.shape[1]
    system = linearised(force, profile, zero)
    ends = condensed(system, profile.closing)
    units = jnp.append(extent(profile), 1)
    phase = jnp.append(across(force, profile, zero), 0)[None]
    matrix = jnp.concatenate([jnp.concatenate([ends.first, ends.columns[:, :1]], axis=1), phase])
    matrix = matrix * units[None] / jnp.append(units[:n], 1)[:, None]
    vector = jnp.linalg.svd(matrix)[2][-1] * units
    aside = expanded(profile, system, ends.rows, vector[:n], jnp.stack([vector[n], zero, zero]))
    # It may vanish at some nodes, along those of the other branch: from where it is seen best.
    flow = jax.vmap(lambda z: force(z, zero))(profile.nodes) / units[None, :n]
    moved = aside.nodes / units[None, :n]
    share = jnp.sum(moved * flow, axis=1) / jnp.sum(flow * flow, axis=1)
    first = jnp.argmax(jnp.linalg.norm(moved - share[:, None] * flow, axis=1))
    profile, aside, ahead = (rolled(p, first) for p in (profile, aside, ahead))
    aside, ahead = (in_phase(problem.force, profile, zero, p) for p in (aside, ahead))
    inner = problem.inner(profile)
    scaled = lambda pair: jax.tree.map(lambda a: a / jnp.sqrt(inner(pair, pair)), pair)
    aside, ahead = scaled((aside, zero)), scaled((ahead, pace))
    overlap = inner(ahead, aside)
    normal = scaled(jax.tree.map(lambda a, b: a - overlap * b, aside, ahead))
    direction = jax.tree.map(lambda a: a / inner(normal, aside), aside)
    return (profile, zero), direction, normal
