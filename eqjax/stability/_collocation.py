"""Cycles by orthogonal collocation: the equations near a profile, condensed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._profile import Closing, Profile, extent, gauss, stages


class Linearised(NamedTuple):
    """Of each interval, `dz_next = transfer dz + columns s`, and `dK = inner dz + rest s` at its Gauss points, where s
    are the logarithm of the period, the parameters, and 1 for the equations' own defect. `inverse`: of its own unknowns."""

    transfer: Float[Array, "N n n"]
    columns: Float[Array, "N n s"]
    inner: Float[Array, "N mn n"]
    rest: Float[Array, "N mn s"]
    inverse: Float[Array, "N mn mn"]

    def towards(self, force: Callable, profile: Profile, q: Array) -> "Linearised":
        """The same with the defect of another profile near: what simplified Newton steps need."""
        N, m, n = profile.slopes.shape
        b = jnp.asarray(gauss(m)[2], profile.nodes.dtype)
        off = jax.vmap(jax.vmap(lambda z: force(z, q)))(stages(profile)) - profile.slopes
        slopes = jnp.einsum("Nij,Nj->Ni", self.inverse, off.reshape(N, m * n))
        ran = jnp.einsum("m,Nmn->Nn", b, profile.slopes + slopes.reshape(profile.slopes.shape))
        ends = profile.nodes + (profile.period * profile.widths)[:, None] * ran
        gaps = ends - profile.ends
        columns, rest = self.columns.at[:, :, -1].set(gaps), self.rest.at[:, :, -1].set(slopes)
        return self._replace(columns=columns, rest=rest)


# Why condensed: each interval's own unknowns couple to no others, and are eliminated there, all intervals at once. What
# is left is as large as for multiple shooting (Ascher, Mattheij & Russell 1995, ch. 7).
def linearised(force: Callable[[Array, Array], Array], profile: Profile, q: Array) -> Linearised:
    """The equations of collocation near a profile, with the Gauss points eliminated."""
    return unreferred(force, profile, q).towards(force, profile, q)


def unreferred(force: Callable[[Array, Array], Array], profile: Profile, q: Array) -> Linearised:
    """The same without their defect."""
    _, m, n = profile.slopes.shape
    _, A, b, _ = (jnp.asarray(a, profile.nodes.dtype) for a in gauss(m))
    eye, own_at = jnp.eye(m * n, dtype=b.dtype), n + 1 + q.size

    def interval(width, node, slopes):
        stretch = profile.period * width
        moved = stretch * (A @ slopes)
        z = node[None] + moved
        along = jax.vmap(jax.jacfwd(lambda q, z: force(z, q)), (None, 0))(q, z)
        J = jax.vmap(jax.jacfwd(lambda z: force(z, q)))(z)
        own = stretch * jnp.einsum("ij,ikl->ikjl", A, J).reshape(m * n, m * n)
        late = jnp.einsum("ikl,il->ik", J, moved)
        right = [J.reshape(m * n, n), *(v.reshape(m * n, -1) for v in (late, along)), eye]
        solution = jnp.linalg.solve(eye - own, jnp.concatenate(right, axis=1))
        gathered = stretch * jnp.einsum("i,ikc->kc", b, solution.reshape(m, n, -1))
        transfer = jnp.eye(n, dtype=b.dtype) + gathered[:, :n]
        ran = (stretch * (b @ slopes))[:, None]
        late, others = gathered[:, n : n + 1] + ran, gathered[:, n + 1 : own_at]
        columns = jnp.concatenate([late, others, jnp.zeros((n, 1), b.dtype)], axis=1)
        rest = jnp.concatenate([solution[:, n:own_at], jnp.zeros((m * n, 1), b.dtype)], axis=1)
        return Linearised(transfer, columns, solution[:, :n], rest, solution[:, own_at:])

    return jax.vmap(interval)(profile.widths, profile.nodes, profile.slopes)


