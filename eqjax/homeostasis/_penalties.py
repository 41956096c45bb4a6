"""Penalties that hold a field settled while it learns: pure functions of (field, z, x, key), for one sample.

`field` is a module, `z` a real state. All are differentiated in the field's parameters at a fixed z, usually where the free
phase ended, whether or not it settled. Each returns a scalar that does not grow with the number of a state's entries.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_count, check_positive
from ..analytic import tree_held
from ..fields import AbstractCausalField, AbstractSplitField
from ..relaxation import AndersonTypeI, TokenOrder, check_causal, linear_in_order, residual_ratio
from ..stability import (
    AbstractTransform,
    SpectrumResults,
    euler_map,
    fastest_growth,
    jacobian,
    quotient,
    signs,
    spectrum,
    square,
    state_dtype,
)

_Scalar = Float[Array, ""]


def jacobian_penalty(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree,
    key: PRNGKeyArray,
    *,
    branches: Sequence[tuple[float, Callable[[Any, PyTree, PyTree], PyTree]]] | None = None,
    probes: int = 1,
) -> _Scalar:
    """`‖N′‖_F² / n`, the mean squared singular value of the learned part's Jacobian (Bai, Koltun & Kolter 2021).

    By Hutchinson's estimator: `E ‖N′v‖² = tr(N′ᵀN′ E vvᵀ) = ‖N′‖_F²` over random signs v.

    **Arguments:** `branches`: pairs of a weight and a part `part(field, z, x)` of the force, penalised apart and summed,
    such as `(1.0, lambda f, z, x: f.attended(z))`; by default one, N: the non-reciprocal part of an
    `AbstractSplitField`, the whole force of any other field. `probes`: vectors v.

    ```python
    assert jnp.isclose(ej.homeostasis.jacobian_penalty(leak, start, x, key), 1)  # J = -1
    ```
    """
    parts = [(1.0, _learned)] if branches is None else branches
    total = jnp.zeros((), state_dtype(z))
    for (weight, part), draw in zip(parts, jax.random.split(key, len(parts)), strict=True):
        J = jacobian(lambda t, state, x, part=part: part(field, state, x), z, x)
        total = total + weight * _hutchinson(J.mv, J.force, draw, probes)
    return total


def antisymmetry_penalty(
    field: Callable[..., Any], z: PyTree[Array], x: PyTree, key: PRNGKeyArray, *, probes: int = 1
) -> _Scalar:
    """`½ ‖J - Jᵀ‖_F² / n`, which vanishes for a gradient field (Laborieux & Zenke 2024, Jacobian homeostasis).

    By `½ E ‖(J - Jᵀ)v‖²` over random signs v: every draw is ≥ 0, where one of the equal
    `E [‖Jv‖² - vᵀJ²v] = ‖J‖_F² - tr J² = ½ ‖J - Jᵀ‖_F²` need not be. `probes`: vectors v.

    ```python
    assert ej.homeostasis.antisymmetry_penalty(leak, start, x, key) == 0  # of a gradient field
    ```
    """
    J = jacobian(field, z, x)
    return 0.5 * _hutchinson(lambda v: J.mv(v) - J.transposed(v), J.force, key, probes)


def residual_penalty(
    field: Callable[..., Any], z: PyTree[Array], x: PyTree, key: PRNGKeyArray | None = None
) -> _Scalar:
    """`(‖F(z)‖ / max(‖z‖, 1))²`: pulls the parameters to where the state already is a fixed point.

    Its gradient vanishes as z settles, and its size says nothing: use it in `Homeostat(..., relative=True)`. `key` is
    not used.

    ```python
    assert ej.homeostasis.residual_penalty(leak, x, x) == 0  # at rest
    ```
    """
    return residual_ratio(field(0.0, z, x), z) ** 2


def growth_rate(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree,
    key: PRNGKeyArray,
    *,
    step: ScalarLike = 0.1,
    warmup: int = 20,
    steps: int = 6,
    noise: float = 1e-6,
) -> _Scalar:
    """The rate at which the linearised relaxation grows what is left of the force: `log(‖v₆‖ / ‖v₀‖) / 6ε`.

    v starts as F(z) plus noise, is carried and normalised through `warmup` Euler steps `v ← v + ε J v`, which turn it
    towards the modes that decay slowest, and then through `steps` differentiable ones. Each of these is a matrix
    product, so no eigenvector has to converge; the rate tends to `log|1 + εμ| / ε` of the leading mode, and to Re μ
    as ε → 0. By the chain rule its gradient is that of `(log‖v₆‖)/6ε` with v₀ and z held fixed.

    **Arguments:** `step`: ε; `noise`: its size in each number of the state, so that a settled state has a direction.

    ```python
    rate = ej.homeostasis.growth_rate(leak, start, x, key, step=0.1)
    assert jnp.isclose(rate, 10 * jnp.log(0.9), rtol=1e-4)  # that of an Euler step
    ```
    """

    held = jacobian(tree_held(field), z, x)
    start = held.force + noise * held.random(key)
    products = held.mv, jacobian(field, z, x).mv
    return _growth(*products, start, jnp.linalg.norm, step, warmup, steps)


def token_growth_rates(
    field: AbstractCausalField,
    z: Float[Array, "t c"],
    x: Float[Array, "t c"],
    key: PRNGKeyArray,
    *,
    step: ScalarLike = 0.1,
    warmup: int = 20,
    steps: int = 6,
    noise: float = 1e-6,
) -> Float[Array, " t"]:
    """The `growth_rate` of every token of a causal field by itself, with the ones before it held: each has a direction of
    its own, turned by products with its own block of the Jacobian, all T blocks in one evaluation.

    Together the blocks have the eigenvalues of the whole, whose one direction feels the slowest token only, and the
    transient along the chain besides.

    ```python
    rates = ej.homeostasis.token_growth_rates(alone, tokens, tokens, key)
    assert jnp.allclose(rates, 10 * jnp.log(0.8), rtol=1e-4)  # of Euler's steps
    ```
    """
    check_causal(field, z)

    def product(field):
        past = field.remember(z)  # of states that are held, by keys that are learned
        return lambda v: jax.jvp(lambda u: field.alone(0.0, u, x, past), (z,), (v,))[1]

    start = tree_held(field)(0.0, z, x) + noise * jax.random.normal(key, z.shape, z.dtype)
    rows = lambda v: jnp.linalg.norm(v, axis=1, keepdims=True)
    return _growth(product(tree_held(field)), product(field), start, rows, step, warmup, steps)[
        :, 0
    ]


def _growth(held, free, start, norm, step, warmup, steps):
    """The rate of growth, of the whole or of every row as `norm` has it: turned by `held`, differentiable by `free`."""
    step = jnp.asarray(step, start.dtype)

    def normalised(v):
        size = norm(v)
        return v / jnp.where(size > 0, size, jnp.ones_like(size))

    v, _ = lax.scan(
        lambda v, _: (normalised(v + step * held(v)), None), normalised(start), length=warmup
    )
    v, _ = lax.scan(lambda v, _: (v + step * free(v), None), lax.stop_gradient(v), length=steps)
    return jnp.log(norm(v)) / (steps * step)


def growth_penalty(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree,
    key: PRNGKeyArray,
    *,
    margin: ScalarLike = 0.3,
    **settings: Any,
) -> _Scalar:
    """`relu(r + margin)²` of the `growth_rate` r, whose `settings` it takes: 0 as long as what is left of the force decays
    at a rate of at least `margin` per unit of time.

    ```python
    assert ej.homeostasis.growth_penalty(leak, start, x, key, margin=0.3) == 0
    ```
    """
    return _hinge(growth_rate(field, z, x, key, **settings), margin)


def token_growth_penalty(
    field: AbstractCausalField,
    z: Float[Array, "t c"],
    x: Float[Array, "t c"],
    key: PRNGKeyArray,
    *,
    margin: ScalarLike = 0.3,
    **settings: Any,
) -> _Scalar:
    """`Σ_t relu(r_t + margin)²` of the `token_growth_rates` r, whose `settings` it takes. A sum, so that one token that
    decays too slowly is felt, however long the window.

    ```python
    penalty = jax.tree_util.Partial(ej.homeostasis.token_growth_penalty, margin=0.3)
    homeostat = ej.homeostasis.Homeostat(penalty, samples=4)
    ```
    """
    return jnp.sum(_hinge(token_growth_rates(field, z, x, key, **settings), margin))


# Why a solve. A relaxation of the whole window feels how a perturbation grows from token to token, though every own block is
# tame: that is no eigenvalue, and products with J show it only after as many steps as there are tokens.
def chain_gain(
    field: AbstractCausalField,
    z: Float[Array, "t c"],
    x: Float[Array, "t c"],
    key: PRNGKeyArray,
    *,
    solver: TokenOrder = TokenOrder(AndersonTypeI(1e-3), flow=None),  # pyright: ignore[reportCallIssue]
    max_steps: int = 256,
) -> _Scalar:
    """How far a perturbation of a causal field's tokens grows along the later ones: `‖J⁻¹ D r‖ / ‖r‖` for a random r, with the
    own blocks D of the Jacobian J. Moved by r, tokens move those after them, and so on: all together by `J⁻¹ D r`. 1 where
    no token feels another.

    Its gradient is exact at fixed z, by a second solve, with `Jᵀ`. Where one of the two fails the gain is 1, without a
    gradient.

    **Arguments:** `solver`, `max_steps`: of the solves, in token order.

    ```python
    gain = lambda field, z, x: ej.homeostasis.chain_gain(field, z, x, key)
    ```
    """
    check_causal(field, z)
    r = jax.random.normal(key, z.shape, z.dtype)

    def left(field, v):
        """`D r - J v`."""
        past = field.remember(z)
        own = lambda u: field.alone(0.0, u, x, past)
        whole = lambda u: field(0.0, u, x)
        return jax.jvp(own, (z,), (r,))[1] - jax.jvp(whole, (z,), (v,))[1]

    held = tree_held(field)
    solved = functools.partial(linear_in_order, held, *tree_held((z, x)))
    v = solved(left(held, jnp.zeros_like(r)), solver, max_steps, reverse=False).value
    size = jnp.linalg.norm(v)
    a = solved(v / size, solver, max_steps, reverse=True).value
    behind = jacobian(held, z, x).transposed(a.ravel()) - v.ravel() / size
    off = jnp.maximum(jnp.linalg.norm(left(held, v)) / size, jnp.linalg.norm(behind))
    usable = off <= 2 * len(z) ** 0.5 * jnp.asarray(solver.rtol + solver.atol, off.dtype)
    v, a, size = lax.stop_gradient((v, a, size))
    change = jnp.vdot(a, left(field, v))  # by dv = J⁻¹ (dD r - dJ v)
    gain = (size + change - lax.stop_gradient(change)) / jnp.linalg.norm(r)
    return jnp.where(usable, gain, 1.0)


def chain_penalty(
    field: AbstractCausalField,
    z: Float[Array, "t c"],
    x: Float[Array, "t c"],
    key: PRNGKeyArray,
    *,
    limit: ScalarLike = 3.0,
    **settings: Any,
) -> _Scalar:
    """`relu(log(g / limit))²` of the `chain_gain` g, whose `settings` it takes. `limit`: the gain that is allowed.

    ```python
    penalty = jax.tree_util.Partial(ej.homeostasis.chain_penalty, limit=3.0)
    homeostat = ej.homeostasis.Homeostat(penalty, samples=4)
    ```
    """
    check_positive(limit=limit)
    return _hinge(jnp.log(chain_gain(field, z, x, key, **settings)), -jnp.log(limit))


def spectral_penalty(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree,
    key: PRNGKeyArray,
    *,
    margin: ScalarLike = 0.3,
    step: ScalarLike | None = None,
    transform: AbstractTransform | None = None,
    ncv: int = 24,
    tol: ScalarLike = 1e-3,
    max_restarts: int = 20,
) -> _Scalar:
    """`relu(Re μ + margin)²` of the rightmost eigenvalue μ of J; with `step` ε, `relu(log|1 + εμ| / ε + margin)²` of the
    multiplier of largest magnitude.

    Its gradient is exact at fixed z, by `dμ = wᴴ (dJ) v / wᴴ v` (Magnus 1985): the quotient `wᴴ J v / wᴴ v` is
    differentiated with the right and left eigenvectors v and w held. Where they did not converge it returns 0, and has no
    gradient. `transform`, `ncv`, `tol`, `max_restarts`: as for `spectrum`.

    ```python
    penalty = jax.tree_util.Partial(ej.homeostasis.spectral_penalty, margin=0.3)
    homeostat = ej.homeostasis.Homeostat(penalty, samples=4)
    ```
    """
    euler = step is not None
    held = tree_held((field, z, x))
    found = spectrum(
        euler_map(held[0], step) if euler else held[0],
        *held[1:],
        k=1,
        which=None if transform is not None else "LM" if euler else "LR",
        transform=transform,
        left=True,
        ncv=min(ncv, optax.tree.size(z)),
        tol=tol,
        max_restarts=max_restarts,
        key=key,
        throw=False,
    )
    usable = found.result == SpectrumResults.successful
    v, w = (
        jax.tree.map(lambda leaf: jnp.where(usable, leaf[0], 1.0), u)
        for u in (found.vectors, found.left_vectors)
    )
    force = euler_map(field, step) if euler else field
    value = quotient(lambda state, x: force(0.0, state, x), z, x, v, w)
    value = jnp.where(usable, value, 1.0)  # log 0 has no gradient, not even a masked one
    rate = jnp.log(jnp.abs(value)) / jnp.asarray(step, value.real.dtype) if euler else value.real
    return jnp.where(usable, _hinge(rate, margin), 0.0)


def lognorm_penalty(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree,
    key: PRNGKeyArray,
    *,
    margin: ScalarLike = 0.0,
    ncv: int = 12,
    tol: ScalarLike = 1e-2,
    max_restarts: int = 4,
) -> _Scalar:
    """`relu(ω + margin)²` of the logarithmic norm `ω(J) = λ_max((J + Jᵀ)/2)`, the numerical abscissa.

    Where ω < 0 every perturbation decays from the first instant (Söderlind 2006), which is more than stability asks for:
    `Re μ ≤ ω`, far below it where J is not normal. By restarted Lanczos; the gradient is that of the Rayleigh quotient
    `vᵀ J v` at its maximiser v, held, and a v that has not converged gives a lower bound, still safe to descend.

    **Arguments:** `ncv`, `tol`, `max_restarts`: of the Lanczos search.

    ```python
    assert ej.homeostasis.lognorm_penalty(leak, start, x, key, margin=0.5) == 0
    ```
    """
    held = jacobian(*tree_held((field, z, x)))
    tol = jnp.asarray(tol, held.force.dtype)
    _, v = fastest_growth(held, min(ncv, held.force.size), tol, max_restarts, key)
    v = lax.stop_gradient(v)
    return _hinge(jnp.vdot(v, jacobian(field, z, x).mv(v)), margin)


def _hinge(rate: Array, margin: ScalarLike) -> Array:
    return jnp.maximum(rate + jnp.asarray(margin, rate.dtype), 0) ** 2


def _learned(field: Any, z: PyTree, x: PyTree) -> PyTree:
    if isinstance(field, AbstractSplitField):
        return field.nonreciprocal(0.0, z, x)
    return field(0.0, z, x)


def _hutchinson(product: Callable, like: Array, key: PRNGKeyArray, probes: int) -> _Scalar:
    """`E ‖A v‖² / n` over random signs."""
    check_count(probes=probes)
    sample = lambda key: square(product(signs(key, like)))
    return jnp.mean(jax.vmap(sample)(jax.random.split(key, probes))) / like.size
