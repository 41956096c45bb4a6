"""Neurons that fire, and oscillators that fall into step."""

import dataclasses
from functools import partial
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import fields, plots, relaxation
from ..relaxation import relax
from ..stability import continuation
from ._show import AbstractShow, Shown, check_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class HHShow(AbstractShow):
    """The Hodgkin–Huxley neuron: its f–I curve, its period, and the Hopf points where firing begins and ends."""

    current: float = 10.0
    """Of the voltage trace, µA/cm²."""

    def __call__(self) -> Shown:
        if not np.isfinite(self.current):
            raise ValueError(f"`current` must be a finite number of µA/cm², got {self.current}.")
        field = fields.HodgkinHuxley()
        branch = continuation(
            field, field.clamped(-65.0), where=lambda f: f.current, bounds=(0.0, 200.0), k=4
        )
        first, second = (point.parameter for point in branch.special_points)
        currents = jnp.concatenate([jnp.linspace(0.0, 20.0, 41), jnp.linspace(24.0, 168.0, 37)])
        v = jnp.interp(currents, jnp.asarray(branch.parameters), jnp.asarray(branch.states)[:, 0])
        spike = jnp.broadcast_to(field.clamped(-65.0).at[0].set(20.0)[:, None], (4, currents.size))
        starts = jnp.concatenate([spike, field.clamped(v + 0.2)], axis=1)
        spiking, resting = jnp.split(firing_rates(jnp.tile(currents, 2), starts), 2)
        rate = float(spiking[20])
        times = jnp.arange(0.0, 100.0, 0.05)
        driven = fields.HodgkinHuxley(stimulus=lambda t: jnp.where(t > 20, self.current, 0.0))
        how = {"solver": dfx.Tsit5(), "step": 0.02, "steps": 5000, "saveat": dfx.SaveAt(ts=times)}
        found: Any = relax(driven, field.clamped(-65.0), **how)
        pushed, title = jnp.where(times > 20, self.current, 0.0), "Hodgkin–Huxley"
        curve = plots.f_i_curve(
            {
                "started by a spike": (currents, spiking),
                "pushed from rest by .2 mV": (currents, resting),
            },
            marks={"Hopf point, subcritical": first, "Hopf point, supercritical": second},
            title=title,
        )
        trace = plots.trace(times, {"V": found.trajectory[:, 0]}, stimulus=pushed, title=title)
        rows = (
            ("firing begins: Hopf point (µA/cm²)", f"{first:.6f}", "9.775438"),
            ("firing ends: Hopf point (µA/cm²)", f"{second:.6f}", "154.522434"),
            ("period at 10 µA/cm² (ms)", f"{1000 / rate:.4f}", "14.6362"),
        )
        return Shown(rows, {"f_i.png": curve, "trace.png": trace})


