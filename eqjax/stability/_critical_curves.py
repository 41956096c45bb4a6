"""`fold_curve` and `hopf_curve`: where a fixed point is critical, followed through two parameters."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._checks import check_count
from ..analytic import tree_held
from ._bifurcation import SpecialPoint, Stretch, locate
from ._codim_two import (
    EVENTS,
    CurvePoint,
    critical_of,
    further_tests,
    matrix_at,
    met_frequency,
    polished_both,
)
from ._defining import Critical, Defining, Vectors, solve_square
from ._jacobian import real_dtype
from ._normal_form import lyapunov_coefficient
from ._parameter import Line, find, replaced
from ._path import (
    DENSE,
    AbstractPath,
    AbstractProblem,
    PseudoArclength,
    corrector,
    first_point,
    follow_path,
    newton,
    product_at,
)
from ._spectrum import aligned


class Curve(eqx.Module):
    """A curve of folds or of Hopf points, as `fold_curve` and `hopf_curve` return it. It prints as a table of its points
    of codimension two.

    - `parameters (m, 2)`, `states` (leading axis m): its points, in order. `frequencies (m,)`: ω; 0 at folds.
    - `tests (m, 3)` or `(m, 4)`: what changes sign: at folds at a Bogdanov–Takens point (wᵀv), at a cusp (wᵀB(v, v)/2, the
      coefficient of the fold) and at a zero–Hopf point (the least sum of two other eigenvalues, with the sign of the product
      of all sums); at Hopf points at a Bautin point (l₁), at a Bogdanov–Takens point (ω), at a zero–Hopf point (the least
      other eigenvalue) and at a Hopf–Hopf point (as a zero–Hopf point of folds).
    - `special_points`: `CurvePoint`s. `ended`: in words, why the curve ends where it does.
    """

    parameters: Float[Array, "m 2"]
    states: PyTree[Array]
    frequencies: Float[Array, " m"]
    tests: Float[Array, "m events"]
    special_points: tuple[CurvePoint, ...]
    ended: str = eqx.field(static=True)

    def __str__(self) -> str:
        (a, b), (c, d) = (map(float, self.parameters[i]) for i in (0, -1))
        head = (
            f"{len(self.tests)} points from ({a:.6g}, {b:.6g}) to ({c:.6g}, {d:.6g}); {self.ended}"
        )
        rows: list[Sequence[str]] = [("type", "first", "second", "error", "status", "frequencies")]
        for p in self.special_points:
            numbers = (f"{v:.12g}" for v in p.parameters)
            rows.append((p.type, *numbers, f"{p.error:.0e}", p.status))
            rows[-1] = (*rows[-1], ", ".join(f"{v:.8g}" for v in p.frequencies) or "–")
        return f"{head}\n{aligned(rows) if self.special_points else 'no special points'}"


# Why minimally augmented: the equations of a fold or of a Hopf point in one parameter are regular in two, through cusps
# and Bogdanov–Takens points of folds, and have but one or two unknowns more than those of a fixed point (Govaerts 2000).
class CriticalCurve(AbstractProblem):
    """Critical points (z, q₁, θ or ()) along a second parameter."""

    line: Line
    system: Defining
    max_steps: int = eqx.field(static=True)

    def at(self, q) -> Defining:
        """The equations there."""
        line = dataclasses.replace(self.system.line, field=self.line.at(q))
        return dataclasses.replace(self.system, line=line)

    def borders(self, y, q):
        """Borders for the equations near a point."""
        system = self.at(q)
        drawn = system.first_vectors(jax.random.key(1), y)
        return tree_held(system.directions(system.vectors(y, drawn)))

    def correct(self, predicted, base, normal):
        borders = self.borders(*base)

        def equations(y):
            system = self.at(y[1])
            held = tree_held(y)
            vectors = self.at(held[1]).vectors(held[0], borders)
            return system.equations(y[0], vectors, borders.left)

        solver = corrector(base[0].z)
        return newton(equations, self.inner(base[0]), solver, self.max_steps, predicted, normal)

    def inner(self, base):
        inner = product_at(base.z)
        # A frequency is measured relative to its first.
        size = 1 + sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(base.extra))

        def product(a, b):
            (first, second), rest = (a, b), 0.0
            for left, right in zip(
                jax.tree.leaves(first[0].extra), jax.tree.leaves(second[0].extra), strict=True
            ):
                rest = rest + left * right / size
            return inner((a[0].z, a[1]), (b[0].z, b[1])) + a[0].q * b[0].q + rest

        return product

    def settled(self, point):
        return point

    def tests(self, y, q):
        """What changes sign at the events of this kind, and the vectors by which it is oriented. Differentiable."""
        system = self.at(q)
        v, w = system.raw_vectors(y, self.borders(y, q))
        force = lambda z: system.force(z, y.q)
        if system.kind == "fold":
            v, w = v / jnp.linalg.norm(v), w / jnp.linalg.norm(w)
            along = lambda z: jax.jvp(force, (z,), (v,))[1]
            bend = jax.jvp(along, (y.z,), (v,))[1]
            return jnp.stack([w @ v, 0.5 * w @ bend]), Vectors(v, w)
        l1 = lyapunov_coefficient(force, y.z, y.extra, v, w, solve_square)
        return jnp.stack([l1, y.extra]), Vectors(v, w)

    def findings(self, state, q, base):
        force = self.at(q).force(state.z, state.q)
        residual = jnp.linalg.norm(force) / jnp.maximum(jnp.linalg.norm(state.z), 1)
        return residual, jnp.asarray(True), self.tests(state, q)


class CurveSample(NamedTuple):
    """A point of a curve as the search for events sees it."""

    parameter: float
    y: Any
    slope: float
    tests: np.ndarray
    vectors: Vectors
    values: np.ndarray
    converged: bool

    def beside(self, other: "CurveSample") -> np.ndarray:
        """The tests, with vectors that point as those of a neighbour do."""
        if np.iscomplexobj(self.vectors.right):
            return self.tests
        turns = [np.sign(a @ b) for a, b in zip(self.vectors, other.vectors, strict=True)]
        oriented = np.array([turns[0] * turns[1], turns[1]])
        return np.append(self.tests[:2] * oriented, self.tests[2:])

    def search(self, other: "CurveSample") -> np.ndarray:
        """The same, without the pole that l₁ has at a zero–Hopf point, where it also changes sign."""
        tests = self.beside(other)
        if np.iscomplexobj(self.vectors.right):
            tests = np.append(tests[0] * tests[2], tests[1:])
        return tests


def _regular(problem, event, y, q):
    """The equations whose regular root an event is: where the frequency vanishes, those of a fold."""
    if problem.system.kind == "Hopf" and EVENTS["Hopf"][event] == "Bogdanov–Takens":
        system = dataclasses.replace(problem.system, kind="fold")
        problem, event = dataclasses.replace(problem, system=system), 0
        y = y._replace(extra=())
    return problem, event, y, q


@eqx.filter_jit
def _polished(problem, event, y, q):
    """The point of codimension two near a sample, and how far the last of Newton's steps went."""
    unknown, unravel = ravel_pytree((y, q))
    borders = problem.borders(y, q)

    def equations(flat):
        y, q = unravel(flat)
        system = problem.at(q)
        vectors = system.raw_vectors(y, borders)
        rest = system.equations(y, vectors, borders.left)
        return jnp.append(ravel_pytree(rest)[0], problem.tests(y, q)[0][event])

    def body(carry, _):
        flat, _ = carry
        step = jnp.linalg.solve(jax.jacfwd(equations)(flat), equations(flat))
        return (flat - step, jnp.max(jnp.abs(step[y.z.size :]))), None

    start = unknown, jnp.zeros_like(q)
    (flat, size), _ = jax.lax.scan(body, start, None, length=8)
    return *unravel(flat), size


