"""GMRES as a Lineax solver that stops inside its cycle and counts its products."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree, ScalarLike

from ._residual import check_tolerance


class GMRES(lx.AbstractLinearSolver):
    """Restarted GMRES (Saad & Schultz 1986) for a square, matrix-free operator.

    Lineax's own checks its tolerance once a restart cycle; this one checks after every product, and stops when
    the true residual satisfies `‖b - A y‖₂ ≤ atol + rtol ‖b‖₂`. Arnoldi by twice-repeated classical
    Gram–Schmidt; breakdown ends the cycle with the exact solution of the Krylov space.

    **Arguments:** `rtol`, `atol`; `restart`: products per cycle; `max_steps`: products in all, rounded up to
    whole cycles.

    `options={"y0": …}` gives a starting guess. `stats`: `num_steps` (products with the operator, those for
    residuals included) and `residual` (relative, true). A failure is a `RESULTS` value, never silence.
    """

    rtol: ScalarLike = 1e-6
    atol: ScalarLike = 0.0
    restart: int = eqx.field(default=30, static=True)
    max_steps: int = eqx.field(default=300, static=True)

    def __check_init__(self):
        check_tolerance(self.rtol, self.atol)
        if self.restart < 1 or self.max_steps < 1:
            raise ValueError(
                f"`restart` and `max_steps` must be at least 1, got {self.restart} and {self.max_steps}."
            )

    def init(self, operator, options):
        if jax.tree.map(lambda s: (s.shape, s.dtype), operator.in_structure()) != jax.tree.map(
            lambda s: (s.shape, s.dtype), operator.out_structure()
        ):
            raise ValueError("`GMRES` needs a square operator: one whose input and output agree.")
        return lx.linearise(operator)

    def compute(self, state, vector: PyTree[Array], options: dict[str, Any]):
        b, unravel = ravel_pytree(vector)
        y0 = ravel_pytree(options["y0"])[0] if "y0" in options else jnp.zeros_like(b)

        def apply(flat):
            return ravel_pytree(state.mv(unravel(flat)))[0]

        target = self.atol + self.rtol * _norm(b)
        restart = min(self.restart, b.size)
        warm = "y0" in options
        r0 = b - apply(y0) if warm else b

        def unfinished(carry):
            _, _, size, products, previous = carry
            # A cycle that gains less than one part in a hundred: nothing more is to be had.
            return (size > target) & (products < self.max_steps) & (size < 0.99 * previous)

        def cycle(carry):
            y, r, size, products, _ = carry
            correction, used = _arnoldi(apply, r, size, target, restart)
            y = y + correction
            r = b - apply(y)
            return y, r, _norm(r), products + used + 1, size

        infinity = jnp.full_like(_norm(b), jnp.inf)
        start = (y0, r0, _norm(r0), jnp.asarray(int(warm)), infinity)
        y, _, size, products, _ = jax.lax.while_loop(unfinished, cycle, start)

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
        return True


def adjoint_solver(z: PyTree[Array]) -> GMRES:
    """For adjoint equations: as tight as the dtype allows on a stiff field, where rounding stops a solve early."""
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(z))
    return GMRES(rtol=1e-4 if eps > 1e-10 else 1e-10)


def _norm(v):
    return jnp.sqrt(jnp.sum(jnp.abs(v) ** 2))


def _arnoldi(apply, r, size, target, m):
    """One cycle: the correction that minimises the residual over the Krylov space, and products used.

    The Hessenberg matrix is kept as `R = G H`, with `G` the accumulated Givens rotations, so the residual is
    known after every product.
    """
    dtype, tiny = r.dtype, jnp.finfo(r.dtype).tiny
    eps = jnp.finfo(r.dtype).eps
    safe = jnp.where(size > 0, size, jnp.ones_like(size))
    basis = jnp.zeros((m + 1, r.size), dtype).at[0].set(r / safe.astype(dtype))
    rhs = jnp.zeros(m + 1, dtype).at[0].set(size.astype(dtype))

    def going(carry):
        _, _, _, _, j, residual, broke = carry
        return (j < m) & (residual > target) & ~broke

    def extend(carry):
        basis, triangle, rotation, rhs, j, _, _ = carry
        w = apply(basis[j])
        length = _norm(w)
        h = jnp.zeros(m + 1, dtype)
        for _ in range(2):  # unwritten rows of the basis are zero and take no part
            overlap = basis.conj() @ w
            w, h = w - overlap @ basis, h + overlap
        beta = _norm(w)
        broke = beta <= 10 * eps * length
        w = jnp.where(broke, 0, w / jnp.maximum(beta, tiny).astype(dtype))
        beta = jnp.where(broke, 0, beta)
        column = rotation @ h.at[j + 1].set(beta.astype(dtype))
        a, c = column[j], column[j + 1]
        hypotenuse = jnp.sqrt(jnp.abs(a) ** 2 + jnp.abs(c) ** 2)
        hypotenuse = jnp.where(hypotenuse > 0, hypotenuse, jnp.ones_like(hypotenuse)).astype(dtype)
        cos, sin = a.conj() / hypotenuse, c.conj() / hypotenuse

        def rotate(rows):
            top, low = rows[j], rows[j + 1]
            rows = rows.at[j].set(cos * top + sin * low)
            return rows.at[j + 1].set(cos.conj() * low - sin.conj() * top)

        rotation, rhs, column = rotate(rotation), rotate(rhs), rotate(column)
        triangle = triangle.at[:, j].set(column[:m])
        return (
            basis.at[j + 1].set(w),
            triangle,
            rotation,
            rhs,
            j + 1,
            jnp.abs(rhs[j + 1]),
            broke | ~jnp.isfinite(length),
        )

    start = (
        basis,
        jnp.eye(m, dtype=dtype),
        jnp.eye(m + 1, dtype=dtype),
        rhs,
        jnp.asarray(0),
        size,
        jnp.asarray(False),
    )
    basis, triangle, _, rhs, used, _, _ = jax.lax.while_loop(going, extend, start)
    rhs = jnp.where(jnp.arange(m) < used, rhs[:m], 0)
    diagonal = jnp.abs(jnp.diagonal(triangle))
    singular = diagonal <= 10 * eps * jnp.max(diagonal)
    triangle = triangle + jnp.diag(jnp.where(singular, jnp.ones_like(diagonal), 0).astype(dtype))
    weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(singular, 0, rhs))
    return weights @ basis[:m], used
