"""What is born where a cycle is critical, from periodic boundary value problems along it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ._forced import flat_force
from ._parameter import Line
from ._profile import Profile, gauss, stages


# Why along the cycle and not by a return map: its third derivatives would have to be integrated, and beside a multiplier of
# 1e40 they would be lost. Here all is linear, on the mesh of the cycle (Kuznetsov, Govaerts, Doedel & Dhooge 2005); the left
# null vector of the discrete problem stands for the adjoint solution, so that what can be solved is known to rounding.
class Variational:
    """`y' = (J - σ) y + g` along a cycle with `y(T) = ± y(0)`, for values at the Gauss points, (N, m, n); on the host."""

    def __init__(self, J: Any, stretch: Any, sigma: float | complex = 0.0, sign: int = 1):
        N, m, n, _ = J.shape
        _, A, b, _ = gauss(m)
        J = J - sigma * np.eye(n)
        own = np.einsum("N,ij,Nikl->Nikjl", stretch, A, J).reshape(N, m * n, m * n)
        self.inverse = np.linalg.inv(np.eye(m * n) - own)
        self.inner = self.inverse @ J.reshape(N, m * n, n)
        self.ran = lambda slopes: np.einsum("N,i,Nik->Nk", stretch, b, slopes.reshape(N, m, n))
        self.moved = lambda slopes: np.einsum("N,ij,Njk->Nik", stretch, A, slopes)
        self.shape, self.sign = (N, m, n), sign
        gathered = np.einsum("N,i,Nikl->Nkl", stretch, b, self.inner.reshape(N, m, n, n))
        self.matrix = _around(np.eye(n) + gathered, sign)

    @functools.cached_property
    def _null(self) -> tuple[Any, Any]:
        return null_pair(self.matrix)

    @property
    def right(self) -> Any:
        """The null vector of the equations of the nodes, of length 1."""
        return self._null[0]

    @property
    def left(self) -> Any:
        """The left null vector, of length 1."""
        return self._null[1]

    def load(self, g: Any) -> Any:
        """How g enters the equations of the nodes."""
        slopes = np.einsum("Nij,Nj->Ni", self.inverse, g.reshape(self.shape[0], -1))
        return self.ran(slopes).ravel()

    def at_stages(self, nodes: Any, g: Any = 0.0) -> Any:
        """The solution that has these values at the nodes."""
        N, _, n = self.shape
        nodes, g = nodes.reshape(N, n), np.broadcast_to(g, self.shape).reshape(N, -1)
        slopes = np.einsum("Nij,Nj->Ni", self.inner, nodes)
        slopes = slopes + np.einsum("Nij,Nj->Ni", self.inverse, g)
        return nodes[:, None] + self.moved(slopes.reshape(self.shape))

    def solve(self, g: Any) -> Any:
        """The solution for g; where the problem is singular, g must be fit for it, and it is the one square to the null
        vector."""
        right = self.load(g)
        found = _factored(_edged(self.matrix, self.left, self.right)).solve(np.append(right, 0))
        return self.at_stages(found[:-1], g)

    def regular(self, g: Any) -> Any:
        """The solution where the problem is regular."""
        return self.at_stages(_factored(self.matrix).solve(self.load(g)), g)

    def share(self, g: Any, of: Any) -> Any:
        """The number c for which the singular problem can be solved for `g - c of`."""
        return np.vdot(self.left, self.load(g)) / np.vdot(self.left, self.load(of))


def _edged(matrix: Any, column: Any, row: Any) -> Any:
    import scipy.sparse as sparse  # here, since it takes long to import

    edges = sparse.csc_matrix(column[:, None]), sparse.csc_matrix(row.conj()[None])
    return sparse.bmat([[matrix, edges[0]], [edges[1], None]], format="csc")


def _factored(matrix: Any) -> Any:
    import scipy.sparse.linalg  # here, since it takes long to import

    return scipy.sparse.linalg.splu(matrix)


def null_pair(matrix: Any) -> tuple[Any, Any]:
    """Right and left null vectors of a sparse matrix, of length 1."""
    random, size = np.random.default_rng(0), matrix.shape[0]
    right, left = (random.normal(size=size).astype(matrix.dtype) for _ in range(2))
    one = np.append(np.zeros(size), 1)
    for _ in range(3):
        lu = _factored(_edged(matrix, left, right))
        found = (lu.solve(one.astype(matrix.dtype), way)[:-1] for way in ("N", "H"))
        right, left = (v / np.linalg.norm(v) for v in found)
    return right, left


def _around(transfer: Any, sign: int) -> Any:
    """`y_next - transfer y` on all intervals, as a sparse matrix."""
    import scipy.sparse as sparse  # here, since it takes long to import

    N, n, _ = transfer.shape
    rows = np.arange(N * n).reshape(N, n)
    after = np.roll(rows, -1, 0)
    signs = np.ones((N, n))
    signs[-1] = sign
    entries = np.concatenate([-transfer.ravel(), signs.ravel()])
    places = (
        np.concatenate([np.broadcast_to(rows[:, :, None], transfer.shape).ravel(), rows.ravel()]),
        np.concatenate([np.broadcast_to(rows[:, None], transfer.shape).ravel(), after.ravel()]),
    )
    return sparse.csc_matrix((entries, places), shape=(N * n, N * n))


class Cycle:
    """A critical cycle on the host: Jacobians and velocities at its Gauss points, and products of higher derivatives."""

    def __init__(self, line: Line, x: PyTree, state: PyTree, profile: Any):
        state, profile = jax.tree.map(jax.numpy.asarray, (state, profile))
        self.arguments = line, state, x, profile
        self.driven = profile.closing is not None
        J, flow, pull = (np.asarray(a, float) for a in _first(*self.arguments))
        self.stretch = np.exp(float(profile.log_period)) * np.asarray(profile.widths, float)
        self.weights = self.stretch[:, None] * gauss(J.shape[1])[2] / self.stretch.sum()
        if self.driven:
            # No multiplier belongs to the phase; by its pace time itself may depend on the parameter.
            pull = pull - pull[..., -1:] / flow[..., -1:] * flow
            J, flow, pull = J[..., :-1, :-1], flow[..., :-1], pull[..., :-1]
        self.J, self.flow, self.pull = J, flow, pull

    def problem(self, sigma: float | complex = 0.0, sign: int = 1) -> Variational:
        return Variational(self.J, self.stretch, sigma, sign)

    def moved(self, v: Any) -> Any:
        """J v"""
        return np.einsum("Nikl,Nil->Nik", self.J, v)

    def critical(self, problem: Variational) -> Any:
        """The critical solution, of mean square 1."""
        v = problem.at_stages(problem.right)
        return v / self.size(v)

    def size(self, v: Any) -> float:
        """The root of the mean square over a turn."""
        return float(np.sqrt(np.sum(self.weights[..., None] * abs(v) ** 2)))

    def _product(self, of: Callable, *directions: Any) -> Any:
        dtype = self.arguments[3].nodes.dtype
        full = [np.pad(v, ((0, 0), (0, 0), (0, int(self.driven)))) for v in directions]
        found = np.asarray(of(*self.arguments, *(np.asarray(v, dtype) for v in full)), float)
        return found[..., :-1] if self.driven else found

    def bilinear(self, a: Any, b: Any) -> Any:
        """The second derivative of the force along a and b, perhaps complex."""
        second = lambda a, b: self._product(_second, a, b)
        if not (np.iscomplexobj(a) or np.iscomplexobj(b)):
            return second(a, b)
        real = second(a.real, b.real) - second(a.imag, b.imag)
        return real + 1j * (second(a.real, b.imag) + second(a.imag, b.real))

    def cubic(self, v: Any) -> Any:
        """The third derivative along v, v and its conjugate."""
        third = lambda a, b: self._product(_third, a, a, b)
        if not np.iscomplexobj(v):
            return third(v, v)
        a, b = v.real, v.imag
        return third(a, a) + third(b, a) + 1j * (third(a, b) + third(b, b))

    def slowed(self, g: Any) -> tuple[float, Any]:
        """The a₁ for which `h' = J h + g - a₁ F` has a periodic solution, and that solution. Of a drive a₁ is 0."""
        problem = self.problem()
        if self.driven:
            return 0.0, problem.regular(g).real
        a1 = problem.share(g, self.flow).real
        return a1, problem.solve(g - a1 * self.flow).real


def _locally(line: Line, z: PyTree, x: PyTree) -> Callable:
    unravel = ravel_pytree(z)[1]
    return lambda q: flat_force(line.at(q), unravel, x)


@eqx.filter_jit
def _first(line, z, x, profile: Profile):
    zero = jax.numpy.zeros_like(line.low)
    force = _locally(line, z, x)

    def each(z):
        along = jax.jvp(lambda q: force(q)(z), (zero,), (jax.numpy.ones_like(zero),))
        return jax.jacfwd(force(zero))(z), *along

    return jax.vmap(jax.vmap(each))(stages(profile))


@eqx.filter_jit
def _second(line, z, x, profile, *directions):
    return _derivative(line, z, x, profile, directions)


@eqx.filter_jit
def _third(line, z, x, profile, *directions):
    return _derivative(line, z, x, profile, directions)


def _derivative(line, z, x, profile, directions):
    force = _locally(line, z, x)(jax.numpy.zeros_like(line.low))

    def each(z, *directions):
        function = force
        for v in directions:
            function = lambda z, f=function, v=v: jax.jvp(f, (z,), (v,))[1]
        return function(z)

    return jax.vmap(jax.vmap(each))(stages(profile), *directions)


class CriticalSolution(NamedTuple):
    """The critical solution v of a cycle, at its Gauss points, the left null vector of its problem, what that must not see
    but for a multiple of v, and σ in `v' = J v + σ F`."""

    problem: Variational
    v: Any
    left: Any
    rest: Any
    sigma: float = 0.0

    def seen(self, g: Any) -> float:
        """By how much g stands in the way of a periodic solution."""
        return float(np.vdot(self.left, self.problem.load(g)).real)


# Why (v, σ) together: where the period stands still at the fold, its problem lacks two ranks, but not with a phase for v.
def fold_terms(cycle: Cycle) -> CriticalSolution:
    """At a fold: with `τ̇ = 1 - σξ`, `ξ̇ = a ξ²` where a v is what the left null vector sees of `rest`."""
    problem = cycle.problem()
    if cycle.driven:
        v = cycle.critical(problem).real
        return CriticalSolution(problem, v, problem.left, 0.5 * cycle.bilinear(v, v))
    flow = cycle.flow
    phase = np.zeros(problem.matrix.shape[0])
    phase[: flow.shape[-1]] = flow[0, 0] / np.linalg.norm(flow[0, 0])
    right, left = null_pair(_edged(problem.matrix, -problem.load(flow), phase))
    v = problem.at_stages(right[:-1], right[-1] * flow)
    size = cycle.size(v)
    v, sigma = v / size, float(right[-1] / size)
    rest = 0.5 * cycle.bilinear(v, v) + sigma * (cycle.moved(v) + sigma * flow)
    return CriticalSolution(problem, v, left[:-1], rest, sigma)


def cycle_fold(cycle: Cycle) -> tuple[dict[str, float], str]:
    """`ξ̇ = bμ + a ξ²`; of an autonomous cycle ξ is by how much it is slower, `τ̇ = 1 - ξ`."""
    found = fold_terms(cycle)
    unit = 1.0 if cycle.driven else found.sigma
    a = found.seen(found.rest) / found.seen(found.v) / unit
    b = found.seen(cycle.pull) / found.seen(found.v) * unit
    side = "below" if a * b > 0 else "above"
    return {"a": a, "b": b}, f"two cycles {side} the parameter, none beyond"


def doubling_terms(cycle: Cycle) -> CriticalSolution:
    """At a period doubling: c v is what the left null vector sees of `rest`."""
    problem = cycle.problem(sign=-1)
    v = cycle.critical(problem)
    a1, h = cycle.slowed(0.5 * cycle.bilinear(v, v))
    rest = cycle.bilinear(v, h) + cycle.cubic(v) / 6 - a1 * cycle.moved(v)
    return CriticalSolution(problem, v, problem.left, rest)


def cycle_doubling(cycle: Cycle) -> tuple[dict[str, float], str]:
    """`ξ̇ = c ξ³`, with `τ̇ = 1 + a₁ ξ²`."""
    found = doubling_terms(cycle)
    c = found.seen(found.rest) / found.seen(found.v)
    return {"c": c}, f"{'super' if c < 0 else 'sub'}critical period doubling"


def cycle_torus(cycle: Cycle, frequency: float) -> tuple[dict[str, float], str]:
    """`ξ̇ = iω ξ + d ξ|ξ|²`, with `τ̇ = 1 + a₁ |ξ|²`."""
    turn = 1j * frequency
    problem = cycle.problem(turn)
    v = cycle.critical(problem)
    a1, mean = cycle.slowed(cycle.bilinear(v, v.conj()).real)
    twice = cycle.problem(2 * turn).regular(0.5 * cycle.bilinear(v, v))
    rest = cycle.bilinear(v, mean) + cycle.bilinear(v.conj(), twice) + 0.5 * cycle.cubic(v)
    rest = rest - a1 * (cycle.moved(v) - turn * v)
    d = float(problem.share(rest, v).real)
    return {"d": d}, f"{'super' if d < 0 else 'sub'}critical torus"
