"""`homoclinic_curve`: loops at a saddle in two parameters, from the Bogdanov–Takens point where they are born."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Complex, Float, PyTree

from .._checks import check_count, check_kind, check_positive
from ._codim_two import CurvePoint
from ._collocation import defect
from ._cycle_newton import across, ends_of
from ._cycle_problems import TwoParameters, remeshed
from ._host import on_host
from ._jacobian import real_dtype
from ._normal_forms import jordan_chains
from ._parameter import Line, check_pair, find, replaced
from ._path import (
    AbstractPath,
    PseudoArclength,
    first_point,
    follow_path,
    product_at,
)
from ._profile import Profile, curve_on, equidistributed, fastest, rolled

# Periods, in units of the slowest rate at the saddle: the loop is missed by about exp(-30).
LENGTH = 30.0


class HomoclinicCurve(eqx.Module):
    """A curve of homoclinic orbits, as `homoclinic_curve` returns it.

    - `parameters (m, 2)`, in order; `saddles`: the fixed points, leading axis m; `values (m, n)`: their eigenvalues, by
      falling real part.
    - `saddle_quantities (m,)`: σ, the sum of the real parts of the two leading eigenvalues, right and left of the axis.
      Negative: the cycle that is born of the loop is stable, where one mode is unstable. Zero: a neutral saddle.
    - `peaks`: of each orbit the state where it is fastest. `amplitudes (m,)`: how far it goes from the saddle.
    - `residuals (m,)`: what is left of the equations, relative to `max(‖z‖, 1)`. `ended`: in words, why the curve ends.
    """

    parameters: Float[Array, "m 2"]
    saddles: PyTree[Array]
    values: Complex[Array, "m n"]
    saddle_quantities: Float[Array, " m"]
    peaks: PyTree[Array]
    amplitudes: Float[Array, " m"]
    residuals: Float[Array, " m"]
    ended: str = eqx.field(static=True)

    def __str__(self) -> str:
        (a, b), (c, d) = (map(float, self.parameters[i]) for i in (0, -1))
        return (
            f"{len(self.amplitudes)} homoclinic orbits from ({a:.6g}, {b:.6g}) to ({c:.6g}, {d:.6g}); {self.ended}; largest "
            f"residual {float(jnp.max(self.residuals)):.1e}"
        )


class Loop(NamedTuple):
    """What is told of a loop: its saddle with eigenvalues, its fastest state, and how far it goes."""

    saddle: Array
    values: Array
    peak: Array
    amplitude: Array


# Why a cycle: one of period T differs from the loop, and its parameter from that of the loop, by exp(-λT) with λ the slowest
# rate at the saddle (Doedel & Kernévez 1986; Beyn 1990), and all of collocation serves it as it is. T follows λ along the curve,
# so that this stays at the level of rounding; projections on the eigenspaces, which bound T otherwise, are not needed.
class Long(TwoParameters):
    """Cycles of a period `LENGTH / λ`: the profile and q₁, along the second parameter."""

    line: Line
    first: Line
    x: PyTree
    tol: Float[Array, ""]
    unravel: Callable[[Array], PyTree] = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def force(self, z, s):
        field = replaced(self.line.at(s[1]), self.first.index, self.first.value(s[0]))
        return ravel_pytree(field(0.0, self.unravel(z), self.x))[0]

    def saddle(self, profile, s):
        """The fixed point near which the cycle is slowest, and its eigenvalues by falling real part."""
        force = lambda z: self.force(z, s)
        speeds = jnp.linalg.norm(jax.vmap(force)(profile.nodes), axis=1)
        begin = profile.nodes[jnp.argmin(speeds)]
        step = lambda _, z: z - jnp.linalg.solve(jax.jacfwd(force)(z), force(z))
        z = jax.lax.fori_loop(0, 5, step, begin)
        shape = jax.ShapeDtypeStruct(z.shape, np.result_type(z.dtype, np.complex64))
        return z, on_host(_eigenvalues, shape, jax.jacfwd(force)(z))

    def rows(self, base):
        (profile, rest), q2 = base
        s = jnp.append(rest, q2)
        now, n = ends_of(profile, s), profile.nodes.shape[1]
        _, values = self.saddle(profile, s)
        long = jnp.log(LENGTH / jnp.min(jnp.abs(values.real)))
        # In small steps: the loop is stretched all along before it is known where it stays.
        long = jnp.clip(long, now[n] - 0.1, now[n] + 0.1)
        zero = jnp.zeros_like(now)
        phase = zero.at[:n].set(across(self.force, profile, s))
        return [(phase, now), (zero.at[n].set(1), zero.at[n].set(long))]

    def inner(self, base):
        # The period is not one of the unknowns.
        inner = product_at(base[0].nodes[0])
        ends = lambda pair: (pair[0][0].nodes[0], pair[1])
        return lambda a, b: inner(ends(a), ends(b)) + a[0][1] @ b[0][1]

    def findings(self, state, q, base):
        profile, s = state[0], jnp.append(state[1], q)
        saddle, values = self.saddle(profile, s)
        size = jnp.maximum(jnp.linalg.norm(profile.nodes[0]), 1)
        amplitude = jnp.max(jnp.linalg.norm(profile.nodes - saddle[None], axis=1))
        flow = self.force(profile.nodes[0], s)
        # A fixed point is a cycle of any period, too; and one that is all the way round no saddle is no loop.
        gap = jnp.min(jnp.linalg.norm(profile.nodes - saddle[None], axis=1))
        proper = (values.real[0] > 0) & (values.real[-1] < 0) & (gap < 1e-2 * amplitude)
        # And one whose period lags behind is not yet the loop.
        proper &= jnp.min(jnp.abs(values.real)) * profile.period > 0.6 * LENGTH
        before = self.force(base[0].nodes[0], jnp.append(base[1], q))
        proper &= jnp.vdot(flow, before) > 0
        residual = defect(self.force, profile, s) / size
        return residual, proper, Loop(saddle, values, profile.nodes[0], amplitude)

    def settled(self, point):
        return _on_better_mesh(self, point)


def _eigenvalues(matrix):
    if not np.all(np.isfinite(matrix)):
        return np.full(len(matrix), np.nan, complex)
    values: Any = np.linalg.eigvals(matrix).astype(complex)
    return values[np.argsort(-values.real, kind="stable")]


@eqx.filter_jit
def _on_better_mesh(problem, point):
    """A point and its tangent on a mesh that fits better."""
    ((profile, rest), q2), ((ahead, *slopes), slope) = point.y, point.tangent
    profile, ahead = remeshed(problem.force, profile, jnp.append(rest, q2), ahead)
    ahead = (ahead, *slopes), slope
    size = jnp.sqrt(problem.inner((profile, rest))(ahead, ahead))
    return point._replace(y=((profile, rest), q2), tangent=jax.tree.map(lambda a: a / size, ahead))


def homoclinic_curve(
    field: Callable[..., Any],
    point: CurvePoint,
    x: PyTree = None,
    *,
    where: Any,
    bounds: Any,
    size: float = 0.01,
    intervals: int = 80,
    path: AbstractPath = PseudoArclength(),
    max_points: int = 400,
    max_steps: int = 12,
) -> HomoclinicCurve:
    """Follow the loop at a saddle that is born in a Bogdanov–Takens point through two parameters.

    The first one comes from the normal form there, `ẇ₀ = w₁, ẇ₁ = β₁ + β₂w₁ + a w₀² + b w₀w₁`, whose loops are
    `w₀ = ε²(2 - 6 sech²(εt))/a` at `β₁ = -4ε⁴/a` and `β₂ = 10bε²/(7a)`, with the field's parameters as functions of β to
    second order (Beyn 1994; Al-Hdaibat, Govaerts, Kuznetsov & Meijer 2016). All are cycles of a period of 30 in units of the
    slowest rate at the saddle, by collocation: they differ from the loops by e⁻³⁰ (Doedel & Kernévez 1986).

    **Arguments:**

    - `field`, `x`: as they were given to `fold_curve` or `hopf_curve`; the field is autonomous.
    - `point`: a special point of such a curve, of `type` "Bogdanov–Takens".
    - `where`: a pair of functions, as there. `bounds`: a pair of pairs `(low, high)`; the curve ends where it leaves them.
    - `size`: how far from the point to begin, in parts of the bounds; where that fails, nearer to it.
    - `intervals`: of the mesh, which adapts. `path`, `max_points`, `max_steps`: as for `continuation`.

    **Returns:** a `HomoclinicCurve`, which begins near the point and leads away from it. Where the saddle meets a node, its
    slowest rate vanishes, periods grow without end, and the curve stops.

    **Raises:** `ValueError` if `point` is of another type, a parameter is no scalar float leaf, bounds do not hold it, the
    point is degenerate (ab = 0, or the parameters do not unfold it), or no loop is found near it.

    ```python
    where, bounds = (lambda f: f.a, lambda f: f.b), ((0.0, 2.0), (0.0, 5.0))
    loops = lambda f, point: ej.stability.homoclinic_curve(f, point, where=where, bounds=bounds)
    ```
    """
    check_kind(CurvePoint, "a special point of a `Curve`", point=point)
    if point.type != "Bogdanov–Takens":
        raise ValueError(
            f'`point` must be of type "Bogdanov–Takens", got "{point.type}": loops are started there. Where a branch of cycles '
            "goes to one, `homoclinic` finds it."
        )
    check_pair(where=where, bounds=bounds)
    check_positive(size=size)
    check_count(intervals=intervals, max_points=max_points, max_steps=max_steps)
    real = real_dtype(point.state, "point.state")
    for pick, value in zip(where, point.parameters, strict=True):
        index, _ = find(field, pick)
        field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, point.state))
    first, q1, second, q2 = Line.pair(field, where, bounds, point.parameters[0], real)
    tol = jnp.asarray(float(jnp.finfo(real).eps) ** 0.75, real)
    problem = Long(line=second, first=first, x=x, tol=tol, unravel=unravel, max_steps=max_steps)
    near = _Unfolding.of(problem, flat, jnp.stack([q1, q2]))
    start: Any = None
    for part in (1, 0.3, 0.1, 0.03, 0.01):
        profile, s = near.loop(problem, part * size, intervals + intervals % 2)
        if not np.all((s >= 0) & (s <= 1)):
            continue
        first_q, second_q = jnp.asarray(s, real)
        start = first_point(problem, (profile, first_q[None]), second_q, bool(s[1] < float(q2)))
        if start.converged:
            break
    if start is None or not start.converged:
        raise ValueError(
            "No loop was found near `point`. Either (a) begin nearer to it, by a smaller `size`; (b) widen the `bounds`, if "
            "it lies at their edge; or (c) allow more `max_steps` or `intervals`."
        )

    def examine(leg):
        return [], "" if 0 <= float(leg.last) <= 1 else "left the bounds"

    stacked, _, _, ended = follow_path(
        problem,
        path,
        start,
        sample=lambda point: point.y[0][1][0],
        examine=examine,
        stop=lambda point, seen: False,
        max_points=max_points,
        tol=None,
    )
    (_, along), q = stacked.y
    found = stacked.found
    return HomoclinicCurve(
        parameters=jnp.stack([first.value(along[:, 0]), second.value(q)], axis=1),
        saddles=jax.vmap(unravel)(found.saddle),
        values=found.values,
        saddle_quantities=_leading(found.values.real),
        peaks=jax.vmap(unravel)(found.peak),
        amplitudes=found.amplitude,
        residuals=stacked.residual,
        ended=ended,
    )


def _leading(real):
    right = jnp.min(jnp.where(real > 0, real, jnp.inf), axis=1)
    return right + jnp.max(jnp.where(real < 0, real, -jnp.inf), axis=1)


class _Unfolding(NamedTuple):
    """A Bogdanov–Takens point at `y`, state and parameters together: its normal form, and what each of its coordinates is."""

    y: np.ndarray
    a: float
    b: float
    w0: np.ndarray
    w1: np.ndarray
    beta1: np.ndarray
    beta2: np.ndarray
    curved: np.ndarray  # along β₂²/2
    bent: np.ndarray  # along w₀²/2
    sheared: np.ndarray  # along w₀w₁

    @classmethod
    def of(cls, problem: Long, z: Array, s: Array) -> "_Unfolding":
        n, y = z.size, jnp.concatenate([z, s])
        J = np.asarray(_joint(problem, y), float)
        second = lambda u, v: np.asarray(_curved(problem, y, *map(jnp.asarray, (u, v))), float)
        q0, q1, p0, p1 = jordan_chains(J[:, :n])
        w0, w1 = (np.append(q, np.zeros(2)) for q in (q0, q1))
        a, b = 0.5 * p1 @ second(w0, w0), p0 @ second(w0, w0) + p1 @ second(w0, w1)
        # Where F stays 0 to first order there are two directions: w₀, and with this share of it β₂.
        null = np.linalg.svd(J)[2][-2:]
        ahead = null.T @ np.array([-null[1] @ w0, null[0] @ w0])
        with np.errstate(all="ignore"):
            ahead = ahead - p1 @ second(w0, ahead) / (2 * a) * w0
            pace = p1 @ second(w1, ahead) + p0 @ second(w0, ahead)
            beta2 = ahead / pace
        small = np.finfo(z.dtype).eps ** 0.5 * np.linalg.norm(second(w0, w0))
        if not np.all(np.isfinite(beta2)) or min(abs(a), abs(b)) <= small:
            raise ValueError(
                f"`point` is degenerate: in its normal form a = {a:.3g} and b = {b:.3g}, or the parameters do not unfold it."
            )
        solve = lambda right: np.linalg.lstsq(J, right, rcond=None)[0]
        inner = lambda right: np.append(np.linalg.lstsq(J[:, :n], right, rcond=1e-6)[0], [0, 0])
        bent = inner(2 * a * q1 - second(w0, w0))
        sheared = inner(b * q1 - second(w0, w1) + bent[:n])
        parts = (
            float(a),
            float(b),
            w0,
            w1,
            solve(q1),
            beta2,
            solve(-second(beta2, beta2)),
            bent,
            sheared,
        )
        return cls(np.asarray(y, float), *parts)

    def loop(self, problem: Long, size: float, count: int) -> tuple[Profile, np.ndarray]:
        """The loop at a distance in the parameters, as a long cycle; and the parameters."""
        a, b = self.a, self.b
        square = 0.7 * size * abs(a / b) / np.linalg.norm(self.beta2[-2:])
        e, beta2 = np.sqrt(square), 10 / 7 * b / a * square
        middle = self.y - 4 * square**2 / a * self.beta1
        middle = middle + beta2 * self.beta2 + 0.5 * beta2**2 * self.curved
        period = LENGTH / (2 * e)

        def curve(t):
            t = e * period * (np.asarray(t)[:, None] - 0.5)
            bump = 1 / np.cosh(t) ** 2
            w0, w1 = square / a * (2 - 6 * bump), square / a * 12 * e * bump * np.tanh(t)
            away = w0 * self.w0 + w1 * self.w1
            away = away + 0.5 * w0**2 * self.bent + w0 * w1 * self.sheared
            return (middle + away)[:, :-2]

        fine = np.linspace(0.0, 1.0, 4001)
        states = curve(fine)
        moved = np.linalg.norm(np.diff(states / np.ptp(states), axis=0), axis=1)
        widths = equidistributed(np.diff(fine), 1 + moved * (fine.size - 1), count)
        profile = curve_on(curve, widths, np.log(period), 6)
        profile = rolled(profile, fastest(profile))
        dtype = problem.tol.dtype
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), profile), middle[-2:]


def _split(problem):
    return lambda y: problem.force(y[:-2], y[-2:])


@eqx.filter_jit
def _joint(problem, y):
    return jax.jacfwd(_split(problem))(y)


@eqx.filter_jit
def _curved(problem, y, u, v):
    along = lambda y: jax.jvp(_split(problem), (y,), (u,))[1]
    return jax.jvp(along, (y,), (v,))[1]
