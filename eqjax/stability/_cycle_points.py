"""Where and how a cycle changes its stability along a branch."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree

from ._bifurcation import aligned, has_partner, interpolate, locate


class CyclePoint(eqx.Module):
    """A point of a branch of cycles at which their stability changes, or they end.

    - `parameter`: its value there; `interval`: a bracket of it.
    - `state`, `period`, `amplitude`: of the cycle there, as in `CycleBranch`.
    - `type`: "fold" (a real multiplier at +1, and the branch turns), "branch point" (it does not turn), "period
      doubling" (at -1), "torus" (a complex pair on the unit circle, Neimark–Sacker), or "Hopf" (the cycle shrinks to a
      fixed point, and the branch ends).
    - `change`: of the number of unstable multipliers, in the direction of the branch.
    - `status`: "converged", or "bracketed" if the point could not be located to the tolerance.
    - `multiplier`: the one that crosses. `frequency`: angular, of the oscillation that is born beside that of the
      cycle, within ±π/T of it, or of the Hopf bifurcation; 0 if none.
    - `index`: of the last point of the branch before it.
    """

    parameter: float
    interval: tuple[float, float]
    state: PyTree[Array]
    period: float
    amplitude: float
    type: str = eqx.field(static=True)
    change: int = eqx.field(static=True)
    status: str = eqx.field(static=True)
    multiplier: complex
    frequency: float
    index: int = eqx.field(static=True)


def cycle_table(points: Sequence[CyclePoint]) -> str:
    if not points:
        return "no special points"
    lines = [("type", "parameter", "±", "status", "change", "period", "multiplier", "frequency")]
    for p in points:
        width = f"{abs(p.interval[1] - p.interval[0]) / 2:.0e}"
        numbers = f"{p.period:.10g}", f"{p.multiplier:.6g}", f"{p.frequency:.8g}"
        lines.append((p.type, f"{p.parameter:.12g}", width, p.status, f"{p.change:+d}", *numbers))
    return aligned(lines)


class CycleSample(NamedTuple):
    """A cycle as the search for special points sees it: `state` is (z, T, amplitude, centre), `multipliers` by falling
    size."""

    parameter: float
    state: PyTree[Array]
    slope: float
    multipliers: np.ndarray
    converged: bool
    unstable: int


# Why the angle decides. What is born depends only on where the circle is crossed (Kuznetsov 2004, ch. 5): at
# 1 two cycles meet or cross, at -1 one of twice the period branches off, and a pair elsewhere leaves a torus.
def cycle_points(
    at: Callable[[float], CycleSample],
    length: float,
    first: CycleSample,
    last: CycleSample,
    index: int,
    tol: float,
    unravel: Callable[[Array], PyTree],
) -> list[CyclePoint]:
    """What happens on a leg of a branch of cycles.

    The logarithm of the i-th largest modulus of a multiplier is a continuous function of s, and changes sign where the
    count of unstable ones passes i.
    """
    points = []

    def search(test):
        return locate(test, at, length, first, last, tol)

    def smoothed(test, found):
        return interpolate(test, at, length, found, tol) if found[3] == "bracketed" else found

    def add(found, kind, change, multiplier, turns):
        s, there, interval, status = found
        z, period, amplitude, _ = there.state
        period = float(period)
        point = CyclePoint(
            parameter=there.parameter,
            interval=interval,
            state=unravel(z),
            period=period,
            amplitude=float(amplitude),
            type=kind,
            change=change,
            status=status,
            multiplier=complex(multiplier),
            frequency=float(turns) / period,
            index=index,
        )
        points.append((s, point))

    def slope(p):
        return p.slope

    # A fold is found by the tangent, which has a simple zero there, free of the integration's error; the
    # multiplier passes 1 in the same place, but only as well as the turn was integrated.
    folds = first.slope * last.slope < 0
    up = 1 if last.unstable > first.unstable else -1
    # Between the two counts: just these multipliers, by rank, change sides.
    i, end = sorted((first.unstable, last.unstable))
    while i < end:

        def growth(p, i=i):
            # The logarithm, since moduli span many orders, and Brent's method interpolates.
            return np.log(abs(p.multipliers[i]))

        found = search(growth)
        multiplier = found[1].multipliers[i]
        # Both of a pair cross at once: one point, and two ranks done.
        if has_partner(multiplier, found[1].multipliers):
            add(found, "torus", 2 * up, multiplier, abs(np.angle(multiplier)))
            i += 2
            continue
        if multiplier.real < 0:
            add(found, "period doubling", up, multiplier, np.pi)
        # Which real multiplier at +1 goes with the fold the branch does not tell: the first does.
        elif folds:
            add(search(slope), "fold", up, multiplier, 0)
            folds = False
        else:
            # There two branches cross and shooting is singular: samples at the point are worth little.
            add(smoothed(growth, found), "branch point", up, 1, 0)
        i += 1
    if folds:  # seen in the tangent alone
        # Where the multiplier is not among the k, or another crosses back on the same leg.
        found = search(slope)
        add(found, "fold", 0, min(found[1].multipliers, key=lambda m: abs(m - 1)), 0)
    # Found kind by kind; along the branch they may lie in any order.
    return [point for _, point in sorted(points, key=lambda pair: pair[0])]
