"""`switch_curve`: from a point of codimension two onto the other curve that passes it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._checks import check_kind
from ..analytic import tree_held
from ._bifurcation import NOTHING, SpecialPoint
from ._codim_two import CurvePoint
from ._defining import Critical, Defining, Vectors
from ._jacobian import real_dtype
from ._parameter import Line, check_pair, find, replaced

# Which curves meet there.
MEET = {
    "Bogdanov–Takens": ("fold", "Hopf"),
    "zero–Hopf": ("fold", "Hopf"),
    "Hopf–Hopf": ("Hopf",),
}


def switch_curve(
    field: Callable[..., Any], point: CurvePoint, x: PyTree = None, *, where: Any, to: str
) -> tuple[Any, SpecialPoint]:
    """The other curve through a point of codimension two, from which to continue: at a Bogdanov–Takens point that of folds or
    of Hopf points, at a zero–Hopf point likewise, at a Hopf–Hopf point that of the other pair.

    At a zero–Hopf and at a Hopf–Hopf point both curves are regular, and the point is one of either. At a Bogdanov–Takens
    point that of Hopf points begins: the Hopf point of a small frequency is solved for, from the Jordan chain.

    **Arguments:**

    - `field`, `x`, `where`: as they were given to `fold_curve` or `hopf_curve`.
    - `point`: one of the special points of that curve. `to`: "fold" or "Hopf".

    **Returns:** the field with both parameters set, and a special point: `fold_curve(*switch_curve(...), where=where,
    bounds=bounds)`, or `hopf_curve`, follows it.

    **Raises:** `ValueError` if no such curve passes the point, or no Hopf point is found near it.

    ```python
    where, bounds = (lambda f: f.a, lambda f: f.b), ((0.0, 2.0), (0.0, 5.0))
    other = lambda f, point: ej.stability.switch_curve(f, point, where=where, to="Hopf")
    follow = lambda f, point: ej.stability.hopf_curve(*other(f, point), where=where, bounds=bounds)
    ```
    """
    check_kind(CurvePoint, "a special point of a `Curve`", point=point)
    if to not in MEET.get(point.type, ()):
        allowed = " or ".join(map(repr, MEET.get(point.type, ()))) or "nothing"
        raise ValueError(f"`to` must be {allowed} at a {point.type} point, got {to!r}.")
    check_pair(where=where)
    real = real_dtype(point.state, "point.state")
    lines = []
    for pick, value in zip(where, point.parameters, strict=True):
        index, _ = find(field, pick)
        field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
        lines.append((index, value))
    state, parameters, frequency = point.state, point.parameters, 0.0
    if to == "Hopf" and point.type == "Bogdanov–Takens":
        found = _beside(field, point, x, lines, real)
        state, parameters, frequency = found
        for (index, _), value in zip(lines, parameters, strict=True):
            field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
    elif to == "Hopf":
        frequency = max(point.frequencies) if point.type == "zero–Hopf" else point.frequencies[1]
    special = SpecialPoint(
        parameter=parameters[0],
        interval=(parameters[0], parameters[0]),
        state=state,
        flow=to,
        euler=NOTHING,
        change=0,
        change_euler=0,
        status=point.status,
        value=1j * frequency,
        frequency=frequency,
        index=point.index,
    )
    return field, special


def _beside(field, point, x, lines, real):
    """A Hopf point of small frequency near a Bogdanov–Takens point: state, parameters, frequency."""
    z, unravel = ravel_pytree(jax.tree.map(jnp.asarray, point.state))
    (i, p1), (j, p2) = lines
    one = jnp.ones((), real)
    scales = [jnp.asarray(max(abs(p), 1e-3), real) for p in (p1, p2)]
    first = Line(field, jnp.asarray(p1, real), scales[0], i)
    second = Line(field, jnp.asarray(p2, real), scales[1], j)
    system = Defining(first, x, None, unravel, "Hopf")
    jacobian = np.asarray(_matrix(system, z))
    n = len(jacobian)
    u, _, vh = np.linalg.svd(jacobian)
    q0, w1 = vh[-1], u[:, -1]
    bordered = np.block([[jacobian, w1[:, None]], [q0[None], np.zeros((1, 1))]])
    q1 = np.linalg.solve(bordered, np.append(q0, 0))[:n]
    w0 = np.linalg.solve(bordered.T, np.append(w1, 0))[:n]
    for part in (0.1, 0.03, 0.01, 0.003):
        omega = part / np.linalg.norm(q1)
        # An eigenvector up to the square of the frequency, as is its adjoint.
        right, left = q0 + 1j * omega * q1, w1 - 1j * omega * w0
        borders = Vectors(jnp.asarray(right), jnp.asarray(left))
        start = jnp.concatenate([z, jnp.zeros(2, real)])
        flat, size = _at_frequency(system, second, start, omega * one, borders)
        moved = float(jnp.linalg.norm(flat[:n] - z) / jnp.maximum(jnp.linalg.norm(z), 1))
        if float(size) < float(jnp.finfo(real).eps) ** 0.5 and moved < 0.5:
            values = float(first.value(flat[n])), float(second.value(flat[n + 1]))
            return unravel(flat[:n]), values, float(omega)
    raise ValueError(
        "`switch_curve` found no Hopf point near `point`: it is not a Bogdanov–Takens point of this field, or a degenerate one."
    )


@eqx.filter_jit
def _matrix(system, z):
    return jax.jacfwd(lambda z: system.force(z, jnp.zeros((), z.dtype)))(z)


@eqx.filter_jit
def _at_frequency(system, second, start, omega, borders):
    """The Hopf point of a frequency, with both parameters unknown, and how far the last of Newton's steps went."""
    n = start.size - 2

    def at(flat):
        line = Line(second.at(flat[n + 1]), system.line.low, system.line.span, system.line.index)
        whole = Defining(line, system.x, None, system.unravel, "Hopf")
        return whole, Critical(flat[:n], flat[n], omega)

    def body(carry, _):
        flat, borders, _ = carry
        whole, point = at(flat)
        vectors = whole.vectors(point, borders)

        def equations(flat):
            whole, point = at(flat)
            rows = whole.equations(point, vectors, borders.left)
            # Of the second the frequency is a factor.
            return jnp.concatenate([rows.z, jnp.stack([rows.q, rows.extra / omega])])

        step = jnp.linalg.solve(jax.jacfwd(equations)(flat), equations(flat))
        size = jnp.linalg.norm(step) / jnp.maximum(jnp.linalg.norm(flat), 1)
        return (flat - step, tree_held(whole.directions(vectors)), size), None

    borders = system.directions(borders)
    carry = start, borders, jnp.zeros((), start.dtype)
    (flat, _, size), _ = jax.lax.scan(body, carry, None, length=12)
    return flat, size
