"""State and adjoint, relaxed together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optimistix as optx

from .._checks import check_positive, given
from ..analytic import vary_like
from ..fields import trainable
from ..relaxation import Anderson, Solver, equilibrium, residual_ratio
from ._estimate import Accept
from ._nudge import PerSample, check_per_sample, displaced
from ._response import AbstractEquilibriumEstimator, Adjoint, Free, Sample
from ._stencils import relative_radius


class DyadicEP(AbstractEquilibriumEstimator):
    """One phase: every unit is a dyad `z± = z ∓ βa`, whose mean is the state and whose difference is the adjoint.

    *Objective: equilibrium.* Both relax at once, after the dyadic neurons of Høier & Zach (2020; dual propagation, 2023),
    with AsymEP's correction for non-conservative fields:

    `ż = ½ (F(z₊) + F(z₋))`,
    `ȧ = (F(z₋) - F(z₊))/(2β) - (J - Jᵀ) a + ½ (∂L/∂z(z₊) + ∂L/∂z(z₋))`, J at the running z.

    There is no free phase to wait for, and no second one. Error O(β²), in the state as well.

    **Arguments:** `free`, `free_steps`: an Optimistix fixed-point solver, and its budget, for the pair (z, a) as a whole
    (and for the state alone where a model is evaluated); its tolerance is relative to the pair, a being in units
    of the pull at the start. `radius`: `β‖a‖/‖z‖`, by default as for `AsymEP`; or one for every sample, `(B,)`. `accept`,
    `trains`: as there.

    ```python
    estimate = ej.DyadicEP()(model, ej.squared_error, batch)
    assert jnp.allclose(estimate.grads.field.weight, exact, rtol=1e-2, atol=1e-3)
    ```
    """

    free: Solver = Anderson(rtol=1e-5)
    radius: PerSample | None = None
    free_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable

    def __check_init__(self):
        check_positive(**given(radius=self.radius))

    def check(self, model, loss, batch, key):
        check_per_sample(jax.tree.leaves(batch)[0].shape[0], radius=self.radius)

    def per_sample(self):
        return (self.radius,)

    def respond(self, model, loss, inputs, target, key):
        sample = Sample.encoded(model, loss, inputs, target)
        real = jnp.finfo(jnp.result_type(*jax.tree.leaves(sample.z0))).dtype
        radius = relative_radius(self.radius, 2, real)
        first = optx.two_norm(jax.grad(sample.loss)(sample.z0))
        unit = jnp.where(first > 0, first, jnp.ones_like(first))

        def step_of(z, a):
            size = optx.two_norm(a)
            safe = jnp.where(size > 0, size, jnp.ones_like(size))
            return radius * jnp.maximum(optx.two_norm(z), 1.0) / safe

        def dyad(t, pair, x):
            z, a = pair
            beta = step_of(z, a)
            force = lambda state: sample.field(0.0, state, x)
            _, jvp = jax.linearize(force, z)
            transpose = jax.linear_transpose(jvp, z)
            ends = displaced(z, a, beta), displaced(z, a, -beta)
            (up, down), pulls = map(force, ends), map(jax.grad(sample.loss), ends)
            mean = jax.tree.map(lambda u, d: 0.5 * (u + d), up, down)
            driven = lambda u, d, pu, pd: (d - u) / (2 * beta) + 0.5 * (pu + pd) / unit
            corrected = lambda a, jv, jtv: a - jv + jtv
            adjoint = jax.tree.map(driven, up, down, *pulls)
            return mean, jax.tree.map(corrected, adjoint, jvp(a), transpose(a)[0])

        start = vary_like((sample.z0, jax.tree.map(jnp.zeros_like, sample.z0)), sample.x)
        settled = equilibrium(
            dyad, start, sample.x, solver=self.free, max_steps=self.free_steps, throw=False
        )
        z, a = settled.value
        response = sample.response(z)
        value = jax.tree.map(lambda v: v * (unit / response.pull_size), a)
        displacement = step_of(z, a) * optx.two_norm(a) / response.extent
        adjoint = Adjoint(value, jnp.asarray(0), settled.residual, displacement)
        evaluations = 4 * settled.stats["field_evaluations"] + 1
        free = Free(z, residual_ratio(response.force0, z), evaluations)
        return self.judge(sample, free, response, adjoint)
