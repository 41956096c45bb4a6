"""Where and how a fixed point changes its stability along a branch."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree
from numpy.polynomial import chebyshev

from ._spectrum import aligned

NOTHING = "–"


class SpecialPoint(eqx.Module):
    """A point of a branch at which stability changes, under the flow or under its Euler map.

    - `parameter`: its value there; `interval`: that to within the error. `state`: the fixed point.
    - `flow`: what happens to `ż = F(z)`: "fold", "branch point", "Hopf", or "–" for nothing.
    - `euler`: what happens to `z + εF(z)`: "fold", "branch point", "flip", "Neimark–Sacker", or "–".
    - `change`, `change_euler`: of the number of unstable modes under either, in the direction of the branch.
    - `status`: "converged", or "bracketed" if the equations that define such a point did not lead to it, and the interval
      is one in which a test changes sign; or if eigenvalues on the way did not converge.
    - `value`: the eigenvalue μ that crosses. `frequency`: angular, of the oscillation that is born; 0 if none.
    - `index`: of the last point of the branch before it. `token`: of a causal field, whose own block the eigenvalue is of.
    """

    parameter: float
    interval: tuple[float, float]
    state: PyTree[Array]
    flow: str = eqx.field(static=True)
    euler: str = eqx.field(static=True)
    change: int = eqx.field(static=True)
    change_euler: int = eqx.field(static=True)
    status: str = eqx.field(static=True)
    value: complex
    frequency: float
    index: int = eqx.field(static=True)
    token: int | None = eqx.field(static=True, default=None)

    @property
    def type(self) -> str:
        """The label of the flow, or, where that has none, of the Euler map."""
        return self.euler if self.flow == NOTHING else self.flow

    @property
    def outcome(self) -> str:
        """What it means to a relaxation: its `type`, but of a Neimark–Sacker point "step artefact": there
        `|1 + εμ| = 1`, hence `Re μ = -ε|μ|²/2 < 0`, and a smaller ε heals it. (Of a map that is no Euler step, but a
        field `g(z) - z` with ε = 1, read `type`.)"""
        return "step artefact" if self.type == "Neimark–Sacker" else self.type


def special_table(points: Sequence[SpecialPoint]) -> str:
    """Special points as text, one a line."""
    head = ("outcome", "parameter", "±", "status", "change", "frequency", "flow", "Euler")
    lines: list[Sequence[str]] = [head]
    for p in points:
        change = f"{p.change:+d}" if p.flow != NOTHING else f"{p.change_euler:+d} (Euler)"
        width = f"{abs(p.interval[1] - p.interval[0]) / 2:.0e}"
        value, frequency = f"{p.parameter:.12g}", f"{p.frequency:.8g}"
        lines.append([p.outcome, value, width, p.status, change, frequency, p.flow, p.euler])
    return aligned(lines) if points else "no special points"


class BranchSample(NamedTuple):
    """A point of a branch as the search for special points sees it: `slope` is the parameter's part of the tangent,
    `values` are by falling Re μ and `multipliers` by falling |λ|; `converged`, the point and these."""

    parameter: float
    state: PyTree[Array]
    slope: float
    values: np.ndarray
    multipliers: np.ndarray
    converged: bool
    unstable: int
    unstable_euler: int
    tokens: np.ndarray | None = None  # whose the values are

    @classmethod
    def of(cls, parameter, point):
        flow, multipliers, reliable = point.found
        values: Any = np.asarray(flow.values)
        order = np.argsort(-values.real, kind="stable")
        values = values[order]
        tokens = None if flow.tokens is None else np.asarray(flow.tokens)[order]
        multipliers = np.zeros(0, complex) if multipliers is None else np.asarray(multipliers)
        multipliers = multipliers[np.argsort(-abs(multipliers), kind="stable")]
        # A mode that a symmetry keeps neutral is within rounding of zero, and must not count.
        neutral = float(np.finfo(values.dtype).eps) ** (2 / 3)
        unstable = int(np.sum(values.real > neutral * np.max(abs(values))))
        euler = int(np.sum(abs(multipliers) > 1 + neutral))
        slope, converged = float(point.tangent[1]), bool(point.converged) and bool(reliable)
        modes = (values, multipliers, converged, unstable, euler, tokens)
        return cls(float(parameter), point.y[0], slope, *modes)

    def token_of(self, value: complex) -> int | None:
        """Whose own block has the eigenvalue, or the nearest to it."""
        nearest = np.argmin(abs(self.values - value))
        return None if self.tokens is None else int(self.tokens[nearest])


class Stretch(NamedTuple):
    """A leg of a branch as the search sees it: `at(s)` are its samples, from `first` at s = 0, the branch's `number`-th,
    to `last` at s = length; `tol` to which points are located on it."""

    at: Callable[[float], Any]
    length: float
    first: Any
    last: Any
    number: int
    tol: float

    @property
    def turns(self) -> bool:
        """Whether the branch turns round in the parameter."""
        return self.first.slope * self.last.slope < 0

    @property
    def coarse(self) -> "Stretch":
        """The same, to be searched only as far as it takes to tell points apart."""
        return self._replace(tol=max(self.tol, 1e-3 * self.length))

    def parts(self, place: float) -> tuple["Stretch", "Stretch"]:
        """What lies before and after a place."""
        middle = self.at(place)
        after = lambda s: self.at(place + s)
        return (
            self._replace(length=place, last=middle),
            self._replace(at=after, length=self.length - place, first=middle),
        )


# Two modes that cross in opposite directions leave the count as it was. Each followed by itself shows them.
def _exchange(leg: Stretch) -> float | None:
    """A place between such crossings, where the count differs from that at both ends of the leg."""
    first, last = leg.first, leg.last
    # One mode must be there to be lost.
    if not first.unstable or first.unstable != last.unstable or leg.turns:
        return None
    import scipy.optimize  # here, since it takes long to import

    order = scipy.optimize.linear_sum_assignment(abs(first.values[:, None] - last.values[None]))[1]
    before, after = first.values.real, last.values[order].real
    crossing = before * after < 0
    if not (crossing & (before < 0)).any() or not (crossing & (before > 0)).any():
        return None
    places = np.sort(leg.length * before[crossing] / (before - after)[crossing])
    apart = np.diff(places) > 1e-6 * leg.length  # both of a pair cross at one place
    for place in (0.5 * (places[1:] + places[:-1]))[apart]:
        sample = leg.at(place)
        if sample.converged and sample.unstable != first.unstable:
            return float(place)
    return None


# Why counts and sorted growth rates. The classical test functions (Kuznetsov 2004, ch. 10; Govaerts 2000),
# det J for folds and the bialternate product for Hopf points, need J, or a matrix of n(n-1)/2 rows. The few
# leading eigenvalues are known at every point anyway, and, sorted, need not be traced through collisions.
def crossings(leg: Stretch, values: Callable, rate: Callable, before: int, after: int):
    """What crosses between two counts of unstable modes: for each the test that is zero there, where, the eigenvalue,
    which is real where it is not one of a pair, and the change of the count.

    The i-th largest `rate` of the `values` of a sample is a continuous function of s whatever the eigenvalues do, and
    changes sign where the count passes i.
    """
    up = 1 if after > before else -1
    # Between the two counts: just these, by rank, change sides.
    i, end = sorted((before, after))
    while i < end:

        def test(p, i=i):
            return rate(values(p)[i])

        found = locate(test, leg)
        # The eigenvalue at the zero tells what crosses: a pair, or a real one.
        among = values(found[1])
        value = among[i]
        # Why the root of eps: by so much rounding splits a double real eigenvalue into a complex pair.
        small = np.sqrt(np.finfo(among.dtype).eps) * np.max(abs(among))
        # Both of a pair cross at once, and all copies: one point, and so many ranks done.
        alike = np.minimum(abs(among[i:end] - value), abs(among[i:end] - value.conj())) <= small
        pair = abs(value.imag) > small
        count = max(int(np.argmin(np.append(alike, False))), 1 + int(pair))
        yield test, found, value if pair else value.real, count * up
        i += count


# At a fold an eigenvalue passes zero. On the side branch of a pitchfork it comes to zero and goes back, while
# the branch turns round in the parameter all the same.
def _touches(leg: Stretch, place: float, there: BranchSample) -> bool:
    """Whether an eigenvalue is zero at a turning point, and has one sign on both sides of it."""
    reach = 0.1 * leg.length
    samples = [leg.at(place - reach), leg.at(place + reach)]
    nearest = [min(sample.values, key=abs).real for sample in (there, *samples)]
    zero = abs(nearest[0]) < 1e-3 * max(map(abs, nearest))
    return bool(
        zero and all(sample.converged for sample in samples) and nearest[1] * nearest[2] > 0
    )


def log_modulus(multiplier):
    # The logarithm, since moduli span many orders, and Brent's method interpolates.
    return np.log(abs(multiplier))


def slope(p):
    return p.slope


# Brent's method need only tell the points of a leg apart: the equations that define such a point do the rest.
def _pinned(kind: str, test: Callable, leg: Stretch, found, value: complex, polish: Callable):
    """A special point to rounding, if it is regular and where the search says, else as well as a search can; and the
    eigenvalue that crosses."""
    there = None
    if leg.first.converged and leg.last.converged:
        there = polish(kind, found[1], value)
    if there is not None:
        parameter, state, error, exact = there
        ends = np.array([leg.first.parameter, leg.last.parameter, *found[2]])
        reach = 10 * np.max(abs(ends - found[1].parameter))
        # Somewhere else on the branch, or on another one, it would be another point.
        if abs(parameter - found[1].parameter) <= 0.1 * reach + 10 * error:
            sample = found[1]._replace(parameter=parameter, state=state)
            return (found[0], sample, (parameter - error, parameter + error), "converged"), exact
    found = locate(test, leg)
    if kind == "branch point" and found[3] == "bracketed":
        found = interpolate(test, leg, found)
    return found, value


def special_points(leg: Stretch, step: float | None, polish: Callable) -> list[SpecialPoint]:
    """What happens on a leg of a branch: crossings of growth rates and, with a step, of moduli of multipliers.

    `polish(kind, sample, value)` gives parameter, state, error and eigenvalue of the special point near a sample, or None.
    """
    between = _exchange(leg)
    if between is not None:
        return [
            point for part in leg.parts(between) for point in special_points(part, step, polish)
        ]
    first, last, points = leg.first, leg.last, []

    def add(test, found, kind, change, change_euler, value):
        """Under the flow, or where its count does not change only under Euler."""
        (s, there, interval, status), value = _pinned(
            kind, test, leg, found, complex(value), polish
        )
        only_euler = kind in ("flip", "Neimark–Sacker")
        frequency = abs(np.angle(1 + epsilon * value)) / epsilon if only_euler else abs(value.imag)
        flow, euler = (NOTHING, kind) if only_euler else (kind, NOTHING if value.imag else kind)
        if step is None:
            euler, change_euler = NOTHING, 0
        point = SpecialPoint(
            parameter=there.parameter,
            interval=interval,
            state=there.state,
            flow=flow,
            euler=euler,
            change=change,
            change_euler=change_euler,
            status=status,
            value=value,
            frequency=float(frequency),
            index=leg.number,
            token=there.token_of(value),
        )
        points.append((s, point))

    epsilon = 0.0 if step is None else step
    folds, counts = leg.turns, (first.unstable, last.unstable)
    for test, found, value, change in crossings(leg.coarse, lambda p: p.values, np.real, *counts):
        if value.imag:
            add(test, found, "Hopf", change, 0, value)
        elif folds:  # a real one, where the branch turns or not
            add(slope, locate(slope, leg.coarse), "fold", change, change, 0.0)
            folds = False
        else:
            add(test, found, "branch point", change, change, 0.0)
    # Where the mode that crosses is not among the k, or another crosses back on the same leg.
    if folds:  # seen in the tangent alone
        found = locate(slope, leg)
        kind = "branch point" if _touches(leg, *found[:2]) else "fold"
        add(slope, found, kind, 0, 0, 0.0)

    counts = (first.unstable_euler, last.unstable_euler)
    for test, found, multiplier, change in crossings(
        leg.coarse, lambda p: p.multipliers, log_modulus, *counts
    ):
        value = (multiplier - 1) / epsilon
        if multiplier.imag:
            add(test, found, "Neimark–Sacker", 0, change, value)
        # -1 is out of reach of the flow: only a step that is too long takes a decaying real mode there.
        elif multiplier.real < 0:  # at +1 the flow changes too, and has been seen to
            add(test, found, "flip", 0, change, value)
    return [point for _, point in sorted(points, key=lambda pair: pair[0])]


# Why Brent's method, and not Newton's on an extended system from the start: the test is continuous, but has kinks where
# eigenvalues change places; a bracket cannot be lost.
def locate(test: Callable, leg: Stretch):
    """A zero of `test` by Brent's method: its place, the sample there, an interval of the parameter, the status."""
    import scipy.optimize  # here, since it takes long to import

    # Each sample is a corrector and a spectrum: none is computed twice.
    length = leg.length
    seen = {0.0: (float(test(leg.first)), leg.first), length: (float(test(leg.last)), leg.last)}

    def evaluate(s):
        if s not in seen:
            sample = leg.at(s)
            if not sample.converged:
                raise ValueError("no point there")
            seen[s] = float(test(sample)), sample
        return seen[s][0]

    # No point there, or a zero within rounding of an end: then what was seen must do.
    with contextlib.suppress(ValueError):
        scipy.optimize.brentq(evaluate, 0.0, length, xtol=leg.tol)
    # The narrowest bracket that any of the samples makes, not only the last of Brent's.
    rising = seen[length][0] > seen[0.0][0]
    below = [s for s, (value, _) in seen.items() if value == 0 or (value < 0) == rising]
    above = [s for s, (value, _) in seen.items() if value == 0 or (value > 0) == rising]
    s = min(seen, key=lambda s: abs(seen[s][0]))
    left, right = max(below, default=s), min(above, default=s)
    parameters = sorted(seen[s][1].parameter for s in (left, right))
    # Within rounding of a zero signs may be disordered: then the bracket is as wide as they are.
    status = "converged" if abs(right - left) <= 2 * leg.tol else "bracketed"
    return s, seen[s][1], (parameters[0], parameters[1]), status


