"""Memories that recall, compute and correct."""

import dataclasses
import math
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np

from .. import fields, plots
from ..relaxation import relax
from ._show import AbstractShow, Shown, check_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class HopfieldShow(AbstractShow):
    """Random patterns in a binary Hopfield network: recalled from damaged cues, until there are too many of them."""

    size: int = 500
    """Neurons."""
    damage: float = 0.15
    """Fraction of a cue's bits that are wrong."""
    seed: int = 0
    """Of patterns, cues and the order of updates."""

    def __call__(self) -> Shown:
        check_size(self.size, 50, 5000)
        if not 0 <= self.damage < 0.5:
            raise ValueError(
                f"`damage` must be at least 0 and below .5, where nothing is left, got {self.damage}."
            )
        n, key = self.size, jax.random.key(self.seed)
        load = max(2, round(0.138 * n))
        errors = np.asarray(_one_step_errors(key, n, load, draws=30))
        loads, overlaps = map(np.asarray, _overlaps(key, n, draws=5))
        cues, patterns, path, energies = _recalled(key, n, max(2, round(0.08 * n)), self.damage)
        after = np.mean(path[:, -1] * patterns)
        below = np.linspace(0.005, 0.1379, 100)
        shape = (len(patterns), *near_square(n))
        images = {"stored": patterns, "cue": cues, "recalled": path[:, -1]}
        pixels = lambda a: np.asarray(a)[:, : math.prod(shape[1:])].reshape(shape)
        gallery = plots.recall(
            {name: pixels(a) for name, a in images.items()},
            np.asarray(energies) / n,
            title=f"{n} neurons, load .08, {self.damage:.0%} of every cue wrong",
        )
        capacity = plots.order_parameter(
            {f"{n} neurons": (loads, overlaps)},
            theory={"theory, N → ∞": (below, [retrieval_overlap(a) for a in below])},
            onset=0.137905566,
            labels=("load P/N", "overlap with the pattern"),
            title="recall from the stored pattern itself",
        )
        error = f"{errors.mean():.5f} ± {errors.std(ddof=1) / len(errors) ** 0.5:.5f}"
        limit = 0.5 * math.erfc((n / (2 * load)) ** 0.5)
        law = f"{one_step_law(n, load):.5f} (N → ∞: {limit:.5f})"
        cued = f"overlap at load .08, from cues {self.damage:.0%} wrong"
        rise = f"{np.diff(energies).max():.1g}"
        rows = (
            (f"one-step bit error, {load} patterns in {n} neurons", error, law),
            (cued, f"{after:.4f}", f"{retrieval_overlap(0.08):.4f}"),
            ("overlap at load .12", f"{overlaps[5]:.4f}", f"{retrieval_overlap(0.12):.4f}"),
            ("overlap at load .24", f"{overlaps[-1]:.3f}", "lost: α_c = .1379"),
            ("largest rise of the energy in a sweep", rise, "never above 0"),
        )
        return Shown(rows, {"recall.png": gallery, "capacity.png": capacity})


def one_step_law(n: int, patterns: int) -> float:
    """P[Bin(K, ½) < (K - (n-1))/2], K = (n-1)(P-1): the chance that a bit of a stored pattern is wrong after one step.

    ```python
    assert 0 < ej.showcase.one_step_law(100, 10) < 0.01 < ej.showcase.one_step_law(100, 40)
    ```
    """
    from scipy.stats import binom

    k = (n - 1) * (patterns - 1)
    return float(binom.cdf(math.ceil((k - (n - 1)) / 2) - 1, k, 0.5))


def retrieval_overlap(load: float) -> float:
    """Overlap of a recalled state with its pattern for N → ∞; 0 beyond α_c (Amit, Gutfreund & Sompolinsky 1985).

    `erf y`, with the largest y that solves `y (√(2α) + 2/√π · exp(-y²)) = erf y`.

    ```python
    assert ej.showcase.retrieval_overlap(0.1) > 0.97 and ej.showcase.retrieval_overlap(0.2) == 0
    ```
    """
    y = 1 / (2 * load) ** 0.5
    for _ in range(5000):  # falls to the largest solution, slowly only near α_c
        y = math.erf(y) / ((2 * load) ** 0.5 + 2 / math.pi**0.5 * math.exp(-y * y))
    return math.erf(y) if y > 1e-3 else 0.0


def near_square(n: int) -> tuple[int, int]:
    """Sides of an image of at most n pixels."""
    side = math.isqrt(n)
    return side, n // side


def _one_step_errors(key, n, load, draws):
    def one(key):
        patterns = jax.random.rademacher(key, (load, n), jnp.result_type(float))
        # Whole numbers, so that ties are ties.
        network = fields.BinaryHopfield(jnp.round(n * fields.hebb(patterns)))
        after = jax.vmap(lambda s: fields.Synchronous().sweep(network, s, None))(patterns)
        return jnp.mean((after != patterns).astype(patterns.dtype))

    return jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, draws))


