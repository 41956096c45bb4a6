"""`cycle_curve`: where a cycle is critical, followed through two parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._checks import check_count
from ._codim_two import CurvePoint, curve_table
from ._collocation import condensed, defect, expanded, linearised
from ._critical_curves import oriented
from ._cycle_codim_two import curve_events, curve_sample
from ._cycle_newton import across, ends_of
from ._cycle_points import CyclePoint
from ._cycle_problems import TwoParameters
from ._forced import Forced, flat_force
from ._jacobian import real_dtype
from ._parameter import Line, check_pair, replaced
from ._path import (
    AbstractPath,
    PseudoArclength,
    first_point,
    follow_path,
    product_at,
)
from ._profile import Closing, Profile, extent, gauss, stages

CRITICAL_CYCLES = ("fold", "period doubling", "torus")


class CycleCurve(eqx.Module):
    """A curve of critical cycles, as `cycle_curve` returns it. It prints as a table of its points of codimension two.

    - `parameters (m, 2)`, `states` (leading axis m), `periods (m,)`: its cycles, in order, a point of each.
    - `frequencies (m,)`: of what is born beside the cycle: half that of the cycle at a period doubling, 0 at a fold.
    - `residuals (m,)`: what is left of the equations, relative to `max(‖z‖, 1)`. `ended`: in words, why the curve ends.
    - `tests (m, 2 or 5)`: what changes sign, with critical solutions of mean square 1 and left null vectors wᵀ of length 1:
      at folds at a 1:1 resonance (what wᵀ sees of the critical solution) and at a cusp (what it sees of the quadratic
      terms); at period doublings at a 1:2 resonance and at a generalised period doubling, alike with the cubic terms; at
      tori, with multipliers exp(±iθ), at a Chenciner point (d) and at resonances 1:1 (θ), 1:2 (π - θ), 1:3 (θ - 2π/3) and
      1:4 (θ - π/2). `special_points`: `CurvePoint`s.
    """

    parameters: Float[Array, "m 2"]
    states: PyTree[Array]
    periods: Float[Array, " m"]
    frequencies: Float[Array, " m"]
    residuals: Float[Array, " m"]
    ended: str = eqx.field(static=True)
    tests: Float[Array, "m events"] | None = None  # as files of version 0.1 have it
    special_points: tuple[CurvePoint, ...] = ()

    def __str__(self) -> str:
        (a, b), (c, d) = (map(float, self.parameters[i]) for i in (0, -1))
        return (
            f"{len(self.periods)} cycles from ({a:.6g}, {b:.6g}) to ({c:.6g}, {d:.6g}); {self.ended}; largest residual "
            f"{float(jnp.max(self.residuals)):.1e}\n{curve_table(self.special_points)}"
        )


# Why fully extended (Doedel, Keller & Kernevez 1991): the cycle and its critical vector together are a cycle again, of a
# field of twice or three times the size, and every part of collocation serves it as it is.
class Extended(TwoParameters):
    """Critical cycles: the profile of (z, v), or (z, Re v, Im v), and (q₁, extra), along the second parameter.

    `v̇ = J v + σ F` and v periodic at a fold, `v̇ = J v` and v(T) = -v(0) at a period doubling, `v̇ = J v - iω v` and v
    periodic at a torus."""

    line: Line
    first: Line
    x: PyTree
    tol: Float[Array, ""]
    unravel: Callable[[Array], PyTree] = eqx.field(static=True)
    kind: str = eqx.field(static=True)
    size: int = eqx.field(static=True)
    driven: bool = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def plain(self, z, q1, q2):
        """The force on z alone, which of a driven field ends with its phase."""
        field = replaced(self.line.at(q2), self.first.index, self.first.value(q1))
        return flat_force(field, self.unravel, self.x)(z)

    def force(self, Z, s):
        flow = lambda z: self.plain(z, s[0], s[-1])
        z, *vectors = jnp.split(Z, Z.size // self.size)
        now = flow(z)
        moved = [jax.jvp(flow, (z,), (v,))[1] for v in vectors]
        if self.kind == "fold":
            moved = [moved[0] + s[1] * now]
        elif self.kind == "torus":
            moved = [moved[0] + s[1] * vectors[1], moved[1] - s[1] * vectors[0]]
        return jnp.concatenate([now, *moved])

    def cycle(self, profile):
        """The cycle without its vector."""
        n = self.size
        closing = Closing(*(a[:n] for a in profile.closing)) if self.driven else None
        return profile._replace(
            nodes=profile.nodes[:, :n], slopes=profile.slopes[:, :, :n], closing=closing
        )

    def rows(self, base):
        """The phase of the cycle, the length of its vector, and that vector's phase."""
        (profile, rest), q = base
        n, now = self.size, ends_of(profile, jnp.append(rest, q))
        cycle = self.cycle(profile)
        force = lambda z, s: self.plain(z, s[0], s[1])
        normal = across(force, cycle, jnp.stack([rest[0], q]))
        zero = jnp.zeros_like(now)
        vector = now[n : profile.nodes.shape[1]]
        length = zero.at[n : profile.nodes.shape[1]].set(vector)
        found = [(zero.at[:n].set(normal), now), (length / (vector @ vector), now)]
        if self.kind == "fold":
            found.append((zero.at[n : 2 * n].set(normal), zero))
        if self.kind == "torus":
            turned = jnp.concatenate([-vector[n:], vector[:n]])
            found.append((zero.at[n : 3 * n].set(turned / (vector @ vector)), now))
        return found

    def inner(self, base):
        n = self.size
        inner = product_at(base[0].nodes[0, :n])
        ends = lambda pair: (pair[0][0].nodes[0, :n], pair[1])
        # Where a torus ends parameters stand still, and only the angle goes on: measured relative to its first.
        turn = jnp.exp(base[0].log_period)
        turn = turn / jnp.sqrt(1 + (turn * base[1][-1]) ** 2) if self.kind == "torus" else 0.0
        return lambda a, b: (
            inner(ends(a), ends(b))
            + a[0][0].log_period * b[0][0].log_period
            + a[0][1][0] * b[0][1][0]
            + turn**2 * a[0][1][-1] * b[0][1][-1]
        )

    def settled(self, point):
        return point

    def findings(self, state, q, base):
        (profile, rest), n = state, self.size
        size = jnp.maximum(jnp.linalg.norm(profile.nodes[0, :n]), 1)
        residual = defect(self.force, profile, jnp.append(rest, q)) / size
        return residual, jnp.asarray(True), None


