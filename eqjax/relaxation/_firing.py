"""`fire`: when integrate-and-fire neurons spike, event by event or in fixed steps."""

import abc
import math
import numbers
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from .._checks import (
    check_arrays,
    check_count,
    check_finite_number,
    check_kind,
    check_number,
)
from ..analytic import tree_held
from ..fields import LeakyIntegrateAndFire, SpikingNetwork, arrivals, check_weight, scalar


class SpikingState(eqx.Module):
    """Where a network is: potentials `v (n,)` in mV, synaptic variables `s (n,)` in mV, and `ready (n,)`, the time in
    ms until which each neuron is refractory and does not spike, however high its potential."""

    v: Float[Array, " n"]
    s: Float[Array, " n"]
    ready: Float[Array, " n"]


class SpikeTrain(eqx.Module):
    """What `fire` returns.

    - `times (capacity,)`: of the spikes, ms, in order; inf beyond the last. `indices (capacity,)`: which neuron; -1
      beyond the last. `counts (n,)`: spikes of each neuron.
    - `state`: the `SpikingState` at the end, from which `fire` can go on.
    - `complete`: whether the end was reached, with room for every spike and finite numbers.
    """

    times: Float[Array, " capacity"]
    indices: Int[Array, " capacity"]
    counts: Int[Array, " n"]
    state: SpikingState
    complete: Bool[Array, ""]


class AbstractScheme(eqx.Module):
    """How `fire` goes from spike to spike."""

    @abc.abstractmethod
    def run(
        self, network: SpikingNetwork, state: SpikingState, x: Any, t0: Any, t1: Any, capacity: int
    ) -> tuple[Array, Array, SpikingState, Array]:
        """Times and indices of the spikes as in `SpikeTrain`, the last state, and whether it is complete."""


class EventDriven(AbstractScheme):
    """From event to event: every spike is found by a Diffrax event, and polished on the solution itself.

    Spike times are as exact as the integration (the tolerances), and so are their first derivatives by `jax.grad`,
    in everything: parameters, weights, input, initial state, times. At most one spike is treated at a time, so the
    cost is that of the spikes and refractory times of the *whole* network: for small ones. Simultaneous spikes are
    treated one after the other at the same time; where delta synapses make one depend on the other, order matters.
    A neuron at rest gives a solver no reason to look for an input to come: with a `stimulus` its steps are bounded by a
    hundredth of the shortest membrane time constant. What is shorter must be declared as `jumps`.

    **Arguments:**

    - `solver`, `controller`, `max_steps` (between two events), `adjoint`: as for `diffrax.diffeqsolve`. The controller
      is by default a `PIDController` with relative and absolute tolerance 1e-12, or 16 eps if larger, and bounded as
      said; one that is given bounds its steps itself (`dtmax`).
    - `jumps (k,)`: times in ms, in order, at which the stimulus jumps. No step crosses them.

    ```python
    exact = ej.relaxation.EventDriven(jumps=jnp.array([10.0]))  # `fire(..., scheme=exact)`, with a stimulus from 10 ms on
    assert exact.max_steps == 4096
    ```
    """

    solver: dfx.AbstractSolver = dfx.Tsit5()
    controller: dfx.AbstractStepSizeController | None = None
    max_steps: int = eqx.field(static=True, default=4096)
    adjoint: dfx.AbstractAdjoint = dfx.RecursiveCheckpointAdjoint()
    jumps: Float[Array, " k"] | None = None

    def run(self, network, state, x, t0, t1, capacity):
        t0, t1 = (jnp.asarray(t, state.v.dtype) for t in (t0, t1))
        return _from_event_to_event(self, network, state, x, t0, t1, capacity)


