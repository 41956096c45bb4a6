"""Associative memories as circuits: how long they take, what they spend, and how fast their amplifiers must be.

`python benchmarks/circuit.py` (float64, CPU; ngspice beside it where it is installed). *Pattern memory*: m patterns of 32
random bits, from one of them with 3 bits flipped. *Energy transformer*: m/2 tokens and m/2 memories of width 16, visible
neurons with rails, from rest. *Hamming*: the (7,4) code, one bit wrong. R₂ = 100 kΩ, τ_v = 1 µs, τ_h = .1 µs.

*Settled*: from then on every visible voltage stays within 1% of the largest travel of its final value. *Heat* is the energy
that resistors dissipate until then (`Crossbar.power`, integrated); an amplifier is taken to draw a constant power, as an
argument. *Shortest τ_v*: with amplifiers of the given gain-bandwidth product, the smallest τ_v (all capacitors scaled)
at which settling takes at most 10% more time constants than with ideal ones.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common import arguments, device, table

from eqjax.fields import (
    Crossbar,
    EnergyTransformer,
    FiniteBandwidth,
    LogCosh,
    hamming_memory,
    pattern_memory,
    to_spice,
)
from eqjax.relaxation import relax

BITS, WIDTH, UNIT, HORIZON = 32, 16, 1e-6, 20  # horizon in τ_v
GRID = 4001


def pattern(m, seed):
    words, flips = (np.random.default_rng(seed + k) for k in (0, 1000))
    patterns = jnp.asarray(words.integers(0, 2, (m, BITS)), float)
    flipped = flips.choice(BITS, 3, replace=False)
    start = patterns[0].at[flipped].set(1 - patterns[0, flipped])
    return pattern_memory(patterns, beta=10.0), (start, jnp.zeros(m))


def transformer(m, seed):
    a, b = jax.random.split(jax.random.key(seed))
    field = EnergyTransformer(
        WIDTH, m // 2, m // 2, visible=LogCosh(4.0), visible_time=1.0, hidden_time=0.1, key=a
    )
    # The same total strength at every size.
    field = eqx.tree_at(lambda f: f.patterns, field, field.patterns * (2 / m) ** 0.5)
    tokens = jnp.abs(jax.random.normal(b, (m // 2, WIDTH)))
    return field.network(tokens), field.initial(tokens)


def hamming(m, seed):
    memory = hamming_memory()
    received = memory.patterns[1 + seed].at[seed].set(1 - memory.patterns[1 + seed, seed])
    return memory, (received, jnp.zeros(16))


@eqx.filter_jit
def trace(field, z0, times):
    solver, controller = dfx.Tsit5(), dfx.PIDController(rtol=1e-6, atol=1e-9)
    return relax(
        field, z0, 0.0, solver=solver, controller=controller, step=times[1] / 100, t1=times[-1],
        max_steps=2_000_000, saveat=dfx.SaveAt(ts=times), adjoint=dfx.ForwardMode(),
    ).trajectory  # fmt: skip


def settling(times, v):
    """When the visible voltages have settled to 1%, in the units of `times`."""
    times, v = np.asarray(times), np.asarray(v)
    if not np.all(np.isfinite(v)):
        return float("inf")
    travel = np.abs(v[0] - v[-1]).max()
    late = np.flatnonzero(np.abs(v - v[-1]).max(axis=1) > 0.01 * travel)
    return float(times[late[-1] + 1]) if late.size else 0.0


def ideal(memory, z0):
    """Settling time in s, heat until then in J, and amplifiers."""
    circuit, times = Crossbar(memory, unit=UNIT), jnp.linspace(0, HORIZON * UNIT, GRID)
    z = trace(circuit, z0, times)
    took = settling(times, z[0])
    power = jax.jit(jax.vmap(circuit.power))(z)
    until = np.asarray(times) <= took
    return took, float(np.trapezoid(np.asarray(power)[until], np.asarray(times)[until]))


def shortest(memory, z0, bandwidth, reference, fan):
    """The shortest τ_v, s, by bisection on its logarithm between a tenth and thirty times fan / (2π GBW)."""
    scaled = jnp.linspace(0, HORIZON, GRID)

    def slowed(tau):
        device = FiniteBandwidth(Crossbar(memory, unit=tau), bandwidth)
        z = trace(device, device.initial(z0), scaled * tau)
        return settling(scaled, z[0][0]) / reference

    low, high = np.log(np.array([0.1, 30.0]) * fan / (2 * np.pi * bandwidth))
    while high - low > 0.1:
        middle = 0.5 * (low + high)
        good = slowed(jnp.exp(middle)) <= 1.1
        low, high = (low, middle) if good else (middle, high)
    return float(np.exp(high))


def spice(memory, z0):
    """The settling time of the same circuit in ngspice, s. It runs with capacitors a thousand times as large, of which
    its step control makes better work, and the time is scaled back; where it gives up at the start, another step helps.
    """
    last = 1e3 * HORIZON * UNIT
    for points in (5000, 2000, 20_000):
        text = to_spice(Crossbar(memory, unit=1e3 * UNIT), z0, t1=last, step=last / points)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "memory.cir").write_text(text, "utf-8")
            command = ["ngspice", "-b", "memory.cir"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
            found = np.loadtxt(Path(folder, "memory.txt"), ndmin=2)
        if found[-1, 0] > 0.999 * last:
            return settling(found[:, 0], found[:, 1 : 1 + memory.visible_bias.size]) / 1e3
    return float("nan")  # it gave up at every step tried


def main():
    parser = arguments(__doc__)
    parser.add_argument("--amplifier", type=float, default=1e-5, help="power of one amplifier, W")
    parser.add_argument("--bandwidth", type=float, default=1e8, help="gain-bandwidth product, Hz")
    parser.add_argument("--largest", type=int, default=128, help="of which τ_v is sought")
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    sizes = [8, 32, 128] if options.quick else [8, 16, 32, 64, 128, 256, 512]
    cases = [("Hamming (7,4)", hamming, 16)]
    cases += [("pattern memory", pattern, m) for m in sizes]
    cases += [("energy transformer", transformer, m) for m in sizes]
    rows = []
    for name, make, m in cases:
        found, tau, check = [], "–", "–"
        for seed in range(options.draws):
            memory, z0 = make(m, seed)
            found.append(ideal(memory, z0))
        memory, z0 = make(m, 0)
        took = found[0][0]
        sums = [float(memory.patterns.sum(axis=axis).max()) for axis in (0, 1)]
        fan = 1 + 2 * max(sums)
        if m <= options.largest:
            tau = f"{shortest(memory, z0, options.bandwidth, took / UNIT, fan) * 1e9:.3g}"
        if m <= 32 and shutil.which("ngspice"):
            check = f"{spice(memory, z0) * 1e6:.3f}"
        seconds, heat = np.array(found).T
        neurons = m + memory.visible_bias.size
        static = options.amplifier * neurons * seconds.mean()
        rows.append(
            (
                name, m, neurons, f"{seconds.mean() * 1e6:.2f} ± {seconds.std() * 1e6:.2f}",
                f"{took * 1e6:.3f}", check, f"{heat.mean() * 1e12:.3g}", f"{static * 1e12:.3g}", f"{fan:.1f}", tau,
            )
        )  # fmt: skip
        print(rows[-1], flush=True)
    header = [
        "circuit", "hidden", "amplifiers", "settled, µs", "draw 0", "in ngspice", "heat, pJ",
        f"amplifiers of {options.amplifier * 1e6:g} µW, pJ", "2 Σξ + 1",
        f"shortest τ_v at {options.bandwidth / 1e6:g} MHz, ns",
    ]  # fmt: skip
    table(f"Inference by circuit; {device()}", header, rows, options.out)


if __name__ == "__main__":
    main()