@eqx.filter_jit
def _critical(problem, profile, q1, q2, angle):
    """The profile of a critical cycle with its vector, and what else is unknown but the first parameter."""
    n, kind = problem.size, problem.kind
    force = lambda z, s: problem.plain(z, s[0], s[1])
    s = jnp.stack([q1, q2])
    system, none = linearised(force, profile, s), jnp.zeros((4,), q1.dtype)
    signs = jnp.ones(n, q1.dtype)
    plus, minus = (condensed(system, Closing(sign * signs, 0 * signs)) for sign in (1, -1))
    of = lambda dz: (dz.nodes, dz.slopes)
    if kind == "fold":
        units, phase = jnp.append(extent(profile), 1), jnp.append(across(force, profile, s), 0)
        matrix = jnp.concatenate([plus.first, plus.columns[:, :1]], axis=1)
        matrix = jnp.concatenate([matrix / units[:n, None], phase[None]]) * units[None]
        vector = jnp.linalg.svd(matrix)[2][-1] * units
        nodes, slopes = of(
            expanded(profile, system, plus.rows, vector[:n], none.at[0].set(vector[n]))
        )
        return _joined(profile, [(nodes, slopes + vector[n] * profile.slopes)]), vector[n:]
    if kind == "period doubling":
        units = extent(profile)
        vector = jnp.linalg.svd(minus.first * units[None] / units[:, None])[2][-1] * units
        twisted = Closing(-signs, 0 * signs)
        pair = of(expanded(profile._replace(closing=twisted), system, minus.rows, vector, none))
        return _joined(profile, [pair], -1), none[:0]
    begin, end = 0.5 * (plus.first + minus.first), 0.5 * (plus.first - minus.first)
    units, turn = extent(profile), lambda angle: jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    around = turn(angle)
    matrix = jax.lax.complex(begin + around.real * end, around.imag * end)
    matrix = jax.lax.complex(
        *(part * units[None] / units[:, None] for part in (matrix.real, matrix.imag))
    )
    vector = jnp.linalg.svd(matrix)[2][-1].conj()
    vector = jax.lax.complex(vector.real * units, vector.imag * units)
    last = around * vector
    parts = [
        of(expanded(profile, system, plus.rows, a, none, b))
        for a, b in ((vector.real, last.real), (vector.imag, last.imag))
    ]
    # In a frame that turns with it: there it is periodic.
    rate = angle / profile.period
    nodes, slopes = (jax.lax.complex(a, b) for a, b in zip(*parts, strict=True))
    starts = jnp.cumsum(profile.widths) - profile.widths
    points = jnp.asarray(gauss(profile.slopes.shape[1])[0], q1.dtype)
    inner = starts[:, None] + profile.widths[:, None] * points[None]
    real, imaginary = (stages(profile._replace(nodes=a, slopes=b)) for a, b in parts)
    slopes = slopes + jax.lax.complex(rate * imaginary, -rate * real)
    nodes = nodes * turn(-angle * starts)[:, None]
    slopes = slopes * turn(-angle * inner)[:, :, None]
    pairs = [(nodes.real, slopes.real), (nodes.imag, slopes.imag)]
    return _joined(profile, pairs), rate[None]


def _joined(profile, vectors, sign=1) -> Profile:
    nodes = jnp.concatenate([profile.nodes, *(a for a, _ in vectors)], axis=1)
    slopes = jnp.concatenate([profile.slopes, *(b for _, b in vectors)], axis=2)
    # Of length 1, where it begins.
    n = profile.nodes.shape[1]
    size = jnp.linalg.norm(nodes[0, n:])
    nodes, slopes = nodes.at[:, n:].divide(size), slopes.at[:, :, n:].divide(size)
    closing = profile.closing
    if closing is not None or sign < 0:
        own = jnp.ones(n, size.dtype)
        jump = 0 * own if closing is None else closing.jump
        rest = jnp.full(nodes.shape[1] - n, sign, size.dtype)
        closing = Closing(jnp.concatenate([own, rest]), jnp.concatenate([jump, 0 * rest]))
    return profile._replace(nodes=nodes, slopes=slopes, closing=closing)


