"""Where and how a fixed point changes its stability along a branch."""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree
from numpy.polynomial import chebyshev

NOTHING = "–"


class SpecialPoint(eqx.Module):
    """A point of a branch at which stability changes, under the flow or under its Euler map.

    - `parameter`: its value there; `interval`: a bracket of it. `state`: the fixed point.
    - `flow`: what happens to `ż = F(z)`: "fold", "branch point", "Hopf", or "–" for nothing.
    - `euler`: what happens to `z + εF(z)`: "fold", "branch point", "flip", "Neimark–Sacker", or "–".
    - `change`, `change_euler`: of the number of unstable modes under either, in the direction of the branch.
    - `status`: "converged", or "bracketed" if the point could not be located to the tolerance, or only by eigenvalues
      that did not converge.
    - `value`: the eigenvalue μ that crosses. `frequency`: angular, of the oscillation that is born; 0 if none.
    - `index`: of the last point of the branch before it.
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
    if not points:
        return "no special points"
    head = ("outcome", "parameter", "±", "status", "change", "frequency", "flow", "Euler")
    lines: list[Sequence[str]] = [head]
    for p in points:
        change = f"{p.change:+d}" if p.flow != NOTHING else f"{p.change_euler:+d} (Euler)"
        width = f"{abs(p.interval[1] - p.interval[0]) / 2:.0e}"
        value, frequency = f"{p.parameter:.12g}", f"{p.frequency:.8g}"
        lines.append([p.outcome, value, width, p.status, change, frequency, p.flow, p.euler])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one the head, as text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


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

    @classmethod
    def of(cls, parameter, state, slope, values, multipliers, converged):
        values = values[np.argsort(-values.real, kind="stable")]
        multipliers = np.zeros(0, complex) if multipliers is None else multipliers
        multipliers = multipliers[np.argsort(-abs(multipliers), kind="stable")]
        # A mode that a symmetry keeps neutral is within rounding of zero, and must not count.
        neutral = float(np.finfo(values.dtype).eps) ** (2 / 3)
        unstable = int(np.sum(values.real > neutral * np.max(abs(values))))
        euler = int(np.sum(abs(multipliers) > 1 + neutral))
        return cls(parameter, state, slope, values, multipliers, converged, unstable, euler)


# Why counts and sorted growth rates. The classical test functions (Kuznetsov 2004, ch. 10; Govaerts 2000),
# det J for folds and the bialternate product for Hopf points, need J, or a matrix of n(n-1)/2 rows. The few
# leading eigenvalues are known at every point anyway, and, sorted, need not be traced through collisions.
def special_points(
    at: Callable[[float], BranchSample],
    length: float,
    first: BranchSample,
    last: BranchSample,
    index: int,
    tol: float,
    step: float | None,
) -> list[SpecialPoint]:
    """What happens on a leg of a branch, `at(s)` being its points from `first` at s = 0 to `last` at s = length.

    The i-th largest growth rate is a continuous function of s whatever the eigenvalues do, and changes sign where the
    count of unstable modes passes i. So does the logarithm of the i-th largest modulus of a multiplier.
    """
    points = []
    epsilon = 0.0 if step is None else step

    def add(found, flow, euler, change, change_euler, value, frequency):
        s, there, interval, status = found
        if step is None:
            euler, change_euler = NOTHING, 0
        labels = (flow, euler, change, change_euler, status)
        point = SpecialPoint(
            there.parameter, interval, there.state, *labels, complex(value), float(frequency), index
        )
        points.append((s, point))

    def search(test):
        return locate(test, at, length, first, last, tol)

    folds = first.slope * last.slope < 0
    up = 1 if last.unstable > first.unstable else -1
    i, end = sorted((first.unstable, last.unstable))
    while i < end:

        def growth(p, i=i):
            return p.values[i].real

        found = search(growth)
        # The eigenvalue at the zero tells what crosses: a pair, or a real one, where the branch turns or not.
        value = found[1].values[i]
        if has_partner(value, found[1].values):
            add(found, "Hopf", NOTHING, 2 * up, 0, value, abs(value.imag))
            i += 2
        elif folds:
            add(found, "fold", "fold", up, up, value, 0)
            i, folds = i + 1, False
        else:
            if found[3] == "bracketed":
                found, value = interpolate(growth, at, length, found, tol), 0
            add(found, "branch point", "branch point", up, up, value, 0)
            i += 1
    # Where the mode that crosses is not among the k, or another crosses back on the same leg.
    if folds:  # seen in the tangent alone
        found = search(lambda p: p.slope)
        value = min(found[1].values, key=abs)
        add(found, "fold", "fold", 0, 0, value, 0)

    up = 1 if last.unstable_euler > first.unstable_euler else -1
    i, end = sorted((first.unstable_euler, last.unstable_euler))
    while i < end:
        # The logarithm: moduli differ by orders of magnitude, and Brent's method interpolates.
        found = search(lambda p, i=i: np.log(abs(p.multipliers[i])))
        multiplier = found[1].multipliers[i]
        value = (multiplier - 1) / epsilon
        if has_partner(multiplier, found[1].multipliers):
            frequency = abs(np.angle(multiplier)) / epsilon
            add(found, NOTHING, "Neimark–Sacker", 0, 2 * up, value, frequency)
            i += 2
            continue
        # -1 is out of reach of the flow: only a step that is too long takes a decaying real mode there.
        if multiplier.real < 0:  # at +1 the flow changes too, and has been seen to
            add(found, NOTHING, "flip", 0, up, value, np.pi / epsilon)
        i += 1
    return [point for _, point in sorted(points, key=lambda pair: pair[0])]


# Why the root of eps: by so much rounding splits a double real eigenvalue into a complex pair.
def has_partner(value, among):
    return abs(value.imag) > np.sqrt(np.finfo(among.dtype).eps) * np.max(abs(among))


# Why Brent's method, and not Newton's on an extended system: the test is continuous, but has kinks where
# eigenvalues change places; a bracket cannot be lost, and its width is an honest error.
def locate(test, at, length, first, last, tol):
    """A zero of `test` by Brent's method: its place, the sample there, an interval of the parameter, the status."""
    import scipy.optimize  # here, since it takes long to import

    # Each sample is a corrector and a spectrum: none is computed twice.
    seen = {0.0: (float(test(first)), first), length: (float(test(last)), last)}

    def evaluate(s):
        if s not in seen:
            sample = at(s)
            if not sample.converged:
                raise _NoPoint
            seen[s] = float(test(sample)), sample
        return seen[s][0]

    # No point there, or a zero within rounding of an end: then what was seen must do.
    with contextlib.suppress(_NoPoint, ValueError):
        scipy.optimize.brentq(evaluate, 0.0, length, xtol=tol)
    # The narrowest bracket that any of the samples makes, not only the last of Brent's.
    rising = seen[length][0] > seen[0.0][0]
    below = [s for s, (value, _) in seen.items() if value == 0 or (value < 0) == rising]
    above = [s for s, (value, _) in seen.items() if value == 0 or (value > 0) == rising]
    s = min(seen, key=lambda s: abs(seen[s][0]))
    left, right = max(below, default=s), min(above, default=s)
    parameters = sorted(seen[s][1].parameter for s in (left, right))
    # Within rounding of a zero signs may be disordered: then the bracket is as wide as they are.
    status = "converged" if abs(right - left) <= 2 * tol else "bracketed"
    return s, seen[s][1], (parameters[0], parameters[1]), status


def interpolate(test, at, length, found, tol):
    """A branch point from around it: at the point itself Newton's method meets a singular system, and two branches
    are one to within the root of its tolerance."""
    # An even number of nodes: none is in the middle, where the branch point is taken to be.
    centre, radius, degree = found[0], max(0.5 * length, 0.01), 7
    nodes = chebyshev.chebpts1(degree + 1)
    samples = [at(centre + radius * node) for node in nodes]
    if not all(sample.converged for sample in samples):
        return found
    heights = np.asarray([test(sample) for sample in samples], float)

    def root(degree):
        roots = chebyshev.chebroots(chebyshev.chebfit(nodes, heights, degree))
        return min(roots, key=abs).real

    # A fit of lower degree through the same samples gives the error.
    place, other = root(degree), root(degree - 2)
    width = max(abs(place - other) * radius, 0.5 * tol)
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
    status = "converged" if width <= 2 * tol else "bracketed"
    return centre + radius * place, sample, interval, status


class _NoPoint(Exception):
    pass
