"""Equilibrium propagation proper: the contrast of an energy."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..fields import trainable
from ..relaxation import Anderson
from ._corrections import AbstractCorrection, NoCorrection
from ._estimate import Accept
from ._nudged import AbstractContrast, AbstractNudgedEstimator, AdjointCoordinates
from ._response import Sample
from ._stencils import AbstractStencil, Central


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
    """

    free: Any = Anderson(rtol=1e-5)
    nudged: Any = Anderson(rtol=1e-3)
    radius: Any = None
    beta: Any = None
    stencil: AbstractStencil = Central()
    contrast: AbstractContrast = AdjointCoordinates()
    free_steps: int = 256
    nudged_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable
    correction: ClassVar[AbstractCorrection] = NoCorrection()
    read_noise: ClassVar[Any] = None

    def check(self, model, loss, batch, key):
        if not hasattr(model.field, "energy"):
            raise ValueError(
                f"`EnergyEP` needs a field with an `energy(z, x)`, and {type(model.field).__name__} has none: use "
                "`AsymEP`, which needs no energy."
            )

    def respond(self, sample):
        field: Any = sample.field
        z, residual, evaluations = self.settle_freely(sample)

        def descent(t, state, x):
            return jax.tree.map(jnp.negative, jax.grad(field.energy)(state, x))

        # From here on the state moves by the energy alone, whatever the field's own dynamics.
        still = Sample(descent, sample.x, z, sample.loss, sample.key)
        contrast, settled = self.nudge(still, z)
        beta = contrast.steps / settled.response.pull_size  # of the loss as given
        states = jax.vmap(lambda a, s: jax.tree.map(lambda u, v: u - s * v, z, a))(
            contrast.displacements, contrast.steps
        )
        return settled._replace(
            free_residual=residual, evaluations=evaluations, memory=(states, beta)
        )

    def surrogate(self, model, loss, inputs, target, z, a, memory):
        states, betas = memory
        _, weights = self.stencil.nodes()
        x = model.encode(inputs)
        rest = model.field.energy(z, x)

        def phase(state, beta):
            return (model.field.energy(state, x) - rest) / beta + loss(model.decode(state), target)

        return jnp.dot(jnp.asarray(weights, rest.dtype), jax.vmap(phase)(states, betas))
