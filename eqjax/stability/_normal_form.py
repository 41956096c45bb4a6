"""`hopf_normal_form`: whether the cycle born in a Hopf bifurcation is stable."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray, PyTree, ScalarLike

from ..fields import on_complex_vectors
from ..relaxation import GMRES
from ._jacobian import real_dtype
from ._krylov_schur import AbstractTransform
from ._linear_solver import solver_of
from ._sparse import SparseLU
from ._spectrum import SpectrumResults, spectrum
from ._transforms import Rightmost


class HopfNormalForm(eqx.Module):
    """What `hopf_normal_form` returns: `ȧ = iω a + ω l₁ |a|² a` at the bifurcation.

    - `l1`: the first Lyapunov coefficient. Negative: supercritical, a stable cycle grows from the fixed point;
      positive: subcritical, an unstable one bounds its basin and the state is lost abruptly. Its sign alone does not
      depend on how vectors are normalised.
    - `frequency`: ω. `eigenvalue`: μ, whose real part tells how near the bifurcation the state is.
    - `residual`: the larger relative residual of the two linear solves. `result`: a `SpectrumResults` value of the eigenpair.
    """

    l1: Float[Array, ""]
    frequency: Float[Array, ""]
    eigenvalue: Complex[Array, ""]
    residual: Float[Array, ""]
    result: SpectrumResults

    @property
    def supercritical(self) -> Bool[Array, ""]:
        return self.l1 < 0

    def __str__(self) -> str:
        if isinstance(self.l1, Tracer) or self.l1.ndim:
            return repr(self)
        kind = "supercritical" if self.supercritical else "subcritical"
        return f"{kind} Hopf, l₁ = {float(self.l1):.8g}, ω = {float(self.frequency):.8g}"


def hopf_normal_form(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    k: int = 6,
    transform: AbstractTransform | None = None,
    ncv: int | None = None,
    linear_solver: Any = None,
    rtol: ScalarLike | None = None,
    key: PRNGKeyArray | None = None,
    throw: bool = True,
) -> HopfNormalForm:
    """The first Lyapunov coefficient at a Hopf point (Kuznetsov, Elements of Applied Bifurcation Theory, eq. 5.62):

    `l₁ = Re[⟨p, C(q, q, q̄)⟩ - 2⟨p, B(q, A⁻¹ B(q, q̄))⟩ + ⟨p, B(q̄, (2iω - A)⁻¹ B(q, q))⟩] / 2ω`

    with `A q = iω q`, `Aᵀ p = -iω p`, `‖q‖ = ⟨p, q⟩ = 1`. B and C, the second and third derivatives of F, are JVPs of
    JVPs, and q and p come from a Krylov search.

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt` at the bifurcation: `eqx.tree_at(where, field, point.parameter)`.
    - `z`: the fixed point there, real, `point.state`. `x`: clamped input.
    - `k`, `transform`, `ncv`: of the search for the pair, as for `spectrum`. Of the complex pairs found, the one
      nearest to the imaginary axis is taken.
    - `linear_solver`: a Lineax solver for the two systems. By default, beyond 100 numbers, `SparseLU` where each
      is coupled to a few others; `lineax.LU()` up to 400 otherwise, and then `GMRES` to `rtol`, eps^¾ by default.
    - `key`: of the first Krylov vector, `jax.random.key(0)` by default.
    - `throw`: raise when the eigenpairs did not converge.

    **Returns:** a `HopfNormalForm`, NaN where no complex pair was found.

    ```python
    normal = ej.stability.hopf_normal_form(ej.fields.GainNetwork(gain=0.8), origin, k=2)
    assert normal.l1 < 0 and jnp.isclose(normal.frequency, 0.8)  # supercritical
    ```
    """
    real_dtype(z, "z")
    settings = {"transform": transform, "ncv": ncv, "key": key, "throw": throw}
    linear_solver = solver_of(linear_solver, field, z, x)
    if transform is None and isinstance(linear_solver, SparseLU):
        settings["transform"] = Rightmost(linear_solver)
    found = spectrum(field, z, x, k=min(k, optax.tree.size(z)), left=True, **settings)
    return _normal_form(field, z, x, found, rtol, linear_solver)


# Why real and imaginary parts. B and C are multilinear, so complex arguments are sums of real ones; JVPs at
# complex states would ask of the field that it is holomorphic.
@eqx.filter_jit
def _normal_form(field, z, x, found, rtol, linear_solver):
    flat, unravel = ravel_pytree(z)
    rtol = float(jnp.finfo(flat.dtype).eps) ** 0.75 if rtol is None else rtol

    def force(v):
        return ravel_pytree(field(0.0, unravel(v), x))[0]

    # At a Hopf point other pairs may be there, even to the right of it on an unstable branch.
    off_axis = jnp.where(found.values.imag > 0, jnp.abs(found.values.real), jnp.inf)
    i = jnp.argmin(off_axis)
    # NaN rather than some real eigenvalue: without a pair there is no such coefficient.
    value = jnp.where(jnp.isfinite(off_axis[i]), found.values[i], jnp.nan)
    frequency = value.imag
    q, p = (
        ravel_pytree(jax.tree.map(lambda leaf: leaf[i], vectors))[0]
        for vectors in (found.vectors, found.left_vectors)
    )

    # Both systems are regular: neither 0 nor 2iω is an eigenvalue, short of a further degeneracy.
    solver = linear_solver or GMRES(rtol, 0.0, restart=60, max_steps=600)
    residuals = []

    def solve(operator, b):
        system = lx.FunctionLinearOperator(operator, jax.eval_shape(lambda: b))
        value = lx.linear_solve(system, b, solver, throw=False).value
        size = jnp.linalg.norm(b)
        residuals.append(jnp.linalg.norm(operator(value) - b) / jnp.where(size > 0, size, 1))
        return value

    l1 = lyapunov_coefficient(force, flat, frequency, q, p, solve)
    # Errors of the two solves enter l₁ as they are: their residual is reported beside it.
    return HopfNormalForm(l1, frequency, value, jnp.maximum(*residuals), found.result)


def lyapunov_coefficient(
    force: Callable[[Array], Array],
    z: Array,
    frequency: Array,
    q: Array,
    p: Array,
    solve: Callable[[Callable, Array], Array],
) -> Array:
    """l₁ from right and left eigenvectors of any length, by a solver of linear systems `solve(product, right)`."""
    twice = jax.lax.complex(jnp.zeros_like(frequency), 2 * frequency)
    return cubic_term(force, z, twice, q, p, solve).real / jnp.abs(frequency)


def cubic_term(
    force: Callable[[Array], Array],
    z: Array,
    twice: Array,
    q: Array,
    p: Array,
    solve: Callable[[Callable, Array], Array],
) -> Array:
    """The coefficient of `w|w|²` in the normal form of a pair; `twice`: the rate of its second harmonic, 2iω under a flow."""
    q = q / jnp.linalg.norm(q).astype(q.dtype)
    p = p / jnp.vdot(q, p)

    def along(function, direction):
        return lambda v: jax.jvp(function, (v,), (direction,))[1]

    def second(a, b):
        return along(along(force, a), b)(z)

    def third(a, b, c):
        return along(along(along(force, a), b), c)(z)

    def bilinear(a, b):
        # (a + ib) with (c + id), by bilinearity: four real second derivatives.
        real = second(a.real, b.real) - second(a.imag, b.imag)
        return jax.lax.complex(real, second(a.real, b.imag) + second(a.imag, b.real))

    mv = on_complex_vectors(jax.linearize(force, z)[1])
    # The shift of the mean and the second harmonic: through them B acts at third order.
    steady = solve(mv, bilinear(q, q.conj()))
    ringing = solve(lambda v: twice * v - mv(v), bilinear(q, q))
    a, b = q.real, q.imag
    # Written out, four real third derivatives do; term by term it would be eight.
    cubic = jax.lax.complex(
        third(a, a, a) + third(a, b, b), third(a, a, b) + third(b, b, b)
    )  # C(q, q, q̄), by linearity
    total = cubic - 2 * bilinear(q, steady) + bilinear(q.conj(), ringing)
    return 0.5 * jnp.vdot(p, total)
