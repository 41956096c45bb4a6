"""Where a fixed point is critical: the equations that have such points for regular roots, solved to rounding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..analytic import tree_held
from ..fields import on_complex_vectors
from ..relaxation import GMRES
from ._decomposition import scattered
from ._linear_solver import DENSE, solution_of
from ._normal_form import cubic_term, lyapunov_coefficient
from ._parameter import Line


def solve_square(
    product: Callable[[Any], Any],
    right: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver | None = None,
) -> PyTree[Array]:
    """The solution of a square linear system: by LU while it is small, by GMRES to rounding beyond."""
    flat, unravel = ravel_pytree(right)
    apply = lambda v: ravel_pytree(product(unravel(v)))[0]
    if linear_solver is not None and not isinstance(linear_solver, lx.LU):
        return unravel(solution_of(apply, flat, linear_solver))
    if flat.size <= DENSE:
        matrix = jax.vmap(apply, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
        return unravel(jnp.linalg.solve(matrix, flat))
    tight = 100 * float(jnp.finfo(flat.dtype).eps)
    operator = lx.FunctionLinearOperator(apply, jax.eval_shape(lambda: flat))
    solution = lx.linear_solve(operator, flat, GMRES(tight, 0.0, 60, 240), throw=False)
    # NaN ends whoever iterates on it.
    return unravel(jnp.where(solution.result == lx.RESULTS.successful, solution.value, jnp.nan))


def solve_both(
    product: Callable[[Any], Any],
    adjoint: Callable[[Any], Any],
    right: PyTree[Array],
    linear_solver: lx.AbstractLinearSolver | None = None,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """`solve_square` of a system and of its adjoint, with the same right-hand side."""
    flat, unravel = ravel_pytree(right)
    dense = linear_solver is None or isinstance(linear_solver, lx.LU)
    if not dense or flat.size > DENSE:
        return tuple(solve_square(p, right, linear_solver) for p in (product, adjoint))  # pyright: ignore
    apply = lambda v: ravel_pytree(product(unravel(v)))[0]
    matrix = jax.vmap(apply, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
    # As a batch of two, they are one solver to compile.
    pair = jnp.stack([matrix, matrix.conj().T]), jnp.stack([flat, flat])[..., None]
    first, second = jnp.linalg.solve(*pair)[..., 0]
    return unravel(first), unravel(second)


class Critical(NamedTuple):
    """A candidate: state z (n,), parameter q, and `extra`: the angle θ of a pair, the unfolding of a branch point, or ()."""

    z: Array
    q: Array
    extra: Any


class Vectors(NamedTuple):
    """Right and left null vectors to be, and by their directions the borders of the next system."""

    right: Array
    left: Array


# Why bordered. Where J - σ is singular, [J - σ, b; cᴴ, 0] is not, for almost all b and c, and of its solution for
# (0, 1) the last number g vanishes just there (Griewank & Reddien 1984; Govaerts 2000). With the solutions v and w of
# the system and of its adjoint `g = -wᴴ (J - σ) v` exactly, and with v and w held the derivative is right as well: so no
# second derivative of more than one number is needed, and no eigenvalue. σ is 0 at a fold, iω at a Hopf point; under
# Euler's map -2/ε at a flip and (exp iθ - 1)/ε at a Neimark–Sacker point.
# At a branch point [J, F_q] lacks a rank, and two numbers vanish; one unknown more, an imperfection, makes it regular.
class Defining(eqx.Module):
    """`F(z, q) = 0` and what makes z critical, along a `line`; `kind` as `SpecialPoint` names it."""

    line: Line
    x: PyTree
    step: Any
    unravel: Callable[[Array], PyTree] = eqx.field(static=True)
    kind: str = eqx.field(static=True)
    linear_solver: lx.AbstractLinearSolver | None = None

    def solve(self, product, right):
        return solve_square(product, right, self.linear_solver)

    @property
    def turning(self) -> bool:
        """Whether a pair is critical."""
        return self.kind in ("Hopf", "Neimark–Sacker")

    def extra(self, value, dtype):
        """What else is unknown, as a search begins near an eigenvalue."""
        if self.turning:
            angle = value.imag if self.kind == "Hopf" else np.angle(1 + float(self.step) * value)
            return jnp.asarray(abs(angle), dtype)
        return jnp.zeros((), dtype) if self.kind == "branch point" else ()

    def force(self, z, q):
        return ravel_pytree(self.line.at(q)(0.0, self.unravel(z), self.x))[0]

    def shift(self, y):
        """σ"""
        if self.kind == "Hopf":
            return jax.lax.complex(jnp.zeros_like(y.q), y.extra)
        if self.kind == "Neimark–Sacker":
            turn = jax.lax.complex(jnp.cos(y.extra) - 1, jnp.sin(y.extra))
            return turn / self.step.astype(turn.dtype)
        return -2 / self.step if self.kind == "flip" else jnp.zeros_like(y.q)

    def cubic(self, y, right, left):
        """l₁ of a Hopf point; of a Neimark–Sacker point the d of `normal_form`. From null vectors of any length."""
        force = lambda z: self.force(z, y.q)
        rest = right, left, solve_square
        if self.kind == "Hopf":
            return lyapunov_coefficient(force, y.z, y.extra, *rest)
        whole = lambda angle: jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
        # A map is a flow whose second harmonic grows at the rate of the square of the multiplier.
        twice = (whole(2 * y.extra) - 1) / self.step.astype(right.dtype)
        turned = cubic_term(force, y.z, twice, *rest) * whole(-y.extra)
        return self.step * turned.real

    def first_vectors(self, y) -> Vectors:
        """Borders that nothing is orthogonal to, but by accident."""
        dtype = self.shift(y).dtype
        shape = (2, y.z.size + 1) if self.kind == "branch point" else y.z.shape
        return self.directions(Vectors(scattered(shape, 0, dtype), scattered(y.z.shape, 1, dtype)))

    def directions(self, vectors) -> Vectors:
        right, left = vectors
        unit = lambda v: v / jnp.linalg.norm(v).astype(v.dtype)
        return Vectors(jnp.linalg.qr(right.T)[0].T if right.ndim == 2 else unit(right), unit(left))

    def vectors(self, y, borders) -> Vectors:
        """The vectors there, held."""
        return tree_held(self.raw_vectors(y, borders))

    def raw_vectors(self, y, borders) -> Vectors:
        """The solutions of the bordered systems of J and of its adjoint."""
        c, b = borders
        if self.kind == "branch point":
            _, product = jax.linearize(self.force, y.z, y.q)
            transposed = jax.linear_transpose(product, y.z, y.q)
            n = y.z.size

            def system(u):
                rows = product(u[:n], u[n]) + u[n + 1] * b, c @ u[: n + 1]
                return jnp.concatenate(rows)

            def adjoint(u):
                down, q = transposed(u[:n])
                return jnp.append(jnp.append(down, q) + u[n:] @ c, b @ u[:n])

            one = jnp.eye(n + 2, dtype=b.dtype)
            right = jnp.stack(
                [self.solve(system, one[n])[: n + 1], self.solve(system, one[n + 1])[: n + 1]]
            )
            return Vectors(right, self.solve(adjoint, one[n + 1])[:n])
        _, product = jax.linearize(lambda z: self.force(z, y.q), y.z)
        transpose = jax.linear_transpose(product, y.z)
        transposed = lambda w: transpose(w)[0]
        if self.turning:
            product, transposed = map(on_complex_vectors, (product, transposed))
        sigma = self.shift(y)
        zero, one = jnp.zeros_like(b), jnp.ones((), b.dtype)
        ahead = lambda u: (product(u[0]) - sigma * u[0] + u[1] * b, jnp.vdot(c, u[0]))
        back = lambda u: (
            transposed(u[0]) - sigma.conj() * u[0] + u[1] * c,
            jnp.vdot(b, u[0]),
        )
        found = solve_both(ahead, back, (zero, one), self.linear_solver)
        return Vectors(*(vector for vector, _ in found))

    def equations(self, y, vectors, border) -> Critical:
        """What vanishes, in the structure of a candidate."""
        force, (v, w) = self.force(y.z, y.q), vectors
        if self.kind == "branch point":
            along = lambda u: jax.jvp(self.force, (y.z, y.q), (u[:-1], u[-1]))[1]
            return Critical(force + y.extra * border, *(-w @ along(u) for u in v))
        along = lambda u: jax.jvp(lambda z: self.force(z, y.q), (y.z,), (u,))[1]
        if self.turning:
            g = jnp.vdot(w, self.shift(y) * v - on_complex_vectors(along)(v))
            return Critical(force, g.real, g.imag)
        return Critical(force, w @ (self.shift(y) * v - along(v)), ())

    def newton_step(self, y, borders) -> tuple[Critical, Vectors, Array]:
        """The next candidate, its borders, and the size of the step."""
        vectors = self.vectors(y, borders)
        equations = lambda y: self.equations(y, vectors, borders.left)
        value, product = jax.linearize(equations, y)
        change = self.solve(product, value)
        size = jnp.linalg.norm(change.z) / jnp.maximum(jnp.linalg.norm(y.z), 1)
        size = jnp.maximum(size, jnp.abs(change.q))
        return jax.tree.map(jnp.subtract, y, change), self.directions(vectors), size


class Polished(NamedTuple):
    """A critical point: z, q, θ or (); `error`, of q, that rounding leaves; `converged`; σ, the eigenvalue there."""

    z: Array
    q: Array
    extra: Any
    error: Array
    converged: Array
    shift: Array


class _Search(NamedTuple):
    """Where a search stands: the size of the last step; of arrivals at the floor the first and the spread of the others."""

    y: Critical
    borders: Vectors
    size: Array
    steps: Array
    arrivals: Array
    first: Critical
    spread: Array


# Why shaken. Newton's method ends where rounding in F moves the root about, and by how much depends on the condition of
# the system in its own units, which no norm of F tells. Set out anew from starts that differ in the eighth digit, it
# arrives at the sixteenth, and the spread of the arrivals is the error.
@eqx.filter_jit
def polish(system: Defining, z: Array, q: Array, extra: Any) -> Polished:
    """The critical point near a candidate, as well as rounding allows."""
    eps, dtype = float(jnp.finfo(z.dtype).eps), z.dtype
    big = jnp.asarray(1.0, dtype)

    def shaken(y, seed):
        # Relative to each component: those that are zero stay so.
        flat, unravel = ravel_pytree(y)
        return unravel(flat * (1 + eps**0.5 * scattered(flat.shape, seed, dtype)))

    def unfinished(at):
        return jnp.isfinite(at.size) & (at.arrivals < 5) & (at.steps < 15 * (at.arrivals + 1))

    def body(at):
        y, borders, size = system.newton_step(at.y, at.borders)
        # At the floor of rounding steps shrink no more.
        arrived = (size >= 0.5 * at.size) & (at.size < eps**0.4)
        first = arrived & (at.arrivals == 0)
        known = jax.tree.map(lambda new, old: jnp.where(first, new, old), y, at.first)
        spread = jnp.where(arrived, jnp.maximum(at.spread, jnp.abs(y.q - known.q)), at.spread)
        moved = shaken(known, at.steps)
        y = jax.tree.map(lambda new, old: jnp.where(arrived, new, old), moved, y)
        size = jnp.where(arrived, big, size)
        return _Search(
            y,
            borders,
            size,
            at.steps + 1,
            at.arrivals + arrived.astype(at.arrivals.dtype),
            known,
            spread,
        )

    y, zero = Critical(z, q, extra), jnp.asarray(0)
    begun = _Search(y, system.first_vectors(y), big, zero, zero, y, jnp.zeros_like(q))
    end = jax.lax.while_loop(unfinished, body, begun)
    y, line = end.first, system.line
    digit = eps * (jnp.abs(y.q) + jnp.abs(line.low / line.span))
    error = 4 * end.spread + 2 * digit
    return Polished(*y, error, (end.arrivals == 5) & (error < eps**0.4), system.shift(y))
