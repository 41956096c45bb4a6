"""Points of codimension two on curves of critical cycles: what tells of them, and where they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._bifurcation import Stretch, interpolate, locate
from ._codim_two import EVENTS, CurvePoint, angle_tests
from ._critical_curves import CurveSample, root_on
from ._cycle_normal_form import Cycle, cycle_torus, doubling_terms, fold_terms
from ._defining import Vectors
from ._parameter import Line, replaced

# What may happen on a curve of each kind: tests that change sign there.
CYCLE_EVENTS = {
    "fold": ("1:1 resonance", "cusp of cycles"),
    "period doubling": ("1:2 resonance", "generalised period doubling"),
    "torus": EVENTS["Neimark–Sacker"],
}
# Where a curve of tori ends.
MET = {"1:1 resonance": "the multipliers met at 1", "1:2 resonance": "the multipliers met at -1"}
# What has poles, too, and goes through them from one sign to the other.
COEFFICIENTS = ("cusp of cycles", "generalised period doubling", "Chenciner")


def curve_sample(problem: Any, point: Any) -> CurveSample:
    """A point of a curve of critical cycles with its tests; its state is (both parameters, a point of the cycle, ln T, ω)."""
    (profile, rest), q = jax.tree.map(np.asarray, point.y)
    first, second, kind = problem.first, problem.line, problem.kind
    values, real = (first.number(rest[0]), second.number(q)), first.low.dtype
    field = replaced(second.field, second.index, jnp.asarray(values[1], real))
    line = Line(field, jnp.asarray(values[0], real), jnp.ones((), real), first.index)
    own = problem.cycle(profile)
    n = problem.size - problem.driven
    z, period = own.nodes[0, :n], np.exp(profile.log_period)
    omega = {"fold": 0 * period, "period doubling": np.pi / period}.get(kind, rest[-1])
    state = problem.unravel(jnp.asarray(z))
    # Where a second multiplier is critical a factor may be singular.
    try:
        tests, vectors = _tests(problem, Cycle(line, problem.x, state, own), profile, float(omega))
    except RuntimeError:
        tests, vectors = np.full(1 if kind == "torus" else 2, np.nan), Vectors(z, z)
    if kind == "torus":
        tests = np.append(tests[:1], angle_tests(float(omega * period)))
    told = np.asarray(values), z, profile.log_period, omega
    none, fine = np.zeros(0), bool(point.converged)
    return CurveSample(values[1], told, float(point.tangent[1]), tests, vectors, none, fine, kind)


def _tests(problem, cycle, profile, omega):
    if problem.kind == "torus":
        z = profile.nodes[0]
        return np.array([cycle_torus(cycle, omega)[0]["d"]]), Vectors(z, z)
    found = fold_terms(cycle) if problem.kind == "fold" else doubling_terms(cycle)
    # Of the solution that goes along the curve: its sign does not change on the way.
    n = cycle.flow.shape[-1]
    along = profile.nodes[:, problem.size : problem.size + n]
    sign = np.sign(np.sum(along * found.v[:, 0]))
    tests = np.array([sign * found.seen(found.v), found.seen(found.rest)])
    if problem.kind == "period doubling":
        tests[1] *= sign
    return tests, Vectors(sign * found.v.ravel(), found.left)


def curve_event(problem: Any, leg: Stretch, i: int) -> CurvePoint | None:
    """The point where a test changes sign on a leg, if it is no pole."""
    name, eps = CYCLE_EVENTS[problem.kind][i], float(jnp.finfo(problem.tol.dtype).eps)
    if problem.kind == "torus" and name in MET:
        # There the curve turns back on itself, or meets that of folds or doublings, and its equations are singular.
        test = lambda p: p.tests[i]
        seen = locate(test, leg.coarse)
        found = interpolate(test, leg, seen)
        there, sure = found[1], found is not seen and found[3] == "converged"
        error = 2 * leg.tol if sure else leg.length
    else:
        there, error, sure = root_on(leg, i, eps)
        if not sure and name in COEFFICIENTS:
            return None
    values, z, log_period, omega = there.state
    return CurvePoint(
        type=name,
        parameters=(float(values[0]), float(values[1])),
        state=problem.unravel(jnp.asarray(z)),
        frequencies=() if problem.kind == "fold" else (abs(float(omega)),),
        error=float(error),
        status="converged" if sure else "bracketed",
        index=leg.number,
        period=float(np.exp(log_period)),
    )


def curve_events(problem: Any, leg: Stretch) -> tuple[list[CurvePoint], str]:
    """What is met on a leg, and why the curve ends there, if it does."""
    changes = leg.first.search(leg.first) * leg.last.search(leg.first) < 0
    names = CYCLE_EVENTS[problem.kind]
    points = [curve_event(problem, leg, i) for i in range(len(names)) if changes[i]]
    ended = [MET.get(name, "") for name, met in zip(names, changes, strict=True) if met]
    return [p for p in points if p is not None], "".join(ended) if problem.kind == "torus" else ""