def firing_rates(
    currents: Float[Array, " n"],
    start: Float[Array, "4 n"],
    *,
    step: float = 0.03,
    before: float = 300.0,
    during: float = 120.0,
) -> Float[Array, " n"]:
    """Rates of Hodgkin–Huxley neurons, Hz, by the upward crossings of the middle of their swing; 0 for swings below 5 mV.

    **Arguments:** `currents (n,)`, µA/cm². `start (4, n)`: states. `step`: of the fifth-order solver, ms. `before`,
    `during`: how long transients are left to die out, and how long crossings are counted, ms.

    ```python
    rates = lambda I: ej.showcase.firing_rates(I, jnp.zeros((4, 1)), before=0.3, during=0.3)
    assert jax.eval_shape(rates, jnp.zeros(1)).shape == (1,)
    ```
    """
    population = fields.HodgkinHuxley(current=currents)

    @jax.jit
    def run(z):
        go_on = partial(relax, population, solver=dfx.Tsit5(), step=step)
        z = go_on(z, steps=round(before / step)).value
        every = dfx.SaveAt(subs=dfx.SubSaveAt(t0=True, steps=True, fn=lambda t, z, args: z[0]))
        v: Any = go_on(z, steps=round(during / step), saveat=every).trajectory
        low, high = jnp.min(v, axis=0), jnp.max(v, axis=0)
        v = v - 0.5 * (low + high)[None]
        crossing = (v[:-1] < 0) & (v[1:] >= 0) & (high - low > 5)[None]
        share = v[:-1] / jnp.where(crossing, v[:-1] - v[1:], 1.0)
        when = step * (jnp.arange(len(share)).astype(v.dtype)[:, None] + share)
        first = jnp.min(jnp.where(crossing, when, jnp.inf), axis=0)
        last = jnp.max(jnp.where(crossing, when, -jnp.inf), axis=0)
        periods = jnp.sum(crossing, axis=0).astype(v.dtype) - 1
        return jnp.where(periods > 0, 1000 * periods / jnp.where(periods > 0, last - first, 1.0), 0)

    return run(start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LIFShow(AbstractShow):
    """Integrate-and-fire neurons: rates by exact events against the closed form, and a network of them in a raster."""

    size: int = 300
    """Neurons of the network; a fifth of them inhibit."""
    duration: float = 400.0
    """Of the network's run, ms."""
    seed: int = 0
    """Of its connections and first potentials."""

    def __call__(self) -> Shown:
        check_size(self.size, 10, 5000)
        steps = round(self.duration / 0.1)
        if not steps > 0:
            raise ValueError(f"`duration` must be at least .1 ms, got {self.duration}.")
        drives = np.array([11.0, 12.0, 15.0, 20.0])
        neurons = fields.LeakyIntegrateAndFire(current=jnp.asarray(drives))
        train = relaxation.fire(neurons, jnp.zeros(4), t1=70.0, capacity=20)
        times, indices = np.asarray(train.times), np.asarray(train.indices)
        rates = [1000 / np.diff(times[indices == i])[-1] for i in range(4)]
        excitatory, network, start = spiking_network(self.size, jax.random.key(self.seed))
        capacity = round(0.5 * self.size * self.duration) + 1
        duration, scheme = 0.1 * steps, relaxation.FixedStep(0.1)
        found = relaxation.fire(network, start, t1=duration, capacity=capacity, scheme=scheme)
        groups = {"excitatory": excitatory, "inhibitory": self.size - excitatory}
        means = np.array([part.mean() for part in np.split(np.asarray(found.counts), [excitatory])])
        title = f"{self.size} neurons, all driven alike"
        figure = plots.raster(found, duration=duration, groups=groups, title=title)
        rows = []
        for i, rate, k in zip(drives, rates, KNOWN_RATES, strict=True):
            rows.append((f"rate at {i:g} nA (Hz)", f"{rate:.10f}", f"{k:.10f}"))
        for name, rate in zip(groups, 1000 * means / duration, strict=True):
            rows.append((f"mean rate in the network, {name} (Hz)", f"{rate:.1f}", "–"))
        return Shown(tuple(rows), {"raster.png": figure})


KNOWN_RATES = (34.5078032801, 43.6345966244, 62.5542545299, 83.8119568393)


def spiking_network(size: int, key: PRNGKeyArray):
    """How many neurons excite, the network, and potentials to start from: a tenth of all pairs are connected.

    ```python
    excite, network, v = ej.showcase.spiking_network(20, jax.random.key(1))
    assert excite == 16 and v.shape == (20,)
    ```
    """
    excitatory = size - size // 5
    a, b = jax.random.split(key)
    strength = jnp.where(jnp.arange(size) < excitatory, 1.2, -7.0) * (300 / size)
    weight = jnp.where(jax.random.uniform(a, (size, size)) < 0.1, strength[None], 0.0)
    neurons = fields.LeakyIntegrateAndFire(current=jnp.asarray(12.0))
    network = fields.SpikingNetwork(neurons, weight, fields.ExponentialSynapse())
    return excitatory, network, 10 * jax.random.uniform(b, (size,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KuramotoShow(AbstractShow):
    """Phase oscillators of Lorentzian and of Gaussian frequencies: how they fall into step as the coupling grows."""

    size: int = 1000
    """Oscillators."""
    seed: int = 0
    """Of their first phases."""

    def __call__(self) -> Shown:
        from scipy.special import ive
        from scipy.stats import norm

        check_size(self.size, 50, 100_000)
        n, key = self.size, jax.random.key(self.seed)
        share = (np.arange(n) + 0.5) / n
        couplings = jnp.array([0.5, 1.0, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0])
        lorentz = coherence(jnp.asarray(np.tan(np.pi * (share - 0.5))), couplings, key)
        gauss = coherence(jnp.asarray(norm.ppf(share)), couplings, key)
        beyond = np.linspace(2.0, 6.0, 401)
        # The Gaussian's r(K) with x = K r as its parameter; 1 = K ∫ cos² a · g(x sin a) da in Bessel functions.
        x = np.linspace(1e-6, 6.0, 401)
        r = (np.pi / 8) ** 0.5 * x * (ive(0, x * x / 4) + ive(1, x * x / 4))
        figure = plots.order_parameter(
            {"Lorentzian, γ = 1": (couplings, lorentz), "Gaussian, σ = 1": (couplings, gauss)},
            theory={
                "Lorentzian, n → ∞": (beyond, np.sqrt(1 - 2 / beyond)),
                "Gaussian, n → ∞": (x / r, r),
            },
            title=f"{n} oscillators",
        )
        at = lambda r, k: f"{r[int(np.flatnonzero(np.asarray(couplings) == k)[0])]:.4f}"
        scatter = f"{n**-0.5:.2f}"
        rows = (
            ("r at K = 4, Lorentzian", at(lorentz, 4.0), f"√½ = .7071 ± {scatter}"),
            ("r at K = 2, Gaussian", at(gauss, 2.0), f".7152 ± {scatter}"),
            ("r at K = 1, below both K_c", at(lorentz, 1.0), f"0, but for n^-½ = {scatter}"),
        )
        return Shown(rows, {"kuramoto.png": figure})


def coherence(
    frequencies: Any, couplings: Any, key: PRNGKeyArray, *, step: float = 0.1, duration=120.0
):
    """Mean of r over the last third of runs from random phases, one for each coupling.

    ```python
    r = lambda K: ej.showcase.coherence(jnp.zeros(3), K, jax.random.key(1))  # 1 in the end: all have one frequency
    ```
    """
    phases = jax.random.uniform(key, frequencies.shape, maxval=2 * jnp.pi)
    order = lambda t, phases, args: jnp.abs(fields.order_parameter(phases))
    ts = jnp.linspace(2 * duration / 3, duration, 200)
    every = dfx.SaveAt(subs=dfx.SubSaveAt(ts=ts, fn=order))
    how = {"solver": dfx.Heun(), "step": step, "steps": round(duration / step), "saveat": every}

    def run(coupling):
        found: Any = relax(fields.Kuramoto(frequencies, coupling), phases, **how)
        return jnp.mean(found.trajectory)

    return np.asarray(jax.jit(jax.vmap(run))(couplings))
