"""Cycles as piecewise polynomials: orthogonal collocation, its Newton steps, and the meshes that fit."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Profile(NamedTuple):
    """A closed curve: N intervals of `widths (N,)`, in parts of a period, that begin at `nodes (N, n)` and on which
    dz/dt takes the values `slopes (N, m, n)` at the m Gauss points. A tangent to such curves has the same structure."""

    widths: Float[Array, " N"]
    nodes: Float[Array, "N n"]
    slopes: Float[Array, "N m n"]
    log_period: Float[Array, ""]

    @property
    def period(self) -> Array:
        return jnp.exp(self.log_period)


@functools.cache
def gauss(m: int):
    """Of the Gauss points c on [0, 1]: c, `A = ∫₀^c ℓ`, `b = ∫₀¹ ℓ`, the coefficients of the Lagrange polynomials ℓ."""
    c = 0.5 * (1 + np.polynomial.legendre.leggauss(m)[0])
    powers = np.arange(m)
    coefficients = np.linalg.inv(c[:, None] ** powers)  # (power, point)
    integral = lambda t: (np.asarray(t)[..., None] ** (powers + 1) / (powers + 1)) @ coefficients
    return c, integral(c), integral(1.0), coefficients


def at(profile: Profile, times: Array) -> Array:
    """The curve at times in parts of its period."""
    m = profile.slopes.shape[1]
    coefficients = jnp.asarray(gauss(m)[3], profile.nodes.dtype)
    starts = jnp.cumsum(profile.widths) - profile.widths
    times = times % 1
    i = jnp.clip(jnp.searchsorted(starts, times, side="right") - 1, 0, starts.size - 1)
    part = (times - starts[i]) / profile.widths[i]
    powers = jnp.arange(1, m + 1, dtype=part.dtype)
    weights = (part[..., None] ** powers / powers) @ coefficients
    stretch = profile.period * profile.widths[i]
    return profile.nodes[i] + stretch[..., None] * jnp.einsum("...m,...mn->...n", weights, profile.slopes[i])


def stages(profile: Profile) -> Array:
    """The curve at its Gauss points, (N, m, n)."""
    A = jnp.asarray(gauss(profile.slopes.shape[1])[1], profile.nodes.dtype)
    stretch = profile.period * profile.widths
    moved = jnp.einsum("ij,Njn->Nin", A, profile.slopes)
    return profile.nodes[:, None] + stretch[:, None, None] * moved


def extent(profile: Profile) -> Array:
    """The scale of each component: its range on the curve; where it hardly moves, part of the largest."""
    wide = jnp.ptp(profile.nodes, axis=0)
    floor = 1e-6 * jnp.max(jnp.abs(profile.nodes))
    return jnp.maximum(wide, jnp.maximum(floor, jnp.finfo(wide.dtype).tiny))


def drawn(force: Callable, curve: Callable, widths: Array, log_period: Array, m: int) -> Profile:
    """The profile of a curve, given at times in parts of its period, on another mesh."""
    c = jnp.asarray(gauss(m)[0], widths.dtype)
    starts = jnp.cumsum(widths) - widths
    inner = starts[:, None] + widths[:, None] * c
    return Profile(widths, curve(starts), jax.vmap(jax.vmap(force))(curve(inner)), log_period)


def remeshed(force: Callable, profile: Profile, count: int) -> Profile:
    """The curve on as many intervals, of equal error."""
    widths = equidistributed(profile.widths, monitor(profile), count)
    curve = lambda times: at(profile, times)
    return drawn(force, curve, jax.lax.stop_gradient(widths), profile.log_period, profile.slopes.shape[1])


# On an interval of width h the error of a polynomial of degree m goes with h^(m+1) times the next derivative, whose size
# the jumps of the m-th, constant on each, tell (de Boor 1973; Ascher, Mattheij & Russell 1995, ch. 9).
def monitor(profile: Profile) -> Array:
    """The density of mesh points that equal errors ask for, on each interval."""
    m = profile.slopes.shape[1]
    top = jnp.asarray(gauss(m)[3][m - 1], profile.nodes.dtype)
    h = profile.widths
    highest = jnp.einsum("m,Nmn->Nn", top, profile.slopes) 
    highest = highest / (h[:, None] ** (m - 1) * extent(profile)[None])
    jumps = jnp.linalg.norm(jnp.roll(highest, -1, 0) - highest, axis=1)
    jumps = jumps / (0.5 * (h + jnp.roll(h, -1)))
    density = jnp.maximum(jumps, jnp.roll(jumps, 1)) ** (1 / (m + 1))
    # A floor, for no stretch may be left without points, and rounding must not place them.
    return density + 0.1 * jnp.sum(density * h) + jnp.finfo(h.dtype).tiny


def equidistributed(widths: Array, density: Array, count: int) -> Array:
    """Widths of so many intervals with equal integrals of a piecewise constant density."""
    zero = jnp.zeros((1,), widths.dtype)
    times = jnp.concatenate([zero, jnp.cumsum(widths)])
    mass = jnp.concatenate([zero, jnp.cumsum(density * widths)])
    marks = jnp.linspace(0.0, 1.0, count + 1, dtype=widths.dtype) * mass[-1]
    new = jnp.diff(jnp.interp(marks, mass, times))
    return new / jnp.sum(new)


class Linearised(NamedTuple):
    """Of each interval, `dz_next = transfer dz + columns s`, and `dK = inner dz + rest s` at its Gauss points, where s
    are the logarithm of the period, the parameter, and 1 for the equations' own defect."""

    transfer: Float[Array, "N n n"]
    columns: Float[Array, "N n 3"]
    inner: Float[Array, "N mn n"]
    rest: Float[Array, "N mn 3"]


