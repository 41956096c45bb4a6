"""`spectrum`: how the modes of a field at a settled state grow, ring and decay."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray, PyTree, ScalarLike

from .. import relaxation
from .._checks import check_key, check_kind, check_positive, check_precision, given
from ..analytic import matmul
from ..fields import on_complex_vectors
from ._host import unless_good
from ._jacobian import jacobian, state_dtype
from ._krylov_schur import (
    AbstractTransform,
    Plain,
    check_sizes,
    eigenpairs,
    judged,
    resolve,
    unravel_complex,
)
from ._linear_solver import direct_solver
from ._sparse import SparseLU
from ._token_spectrum import by_blocks, token_modes
from ._transforms import Rightmost


class SpectrumResults(relaxation.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Outcome of a spectrum: those of a relaxation, and two of our own."""

    eigenpairs_not_converged = (
        "Some eigenpairs did not converge: their residuals are above the tolerance. Either (a) search longer "
        "(`max_restarts=...`) or in a larger space (`ncv=...`, the best remedy for clustered eigenvalues); (b) ask "
        "for a `tol` that this dtype can reach; (c) help a stiff field with `transform=Propagator(time)`, "
        "`ShiftInvert(point)` or, of few neighbours, `Rightmost(SparseLU())`; or, with one of these, (d) a shorter time or a tighter linear solver. With "
        "`throw=False` the pairs come back, each with its residual."
    )
    jacobian_not_finite = (
        "The force or a product with its Jacobian is not finite at this state. Look for a NaN in `z`, in the input "
        "or in the parameters, or an operation that is not differentiable there (the norm of 0, say)."
    )


class Spectrum(eqx.Module):
    """Eigenvalues `μ = a + ib` of the Jacobian `J = ∂F/∂z` at a state, and what they mean. It prints as a table.

    - `values (k,)`, complex, most wanted first; of a conjugate pair the one above the real axis is first.
    - `vectors`: in the structure of the state, complex, leading axis k; unit length, largest entry real positive.
    - `left_vectors`: `wᴴ J = μ wᴴ`, alike and in the same order, with `wᴴ v = 1`, so that ‖w‖ is the condition number
      of the eigenvalue (beyond 0.1/eps it counts as defective, and not as converged); or None.
    - `residuals`: `‖J v - μ v‖ / |μ|`, of products made at the end; `left_residuals`, likewise with `Jᵀ`, or None.
      Where |μ| is below eps^⅔ of the size of J, that takes its place.
    - `converged (k,)`: which pairs met the tolerance, or the rounding floor of the dtype (see `Eigenpairs`).
    - `products`: all products with J or Jᵀ. `restarts`: of the Krylov space.
    - `force_residual`: `‖F‖ / max(‖z‖, 1)` at the state. If it is not small, this is the spectrum of no fixed point.
    - `step`: ε, or None. `result`: a `SpectrumResults` value. `tokens (k,)`: of a causal field that was taken by own
      blocks, the token to which each mode belongs; otherwise None.

    All the rest is derived from the values, mode by mode.
    """

    values: Complex[Array, "*b k"]
    vectors: PyTree[Array]
    left_vectors: PyTree[Array] | None
    residuals: Float[Array, "*b k"]
    left_residuals: Float[Array, "*b k"] | None
    converged: Bool[Array, "*b k"]
    products: Int[Array, "*b"]
    restarts: Int[Array, "*b"]
    force_residual: Float[Array, "*b"]
    step: Float[Array, "*b"] | None
    result: SpectrumResults
    tokens: Int[Array, "*b k"] | None = None

    @property
    def multipliers(self) -> Complex[Array, "*b k"]:
        """`λ = 1 + ε μ`, by which one Euler step multiplies a mode. Needs `step`."""
        if self.step is None:
            raise ValueError("`multipliers` need the Euler step ε: call `spectrum(..., step=ε)`.")
        step = jnp.expand_dims(self.step, -1)
        return jax.lax.complex(1 + step * self.values.real, step * self.values.imag)

    @property
    def critical_step(self) -> Float[Array, "*b k"]:
        """`-2a / (a² + b²)`: the Euler step at which the mode's multiplier leaves the unit disc. 0 for a mode that
        does not decay (`a ≥ 0`), which no step holds. The field's own is the least over all its modes."""
        a, size = self.values.real, jnp.abs(self.values)
        # Divided twice, so that the square of a small or large number is never taken.
        return jnp.where(a < 0, -2 * (a / size) / size, jnp.where(jnp.isnan(a), a, 0))

    @property
    def damping_ratio(self) -> Float[Array, "*b k"]:
        """`ζ = -a / |μ|`: 1 without ringing, 0 on the imaginary axis, negative if the mode grows; NaN at μ = 0."""
        return -self.values.real / jnp.abs(self.values)

    @property
    def frequency(self) -> Float[Array, "*b k"]:
        """Angular ringing frequency `|b|`, radians per unit of time."""
        return jnp.abs(self.values.imag)

    @property
    def settling_time(self) -> Float[Array, "*b k"]:
        """`-ln(0.02) / |a|`: the time in which the mode decays to 2 %; infinite if it does not decay."""
        a = self.values.real
        return jnp.where(a < 0, math.log(0.02) / a, jnp.where(jnp.isnan(a), a, jnp.inf))

    def __str__(self) -> str:
        try:
            np.asarray(self.values)
        except jax.errors.TracerArrayConversionError:
            return repr(self)
        if self.values.ndim > 1:
            return per_sample(self)
        columns = {
            "eigenvalue": [f"{v.real:+.6g} {v.imag:+.6g}i" for v in np.asarray(self.values)],
            "damping ratio": _column(self.damping_ratio),
            "frequency": _column(self.frequency),
            "settling time": _column(self.settling_time),
            "critical step": _column(self.critical_step),
            "residual": _column(self.residuals, ".1e"),
            "converged": ["yes" if c else "no" for c in self.converged],
        }
        if self.step is not None:
            columns["|multiplier|"] = _column(jnp.abs(self.multipliers))
        if self.tokens is not None:
            columns["token"] = _column(self.tokens, "d")
        cells = ([name, *column] for name, column in columns.items())
        step = "" if self.step is None else f"step {float(self.step):.4g}, "
        return (
            f"{aligned(list(zip(*cells, strict=True)), str.rjust)}\n"
            f"{step}force residual {float(self.force_residual):.1e}, {int(self.products)} products, "
            f"{int(self.restarts)} restarts"
        )