def interpolate(test: Callable, leg: Stretch, found):
    """A branch point from around it: at the point itself Newton's method meets a singular system, and two branches
    are one to within the root of its tolerance."""
    # An even number of nodes: none is in the middle, where the branch point is taken to be.
    centre, radius, degree = found[0], max(0.5 * leg.length, 0.01), 7
    nodes = chebyshev.chebpts1(degree + 1)
    samples = [leg.at(centre + radius * node) for node in nodes]
    if not all(sample.converged for sample in samples):
        return found
    heights = np.asarray([test(sample) for sample in samples], float)

    def root(degree):
        roots = chebyshev.chebroots(chebyshev.chebfit(nodes, heights, degree))
        return min(roots, key=abs).real

    # A fit of lower degree through the same samples gives the error.
    place, other = root(degree), root(degree - 2)
    width = max(abs(place - other) * radius, 0.5 * leg.tol)
    # What each node weighs in the value of the interpolating polynomial at `place`.
    vander = chebyshev.chebvander(nodes, degree)
    weights = np.linalg.solve(vander.T, chebyshev.chebvander(place, degree)[0])

    def there(*values):
        return sum(w.astype(np.asarray(v).dtype) * v for w, v in zip(weights, values, strict=True))

    parameters = [sample.parameter for sample in samples]
    pace = abs((parameters[-1] - parameters[0]) / (nodes[-1] - nodes[0])) / radius
    sample = samples[np.argmin(abs(heights))]._replace(
        parameter=float(there(*parameters)),
        state=jax.tree.map(there, *(sample.state for sample in samples)),
    )
    interval = (sample.parameter - pace * width, sample.parameter + pace * width)
    status = "converged" if width <= 2 * leg.tol else "bracketed"
    return centre + radius * place, sample, interval, status
