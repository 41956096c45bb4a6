"""Equilibrium propagation proper: the contrast of an energy."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from ..analytic import scale
from ..fields import trainable
from ..relaxation import Anderson, Solver
from ._corrections import AbstractCorrection, NoCorrection
from ._estimate import Accept, scalar_loss
from ._nudge import Nudge, displaced
from ._nudged import AbstractNudgedEstimator, as_nudge
from ._real import refuse_complex_state
from ._response import Sample


class EnergyEP(AbstractNudgedEstimator):
    """Equilibrium propagation (Scellier & Bengio 2017; symmetric: Laborieux et al. 2021), for fields with an energy.

    *Objective: equilibrium.* The gradient is `d/dβ ∂/∂θ (E + βL)` over nudged minima: with phases at ±β,

    `(∂E/∂θ(z₊) - ∂E/∂θ(z₋))/(2β) + ½ (∂L/∂θ(z₊) + ∂L/∂θ(z₋))`.

    It asks for `field.energy(z, x)`, whose stationary points are the equilibria, and not for a symmetric Jacobian: fields
    `F = -M(z) ∂E/∂z` (Lagrangian memories) are treated as they should be. The free phase settles the field itself,
    the nudged phases descend `E + βL`; `adjoint_residual` speaks of the Hessian of E. On `F = -∂E/∂z` it meets
    `AsymEP` to O(β²). Where the energy is flat (a softmax layer under a common shift) it does not say where the
    field rests, so the loss must not depend on that.

    **Arguments:** as `AsymEP`, without `correction` and `read_noise`.

    ```python
    class Bowl(ej.AbstractEnergyField):
        pull: jax.Array

        def energy(self, z, x):
            return 0.5 * jnp.sum((z - self.pull * x) ** 2)


    bowl = ej.EquilibriumModel(lambda u: u, Bowl(jnp.asarray(2.0)), lambda z: z)
    estimate = ej.EnergyEP()(bowl, lambda z, y: jnp.sum(z), batch)
    assert jnp.isclose(estimate.grads.field.pull, 4, rtol=1e-3)
    ```
    """

    free: Solver = Anderson(rtol=1e-5)
    nudged: Nudge = eqx.field(default=Nudge(), converter=as_nudge)
    state_noise: ScalarLike | None = None
    free_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable
    correction: ClassVar[AbstractCorrection] = NoCorrection()
    read_noise: ClassVar[None] = None

    def check(self, model, loss, batch, key):
        if not hasattr(model.field, "energy"):
            raise ValueError(
                f"`EnergyEP` needs a field with an `energy(z, x)`, and {type(model.field).__name__} has none: use "
                "`AsymEP`, which needs no energy."
            )
        refuse_complex_state(model, batch[0], "EnergyEP")
        super().check(model, loss, batch, key)

    def respond(self, model, loss, inputs, target, key):
        sample = Sample.encoded(model, loss, inputs, target)
        free = self.settle_freely(sample)

        def descent(t, state, x):
            return jax.tree.map(jnp.negative, jax.grad(model.field.energy)(state, x))

        # From here on the state moves by the energy alone, whatever the field's own dynamics.
        response = sample.response(free.value, descent, free.scale)
        noise = self.noise(key)
        phases = self.phases(sample, free, response, noise)
        nudged = self.nudged.contrast.settle(phases, self.nudged)
        nudged = nudged.read(phases, self.state_noise, noise.states)
        a = phases.average(nudged.displacements)
        steps = scale(phases.nodes, nudged.beta)
        states = jax.vmap(displaced, (None, 0, 0))(response.z, nudged.displacements, steps)
        # β of the loss as given.
        memory = states, steps / response.pull_size
        return self.judge(sample, free, response, self.adjoint(phases, nudged, a), memory)

    def surrogate(self, model, loss, inputs, target, z, a, memory):
        states, betas = memory
        _, weights = self.stencil.nodes()
        x = model.encode(inputs)
        rest = model.field.energy(z, x)

        def phase(state, beta):
            value = scalar_loss(loss(model.decode(state), target))
            return (model.field.energy(state, x) - rest) / beta + value

        return jnp.dot(jnp.asarray(weights, rest.dtype), jax.vmap(phase)(states, betas))
