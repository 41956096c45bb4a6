"""Functions of an operator that bring the wanted part of its spectrum to the edge."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ScalarLike

from .._checks import check_count, check_kind, check_number, check_positive, given
from ..relaxation import GMRES
from ._decomposition import expand, unit
from ._host import largest, on_host
from ._krylov_schur import AbstractTransform, Transformed, everything
from ._linear_solver import direct_solver
from ._sparse import SparseLU


class ShiftInvert(AbstractTransform):
    """The eigenvalues nearest to `target`: those of largest magnitude of `(A - σ)⁻¹`, each product a linear solve.

    A complex target makes the search complex, at two products with a real A for one: then eigenvalues near σ come
    without their conjugates.

    **Arguments:**

    - `target`: σ, real or complex; no eigenvalue itself, or the systems are singular.
    - `solver`: a Lineax solver. By default `SparseLU` of an A of more than 100 rows that couples neighbours only (a few
      products), `lineax.LU()` of others up to 400 (as many products as rows), and beyond a tight `GMRES`, which never forms
      the matrix but needs many products when A is stiff.

    A solve that fails shows in the residuals of the eigenpairs, which are those of A.

    ```python
    found = ej.stability.spectrum(network, origin, k=2, transform=ej.stability.ShiftInvert(0.0))
    assert jnp.allclose(found.values.real, -0.375)
    ```
    """

    target: Any
    solver: Any = None
    which: str = eqx.field(default="LM", init=False, static=True)

    def dtype(self, dtype):
        return np.result_type(dtype, np.complex64) if jnp.iscomplexobj(self.target) else dtype

    def prepare(self, mv, noise):
        shift = jnp.asarray(self.target).astype(noise.dtype)
        like = jax.ShapeDtypeStruct(noise.shape, noise.dtype)
        solver = direct_solver(mv, like) if self.solver is None else self.solver
        if solver is None:
            tight = 100 * float(jnp.finfo(noise.dtype).eps)
            solver = GMRES(rtol=tight, restart=60, max_steps=3000)
        system = lx.FunctionLinearOperator(lambda v: mv(v) - shift * v, like)
        state = solver.init(system, {})

        def apply(v):
            solution = lx.linear_solve(system, v, solver, state=state, throw=False)
            return solution.value, jnp.asarray(solution.stats.get("num_steps", 0))

        dense = isinstance(solver, (lx.LU, lx.QR, lx.SVD, lx.AutoLinearSolver))
        formed = noise.size if dense else getattr(getattr(state, "pattern", None), "count", 0)
        return Transformed(apply, everything, jnp.asarray(formed))

    def rank(self, values):
        return -abs(values - jnp.asarray(self.target).astype(values.dtype))


# Why not the eigenvalues nearest to a point: the rightmost pair need not be among them. Every eigenvalue lies in a box that
# the entries of A tell, to the left of ρ and within ±β of the real axis. From c = ρ + β all of it is seen under an angle
# of 45° at most, `(A - c)⁻¹` sends all that is far to the left to 0, and its Ritz values tell Re λ, by which they are ranked.
class Rightmost(AbstractTransform):
    """The rightmost eigenvalues of a stiff and sparse A, such as that of a discretised partial differential equation, by
    one solve for a product.

    It is `(A - c)⁻¹` with a real c to the right of the spectrum, that is found from the entries of A (Bendixson 1902): as far
    beyond it as eigenvalues can be from the real axis. It is what `spectrum` takes by itself for a large state whose field
    couples neighbours only. Where the skew part of A is as large as A, as with fast advection, c is far away, and this is
    no better than A itself.

    **Arguments:** `solver`: a `SparseLU`.

    ```python
    transform = ej.stability.Rightmost()  # `spectrum(..., transform=transform)`
    assert transform.solver == ej.stability.SparseLU()
    ```
    """

    solver: SparseLU = SparseLU()
    which: str = eqx.field(default="rational", init=False, static=True)

    def __check_init__(self):
        check_kind(SparseLU, "a `SparseLU`", solver=self.solver)

    def prepare(self, mv, noise):
        like = jax.ShapeDtypeStruct(noise.shape, noise.dtype)
        entries: Any = self.solver.init(lx.FunctionLinearOperator(mv, like), {})
        right, aside = entries.bounds()
        # A symmetric A has no imaginary parts, and 0 no size.
        tiny = jnp.finfo(right.dtype).eps * jnp.max(jnp.abs(entries.values))
        unit = jnp.maximum(jnp.maximum(aside, 0.1 * jnp.abs(right)), jnp.maximum(tiny, 1e-30))
        shift = right + 1.01 * unit
        state = entries.shifted(shift)

        def apply(v):
            # Not refined: what it finds is judged by products with A.
            return unit.astype(v.dtype) * state.solve(v)[0], jnp.asarray(1)

        return Transformed(apply, everything, jnp.asarray(entries.pattern.count))

    def dtype(self, dtype):
        return dtype

    def rank(self, values):
        return values.real


class Propagator(AbstractTransform):
    """The rightmost eigenvalues of a stiff A, as the largest of a polynomial that stands in for `exp(t A)`.

    It is the stability polynomial of a strongly damped Runge–Kutta–Chebyshev method (van der Houwen & Sommeijer
    1980), `P(A) = T_s(w₀ + w₁ t A) / T_s(w₀)`, with `P(0) = 1`, `P'(0) = t` and |P| ≤ 1/gain on the negative real
    axis from about `-3/t` to `-s²/(3t)`: a Chebyshev filter (Saad 1984) whose parameter is a time. Slow modes keep
    their size and stiff ones vanish, at a cost that grows only as the root of the stiffness; few vectors are then
    enough. It is made for spectra that stretch along the negative real axis. An eigenvalue that the polynomial
    amplified by a tenth more than `exp(t A)` would is reported as not converged: take a shorter time.

    **Arguments:**

    - `time`: t, in the units of the field; several times shorter than the decay of the last mode wanted.
    - `stages`: the degree s, which is also the number of products each application takes. By default the least
      that is stable for the spectral radius of A, estimated by 20 products and enlarged by a tenth.
    - `gain`: by which the origin stands above the damped interval.

    ```python
    transform = ej.stability.Propagator(time=1.0, stages=8)
    ```
    """

    time: ScalarLike
    stages: int | None = eqx.field(default=None, static=True)
    gain: ScalarLike = 100.0
    which: str = eqx.field(default="LM", init=False, static=True)

    def __check_init__(self):
        check_positive(time=self.time)
        check_count(**given(stages=self.stages))
        check_number("be above 1 and finite", lambda v: 1 < v < float("inf"), gain=self.gain)

    def prepare(self, mv, noise):
        real = jnp.finfo(noise.dtype).dtype
        time, eta = jnp.asarray(self.time, real), jnp.arccosh(jnp.asarray(self.gain, real))
        if self.stages is None:
            radius, products = spectral_radius(mv, noise)
            stages = jnp.ceil(jnp.sqrt(1.1 * time * radius * eta / (2 * jnp.tanh(eta))))
            stages = jnp.maximum(stages, 1)
        else:
            stages, products = jnp.asarray(self.stages, real), jnp.asarray(0)
        count = stages.astype(jnp.int32)
        w0 = jnp.cosh(eta / stages)
        w1 = jnp.sinh(eta / stages) / (stages * jnp.tanh(eta))  # T_s(w₀) / T_s'(w₀)

        def polynomial(mv, v):
            def inner(v):
                return w0.astype(v.dtype) * v + (w1 * time).astype(v.dtype) * mv(v)

            def step(_, pair):
                previous, current = pair
                return current, 2 * inner(current) - previous

            _, last = jax.lax.fori_loop(1, count, step, (v, inner(v)))
            return last / jnp.cosh(eta).astype(v.dtype)

        def faithful(values):
            gain = abs(polynomial(lambda v: values * v, jnp.ones_like(values)))
            return gain <= 1.1 * jnp.exp(time * values.real)

        return Transformed(lambda v: (polynomial(mv, v), count), faithful, products)

    def dtype(self, dtype):
        return dtype

    def rank(self, values):
        return values.real


def spectral_radius(mv, start: Array) -> tuple[Array, Array]:
    """A rough, low estimate of the largest |eigenvalue|, by at most 20 steps of Arnoldi; and the products made."""
    m = min(20, start.size)
    basis = jnp.zeros((m + 1, start.size), start.dtype).at[0].set(unit(start))
    projection = jnp.zeros((m + 1, m), start.dtype)
    zero = jnp.asarray(0, jnp.int32)
    _, projection, products = expand(
        lambda v: (mv(v), jnp.asarray(1)), basis, projection, zero, start
    )
    radius = jax.ShapeDtypeStruct((), jnp.finfo(start.dtype).dtype)
    return on_host(largest, radius, projection[:m]), products
