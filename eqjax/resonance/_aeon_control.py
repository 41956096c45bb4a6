"""The controller and the optimiser of AEON: how fast, how inert and how noisy to learn, from how learning goes.

As in the AEON proposal α, μ and σ follow the trend, the variance and the success of the loss, and the internal recurrence
r; here as values: `LossController` measures, `resonant_adamw` is AdamW under its control.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from .._checks import check_finite_number, check_not_negative, check_number

_Scalar = Float[Array, ""]


class Control(NamedTuple):
    """What a `LossController` knows and asks for: scalars of the default float dtype.

    - `mean`, `variance`: running, of the loss; the mean is NaN before the first. `trend` τ in [-3, 3], `success` p in [0, 1].
    - `rate`: log a, of the factor a on the learning rate. `momentum`: μ - μ₀. `noise`: σ.
    """

    mean: _Scalar
    variance: _Scalar
    trend: _Scalar
    success: _Scalar
    rate: _Scalar
    momentum: _Scalar
    noise: _Scalar


class LossController(eqx.Module):
    """Learning rate, momentum and noise from the losses ℓ and the recurrence r (|r| ≤ 1). With β = `smoothing`:

        surprise    z = clip((ℓ - mean) / scale, -3, 3),   scale = sqrt(variance) + |mean| / 100
        mean        mean ← mean + (1 - β) z scale
        variance    variance ← β (variance + (1 - β) (z scale)²)
        trend       τ ← β τ + (1 - β) z
        success     p ← β p + (1 - β) [z < 0]
        drive       D = clip((2 p - 1) - tanh τ - c - K_r R, -1, 1)

    where c = sqrt(variance) / (|mean| + sqrt(variance)) is the variation and R the root mean square of r. Clipping z keeps a
    shock out of the running figures; a loss that is not finite, or beyond 1e12, counts as z = 3 and leaves mean and
    variance alone. D is above 0 as long as the loss falls steadily, and below where it rises or only fluctuates:

        rate        log a ← clip(persistence log a + g_α D, -log span, log span)
        momentum    μ = clip(μ₀ - g_μ D, limits)
        noise       σ = clip(σ₀ (1 - g_σ D), 0, 2 σ₀)

    Rate and momentum go opposite ways, as in Smith's (2018) one cycle. By default gains, σ₀ and K_r are 0: a fixed schedule.

    **Arguments:** `rate`, `momentum_gain`, `noise_gain`: g_α, g_μ, g_σ ≥ 0. `momentum`: μ₀, Adam's b1. `noise`: σ₀ ≥ 0.
    `coupling`: K_r in [-1, 1]. `smoothing`, `persistence`: in [0, 1). `span`: ≥ 1. `limits`: of μ, around μ₀ and in [0, 1).

    ```python
    controller = ej.resonance.LossController(rate=0.1, noise=1e-3)
    optimiser = ej.resonance.resonant_adamw(1e-3, controller, key=key)
    ```
    """

    rate: float = 0.0
    momentum: float = 0.9
    momentum_gain: float = 0.0
    noise: float = 0.0
    noise_gain: float = 0.0
    coupling: float = 0.0
    smoothing: float = 0.9
    persistence: float = 0.9
    span: float = 4.0
    limits: tuple[float, float] = (0.5, 0.98)

    def __check_init__(self):
        gains = {"momentum_gain": self.momentum_gain, "noise_gain": self.noise_gain}
        check_not_negative(rate=self.rate, noise=self.noise, **gains)
        past = {"smoothing": self.smoothing, "persistence": self.persistence}
        check_number("lie in [0, 1)", lambda v: 0 <= v < 1, **past)
        check_finite_number(coupling=self.coupling, span=self.span, momentum=self.momentum)
        if not abs(self.coupling) <= 1:
            raise ValueError(f"`coupling`, K_r, must lie in [-1, 1], got {self.coupling}.")
        if not self.span >= 1:
            raise ValueError(f"`span`, the largest factor, must be at least 1, got {self.span}.")
        low, high = self.limits
        if not (0 <= low <= self.momentum <= high < 1 and self.momentum > 0):
            raise ValueError(
                f"`momentum` = {self.momentum} must be above 0 and within `limits` = {self.limits}, these within [0, 1)."
            )

    def init(self) -> Control:
        """Before the first loss."""
        dtype = jnp.result_type(float)
        start = (jnp.nan, 0.0, 0.0, 0.5, 0.0, 0.0, self.noise)
        return Control(*(jnp.asarray(value, dtype) for value in start))

    def __call__(
        self, state: Control, loss: ArrayLike, recurrence: PyTree[Array] = None
    ) -> Control:
        """After one more loss; `recurrence`: arrays in [-1, 1], or None."""
        beta, dtype = self.smoothing, state.mean.dtype
        loss = jnp.asarray(loss).astype(dtype)
        finite = jnp.abs(loss) < 1e12  # its square, too
        mean = jnp.where(jnp.isnan(state.mean) & finite, loss, state.mean)
        scale = jnp.sqrt(state.variance) + jnp.abs(mean) / 100 + jnp.finfo(dtype).tiny
        z = jnp.where(finite, jnp.clip((loss - mean) / scale, -3, 3), 3)
        moved = jnp.where(finite, z * scale, 0)
        mean = mean + (1 - beta) * moved
        spread = beta * (state.variance + (1 - beta) * moved**2)
        variance = jnp.where(finite, spread, state.variance)
        trend = beta * state.trend + (1 - beta) * z
        success = beta * state.success + (1 - beta) * (z < 0).astype(dtype)
        deviation = jnp.sqrt(variance)
        variation = deviation / (jnp.abs(mean) + deviation + jnp.finfo(dtype).tiny)
        variation = jnp.where(jnp.isnan(variation), 0, variation)  # no finite loss so far
        pull = self.coupling * _size(recurrence, dtype)
        drive = jnp.clip((2 * success - 1) - jnp.tanh(trend) - variation - pull, -1, 1)
        low, high = (limit - self.momentum for limit in self.limits)
        span = jnp.log(jnp.asarray(self.span, dtype))
        return Control(
            mean,
            variance,
            trend,
            success,
            rate=jnp.clip(self.persistence * state.rate + self.rate * drive, -span, span),
            momentum=jnp.clip(-self.momentum_gain * drive, low, high),
            noise=jnp.clip(self.noise * (1 - self.noise_gain * drive), 0, 2 * self.noise),
        )


class ResonantState(NamedTuple):
    """The state of `resonant_adamw`: updates so far, moments, Π μ_i/μ₀, the controller's state, and a key or None."""

    step: Int[Array, ""]
    mu: PyTree[Array]
    nu: PyTree[Array]
    drift: _Scalar
    control: Control
    key: PRNGKeyArray | None


