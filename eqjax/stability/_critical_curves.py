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
from jaxtyping import Array, Float, PyTree, ScalarLike

from .._checks import check_count, check_positive, given
from ..analytic import tree_held
from ._bifurcation import SpecialPoint, Stretch, locate
from ._codim_two import (
    EVENTS,
    ORIENTED,
    POLES,
    SINGULAR,
    TOGETHER,
    CurvePoint,
    angle_tests,
    critical_of,
    curve_table,
    further_tests,
    matrix_at,
    met_frequency,
    polished_both,
)
from ._defining import Critical, Defining, Vectors
from ._jacobian import real_dtype
from ._parameter import Line, check_pair
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


class Curve(eqx.Module):
    """A curve of folds or of Hopf points, as `fold_curve` and `hopf_curve` return it. It prints as a table of its points
    of codimension two.

    - `parameters (m, 2)`, `states` (leading axis m): its points, in order. `frequencies (m,)`: ω; 0 at folds.
    - `tests (m, 3 to 5)`: what changes sign: at folds at a Bogdanov–Takens point (wᵀv), at a cusp (wᵀB(v, v)/2, the
      coefficient of the fold) and at a zero–Hopf point (the least sum of two other eigenvalues, with the sign of the product
      of all sums); at Hopf points at a Bautin point (l₁), at a Bogdanov–Takens point (ω), at a zero–Hopf point (the least
      other eigenvalue) and at a Hopf–Hopf point (as a zero–Hopf point of folds); at Neimark–Sacker points, with multipliers
      exp(±iθ), at a Chenciner point (d) and at resonances 1:1 (θ), 1:2 (π - θ), 1:3 (θ - 2π/3) and 1:4 (θ - π/2).
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
        return f"{head}\n{curve_table(self.special_points)}"


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
        drawn = system.first_vectors(y)
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
        if not system.turning:
            v, w = v / jnp.linalg.norm(v), w / jnp.linalg.norm(w)
            along = lambda z: jax.jvp(force, (z,), (v,))[1]
            bend = jax.jvp(along, (y.z,), (v,))[1]
            return jnp.stack([w @ v, 0.5 * w @ bend]), Vectors(v, w)
        return jnp.stack([system.cubic(y, v, w), y.extra]), Vectors(v, w)

    def findings(self, state, q, base):
        force = self.at(q).force(state.z, state.q)
        residual = jnp.linalg.norm(force) / jnp.maximum(jnp.linalg.norm(state.z), 1)
        return residual, jnp.asarray(True), self.tests(state, q)


class CurveSample(NamedTuple):
    """A point of a curve as the search for events sees it."""

    parameter: float
    state: Any
    slope: float
    tests: np.ndarray
    vectors: Vectors
    values: np.ndarray
    converged: bool
    kind: str

    def beside(self, other: "CurveSample") -> np.ndarray:
        """The tests, with vectors that point as those of a neighbour do."""
        if self.kind not in ORIENTED:
            return self.tests
        turns = [np.sign(a @ b) for a, b in zip(self.vectors, other.vectors, strict=True)]
        oriented = np.array([turns[0] * turns[1], turns[1]])
        return np.append(self.tests[:2] * oriented, self.tests[2:])

    def search(self, other: "CurveSample") -> np.ndarray:
        """The same, without the pole at which the first also changes sign."""
        tests = self.beside(other)
        if self.kind in POLES:
            tests = np.append(tests[0] * tests[POLES[self.kind]], tests[1:])
        return tests


def oriented(samples: Sequence[CurveSample]) -> Array:
    """The tests along a curve, with vectors that do not turn round on the way."""
    tests = [samples[0].tests]
    for before, sample in itertools.pairwise(samples):
        turns = sample.beside(before) * before.tests * tests[-1]
        tests.append(np.copysign(sample.tests, turns))
    return jnp.asarray(np.stack(tests))


# Why not Newton's method: on a regular curve an event is a simple root of one number, which the compiled step gives, and
# its derivative, of order four in the field for l₁, would take longer to compile than all the rest.
def root_on(leg: Stretch, i: int, eps: float) -> tuple[CurveSample, float, bool]:
    """Where a test vanishes on a leg, to rounding; the error, in units of the path; and whether it has no pole there."""
    _, there, _, _ = locate(
        lambda p: p.search(leg.first)[i], leg._replace(tol=4 * eps * leg.length)
    )
    value, *ends = (abs(p.tests[i]) for p in (there, leg.first, leg.last))
    error = 4 * (eps + leg.length * value / max(ends))
    return there, error, bool(error < eps**0.5)


@eqx.filter_jit
def _polished(problem, y, q):
    """A Bogdanov–Takens point or a resonance near a sample, and how far the last of Newton's steps went."""
    unknown, unravel = ravel_pytree((y, q))
    borders = problem.borders(y, q)

    def equations(flat):
        y, q = unravel(flat)
        system = problem.at(q)
        vectors = system.raw_vectors(y, borders)
        rest = system.equations(y, vectors, borders.left)
        return jnp.append(ravel_pytree(rest)[0], problem.tests(y, q)[0][0])

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

    ```python
    where, bounds = (lambda f: f.a, lambda f: f.b), ((0.0, 1.0), (-1.0, 1.0))
    follow = lambda f, fold: ej.stability.fold_curve(f, fold, where=where, bounds=bounds)
    ```
    """
    return _curve("fold", field, point, x, where, bounds, **settings)


def hopf_curve(
    field, point, x=None, *, where, bounds, step: ScalarLike | None = None, **settings
) -> Curve:
    """Follow a Hopf point through two parameters, to Bautin points, where the cycle that is born changes its stability
    (l₁ = 0), to zero–Hopf and Hopf–Hopf points, where a real mode or another pair is critical, too, and to Bogdanov–Takens
    points, where its frequency vanishes and the curve ends.

    The minimally augmented equations of a Hopf point, F = 0 and g = 0 with the complex g from the bordered `J - iω`.
    Arguments, results and errors are those of `fold_curve`, with a `point` of `flow == "Hopf"`.

    With `step`, the ε that `continuation` was given, and a `point` of `euler == "Neimark–Sacker"` it follows where a pair of
    multipliers of the Euler map z + εF has modulus one: to Chenciner points, where the invariant circle that is born
    changes its stability (d = 0), and to resonances 1:k, at which the multipliers are k-th roots of one; those of k = 1 and
    2 end it. Other multipliers of modulus one are not looked for. Folds of flow and map are the same.

    ```python
    where, bounds = (lambda f: f.a, lambda f: f.b), ((0.0, 2.0), (0.0, 5.0))
    follow = lambda f, hopf: ej.stability.hopf_curve(f, hopf, where=where, bounds=bounds)
    ```
    """
    check_positive(**given(step=step))
    kind = "Hopf" if step is None else "Neimark–Sacker"
    return _curve(kind, field, point, x, where, bounds, step=step, **settings)


def _curve(
    kind: str,
    field: Callable[..., Any],
    point: SpecialPoint,
    x: PyTree,
    where: Any,
    bounds: Any,
    step: ScalarLike | None = None,
    backwards: bool = False,
    path: AbstractPath = PseudoArclength(),
    max_points: int = 400,
    max_steps: int = 12,
) -> Curve:
    under, label = ("flow", point.flow) if step is None else ("euler", point.euler)
    if label != kind:
        raise ValueError(f'`point` must be a special point with {under} "{kind}", got "{label}".')
    check_pair(where=where, bounds=bounds)
    check_count(max_points=max_points, max_steps=max_steps)
    real = real_dtype(point.state, "point.state")
    z, unravel = ravel_pytree(jax.tree.map(jnp.asarray, point.state))
    if z.size > DENSE:
        raise ValueError(f"`point` has a state of {z.size} numbers; curves take {DENSE} at most.")
    first, q1, second, q2 = Line.pair(field, where, bounds, point.parameter, real)
    epsilon = None if step is None else jnp.asarray(step, real)
    system = Defining(first, x, epsilon, unravel, kind)
    problem = CriticalCurve(second, system, max_steps)
    # What is unknown beside the state: ω, or the angle εω.
    unit = 1.0 if epsilon is None else float(epsilon)
    extra = jnp.asarray(unit * point.frequency, z.dtype) if system.turning else ()
    start = first_point(problem, Critical(z, q1, extra), q2, backwards)
    if not start.converged:
        raise ValueError(
            f"No curve begins at `point`: Newton's method ended at force residual {float(start.residual):.1e}. Pass the "
            "special point as `continuation` returned it, and the same field."
        )

    eps = float(jnp.finfo(real).eps)

    def frequency_of(y):
        return abs(float(y.extra)) / unit if system.turning else 0.0

    def sample(point):
        y, q = point.y
        tests, vectors = jax.tree.map(np.asarray, point.found)
        values = np.zeros(z.size, complex)
        if kind == "Neimark–Sacker":
            tests = np.append(tests[0], angle_tests(float(y.extra)))
        else:
            # Only where there are other eigenvalues than the critical ones.
            if z.size > len(critical_of(kind, 1.0)):
                values = np.linalg.eigvals(matrix_at(problem, y, q))
            tests = np.append(tests, further_tests(kind, values, frequency_of(y)))
        at, slope = float(second.value(q)), float(point.tangent[1])
        return CurveSample(at, (y, q), slope, tests, vectors, values, bool(point.converged), kind)

    def event(leg, i):
        name, met = EVENTS[kind][i], ()
        if name not in SINGULAR.get(kind, ()) and name not in TOGETHER:
            there, error, sure = root_on(leg, i, eps)
            # Of a map d has poles, too.
            if name == "Chenciner" and not sure:
                return None
            y, q = there.state
            return found_at(leg, name, y, q, (), error, sure)
        _, there, _, _ = locate(lambda p: p.search(leg.first)[i], leg.coarse)
        (y, q), at = there.state, there.state
        if name not in TOGETHER:
            # The equations whose regular root it is.
            other = dataclasses.replace(system, kind=SINGULAR[kind][name])
            regular = dataclasses.replace(problem, system=other)
            y, q, size = _polished(regular, y._replace(extra=()), q)
        else:
            omega = met_frequency(kind, name, there.values, frequency_of(y))
            if np.isnan(omega):
                return None
            y, q, other, size = polished_both(problem, name, y, q, jnp.asarray(omega, real))
            met = () if isinstance(other, tuple) else (abs(float(other)),)
            # Newton's method may have gone to the pair that is known.
            own = (frequency_of(y),) if system.turning else ()
            if any(abs(a - b) < 1e-6 * a for a, b in zip(own, met, strict=False)):
                size = jnp.full_like(size, jnp.nan)
        # On this leg, for it may be another one's.
        distance = lambda a, b: float(jnp.hypot(a[0].q - b[0].q, a[1] - b[1]))
        across = distance(leg.first.state, leg.last.state)
        # Where the curve ends its own equations are nearly singular, and a sample there is off the curve.
        reach = 1e-6 + across * (1 if name in TOGETHER else 10)
        sure = bool(size < eps**0.5) and distance((y, q), at) < reach
        if not sure:
            _, there, _, _ = locate(lambda p: p.search(leg.first)[i], leg)
            (y, q), size = there.state, leg.tol if there.converged else across
        return found_at(leg, name, y, q, met, max(4 * float(size), 4 * eps), sure)

    def found_at(leg, name, y, q, met, error, sure):
        own = () if isinstance(y.extra, tuple) else (frequency_of(y),)
        if name == "1:2 resonance":
            own = (np.pi / unit,)
        return CurvePoint(
            type=name,
            parameters=(float(first.value(y.q)), float(second.value(q))),
            state=unravel(y.z),
            frequencies=(*own, *met),
            error=error,
            status="converged" if sure else "bracketed",
            index=leg.number,
        )

    def examine(leg: Stretch):
        changes = leg.first.search(leg.first) * leg.last.search(leg.first) < 0
        points = [event(leg, i) for i in range(len(changes)) if changes[i]]
        points = [point for point in points if point is not None]
        y = leg.last.state[0]
        ended = ""
        for i, name in enumerate(EVENTS[kind]):
            if changes[i] and name in SINGULAR.get(kind, ()):
                flip = SINGULAR[kind][name] == "flip"
                ended = "the multipliers met at -1" if flip else "the frequency vanished"
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
    return Curve(
        parameters=jnp.stack([first.value(y.q), second.value(q)], axis=1),
        states=jax.vmap(unravel)(y.z),
        frequencies=jnp.abs(y.extra) / unit if system.turning else jnp.zeros_like(q),
        tests=oriented(samples),
        special_points=special,
        ended=ended,
    )
