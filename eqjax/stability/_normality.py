"""How far the Jacobian of a field is from symmetric and from normal, and what that costs in the short run."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_positive
from ._decomposition import norm
from ._host import criss_cross, on_host, sum_of_squares
from ._jacobian import Jacobian, jacobian
from ._krylov_schur import check_sizes, krylov_schur


class Estimate(eqx.Module):
    """A number and its uncertainty: `error` is a standard error where the value is a sample mean, a bound where the
    method gives one; each function says which."""

    value: Float[Array, "*b"]
    error: Float[Array, "*b"]

    def __str__(self) -> str:
        return f"{self.value} ± {self.error}"


# Why J - Jᵀ itself is applied, and not the difference of two quadratic forms that has the same mean: every
# sample is a square, at least 0 and small where the field is nearly symmetric, instead of a difference of
# large numbers. The norms share their probes, so that in the ratio much of the noise cancels.
@eqx.filter_jit
def asymmetry(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    probes: int = 64,
    key: PRNGKeyArray,
    precision: str | None = "highest",
) -> Estimate:
    """`‖A‖_F / ‖J‖_F` with `A = (J - Jᵀ)/2`, the antisymmetric part of the Jacobian: 0 for a gradient field, at most 1.

    By Hutchinson's estimator (1990), `E ‖A v‖² = ‖A‖_F²` over random signs v, the same v for J. Equivalent, with
    more variance, is `E [‖J v‖² - vᵀ J² v] = ½ ‖J - Jᵀ‖_F²`.

    **Arguments:** `field`, `z`, `x`, `precision`: as for `spectrum`; `probes`: random vectors, each one product with J
    and one with Jᵀ.

    **Returns:** an `Estimate`, the error a standard error (delta method).

    ```python
    found = ej.stability.asymmetry(network, origin, key=key)
    assert 0 < found.value < 1
    ```
    """

    def sample(J, v):
        image, reflected = J.mv(v), J.adjoint(v)
        return square(0.5 * (image - reflected)), square(image)

    part, whole = _sampled(sample, field, z, x, probes, key, precision)
    return _root_ratio(part, whole, power=0.5)


@eqx.filter_jit
def commutator(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    probes: int = 64,
    key: PRNGKeyArray,
    precision: str | None = "highest",
) -> Estimate:
    """`‖JᵀJ - JJᵀ‖_F^½ / ‖J‖_F`: 0 exactly where the Jacobian is normal; by Hutchinson's estimator, matrix-free.

    With this number c, Henrici's departure from normality (see `henrici`) lies between the bounds
    `c² / √6 ≤ dep(J) / ‖J‖_F ≤ ((n³ - n)/12)^¼ c` (Elsner & Paardekooper 1987; Henrici 1962). The upper one is
    loose for large n.

    **Arguments, returns:** as for `asymmetry`, at four products a probe.

    ```python
    assert ej.stability.commutator(network, origin, key=key).value < 1e-6  # a normal Jacobian
    ```
    """

    def sample(J, v):
        image = J.mv(v)
        return square(J.adjoint(image) - J.mv(J.adjoint(v))), square(image)

    part, whole = _sampled(sample, field, z, x, probes, key, precision)
    # The norm enters squared, where the mean of squares would be biased: the value is taken from the means.
    ratio = _root_ratio(part, whole**2, power=0.25)  # an error only to first order: see below
    total = jnp.mean(whole)
    value = jnp.mean(part) ** 0.25 / jnp.where(total > 0, total, 1) ** 0.5
    return Estimate(value, ratio.error)


@eqx.filter_jit
def henrici(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    precision: str | None = "highest",
) -> Float[Array, ""]:
    """Henrici's departure from normality, relative: `(‖J‖_F² - Σ|μ|²)^½ / ‖J‖_F` (Henrici 1962), exactly.

    Between 0 (normal) and 1 (nilpotent). It forms the n × n Jacobian and all of its eigenvalues; for a large state
    use `commutator`, which bounds it. Rounding leaves about the root of eps.

    ```python
    assert ej.stability.henrici(network, origin) < 1e-6  # a normal Jacobian
    ```
    """
    with jax.default_matmul_precision(precision):
        dense = jacobian(field, z, x).dense()
    total = jnp.sum(jnp.abs(dense) ** 2)
    shape = jax.ShapeDtypeStruct((), total.dtype)
    # Two numbers of the size of ‖J‖² cancel: hence eigenvalues in float64, and the 0 below.
    departure = total - on_host(sum_of_squares, shape, dense)
    return jnp.sqrt(jnp.maximum(departure, 0) / jnp.where(total > 0, total, 1))


@eqx.filter_jit
def numerical_abscissa(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    ncv: int = 20,
    tol: ScalarLike | None = None,
    max_restarts: int = 1000,
    key: PRNGKeyArray,
    precision: str | None = "highest",
) -> Estimate:
    """The largest eigenvalue of `(J + Jᵀ)/2`: the fastest growth rate of any perturbation at the first instant.

    At least the spectral abscissa, and equal to it where J is normal; negative means that ‖z - z*‖ only falls. By
    restarted Lanczos (`krylov_schur` on the symmetric part). A power iteration would find the eigenvalue of
    largest *magnitude*, which in a decaying field is the wrong one.

    **Arguments:** as for `spectrum`.

    **Returns:** an `Estimate`; the error is the residual, within which an eigenvalue of a symmetric matrix is certain to
    lie. It is large if the search was given up.

    ```python
    found = ej.stability.numerical_abscissa(network, origin, key=key)
    assert jnp.isclose(found.value, -0.375)
    ```
    """
    check_sizes(1, ncv, max_restarts, optax.tree.size(z))
    with jax.default_matmul_precision(precision):
        return fastest_growth(jacobian(field, z, x), ncv, tol, max_restarts, key)[0]


# Why Krylov and not a power iteration: on an indefinite symmetric matrix that finds the largest |λ|, in a
# decaying field the fastest decay.
def fastest_growth(J: Jacobian, ncv: int, tol: Any, max_restarts: int, key: PRNGKeyArray):
    """The numerical abscissa as an `Estimate`, and the unit vector that grows so fast.

    ```python
    search = lambda J: ej.stability.fastest_growth(J, 2, 1e-9, 10, key)[0].value
    # `search(ej.stability.jacobian(network, origin))` is -.375
    ```
    """
    symmetric, start = lambda v: 0.5 * (J.mv(v) + J.adjoint(v)), J.random(key)
    search = {"ncv": ncv, "tol": tol, "max_restarts": max_restarts, "key": key}
    pairs = krylov_schur(symmetric, start, k=1, **search)
    v = pairs.vectors[0]
    # Of a symmetric matrix it is real, but for the rounding of a complex routine.
    v = v if jnp.iscomplexobj(start) else v.real
    v = v / norm(v).astype(v.dtype)
    image = symmetric(v)
    # The quotient errs by the square of the residual; the residual itself is a bound (Parlett 1980).
    value = jnp.sum(v.conj() * image).real
    return Estimate(value, norm(image - value.astype(v.dtype) * v)), v


@eqx.filter_jit
def pseudospectral_abscissa(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree = None,
    *,
    epsilon: ScalarLike,
    precision: str | None = "highest",
) -> Float[Array, ""]:
    """The largest `Re ζ` for which ζ is an eigenvalue of some `J + E` with `‖E‖₂ ≤ epsilon`.

    By the criss-cross algorithm (Burke, Lewis & Overton 2003) on the dense Jacobian, in float64 on the host: n products
    and some ten eigenvalue problems of size 2n, so for states of up to a few hundred numbers. If it is positive,
    perturbations grow by at least `(it / epsilon)` before they decay (the Kreiss bound), whatever the eigenvalues say.

    **Arguments:** as for `spectrum`; `epsilon` > 0, in the units of J.

    ```python
    found = ej.stability.pseudospectral_abscissa(network, origin, epsilon=0.1)
    assert jnp.isclose(found, -0.375 + 0.1)  # a normal Jacobian
    ```
    """
    check_positive(epsilon=epsilon)
    with jax.default_matmul_precision(precision):
        dense = jacobian(field, z, x).dense()
    real = jnp.finfo(dense.dtype).dtype
    shape = jax.ShapeDtypeStruct((), real)
    return on_host(criss_cross, shape, dense, jnp.asarray(epsilon, real))


def _sampled(sample, field, z, x, probes, key, precision):
    """`sample(J, v)` for random signs v."""
    if probes < 2:  # which has no standard error
        raise ValueError(
            f"`probes` must be at least 2, for an error bar, got {probes}. Try probes=64."
        )
    with jax.default_matmul_precision(precision):
        J = jacobian(field, z, x)
        draws = jax.random.split(key, probes)
        return jax.lax.map(lambda key: sample(J, signs(key, J.force)), draws)


# Why signs and not Gaussians: the estimate has the least variance with them (Hutchinson 1990).
def signs(key, like):
    """Random signs, in the shape and dtype of a flat vector.

    ```python
    assert jnp.abs(ej.stability.signs(key, origin)).tolist() == [1, 1]
    ```
    """
    return jax.random.rademacher(key, like.shape, like.real.dtype).astype(like.dtype)


def square(v):
    """`Σ |v|²`.

    ```python
    assert ej.stability.square(origin + 1) == 2
    ```
    """
    return jnp.sum(jnp.abs(v) ** 2)


def _root_ratio(part, whole, power):
    """`(mean part / mean whole)^power` and its standard error, by the delta method."""
    a, b = jnp.mean(part), jnp.mean(whole)
    safe = jnp.where(b > 0, b, 1)
    ratio = a / safe
    # To first order the ratio errs by the mean of part - ratio · whole: so their correlation counts.
    spread = jnp.std((part - ratio * whole) / safe, ddof=1) / part.size**0.5
    value = ratio**power
    # d(r^p) = p r^p (dr / r); where the ratio is 0, so is every sample of it.
    return Estimate(value, jnp.where(a > 0, power * value * spread / jnp.where(a > 0, ratio, 1), 0))
