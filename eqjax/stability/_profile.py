"""Closed curves as piecewise polynomials, and the meshes that fit them.

What is told of a curve alone runs by JAX or, on arrays of NumPy, on the host, where it is no program to be compiled.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def numpy_of(a: Any) -> Any:
    """NumPy for its own arrays, JAX' for all others."""
    return np if isinstance(a, np.ndarray) else jnp


class Closing(NamedTuple):
    """How the end of a turn follows from its beginning where it is not the same: `signs z₀ + jump`."""

    signs: Float[Array, " n"]
    jump: Float[Array, " n"]


class Profile(NamedTuple):
    """A closed curve: N intervals of `widths (N,)`, in parts of a period, that begin at `nodes (N, n)` and on which
    dz/dt takes the values `slopes (N, m, n)` at the m Gauss points. It closes as it is, or by `closing`. A tangent to such
    curves has the same structure."""

    widths: Float[Array, " N"]
    nodes: Float[Array, "N n"]
    slopes: Float[Array, "N m n"]
    log_period: Float[Array, ""]
    closing: Closing | None = None

    @property
    def period(self) -> Any:
        return self.xp.exp(self.log_period)

    @property
    def xp(self) -> Any:
        """NumPy, or JAX' in its place."""
        return numpy_of(self.nodes)

    @property
    def ends(self) -> Any:
        """Where each interval ends, (N, n)."""
        after = self.later(self.nodes)
        if self.closing is None:
            return after
        return self.xp.concatenate([after[:-1], after[-1:] + self.closing.jump[None]])

    def later(self, rates: Any) -> Any:
        """Of rates of change (N, n) on the intervals those on the next one."""
        after = self.xp.roll(rates, -1, 0)
        if self.closing is None:
            return after
        return self.xp.concatenate([after[:-1], after[-1:] * self.closing.signs[None]])


@functools.cache
def gauss(m: int):
    """Of the Gauss points c on [0, 1]: c, `A = ∫₀^c ℓ`, `b = ∫₀¹ ℓ`, the coefficients of the Lagrange polynomials ℓ."""
    c = 0.5 * (1 + np.polynomial.legendre.leggauss(m)[0])
    powers = np.arange(m)
    coefficients = np.linalg.inv(c[:, None] ** powers)  # (power, point)
    integral = lambda t: (np.asarray(t)[..., None] ** (powers + 1) / (powers + 1)) @ coefficients
    return c, integral(c), integral(1.0), coefficients


def at(profile: Profile, times: Any) -> Any:
    """The curve at times in parts of its period, before it closes by more than repeating itself."""
    xp, times = profile.xp, times % 1
    m = profile.slopes.shape[1]
    coefficients = xp.asarray(gauss(m)[3], profile.nodes.dtype)
    starts = xp.cumsum(profile.widths) - profile.widths
    i = xp.sum(starts[None] <= times.ravel()[:, None], axis=1).reshape(times.shape)
    i = xp.clip(i - 1, 0, starts.size - 1)
    part = (times - starts[i]) / profile.widths[i]
    weights = xp.stack([part**p / p for p in range(1, m + 1)], axis=-1) @ coefficients
    stretch = profile.period * profile.widths[i]
    return profile.nodes[i] + stretch[..., None] * xp.einsum(
        "...m,...mn->...n", weights, profile.slopes[i]
    )


def stages(profile: Profile) -> Array:
    """The curve at its Gauss points, (N, m, n)."""
    A = jnp.asarray(gauss(profile.slopes.shape[1])[1], profile.nodes.dtype)
    stretch = profile.period * profile.widths
    moved = jnp.einsum("ij,Njn->Nin", A, profile.slopes)
    return profile.nodes[:, None] + stretch[:, None, None] * moved


def extent(profile: Profile) -> Any:
    """The scale of each component: its range on the curve; where it hardly moves, part of the largest."""
    xp = profile.xp
    wide = xp.ptp(profile.nodes, axis=0)
    floor = 1e-6 * xp.max(xp.abs(profile.nodes))
    return xp.maximum(wide, xp.maximum(floor, xp.finfo(wide.dtype).tiny))


def curve_on(curve: Callable[[Any], Any], widths: Any, log_period: Any, m: int) -> Profile:
    """The profile that agrees with a curve, given at times in parts of its period, at the nodes and Gauss points."""
    xp = numpy_of(widths)
    c, A, _, _ = gauss(m)
    starts = xp.cumsum(widths) - widths
    parts = xp.asarray(np.append(0, c), widths.dtype)
    states = curve((starts[:, None] + widths[:, None] * parts[None]).ravel())
    states = states.reshape(*widths.shape, m + 1, -1)
    nodes, inverse = states[:, 0], xp.asarray(np.linalg.inv(A), widths.dtype)
    # Not by the force there: on a stiff field that of a curve which is a little off is far off.
    slopes = xp.einsum("ij,Njn->Nin", inverse, states[:, 1:] - nodes[:, None])
    return Profile(widths, nodes, slopes / (xp.exp(log_period) * widths)[:, None, None], log_period)


