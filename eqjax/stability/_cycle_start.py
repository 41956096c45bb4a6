"""Where the search for a cycle sets out from: the turn of a trajectory that closes best."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._host import on_host
from ._profile import Closing, Profile, curve_on, equidistributed, fastest, rolled


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
        # Of a sketch the inverse is good enough, and one solver to compile instead of three.
        inverse = jnp.linalg.inv(eye - h * d * jacobian(z))
        solve = lambda b: inverse @ b
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
    jump = () if closing is None else (closing.jump,)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, z0.dtype)
    shapes = shape(count), shape(count, z0.size), shape(count, m, z0.size), shape()
    search = functools.partial(closest_turn, count=count, m=m)
    return Profile(*on_host(search, shapes, times, states, last, period, *jump), closing=closing)


def closest_turn(times, states, last, period, *jump, count, m) -> tuple:
    """The entries of its profile: of the trajectory through `states`, of which the last counts; `jump` of a driven one."""
    end, period = times[last], float(period)
    scale = np.maximum(np.ptp(states, axis=0), np.finfo(states.dtype).tiny)[None]

    def curve(t):
        i = np.searchsorted(times, t, side="right") - 1
        i = np.clip(i, 0, max(int(last) - 1, 0))
        part = ((t - times[i]) / (times[i + 1] - times[i]))[:, None]
        return (1 - part) * states[i] + part * states[i + 1]

    def turn(start):
        """When it returns nearest to where it is at `start`, and how near."""
        if jump:  # a drive says by itself how long a turn takes
            first, later = curve(np.stack([start, start + period]))
            return period, np.linalg.norm((later - first - jump[0]) / scale[0])
        span, reach, gap = 1.025 * period, 0.325 * period, np.inf
        # Twice, for at first the grid is coarse.
        for _ in range(2):
            grid = span + reach * np.linspace(-1.0, 1.0, 1001)
            seen = curve(np.append(start + grid, start))
            gaps = np.linalg.norm((seen[:-1] - seen[-1:]) / scale, axis=1)
            gaps = np.where(start + grid <= end, gaps, np.inf)
            best = np.argmin(gaps)
            span, reach, gap = grid[best], 2e-3 * reach, gaps[best]
        return span, gap

    with np.errstate(all="ignore"):
        span, gap = turn(np.zeros(()))
        other, second = turn(span)
        start, span, gap = (span, other, second) if second < gap else (np.zeros(()), span, gap)
        span = span if np.isfinite(gap) else np.asarray(period)
        # By the length of the curve, each component in its own unit: neither jumps nor slow stretches are lost.
        fine = np.linspace(0.0, 1.0, 4001)
        moved = np.linalg.norm(np.diff(curve(start + span * fine) / scale, axis=0), axis=1)
        widths = equidistributed(np.diff(fine), 1 + moved * (fine.size - 1), count)
        profile = curve_on(lambda t: curve(start + span * t), widths, np.log(span), m)
        if not jump:
            return tuple(rolled(profile, fastest(profile))[:4])
        late = np.where(jump[0] != 0, profile.nodes[0], 0)
        return tuple(profile._replace(nodes=profile.nodes - late[None])[:4])