def root_mean_square(params: PyTree[Array]) -> PyTree[Array]:
    """The root mean square of every array: noise in proportion to what it falls on, none on what is 0."""
    return jax.tree.map(lambda p: jnp.sqrt(jnp.mean(jnp.abs(p) ** 2)), params)


def resonant_adamw(
    learning_rate: optax.ScalarOrSchedule,
    controller: LossController | None = None,
    *,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    diffusion: Callable[[PyTree], PyTree] = root_mean_square,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov & Hutter 2019) with learning rate, momentum and noise under a controller, as in AEON:

        θ ← θ - a_t α_t (m̂ / (sqrt(v̂) + ε) + λ θ + σ_t D(θ) η),   m ← μ_t m + (1 - μ_t) g,   m̂ = m / (1 - Π μ_i),

    with η normal. Where gains and noise are 0 it is `optax.adamw`, to the last bit. Called with extra arguments,
    `update(grads, state, params, value=…, recurrence=…)`: the loss that the gradient belongs to, and the r of the model, or
    its root mean square (or None). It chains with other transformations.

    **Arguments:**

    - `learning_rate`: α, a number or an Optax schedule. `b2`, `eps`, `weight_decay`, `mask`: as for `optax.adamw`.
    - `controller`: its μ₀ is b1; by default a fixed schedule.
    - `diffusion`: D, from parameters to scales that broadcast against them. `key`: of η, needed if there is noise.

    **Raises:** `ValueError` for noise without a key, or an update without `value` or parameters.

    ```python
    optimiser = ej.resonance.resonant_adamw(1e-3)  # `optax.adamw`, as long as no controller moves it
    assert optimiser.init({"w": x}).step == 0
    ```
    """
    controller = LossController() if controller is None else controller
    if controller.noise > 0 and key is None:
        raise ValueError(
            f"`noise` is {controller.noise} but there is no `key` to draw it with: pass `key=jax.random.key(…)`."
        )
    b1 = controller.momentum
    decay = optax.add_decayed_weights(weight_decay, mask)

    def init(params):
        zeros = optax.tree.zeros_like(params)
        step, drift = jnp.zeros((), jnp.int32), jnp.ones((), jnp.result_type(float))
        own = key if controller.noise > 0 else None
        return ResonantState(step, zeros, zeros, drift, controller.init(), own)

    def update(grads, state, params: Any = None, *, value: Any = None, recurrence=None, **_):
        if missing := [n for n, v in (("params", params), ("value", value)) if v is None]:
            raise ValueError(
                f"`{missing[0]}` is missing: call `update(grads, state, params, value=…, recurrence=…)`."
            )
        # As Optax, which mixes ints and floats.
        with jax.numpy_dtype_promotion("standard"):
            control = controller(state.control, value, recurrence)
            shift, step = control.momentum, state.step + 1
            # μ and 1 - μ apart, so that with no shift both are rounded as Adam's.
            keep, take = b1 + shift, (1 - b1) - shift
            moved = lambda g, m: take.astype(g.dtype) * g + keep.astype(g.dtype) * m
            mu = jax.tree.map(moved, grads, state.mu)
            nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
            # 1 - Π μ_i, as 1 - μ₀ᵗ Π μ_i/μ₀. The limit keeps 0 · ∞ away.
            drift = jnp.minimum(state.drift * (1 + shift / b1), 1e30)
            weight = 1 - b1**step * drift
            nu_hat = optax.tree.bias_correction(nu, b2, step)
            scaled = lambda m, v: m / weight.astype(m.dtype) / (jnp.sqrt(v) + eps)
            steps = jax.tree.map(scaled, mu, nu_hat)
            steps, _ = decay.update(steps, decay.init(params), params)
            own = state.key
            if own is not None:
                own, draw = jax.random.split(own)
                draws = optax.tree.random_like(draw, steps, jax.random.normal)
                shaken = lambda u, d, eta: u + control.noise.astype(u.dtype) * (d * eta)
                steps = jax.tree.map(shaken, steps, diffusion(params), draws)
            alpha: Any = learning_rate(state.step) if callable(learning_rate) else learning_rate
            alpha = -alpha * jnp.exp(control.rate)
            updates = jax.tree.map(lambda u: alpha.astype(u.dtype) * u, steps)
        return updates, ResonantState(step, mu, nu, drift, control, own)

    functions: Any = init, update  # Optax's types know no states but its own
    return optax.GradientTransformationExtraArgs(*functions)


def _size(recurrence, dtype):
    """The root mean square of all arrays together, in [0, 1]."""
    leaves = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(recurrence)]
    if not leaves:
        return jnp.zeros((), dtype)
    size = jnp.sqrt(jnp.mean(jnp.concatenate(leaves) ** 2))
    return jnp.where(jnp.isnan(size), 1, jnp.minimum(size, 1))