def fire(
    network: SpikingNetwork | LeakyIntegrateAndFire,
    z0: float | Float[Array, "*n"] | SpikingState,
    x: Any = None,
    *,
    t1: ScalarLike,
    t0: ScalarLike = 0.0,
    capacity: int,
    scheme: AbstractScheme = EventDriven(),
    throw: bool = True,
) -> SpikeTrain:
    """Let integrate-and-fire neurons spike from `t0` to `t1`, ms. One jitted program; `jax.vmap` over trials.

    **Arguments:**

    - `network`: a `SpikingNetwork`, or a `LeakyIntegrateAndFire` for neurons without connections.
    - `z0`: the potentials, mV, a number or (n,); or the `SpikingState` in which an earlier call ended.
    - `x`: clamped input, nA, or None.
    - `capacity`: for how many spikes of the whole network there is room.
    - `scheme`: `EventDriven()`, exact and differentiable, or `FixedStep(step)` for many neurons.
    - `throw`: raise if the train is not complete. With `throw=False` look at `complete`.

    **Returns:** a `SpikeTrain`. **Raises:** `ValueError` if the weight does not fit the neurons' number or the capacity
    is not positive.

    ```python
    neuron = ej.fields.LeakyIntegrateAndFire(current=15.0)
    train = ej.relaxation.fire(neuron, jnp.zeros(1), t1=20.0, capacity=4)
    assert jnp.isclose(train.times[0], 10 * jnp.log(3.0))  # τ log(RI / (RI - threshold))
    ```
    """
    check_count(capacity=capacity)
    check_finite_number(t0=t0)
    later = lambda t: t < math.inf and (not isinstance(t0, numbers.Real) or t >= t0)
    check_number("be a finite time, not before `t0`", later, t1=t1)
    check_kind(AbstractScheme, "`EventDriven()` or `FixedStep(...)`", scheme=scheme)
    kinds = (SpikingNetwork, LeakyIntegrateAndFire)
    check_kind(kinds, "a `SpikingNetwork` or a `LeakyIntegrateAndFire`", network=network)
    if isinstance(network, LeakyIntegrateAndFire):
        network = SpikingNetwork(network)
    if not isinstance(z0, SpikingState):
        check_arrays(z0=z0)
        v = jnp.atleast_1d(scalar(z0))
        z0 = SpikingState(v, jnp.zeros_like(v), jnp.full_like(v, -jnp.inf))
    n = z0.v.size
    if network.weight is not None:
        check_weight(network.weight, n)
    times, indices, state, complete = scheme.run(network, z0, x, t0, t1, capacity)
    order = jnp.argsort(times)[:capacity]
    times, indices = times[order], indices[order]
    places = jnp.where(indices < 0, n, indices)  # out of bounds: dropped
    counts = jnp.zeros(n, indices.dtype).at[places].add(1, mode="drop")
    if throw:
        times = eqx.error_if(
            times,
            ~complete,
            "The spike train is not complete. Either (a) there are more spikes than `capacity`; (b) `max_steps` of "
            "`EventDriven` are too few between two spikes; or (c) the potentials are not finite. Pass throw=False to "
            "look at what was found.",
        )
    return SpikeTrain(times, indices, counts, state, complete)


