"""GMRES as a Lineax solver that stops inside its cycle and counts its products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree, ScalarLike

from .._checks import check_count, check_tolerance
from ..analytic import on_shards, vary_like, while_loop
from ._loop import wanted, while_wanted, write_rows


# Why a GMRES of our own. An inexact Newton method asks for 1e-1 in most of its steps and for little more in
# the last; it gains only from a solver that stops as soon as that is met. Lineax's looks once a restart cycle
# (measured: 43 products for 1e-1 and for 1e-10 alike) and counts cycles, not products. Here Givens rotations
# keep the residual known after every product (Saad & Schultz 1986), so that to look is free; and nothing is
# preconditioned from the left, so that the residual that is minimised is that of the system itself.
class GMRES(lx.AbstractLinearSolver):
    """Restarted GMRES (Saad & Schultz 1986) for a square, matrix-free operator.

    It looks at its tolerance after every product, and stops when the true residual satisfies
    `‖b - A y‖₂ ≤ atol + rtol ‖b‖₂`. Breakdown ends the cycle with the exact solution of the Krylov space.

    **Arguments:** `rtol`, `atol`; `restart`: products per cycle; `max_steps`: products in all, rounded up to
    whole cycles.

    `options={"y0": …}` gives a starting guess, dropped where 0 is no worse. `stats`: `num_steps` (products with the
    operator, those for residuals included) and `residual` (relative, true). A failure is a `RESULTS` value, never
    silence.

    ```python
    import lineax

    operator = lineax.MatrixLinearOperator(jnp.diag(1 + jnp.arange(4.0)))
    found = lineax.linear_solve(operator, x, ej.GMRES(rtol=1e-6))
    assert jnp.allclose(found.value, x / (1 + jnp.arange(4.0)), rtol=1e-5)
    ```
    """

    rtol: ScalarLike = 1e-6
    atol: ScalarLike = 0.0
    restart: int = eqx.field(default=30, static=True)
    max_steps: int = eqx.field(default=300, static=True)

    def __check_init__(self):
        check_tolerance(self.rtol, self.atol)
        check_count(restart=self.restart, max_steps=self.max_steps)

    def init(self, operator, options):
        if jax.tree.map(lambda s: (s.shape, s.dtype), operator.in_structure()) != jax.tree.map(
            lambda s: (s.shape, s.dtype), operator.out_structure()
        ):
            raise ValueError("`GMRES` needs a square operator: one whose input and output agree.")
        # Once a solve: the operator of a Jacobian would evaluate its field again with every product.
        return lx.linearise(operator)

    def compute(self, state, vector: PyTree[Array], options: dict[str, Any]):
        b, unravel = ravel_pytree(vector)
        y0 = ravel_pytree(options["y0"])[0] if "y0" in options else jnp.zeros_like(b)

        def apply(flat):
            return ravel_pytree(state.mv(unravel(flat)))[0]

        # Relative to b, not to the first residual: a good guess must not tighten what is asked.
        target = self.atol + self.rtol * _norm(b)
        # A Krylov space has at most as many directions as b has numbers: more would be rounding.
        restart = min(self.restart, b.size)
        warm = "y0" in options
        # Without a guess the residual is b, and a product is saved.
        r0 = b
        if warm:
            r0 = b - apply(y0)
            # Worse than none it is dropped. So b = 0 gives 0, exactly: rounding would not take a guess there.
            helps = _norm(r0) < _norm(b)
            y0, r0 = jnp.where(helps, y0, 0), jnp.where(helps, r0, b)

        def unfinished(carry):
            _, _, size, products, previous = carry
            # Restarted, it is sure to converge only where A + Aᵀ is definite (Saad & Schultz 1986);
            # elsewhere, and at the floor of the dtype, it may stand still and spend the whole budget there.
            # A cycle that gains less than one part in a hundred: nothing more is to be had.
            return (size > target) & (products < self.max_steps) & (size < 0.99 * previous)

        def cycle(carry):
            y, r, size, products, _ = carry
            asked = jnp.where(unfinished(carry), target, jnp.inf)  # nothing of a sample that waits
            correction, used = _arnoldi(apply, r, size, asked, restart)
            y = y + correction
            # The residual of the rotations drifts from the true one as rounding gathers, in float32 soon. One
            # product a cycle buys the truth, which alone decides whether the solve succeeded.
            r = b - apply(y)
            return y, r, _norm(r), products + used + 1, size

        # The first cycle has none before it to be compared with.
        infinity = jnp.full_like(_norm(b), jnp.inf)
        start = (y0, r0, _norm(r0), jnp.asarray(int(warm)), infinity)
        y, _, size, products, _ = while_wanted(unfinished, cycle, start)

        # Negated, so that NaN counts as failed. What comes back then is no solution, and must say so: taken
        # for an adjoint it would be a wrong gradient without a word.
        failed = ~(size <= target)
        result = lx.RESULTS.where(
            failed,
            lx.RESULTS.where(
                products >= self.max_steps, lx.RESULTS.max_steps_reached, lx.RESULTS.stagnation
            ),
            lx.RESULTS.successful,
        )
        scale = jnp.where(_norm(b) > 0, _norm(b), jnp.ones_like(size))
        stats = {"num_steps": products, "max_steps": self.max_steps, "residual": size / scale}
        return unravel(y), result, stats

    def transpose(self, state, options):
        return state.transpose(), {}

    def conj(self, state, options):
        return lx.conj(state), {}

    def assume_full_rank(self):
        # Otherwise Lineax would differentiate a solve as a pseudo-inverse, at the price of further solves.
        return True


class _Product(NamedTuple):
    mv: Callable[[PyTree[Array]], PyTree[Array]]


# Why not always `lineax.linear_solve`: its primitive forgets over which devices an array varies, and what is then taken for
# the same on all of them is summed where it must not be, and not where it must.
def solve_linear(
    product: Callable[[PyTree[Array]], PyTree[Array]], rhs: PyTree[Array], solver: Any
) -> tuple[PyTree[Array], Bool[Array, ""], dict[str, Any]]:
    """A Lineax solver's solution of `product(v) = rhs`, whether it failed, and its `stats`; also under `shard_map`, where it
    is not to be differentiated.

    ```python
    found, failed, stats = ej.relaxation.solve_linear(lambda v: 2 * v, x, ej.GMRES())
    assert jnp.allclose(found, 0.5) and not failed
    ```
    """
    if isinstance(solver, GMRES) and on_shards():
        value, result, stats = solver.compute(_Product(product), rhs, {})
    else:
        operator = lx.FunctionLinearOperator(product, jax.eval_shape(lambda: rhs))
        found = lx.linear_solve(operator, rhs, solver, throw=False)
        seen = jax.eval_shape(product, rhs)
        value, result, stats = vary_like((found.value, found.result, found.stats), rhs, seen)
    return value, result != lx.RESULTS.successful, stats


def adjoint_solver(z: PyTree[Array]) -> GMRES:
    """For adjoint equations: as tight as the dtype allows on a stiff field, where rounding stops a solve early.

    ```python
    assert ej.relaxation.adjoint_solver(x).rtol <= 1e-4
    ```
    """
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(z))
    return GMRES(rtol=1e-4 if eps > 1e-10 else 1e-10)


# Of numbers scaled to 1: squares leave the range of the dtype at the root of its ends, where a small operator, or a
# small b, would have norm 0 and count as solved.
def _norm(v):
    size = jnp.abs(v)
    top = jnp.max(size, initial=0)
    top = jnp.where((top > 0) & jnp.isfinite(top), top, jnp.ones_like(top))
    return top * jnp.sqrt(jnp.sum((size / top) ** 2))


# Why classical Gram–Schmidt, twice, and not the modified one: it is a pair of matrix–vector products where
# the other is j inner products one after another, each waiting for the last. Done once it loses orthogonality
# with the square of the condition number; done twice it keeps it to rounding (Giraud, Langou, Rozložník & van
# den Eshof 2005). All arrays have their final size from the start: a compiled loop carries none that grows.
def _arnoldi(apply, r, size, target, m):
    """One cycle: the correction that minimises the residual over the Krylov space, and products used.

    The Hessenberg matrix is kept as `R = G H`, with `G` the accumulated Givens rotations, so the residual is
    known after every product.
    """
    dtype, tiny = r.dtype, jnp.finfo(r.dtype).tiny
    eps = jnp.finfo(r.dtype).eps
    safe = jnp.where(size > 0, size, jnp.ones_like(size))
    first = (r / safe.astype(dtype))[None]
    basis = write_rows(jnp.zeros((m + 1, r.size), dtype), first, jnp.asarray(0))
    rhs = jnp.zeros(m + 1, dtype).at[0].set(size.astype(dtype))

    def going(carry):
        _, _, _, _, j, _, residual, broke = carry
        return (j < m) & (residual > target) & ~broke

    def extend(carry):
        basis, triangle, rotation, rhs, j, used, residual, broken = carry
        on = going(carry)
        w = apply(basis[j])
        # Measured before orthogonalisation: what is left after it is judged against this.
        length = _norm(w)
        h = jnp.zeros(m + 1, dtype)
        for _ in range(2):  # unwritten rows of the basis are zero and take no part
            overlap = basis.conj() @ w
            w, h = w - overlap @ basis, h + overlap
        beta = _norm(w)
        # Only rounding is left: A maps the space into itself, and for a regular A the solution lies in it
        # (Saad & Schultz 1986). Scaled to length 1 the rest would be noise, and not orthogonal to the basis.
        broke = beta <= 10 * eps * length
        # So is all that comes after the end of a sample whose batch goes on.
        w = jnp.where(broke | ~on, 0, w / jnp.maximum(beta, tiny).astype(dtype))
        beta = jnp.where(broke, 0, beta)
        # All earlier rotations at once, by their product: one by one they would be a loop of j steps.
        column = rotation @ h.at[j + 1].set(beta.astype(dtype))
        a, c = column[j], column[j + 1]
        hypotenuse = jnp.hypot(jnp.abs(a), jnp.abs(c))
        # Both are 0 only where A is singular on the space: the column then drops out at the end.
        hypotenuse = jnp.where(hypotenuse > 0, hypotenuse, jnp.ones_like(hypotenuse)).astype(dtype)
        # Conjugated, so that for complex numbers, too, the lower entry vanishes and the upper one is real.
        cos, sin = a.conj() / hypotenuse, c.conj() / hypotenuse

        def rotate(rows):
            top, low = rows[j], rows[j + 1]
            rows = rows.at[j].set(cos * top + sin * low)
            return rows.at[j + 1].set(cos.conj() * low - sin.conj() * top)

        rotation, rhs, column = rotate(rotation), rotate(rhs), rotate(column)
        triangle = triangle.at[:, j].set(column[:m])
        return (
            write_rows(basis, w[None], j + 1),
            triangle,
            rotation,
            rhs,
            j + 1,
            jnp.where(on, j + 1, used),
            jnp.where(on, jnp.abs(rhs[j + 1]), residual),
            # Nothing good comes after an overflow; the true residual will report it.
            jnp.where(on, broke | ~jnp.isfinite(length), broken),
        )

    start = (
        basis,
        # The identity where no column is written yet: the triangle is regular wherever the cycle ends.
        jnp.eye(m, dtype=dtype),
        jnp.eye(m + 1, dtype=dtype),
        rhs,
        jnp.asarray(0),  # one number for the batch, so that a basis is written at one place
        jnp.asarray(0),
        size,
        jnp.asarray(False),
    )
    final = while_loop(lambda carry: wanted(going(carry)), extend, start)
    basis, triangle, _, rhs, _, used, _, _ = final
    mine = jnp.arange(m) < used
    # Entry `used` is the residual, which no vector of the space removes: left in, it would weigh one.
    rhs = jnp.where(mine, rhs[:m], 0)
    # What the loop wrote for others' sake.
    triangle = jnp.where(mine, triangle, jnp.eye(m, dtype=dtype))
    # The ones of columns that were not written are no measure of A.
    diagonal = jnp.where(mine, jnp.abs(jnp.diagonal(triangle)), 0)
    # A singular A leaves a zero on the diagonal. Without its coefficient the step is finite, where a division
    # would give infinity; whether it was enough the true residual tells.
    singular = diagonal <= 10 * eps * jnp.max(diagonal)
    # The whole row, since a one that is added to the diagonal would be large or small as A happens to be.
    triangle = jnp.where(singular[:, None], jnp.eye(m, dtype=dtype), triangle)
    weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(singular, 0, rhs))
    return weights @ basis[:m], used
