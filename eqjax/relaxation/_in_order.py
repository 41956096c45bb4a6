"""Tokens that are settled in order: one by one, or in a window that moves along."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Inexact, Int, PyTree

from ..analytic import while_loop
from ..fields import AbstractCausalField
from ._loop import iterate, wanted, while_wanted
from ._newton_krylov import NewtonKrylov
from ._secant import AbstractSecant

NEWTON = 20  # steps


class InOrder(NamedTuple):
    """A window settled in order: states, steps one after another, and evaluations of one token."""

    value: Inexact[Array, "t c"]
    steps: Int[Array, ""]
    tokens: Int[Array, ""]

    @property
    def evaluations(self) -> Int[Array, ""]:
        """In evaluations of the whole window, rounded up."""
        return (self.tokens + self.value.shape[0] - 1) // self.value.shape[0]


def scanned(
    order: Any,
    max_steps: int,
    memory: PyTree[Array],
    rows: tuple[Inexact[Array, "t c"], ...],
    stage: Callable,
    reverse: bool = False,
) -> InOrder:
    """Every token by the solver of `order` (a `TokenOrder`) after the one before it (`reverse`: behind it).

    `stage(memory, place, *rows)` gives, for the rows of a token, the force on it as a function of its state, where that
    begins, and a function from the settled state to the memory for the next one.
    """
    length = rows[0].shape[0]

    def one(memory, inputs):
        place, *parts = inputs
        force, begin, remembered = stage(memory, place, *parts)
        value, steps = settled_alone(force, begin, order, max_steps)
        return remembered(value), (value, steps)

    inputs = (jnp.arange(length), *(leaf[:, None] for leaf in rows))
    _, (value, steps) = jax.lax.scan(one, memory, inputs, reverse=reverse)
    steps = jnp.sum(steps)
    return InOrder(value[:, 0], steps, steps)


def settled_alone(force, begin, order, max_steps) -> tuple[Array, Array]:
    """One token, by all that `order` has, and the evaluations of it."""
    solver = order.solver
    fixed_point = isinstance(solver, optx.AbstractFixedPointSolver)
    fn = (lambda u, _: u + force(u)) if fixed_point else (lambda u, _: force(u))
    value, (result, stats) = iterate(fn, solver, begin, None, max_steps)
    value, tried = rescued(force, value, result == optx.RESULTS.successful, order, max_steps)
    return value, stats["field_evaluations"] + tried


_TAGS: frozenset[object] = frozenset()


class _Rows(eqx.Module):
    """How tokens of one shape take their steps side by side, each with a history of its own."""

    solver: AbstractSecant
    like: jax.ShapeDtypeStruct = eqx.field(static=True)

    @property
    def fresh(self):
        zero, nothing = jnp.zeros(self.like.shape, self.like.dtype), None
        return self.solver.init(nothing, zero, None, {}, self.like, None, _TAGS)  # pyright: ignore

    def start(self, begin):
        """Histories of tokens that have none."""
        first, count = self.fresh, begin.shape[0]
        alike = lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape))
        state = eqx.tree_at(lambda s: s.best_y, jax.tree.map(alike, first), begin)
        # The count of evaluations stays one number: where the history is written must not differ within a batch.
        return eqx.tree_at(lambda s: s.evaluations, state, first.evaluations)

    def step(self, y, force, state):
        """One step of each, and whose end it was."""

        def one(y, f, state):
            y, state, _ = self.solver.step(lambda u, f: (u + f, None), y, f, {}, state, _TAGS)
            return y, state, self.solver.terminate(None, None, None, {}, state, _TAGS)[0]  # pyright: ignore

        axes = eqx.tree_at(lambda s: s.evaluations, jax.tree.map(lambda _: 0, self.fresh), None)
        return jax.vmap(one, (0, 0, axes), (0, axes, 0))(y, force, state)


class Ring(NamedTuple):
    """The slots of a window of n tokens that moves along: nothing is moved, a slot takes the next token when its own is
    settled. Places count in the order of settling."""

    n: int

    @property
    def slots(self) -> Int[Array, " n"]:
        return jnp.arange(self.n)

    def places(self, first: Int[Array, ""]) -> Int[Array, " n"]:
        """Of the tokens in the slots, when `first` is the first that waits."""
        return first + (self.slots - first) % self.n

    def turn(self, first: Int[Array, ""], over: Bool[Array, " n"]) -> Bool[Array, " n"]:
        """Whose turn it is: when all before it are `over`."""
        in_order = over[(first + self.slots) % self.n]
        before = jnp.concatenate([jnp.ones(1, bool), in_order[:-1]])
        turn = jnp.cumprod(before.astype(jnp.int32)).astype(bool)
        return turn[(self.slots - first) % self.n]


def _renewed(state, where, **fields):
    """Without a best state, and with `fields` anew."""
    for name, value in ({"best_residual": jnp.inf, "age": 0, "converged": False} | fields).items():
        pick = lambda s, name=name: getattr(s, name)
        old = pick(state)
        at = where.reshape(-1, *[1] * (old.ndim - 1))
        state = eqx.tree_at(pick, state, jnp.where(at, jnp.asarray(value, old.dtype), old))
    return state


class _Moving(NamedTuple):
    y: Inexact[Array, "n c"]
    state: PyTree[Array]
    first: Int[Array, ""]  # the first token that waits
    memory: PyTree[Array]
    value: Inexact[Array, "t c"]
    since: Int[Array, ""]  # steps since it has been the first
    stuck: Bool[Array, ""]  # it will not settle by steps
    steps: Int[Array, ""]
    tried: Int[Array, ""]  # evaluations of such tokens since


# Why a window that moves, and not chunk after chunk. The last tokens of a chunk take most of its steps, while the next ones
# wait; and in a batch every chunk waits for its slowest sample. Here a token joins when one has settled, each sample is where
# it is, and none waits for another but while a token is rescued. A third to two fifths fewer steps, and a third less work.
def moving_window(
    order: Any,
    max_steps: int,
    field: AbstractCausalField,
    z0: Inexact[Array, "t c"],
    x: Inexact[Array, "t c"],
    memory: PyTree[Array],
) -> InOrder:
    """The equilibrium of a causal field from z0, by `order.chunk` tokens side by side."""
    length, n = z0.shape[0], min(order.chunk, z0.shape[0])
    ring, like = Ring(n), jax.ShapeDtypeStruct(z0.shape[1:], z0.dtype)
    rows, slots = _Rows(order.solver, like), ring.slots
    among = lambda leaf, place: leaf[jnp.minimum(place, length - 1)]
    put = lambda whole, place, part: whole.at[place].set(part, mode="drop", unique_indices=True)
    noted = lambda memory, place, y: jax.tree.map(
        lambda whole, part: put(whole, place, part), memory, field.remember(y)
    )

    def step(at):
        first, place = at.first, ring.places(at.first)
        memory = noted(at.memory, place, at.y)
        seen = jnp.arange(length)[None] <= place[:, None]
        force = field.given(0.0, at.y, among(x, place), memory, seen)
        y, state, over = rows.step(at.y, force, at.state)
        turn = ring.turn(first, state.converged) & (place < length)
        settled = turn & state.converged
        value = put(at.value, jnp.where(settled, place, length + slots), state.best_y)
        begin = among(z0, place + n)
        count = jnp.sum(settled)
        since = jnp.where(count > 0, 0, at.since + 1)
        # While a token's predecessors move it has a history, but no best state yet.
        state = _renewed(state, ~turn)
        return _Moving(
            y=jnp.where(settled[:, None], begin, y),
            state=_anew(state, settled, begin),
            first=first + count,
            memory=memory,
            value=value,
            since=since,
            stuck=jnp.any(turn & over & ~settled) | ((since >= max_steps) & (first < length)),
            steps=at.steps + (first < length).astype(at.steps.dtype),
            tried=at.tried,
        )

    def _anew(state, where, begin):
        # Of a history nothing is read when its count is -1.
        return _renewed(state, where, count=-1, mixing=order.solver.mixing, best_y=begin)

    def rescue(at):
        place, here = at.first, (slots == at.first % n) & at.stuck
        one = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, place, 1, 0)
        force = lambda u: field.after(0.0, u, one(x), at.memory, place)
        best = at.state.best_y[at.first % n][None]
        found, tried = rescued(force, best, ~at.stuck, order, max_steps)
        target = jnp.where(at.stuck, place, length)[None]
        begin = among(z0, ring.places(place) + n)
        return at._replace(
            y=jnp.where(here[:, None], begin, at.y),
            state=_anew(at.state, here, begin),
            first=at.first + at.stuck.astype(at.first.dtype),
            memory=noted(at.memory, target, found),
            value=put(at.value, target, found),
            since=jnp.where(at.stuck, 0, at.since),
            stuck=jnp.zeros_like(at.stuck),
            tried=at.tried + tried,
        )

    waiting = lambda at: wanted(at.first < length)
    going = lambda at: waiting(at) & ~wanted(at.stuck)
    none, begin = jnp.asarray(0), z0[:n]
    no = jnp.asarray(False)
    start = _Moving(
        begin, rows.start(begin), none, memory, jnp.zeros_like(z0), none, no, none, none
    )
    at = while_loop(waiting, lambda at: rescue(while_loop(going, step, at)), start)
    return InOrder(at.value, at.steps + at.tried, at.steps * n + at.tried)


# Why last resorts. On trained blocks type I loses a token in 1% to 3% of the windows. On one of 64 channels the flow found
# a fixed point at all of them, and Newton's method at half. On one of 256 channels the fixed points of most repel the flow,
# by a pair, and Newton's method found them all: but from the best state of type I, and not from the start.
def rescued(force, value, met, order, max_steps):
    """Tokens that their solver has not `met`, by Newton's method one after another, then by small steps of the flow."""
    if order.flow is None:
        return value, 0
    value, met, tried = _newton(force, value, met, order)
    flowed, taken = _flow(force, value, met, order, 10 * max_steps)
    return flowed, tried + taken


