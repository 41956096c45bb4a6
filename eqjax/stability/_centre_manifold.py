"""The field on the centre manifold of a critical point, in normal form, to any order."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ._parameter import Line


class Place(eqx.Module):
    """A fixed point of a field on a line, from where it is expanded in state and parameter: vectors have n + 1 entries."""

    line: Line
    x: PyTree
    z: Array
    q: Array
    unravel: Callable[[Array], PyTree] = eqx.field(static=True)

    @classmethod
    def of(cls, line: Line, x: PyTree, state: PyTree[Array], q: Array) -> "Place":
        z, unravel = ravel_pytree(jax.tree.map(jnp.asarray, state))
        return cls(line, x, z, q, unravel)

    def force(self, z, q):
        return ravel_pytree(self.line.at(q)(0.0, self.unravel(z), self.x))[0]

    def jacobian(self) -> np.ndarray:
        """(n, n + 1): with respect to state and parameter."""
        return np.asarray(_jacobian(self))

    def taylor(self, curves: np.ndarray) -> np.ndarray:
        """The Taylor coefficients, of the order that is the length of axis 1, of F along curves `Σ rᵏ⁺¹ c_k`; curves
        `(many, order, n + 1)`, coefficients `(many, n)`."""
        return np.asarray(_taylor(self, jnp.asarray(curves, self.z.dtype)))

    def bilinear(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """B(u, v), the second derivative, at states."""
        pairs = np.stack([u + v, u - v])
        line = np.stack([np.pad(pairs, ((0, 0), (0, 1))), np.zeros((2, u.size + 1))], axis=1)
        plus, minus = self.taylor(line)
        return 0.5 * (plus - minus)


@eqx.filter_jit
def _jacobian(place):
    z, q = place.z, place.q
    rows = jax.jacfwd(lambda u: place.force(u[:-1], u[-1]))(jnp.append(z, q))
    return rows


@eqx.filter_jit
def _taylor(place, curves):
    order = curves.shape[1]

    def derivative(function):
        return lambda r: jax.jvp(function, (r,), (jnp.ones_like(r),))[1]

    def one(curve):
        def along(r):
            u = jnp.zeros_like(curve[0])
            for k in range(order):
                u += r ** (k + 1) * curve[k]
            return place.force(place.z + u[:-1], place.q + u[-1])

        for _ in range(order):
            along = derivative(along)
        return along(jnp.zeros_like(place.q)) / math.factorial(order)

    return jax.vmap(one)(curves)


@dataclasses.dataclass(frozen=True)
class Centre:
    """The critical modes: `right (d, n)` and `left (d, n)` with `left @ right.T = 1`; `labels`, integer vectors, whose sums
    tell which products of modes are resonant; `rate`, of a label, its eigenvalue. Of a complex pair the conjugate follows."""

    right: np.ndarray
    left: np.ndarray
    labels: tuple[tuple[int, ...], ...]
    rate: Callable[[tuple[int, ...]], complex]


# Why along lines. F(H(w)) to order m is needed with H known to order m - 1; on a line through the origin it is a function
# of one number, its m-th derivative is m JVPs inside one another, and enough lines give all coefficients of that order
# by least squares. So there is one algorithm for all bifurcations, and none of their published sums of B, C, D and E.
def normal_form_on(
    place: Place, jacobian: np.ndarray, centre: Centre, order: int
) -> dict[tuple[int, tuple[int, ...]], complex]:
    """Coefficients g of `ẇ_i = rate_i w_i + Σ g[i, ν] wᵛ`, resonant terms only, from the homological equation
    `F(H(w)) = DH(w) ẇ` (Elphick et al. 1987; Kuznetsov 2004, ch. 8). `jacobian (n, n)`, with n that of `centre`: of the
    state, or of state and parameter."""
    d, n = centre.right.shape
    maps = {
        tuple(int(i == j) for j in range(d)): np.asarray(centre.right[i], complex) for i in range(d)
    }
    g: dict[tuple[int, tuple[int, ...]], complex] = {}
    for m in range(2, order + 1):
        powers = [nu for nu in itertools.product(range(m + 1), repeat=d) if sum(nu) == m]
        lines = _directions(centre, 2 * len(powers) + 2)
        monomials = lambda nus, lines=lines: np.stack(
            [np.prod(lines ** np.array(nu), axis=1) for nu in nus]
        )
        curves = np.zeros((len(lines), m, place.z.size + 1))
        for k in range(1, m):
            known = [nu for nu in maps if sum(nu) == k]
            part: Any = monomials(known).T @ np.stack([maps[nu] for nu in known])
            curves[:, k - 1, :n] = part.real
        samples = np.zeros((len(lines), n))
        samples[:, : place.z.size] = place.taylor(curves)
        found = np.linalg.lstsq(monomials(powers).T, samples.astype(complex), rcond=None)[0]
        lower = dict(g)
        for nu, right in zip(powers, found, strict=True):
            label = tuple(int(v) for v in np.array(nu) @ np.array(centre.labels))
            rate = centre.rate(label)
            # Modes of the same eigenvalue: these products cannot be transformed away.
            alike = [i for i in range(d) if abs(rate - centre.rate(centre.labels[i])) == 0]
            right = right - _moved(maps, lower, nu, n)
            size = n + len(alike)
            system = np.zeros((size, size), complex)
            system[:n, :n] = rate * np.eye(n) - jacobian
            system[:n, n:] = centre.right[alike].T
            system[n:, :n] = centre.left[alike]
            solution = np.linalg.solve(system, np.append(right, np.zeros(len(alike))))
            maps[nu] = solution[:n]
            g |= {(i, nu): complex(v) for i, v in zip(alike, solution[n:], strict=True)}
    return g


def _moved(maps, g, nu, n) -> np.ndarray:
    """What lower orders contribute to DH(w) ẇ at a power."""
    total = np.zeros(n, complex)
    for (i, kappa), value in g.items():
        mu = np.array(nu) - np.array(kappa)
        mu[i] += 1
        known = maps.get(tuple(int(v) for v in mu))
        if known is not None and mu.sum() > 1:
            total += mu[i] * known * value
    return total


def _directions(centre: Centre, count: int) -> np.ndarray:
    """Points w that stand for real states, `(count, d)`."""
    rng, d = np.random.default_rng(0), len(centre.labels)
    points, i = np.zeros((count, d), complex), 0
    while i < d:
        if np.iscomplexobj(centre.right) and np.any(centre.right[i].imag):
            points[:, i] = rng.standard_normal(count) + 1j * rng.standard_normal(count)
            points[:, i + 1] = points[:, i].conj()
            i += 2
        else:
            points[:, i] = rng.standard_normal(count)
            i += 1
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def null_vectors(matrix: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Right and left null vectors, (count, n) each, with `left @ right.T = 1`: right ones of unit length."""
    u, _, vh = np.linalg.svd(matrix)
    right, left = vh[-count:].conj(), u[:, -count:].conj().T
    return right, np.linalg.solve(left @ right.T, left)