# Why gradients go this way. A spike time is a root, v(t, θ) = threshold, with the derivative -(∂v/∂θ) / v̇.
# Diffrax can differentiate an event, but finds it on the interpolant, which is of lower order than the steps
# (at rtol 1e-9 times were 5e-9 off). So it only locates, without gradient; the state is integrated to that
# fixed time, with gradient; and Newton's method on the solution itself gives the last digits and,
# differentiated, just this formula.
@eqx.filter_jit
def _from_event_to_event(scheme, network, state, x, t0, t1, capacity):
    dtype, n, arriving = state.v.dtype, state.v.size, arrivals(network.weight)
    tolerance = max(1e-12, 16 * float(jnp.finfo(dtype).eps))
    controller = scheme.controller
    if controller is None:
        constant = network.neurons.stimulus is None
        bound = None if constant else 0.01 * jnp.min(jnp.asarray(network.neurons.tau, dtype))
        controller = dfx.PIDController(rtol=tolerance, atol=tolerance, dtmax=bound)
    if scheme.jumps is not None:
        controller = dfx.ClipStepSizeController(controller, jump_ts=scheme.jumps)

    def force(t, z, args):
        network, active, x = args
        dv, ds = network(t, z, x)
        # A refractory neuron is held, while what arrives at its synapse goes on decaying.
        return jnp.where(active, dv, jnp.zeros_like(dv)), ds

    def above(v, args):
        # A refractory neuron does not spike, however high it is held.
        network, active, _ = args
        return jnp.where(active, v - network.neurons.threshold, -jnp.inf)

    def excess(t, y, args, **kwargs):
        # In the default type, which is what Diffrax asks of an event whatever that of the state.
        return jnp.max(above(y[0], args)).astype(jnp.result_type(float))

    def integrate(begin, end, z, args, event):
        return dfx.diffeqsolve(
            dfx.ODETerm(force),
            scheme.solver,
            begin,
            end,
            None,
            z,
            args,
            stepsize_controller=controller,
            max_steps=scheme.max_steps,
            adjoint=scheme.adjoint,
            event=event,
            throw=False,
        )

    # Newton, not bisection, which under `vmap` raises for the sake of samples that have no event.
    newton = optx.Newton(100 * tolerance, 100 * tolerance)
    # Rising only: a membrane that decays through the threshold from above does not spike.
    event = dfx.Event(excess, newton, direction=True)

    def advance(carry, _):
        # `now` and `ready` carry gradients; the integrations run between times that do not, and the state is
        # moved along the force by the difference, whose value is zero (or tiny) and whose gradient is not.
        now, z, ready, count, sound = carry
        # The derivative in a limit of integration is the force there: put in by hand it is exact, and no
        # solve is differentiated in its times.
        begin = lax.stop_gradient(now)
        active = ready <= begin
        args = network, active, x
        # The force jumps where a neuron wakes: a step of the solver across that would lose its order.
        stop = jnp.minimum(t1, jnp.min(jnp.where(active, jnp.inf, ready)))
        over = (
            excess(begin, z, args) >= 0
        )  # pushed across by another neuron's spike, or from the start
        # An event sees a crossing, not what is above already. And rounds to spare must change nothing.
        stay = over | (count > capacity) | (stop <= begin)
        end = jnp.where(stay, begin, lax.stop_gradient(stop))
        z = moved(z, begin - now, force(begin, z, args))
        found = integrate(*tree_held((begin, end, z, args)), event)
        crossed = found.event_mask & ~stay
        there = lax.stop_gradient(jnp.where(crossed, found.ts[-1], end))
        # Anew, to just there: the end of the first integration is known only to the interpolant.
        solution = integrate(begin, there, z, args, None)
        z = jax.tree.map(lambda a: a[-1], solution.ys)
        pace = force(there, z, args)
        gap = z[0] - network.neurons.threshold
        first = jnp.argmax(above(z[0], args))
        # Without a crossing the time goes nowhere: the value is 0, the gradient that of where the round ends.
        rest = jnp.where(stay, now - begin, stop - lax.stop_gradient(stop))
        for _ in range(2):  # the slope at the point itself, then half-way to the crossing
            # 1 where nothing crossed: a division by 0 that `where` throws away still sends NaN backwards.
            slope = jnp.where(crossed, pace[0][first], jnp.ones((), dtype))
            rest = jnp.where(crossed, -gap[first] / slope, rest)
            pace = force(there + rest / 2, moved(z, rest / 2, pace), args)
        now, (v, s) = there + rest, moved(z, rest, pace)
        spike = (crossed | over) & (count <= capacity)
        spiking = (jnp.arange(n) == first) & spike
        kick = None
        if arriving is not None:
            kick = arriving.added(arriving.nothing(), first) * spike.astype(dtype)
        v, s = network.after(spiking, kick, v, s, active)
        ready = jnp.where(spiking, now + network.neurons.refractory, ready)
        fine = jnp.isfinite(now) & jnp.all(jnp.isfinite(v)) & jnp.all(jnp.isfinite(s))
        sound &= fine & (solution.result == dfx.RESULTS.successful)
        sound &= (found.result == dfx.RESULTS.successful) | (
            found.result == dfx.RESULTS.event_occurred
        )
        record = jnp.where(spike, now, jnp.inf), jnp.where(spike, first, -1)
        return (now, (v, s), ready, count + spike.astype(count.dtype), sound), record

    # A scan, since reverse mode needs a length that is known: rounds for the most events there can be.
    # Every spike is one event, the end of its refractory time another; one more shows that there is no room.
    start = t0, (state.v, state.s), state.ready, jnp.asarray(0), jnp.asarray(True)
    # n neurons may be refractory from the start, and t1 takes a round of its own.
    events = 2 * (capacity + 1) + n + 1
    (now, (v, s), ready, count, sound), (times, indices) = lax.scan(advance, start, length=events)
    return times, indices, SpikingState(v, s, ready), sound & (count <= capacity) & (now >= t1)


def moved(z, time, force):
    return jax.tree.map(lambda a, f: a + time * f, z, force)
