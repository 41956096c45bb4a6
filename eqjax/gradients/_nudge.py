"""How a nudge is made: how far, in which phases, and in which coordinates they settle."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Inexact, PyTree, ScalarLike

from .._checks import check_count, check_kind, check_positive, given, refuse
from ..analytic import is_complex, scale, tree_complex
from ..relaxation import Anderson, Solver, TokenOrder, equilibrium, with_tolerance
from ._response import Response, in_adjoint_coordinates
from ._stencils import AbstractStencil, Central, OneSided, relative_radius
from ._sweeps import swept

_SOLVER = Anderson(rtol=1e-3)

PerSample = ScalarLike | Float[Array, " b"]


def check_per_sample(size: int, **values: PerSample | None) -> None:
    """One for all samples, or one for each of `size`."""
    for name, value in given(**values).items():
        if jnp.shape(value) not in ((), (size,)):
            refuse(name, f"be one number, or one for each of the {size} samples", value)


class Phases(NamedTuple):
    """The nudged phases of one sample before they settle, for a unit pull.

    `response`: at the free state, complex where the nudges are. `force(k)(z)`: the force in phase k, under that
    phase's own noise; `anchor`: the common mode that is taken off it; `antisymmetric(k, v) = (J - Jᵀ) v`. `nodes`,
    `weights` of the stencil, and its `order`. `noisy`: whether the phases differ in more than their nudge.
    """

    response: Response
    force: Callable
    anchor: PyTree[Array]
    antisymmetric: Callable
    nodes: Inexact[Array, " phases"]
    weights: Float[Array, " phases"]
    order: int
    noisy: bool

    @property
    def indices(self):
        return jnp.arange(self.nodes.size)

    def average(self, a: PyTree[Array]) -> PyTree[Array]:
        """`Re Σₖ wₖ aₖ`."""
        return jax.tree.map(lambda leaf: jnp.tensordot(self.weights, leaf.real, 1), a)

    def drive(self, k, state, step) -> PyTree[Array]:
        """`(F(z*) - F(state))/step + ∂L/∂z(state)` in phase k."""
        return jax.tree.map(
            lambda f0, f, pull: (f0 - f) / step + pull,
            self.anchor,
            self.force(k)(state),
            self.response.pull_at(state),
        )


def displaced(z: PyTree[Array], a: PyTree[Array], step: Array) -> PyTree[Array]:
    """`z - step · a`."""
    return jax.tree.map(lambda u, v: u - step * v, z, a)


class Nudged(NamedTuple):
    """The nudged phases of one sample, settled, for a unit pull.

    `displacements`: `aₖ = (z* - zₖ)/(β sₖ)`, stacked over phases. `beta`. `residual`: force residual of the nudged field, the
    largest of the phases. `forces`, `corrections`: how often each was evaluated in all.
    """

    displacements: PyTree[Array]
    beta: Array
    residual: Array | float
    forces: Array
    corrections: Array

    def read(self, phases: Phases, spread: ScalarLike | None, key: Array | None) -> "Nudged":
        """As an instrument reads it, each number of each state times `1 + spread · N(0, 1)`; without a key, as it is."""
        if key is None:
            return self
        steps = scale(phases.nodes, self.beta)
        rest = jax.tree.map(
            lambda z: jnp.broadcast_to(z, (steps.size, *z.shape)), phases.response.z
        )
        nudged = jax.vmap(displaced)(rest, self.displacements, steps)
        free, other = jax.random.split(key)
        # The free state is read once for all phases.
        off = noise_of(phases.response.z, free, spread)
        moved = jax.tree.map(lambda a, b: a[None] - b, off, noise_of(nudged, other, spread))
        apart = jax.vmap(lambda u, step: jax.tree.map(lambda a: a / step, u))(moved, steps)
        return self._replace(displacements=jax.tree.map(jnp.add, self.displacements, apart))


def noise_of(z: PyTree[Array], key: Array, spread: ScalarLike | None) -> PyTree[Array]:
    """Noise of every number of a state, relative to it."""
    leaves, tree = jax.tree.flatten(z)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        scale(a * jax.random.normal(k, a.shape, a.dtype), jnp.asarray(spread, a.real.dtype))
        for k, a in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


class AbstractContrast(eqx.Module):
    """In which coordinates the nudged phases settle."""

    @abc.abstractmethod
    def settle(self, phases: Phases, nudge: "Nudge") -> Nudged:
        """Settle every phase."""


class AdjointCoordinates(AbstractContrast):
    """Settle `a = (z* - z)/β` instead of z, in every phase:

    `ȧ = (F(z*) - F(z* - βa))/β + ∂L/∂z(z* - βa) - (J - Jᵀ) a`.

    The same nudged equilibria as in raw states, but the iteration starts at 0 and the solver's tolerance speaks
    about a: relative to ‖z‖ a nudged state looks settled before it has moved. F(z*) is the common mode of all
    phases: anchored there, what the free phase left unsettled is not divided by β. With a `radius`, β follows
    the iterate, `β = radius · ‖z*‖ / ‖a‖`, so the *settled* displacement is `radius · ‖z*‖`; all phases share one β and
    settle as one system.

    ```python
    nudged = ej.Nudge(contrast=ej.gradients.AdjointCoordinates())
    assert ej.AsymEP(nudged=nudged).nudged.contrast == ej.Nudge().contrast  # the default
    ```
    """

    def settle(self, phases, nudge):
        response, nodes = phases.response, phases.nodes

        def field(t, a, x):
            steps = scale(nodes, nudge.size(phases, phases.average(a)))
            states = jax.vmap(displaced, (None, 0, 0))(response.z, a, steps)
            driven = jax.vmap(phases.drive)(phases.indices, states, steps)
            turned = jax.vmap(phases.antisymmetric)(phases.indices, a)
            return jax.tree.map(jnp.subtract, driven, turned)

        start = jax.tree.map(lambda z: jnp.zeros((nodes.size, *z.shape), z.dtype), response.z)
        solver = in_adjoint_coordinates(nudge.solver or _SOLVER, nodes.size)
        settled = equilibrium(field, start, solver=solver, max_steps=nudge.steps, throw=False)
        a = settled.value
        beta = nudge.size(phases, phases.average(a))

        def left(step, residual):
            # The nudged force at z* - βa is F(z*) - β · (what the phase still has to settle).
            return optx.two_norm(jax.tree.map(lambda f0, r: f0 - step * r, phases.anchor, residual))

        residual = jnp.max(jax.vmap(left)(scale(nodes, beta), field(0.0, a, None)))
        calls = (settled.stats["field_evaluations"] + 1) * nodes.size
        return Nudged(a, beta, residual / response.extent, calls, calls)


class SharedAdjoint(AbstractContrast):
    """Settle one displacement a for all phases, which sit at `z* - βsₖ a`:

    `ȧ = Σₖ wₖ [(F(z*) - F(z* - βsₖ a))/(βsₖ) + ∂L/∂z(z* - βsₖ a)] - (J - Jᵀ) a`.

    Errors of the order of the stencil, as in `AdjointCoordinates`, for one correction an evaluation instead of one per
    phase and a state of a single phase: the fastest of the three. The phases mirror one another, so they are
    not nudged equilibria each by itself; on a linear field with a quadratic loss nothing is left of the error.
    `nudged_residual` is an upper bound here.

    ```python
    estimator = ej.AsymEP(nudged=ej.Nudge(contrast=ej.gradients.SharedAdjoint()))
    estimate = estimator(model, ej.squared_error, batch)
    assert jnp.allclose(estimate.grads.field.weight, exact, rtol=1e-2, atol=1e-3)
    ```
    """

    def settle(self, phases, nudge):
        response, nodes = phases.response, phases.nodes
        lift = tree_complex if is_complex(nodes) else lambda a: a

        def force(a, beta):
            steps, v = scale(nodes, beta), lift(a)
            states = jax.vmap(displaced, (None, None, 0))(response.z, v, steps)
            driven = phases.average(jax.vmap(phases.drive)(phases.indices, states, steps))
            if phases.noisy:
                turned = phases.average(
                    jax.vmap(lambda k: phases.antisymmetric(k, v))(phases.indices)
                )
            else:
                turned = phases.antisymmetric(0, a)
            return jax.tree.map(jnp.subtract, driven, turned)

        if isinstance(nudge.solver, TokenOrder):
            a, beta, residual, calls = swept(phases, nudge, force)
            left = beta * residual
        else:
            start = jax.tree.map(jnp.zeros_like, response.pull)
            solver = in_adjoint_coordinates(nudge.solver or _SOLVER)
            field = lambda t, a, x: force(a, nudge.size(phases, a))
            settled = equilibrium(field, start, solver=solver, max_steps=nudge.steps, throw=False)
            a, told = settled.value, settled.stats
            beta, calls = nudge.size(phases, a), told["field_evaluations"]
            left = beta * settled.residual * jnp.maximum(optx.two_norm(a), told["scale"])
        residual = (optx.two_norm(phases.anchor) + left) / response.extent
        every = jax.tree.map(lambda u: jnp.broadcast_to(u, (nodes.size, *u.shape)), lift(a))
        corrections = calls * (nodes.size if phases.noisy else 1)
        return Nudged(every, beta, residual, calls * nodes.size, corrections)


class RawStates(AbstractContrast):
    """The literal form, as hardware would run it: relax `F(z) - (J - Jᵀ)(z - z*) - β ∂L/∂z` from z*, each phase by
    itself, and contrast the states. The tolerance of a nudged solver that is given is relative to ‖z‖, and so must be far
    tighter than the adjoint residual that is wanted. A `radius` sets `β = radius · ‖z*‖ / ‖∂L/∂z‖`.

    ```python
    estimator = ej.AsymEP(nudged=ej.Nudge(contrast=ej.gradients.RawStates()), beta=1e-3)
    ```
    """

    def settle(self, phases, nudge):
        response = phases.response
        beta = nudge.size(phases, response.pull)  # a unit pull stands in for a

        def phase(k, step):
            def field(t, state, x):
                moved = jax.tree.map(jnp.subtract, state, response.z)
                return jax.tree.map(
                    lambda f, anti, pull: f - anti - step * pull,
                    phases.force(k)(state),
                    phases.antisymmetric(k, moved),
                    response.pull_at(state),
                )

            # At the start nothing is left but the nudge itself: a part of that is the same part of the adjoint residual.
            fitting = with_tolerance(_SOLVER, lambda rtol, atol: (0.0, rtol * jnp.abs(step)))
            solver = fitting if nudge.solver is None else nudge.solver
            settled = equilibrium(
                field, response.z, solver=solver, max_steps=nudge.steps, throw=False
            )
            a = jax.tree.map(lambda z, s: (z - s) / step, response.z, settled.value)
            return a, settled.residual, settled.stats["field_evaluations"]

        a, residual, evaluations = jax.vmap(phase)(phases.indices, scale(phases.nodes, beta))
        calls = jnp.sum(evaluations)
        return Nudged(a, beta, jnp.max(residual), calls, calls)


class Nudge(eqx.Module):
    """How the nudged phases of an estimator are made.

    **Arguments:**

    - `solver`, `steps`: an Optimistix fixed-point solver, and its budget. In adjoint coordinates its tolerance speaks
      about the adjoint residual, in raw states about the state. By default an `Anderson` that asks for an adjoint residual
      of 1e-3 in either. `TokenOrder`, for a causal field and `SharedAdjoint()`: sweeps over its tokens from the last one
      back, each by products with the transposed Jacobian at the free state, until the nudged force meets the tolerance.
    - `radius`: the settled displacement relative to ‖z*‖ (by default a fifth of where rounding meets curvature: for two
      phases 1e-3 in float32 and 1e-6 in float64); or `beta`: β itself, which multiplies the gradient of the loss
      as given. Both may be arrays, so that a study does not recompile, and of shape `(B,)`, one for every sample.
    - `stencil`: the nudges: `Central(pairs)`, symmetric by default, or `OneSided()`.
    - `contrast`: `AdjointCoordinates()`, `SharedAdjoint()` (the fastest) or `RawStates()` (the literal one).

    **Raises:** `ValueError` for a solver of another kind, for both `radius` and `beta`, or one that is not above 0.

    ```python
    estimator = ej.AsymEP(nudged=ej.Nudge(ej.Anderson(1e-4), radius=1e-4))
    assert estimator.nudged.radius == 1e-4
    ```
    """

    solver: Solver | None = None
    steps: int = 256
    radius: PerSample | None = None
    beta: PerSample | None = None
    stencil: AbstractStencil = Central()
    contrast: AbstractContrast = AdjointCoordinates()

    def __check_init__(self):
        check_count(steps=self.steps)
        if self.radius is not None and self.beta is not None:
            raise ValueError("Give `radius` or `beta`, not both: each fixes the nudge.")
        check_positive(**given(radius=self.radius, beta=self.beta))
        check_kind(AbstractStencil, "a stencil such as `Central()`", stencil=self.stencil)
        check_kind(AbstractContrast, "a contrast such as `SharedAdjoint()`", contrast=self.contrast)
        if not isinstance(self.solver, (optx.AbstractFixedPointSolver, type(None))):
            raise ValueError(
                f"`nudged` must be a `Nudge` or an Optimistix fixed-point solver, got {self.solver!r}: a Newton solve of "
                "the nudged phase would be the oracle by another name."
            )
        real = isinstance(self.stencil, (Central, OneSided))
        shared = isinstance(self.contrast, SharedAdjoint)
        if isinstance(self.solver, TokenOrder) and not (real and shared):
            raise ValueError(
                "A nudge in `TokenOrder` settles `contrast=SharedAdjoint()` with a real stencil, `Central()` or `OneSided()`; "
                f"got {self.contrast!r} and {self.stencil!r}."
            )

    def size(self, phases: Phases, a: PyTree[Array]) -> Array:
        """β for a unit pull, so that βa is a displacement of the state; with a `radius` it follows a."""
        response = phases.response
        if self.beta is not None:
            return jnp.asarray(self.beta, response.extent.dtype) * response.pull_size
        size = optx.two_norm(a)
        # At a = 0 any β will do: there is no displacement yet.
        safe = jnp.where(size > 0, size, jnp.ones_like(size))
        radius = relative_radius(self.radius, phases.order, size.dtype)
        return radius * response.extent / safe