def aligned(lines: Sequence[Sequence[str]], justify: Callable = str.ljust) -> str:
    """Rows of cells, the first one the head, as text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(justify, line, widths)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def per_sample(batched: Any) -> str:
    """A batched result, printed sample by sample."""
    arrays, rest = eqx.partition(batched, eqx.is_array)
    count = jax.tree.leaves(arrays)[0].shape[0]
    parts = [eqx.combine(jax.tree.map(operator.itemgetter(i), arrays), rest) for i in range(count)]
    return "\n\n".join(f"sample {i}\n{part}" for i, part in enumerate(parts))


def _column(values, form=".4g"):
    return [format(v, form) for v in np.asarray(values)]


def spectrum(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    k: int = 6,
    which: str | None = None,
    transform: AbstractTransform | None = None,
    step: ScalarLike | None = None,
    left: bool = False,
    ncv: int | None = None,
    tol: ScalarLike | None = None,
    max_restarts: int = 1000,
    start: PyTree[Array] | None = None,
    key: PRNGKeyArray | None = None,
    throw: bool = True,
    precision: str | None = "highest",
) -> Spectrum:
    """The leading eigenvalues of a field's Jacobian at a state, for one sample (`jax.vmap` for a batch).

    By Krylov–Schur on Jacobian–vector products: no matrix is formed. Compiled as a whole. Of a state of more than 100
    numbers that each are coupled to a few others, as in a discretised partial differential equation, the rightmost
    eigenvalues are sought by `Rightmost`, a sparse solve for a product. The rightmost eigenvalues of an
    `AbstractCausalField` of up to 512 channels are taken from the own blocks of its tokens, all of them and exact, if no
    setting of a search is given (`which`, `transform`, `left`, `ncv`, `tol`, `start`); `tokens` says whose they are.

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt`, evaluated at t = 0; on a complex state it must be holomorphic.
    - `z`: a state, usually the `value` of an `equilibrium`. `x`: clamped input.
    - `k`, `which`, `ncv`, `tol`, `max_restarts`: as for `krylov_schur`; `which` is "LR" (rightmost, the default), "SR",
      "LM" or "LI".
    - `transform`: `ShiftInvert(point)` for the eigenvalues nearest to a point, `Propagator(time)` for the rightmost
      ones of a stiff field; then leave `which` out.
    - `step`: ε of the explicit Euler relaxation, for `multipliers`.
    - `left`: also left eigenvectors, by products with Jᵀ, at about the same cost again.
    - `start`: first Krylov vector, like `z`; by default drawn with `key`, which is `jax.random.key(0)` by default.
    - `throw`: raise when a pair did not converge. With `throw=False` look at `converged` and `result`.
    - `precision`: of matrix products (`jax.default_matmul_precision`).

    **Returns:** a `Spectrum`. Whether `z` is a fixed point is not checked but reported, as `force_residual`.

    Not differentiable: see `eigenvalue`.

    ```python
    found = ej.stability.spectrum(network, origin, k=2)
    assert jnp.allclose(found.values, jnp.array([-0.375 + 0.5j, -0.375 - 0.5j]))
    ```
    """
    check_positive(**given(step=step, tol=tol))
    kinds = "a transform such as `ShiftInvert(point)`"
    check_kind(AbstractTransform, kinds, **given(transform=transform))
    check_key(**given(key=key))
    check_precision(precision=precision)
    blocks = by_blocks(field, z, which, transform, ncv, tol, start) and not left
    if transform is not None or which not in (None, "LR"):
        transform = resolve(which, transform)
    key = jax.random.key(0) if key is None else key
    real = jnp.finfo(state_dtype(z)).dtype
    check_sizes(k, ncv, max_restarts, optax.tree.size(z))
    # Arrays, so that another step or tolerance does not compile anew.
    step = None if step is None else jnp.asarray(step, real)
    tol = None if tol is None else jnp.asarray(tol, real)
    with jax.default_matmul_precision(precision):
        if blocks:
            found, _ = block_spectrum(field, z, x, k, key)
        else:
            found = _spectrum(field, z, x, k, transform, left, ncv, tol, max_restarts, start, key)
    found = eqx.tree_at(lambda s: s.step, found, step, is_leaf=lambda leaf: leaf is None)
    if throw:
        good = found.result == SpectrumResults.successful
        return unless_good(good, found, lambda found: found.result.error_if(found, ~good))
    return found


@eqx.filter_jit
def _spectrum(field, z, x, k, transform, left, ncv, tol, max_restarts, start, key):
    J = jacobian(field, z, x)
    if transform is None:
        direct = direct_solver(J.mv, jax.eval_shape(lambda: J.force))
        transform = Rightmost(direct) if isinstance(direct, SparseLU) else Plain()
    first = J.random(key) if start is None else ravel_pytree(start)[0]
    if first.shape != J.force.shape or first.dtype != J.force.dtype:
        raise ValueError(
            f"`start` must be like `z`, {J.force.size} numbers of {J.force.dtype}, got {first.size} of {first.dtype}."
        )
    settings = (k, transform, ncv, tol, max_restarts)
    pairs, right = eigenpairs(J.mv, first, key, *settings)
    converged, products = pairs.converged, pairs.products
    left_vectors = left_residuals = None
    if left:
        # The transposed field has the same eigenvalues; conjugated, its vectors are the left ones.
        other, dual = eigenpairs(J.transposed, first, key, *settings)
        # Those combinations of the left subspace that are biorthogonal to the right vectors.
        weights = jnp.linalg.pinv(matmul(right.vectors, dual.basis.T).T)[:k]
        rows, images = matmul(weights, dual.basis), matmul(weights, dual.images)
        size = jnp.linalg.norm(rows, axis=1)
        size = jnp.where(size > 0, size, 1)
        defects = jnp.linalg.norm(images - pairs.values[:, None] * rows, axis=1) / size
        left_residuals, fine = judged(defects, pairs.values, other.magnitude, other.restarts, tol)
        # A defective eigenvalue has none, and none is found if the two searches found different values.
        dual_to_itself = abs(jnp.sum(rows * pairs.vectors, axis=1) - 1) < 1e-3
        well_posed = size < 0.1 / jnp.finfo(size.dtype).eps
        left_vectors = unravel_complex(J.unravel, rows.conj())
        converged &= fine & dual_to_itself & well_posed
        products += other.products
    return Spectrum(
        values=pairs.values,
        vectors=unravel_complex(J.unravel, pairs.vectors),
        left_vectors=left_vectors,
        residuals=pairs.residuals,
        left_residuals=left_residuals,
        converged=converged,
        products=products,
        restarts=pairs.restarts,
        force_residual=relaxation.residual_ratio(J.unravel(J.force), z, norm=optx.two_norm),
        step=None,
        result=_outcome(J, pairs.residuals, converged),
    )


def _outcome(J, residuals, converged):
    finite = jnp.all(jnp.isfinite(J.force)) & jnp.all(jnp.isfinite(residuals))
    failed = SpectrumResults.where(
        finite, SpectrumResults.eigenpairs_not_converged, SpectrumResults.jacobian_not_finite
    )
    return SpectrumResults.where(jnp.all(converged), SpectrumResults.successful, failed)  # pyright: ignore


@eqx.filter_jit
def block_spectrum(field, z, x, k, key) -> tuple[Spectrum, Complex[Array, "t c"]]:
    """The k rightmost modes of a causal field, and all its eigenvalues, by own blocks."""
    J, modes = jacobian(field, z, x), token_modes(field, z, x, k)
    products = jax.vmap(on_complex_vectors(J.mv))(modes.vectors)
    defects = jnp.linalg.norm(products - modes.values[:, None] * modes.vectors, axis=1)
    probe = J.random(key)
    magnitude = jnp.linalg.norm(J.mv(probe)) / jnp.linalg.norm(probe)
    once = jnp.asarray(1)
    residuals, converged = judged(defects, modes.values, magnitude, once, None)
    found = Spectrum(
        values=modes.values,
        vectors=jax.vmap(lambda v: v.reshape(z.shape))(modes.vectors),
        left_vectors=None,
        residuals=residuals,
        left_residuals=None,
        converged=converged,
        products=jnp.asarray(z.shape[1] + 2 * k + 1),
        restarts=once - 1,
        force_residual=relaxation.residual_ratio(J.unravel(J.force), z, norm=optx.two_norm),
        step=None,
        result=_outcome(J, residuals, converged),
        tokens=modes.tokens,
    )
    return found, modes.every