def _overlaps(key, n, draws, loads=12):
    """Loads .02, .04 …, and the mean overlap of a stored pattern with what is recalled from it."""
    block = round(0.02 * n)

    def one(key):
        a, b = jax.random.split(key)
        patterns = jax.random.rademacher(a, (loads, block, n), jnp.result_type(float))

        def learn(weight, patterns_and_key):
            more, key = patterns_and_key
            weight = weight + fields.hebb(more)  # which is what learning more patterns adds
            found = fields.recall(fields.BinaryHopfield(weight), patterns[0, 0], key=key)
            return weight, jnp.mean(found.state * patterns[0, 0])

        start = jnp.zeros((n, n), patterns.dtype)
        return jax.lax.scan(learn, start, (patterns, jax.random.split(b, loads)))[1]

    overlaps = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, draws))
    return block / n * (1 + np.arange(loads)), jnp.mean(overlaps, axis=0)


def _recalled(key, n, load, damage, shown=6, sweeps=8):
    """Cues, patterns, states `(shown, sweeps + 1, n)` and energies along asynchronous recall."""
    a, b, c = jax.random.split(key, 3)
    patterns = jax.random.rademacher(a, (load, n), jnp.result_type(float))
    network = fields.BinaryHopfield(fields.hebb(patterns))
    patterns = patterns[:shown]
    cues = jnp.where(jax.random.uniform(b, patterns.shape) < damage, -patterns, patterns)

    @jax.jit
    @jax.vmap
    def run(cue, key):
        def sweep(s, key):
            s = fields.Asynchronous().sweep(network, s, key)
            return s, s

        _, path = jax.lax.scan(sweep, cue, jax.random.split(key, sweeps))
        path = jnp.concatenate([cue[None], path])
        return path, jax.vmap(network.energy)(path)

    return cues, patterns, *run(cues, jax.random.split(c, len(patterns)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class XorShow(AbstractShow):
    """XOR as recall: three visible neurons, four memories, two bits held."""

    beta: float = 10.0
    """Sharpness β of the memories; above .5 all four answers are right."""

    def __call__(self) -> Shown:
        field = fields.xor_memory(beta=self.beta)
        bits = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        times, path = settled(field, (jnp.full((4, 1), 0.5), jnp.zeros((4, 4))), bits, 10.0)
        answers = np.asarray(path[0][..., 0])
        names = [f"{int(a)} xor {int(b)}" for a, b in bits]
        known = [int(a) ^ int(b) for a, b in np.asarray(bits, int)]
        figure = plots.trace(
            times,
            dict(zip(names, answers, strict=True)),
            labels=(r"time ($\tau_v$)", "answering neuron", ""),
            title=f"XOR settles, β = {self.beta:g}",
        )
        found = list(zip(names, answers[:, -1], known, strict=True))
        right = sum(round(float(a)) == k for _, a, k in found)
        rows = [(name, f"{a:.6f}", str(k)) for name, a, k in found]
        return Shown((*rows, ("right", f"{right} of 4", "4 of 4")), {"xor.png": figure})


@dataclasses.dataclass(frozen=True, kw_only=True)
class HammingShow(AbstractShow):
    """The Hamming (7,4) code as recall: every word with one wrong bit settles at the codeword that was sent."""

    beta: float = 10.0
    """Sharpness β of the memories; from 3 on all errors are corrected."""

    def __call__(self) -> Shown:
        field = fields.hamming_memory(beta=self.beta)
        words = field.patterns
        flipped = jnp.abs(words[:, None] - jnp.eye(7)[None]).reshape(112, 7)
        sent = jnp.concatenate([words, jnp.repeat(words, 7, axis=0)])
        received = jnp.concatenate([words, flipped])
        _, (v, h) = settled(field, (received, jnp.zeros((128, 16))), jnp.zeros((128, 7)), 10.0)
        right = np.all(np.round(v[:, -1]) == sent, axis=1)
        shown = slice(16, 128, 16)  # seven words, a different bit wrong in each
        energy = jax.vmap(jax.vmap(lambda v, h: field.energy((v, h), 0.0)))
        energies = jax.jit(energy)(v[shown], h[shown])
        images = {"sent": sent[shown], "received": received[shown], "settled": v[shown, -1]}
        figure = plots.recall(
            {name: np.asarray(a)[:, None] for name, a in images.items()},
            energies[:, :61],
            label=r"time ($\tau_v$ / 10)",
            title=f"one wrong bit in each word, β = {self.beta:g}",
        )
        rows = (
            ("codewords that stay", f"{right[:16].sum()} of 16", "16 of 16"),
            ("single-bit errors corrected", f"{right[16:].sum()} of 112", "112 of 112"),
        )
        return Shown(rows, {"hamming.png": figure})


def settled(field: Any, z0: Any, x: Any, duration: float):
    """Times, and the path of every sample, tenths of a unit of time apart."""
    times = jnp.linspace(0.0, duration, round(10 * duration) + 1)

    how = {"step": 0.02, "steps": round(50 * duration), "saveat": dfx.SaveAt(ts=times)}
    run = jax.jit(jax.vmap(lambda z0, x: relax(field, z0, x, **how).trajectory))
    return times, run(z0, x)