def cycle_curve(
    field: Callable[..., Any],
    point: CyclePoint,
    x: PyTree = None,
    *,
    where: Any,
    bounds: Any,
    backwards: bool = False,
    path: AbstractPath = PseudoArclength(),
    max_points: int = 400,
    max_steps: int = 12,
) -> CycleCurve:
    """Follow a fold of cycles, a period doubling or a torus (Neimark–Sacker) point through two parameters, to cusps,
    generalised period doublings and Chenciner points, where what is born changes its side or its stability, and to strong
    resonances, at which critical multipliers are k-th roots of one.

    The cycle and its critical vector are collocated together, as AUTO does (Doedel, Keller & Kernevez 1991), and continued
    by pseudo-arclength in (state, ln period, both parameters, the angle of a torus), on the mesh of `point`. Points of
    codimension two are roots, on the curve, of the coefficients of `normal_form` (Kuznetsov, Govaerts, Doedel & Dhooge 2005)
    and of the angle: to rounding. Resonances 1:1 and 1:2 end a curve of tori; there its equations are singular, and the
    point is interpolated. Other critical multipliers are not looked for.

    **Arguments:**

    - `field`, `x`: as for `cycle_continuation`, autonomous or `Forced`. `point`: one of the special points of a branch by
      collocation, of `type` "fold", "period doubling" or "torus".
    - `where`: a pair of functions: the parameter in which `point` was found, and a second one. `bounds`: a pair of pairs
      `(low, high)`; the curve ends where it leaves them.
    - `backwards`: whether it sets out down the second parameter. `path`, `max_points`, `max_steps`: as for `continuation`.

    **Returns:** a `CycleCurve`. **Raises:** `ValueError` if `point` is of another kind, was shot, or is of a driven field where
    `field` is none, a parameter is no scalar float leaf, bounds do not hold it, or no curve begins there.

    ```python
    where, bounds = (lambda f: f.growth, lambda f: f.shear), ((0.5, 2.0), (-1.0, 1.0))
    follow = lambda f, point: ej.stability.cycle_curve(f, point, where=where, bounds=bounds)
    ```
    """
    if point.type not in CRITICAL_CYCLES:
        raise ValueError(
            f'`point` must be of type {", ".join(map(repr, CRITICAL_CYCLES))}, got "{point.type}".'
        )
    driven = isinstance(field, Forced)
    if point.profile is None or driven != (point.profile.closing is not None):
        raise ValueError(
            "`point` must be of a branch of cycles of the same field by collocation, without `steps`: `Forced` if and only "
            "if that was."
        )
    check_pair(where=where, bounds=bounds)
    check_count(max_points=max_points, max_steps=max_steps)
    real = real_dtype(point.state, "point.state")
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, point.state))
    first, q1, second, q2 = Line.pair(field, where, bounds, point.parameter, real)
    tol = jnp.asarray(float(jnp.finfo(real).eps) ** 0.75, real)
    n = flat.size + driven
    problem = Extended(
        line=second,
        first=first,
        x=x,
        tol=tol,
        unravel=unravel,
        kind=point.type,
        size=n,
        driven=driven,
        max_steps=max_steps,
    )
    angle = jnp.asarray(point.frequency * point.period, real)
    profile, extra = _critical(problem, jax.tree.map(jnp.asarray, point.profile), q1, q2, angle)
    start = first_point(problem, (profile, jnp.append(q1, extra)), q2, backwards)
    if not start.converged:
        raise ValueError(
            f"No curve begins at `point`: Newton's method ended at residual {float(start.residual):.1e}. Pass the special "
            "point as `cycle_continuation` returned it, and the same field."
        )

    low, high = (first.number(bound) for bound in (0.0, 1.0))

    def examine(leg):
        found, met = curve_events(problem, leg)
        inside = low <= leg.last.state[0][0] <= high
        return found, met or ("" if inside else "left the bounds")

    stacked, samples, special, ended = follow_path(
        problem,
        path,
        start,
        sample=lambda point: curve_sample(problem, point),
        examine=examine,
        stop=lambda point, seen: False,
        max_points=max_points,
        tol=None,
    )
    (profile, rest), q = stacked.y
    periods = jnp.exp(profile.log_period)
    told = {
        "fold": lambda: 0 * q,
        "period doubling": lambda: jnp.pi / periods,
        "torus": lambda: jnp.abs(rest[:, 1]),
    }
    return CycleCurve(
        parameters=jnp.stack([first.value(rest[:, 0]), second.value(q)], axis=1),
        states=jax.vmap(unravel)(profile.nodes[:, 0, : flat.size]),
        periods=periods,
        frequencies=told[point.type](),
        residuals=stacked.residual,
        ended=ended,
        tests=oriented(samples),
        special_points=special,
    )
