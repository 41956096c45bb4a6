"""Equilibrium propagation: settle freely, settle again nudged, contrast the two."""

from dataclasses import InitVar, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, PyTree, ScalarLike

from .._checks import check_kind, check_positive, given, refuse
from ..analytic import tree_complex
from ..fields import perturbed
from ..relaxation import TokenOrder
from ._corrections import AbstractCorrection, ExactCorrection
from ._estimate import needed_key
from ._nudge import Nudge, Nudged, PerSample, Phases, check_per_sample
from ._response import AbstractEquilibriumEstimator, Adjoint, Free, Response, Sample
from ._stencils import AbstractStencil


class Noise(NamedTuple):
    """Keys of the realisations of a noisy field, None without noise: `free` of the free settling, `phases` of each nudged
    one; of what is read of the `states`; and the key `probe` of a correction that draws random numbers."""

    free: Array | None = None
    probe: Array | None = None
    phases: Array | None = None
    states: Array | None = None


def as_nudge(nudged: Any) -> Nudge:
    """A bare solver is a `Nudge` by it."""
    if nudged is None:
        refuse("nudged", "be a `Nudge` or an Optimistix fixed-point solver", nudged)
    return nudged if isinstance(nudged, Nudge) else Nudge(nudged)


class AbstractNudgedEstimator(AbstractEquilibriumEstimator):
    """Estimators that settle freely, then once at every nudge of a stencil, and contrast the phases.

    `nudged` is a `Nudge`, or a solver for one. `beta` or `radius`, given to the estimator, go into it and are read there
    (`estimator.nudged.radius`); the estimator itself does not keep them.
    """

    nudged: eqx.AbstractVar[Nudge]
    correction: eqx.AbstractVar[AbstractCorrection]
    read_noise: eqx.AbstractVar[ScalarLike | None]
    state_noise: eqx.AbstractVar[ScalarLike | None]
    beta: InitVar[PerSample | None] = eqx.field(default=None, kw_only=True)
    radius: InitVar[PerSample | None] = eqx.field(default=None, kw_only=True)

    def __post_init__(self, beta, radius):
        nudge, settings = as_nudge(self.nudged), given(beta=beta, radius=radius)
        self.nudged = replace(nudge, **settings) if settings else nudge

    def __check_init__(self):
        check_positive(**self._noises)
        kinds = "a correction such as `ExactCorrection()`"
        check_kind(AbstractCorrection, kinds, correction=self.correction)

    @property
    def _noises(self) -> dict[str, Any]:
        return given(read_noise=self.read_noise, state_noise=self.state_noise)

    def per_sample(self):
        return self.nudged.beta, self.nudged.radius

    @property
    def stencil(self) -> AbstractStencil:
        return self.nudged.stencil

    def check(self, model, loss, batch, key):
        for name in self._noises:
            needed_key(key, f"`{name}`")
        size = jax.tree.leaves(batch)[0].shape[0]
        check_per_sample(size, beta=self.nudged.beta, radius=self.nudged.radius)
        self.correction.check(key)
        exact = isinstance(self.correction, ExactCorrection) and not self._noises
        if isinstance(self.nudged.solver, TokenOrder) and not exact:
            raise ValueError(
                "Nudged phases in `TokenOrder` need `ExactCorrection()` and neither `read_noise` nor `state_noise`: products "
                "with each token's own block of the Jacobian. Settle them as a whole: pass the solver inside of it."
            )

    def respond(self, model, loss, inputs, target, key):
        sample = Sample.encoded(model, loss, inputs, target)
        noise = self.noise(key)
        free = self.settle_freely(sample, self.realised(sample.field, noise.free))
        sample = sample.counting(free.counted)
        response = sample.response(free.value, scale=free.scale)
        phases = self.phases(sample, free, response, noise)
        nudged = self.nudged.contrast.settle(phases, self.nudged)
        nudged = nudged.read(phases, self.state_noise, noise.states)
        # Σₖ wₖ (z* - zₖ)/(β sₖ), which is a = (z₋ - z₊)/2β for two phases at ±β.
        a = phases.average(nudged.displacements)
        return self.judge(sample, free, response, self.adjoint(phases, nudged, a))

    def noise(self, key: Array | None) -> Noise:
        """Which realisations of a noisy field are felt, each fixed while it settles."""
        if key is None:
            return Noise()
        free, probe, phases = jax.random.split(key, 3)
        states = None if self.state_noise is None else jax.random.fold_in(key, 3)
        if self.read_noise is None:
            return Noise(probe=probe, states=states)
        phases = jax.random.split(phases, len(self.stencil.nodes()[0]))
        return Noise(free, probe, phases, states)

    def realised(self, field: Any, key: Array | None) -> Any:
        return field if key is None else perturbed(field, self.read_noise, key)  # pyright: ignore[reportArgumentType]

    def phases(self, sample: Sample, free: Free, response: Response, noise: Noise) -> Phases:
        """The nudged phases at the free state, with no pull where that has not settled."""
        nodes, weights = self.stencil.nodes()
        real, lifted = response.extent.dtype, response
        if np.iscomplexobj(nodes):
            z, force0 = tree_complex((response.z, response.force0))
            lifted = response._replace(z=z, force0=force0)
            nodes = jnp.asarray(nodes, np.result_type(real, np.complex64))
        else:
            nodes = jnp.asarray(nodes, real)
        lifted = lifted.only_if(self.accept.settled(free.residual, self.free))
        keys, prepare = noise.phases, self.correction.prepare
        if keys is not None:
            here = lambda k: sample.response(response.z, self.realised(sample.field, keys[k]))
            each = jax.vmap(lambda k: prepare(here(k), noise.probe))(jnp.arange(nodes.size))
            measured = lambda k: jax.tree.map(lambda leaf: leaf[k], each)
            # Under its own noise no phase shares the free phase's force.
            anchor = jax.tree.map(jnp.zeros_like, lifted.force0)
        else:
            once = prepare(response, noise.probe)
            here, measured, anchor = lambda k: response, lambda k: once, lifted.force0
        return Phases(
            response=lifted,
            force=lambda k: here(k).force,
            anchor=anchor,
            antisymmetric=lambda k, v: self.correction.apply(measured(k), here(k), v),
            nodes=nodes,
            weights=jnp.asarray(weights, real),
            order=self.stencil.order,
            noisy=keys is not None,
        )

    def adjoint(self, phases: Phases, nudged: Nudged, a: PyTree[Array]) -> Adjoint:
        """The contrast `a`, and what it took to get it."""
        setup, each = self.correction.cost(optax.tree.size(a))
        setup *= phases.nodes.size if phases.noisy else 1
        evaluations = setup + nudged.forces + each * nudged.corrections
        displacement = nudged.beta * optx.two_norm(a) / phases.response.extent
        return Adjoint(a, evaluations, nudged.residual, displacement)
