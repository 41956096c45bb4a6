"""`J v = b` and `Jᵀ v = b` for a causal field: token after token, or by a window of tokens that moves along."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from ..analytic import while_loop
from ..fields import AbstractCausalField, written
from ._fallback import with_scale, with_tolerance
from ._in_order import InOrder, Ring, rescued, scanned
from ._loop import wanted, write_rows
from ._secant import combined, onto

NEW = 0.3  # of a product must be new to the history: less would be spoilt by rounding, in one pass of Gram and Schmidt


def triangular(
    field: AbstractCausalField, z, x, rhs, order: Any, max_steps: int, reverse: bool = False
) -> InOrder:
    """`J v = rhs` in order, or `Jᵀ v = rhs` in `reverse`, with the Jacobian J at z, by products with its blocks."""
    memory = field.remember(z)
    still = jax.tree.map(jnp.zeros_like, memory)
    if min(order.chunk, z.shape[0]) > 1:
        react = (_back if reverse else _onward)(field, z, x, memory)
        return _moving(order, max_steps, react, rhs, still, reverse)

    def onward(moved, start, rhs, z, x):
        _, push = jax.linearize(lambda u, m: field.after(0.0, u, x, m, start), z, memory)
        noted = lambda v: written(moved, jax.jvp(field.remember, (z,), (v,))[1], start)
        return lambda v: push(v, moved) - rhs, jnp.zeros_like(rhs), noted

    def back(pulled, start, rhs, z, x):
        _, pull = jax.vjp(lambda u, m: field.after(0.0, u, x, m, start), z, memory)
        _, noted = jax.vjp(field.remember, z)
        own = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, 1, 0)
        # What later tokens ask of this one, through what they remember of it.
        (late,) = noted(jax.tree.map(own, pulled))
        more = lambda v: jax.tree.map(jnp.add, pulled, pull(v)[1])
        return lambda v: pull(v)[0] + late - rhs, jnp.zeros_like(rhs), more

    return scanned(order, max_steps, still, (rhs, z, x), back if reverse else onward, reverse)


# How tokens react when those `at` some indices move by `delta`: `react(told, at, delta)` gives what tokens tell one another
# from then on, the product of each with its own block, and what the others ask of it in all.


def _apart(field, z, x, memory, at):
    """The force on tokens `at` as a function of their states, of what is remembered of the ones before, and of themselves."""
    size = z.shape[0]
    seen = jnp.concatenate(
        [jnp.arange(size)[None] < at[:, None], jnp.eye(at.size, dtype=bool)], axis=1
    )

    def force(u, past, mine):
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), past, mine)
        return field.given(0.0, u, x[at], both, seen)

    return force, (z[at], memory, field.remember(z[at]))


def _back(field, z, x, memory):
    def react(pulled, at, delta):
        force, primals = _apart(field, z, x, memory, at)
        _, pull = jax.vjp(force, *primals)
        _, noted = jax.vjp(field.remember, primals[0])
        direct, past, mine = pull(delta)
        pulled = jax.tree.map(jnp.add, pulled, past)
        both = jax.tree.map(lambda a, b: jnp.stack([a, b[at]]), mine, pulled)
        (through,) = jax.vmap(noted)(both)
        return pulled, direct + through[0], through[1]

    return react


def _onward(field, z, x, memory):
    def react(moved, at, delta):
        force, primals = _apart(field, z, x, memory, at)
        _, push = jax.linearize(force, *primals)
        _, mine = jax.jvp(field.remember, primals[:1], (delta,))
        moved = jax.tree.map(lambda whole, part: whole.at[at].add(part), moved, mine)
        zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)
        others = push(zero(delta), moved, zero(mine))
        return moved, push(delta, zero(moved), mine), others

    return react


class _Moving(NamedTuple):
    v: Inexact[Array, "n c"]
    delta: Inexact[Array, "n c"]  # by which it is moved next
    own: Inexact[Array, "n c"]  # its product with its own block
    pairs: Inexact[Array, "n rows c"]  # directions and their products with the own block, by turns
    valid: Bool[Array, "n kept"]  # which pairs are of this token
    told: PyTree[Array]
    first: Int[Array, ""]  # the first token that waits
    value: Inexact[Array, "t c"]
    since: Int[Array, ""]  # steps since it has been the first
    best: Float[Array, ""]  # the least that was left of it since then
    stale: Int[Array, ""]  # steps since
    stuck: Bool[Array, ""]
    taken: Int[Array, ""]  # one number for the batch: a slot in a history must not differ within it
    steps: Int[Array, ""]
    tried: Int[Array, ""]


# Why not secants, as forward. What a token in the window meets changes as the others move, and in differences of forces that
# cannot be told from what its own step did: a history is spoilt while it waits. Where all is linear the product with its own
# block is at hand, whatever the others do: so each direction stays true, minimal residuals (GCR: Eisenstat, Elman & Schultz
# 1983) over the last of them need no safeguard, and when its turn comes a token is nearly there.
def _moving(order, max_steps, react, rhs, still, reverse) -> InOrder:
    (length, width), dtype = rhs.shape, rhs.dtype
    ring = Ring(min(order.chunk, length))
    n, kept, slots = ring.n, 3 * order.solver.window, ring.slots
    mixing, whole = jnp.asarray(order.solver.mixing, dtype), optx.two_norm(rhs)

    def token(place):
        """The index of the token whose turn comes at that place."""
        place = jnp.minimum(place, length - 1)
        return length - 1 - place if reverse else place

    def step(at):
        place = ring.places(at.first)
        inside = place < length
        told, image, others = react(at.told, token(place), at.delta)
        v, own = at.v + at.delta, at.own + image
        left = own + others - rhs[token(place)]
        met = order.settled(left, v, 1.0) & inside
        turn = ring.turn(at.first, met)
        settled = turn & met
        number = jnp.sum(settled)
        waits, sizes = slots == at.first % n, jax.vmap(order.norm)(left)
        front, moved_on = sizes[at.first % n], number > 0
        since = jnp.where(moved_on, 0, at.since + 1)
        stale = jnp.where(moved_on | (front < 0.9 * at.best), 0, at.stale + 1)
        best = jnp.where(moved_on, jnp.inf, jnp.minimum(at.best, front))
        # At the floor of the dtype there is no less; and what is not finite never will be.
        hopeless = (since >= max_steps) | (stale >= order.solver.patience) | ~jnp.isfinite(front)
        slot = at.taken % kept
        pair, new, delta = jax.vmap(_minimal, (0, 0, 0, 0, 0, None))(
            at.pairs, at.valid, at.delta, image, left, mixing
        )
        before = jax.lax.dynamic_slice_in_dim(at.pairs, 2 * slot, 2, 1)
        pair = jnp.where(new[:, None, None], pair, before)
        valid = at.valid | (new[:, None] & (jnp.arange(kept) == slot)[None])
        # A token that waits holds still while what it meets is beyond all that was asked: a chain of such answers would grow
        # by what each gains, and leave its rounding in what is told.
        calm = turn | (sizes <= whole)
        first = at.first + number
        return _Moving(
            v=jnp.where(settled[:, None], 0, v),
            delta=jnp.where((calm & inside & ~settled)[:, None], delta, 0),
            own=jnp.where(settled[:, None], 0, own),
            pairs=write_rows(at.pairs, pair, 2 * slot),
            valid=valid & ~settled[:, None],
            told=told,
            first=first,
            value=at.value.at[jnp.where(settled, token(place), length)].set(v, mode="drop"),
            since=since,
            best=best,
            stale=stale,
            stuck=jnp.any(waits & inside & ~settled) & hopeless,
            taken=at.taken + 1,
            steps=at.steps + (at.first < length).astype(at.steps.dtype),
            tried=at.tried,
        )

    def rescue(at):
        mine, which = (slots == at.first % n) & at.stuck, token(at.first)[None]
        alone = lambda u: react(at.told, which, u)
        v = at.v[at.first % n][None]
        others = alone(jnp.zeros_like(v))[2] - rhs[which]
        force = lambda u: alone(u)[1] + others
        given_up = ~at.stuck | ~jnp.all(jnp.isfinite(others))
        found, tried = rescued(force, v, given_up, order, max_steps)
        found = jnp.where(at.stuck, found, v)
        fresh = lambda leaf: jnp.where(mine.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf)
        target = jnp.where(at.stuck, which, length)
        return at._replace(
            v=fresh(at.v),
            delta=fresh(at.delta),
            own=fresh(at.own),
            valid=at.valid & ~mine[:, None],
            told=alone(found - v)[0],
            first=at.first + at.stuck.astype(at.first.dtype),
            value=at.value.at[target].set(found, mode="drop"),
            since=jnp.where(at.stuck, 0, at.since),
            best=jnp.where(at.stuck, jnp.inf, at.best),
            stale=jnp.where(at.stuck, 0, at.stale),
            stuck=jnp.zeros_like(at.stuck),
            tried=at.tried + tried,
        )

    waiting = lambda at: wanted(at.first < length)
    going = lambda at: waiting(at) & ~wanted(at.stuck)
    none, rows = jnp.asarray(0), jnp.zeros((n, width), dtype)
    start = _Moving(
        v=rows,
        delta=rows,
        own=rows,
        pairs=jnp.zeros((n, 2 * kept, width), dtype),
        valid=jnp.zeros((n, kept), bool),
        told=still,
        first=none,
        value=jnp.zeros_like(rhs),
        since=none,
        best=jnp.asarray(jnp.inf, whole.dtype),
        stale=none,
        stuck=jnp.asarray(False),
        taken=none,
        steps=none,
        tried=none,
    )
    at = while_loop(waiting, lambda at: rescue(while_loop(going, step, at)), start)
    return InOrder(at.value, at.steps + at.tried, at.steps * n + at.tried)


def _minimal(pairs, known, delta, image, left, mixing):
    """The newest pair, made orthogonal to those `known`, and the step that leaves the least of `left` in their span and
    damps what is across it."""
    directions, images = pairs[::2], pairs[1::2]
    onto_old = jnp.where(known[:, None], onto(images, jnp.stack([image, left])), 0)
    h, g = onto_old.astype(pairs.dtype).T
    q, p = image - combined(h, images), delta - combined(h, directions)
    size = optx.two_norm(q)
    # Not a direction that the history holds already, or none at all, or one that is not finite.
    new = (size > NEW * optx.two_norm(image)) & jnp.isfinite(size)
    unit = jnp.where(new, 1 / jnp.where(new, size, 1), 0)
    q, p = jnp.where(new, unit * q, 0), jnp.where(new, unit * p, 0)
    newest = jnp.vdot(q, left)
    across = left - combined(g, images) - newest * q
    return jnp.stack([p, q]), new, mixing * across - combined(g, directions) - newest * p


def linear_in_order(field, z, x, rhs, solver: Any, max_steps: int, reverse: bool):
    """`J v = rhs`, or `Jᵀ v = rhs` in `reverse`, with the Jacobian J at z, by a `TokenOrder`, to the relative residual `rtol`
    of the whole: the solution, and what it took.

    ```python
    solve = lambda rhs: ej.relaxation.linear_in_order(block, tokens, tokens, rhs, ej.TokenOrder(), 32, reverse=True)
    assert jax.eval_shape(solve, tokens).value.shape == tokens.shape
    ```
    """
    size = optx.two_norm(rhs)
    unit = jnp.where(size > 0, size, jnp.ones_like(size))
    # An absolute tolerance, that all tokens share out: of a token whose own part is small no more is asked.
    share = rhs.shape[0] ** -0.5
    solver = with_tolerance(solver, lambda rtol, atol: (0.0, (rtol + atol) * share))
    solver = with_scale(solver, 1.0)  # of the unit right-hand side
    found = triangular(field, z, x, rhs / unit, solver, max_steps, reverse)
    return found._replace(value=found.value * unit)


class TriangularSolve(eqx.Module):
    """How the derivative of an equilibrium that was settled in order is solved for: in order too."""

    solver: Any
    max_steps: int = eqx.field(static=True)

    def __call__(self, force, z, x, product, rhs, reverse):
        found = linear_in_order(force.func, z, x, rhs, self.solver, self.max_steps, reverse)
        left = optx.two_norm(product(found.value) - rhs)
        rtol = self.solver.rtol
        return found.value, ~(left <= 2 * rtol * optx.two_norm(rhs))
