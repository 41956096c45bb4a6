"""Newton's method for cycles by collocation, and where it sets out from."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._collocation import (
    Closing,
    Condensed,
    Linearised,
    Profile,
    at,
    condensed,
    curve_on,
    equidistributed,
    expanded,
    extent,
    linearised,
    size_of,
    unreferred,
)


class Rows(NamedTuple):
    """What picks one of the solutions, `matrix (now - anchors) = 0` row by row for `now = (z₀, ln T, q)`: where along the
    cycle it begins, and where along its branch it is."""

    matrix: Float[Array, "r s"]
    anchors: Float[Array, "r s"]

    @classmethod
    def at(cls, force: Callable, profile: Profile, q: Array) -> "Rows":
        """The parameter stays, and the first node in a plane across the flow."""
        now = ends_of(profile, q)
        last = jnp.zeros_like(now).at[-1].set(1)
        phase = jnp.zeros_like(now).at[: now.size - 2].set(across(force, profile, q))
        return cls(jnp.stack([phase, last]), jnp.stack([now, now]))


def ends_of(profile: Profile, q: Array) -> Array:
    """The first node, ln T and the parameters."""
    return jnp.concatenate([profile.nodes[0], profile.log_period[None], jnp.ravel(q)])


# In the units of the components: where a voltage is at its peak, gates alone tell which way a neuron goes.
def across(force: Callable, profile: Profile, q: Array) -> Array:
    """The normal of a plane across the flow at the first node; of a drive, its phase."""
    if profile.closing is not None:
        return profile.closing.jump
    scale = extent(profile)
    v = force(profile.nodes[0], q) / scale
    return v / jnp.linalg.norm(v) / scale


def solve_ends(ends: Condensed, rows: Rows, right: Array) -> Array:
    """The changes of the first node, of ln T and of the parameters."""
    first = jnp.concatenate([ends.first, ends.columns[:, :-1]], axis=1)
    return jnp.linalg.solve(jnp.concatenate([first, rows.matrix]), right)


def newton_step(
    system: Linearised, profile: Profile, q: Array, rows: Rows
) -> tuple[Profile, Array]:
    """By how much a profile and the parameters are off."""
    n = profile.nodes.shape[1]
    ends, one = condensed(system, profile.closing), jnp.ones((1,), q.dtype)
    gaps = jnp.sum(rows.matrix * (ends_of(profile, q)[None] - rows.anchors), axis=1)
    found = -solve_ends(ends, rows, jnp.concatenate([ends.columns[:, -1], gaps]))
    change = expanded(profile, system, ends.rows, found[:n], jnp.concatenate([found[n:], one]))
    return change, found[n + 1 :].reshape(q.shape)


def tangent(force: Callable, profile: Profile, q: Array, rows: Rows) -> tuple[Profile, Array]:
    """How a profile moves along its branch, by 1 in the last of the rows."""
    n, system = profile.nodes.shape[1], linearised(force, profile, q)
    ends = condensed(system, profile.closing)
    found = solve_ends(ends, rows, jnp.zeros(rows.matrix.shape[1], q.dtype).at[-1].set(1))
    s = jnp.concatenate([found[n:], jnp.zeros((1,), q.dtype)])
    return expanded(profile, system, ends.rows, found[:n], s), found[n + 1 :].reshape(q.shape)


class Corrected(NamedTuple):
    """A profile that solves its equations, if `converged`: the last step was below the root of rounding."""

    profile: Profile
    q: Array
    converged: Bool[Array, ""]
    steps: Array
    size: Array


# Why Deuflhard's test (2011, ch. 3): the equations of a stiff field are badly off wherever the curve is a little off, and
# their norm would refuse all but tiny steps. What the next step would be, by the same matrix, is a measure in the units of
# the curve itself.
def corrected(
    force: Callable, profile: Profile, q: Array, rows: Rows, tol: Array, max_steps: int | Array
) -> Corrected:
    """Newton's method, with steps that are cut until a simplified step from their end is shorter."""
    root = jnp.sqrt(tol)

    def unfinished(carry):
        trying, _, _, length, (size, before, steps) = carry
        done = (size <= tol) | ((size < root) & (size >= 0.5 * before))
        return trying | (jnp.isfinite(size) & (length > 1e-3) & (steps < max_steps) & ~done)

    # Either a new step or the end of one that is tried: the equations are linearised in one place, and solved in one.
    def body(carry):
        trying, y, (system, change, full), length, (size, before, steps) = carry
        moved = jax.tree.map(lambda a, d: a + length * d, y, change)
        now = jax.tree.map(lambda a, b: jnp.where(trying, a, b), moved, y)
        system = jax.lax.cond(trying, lambda: system, lambda: unreferred(force, *y))
        following = newton_step(system.towards(force, *now), *now, rows)  # pyright: ignore
        step = size_of(now[0], following[0])
        # Where steps are small, rounding would be the judge.
        falls = (step <= (1 - 0.25 * length) * full) | (full < 1e3 * root)
        taken = trying & (falls | (length <= 1e-3))
        # One that was cut says nothing of how near the solution is.
        told = jnp.where(length < 1, 1, full), size, steps + 1
        told = jax.tree.map(lambda a, b: jnp.where(taken, a, b), told, (size, before, steps))
        chosen = jax.tree.map(
            lambda a, b: jnp.where(trying, a, b), (change, full), (following, step)
        )
        begin = jnp.minimum(1.0, 2 * length)
        cut = jnp.where(trying, jnp.where(taken, length, 0.5 * length), begin)
        y = jax.tree.map(lambda a, b: jnp.where(taken, a, b), moved, y)
        return ~taken, y, (system, *chosen), cut, told

    big, y = jnp.ones_like(tol), (profile, q)
    nothing = lambda of: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), of)
    system = nothing(jax.eval_shape(lambda: unreferred(force, *y)))
    start = jnp.asarray(False), y, (system, nothing(y), big), big, (big, big, jnp.asarray(0))
    _, y, _, length, (size, _, steps) = jax.lax.while_loop(unfinished, body, start)
    return Corrected(*y, (size <= root) & (length > 1e-3), steps, size)