# Why condensed: each interval's own unknowns couple to no others, and are eliminated there, all intervals at once. What
# is left is as large as for multiple shooting (Ascher, Mattheij & Russell 1995, ch. 7).
def linearised(force: Callable[[Array, Array], Array], profile: Profile, q: Array) -> Linearised:
    """The equations of collocation near a profile, with the Gauss points eliminated."""
    N, m, n = profile.slopes.shape
    _, A, b, _ = (jnp.asarray(a, profile.nodes.dtype) for a in gauss(m))
    after = jnp.roll(profile.nodes, -1, 0)

    def interval(width, node, slopes, following):
        stretch = profile.period * width
        moved = stretch * (A @ slopes)
        z = node[None] + moved
        value, along = jax.vmap(lambda z: jax.jvp(lambda q: force(z, q), (q,), (jnp.ones_like(q),)))(z)
        J = jax.vmap(jax.jacfwd(lambda z: force(z, q)))(z)
        system = jnp.eye(m * n, dtype=z.dtype) - stretch * jnp.einsum("ij,ikl->ikjl", A, J).reshape(m * n, m * n)
        late = jnp.einsum("ikl,il->ik", J, moved)
        right = jnp.concatenate(
            [J.reshape(m * n, n), *(v.reshape(m * n, 1) for v in (late, along, value - slopes))], axis=1
        )
        solution = jnp.linalg.solve(system, right)
        gathered = stretch * jnp.einsum("i,ikc->kc", b, solution.reshape(m, n, n + 3))
        ran = stretch * (b @ slopes)
        transfer = jnp.eye(n, dtype=z.dtype) + gathered[:, :n]
        own = jnp.stack([ran, jnp.zeros_like(ran), node + ran - following], axis=1)
        return Linearised(transfer, gathered[:, n:] + own, solution[:, :n], solution[:, n:])

    return jax.vmap(interval)(profile.widths, profile.nodes, profile.slopes, after)


class Condensed(NamedTuple):
    """`first dz₀ + columns s = 0`, and rows by which the other nodes follow from dz₀, from the last one backwards."""

    first: Float[Array, "n n"]
    columns: Float[Array, "n 3"]
    rows: Any


# Why orthogonal: the product of the transfer matrices would lose whatever decays beside what grows. Rotations that
# eliminate one node after another (Wright 1992) lose nothing, whatever the multipliers are.
def condensed(system: Linearised) -> Condensed:
    """The relation between the two ends of a turn, which are one point."""
    n = system.transfer.shape[1]
    eye = jnp.eye(n, dtype=system.transfer.dtype)

    def eliminate(carry, interval):
        # E dz₀ + G dz_j + X s = 0 and dz_next - Φ dz_j - x s = 0
        E, G, X = carry
        transfer, columns = interval
        Q, R = jnp.linalg.qr(jnp.concatenate([G, -transfer]), mode="complete")
        zero = jnp.zeros_like(E)
        others = jnp.concatenate(
            [jnp.concatenate([E, zero, X], 1), jnp.concatenate([zero, eye, -columns], 1)]
        )
        turned = Q.T @ others
        E, G, X = jnp.split(turned[n:], (n, 2 * n), axis=1)
        return (E, G, X), (R[:n], turned[:n])

    start = -system.transfer[0], eye, -system.columns[0]
    rest = system.transfer[1:], system.columns[1:]
    (E, G, X), rows = jax.lax.scan(eliminate, start, rest)
    return Condensed(E + G, X, rows)


def expanded(profile: Profile, system: Linearised, rows, first: Array, s: Array) -> Profile:
    """The change of a profile that goes with that of its first node and with s."""
    n = first.size

    def back(following, row):
        R, others = row
        known = others @ jnp.concatenate([first, following, s])
        node = -jax.scipy.linalg.solve_triangular(R, known)
        return node, node

    _, nodes = jax.lax.scan(back, first, rows, reverse=True)
    nodes = jnp.concatenate([first[None], nodes])
    slopes = jnp.einsum("Nij,Nj->Ni", system.inner, nodes) + system.rest @ s
    return Profile(jnp.zeros_like(profile.widths), nodes, slopes.reshape(profile.slopes.shape), s[0])


def measure(profile: Profile, change: Profile) -> Array:
    """The size of a change of a profile, each component in its own unit."""
    return jnp.maximum(jnp.max(jnp.abs(change.nodes / extent(profile)[None])), jnp.abs(change.log_period))


def defect(force: Callable, profile: Profile, q: Array) -> Array:
    """How far a profile is from solving its equations, each component in its own unit."""
    N, m, n = profile.slopes.shape
    b = jnp.asarray(gauss(m)[2], profile.nodes.dtype)
    stretch = (profile.period * profile.widths)[:, None]
    value = jax.vmap(jax.vmap(lambda z: force(z, q)))(stages(profile))
    scale = extent(profile)[None]
    inside = stretch[..., None] * (value - profile.slopes) / scale[None]
    ends = profile.nodes + stretch * jnp.einsum("m,Nmn->Nn", b, profile.slopes)
    gaps = (ends - jnp.roll(profile.nodes, -1, 0)) / scale
    return jnp.sqrt(jnp.sum(inside**2) + jnp.sum(gaps**2))
