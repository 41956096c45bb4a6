"""Where and how a cycle changes its stability along a branch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree

from ._bifurcation import Stretch, crossings, interpolate, locate, slope
from ._profile import Profile
from ._spectrum import aligned


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
    - `profile`, `tangent`: the cycle as collocated, and how it and the parameter move along the branch, from which
      `switch` sets out; None by single shooting.
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
    profile: Profile | None = None
    tangent: tuple[Profile, Any] | None = None


def cycle_table(points: Sequence[CyclePoint]) -> str:
    lines = [("type", "parameter", "±", "status", "change", "period", "multiplier", "frequency")]
    for p in points:
        width = f"{abs(p.interval[1] - p.interval[0]) / 2:.0e}"
        numbers = f"{p.period:.10g}", f"{p.multiplier:.6g}", f"{p.frequency:.8g}"
        lines.append((p.type, f"{p.parameter:.12g}", width, p.status, f"{p.change:+d}", *numbers))
    return aligned(lines) if points else "no special points"


class CycleSample(NamedTuple):
    """A cycle as the search for special points sees it: `state` is (z, T, amplitude, centre, profile and tangent),
    `multipliers` are `bounded`, by falling size."""

    parameter: float
    state: PyTree[Array]
    slope: float
    multipliers: np.ndarray
    converged: bool
    unstable: int


# Why bounded: of 1e-80 and 1e40 no two are alike on the scale of the largest, and the largest may be no float at all.
def bounded(logs: Any) -> np.ndarray:
    """Numbers of the phases of multipliers, and with sizes that rise with theirs, from 1/e to e; at 1 they agree."""
    with np.errstate(invalid="ignore"):
        rise = np.where(np.isinf(logs.real), np.sign(logs.real), logs.real / (1 + abs(logs.real)))
    return np.exp(rise + 1j * logs.imag)


def log_size(value: complex) -> float:
    """The logarithm of the modulus of the multiplier for which a bounded number stands."""
    rise = np.log(abs(value))
    return float(rise / max(1 - abs(rise), 1e-15))


# Why the angle decides. What is born depends only on where the circle is crossed (Kuznetsov 2004, ch. 5): at
# 1 two cycles meet or cross, at -1 one of twice the period branches off, and a pair elsewhere leaves a torus.
def cycle_points(leg: Stretch, unravel: Callable[[Array], PyTree]) -> list[CyclePoint]:
    """What happens on a leg of a branch of cycles: crossings of moduli of multipliers."""
    points = []

    def add(found, kind, change, multiplier, turns):
        s, there, interval, status = found
        z, period, amplitude, _, (profile, tangent) = there.state
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
            index=leg.number,
            profile=profile,
            tangent=tangent,
        )
        points.append((s, point))

    # A fold is found by the tangent, which has a simple zero there, free of the integration's error; the
    # multiplier passes 1 in the same place, but only as well as the turn was integrated.
    folds, counts = leg.turns, (leg.first.unstable, leg.last.unstable)
    for growth, found, multiplier, change in crossings(
        leg, lambda p: p.multipliers, log_size, *counts
    ):
        if multiplier.imag:
            add(found, "torus", change, multiplier, abs(np.angle(multiplier)))
        elif multiplier.real < 0:
            add(found, "period doubling", change, multiplier, np.pi)
        # Which real multiplier at +1 goes with the fold the branch does not tell: the first does.
        elif folds:
            add(locate(slope, leg), "fold", change, multiplier, 0)
            folds = False
        else:
            # There two branches cross and shooting is singular: samples at the point are worth little.
            found = interpolate(growth, leg, found) if found[3] == "bracketed" else found
            add(found, "branch point", change, 1, 0)
    if folds:  # seen in the tangent alone
        # Where the multiplier is not among the k, or another crosses back on the same leg.
        found = locate(slope, leg)
        add(found, "fold", 0, min(found[1].multipliers, key=lambda m: abs(m - 1)), 0)
    # Found kind by kind; along the branch they may lie in any order.
    return [point for _, point in sorted(points, key=lambda pair: pair[0])]