def better_mesh(profile: Profile) -> Any:
    """Widths of as many intervals, half the way (in logarithms) to where their errors are equal."""
    density = profile.xp.sqrt(monitor(profile) / profile.widths)
    return equidistributed(profile.widths, density, profile.widths.size)


def worse_mesh(widths: Any) -> Any:
    """Two intervals as one of a third and one of two thirds of both: with polynomials of degree m the error of the cycle
    is about (4/3)²ᵐ as large."""
    pairs = widths.reshape(-1, 2).sum(axis=1, keepdims=True)
    return (pairs * np.asarray([[1 / 3, 2 / 3]], widths.dtype)).ravel()


def redrawn(profile: Profile, widths: Any) -> Profile:
    """The curve on another mesh."""
    curve = lambda times: at(profile, times)
    drawn = curve_on(curve, widths, profile.log_period, profile.slopes.shape[1])
    return drawn._replace(closing=profile.closing)


# On an interval of width h the error of a polynomial of degree m goes with h^(m+1) times the next derivative, whose size
# the jumps of the m-th, constant on each, tell (de Boor 1973; Ascher, Mattheij & Russell 1995, ch. 9). That holds on meshes
# which are fine already; half of the points go by the length of the curve, so that a coarse one becomes no coarser.
def monitor(profile: Profile) -> Any:
    """The density of mesh points to aim at, on each interval."""
    xp, m = profile.xp, profile.slopes.shape[1]
    top = xp.asarray(gauss(m)[3][m - 1], profile.nodes.dtype)
    h, scale = profile.widths, extent(profile)[None]
    highest = xp.einsum("m,Nmn->Nn", top, profile.slopes) / (h[:, None] ** (m - 1) * scale)
    jumps = xp.linalg.norm(profile.later(highest) - highest, axis=1)
    jumps = (jumps / (0.5 * (h + xp.roll(h, -1)))) ** (1 / (m + 1))
    bent = 0.5 * (jumps + xp.roll(jumps, 1))
    moved = profile.ends - profile.nodes
    length = 1 + xp.linalg.norm(moved / scale, axis=1) / h
    # Of both, 1 in the mean.
    bent = bent + xp.finfo(h.dtype).tiny
    return bent / xp.sum(bent * h) + length / xp.sum(length * h)


def equidistributed(widths: Any, density: Any, count: int) -> Any:
    """Widths of so many intervals with equal integrals of a piecewise constant density."""
    xp = numpy_of(widths)
    zero = xp.zeros((1,), widths.dtype)
    times = xp.concatenate([zero, xp.cumsum(widths)])
    mass = xp.concatenate([zero, xp.cumsum(density * widths)])
    marks = xp.linspace(0.0, 1.0, count + 1, dtype=widths.dtype) * mass[-1]
    new = xp.diff(xp.interp(marks, mass, times))
    return new / xp.sum(new)


# The phase is fixed at the first node, and there it must be plain which way the cycle runs: on a slow stretch of a stiff
# field the velocity of a state that is a little off points elsewhere.
def fastest(profile: Profile) -> Any:
    """The interval on which most happens in a time; where the beginning is given, that one."""
    xp = profile.xp
    if profile.closing is not None:
        return xp.asarray(0)
    moved = profile.ends - profile.nodes
    return xp.argmax(xp.linalg.norm(moved / extent(profile)[None], axis=1) / profile.widths)


def rolled(profile: Profile, first: Any) -> Profile:
    """The profile as it begins with another interval."""
    if profile.closing is not None:
        return profile
    turned = (profile.xp.roll(a, -first, 0) for a in profile[:3])
    return Profile(*turned, profile.log_period)  # pyright: ignore


def once(profile: Profile) -> tuple[Profile, Any]:
    """A cycle run through once, and whether it had been more often."""
    xp = profile.xp
    if profile.closing is not None:
        return profile, xp.asarray(False)
    parts = xp.asarray([2, 3, 5], profile.nodes.dtype)
    times = xp.linspace(0.0, 1.0, 16, endpoint=False, dtype=parts.dtype)
    later = times[None] + xp.append(0 * parts[:1], 1 / parts)[:, None]
    states = at(profile, later.ravel()).reshape(*later.shape, -1)
    gaps = xp.max(xp.abs((states[1:] - states[:1]) / extent(profile)[None, None]), axis=(1, 2))
    i = xp.argmin(gaps)
    part = xp.where(gaps[i] < 1e-5, parts[i], 1)
    curve = lambda t: at(profile, t / part)
    log_period = profile.log_period - xp.log(part)
    # The mesh of all turns serves the first; of one it is the same curve.
    return curve_on(curve, profile.widths, log_period, profile.slopes.shape[1]), part > 1
