"""`continuation`: a fixed point followed through a parameter, with all that befalls it on the way."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray, PyTree, ScalarLike

from ..fields import Realified
from ..relaxation import GMRES, NewtonKrylov, residual_ratio
from .bifurcation import Sample, SpecialPoint, special_points, table
from .check import leading_modes
from .jacobian import state_dtype
from .krylov_schur import AbstractTransform
from .parameter import find, replaced
from .spectrum import RESULTS, Spectrum


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
    """Pseudo-arclength continuation (Keller 1977): steps along the tangent, and so passes folds."""

    first: float = 0.01
    least: float = 1e-6
    most: float = 0.05
    turn: float = 0.3

    def frame(self, tangent):
        return tangent, tangent


class Natural(AbstractPath):
    """Natural continuation: steps in the parameter, from a predictor on the tangent. It ends at a fold."""

    first: float = 0.01
    least: float = 1e-6
    most: float = 0.05
    turn: float = 0.3

    def frame(self, tangent):
        return _along_parameter(tangent)


class Branch(eqx.Module):
    """A branch of fixed points, as `continuation` returns it. It prints as a table of its special points.

    - `parameters (m,)`, `states` (leading axis m), `residuals (m,)`: the points in order, and their force residuals.
    - `spectra`: a `Spectrum` with leading axis m, the rightmost modes at each.
    - `multipliers (m, k)`: the largest λ = 1 + εμ at each, or None without `step`.
    - `unstable (m,)`, `unstable_euler (m,)`: how many modes grow under the flow, and under Euler; at most k.
    - `reliable (m,)`: whether all the eigenvalues asked for converged there. Where not, counts may be wrong.
    - `special_points`: `SpecialPoint`s, in order.
    - `step`: ε or None. `ended`: in words, why the branch ends where it does.
    """

    parameters: Float[Array, " m"]
    states: PyTree[Array]
    residuals: Float[Array, " m"]
    spectra: Spectrum
    multipliers: Complex[Array, "m k"] | None
    unstable: Int[np.ndarray, " m"]
    unstable_euler: Int[np.ndarray, " m"] | None
    reliable: Bool[Array, " m"]
    special_points: tuple[SpecialPoint, ...]
    step: Float[Array, ""] | None
    ended: str = eqx.field(static=True)

    def __str__(self) -> str:
        first, last = float(self.parameters[0]), float(self.parameters[-1])
        step = "" if self.step is None else f", Euler step {float(self.step):.4g}"
        doubtful = int(jnp.sum(~self.reliable))
        doubt = f"; EIGENVALUES NOT CONVERGED at {doubtful} points" if doubtful else ""
        head = (
            f"{self.parameters.size} points from {first:.6g} to {last:.6g}{step}; {self.ended}; "
            f"largest force residual {float(jnp.max(self.residuals)):.1e}{doubt}"
        )
        return f"{head}\n{table(self.special_points)}"


class Problem(eqx.Module):
    """All that stays the same along a branch; one compiled function serves it."""

    field: Any
    x: PyTree
    low: Float[Array, ""]
    span: Float[Array, ""]
    step: Float[Array, ""] | None
    solver: NewtonKrylov
    transform: AbstractTransform | None
    key: PRNGKeyArray
    index: int = eqx.field(static=True)
    k: int = eqx.field(static=True)
    ncv: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def force(self, z, q):
        """F at the parameter `low + q span`."""
        return replaced(self.field, self.index, self.low + q * self.span)(0.0, z, self.x)


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
    """A point of the branch: `y = (z, q)`, unit tangent, and what was found there."""

    y: PyTree[Array]
    tangent: PyTree[Array]
    turned: Array
    residual: Array
    converged: Array
    newton_steps: Array
    flow: Spectrum
    multipliers: Array | None
    reliable: Array


@eqx.filter_jit
def advance(problem: Problem, base, direction, normal, length) -> Point:
    """The point of the branch with `⟨normal, y - base - length direction⟩ = 0`, by Newton's method on the bordered
    system, and its tangent and spectra."""
    inner = product_at(base[0])

    def bordered(y, _):
        gap = jax.tree.map(jnp.subtract, y, predicted)
        return problem.force(*y), inner(normal, gap)

    predicted = jax.tree.map(lambda a, d: a + length * d, base, direction)
    solver, steps = problem.solver, problem.max_steps
    with jax.default_matmul_precision("highest"):
        solution = optx.root_find(bordered, solver, predicted, max_steps=steps, throw=False)
        y = solution.value
        force, product = jax.linearize(lambda y: problem.force(*y), y)
        system = lx.FunctionLinearOperator(
            lambda v: (product(v), inner(normal, v)), jax.eval_shape(lambda: y)
        )
        one = jax.tree.map(jnp.zeros_like, base[0]), jnp.ones_like(base[1])
        tight = 100 * jnp.finfo(base[1].dtype).eps
        krylov = GMRES(float(tight), 0.0, solver.restart, solver.krylov_steps)
        tangent = lx.linear_solve(system, one, krylov, throw=False).value
    tangent = _scaled(tangent, 1 / jnp.sqrt(inner(tangent, tangent)))
    turned = inner(tangent, normal) / jnp.sqrt(inner(normal, normal))
    flow, multipliers, result = leading_modes(
        lambda t, z, x: problem.force(z, y[1]),
        y[0],
        None,
        problem.step,
        k=problem.k,
        transform=problem.transform,
        ncv=problem.ncv,
        key=problem.key,
    )
    residual = residual_ratio(force, y[0])
    converged = (solution.result == optx.RESULTS.successful) & jnp.isfinite(residual)
    reliable = result == RESULTS.successful
    taken = solution.stats["num_steps"]
    return Point(y, tangent, turned, residual, converged, taken, flow, multipliers, reliable)


def continuation(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    bounds: tuple[Any, Any],
    backwards: bool = False,
    path: AbstractPath = PseudoArclength(),
    step: ScalarLike | None = None,
    k: int = 6,
    transform: AbstractTransform | None = None,
    ncv: int | None = None,
    solver: NewtonKrylov | None = None,
    max_points: int = 400,
    max_steps: int = 12,
    tol: float | None = None,
    callback: Callable[[float, PyTree[Array], Spectrum], Any] | None = None,
    key: PRNGKeyArray | None = None,
) -> Branch:
    """Follow a fixed point of `field` through one of its parameters, and find where its stability changes and how.

    Newton–Krylov on the bordered system (Keller 1977): no matrix is formed, and folds are passed. Corrector, tangent
    and spectra of a point are one function, compiled once for the branch. Between two points whose counts of unstable
    modes differ, or whose tangents point opposite ways in the parameter, the special point is located by Brent's
    method on the eigenvalue that crosses (or on the tangent). The loop over points is Python: not under `jit` or `vmap`.

    **Arguments:**

    - `field`: an Equinox module `field(t, z, x) -> dz/dt`, evaluated at t = 0. `x`: clamped input.
    - `z0`: a state from which Newton's method settles at the parameter's present value, where the branch begins. For a
      complex state the field is taken as a real one, of real and imaginary parts, and so are eigenvectors.
    - `where`: which parameter, as in `eqx.tree_at`: `lambda f: f.attention_gain`; a scalar float leaf.
    - `bounds`: `(low, high)`; the branch ends where it leaves them. It sets out upwards, or `backwards`.
    - `path`: `PseudoArclength` or `Natural`, with the lengths of steps.
    - `step`: ε of the Euler map z + εF, whose multipliers λ = 1 + εμ are then followed as well. A map g is the field
      `g(z) - z` with ε = 1.
    - `k`, `transform`, `ncv`: modes followed and how they are searched, as for `spectrum`; `k` at least one more than
      ever are unstable. The multipliers are searched without the transform.
    - `solver`: by default `NewtonKrylov` to eps^¾. Its `restart` should not be much below the size of the state
      unless the field is preconditioned. `max_steps`: of it for each point.
    - `max_points`: after which the branch ends. `callback(parameter, state, spectrum)`: called at every point; the
      branch ends when it returns True.
    - `tol`: to which special points are located, in units of the path; eps^⅔ by default, 4e-11 in float64.
    - `key`: of the first Krylov vectors, `jax.random.key(0)` by default.

    **Returns:** a `Branch`. A change and its reversal between two neighbouring points are not seen: lower `most`.

    **Raises:** `ValueError` if the parameter is no scalar float leaf, the bounds are reversed or do not hold it, the
    field is not finite at `z0`, or `z0` does not settle.
    """
    z0 = jax.tree.map(jnp.asarray, z0)
    state_dtype(z0)
    index, value = find(field, where)
    # A number would be compiled in.
    field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
    is_complex = any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(z0))
    if is_complex:
        field, z0 = Realified(field), Realified.split(z0)
    shown = Realified.join if is_complex else lambda z: z
    real = state_dtype(z0)
    low, high = (float(bound) for bound in bounds)
    if not (low < high and np.isfinite([low, high]).all()):
        raise ValueError(
            f"`bounds` must be (low, high) with low < high, both finite, got {tuple(bounds)}. To follow the branch "
            "downwards pass backwards=True."
        )
    if not low <= value <= high:
        raise ValueError(
            f"`bounds` {(low, high)} do not hold the parameter's present value, {value:.6g}, where the branch begins. "
            "Widen them, or set it by `eqx.tree_at(where, field, value)` and pass a `z0` that settles there."
        )
    if isinstance(step, (int, float)) and not step > 0:
        raise ValueError(f"`step` must be above 0, got {step}.")
    eps = float(jnp.finfo(real).eps)
    problem = Problem(
        field=field,
        x=x,
        low=jnp.asarray(low, real),
        span=jnp.asarray(high - low, real),
        step=None if step is None else jnp.asarray(step, real),
        solver=corrector(real) if solver is None else solver,
        transform=transform,
        key=jax.random.key(0) if key is None else key,
        index=index,
        k=k,
        ncv=ncv,
        max_steps=max_steps,
    )
    width = eps ** (2 / 3) if tol is None else tol
    point = start = _begin(problem, z0, value, -1.0 if backwards else 1.0)
    points, samples, special = [start], [_sample(problem, start)], []
    length, ended = path.first, ""
    while True:
        if callback is not None and callback(samples[-1].parameter, shown(point.y[0]), point.flow):
            ended = ended or "stopped by the callback"
        if len(points) >= max_points:
            ended = ended or f"stopped after {max_points} points"
        if ended:
            break
        leg, length, ended = _next_leg(problem, path, point, length)
        if leg is None:
            break
        point = leg.end
        samples.append(_sample(problem, point))
        points.append(point)
        special += special_points(
            lambda s, leg=leg: _sample(problem, leg.at(s)),
            leg.length,
            samples[-2],
            samples[-1],
            width,
            None if problem.step is None else float(problem.step),
            len(points) - 2,
        )
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *(eqx.filter(p, eqx.is_array) for p in points))
    counts = np.asarray([(s.unstable, s.unstable_euler) for s in samples])
    return Branch(
        parameters=problem.low + problem.span * stacked.y[1],
        states=shown(stacked.y[0]),
        residuals=stacked.residual,
        spectra=eqx.combine(stacked.flow, start.flow),
        multipliers=stacked.multipliers,
        unstable=counts[:, 0],
        unstable_euler=None if step is None else counts[:, 1],
        reliable=stacked.reliable,
        special_points=tuple(eqx.tree_at(lambda s: s.state, s, shown(s.state)) for s in special),
        step=problem.step,
        ended=ended,
    )


def corrector(dtype: Any) -> NewtonKrylov:
    """The default solver: as tight as rounding allows with a little to spare."""
    return NewtonKrylov(float(jnp.finfo(dtype).eps) ** 0.75, restart=60, krylov_steps=240)


class _Leg(NamedTuple):
    """A step that was taken: the points between its ends can be had again, by their distance from its beginning."""

    problem: Problem
    base: PyTree[Array]
    direction: PyTree[Array]
    normal: PyTree[Array]
    length: float
    end: Point

    def at(self, s: float) -> Point:
        length = jnp.asarray(s, self.problem.low.dtype)
        return advance(self.problem, self.base, self.direction, self.normal, length)


def _next_leg(problem, path, last, length) -> tuple[_Leg | None, float, str]:
    """The next step, how long to make the one after it, and why the branch ends, if it does."""

    def go(direction, normal, length):
        size = jnp.asarray(length, problem.low.dtype)
        end = advance(problem, last.y, direction, normal, size)
        return _Leg(problem, last.y, direction, normal, length, end)

    while length >= path.least:
        direction, normal = path.frame(last.tangent)
        leg = go(direction, normal, length)
        turn = float(jnp.arccos(jnp.clip(leg.end.turned, -1, 1)))
        if not leg.end.converged or not turn <= path.turn:
            length = 0.5 * length
            continue
        q, before = float(leg.end.y[1]), float(last.y[1])
        if not 0 <= q <= 1:
            bound = float(np.clip(q, 0, 1))
            direction, normal = _along_parameter(last.tangent)
            if float(normal[1]) * (bound - before) < 0:  # it turned between the two points
                direction, normal = (jax.tree.map(jnp.negative, d) for d in (direction, normal))
            leg = go(direction, normal, abs(bound - before)) if bound != before else leg
            return leg if leg.end.converged and bound != before else None, length, "left the bounds"
        if turn < path.turn / 3 and leg.end.newton_steps <= 5:
            length = min(1.5 * length, path.most)
        return leg, length, ""
    return None, length, "stopped: no shorter step could be corrected"


def _begin(problem, z0, value, sign) -> Point:
    """The first point, settled at the parameter's present value."""
    real = problem.low.dtype
    q = (jnp.asarray(value, real) - problem.low) / problem.span
    upwards = jax.tree.map(jnp.zeros_like, z0), jnp.asarray(sign, real)
    nothing = jax.tree.map(jnp.zeros_like, upwards)
    force = jax.tree.leaves(problem.force(z0, q))
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in force):
        raise ValueError(
            "`field` is not finite at `z0`: look for a NaN in `z0`, in `x` or in the parameters, or start elsewhere."
        )
    start = advance(problem, (z0, q), nothing, upwards, jnp.zeros_like(q))
    if not start.converged:
        raise ValueError(
            f"`z0` does not settle: Newton's method ended at force residual {float(start.residual):.1e}. Either (a) "
            "settle it first, by `equilibrium` or `relax`; (b) give more `max_steps`, or a `solver` with a larger "
            "`restart` or a tolerance this dtype can reach; or (c) the field has no fixed point near."
        )
    return start


def _along_parameter(tangent):
    """A frame that steps in the parameter, forwards along the tangent."""
    state, q = tangent
    ahead = jnp.where(q < 0, -1.0, 1.0).astype(q.dtype)
    steep = jnp.maximum(jnp.abs(q), 1e-3)
    return (_scaled(state, 1 / steep), ahead), (jax.tree.map(jnp.zeros_like, state), ahead)


def _scaled(tree, factor):
    return jax.tree.map(lambda a: factor * a, tree)


def _sample(problem, point) -> Sample:
    return Sample.of(
        float(problem.low + problem.span * point.y[1]),
        point.y[0],
        float(point.tangent[1]),
        np.asarray(point.flow.values),
        None if point.multipliers is None else np.asarray(point.multipliers),
        bool(point.converged & point.reliable),
    )
