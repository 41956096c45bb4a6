"""How a branch of solutions is followed through a parameter: the steps, their corrector, and the loop over them."""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..relaxation import GMRES, NewtonKrylov
from ._bifurcation import Stretch
from ._chord import chord
from ._linear_solver import DENSE as DENSE, solution_of
from ._parameter import Line
from ._sparse import SparseLU


class AbstractPath(eqx.Module):
    """How a continuation steps. Lengths are fractions of the parameter's range, and of the size of the state.

    - `first`, `least`, `most`: length of the first step, of the shortest before giving up, and of the longest.
    - `turn`: a step whose tangent turns by more (radians) is halved; by less than a third, the next one is longer.
    """

    first: eqx.AbstractVar[float]
    least: eqx.AbstractVar[float]
    most: eqx.AbstractVar[float]
    turn: eqx.AbstractVar[float]

    @abc.abstractmethod
    def frame(self, tangent: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        """Predictor d and normal c for a unit tangent (state, parameter): the step of length s solves
        `⟨c, y - y₀ - s d⟩ = 0`."""


class PseudoArclength(AbstractPath):
    """Pseudo-arclength continuation (Keller 1977): steps along the tangent, and so passes folds.

    ```python
    path = ej.stability.PseudoArclength(first=0.01, most=0.1)  # `continuation(..., path=path)`
    assert path.most == 0.1
    ```
    """

    first: float = 0.01
    least: float = 1e-6
    most: float = 0.05
    turn: float = 0.3

    def frame(self, tangent):
        return tangent, tangent


class Natural(AbstractPath):
    """Natural continuation: steps in the parameter, from a predictor on the tangent. It ends at a fold.

    ```python
    path = ej.stability.Natural(most=0.02)  # `continuation(..., path=path)`
    assert path.most == 0.02
    ```
    """

    first: float = 0.01
    least: float = 1e-6
    most: float = 0.05
    turn: float = 0.3

    def frame(self, tangent):
        return _along_parameter(tangent)


class Correction(NamedTuple):
    """A solution `y = (state, q)`, a tangent there of any length that points ahead, and how Newton's method fared."""

    y: PyTree[Array]
    tangent: PyTree[Array]
    solved: Array
    steps: Array


class AbstractProblem(eqx.Module):
    """What is solved along a branch, `G(state; q) = 0` at q of the `line`; the rest of it stays the same, and so one
    compiled function serves all points."""

    line: eqx.AbstractVar[Line]

    @abc.abstractmethod
    def correct(
        self, predicted: PyTree[Array], base: PyTree[Array], normal: PyTree[Array]
    ) -> Correction:
        """The solution near `predicted` with `⟨normal, y - predicted⟩ = 0`; `base` is where the step sets out."""

    @abc.abstractmethod
    def inner(self, base: PyTree[Array]) -> Callable[[Any, Any], Array]:
        """The inner product of (state, q) pairs near the state `base`, by which lengths are measured."""

    @abc.abstractmethod
    def findings(
        self, state: PyTree[Array], q: Array, base: PyTree[Array]
    ) -> tuple[Array, Array, Any]:
        """At a solution: its residual, whether it is one of the kind looked for, and what else is told of it."""

    @abc.abstractmethod
    def settled(self, point: "Point") -> "Point":
        """The same point, as the next step may better set out from it."""


# Why not the plain inner product: of a state of n numbers the parameter would be but one more, and lost among
# them; with the mean square the arclength, and all step lengths, mean the same at any resolution.
def product_at(z: PyTree[Array]) -> Callable[[Any, Any], Array]:
    """The inner product of (state, parameter) pairs near z: mean square of the state, relative to that of z."""
    leaves = jax.tree.leaves(z)
    count = sum(leaf.size for leaf in leaves)
    square = sum(jnp.sum(leaf * leaf) for leaf in leaves) / count
    weight = 1 / (count * jnp.maximum(square, 1))

    def inner(a, b):
        state = sum(map(jnp.vdot, jax.tree.leaves(a[0]), jax.tree.leaves(b[0])))
        return weight * state + a[1] * b[1]

    return inner


class Point(NamedTuple):
    """A point of the branch: `y = (state, q)`, unit tangent, and what was found there."""

    y: PyTree[Array]
    tangent: PyTree[Array]
    turned: Array
    residual: Array
    converged: Array
    newton_steps: Array
    found: Any


# Why bordered. At a fold J is singular, but the system of G and one more row is not, and with the old tangent
# as that row even well conditioned (Keller 1977). The tangent solves the same system with (0, 1) on the
# right: so ⟨normal, tangent⟩ = 1, it points ahead by itself, and no determinant is needed to orient it.
def newton(
    equations: Callable, inner: Callable, solver: NewtonKrylov, steps: int, predicted, normal
) -> Correction:
    """The solution of `G(y) = 0` with `⟨normal, y - predicted⟩ = 0`, by Newton's method on the bordered system."""

    def bordered(y, _):
        gap = jax.tree.map(jnp.subtract, y, predicted)
        return equations(y), inner(normal, gap)

    solution = optx.root_find(bordered, solver, predicted, max_steps=steps, throw=False)
    y = solution.value
    _, product = jax.linearize(equations, y)
    system = lx.FunctionLinearOperator(
        lambda v: (product(v), inner(normal, v)), jax.eval_shape(lambda: y)
    )
    one = jax.tree.map(jnp.zeros_like, y[0]), jnp.ones_like(y[1])
    # Folds are found by the sign of its parameter part: solved to rounding, not to Newton's tolerance.
    tight = 100 * jnp.finfo(y[1].dtype).eps
    krylov = GMRES(float(tight), 0.0, solver.restart, solver.krylov_steps)
    linear = solver.linear_solver or krylov
    state = linear.init(system, {})
    solve = lambda right: lx.linear_solve(system, right, linear, state=state, throw=False)
    tangent = solve(one).value
    fine = solution.result == optx.RESULTS.successful
    if solver.linear_solver is not None:
        # A force of large terms that cancel, as of a fine grid, does not fall below their rounding: there the step tells.
        last = solve((equations(y), jnp.zeros_like(y[1])))
        near = inner(last.value, last.value) <= jnp.finfo(y[1].dtype).eps
        fine |= (last.result == lx.RESULTS.successful) & near
    return Correction(y, tangent, fine, solution.stats["num_steps"])


def sparse_newton(
    equations: Callable, inner: Callable, solver: SparseLU, steps: int, predicted, normal
) -> Correction:
    """The same where the factorisation of the bordered system is kept for as long as it serves."""

    def bordered(y):
        return equations(y), inner(normal, jax.tree.map(jnp.subtract, y, predicted))

    size = lambda v: jnp.sqrt(inner(v, v))
    y, fine, count = chord(bordered, size, solver, steps, predicted)
    one = jax.tree.map(jnp.zeros_like, y[0]), jnp.ones_like(y[1])
    tangent = solution_of(jax.linearize(bordered, y)[1], one, solver)
    return Correction(y, tangent, fine, count)


# Why: two loops of one program that may run at once wait for each other, now and then, for ever (XLA on two cores, seen
# in JAX 0.10). What comes after the other one by its data cannot.
def after(tree: Any, first: PyTree[Array]) -> Any:
    """`tree`, once `first` is known."""
    counts = [jnp.sum(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(first)]
    known = sum(counts) >= 0  # always, which the compiler does not know
    return jax.tree.map(lambda a: jnp.where(known, a, jnp.nan), tree)


@eqx.filter_jit
def advance(problem: AbstractProblem, base, direction, normal, length) -> Point:
    """The point of the branch with `⟨normal, y - base - length direction⟩ = 0`, its tangent and findings."""
    inner = problem.inner(base[0])
    predicted = jax.tree.map(lambda a, d: a + length * d, base, direction)
    # On accelerators float32 products are less than that by default, and stall the corrector.
    with jax.default_matmul_precision("highest"):
        y, tangent, solved, steps = problem.correct(predicted, base, normal)
    tangent = _scaled(tangent, 1 / jnp.sqrt(inner(tangent, tangent)))
    # From the predictor, which lies along the tangent before; there is none at the first point.
    turned = inner(tangent, direction) / jnp.sqrt(inner(direction, direction))
    residual, proper, found = problem.findings(*after(y, tangent), base[0])  # pyright: ignore
    converged = solved & jnp.isfinite(residual) & proper
    return Point(y, tangent, turned, residual, converged, steps, found)


# Special points are located by correcting anew at distances along a leg, from its base: every such point is a
# solution of the branch, not an interpolation.
class Leg(NamedTuple):
    """A step that was taken: the points between its ends can be had again, by their distance from its beginning."""

    problem: AbstractProblem
    base: PyTree[Array]
    direction: PyTree[Array]
    normal: PyTree[Array]
    length: float

    def at(self, s: float) -> Point:
        length = jnp.asarray(s, self.base[1].dtype)
        return advance(self.problem, self.base, self.direction, self.normal, length)


def next_leg(problem, path, last, length) -> tuple[tuple[Leg, Point] | None, float, str]:
    """The next step and where it ends, how long to make the one after it, and why the branch ends, if it does."""
    while length >= path.least:
        direction, normal = path.frame(last.tangent)
        leg = Leg(problem, last.y, direction, normal, length)
        end = leg.at(length)
        turn = math.acos(min(max(float(end.turned), -1), 1))
        # A corrector that converges may have jumped to another branch: then the tangent turns, as it does
        # where the step is too long for the curve. `not`, so that NaN is refused.
        if not end.converged or not turn <= path.turn:
            length = 0.5 * length
            continue
        q, before = float(end.y[1]), float(last.y[1])
        # The last step is taken in the parameter, and so ends at the bound itself.
        if not 0 <= q <= 1:
            bound = float(np.clip(q, 0, 1))
            # If the last point is on the bound itself there is no leg to it.
            if bound == before:
                return None, length, "left the bounds"
            direction, normal = _along_parameter(last.tangent)
            if float(normal[1]) * (bound - before) < 0:  # it turned between the two points
                direction, normal = (jax.tree.map(jnp.negative, d) for d in (direction, normal))
            leg = Leg(problem, last.y, direction, normal, abs(bound - before))
            end = leg.at(leg.length)
            return (leg, end) if end.converged else None, length, "left the bounds"
        # Longer only if tangent and corrector both found it easy; what a failure halved stays so.
        if turn < path.turn / 3 and int(end.newton_steps) <= 5:
            length = min(1.5 * length, path.most)
        return (leg, end), length, ""
    return None, length, "stopped: no shorter step could be corrected"


def corrector(
    state: PyTree[Array], dense: int = DENSE, linear_solver: lx.AbstractLinearSolver | None = None
) -> NewtonKrylov:
    """The default solver: as tight as rounding allows with a little to spare."""
    flat = ravel_pytree(state)[0]
    direct = lx.LU() if flat.size <= dense and linear_solver is None else linear_solver
    # Tighter, residuals stand at the floor of rounding and Newton's method counts as stuck.
    tight = float(jnp.finfo(flat.dtype).eps) ** 0.75
    return NewtonKrylov(tight, restart=60, krylov_steps=240, scale=1.0, linear_solver=direct)


def first_point(problem: AbstractProblem, state: PyTree[Array], q: Array, backwards: bool) -> Point:
    """The solution at the parameter's present value, from a state near it; perhaps not converged."""
    # The normal lies along the parameter and the step is 0: plain Newton at the present value.
    ahead = jax.tree.map(jnp.zeros_like, state), jnp.asarray(-1.0 if backwards else 1.0, q.dtype)
    nothing = jax.tree.map(jnp.zeros_like, ahead)
    start = advance(problem, (state, q), nothing, ahead, jnp.zeros_like(q))
    if not start.converged:
        return start
    # On a fold the parameter stands still along the branch, and that row leaves the system singular. One drawn at random
    # does not; where both tangents are right they agree.
    random = np.random.default_rng(0)  # which compiles nothing
    row = jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape), a.dtype), state), ahead[1]
    other = advance(problem, start.y, nothing, row, jnp.zeros_like(q))
    overlap = float(_overlap(problem, start.y[0], start.tangent, other.tangent))
    if not other.converged or abs(overlap) > 0.999:
        return start
    along = -1.0 if float(other.tangent[1] * ahead[1]) < -1e-6 else 1.0
    return other._replace(
        tangent=jax.tree.map(lambda a: jnp.asarray(along * np.asarray(a)), other.tangent)
    )


