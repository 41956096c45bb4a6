"""`eigenvalue`: the most wanted eigenvalue of a field's Jacobian, with its derivative."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_arrays, check_flags
from ..analytic import is_complex
from ..fields import on_complex_vectors
from ..relaxation import explained
from ._krylov_schur import AbstractTransform
from ._spectrum import SpectrumResults, spectrum


def eigenvalue(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    which: str | None = None,
    transform: AbstractTransform | None = None,
    k: int = 1,
    ncv: int | None = None,
    tol: ScalarLike | None = None,
    max_restarts: int = 1000,
    start: PyTree[Array] | None = None,
    key: PRNGKeyArray | None = None,
    throw: bool = True,
    precision: str | None = "highest",
) -> Complex[Array, ""]:
    """The first eigenvalue μ that `spectrum` finds, differentiable in the parameters of the field, `z` and `x`.

    Its derivative is `dμ = wᴴ (dJ) v / wᴴ v` with right and left eigenvectors v and w (Magnus 1985), in forward and
    in reverse mode; no iteration is differentiated. `z` is an argument like any other: for the total derivative
    along a branch of equilibria compute `z` by `equilibrium`, whose own derivative then joins in.

    **Arguments:** as for `spectrum`; `k`: eigenvalues to search for, of which the first is returned. More of them, or
    a larger `ncv`, help where eigenvalues cluster.

    **Returns:** a complex scalar, of a conjugate pair the one above the real axis. Take `.real` or `.imag` before
    `jax.grad`. Where eigenvalues coincide there is no derivative. With `throw=False` the derivative is NaN where
    the eigenvectors did not converge. Once differentiable only.

    ```python
    rightmost = lambda f: ej.stability.eigenvalue(f, origin, k=2).real
    assert jnp.isclose(rightmost(network), -0.375)  # also by `eqx.filter_grad`
    ```
    """
    check_flags(throw=throw)
    settings = {
        "which": which,
        "transform": transform,
        "k": k,
        "ncv": ncv,
        "tol": tol,
        "start": start,
    }
    settings |= {"max_restarts": max_restarts, "key": key, "throw": throw, "precision": precision}
    return _eigenvalue(field, z, x, settings)


@eqx.filter_jit
def _eigenvalue(field, z, x, settings):
    # Whatever the field closes over becomes visible to differentiation.
    check_arrays(z=z)
    with explained(field, z, x):
        force = eqx.filter_closure_convert(lambda z, x: field(0.0, z, x), z, x)
    return _implicit((force, z, x), settings=settings)


@eqx.filter_custom_jvp
def _implicit(problem, *, settings):
    force, z, x = problem
    return spectrum(lambda t, z, x: force(z, x), z, x, **settings).values[0]


@_implicit.def_jvp
def _(primals, tangents, *, settings):
    (problem,), (tangent,) = primals, tangents
    force, z, x = problem
    found = spectrum(lambda t, z, x: force(z, x), z, x, left=True, **settings)
    v, w = (jax.tree.map(lambda leaf: leaf[0], u) for u in (found.vectors, found.left_vectors))

    with jax.default_matmul_precision(settings["precision"]):
        _, derivative = eqx.filter_jvp(
            lambda problem: quotient(problem[0], problem[1], problem[2], v, w),
            (problem,),
            (tangent,),
        )
    # A factor, because a `where` would turn NaN into zero in reverse mode.
    usable = jnp.where(found.result == SpectrumResults.successful, 1, jnp.nan)
    return found.values[0], usable.astype(derivative.dtype) * derivative


def quotient(force, z, x, v, w):
    """`wᴴ J v` of eigenvectors with `wᴴ v = 1`: the eigenvalue, and by `dμ = wᴴ (dJ) v` its derivative with v, w held.

    ```python
    v = jnp.array([1, -1j]) / 2**0.5  # right and left eigenvector
    force = lambda z, x: network(0.0, z, x)
    assert jnp.isclose(ej.stability.quotient(force, origin, None, v, v), -0.375 + 0.5j)
    ```
    """
    product = lambda v: jax.jvp(lambda state: force(state, x), (z,), (v,))[1]
    # At a real state v is complex all the same.
    image = product(v) if is_complex(z) else on_complex_vectors(product)(v)
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: jnp.sum(a.conj() * b), w, image))