def fold_curve(field, point, x=None, *, where, bounds, **settings) -> Curve:
    """Follow a fold through two parameters, to Bogdanov–Takens and zero–Hopf points and cusps.

    The minimally augmented equations of a fold, F = 0 and g = 0 with g from the bordered Jacobian (Griewank & Reddien 1984;
    Govaerts 2000), continued by pseudo-arclength in (state, first parameter, second parameter). Points of codimension two
    are found where a test changes sign, and solved for by their own equations.

    **Arguments:**

    - `field`, `x`: as for `continuation`. `point`: one of its special points, with `flow == "fold"`, of a real state.
    - `where`: a pair of functions: the parameter in which `point` was found, and a second one. `bounds`: a pair of pairs
      `(low, high)`; the curve ends where it leaves them.
    - `backwards`: whether it sets out down the second parameter. `path`, `max_points`, `max_steps`: as for `continuation`.

    **Returns:** a `Curve`. **Raises:** `ValueError` if `point` is of another kind, the state complex or larger than 400
    numbers, a parameter no scalar float leaf, bounds that do not hold it, or no curve begins there.
    """
    return _curve("fold", field, point, x, where, bounds, **settings)


def hopf_curve(field, point, x=None, *, where, bounds, **settings) -> Curve:
    """Follow a Hopf point through two parameters, to Bautin points, where the cycle that is born changes its stability
    (l₁ = 0), to zero–Hopf and Hopf–Hopf points, where a real mode or another pair is critical, too, and to Bogdanov–Takens
    points, where its frequency vanishes and the curve ends.

    The minimally augmented equations of a Hopf point, F = 0 and g = 0 with the complex g from the bordered `J - iω`.
    Arguments, results and errors are those of `fold_curve`, with a `point` of `flow == "Hopf"`.
    """
    return _curve("Hopf", field, point, x, where, bounds, **settings)