@eqx.filter_jit
def _overlap(problem, base, *pair):
    return problem.inner(base)(*pair)


def follow_path(
    problem: AbstractProblem,
    path: AbstractPath,
    start: Point,
    *,
    sample: Callable[[Point], Any],
    examine: Callable[[Stretch], tuple[list, str]],
    stop: Callable[[Point, Any], Any],
    max_points: int,
    tol: float | None,
) -> tuple[Any, list[Any], tuple, str]:
    """The branch from `start`: its points, stacked, their samples, what `examine` found between them, and why it ends.

    `examine` is given the stretch from one sample to the next; it returns special points and, should the branch end
    there, why.
    """
    points, samples, special = [start], [sample(start)], []
    width = float(jnp.finfo(start.y[1].dtype).eps) ** (2 / 3) if tol is None else tol
    length, ended = path.first, ""
    while True:
        if stop(points[-1], samples[-1]):
            ended = ended or "stopped by the callback"
        if len(points) >= max_points:
            ended = ended or f"stopped after {max_points} points"
        if ended:
            break
        # A Python loop: the number of points is not known, and each is one call of a compiled function.
        taken, length, ended = next_leg(problem, path, points[-1], length)
        if taken is None:
            break
        leg, end = taken
        at, last = lambda s, leg=leg: sample(leg.at(s)), sample(end)
        stretch = Stretch(at, leg.length, samples[-1], last, len(points) - 1, width)
        found, cut = examine(stretch)
        special += found
        points.append(problem.settled(end))
        samples.append(last)
        ended = ended or cut
    arrays = (eqx.filter(point, eqx.is_array) for point in points)
    # On the host, where it is no program for each shape and number of points.
    stacked = jax.tree.map(lambda *a: jax.device_put(np.stack(a)), *arrays)
    return stacked, samples, tuple(special), ended


@jax.jit
def _along_parameter(tangent):
    """A frame that steps in the parameter, forwards along the tangent."""
    state, q = tangent
    ahead = jnp.where(q < 0, -1.0, 1.0).astype(q.dtype)
    # At a fold the state changes without end per parameter: the predictor must stay finite.
    steep = jnp.maximum(jnp.abs(q), 1e-3)
    return (_scaled(state, 1 / steep), ahead), (jax.tree.map(jnp.zeros_like, state), ahead)


def _scaled(tree, factor):
    return jax.tree.map(lambda a: factor * a, tree)
