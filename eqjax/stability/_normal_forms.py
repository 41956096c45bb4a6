"""`normal_form`: what is born in a special point, by the sign of a few numbers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, ScalarLike

from .._checks import check_kind, check_positive, given
from ._bifurcation import NOTHING, SpecialPoint
from ._centre_manifold import (
    Centre,
    Place,
    at_fixed_parameter,
    normal_form_on,
    null_vectors,
    pair,
)
from ._codim_two import CurvePoint
from ._cycle_normal_form import Cycle, cycle_doubling, cycle_fold, cycle_torus
from ._cycle_points import CyclePoint
from ._jacobian import real_dtype
from ._parameter import Line, find, replaced
from ._path import DENSE


class NormalForm(eqx.Module):
    """What `normal_form` returns: the `type` of the point, its `coefficients` by name, and in words what they say, `verdict`.
    The forms that they belong to are in the docstring of `normal_form`."""

    type: str = eqx.field(static=True)
    coefficients: dict[str, float]
    verdict: str = eqx.field(static=True)

    def __str__(self) -> str:
        told = ", ".join(f"{name} = {value:.8g}" for name, value in self.coefficients.items())
        return f"{self.type}: {self.verdict}; {told}"


def normal_form(
    field: Callable[..., Any],
    point: SpecialPoint | CurvePoint | CyclePoint,
    x: PyTree = None,
    *,
    where: Any,
    step: ScalarLike | None = None,
) -> NormalForm:
    """The normal form of a bifurcation of a fixed point, of codimension one or two, under the flow or under its Euler map;
    or of a cycle, of codimension one.

    The field is reduced to the centre manifold, and brought to normal form there, in one pass: order by order from the
    homological equation (Elphick et al. 1987), for all bifurcations alike. With μ the parameter less its critical value:

    | point | form | coefficients |
    |---|---|---|
    | fold | ẇ = bμ + a w² | a, b |
    | branch point | ẇ = a w² + b μw + c μ² + d w³ | a, b, c, d; a = 0 at a pitchfork |
    | Hopf | ẇ = iωw + ω l₁ w\\|w\\|² | l1 |
    | flip | w ↦ -w + c w³ | c |
    | Neimark–Sacker | w ↦ exp(iθ) w (1 + (d + …i) \\|w\\|²) | d |
    | Bogdanov–Takens | u̇ = v, v̇ = a u² + b uv | a, b |
    | cusp | ẇ = c w³ | c |
    | Bautin | as Hopf, and ω l₂ w\\|w\\|⁴ | l1, l2 |
    | zero–Hopf | u̇ = b u² + c \\|w\\|², ẇ = iωw + (θb + …i) uw | b, c, theta |
    | Hopf–Hopf | ẇ₁ = iω₁w₁ + p₁₁ w₁\\|w₁\\|² + p₁₂ w₁\\|w₂\\|², and so on | real parts p11, p12, p21, p22 |

    | fold of cycles | ẇ = bμ + a w² | a, b |
    | period doubling of a cycle | ẇ = c w³ | c |
    | torus | ẇ = iωw + (d + …i) w\\|w\\|² | d |

    Critical eigenvectors have unit length, those of cycles in the mean square over a turn; signs and the ratio θ do not
    depend on it. Of cycles, w grows in time, with all else in periodic coordinates (Iooss 1988), from periodic boundary
    value problems on the mesh of the cycle (Kuznetsov, Govaerts, Doedel & Dhooge 2005); at a fold of an autonomous one, w
    is by how much the cycle is slower. Of a torus near the angles 2π/3 and π/2 d does not tell all (strong resonances).

    **Arguments:**

    - `field`, `x`: as they were given to `continuation`, to `fold_curve` and `hopf_curve`, or to `cycle_continuation`.
    - `point`: a special point, of `continuation` or of a `Curve`, real and of 400 numbers at most; or of
      `cycle_continuation`, by collocation.
    - `where`: as given there: one function, or a pair.
    - `step`: ε of the Euler map, for a point that is one of that map only (flip, Neimark–Sacker). A map g is the field
      `g(z) - z` with ε = 1.

    **Returns:** a `NormalForm`. **Raises:** `ValueError` if the state is complex or too large, `where` does not fit the point,
    `step` is missing, or a cycle was shot.

    ```python
    normal = ej.stability.normal_form(network, hopf, where=gain)
    assert normal.coefficients["l1"] < 0  # a stable cycle is born
    ```
    """
    check_kind((SpecialPoint, CurvePoint, CyclePoint), "a special point", point=point)
    dtype = real_dtype(point.state, "point.state")
    size = sum(np.size(a) for a in jax.tree.leaves(point.state))
    if size > DENSE:
        raise ValueError(f"`point` has a state of {size} numbers; `normal_form` takes {DENSE}.")
    check_positive(**given(step=step))
    two = isinstance(point, CurvePoint)
    if two != isinstance(where, tuple | list) or (two and len(where) != 2):
        told = "a pair of functions, as for `fold_curve`" if two else "one function"
        raise ValueError(f"`where` must be {told}, at a {point.type} point.")
    values = point.parameters if two else (point.parameter,)
    index = 0
    for pick, value in zip(where if two else (where,), values, strict=True):
        index, _ = find(field, pick)
        field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
    if isinstance(point, CyclePoint):
        line = Line(field, jnp.asarray(values[0], dtype), jnp.ones((), dtype), index)
        return NormalForm(point.type, *_of_cycle(line, x, point))
    line = Line(field, jnp.zeros((), dtype), jnp.ones((), dtype), index)
    place = Place.of(line, x, point.state, jnp.asarray(values[-1], dtype))
    if not two and point.flow == NOTHING:
        if step is None:
            raise ValueError(
                f"`step` is missing: a {point.type} point is one of the Euler map, and depends on it."
            )
        epsilon = float(jnp.asarray(step))
        found = of_map(place, point.euler, epsilon * point.frequency, epsilon)
    elif point.type not in _FORMS:
        raise ValueError(
            f"`point` must be of one of the types {', '.join(_FORMS)}: no normal form of a {point.type} point is computed here."
        )
    else:
        found = _FORMS[point.type](place, point)
    return NormalForm(point.type, *found)


def _fold(place, point):
    jacobian = place.jacobian()
    inner = at_fixed_parameter(jacobian)
    right, left = null_vectors(inner)
    g = normal_form_on(place, inner, Centre(right, left, ((0,),), _zero), 2)
    a, b = g[0, (2,)].real, float(left[0] @ jacobian[:, -1])
    side = "below" if a * b > 0 else "above"
    return {"a": a, "b": b}, f"two fixed points {side} the parameter, none beyond"


def _branch_point(place, point):
    # In state and parameter: the null space is a plane, and in it both branches lie.
    n = place.z.size
    jacobian = np.vstack([place.jacobian(), np.zeros(n + 1)])
    (v,), (w,) = null_vectors(jacobian[:n, :n])
    # Along the parameter, square to v.
    bordered = np.block([[jacobian[:n, :n], w[:, None]], [v[None], np.zeros((1, 1))]])
    k = np.linalg.solve(bordered, np.append(-jacobian[:n, n], 0))[:n]
    right = np.stack([np.append(v, 0), np.append(k, 1)])
    left = np.stack([np.append(w, -(w @ k)), np.eye(n + 1)[n]])
    centre = Centre(right, left, ((0,), (0,)), _zero)
    g = normal_form_on(place, jacobian, centre, 3)
    a, b, c, d = (g[0, nu].real for nu in ((2, 0), (1, 1), (0, 2), (3, 0)))
    bend = np.linalg.norm(place.bilinear(v, v)) * np.linalg.norm(w)
    size = max(float(np.linalg.norm(place.z)), 1)
    small = float(np.finfo(place.z.dtype).eps) ** (1 / 3) * (bend + abs(d) * size)
    if abs(a) <= small:
        verdict = f"{'super' if d < 0 else 'sub'}critical pitchfork"
    else:
        verdict = "transcritical"
    return {"a": a, "b": b, "c": c, "d": d}, verdict


def _hopf(place, point):
    omega = point.frequency
    l1 = pair(place, (omega,), False, 3)[0, (2, 1)].real / omega
    return {"l1": l1}, f"{'super' if l1 < 0 else 'sub'}critical Hopf"


def _bautin(place, point):
    omega = point.frequency
    g = pair(place, (omega,), False, 5)
    l1, l2 = g[0, (2, 1)].real / omega, g[0, (3, 2)].real / omega
    outer = "stable" if l2 < 0 else "unstable"
    return {"l1": l1, "l2": l2}, f"of two cycles the larger one is {outer}"


def _cusp(place, point):
    jacobian = at_fixed_parameter(place.jacobian())
    right, left = null_vectors(jacobian)
    c = normal_form_on(place, jacobian, Centre(right, left, ((0,),), _zero), 3)[0, (3,)].real
    return {"c": c}, f"of three fixed points the {'outer two' if c < 0 else 'middle one'} attract"


def jordan_chains(jacobian: np.ndarray) -> tuple[np.ndarray, ...]:
    """q₀, q₁, p₀, p₁ of a Bogdanov–Takens point: `A q₁ = q₀`, `A' p₀ = p₁`, `p₀ q₀ = p₁ q₁ = 1` and `p₀ q₁ = 0`."""
    n = len(jacobian)
    u, _, vh = np.linalg.svd(jacobian)
    q0, p1 = vh[-1], u[:, -1]
    # Each system lacks one rank, and the border takes its place.
    bordered = np.block([[jacobian, p1[:, None]], [q0[None], np.zeros((1, 1))]])
    q1 = np.linalg.solve(bordered, np.append(q0, 0))[:n]
    p1 = p1 / (p1 @ q1)
    p0 = np.linalg.solve(bordered.T, np.append(p1, 0))[:n]
    return q0, q1, p0 - (p0 @ q1) * p1, p1


def _bogdanov_takens(place, point):
    q0, q1, p0, p1 = jordan_chains(at_fixed_parameter(place.jacobian()))
    along, across = place.bilinear(q0, q0), place.bilinear(q0, q1)
    a, b = float(0.5 * p1 @ along), float(p0 @ along + p1 @ across)
    cycles = "stable" if a * b < 0 else "unstable"
    return {"a": a, "b": b}, f"the cycles born nearby are {cycles}"


def _zero_hopf(place, point):
    g = pair(place, (point.frequencies[-1] or point.frequency,), True, 2)
    b, c = g[0, (2, 0, 0)].real, g[0, (0, 1, 1)].real
    theta = g[1, (1, 1, 0)].real / b
    kind = "no torus" if b * c > 0 and theta > 0 else "perhaps a torus"
    return {"b": b, "c": c, "theta": theta}, f"bc {'>' if b * c > 0 else '<'} 0, {kind}"


def _hopf_hopf(place, point):
    g = pair(place, point.frequencies, False, 3)
    keys = ((0, (2, 1, 0, 0)), (0, (1, 0, 1, 1)), (2, (1, 1, 1, 0)), (2, (0, 0, 2, 1)))
    p11, p12, p21, p22 = (g[key].real for key in keys)
    kind = "simple" if p11 * p22 > 0 else "difficult"
    named = {"p11": p11, "p12": p12, "p21": p21, "p22": p22}
    return named, f"{kind} case, θ = {p12 / p22:.6g}, δ = {p21 / p11:.6g}"


def _of_cycle(line, x, point):
    if point.type not in ("fold", "period doubling", "torus"):
        raise ValueError(
            f"`point` must be of type fold, period doubling or torus: no normal form of a {point.type} of cycles is "
            "computed here. At the Hopf point where cycles end, `hopf_normal_form` has one."
        )
    if point.profile is None:
        raise ValueError(
            "`point` is of cycles that were shot: continue without `steps`, by collocation, for its normal form."
        )
    cycle = Cycle(line, x, point.state, point.profile)
    if point.type == "torus":
        return cycle_torus(cycle, point.frequency)
    return cycle_fold(cycle) if point.type == "fold" else cycle_doubling(cycle)


def of_map(place: Place, kind: str, angle: float, epsilon: float) -> tuple[dict[str, float], str]:
    """Of a fold, a flip, or a Neimark–Sacker point of multipliers `exp(±i angle)`: coefficient and verdict. A map is a flow
    whose products of modes decay at the rates `(λ - 1)/ε` of their multipliers λ."""
    jacobian = at_fixed_parameter(place.jacobian())
    if kind == "fold":
        g = normal_form_on(place, jacobian, Centre(*null_vectors(jacobian), ((0,),), _zero), 2)
        return {"a": epsilon * g[0, (2,)].real}, "fold"
    if kind == "flip":
        right, left = null_vectors(jacobian + 2 / epsilon * np.eye(len(jacobian)))
        rate = lambda label: ((-1.0) ** (label[0] % 2) - 1) / epsilon + 0j
        g = normal_form_on(place, jacobian, Centre(right, left, ((1,),), rate), 3)
        c = epsilon * g[0, (3,)].real
        return {"c": c}, f"{'super' if c > 0 else 'sub'}critical flip"
    rate = lambda label: (np.exp(1j * angle * label[0]) - 1) / epsilon
    (v,), (w,) = null_vectors(jacobian - rate((1,)) * np.eye(len(jacobian)))
    centre = Centre(np.stack([v, v.conj()]), np.stack([w, w.conj()]), ((1,), (-1,)), rate)
    g = normal_form_on(place, jacobian, centre, 3)
    d = (epsilon * g[0, (2, 1)] * np.exp(-1j * angle)).real
    return {"d": d}, f"{'super' if d < 0 else 'sub'}critical Neimark–Sacker"


def _zero(label):
    return 0j


_FORMS = {
    "fold": _fold,
    "branch point": _branch_point,
    "Hopf": _hopf,
    "Bogdanov–Takens": _bogdanov_takens,
    "cusp": _cusp,
    "Bautin": _bautin,
    "zero–Hopf": _zero_hopf,
    "Hopf–Hopf": _hopf_hopf,
}
