"""Integrate-and-fire neurons in fixed steps: all at once, or, on a CPU, a step for all and a correction for the few that
spike or wake within it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from .._checks import check_positive
from ..analytic import for_marked
from ..fields import arrivals
from ._firing import AbstractScheme, SpikingState


class FixedStep(AbstractScheme):
    """Fixed steps, all neurons at once: for large networks.

    Within a step h the membrane is propagated exactly (Rotter & Diesmann 1999) for the input at its middle. A crossing
    is interpolated linearly, and the neuron restarts from there: spike times of uncoupled neurons are right to O(h²).
    Spikes arrive at the end of their step, up to h late: with coupling O(h). A neuron spikes at most once in a step.
    There is no gradient; asking for one is refused.

    **Arguments:** `step`: h, ms.

    **Raises:** `ValueError` if t1 - t0 is not a whole number of steps, or not known while tracing; or on a gradient.

    ```python
    neuron = ej.fields.LeakyIntegrateAndFire(current=15.0)
    scheme = ej.relaxation.FixedStep(step=0.1)
    train = ej.relaxation.fire(neuron, jnp.zeros(1), t1=20.0, capacity=4, scheme=scheme)
    assert jnp.isclose(train.times[0], 10 * jnp.log(3.0), rtol=1e-3)
    ```
    """

    step: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        check_positive(step=self.step)

    def run(self, network, state, x, t0, t1, capacity):
        if isinstance(t0, Tracer) or isinstance(t1, Tracer):
            raise ValueError(
                "`FixedStep` needs to know `t0` and `t1` while tracing: pass numbers, not traced arrays, or use "
                "`EventDriven()`."
            )
        length = (float(t1) - float(t0)) / self.step
        steps = round(length)
        if abs(length - steps) > 1e-3:
            raise ValueError(
                f"`t1` - `t0` must be a whole number of steps, got {float(t1) - float(t0)} ms in steps of "
                f"{self.step} ms. Change `step` or `t1`."
            )
        t0 = jnp.asarray(t0, state.v.dtype)
        # Which step a spike falls into is piecewise constant in everything, and so is when it arrives: a
        # derivative would be finite, plausible and wrong.
        arrays, rest = eqx.partition((network, state, x), eqx.is_inexact_array)
        network, state, x = eqx.combine(undifferentiated(arrays), rest)
        return _by_steps(network, state, x, t0, self.step, steps, capacity)


class _Interval(NamedTuple):
    """A step: when it begins and ends, its length, and where each potential tends in it."""

    begin: Array
    end: Array
    length: Any
    target: Array


class _Carry(NamedTuple):
    """Between two steps: the state, the spikes so far and their number."""

    v: Array
    s: Array
    ready: Array
    times: Array
    indices: Array
    number: Array


@eqx.filter_jit
def _by_steps(network, state, x, t0, step, steps, capacity):
    dtype = state.v.dtype
    # All that the steps need, as an argument: what is mapped over trials must not be hidden in a closure.
    arrays, rest = eqx.partition((network, arrivals(network.weight), x, t0), eqx.is_array)

    def interval(arrays, carry, i):
        network, arriving, x, t0 = eqx.combine(arrays, rest)
        begin, end = t0 + step * i.astype(dtype), t0 + step * (i + 1).astype(dtype)
        # The midpoint rule: a changing input taken at either end would leave only first order.
        target = network.neurons.asymptote(begin + step / 2, carry.v, x)
        target = jnp.broadcast_to(target, carry.v.shape)
        return network, arriving, _Interval(begin, end, step, target)

    def all_at_once(arrays, carry, i):
        return _all_at_once(*interval(arrays, carry, i), carry)

    # Trials side by side would wait for each other in loops over single neurons.
    @jax.custom_batching.custom_vmap
    def one_by_one(arrays, carry, i):
        return _one_by_one(*interval(arrays, carry, i), carry)

    @one_by_one.def_vmap
    def _(size, batched, *args):
        axes = jax.tree.map(lambda over: 0 if over else None, batched)
        out = jax.vmap(all_at_once, tuple(axes), axis_size=size)(*args)
        return out, jax.tree.map(lambda _: True, out)

    def advance(carry, i):
        ways: Any = {"cpu": one_by_one, "default": all_at_once}
        return lax.platform_dependent(arrays, carry, i, **ways), None

    times, indices = jnp.full(capacity, jnp.inf, dtype), jnp.full(capacity, -1)
    start = _Carry(state.v, state.s, state.ready, times, indices, jnp.asarray(0))
    end = lax.scan(advance, start, jnp.arange(steps))[0]
    finite = jnp.all(jnp.isfinite(end.v)) & jnp.all(jnp.isfinite(end.s))
    return end.times, end.indices, SpikingState(*end[:3]), finite & (end.number <= capacity)


# Why a neuron restarts within its step. Were a reset booked at the end of it, every interval would come out up
# to h too long, and no order of integration would help. With the crossing interpolated and the membrane
# restarted from there the second order is kept (Hansel, Mato, Meunier & Neltner 1998). It is brought to the end
# of the step at once, so that every v belongs to the same time: another call could not tell from `ready` alone.
def _to_end(synapse, tau, interval, v, s, ready):
    """Potentials at the end of a step, of neurons that are ready from within it; nothing moves where that is beyond it."""
    length = interval.length
    duration = jnp.clip(interval.end - ready, 0, length)
    # What arrived while the neuron was refractory acts on it only as it has decayed by then.
    waited, _ = synapse.propagate(s, length - duration, tau)
    _, risen = synapse.propagate(waited, duration, tau)
    return interval.target + (v - interval.target) * jnp.exp(-duration / tau) + risen


def _crossed(threshold, interval, v, new, ready):
    """Who spikes in a step, and when."""
    duration = jnp.clip(interval.end - ready, 0, interval.length)
    # v itself may stand above: pushed there by spikes delivered at the end of the last step.
    spiking = (duration > 0) & (jnp.maximum(v, new) >= threshold)
    rising = v < threshold
    # 1 elsewhere, lest 0/0.
    slope = jnp.where(spiking & rising, new - v, jnp.ones_like(v))
    share = jnp.where(rising, (threshold - v) / slope, jnp.zeros_like(v))
    return spiking, interval.end - (1 - share) * duration


def _all_at_once(network, arriving, interval, carry):
    v, s, ready, times, indices, count = carry
    neurons, synapse = network.neurons, network.synapse
    new = _to_end(synapse, neurons.tau, interval, v, s, ready)
    later, _ = synapse.propagate(s, jnp.full_like(v, interval.length), neurons.tau)
    spiking, when = _crossed(neurons.threshold, interval, v, new, ready)
    ready = jnp.where(spiking, when + neurons.refractory, ready)

    def deliver(v, s, times, indices, count):
        kick = None if arriving is None else arriving.of_several(spiking)
        v, s = network.after(spiking, kick, v, s, ready <= interval.end)
        v = jnp.where(spiking, _to_end(synapse, neurons.tau, interval, v, before, ready), v)
        place = count + jnp.cumsum(spiking) - 1
        place = jnp.where(spiking, place, times.size)  # out of bounds: dropped
        times = times.at[place].set(when, mode="drop")
        indices = indices.at[place].set(jnp.arange(v.size), mode="drop")
        return v, s, times, indices, count + jnp.sum(spiking)

    quiet = lambda *same: same
    # A step without a spike is spared the product with the weights, the dearest part of one.
    before = s
    told = new, later, times, indices, count
    v, s, times, indices, count = lax.cond(jnp.any(spiking), deliver, quiet, *told)
    return _Carry(v, s, ready, times, indices, count)


def _one_by_one(network, arriving, interval, carry):
    """The same. A whole step has the same factors for all; few neurons wake or spike within one."""
    v, s, ready, times, indices, count = carry
    neurons, length = network.neurons, jnp.asarray(interval.length, v.dtype)
    later, risen = network.synapse.propagate(s, length, neurons.tau)
    moved = interval.target + (v - interval.target) * jnp.exp(-length / neurons.tau) + risen
    new = jnp.where(ready < interval.end, moved, v)

    def brought(j, v):
        """Neuron j from when it is ready."""
        own = lambda tree: jax.tree.map(lambda leaf: leaf[j] if jnp.ndim(leaf) else leaf, tree)
        made = own(network.synapse), own(neurons.tau), own(interval)
        return v.at[j].set(_to_end(*made, v[j], s[j], ready[j]))

    waking = (ready > interval.begin) & (ready < interval.end)
    new = for_marked(waking, brought, jnp.where(waking, v, new))
    spiking, when = _crossed(neurons.threshold, interval, v, new, ready)
    ready = jnp.where(spiking, when + neurons.refractory, ready)
    add = (lambda kick, j: kick) if arriving is None else arriving.added

    def booked(j, told):
        kick, times, indices, count = told
        times = times.at[count].set(when[j], mode="drop")
        indices = indices.at[count].set(j.astype(indices.dtype), mode="drop")
        return add(kick, j), times, indices, count + 1

    told = jnp.zeros_like(v), times, indices, count
    kick, times, indices, count = for_marked(spiking, booked, told)
    kick = None if arriving is None else kick
    v, s_after = network.after(spiking, kick, new, later, ready <= interval.end)
    v = for_marked(spiking & (ready < interval.end), brought, v)
    return _Carry(v, s_after, ready, times, indices, count)


@jax.custom_jvp
def undifferentiated(values):
    return values


@undifferentiated.defjvp
def _refuse(primals, tangents):
    raise ValueError(
        "`scheme` FixedStep has no gradient: the step in which a spike arrives does not depend on its time. Use "
        "`EventDriven()`."
    )