# Why a Rosenbrock method (Shampine & Reichelt 1997, ode23s), and not a Diffrax solver: stiff fields are followed at the
# price of one small linear system a step, and what is wanted is a sketch of every step that was taken.
def sketched(force: Callable, z0: Array, t1: Array, steps: int) -> tuple[Array, Array, Array]:
    """A trajectory from z0: times, states, and how many of them there are; perhaps not all the way to t1."""
    d, e = 1 / (2 + 2**0.5), 6 + 2**0.5
    eye, rtol = jnp.eye(z0.size, dtype=z0.dtype), 1e-5
    jacobian = jax.jacfwd(force)

    def unfinished(carry):
        times, _, i, tries, h = carry
        return (times[i] < t1) & (i < steps - 1) & (tries < 2 * steps) & (h > 0)

    def body(carry):
        times, states, i, tries, h = carry
        z, t = states[i], times[i]
        h = jnp.minimum(h, t1 - t)
        factor = jax.scipy.linalg.lu_factor(eye - h * d * jacobian(z))
        solve = lambda b: jax.scipy.linalg.lu_solve(factor, b)
        f0 = force(z)
        k1 = solve(f0)
        f1 = force(z + 0.5 * h * k1)
        k2 = solve(f1 - k1) + k1
        new = z + h * k2
        k3 = solve(force(new) - e * (k2 - f1) - 2 * (k1 - f0))
        scale = rtol * (
            jnp.maximum(jnp.abs(z), jnp.abs(new)) + 1e-3 * jnp.max(jnp.abs(states), axis=0)
        )
        scale = jnp.maximum(scale, rtol * 1e-6 * jnp.max(jnp.abs(z)))
        error = h / 6 * jnp.max(jnp.abs(k1 - 2 * k2 + k3) / scale)
        fine = error <= 1  # not of NaN
        times = times.at[i + 1].set(jnp.where(fine, t + h, times[i + 1]))
        states = states.at[i + 1].set(jnp.where(fine, new, states[i + 1]))
        longer = jnp.where(jnp.isfinite(error), 0.8 * jnp.maximum(error, 1e-8) ** (-1 / 3), 0.2)
        return times, states, i + fine.astype(i.dtype), tries + 1, h * jnp.clip(longer, 0.2, 4)

    times = jnp.zeros(steps, z0.dtype)
    states = jnp.zeros((steps, z0.size), z0.dtype).at[0].set(z0)
    carry = times, states, jnp.asarray(0), jnp.asarray(0), 1e-4 * t1
    times, states, last, _, _ = jax.lax.while_loop(unfinished, body, carry)
    # What was not reached lies beyond all times.
    reached = jnp.arange(steps) <= last
    return (
        jnp.where(reached, times, jnp.inf),
        jnp.where(reached[:, None], states, states[last]),
        last,
    )


