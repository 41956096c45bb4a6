"""Gradients that are carried forward along with the state."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, ScalarLike

from .._checks import check_count, check_kind, check_positive
from ..analytic import vary_like
from ..fields import trainable
from ..relaxation import relax, residual_ratio
from ._estimate import (
    AbstractEstimator,
    GradientEstimate,
    Report,
    accepted_mean,
    batch_keys,
    blamed,
    check_call,
    needed_key,
    scalar_loss,
    total_variance,
    zero_unless,
)
from ._real import in_real_numbers, real_view

_LIMIT = 2**32  # bytes of exact eligibility in one batch


class AbstractEligibility(eqx.Module):
    """How the eligibility `e = ∂z/∂θ`, an (n, P) matrix, is carried along `z ← advance(θ, z)`."""

    draws: eqx.AbstractVar[int]

    def __check_init__(self):
        check_count(draws=self.draws)

    @abc.abstractmethod
    def run(self, initial: Callable, advance: Callable, theta, steps: int, key: Any) -> Any:
        """From `z₀ = initial(θ)`: the final state, and a function of `g (n,)` that gives `gᵀe`, `(draws, P)`."""

    @abc.abstractmethod
    def cost(self, n: int) -> int:
        """Products with J or ∂F/∂θ (or its transpose) a step."""

    def check(self, n: int, parameters: int, batch: int, itemsize: int, key: Any) -> None:
        """Refuse what cannot be run."""
        needed_key(key, f"`{type(self).__name__}`")


# Why forward at all: equilibrium gradients differentiate L(z*), and a parameter that changes only how fast
# the state settles has none; L(z_T) has the term in T (1 - εk)^(T-1) that defends contraction.
# Backpropagation keeps the trajectory for it, RTRL the matrix ∂z/∂θ instead.
class ExactEligibility(AbstractEligibility):
    """The whole matrix, `e ← Φ_z e + ε ∂F/∂θ`: real-time recurrent learning (Williams & Zipser 1989). Memory n·P per
    sample: for small models.

    ```python
    estimator = ej.ForwardEligibility(steps=200, eligibility=ej.gradients.ExactEligibility())
    ```
    """

    draws: ClassVar[int] = 1

    def run(self, initial, advance, theta, steps, key) -> Any:
        z, e = initial(theta), jax.jacrev(initial)(theta)

        def step(carry, _):
            z, e = carry
            # Forward in the state, n columns; backward in θ, n rows: the larger P is never looped over.
            e = jax.jacfwd(advance, 1)(theta, z) @ e + jax.jacrev(advance, 0)(theta, z)
            return (advance(theta, z), e), None

        (z, e), _ = jax.lax.scan(step, (z, e), length=steps)
        return z, lambda g: (g @ e)[None]

    def cost(self, n):
        return 2 * n

    def check(self, n, parameters, batch, itemsize, key):
        # Twice: a step reads the old matrix while it writes the new one.
        needed = 2 * n * parameters * batch * itemsize
        if needed > _LIMIT:
            raise ValueError(
                f"Exact eligibility of {n} states × {parameters} parameters × {batch} samples needs "
                f"{needed / 2**30:.0f} GiB: use `RandomDirections(...)` or `LowRank(...)`, or a smaller model."
            )


class RandomDirections(AbstractEligibility):
    """Forward gradients: `e ≈ (e u) uᵀ` along random directions `u ~ N(0, I)` of parameter space (Baydin et al. 2022;
    Silver et al. 2022). Unbiased; the variance of one draw is about P times the squared gradient.

    ```python
    random = ej.gradients.RandomDirections(draws=8)
    estimator = ej.ForwardEligibility(eligibility=random)  # called with a `key`
    ```
    """

    draws: int = eqx.field(default=1, static=True)

    def run(self, initial, advance, theta, steps, key) -> Any:
        # One for the whole horizon: e u is the sum of what all steps push along the same u.
        u = jax.random.normal(key, (self.draws, theta.size), theta.dtype)
        z = initial(theta)
        moved = jax.vmap(lambda v: jax.jvp(initial, (theta,), (v,))[1])(u)

        def step(carry, _):
            z, moved = carry
            # Both at once: what the state carries along, and what θ adds in this step.
            push = lambda v, m: jax.jvp(advance, (theta, z), (v, m))[1]
            return (advance(theta, z), jax.vmap(push)(u, moved)), None

        (z, moved), _ = jax.lax.scan(step, (z, moved), length=steps)
        return z, lambda g: (moved @ g)[:, None] * u

    def cost(self, n):
        return self.draws


# Why it stays of rank one: of independent signs ν, E[ν νᵀ] = I, so that (z̃ + ν)(θ̃ + νᵀB)ᵀ has the mean
# z̃θ̃ᵀ + B, for the cross terms have none. The factors ρ cancel in that mean, but not in the variance.
class LowRank(AbstractEligibility):
    """Rank-one sketches `e ≈ z̃ θ̃ᵀ`, unbiased (UORO: Tallec & Ollivier 2018), averaged over independent `draws`.

    `z̃ ← ρ₀ Φ_z z̃ + ρ₁ ν`, `θ̃ ← θ̃/ρ₀ + νᵀ(ε ∂F/∂θ)/ρ₁` with random signs ν; the ρ balance the norms.

    ```python
    estimator = ej.ForwardEligibility(eligibility=ej.gradients.LowRank(draws=4))  # called with a `key`
    ```
    """

    draws: int = eqx.field(default=1, static=True)

    def run(self, initial, advance, theta, steps, key) -> Any:
        first, later = jax.random.split(key)
        z, back = jax.vjp(initial, theta)
        signs = jax.random.rademacher(first, (self.draws, z.size), theta.dtype)
        sketch = signs, jax.vmap(lambda s: back(s)[0])(signs)

        def step(carry, key):
            z, (state, parameter) = carry
            new, forward = jax.linearize(lambda z: advance(theta, z), z)
            _, back = jax.vjp(lambda p: advance(p, z), theta)
            # Fresh at every step: with those of an earlier one the cross terms would not vanish.
            signs = jax.random.rademacher(key, (self.draws, z.size), theta.dtype)

            def one(state, parameter, sign):
                # Φ z̃ forward and νᵀ ∂F/∂θ backward: one product of each, and no matrix.
                pushed, fresh = forward(state), back(sign)[0]
                # Equal norms on both sides of each term: the least variance (Tallec & Ollivier 2018).
                old = _balance(parameter, pushed)
                young = _balance(fresh, sign)
                return old * pushed + young * sign, parameter / old + fresh / young

            return (new, jax.vmap(one)(state, parameter, signs)), None

        keys = jax.random.split(later, steps)
        (z, (state, parameter)), _ = jax.lax.scan(step, (z, sketch), keys)
        return z, lambda g: (state @ g)[:, None] * parameter

    def cost(self, n):
        return 2 * self.draws


def _balance(numerator: Array, denominator: Array) -> Array:
    """`√(‖numerator‖/‖denominator‖)`, or 1 where either vanishes."""
    top, low = optx.two_norm(numerator), optx.two_norm(denominator)
    # At the start, or where a force does not depend on θ, there is nothing to balance.
    usable = (top > 0) & (low > 0)
    return jnp.sqrt(jnp.where(usable, top, 1.0) / jnp.where(usable, low, 1.0)).astype(top.dtype)


class ForwardEligibility(AbstractEstimator):
    """The gradient of the deployed horizon `L(z_T)` without going back in time: `∂L/∂θ + (∂L/∂z)ᵀ e_T`.

    *Objective: finite horizon*, that of `BPTT` with Euler steps. The eligibility `e = ∂z/∂θ` starts at `∂z₀/∂θ` and
    collects `ε ∂F/∂θ`, the path through the clamped input included.

    **Arguments:** `steps`: T; `step`: ε, a float or an array; `eligibility`: `ExactEligibility()` (equal to BPTT to rounding;
    small models), `RandomDirections(draws)` or `LowRank(draws)` (unbiased, need `key`; with more than one draw the
    estimate states its `variance`); `trains`: function from models to a mask of the trained arrays.

    ```python
    estimate = ej.ForwardEligibility(steps=200)(model, ej.squared_error, batch)
    assert jnp.allclose(estimate.grads.field.weight, exact, rtol=1e-2, atol=1e-3)
    ```
    """

    objective: ClassVar[str] = "finite horizon"
    steps: int = eqx.field(default=100, static=True)
    step: ScalarLike = 0.1
    eligibility: AbstractEligibility = ExactEligibility()
    trains: Callable = trainable

    def __check_init__(self):
        check_count(steps=self.steps)
        check_positive(step=self.step)
        kinds = "an eligibility such as `ExactEligibility()`"
        check_kind(AbstractEligibility, kinds, eligibility=self.eligibility)

    def settle(self, field, z0, x):
        return relax(field, z0, x, step=self.step, steps=self.steps, throw=False)

    def __call__(self, model, loss, batch, *, key=None, subset=None):
        inputs, targets = check_call(model, loss, batch, key, subset)
        with blamed(model, loss, (inputs, targets)):
            return self._estimate(model, loss, inputs, targets, key, subset)

    def _estimate(self, model, loss, inputs, targets, key, subset):
        trained = eqx.filter(model, self.trains(model))
        theta = jax.tree.leaves(trained)
        # Sizes are known without running anything, so that what does not fit is refused before it is tried.
        first = jax.eval_shape(lambda u: model.initial(model.encode(u[0])), inputs)
        n = sum(leaf.size for leaf in jax.tree.leaves(first))
        size = jax.tree.leaves(inputs)[0].shape[0]
        parameters = sum(leaf.size for leaf in theta)
        itemsize = max((leaf.dtype.itemsize for leaf in theta), default=4)
        self.eligibility.check(n, parameters, size, itemsize, key)
        return _carried(self, model, loss, (inputs, targets), key, subset)


@eqx.filter_jit
def _carried(estimator, model, loss, batch, key, subset):
    model = vary_like(model, batch)
    view, shown = real_view(model, batch[0])
    trained, held = eqx.partition(model, estimator.trains(model))
    parts, whole = in_real_numbers(trained)
    theta, unravel = ravel_pytree(parts)
    steps = estimator.steps

    def one(inputs, target, key):
        # Built anew from θ wherever it is used: the path through the encoder belongs to the derivative, too.
        def build(theta):
            model = view(eqx.combine(whole(unravel(theta)), held))
            return model, model.encode(inputs)

        model, x = build(theta)
        first, state = ravel_pytree(vary_like(model.initial(x), x))
        eps = jnp.asarray(estimator.step, first.dtype)

        def initial(theta):
            model, x = build(theta)
            return ravel_pytree(vary_like(model.initial(x), x))[0]

        def advance(theta, z):
            model, x = build(theta)
            return z + eps * ravel_pytree(model.field(0.0, state(z), x))[0]

        def readout(theta, z):
            return scalar_loss(loss(build(theta)[0].decode(state(z)), target))

        z, contract = estimator.eligibility.run(initial, advance, theta, steps, key)
        value, (direct, pull) = jax.value_and_grad(readout, (0, 1))(theta, z)
        gradients = direct[None] + contract(pull)
        residual = residual_ratio(model.field(0.0, state(z), x), state(z))
        evaluations = jnp.asarray(steps * (1 + estimator.eligibility.cost(z.size)))
        return value, residual, gradients, evaluations, state(z)

    with jax.default_matmul_precision("highest"):
        keys = batch_keys(key, jax.tree.leaves(batch)[0].shape[0])
        value, residual, gradients, evaluations, states = eqx.filter_vmap(one)(*batch, keys)
    finite = jnp.isfinite(value) & jnp.isfinite(residual)
    accepted = finite & jnp.all(jnp.isfinite(gradients), axis=(1, 2))
    accepted = accepted if subset is None else accepted & subset
    # `where`, not a factor 0, which would leave NaN in the sum.
    kept = jnp.where(accepted[:, None, None], gradients, 0)
    draws: Float[Array, "k p"] = jnp.sum(kept, axis=0) / jnp.sum(accepted).astype(theta.dtype)
    draws = zero_unless(jnp.any(accepted), draws)
    loss_values = jnp.where(accepted, value, jnp.nan)
    report = Report.computed(loss_values, accepted, residual, evaluations)
    # As `jax.grad` has it: of a complex parameter x + iy, ∂L/∂x - i ∂L/∂y.
    grads = jax.tree.map(jnp.conj, whole(unravel(jnp.mean(draws, axis=0))))
    variance = total_variance(draws) if draws.shape[0] > 1 else None
    mean = accepted_mean(loss_values, accepted)
    return GradientEstimate(mean, grads, report, shown(states), variance)
