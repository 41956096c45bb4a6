"""The nudged phases of equilibrium propagation: in which coordinates they settle, and how they are contrasted."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float, Inexact, PyTree

from ..analytic import scale
from ..fields import perturbed
from ..relaxation import equilibrium
from ._corrections import AbstractCorrection
from ._estimate import check_key, check_positive, check_steps
from ._response import (
    AbstractEquilibriumEstimator,
    Adjoint,
    Response,
    Sample,
    Settled,
    complexify,
    is_complex,
    settle_adjoint,
)
from ._stencils import AbstractStencil, relative_radius


class Contrast(NamedTuple):
    """`adjoint`, for a unit pull; `displacements`: `aₖ = (z* - zₖ)/(β sₖ)`, stacked over phases; `steps`: `β sₖ`."""

    adjoint: Adjoint
    displacements: PyTree[Array]
    steps: Inexact[Array, " phases"]


class Phases(NamedTuple):
    """The nudged phases of one sample, for a unit pull.

    `response`: at the free state, complex where the nudges are. `force(k, z)`: the force in phase k, under that
    phase's own noise; `anchor`: the common mode that is taken off it; `antisymmetric(k, v) = (J - Jᵀ) v`; `pull(z)`.
    `nodes`, `weights` of the stencil; `cost`: of preparing and of applying the correction; `noisy`: whether the phases
    differ in more than their nudge.
    """

    response: Response
    force: Callable
    anchor: PyTree[Array]
    antisymmetric: Callable
    nodes: Inexact[Array, " phases"]
    weights: Float[Array, " phases"]
    cost: tuple[int, int]
    noisy: bool

    @property
    def indices(self):
        return jnp.arange(self.nodes.size)

    def average(self, a: PyTree[Array]) -> PyTree[Array]:
        """`Re Σₖ wₖ aₖ`."""
        return jax.tree.map(lambda leaf: jnp.tensordot(self.weights, leaf.real, 1), a)

    def contrast(self, a, beta, nudged_residual, forces, corrections) -> Contrast:
        """`forces`, `corrections`: how often each was evaluated in all."""
        value = self.average(a)
        setup, each = self.cost
        evaluations = setup + forces + each * corrections
        displacement = beta * optx.two_norm(value) / self.response.extent
        adjoint = Adjoint(value, evaluations, nudged_residual, displacement)
        return Contrast(adjoint, a, scale(self.nodes, beta))

    def step_size(self, a: PyTree[Array], settings: "AbstractNudgedEstimator") -> Array:
        """β for a unit pull, so that βa is a displacement of the state; with a `radius` it follows a."""
        if settings.beta is not None:
            return jnp.asarray(settings.beta, self.response.extent.dtype) * self.response.pull_size
        size = optx.two_norm(a)
        # At a = 0 any β will do: there is no displacement yet.
        safe = jnp.where(size > 0, size, jnp.ones_like(size))
        return settings.relative_radius(size) * self.response.extent / safe

    def drive(self, k, state, step) -> PyTree[Array]:
        """`(F(z*) - F(state))/step + ∂L/∂z(state)` in phase k."""
        return jax.tree.map(
            lambda f0, f, pull: (f0 - f) / step + pull,
            self.anchor,
            self.force(k, state),
            self.response.pull_at(state),
        )


class AbstractContrast(eqx.Module):
    """In which coordinates the nudged phases settle."""

    @abc.abstractmethod
    def settle(self, phases: Phases, settings: "AbstractNudgedEstimator") -> Contrast:
        """Settle every phase and contrast them."""


class AdjointCoordinates(AbstractContrast):
    """Settle `a = (z* - z)/β` instead of z, in every phase:

    `ȧ = (F(z*) - F(z* - βa))/β + ∂L/∂z(z* - βa) - (J - Jᵀ) a`.

    The same nudged equilibria as in raw states, but the iteration starts at 0 and the solver's tolerance speaks
    about a: relative to ‖z‖ a nudged state looks settled before it has moved. F(z*) is the common mode of all
    phases: anchored there, what the free phase left unsettled is not divided by β. With a `radius`, β follows
    the iterate, `β = radius · ‖z*‖ / ‖a‖`, so the *settled* displacement is `radius · ‖z*‖`; all phases share one β and
    settle as one system.
    """

    def settle(self, phases, settings):
        response, nodes = phases.response, phases.nodes

        def beta(a):
            return phases.step_size(phases.average(a), settings)

        def residual(a):
            def one(k, a, step):
                state = jax.tree.map(lambda z, v: z - step * v, response.z, a)
                return jax.tree.map(
                    jnp.subtract, phases.drive(k, state, step), phases.antisymmetric(k, a)
                )

            return jax.vmap(one)(phases.indices, a, scale(nodes, beta(a)))

        start = jax.tree.map(lambda z: jnp.zeros((nodes.size, *z.shape), z.dtype), response.z)
        solver, steps = settings.nudged, settings.nudged_steps
        settled = settle_adjoint(residual, start, solver, steps, nodes.size)
        a = settled.value

        def left(step, residual):
            # The nudged force at z* - βa is F(z*) - β · (what the phase still has to settle).
            return optx.two_norm(
                jax.tree.map(lambda f0, r: f0 - step * r, response.force0, residual)
            )

        nudged = jnp.max(jax.vmap(left)(scale(nodes, beta(a)), residual(a))) / response.extent
        calls = (settled.stats["field_evaluations"] + 1) * nodes.size
        return phases.contrast(a, beta(a), nudged, calls, calls)


class SharedAdjoint(AbstractContrast):
    """Settle one displacement a for all phases, which sit at `z* - βsₖ a`:

    `ȧ = Σₖ wₖ [(F(z*) - F(z* - βsₖ a))/(βsₖ) + ∂L/∂z(z* - βsₖ a)] - (J - Jᵀ) a`.

    Errors of the order of the stencil, as in `AdjointCoordinates`, for one correction an evaluation instead of one per
    phase and a state of a single phase: the fastest of the three. The phases mirror one another, so they are
    not nudged equilibria each by itself; on a linear field with a quadratic loss nothing is left of the error.
    `nudged_residual` is an upper bound here.
    """

    def settle(self, phases, settings):
        response, nodes = phases.response, phases.nodes
        lift = complexify if is_complex(nodes) else lambda a: a

        def residual(a):
            beta = phases.step_size(a, settings)
            v = lift(a)

            def one(k, step):
                state = jax.tree.map(lambda z, u: z - step * u, response.z, v)
                return phases.drive(k, state, step)

            driven = phases.average(jax.vmap(one)(phases.indices, scale(nodes, beta)))
            if phases.noisy:
                turned = phases.average(
                    jax.vmap(lambda k: phases.antisymmetric(k, v))(phases.indices)
                )
            else:
                turned = phases.antisymmetric(0, a)
            return jax.tree.map(jnp.subtract, driven, turned)

        start = jax.tree.map(jnp.zeros_like, response.pull)
        settled = settle_adjoint(residual, start, settings.nudged, settings.nudged_steps)
        a = settled.value
        beta, calls = phases.step_size(a, settings), settled.stats["field_evaluations"]
        left = beta * settled.residual * jnp.maximum(optx.two_norm(a), 1.0)
        nudged = (optx.two_norm(response.force0) + left) / response.extent
        every = jax.tree.map(lambda u: jnp.broadcast_to(u, (nodes.size, *u.shape)), lift(a))
        corrections = calls * (nodes.size if phases.noisy else 1)
        return phases.contrast(every, beta, nudged, calls * nodes.size, corrections)


class RawStates(AbstractContrast):
    """The literal form, as hardware would run it: relax `F(z) - (J - Jᵀ)(z - z*) - β ∂L/∂z` from z*, each phase by
    itself, and contrast the states. The tolerance of the nudged solver is relative to ‖z‖, and so must be far
    tighter than the adjoint residual that is wanted. A `radius` sets `β = radius · ‖z*‖ / ‖∂L/∂z‖`."""

    def settle(self, phases, settings):
        response = phases.response
        beta = phases.step_size(response.pull, settings)  # a unit pull stands in for a

        def phase(k, step):
            def nudged(t, state, x):
                moved = jax.tree.map(jnp.subtract, state, response.z)
                return jax.tree.map(
                    lambda f, anti, pull: f - anti - step * pull,
                    phases.force(k, state),
                    phases.antisymmetric(k, moved),
                    response.pull_at(state),
                )

            solver, steps = settings.nudged, settings.nudged_steps
            settled = equilibrium(nudged, response.z, solver=solver, max_steps=steps, throw=False)
            a = jax.tree.map(lambda z, s: (z - s) / step, response.z, settled.value)
            return a, settled.residual, settled.stats["field_evaluations"]

        a, residual, evaluations = jax.vmap(phase)(phases.indices, scale(phases.nodes, beta))
        calls = jnp.sum(evaluations)
        return phases.contrast(a, beta, jnp.max(residual), calls, calls)


class AbstractNudgedEstimator(AbstractEquilibriumEstimator):
    """Estimators that settle freely, then once at every nudge of a stencil, and contrast the phases."""

    nudged: eqx.AbstractVar[Any]
    nudged_steps: eqx.AbstractVar[int]
    radius: eqx.AbstractVar[Any]
    beta: eqx.AbstractVar[Any]
    stencil: eqx.AbstractVar[AbstractStencil]
    contrast: eqx.AbstractVar[AbstractContrast]
    correction: eqx.AbstractVar[AbstractCorrection]
    read_noise: eqx.AbstractVar[Any]

    def __check_init__(self):
        check_steps(free_steps=self.free_steps, nudged_steps=self.nudged_steps)
        if self.radius is not None and self.beta is not None:
            raise ValueError("Give `radius` or `beta`, not both: each fixes the nudge.")
        check_positive(radius=self.radius, beta=self.beta, read_noise=self.read_noise)
        if not isinstance(self.nudged, optx.AbstractFixedPointSolver):
            raise ValueError(
                f"`nudged` must be an Optimistix fixed-point solver, got {self.nudged!r}: a Newton solve of the "
                "nudged phase would be the oracle by another name."
            )

    def check(self, model, loss, batch, key):
        if self.read_noise is not None:
            check_key(key, "`read_noise`")
        self.correction.check(key)

    def relative_radius(self, like: Array) -> Array:
        """The asked displacement relative to ‖z*‖, or the stencil's default."""
        return relative_radius(self.radius, self.stencil.order, like.dtype)

    def respond(self, sample):
        contrast, settled = self.nudge(sample)
        return settled._replace(adjoint=contrast.adjoint)

    def nudge(self, sample: Sample, z: PyTree[Array] | None = None) -> tuple[Contrast, Settled]:
        """Settle freely, unless the free state is known, and then nudged."""
        nodes, weights = self.stencil.nodes()
        noisy = self.read_noise is not None
        nothing: tuple[Any, ...] = (None, None, None)
        free_key, probe_key, noise_key = (
            nothing if sample.key is None else jax.random.split(sample.key, 3)
        )

        def realised(key):
            return perturbed(sample.field, self.read_noise, key) if noisy else sample.field

        residual: Any = jnp.nan
        evaluations: Any = 0
        settled_here = z is None
        if settled_here:
            z, residual, evaluations = self.settle_freely(sample, realised(free_key))
        response = sample.respond(z)
        real = response.extent.dtype
        if np.iscomplexobj(nodes):
            z, force0 = complexify((response.z, response.force0))
            lifted = response._replace(z=z, force0=force0)
            nodes = jnp.asarray(nodes, np.result_type(real, np.complex64))
        else:
            lifted, nodes = response, jnp.asarray(nodes, real)
        if settled_here:
            lifted = lifted.only_if(residual <= self.accept.free_residual)
        if noisy:
            keys = jax.random.split(noise_key, nodes.size)
            here = lambda k: sample.respond(response.z, realised(keys[k]))
            # Under its own noise no phase shares the free phase's force.
            anchor = jax.tree.map(jnp.zeros_like, lifted.force0)
            measured = jax.vmap(lambda k: self.correction.prepare(here(k), probe_key))(
                jnp.arange(nodes.size)
            )
            of_phase = lambda k: jax.tree.map(lambda leaf: leaf[k], measured)
        else:
            here, anchor = lambda k: response, lifted.force0
            measured = self.correction.prepare(response, probe_key)
            of_phase = lambda k: measured
        size = sum(leaf.size for leaf in jax.tree.leaves(z))
        setup, each = self.correction.cost(size)
        phases = Phases(
            response=lifted,
            force=lambda k, state: here(k).force(state),
            anchor=anchor,
            antisymmetric=lambda k, v: self.correction.apply(of_phase(k), here(k), v),
            nodes=nodes,
            weights=jnp.asarray(weights, real),
            cost=(setup * (nodes.size if noisy else 1), each),
            noisy=noisy,
        )
        contrast = self.contrast.settle(phases, self)
        return contrast, Settled(response, residual, evaluations, contrast.adjoint)
