"""Equilibrium propagation for non-conservative fields."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx

from ..fields import trainable
from ..relaxation import Anderson, equilibrium
from .estimate import (
    AbstractEquilibriumEstimator,
    Accept,
    Adjoint,
    Response,
    check_steps,
    settle_adjoint,
)


class AbstractContrast(eqx.Module):
    """In which coordinates the two nudged phases settle."""

    @abc.abstractmethod
    def adjoint(self, response: Response, estimator: "AsymEP") -> Adjoint:
        """The contrast `(z₋ - z₊)/(2β)`, for a unit pull."""


class AdjointCoordinates(AbstractContrast):
    """Settle `a = ∓(z - z*)/β` instead of z, once at +β and once at -β, and average:

    `ȧ = (F(z* ± βa) - F(z*))/(±β) + ∂L/∂z(z* ± βa) - (J - Jᵀ) a`.

    The same nudged equilibria as in raw states, but the iteration starts at 0 and the solver's tolerance speaks
    about a: relative to ‖z‖ a nudged state looks settled before it has moved. With a `radius`, β follows
    the iterate, `β = radius · ‖z*‖ / ‖a‖`, so the *settled* displacement is `radius · ‖z*‖`.
    """

    def adjoint(self, response: Response, estimator: "AsymEP") -> Adjoint:
        def beta(a):
            """β for a unit pull, so that βa is a displacement of the state."""
            if estimator.beta is not None:
                return estimator.beta * response.pull_size
            size = optx.two_norm(a)
            # At a = 0 any β will do: there is no displacement yet.
            return estimator.relative_radius(size) * response.extent / jnp.where(size > 0, size, 1)

        def phase(sign):
            def residual(a):
                step = sign * beta(a)
                state = jax.tree.map(lambda z, v: z + step * v, response.z, a)
                return jax.tree.map(
                    lambda f, f0, pull, jv, jtv: (f - f0) / step + pull - jv + jtv,
                    response.force(state),
                    response.force0,
                    response.pull_at(state),
                    response.jvp(a),
                    response.vjp(a),
                )

            settled = settle_adjoint(residual, response, estimator.nudged, estimator.nudged_steps)
            a = settled.value
            step = sign * beta(a)
            # The nudged force at z* + βa is F(z*) + β · (what the phase still has to settle).
            nudged = jax.tree.map(lambda f0, r: f0 + step * r, response.force0, residual(a))
            evaluations = 3 * (settled.stats["field_evaluations"] + 1)
            return a, beta(a), optx.two_norm(nudged) / response.extent, evaluations

        signs = jnp.asarray([1.0, -1.0], response.extent.dtype)
        a, betas, nudged, evaluations = jax.vmap(phase)(signs)

        def both(leaf, weight):
            return jnp.mean(leaf * weight.reshape((2,) + (1,) * (leaf.ndim - 1)), axis=0)

        value = jax.tree.map(lambda leaf: both(leaf, jnp.ones_like(betas)), a)
        moved = jax.tree.map(lambda leaf: both(leaf, betas), a)
        displacement = optx.two_norm(moved) / response.extent
        return Adjoint(value, jnp.sum(evaluations), jnp.max(nudged), displacement)


class RawStates(AbstractContrast):
    """The literal form, as hardware would run it: relax `F(z) - (J - Jᵀ)(z - z*) ∓ β ∂L/∂z` from z* at ±β and
    contrast the two states. The tolerance of the nudged solver is relative to ‖z‖, and so must be far tighter
    than the adjoint residual that is wanted. A `radius` sets `β = radius · ‖z*‖ / ‖∂L/∂z‖`."""

    def adjoint(self, response: Response, estimator: "AsymEP") -> Adjoint:
        if estimator.beta is not None:
            beta = estimator.beta * response.pull_size
        else:
            beta = estimator.relative_radius(response.extent) * response.extent

        def phase(sign):
            def nudged(t, state, x):
                moved = jax.tree.map(jnp.subtract, state, response.z)
                return jax.tree.map(
                    lambda f, jv, jtv, pull: f - (jv - jtv) - sign * beta * pull,
                    response.force(state),
                    response.jvp(moved),
                    response.vjp(moved),
                    response.pull_at(state),
                )

            return equilibrium(
                nudged,
                response.z,
                solver=estimator.nudged,
                max_steps=estimator.nudged_steps,
                throw=False,
            )

        signs = jnp.asarray([1.0, -1.0], response.extent.dtype)
        settled = jax.vmap(phase)(signs)
        contrast = jax.tree.map(lambda z: (z[1] - z[0]) / (2 * beta), settled.value)
        displacement = beta * optx.two_norm(contrast) / response.extent
        evaluations = 3 * jnp.sum(settled.stats["field_evaluations"])
        return Adjoint(contrast, evaluations, jnp.max(settled.residual), displacement)


class AsymEP(AbstractEquilibriumEstimator):
    """Asymmetric equilibrium propagation, two-phase and symmetric (Scurria et al., arXiv 2602.03670).

    *Objective: equilibrium.* Settle freely to z*; settle again, at ±β, under the nudged field
    `F(z) - (J - Jᵀ)(z - z*) - β ∂L/∂z`, whose Jacobian at z* is Jᵀ; the contrast `a = (z₋ - z₊)/(2β)` tends to
    the oracle's adjoint with error O(β²), and `aᵀ ∂F/∂θ` is the gradient. Uses products with J and Jᵀ at z*,
    no backpropagation through time and no linear solver.

    **Arguments:**

    - `free`, `free_steps`: solver of the free phase and its budget.
    - `nudged`, `nudged_steps`: the same of each nudged phase; any Optimistix fixed-point solver. In adjoint
      coordinates its tolerance speaks about the adjoint residual.
    - `radius`: the settled displacement relative to ‖z*‖ (default: a fifth of the cube root of the rounding
      unit, 1e-3 in float32 and 1e-6 in float64, where rounding ∝ 1/β meets curvature ∝ β²); or `beta`: β itself, which
      multiplies the gradient of the loss as given. Both may be arrays, so that a study does not recompile.
    - `contrast`: `AdjointCoordinates()` or `RawStates()`.
    - `accept`: per-sample thresholds. `trains`: function from models to a mask of the trained arrays.
    """

    free: Any = Anderson(rtol=1e-5)
    nudged: Any = Anderson(rtol=1e-3)
    radius: Any = None
    beta: Any = None
    contrast: AbstractContrast = AdjointCoordinates()
    free_steps: int = 256
    nudged_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable

    def __check_init__(self):
        check_steps(free_steps=self.free_steps, nudged_steps=self.nudged_steps)
        if self.radius is not None and self.beta is not None:
            raise ValueError("Give `radius` or `beta`, not both: each fixes the nudge.")
        for name in ("radius", "beta"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        if not isinstance(self.nudged, optx.AbstractFixedPointSolver):
            raise ValueError(
                f"`nudged` must be an Optimistix fixed-point solver, got {self.nudged!r}: a Newton solve of the "
                "nudged phase would be the oracle by another name."
            )

    def relative_radius(self, like):
        default = 0.2 * float(jnp.finfo(like.dtype).eps) ** (1 / 3)
        return jnp.asarray(default if self.radius is None else self.radius, like.dtype)

    def adjoint(self, response: Response) -> Adjoint:
        return self.contrast.adjoint(response, self)