def critical(jacobian: np.ndarray, rates: tuple[complex, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Right and left vectors of simple eigenvalues; of one with an imaginary part the conjugates follow."""
    right, left = [], []
    for rate in rates:
        (v,), (w,) = null_vectors(jacobian - rate * np.eye(len(jacobian)))
        if np.imag(rate) == 0:
            v, w = v.real, w.real
        pairs = [(v, w)] if np.imag(rate) == 0 else [(v, w), (v.conj(), w.conj())]
        right += [v for v, _ in pairs]
        left += [w for _, w in pairs]
    return np.stack(right), np.stack(left)


def at_fixed_parameter(jacobian: np.ndarray) -> np.ndarray:
    """Of (n, n + 1) the part of the state."""
    return jacobian[:, :-1]


def pair(place: Place, frequencies: tuple[float, ...], zero: bool, order: int) -> Any:
    """The normal form of critical modes `0` (if `zero`) and `±iω` of a flow."""
    jacobian = at_fixed_parameter(place.jacobian())
    rates = ((0j,) if zero else ()) + tuple(1j * omega for omega in frequencies)
    right, left = critical(jacobian, rates)
    count = len(frequencies)
    units = np.eye(count, dtype=int)
    labels = [(0,) * count] if zero else []
    for unit in units:
        labels += [tuple(map(int, unit)), tuple(map(int, -unit))]
    rate = lambda label: 1j * float(np.dot(label, frequencies)) if count else 0j
    return normal_form_on(place, jacobian, Centre(right, left, tuple(labels), rate), order)