# Why in parts: where it contracts strongly an interval is longer than its transfer matrix can tell, though the curve is
# smooth there. Elsewhere that of the whole is better, since collocation is most accurate at the nodes.
def propagated(
    force: Callable[[Array, Array], Array], profile: Profile, q: Array, parts: int
) -> tuple[Array, Array]:
    """Transfer matrices (N, n, n) of intervals, and (N, parts, n, n) of their parts, where an interval is stiff; of others
    that of the whole, and then ones."""
    _, m, n = profile.slopes.shape
    c, A, b, coefficients = gauss(m)
    powers = np.arange(1, m + 1)
    times = np.concatenate([c[None], (np.arange(parts)[:, None] + c[None]) / parts])
    weights = (times[..., None] ** powers / powers) @ coefficients
    A, b, weights = (jnp.asarray(a, profile.nodes.dtype) for a in (A, b, weights))
    eye, same = jnp.eye(m * n, dtype=b.dtype), jnp.eye(n, dtype=b.dtype)
    stretch = profile.period * profile.widths
    moved = jnp.einsum("pij,Njn->Npin", weights, profile.slopes)
    z = profile.nodes[:, None, None] + stretch[:, None, None, None] * moved
    shares = jnp.asarray(np.append(1, np.full(parts, 1 / parts)), b.dtype)

    def part(length, z):
        J = jax.vmap(jax.jacfwd(lambda z: force(z, q)))(z)
        own = length * jnp.einsum("ij,ikl->ikjl", A, J).reshape(m * n, m * n)
        inner = jnp.linalg.solve(eye - own, J.reshape(m * n, n)).reshape(m, n, n)
        return same + length * jnp.einsum("i,ikl->kl", b, inner), length * jnp.max(jnp.abs(J))

    lengths = stretch[:, None] * shares[None]
    matrices, sizes = jax.vmap(jax.vmap(part))(lengths, z)
    whole, fine = matrices[:, 0], matrices[:, 1:]
    plain = jnp.broadcast_to(same, fine.shape).at[:, 0].set(whole)
    return whole, jnp.where((sizes[:, 0] > 2)[:, None, None, None], fine, plain)


def defect(force: Callable[[Array, Array], Array], profile: Profile, q: Array) -> Array:
    """By how much intervals miss the next one's beginning, the most."""
    b = jnp.asarray(gauss(profile.slopes.shape[1])[2], profile.nodes.dtype)
    velocity = jax.vmap(jax.vmap(lambda z: force(z, q)))(stages(profile))
    ran = (profile.period * profile.widths)[:, None] * jnp.einsum("m,Nmn->Nn", b, velocity)
    return jnp.max(jnp.linalg.norm(profile.nodes + ran - profile.ends, axis=1))


class Condensed(NamedTuple):
    """`first dz₀ + columns s = 0`, and rows by which the other nodes follow from dz₀, from the last one backwards."""

    first: Float[Array, "n n"]
    columns: Float[Array, "n s"]
    rows: Any


# Why orthogonal: the product of the transfer matrices would lose whatever decays beside what grows. Rotations that
# eliminate one node after another (Wright 1992) lose nothing, whatever the multipliers are.
def condensed(system: Linearised, closing: Closing | None = None) -> Condensed:
    """The relation between the two ends of a turn, which are one point or follow from one another."""
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
    return Condensed(E + (G if closing is None else G * closing.signs[None]), X, rows)


def expanded(
    profile: Profile, system: Linearised, rows, first: Array, s: Array, last: Array | None = None
) -> Profile:
    """The change of a profile that goes with that of its first node and with s, and ends as it closes, or at `last`."""

    def back(following, row):
        R, others = row
        known = others @ jnp.concatenate([first, following, s])
        node = -jax.scipy.linalg.solve_triangular(R, known)
        return node, node

    closing = profile.closing
    if last is None:
        last = first if closing is None else closing.signs * first
    _, nodes = jax.lax.scan(back, last, rows, reverse=True)
    nodes = jnp.concatenate([first[None], nodes])
    slopes = jnp.einsum("Nij,Nj->Ni", system.inner, nodes) + system.rest @ s
    return Profile(
        jnp.zeros_like(profile.widths),
        nodes,
        slopes.reshape(profile.slopes.shape),
        s[0],
        jax.tree.map(jnp.zeros_like, closing),
    )


def size_of(profile: Profile, change: Profile) -> Array:
    """The size of a change of a profile, each component in its own unit."""
    return jnp.maximum(
        jnp.max(jnp.abs(change.nodes / extent(profile)[None])), jnp.abs(change.log_period)
    )
