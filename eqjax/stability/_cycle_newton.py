"""Newton's method for cycles by collocation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._collocation import (
    Condensed,
    Linearised,
    condensed,
    expanded,
    linearised,
    size_of,
    unreferred,
)
from ._profile import Profile, extent


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