def _newton(force, begin, met, order):
    newton = NewtonKrylov(order.rtol, order.atol, norm=order.norm, scale=order.scale)
    placed = lambda u, v, t: jax.lax.dynamic_update_index_in_dim(u, v, t, 0)

    def step(carry):
        u, t, tried, _ = carry
        own = lambda v, _: jax.lax.dynamic_index_in_dim(force(placed(u, v, t)), t, 0, False)
        best, (_, stats) = iterate(
            own, newton, jax.lax.dynamic_index_in_dim(u, t, 0, False), None, NEWTON
        )
        u = placed(u, best, t)
        ended = jnp.all(order.settled(force(u), u))
        return u, t + 1, tried + stats["field_evaluations"] + 1, ended

    going = lambda carry: ~carry[3] & (carry[1] < begin.shape[0])
    none = jnp.asarray(0)
    value, _, tried, ended = while_wanted(going, step, (begin, none, none, met))
    return value, ended, tried


def _flow(force, begin, met, order, most: int):
    def step(carry):
        u, ended, count = carry
        now = force(u)
        # A hair below the tolerance: another order of sums must not miss it.
        ended = ended | jnp.all(order.settled(now, u, 0.999))
        moved = u + jnp.asarray(order.flow, u.dtype) * now
        return jnp.where(ended, u, moved), ended, count + 1

    going = lambda carry: ~carry[1] & (carry[2] < most) & jnp.all(jnp.isfinite(carry[0]))
    final, ended, count = while_wanted(going, step, (begin, met, jnp.asarray(0)))
    return jnp.where(ended, final, begin), count