def first_turn(
    force: Callable, z0: Array, period: Array, count: int, m: int, closing: Closing | None
) -> Profile:
    """A profile near a cycle: of the first two turns of a trajectory the one that closes better."""
    times, states, last = sketched(force, z0, 2.8 * period, 8192)
    end = times[last]
    scale = jnp.maximum(jnp.ptp(states, axis=0), jnp.finfo(states.dtype).tiny)[None]

    def curve(t):
        i = jnp.searchsorted(times, t, side="right").astype(last.dtype) - 1
        i = jnp.clip(i, 0, jnp.maximum(last - 1, 0))
        part = ((t - times[i]) / (times[i + 1] - times[i]))[:, None]
        return (1 - part) * states[i] + part * states[i + 1]

    # A drive says by itself how long a turn takes.
    def driven(start, _):
        first, last = curve(jnp.stack([start, start + period]))
        gap = jnp.linalg.norm((last - first - closing.jump) / scale[0])  # pyright: ignore
        return start + period, (start, period, gap)

    def turn(start, _):
        """When it returns nearest to where it is at `start`, and how near."""

        # Twice, for at first the grid is coarse.
        def closer(_, found):
            span, reach, _ = found
            grid = span + reach * jnp.linspace(-1.0, 1.0, 1001, dtype=end.dtype)
            seen = curve(jnp.append(start + grid, start))
            gaps = jnp.linalg.norm((seen[:-1] - seen[-1:]) / scale, axis=1)
            gaps = jnp.where(start + grid <= end, gaps, jnp.inf)
            best = jnp.argmin(gaps)
            return grid[best], 2e-3 * reach, gaps[best]

        wide = 1.025 * period, 0.325 * period, jnp.full_like(period, jnp.inf)
        span, _, gap = jax.lax.fori_loop(0, 2, closer, wide)
        return start + span, (start, span, gap)

    turn = turn if closing is None else driven
    _, (starts, spans, gaps) = jax.lax.scan(turn, jnp.zeros_like(period), None, length=2)
    best = jnp.argmin(gaps)
    start = starts[best]
    span = jnp.where(jnp.isfinite(gaps[best]), spans[best], period)
    # By the length of the curve, each component in its own unit: neither jumps nor slow stretches are lost.
    fine = jnp.linspace(0.0, 1.0, 4001, dtype=end.dtype)
    moved = jnp.linalg.norm(jnp.diff(curve(start + span * fine) / scale, axis=0), axis=1)
    widths = equidistributed(jnp.diff(fine), 1 + moved * (fine.size - 1), count)
    profile = curve_on(lambda t: curve(start + span * t), widths, jnp.log(span), m)
    if closing is not None:
        late = jnp.where(closing.jump != 0, profile.nodes[0], 0)
        return profile._replace(nodes=profile.nodes - late[None], closing=closing)
    return rolled(profile, fastest(profile))


# The phase is fixed at the first node, and there it must be plain which way the cycle runs: on a slow stretch of a stiff
# field the velocity of a state that is a little off points elsewhere.
def fastest(profile: Profile) -> Array:
    """The interval on which most happens in a time; where the beginning is given, that one."""
    if profile.closing is not None:
        return jnp.asarray(0)
    moved = profile.ends - profile.nodes
    return jnp.argmax(jnp.linalg.norm(moved / extent(profile)[None], axis=1) / profile.widths)


def rolled(profile: Profile, first: Array) -> Profile:
    """The profile as it begins with another interval."""
    if profile.closing is not None:
        return profile
    return Profile(*(jnp.roll(a, -first, 0) for a in profile[:3]), profile.log_period)  # pyright: ignore


def once(profile: Profile) -> tuple[Profile, Array]:
    """A cycle run through once, and whether it had been more often."""
    if profile.closing is not None:
        return profile, jnp.asarray(False)
    parts = jnp.asarray([2, 3, 5], profile.nodes.dtype)
    times = jnp.linspace(0.0, 1.0, 16, endpoint=False, dtype=parts.dtype)
    later = times[None] + jnp.append(0 * parts[:1], 1 / parts)[:, None]
    states = at(profile, later.ravel()).reshape(*later.shape, -1)
    gaps = jnp.max(jnp.abs((states[1:] - states[:1]) / extent(profile)[None, None]), axis=(1, 2))
    i = jnp.argmin(gaps)
    part = jnp.where(gaps[i] < 1e-5, parts[i], 1)
    curve = lambda t: at(profile, t / part)
    log_period = profile.log_period - jnp.log(part)
    # The mesh of all turns serves the first; of one it is the same curve.
    return curve_on(curve, profile.widths, log_period, profile.slopes.shape[1]), part > 1
