"""Integrate-and-fire neurons, alone and in networks: what drives them between spikes, and what a spike does."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._checks import check_callable, given
from ._base import AbstractForceField, hyperparameter
from ._connections import Weight, check_weight
from ._neurons import check_sign, injected, linoid, rejected


class LeakyIntegrateAndFire(AbstractForceField):
    """`τ v̇ = E - v + R I` (Lapicque 1907), z = v in mV, of shape () or (n,): the force below the threshold.

    A neuron spikes when v reaches the threshold from below, and is then held at the reset for the refractory time;
    that is what `fire` does. At a constant current above threshold its interval is
    `refractory + τ log((E + RI - reset) / (E + RI - threshold))`.

    **Arguments:** each a number, or an array (n,). All are hyperparameters.

    - `tau`: τ, ms, above 0. `rest`: E, mV. `resistance`: R, MΩ. `current`: I, nA.
    - `threshold`, `reset`: mV, the second below the first. `refractory`: ms, at least 0.
    - `stimulus`: a function of time (ms) that is added to the current, nA; so is the clamped input `x`, if not None.

    **Raises:** `ValueError` on a parameter outside these bounds.

    ```python
    neuron = ej.fields.LeakyIntegrateAndFire(tau=10.0, current=20.0)
    assert neuron(0.0, jnp.asarray(0.0)) == 2
    ```
    """

    tau: Float[Array, "..."] = hyperparameter(default=10.0)
    rest: Float[Array, "..."] = hyperparameter(default=0.0)
    resistance: Float[Array, "..."] = hyperparameter(default=1.0)
    current: Float[Array, "..."] = hyperparameter(default=0.0)
    threshold: Float[Array, "..."] = hyperparameter(default=10.0)
    reset: Float[Array, "..."] = hyperparameter(default=0.0)
    refractory: Float[Array, "..."] = hyperparameter(default=5.0)
    stimulus: Callable[[Any], Any] | None = None

    def __check_init__(self):
        check_callable("of time, in ms", **given(stimulus=self.stimulus))
        check_sign(self, "a time constant in ms", "tau", zero=False)
        check_sign(self, "in ms", "refractory")
        threshold = self.threshold
        if not isinstance(threshold, Tracer) and rejected(
            self, "reset", lambda value: ~(value < np.asarray(threshold))
        ):
            raise ValueError(
                f"`reset` must lie below `threshold`, got {self.reset} and {self.threshold} mV: the neuron would spike "
                "again at once, for ever."
            )

    def asymptote(self, t: Any, v: Array, x: Any = None) -> Array:
        """`E + R I` in mV: where v tends."""
        return self.rest + self.resistance * injected(self, t, v, x)

    def __call__(self, t: Any, z: Float[Array, "*n"], x: Any = None) -> Float[Array, "*n"]:
        return (self.asymptote(t, z, x) - z) / self.tau


class AbstractSynapse(eqx.Module):
    """What a presynaptic spike of weight w (mV) does to the neuron it reaches."""

    @abc.abstractmethod
    def deliver(self, v: Array, s: Array, kick: Array, active: Array) -> tuple[Array, Array]:
        """Potential and synaptic variable after the arrival of `kick`, mV, the weights of all spikes together."""

    @abc.abstractmethod
    def decay(self, s: Array) -> Array:
        """`ds/dt`."""

    @abc.abstractmethod
    def propagate(self, s: Array, duration: Array, tau: Array) -> tuple[Array, Array]:
        """s after `duration`, and what it has added to the potential of a membrane of time constant `tau`."""


class DeltaSynapse(AbstractSynapse):
    """v jumps by w, in neurons that are not refractory.

    ```python
    synapse = ej.fields.DeltaSynapse()
    assert not synapse.decay(two).any()
    ```
    """

    def deliver(self, v, s, kick, active):
        return jnp.where(active, v + kick, v), s

    def decay(self, s):
        return jnp.zeros_like(s)

    def propagate(self, s, duration, tau):
        return s, jnp.zeros_like(s)


class ExponentialSynapse(AbstractSynapse):
    """s jumps by w and decays: `τ v̇ = … + s`, `τ_s ṡ = -s`. **Arguments:** `tau`: τ_s, ms.

    ```python
    synapse = ej.fields.ExponentialSynapse(tau=2.0)
    assert jnp.all(synapse.decay(two) == -two / 2)
    ```
    """

    tau: Float[Array, ""] = hyperparameter(default=5.0)

    def deliver(self, v, s, kick, active):
        return v, s + kick

    def decay(self, s):
        return -s / self.tau

    def propagate(self, s, duration, tau):
        shift = duration * (1 / self.tau - 1 / tau)  # 0 is a removable singularity
        risen = duration / tau * jnp.exp(-duration / tau) / linoid(shift)
        return s * jnp.exp(-duration / self.tau), s * risen


class SpikingNetwork(AbstractForceField):
    """Integrate-and-fire neurons that excite and inhibit each other, z = (v, s), both (n,): the force between spikes.

    **Arguments:**

    - `neurons`: a `LeakyIntegrateAndFire`.
    - `weight (n, n)`: `weight[i, j]`, mV, is what a spike of j does to i; or a `SparseWeight`; or None for no connections.
    - `synapse`: `DeltaSynapse()` or `ExponentialSynapse(tau)`.

    **Raises:** `ValueError` if the weight is not square.

    ```python
    network = ej.fields.SpikingNetwork(ej.fields.LeakyIntegrateAndFire(), jnp.ones((2, 2)))
    dv, ds = network(0.0, (two, two))
    assert not ds.any()
    ```
    """

    neurons: LeakyIntegrateAndFire
    weight: Weight | None = None
    synapse: AbstractSynapse = DeltaSynapse()

    def __check_init__(self):
        if self.weight is not None:
            check_weight(self.weight, len(jax.tree.leaves(self.weight)[0]))

    def __call__(
        self, t: Any, z: tuple[Float[Array, " n"], Float[Array, " n"]], x: Any = None
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        v, s = z
        return self.neurons(t, v, x) + s / self.neurons.tau, self.synapse.decay(s)

    def after(
        self, spiking: Array, kick: Array | None, v: Array, s: Array, active: Array
    ) -> tuple[Array, Array]:
        """Potentials and synaptic variables after the neurons `spiking (n,)` have: `kick`, the sum of their weights,
        is delivered first, then they are reset."""
        if kick is not None:
            v, s = self.synapse.deliver(v, s, kick, active)
        return jnp.where(spiking, self.neurons.reset, v), s