def _curve(
    kind: str,
    field: Callable[..., Any],
    point: SpecialPoint,
    x: PyTree,
    where: Any,
    bounds: Any,
    backwards: bool = False,
    path: AbstractPath = PseudoArclength(),
    max_points: int = 400,
    max_steps: int = 12,
) -> Curve:
    if point.flow != kind:
        raise ValueError(f'`point` must be a special point with flow "{kind}", got "{point.flow}".')
    for name, value in (("where", where), ("bounds", bounds)):
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(f"`{name}` must be a pair, one for each of the two parameters.")
    check_count(max_points=max_points, max_steps=max_steps)
    real = real_dtype(point.state, "point.state")
    z, unravel = ravel_pytree(jax.tree.map(jnp.asarray, point.state))
    if z.size > DENSE:
        raise ValueError(f"`point` has a state of {z.size} numbers; curves take {DENSE} at most.")
    second = find(field, where[1])
    for index, value in (second, (find(field, where[0])[0], point.parameter)):
        field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
    first, q1 = Line.of(field, where[0], bounds[0], real)
    second, q2 = Line.of(first.field, where[1], bounds[1], real)
    system = Defining(first, x, None, unravel, kind)
    problem = CriticalCurve(second, system, max_steps)
    extra = system.extra(1j * point.frequency, z.dtype)
    start = first_point(problem, Critical(z, q1, extra), q2, backwards)
    if not start.converged:
        raise ValueError(
            f"No curve begins at `point`: Newton's method ended at force residual {float(start.residual):.1e}. Pass the "
            "special point as `continuation` returned it, and the same field."
        )

    def frequency_of(y):
        return abs(float(y.extra)) if kind == "Hopf" else 0.0

    def sample(point):
        y, q = point.y
        tests, vectors = jax.tree.map(np.asarray, point.found)
        # Only where there are other eigenvalues than the critical ones.
        more = z.size > len(critical_of(kind, 1.0))
        values = np.linalg.eigvals(matrix_at(problem, y, q)) if more else np.zeros(z.size, complex)
        tests = np.append(tests, further_tests(kind, values, frequency_of(y)))
        at, slope = float(second.value(q)), float(point.tangent[1])
        return CurveSample(at, (y, q), slope, tests, vectors, values, bool(point.converged))

    def event(leg, i):
        name = EVENTS[kind][i]
        _, there, _, _ = locate(lambda p: p.search(leg.first)[i], leg.coarse)
        at, met = there.y, ()
        if i < 2:
            y, q, step = _polished(*_regular(problem, i, there.y[0], there.y[1]))
            own = (frequency_of(y),) if name == "Bautin" else ()
        else:
            y, q = there.y
            omega = met_frequency(kind, name, there.values, frequency_of(y))
            if np.isnan(omega):
                return None
            y, q, other, step = polished_both(problem, name, y, q, jnp.asarray(omega, real))
            own: tuple[float, ...] = (frequency_of(y),) if kind == "Hopf" else ()
            met = () if isinstance(other, tuple) else (abs(float(other)),)
            # Newton's method may have gone to the pair that is known.
            if any(abs(a - b) < 1e-6 * a for a, b in zip(own, met, strict=False)):
                step = jnp.full_like(step, jnp.nan)
        # On this leg, for it may be another one's.
        distance = lambda a, b: float(jnp.hypot(a[0].q - b[0].q, a[1] - b[1]))
        reach = 1e-6 + distance(leg.first.y, leg.last.y)
        sure = bool(step < float(jnp.finfo(real).eps) ** 0.5) and distance((y, q), at) < reach
        if not sure:
            _, there, _, _ = locate(lambda p: p.search(leg.first)[i], leg)
            (y, q), step = there.y, jnp.asarray(leg.tol)
        return CurvePoint(
            type=name,
            parameters=(float(first.value(y.q)), float(second.value(q))),
            state=unravel(y.z),
            frequencies=(*own, *met),
            error=max(4 * float(step), 4 * float(jnp.finfo(real).eps)),
            status="converged" if sure else "bracketed",
            index=leg.number,
        )

    def examine(leg: Stretch):
        changes = leg.first.search(leg.first) * leg.last.search(leg.first) < 0
        points = [event(leg, i) for i in range(len(changes)) if changes[i]]
        points = [point for point in points if point is not None]
        y = leg.last.y[0]
        ended = ""
        if kind == "Hopf" and changes[1]:
            ended = "the frequency vanished"
        if not 0 <= float(y.q) <= 1:
            ended = ended or "left the bounds"
        return points, ended

    stacked, samples, special, ended = follow_path(
        problem,
        path,
        start,
        sample=sample,
        examine=examine,
        stop=lambda point, seen: False,
        max_points=max_points,
        tol=None,
    )
    y, q = stacked.y
    tests = [samples[0].tests]
    for before, sample in itertools.pairwise(samples):
        turns = sample.beside(before) * before.tests * tests[-1]  # pyright: ignore
        tests.append(np.copysign(sample.tests, turns))  # pyright: ignore
    return Curve(
        parameters=jnp.stack([first.value(y.q), second.value(q)], axis=1),
        states=jax.vmap(unravel)(y.z),
        frequencies=jnp.abs(y.extra) if kind == "Hopf" else jnp.zeros_like(q),
        tests=jnp.asarray(np.stack(tests)),
        special_points=special,
        ended=ended,
    )
