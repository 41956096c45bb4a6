"""What the benchmarks share: the demo's block, its text, timing, and tables."""

import argparse
import contextlib
import platform
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqjax.analytic import cross_entropy
from eqjax.fields import trainable
from eqjax.gradients import OracleAdjoint
from eqjax.language import CharTokenizer, equilibrium_lm, load_corpus
from eqjax.relaxation import GMRES, Anderson


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--text", type=Path, help="a text file; tiny Shakespeare if not given")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--out", type=Path, help="also append the tables to this file")
    return parser


def device():
    return f"{jax.devices()[0].device_kind} (jax {jax.__version__}, {platform.machine()})"


class Text:
    """Random windows of the training text."""

    def __init__(self, path):
        text = load_corpus(path).text
        self.tokenizer = CharTokenizer.from_text(text)
        self.ids = self.tokenizer.encode(text)

    def batch(self, size, length, seed=0):
        starts = np.random.default_rng(seed).integers(0, len(self.ids) - length - 1, size)
        windows = np.stack([self.ids[i : i + length + 1] for i in starts])
        return jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:])


def model(text, width=64, length=32, heads=4, seed=0):
    return equilibrium_lm(
        text.tokenizer.size, length, width, heads, qknorm=True, key=jax.random.key(seed)
    )


def trained(model, text, steps, length, batch=16):
    """`steps` updates of AdamW by the oracle, as in the demo."""
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
    oracle = OracleAdjoint(free=Anderson(rtol=5e-5), adjoint_solver=GMRES(rtol=3e-3))
    state = optimiser.init(eqx.filter(model, trainable(model)))

    @eqx.filter_jit
    def step(model, state, batch):
        grads = oracle(model, cross_entropy, batch).grads
        updates, state = optimiser.update(grads, state, eqx.filter(model, trainable(model)))
        return eqx.apply_updates(model, updates), state

    for i in range(steps):
        model, state = step(model, state, text.batch(batch, length, seed=i))
    return model


def timed(function, *args, repeats=5):
    """Output, median seconds of `repeats` calls, and seconds to compile (the first call less a later one)."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    first = time.perf_counter() - start
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = jax.block_until_ready(function(*args))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return out, median, max(0.0, first - median)


def compiled(function, *args):
    """The compiled function, the seconds that took, and the MiB of buffers it needs beyond its arguments."""
    start = time.perf_counter()
    program = eqx.filter_jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    return program, seconds, program.compiled.memory_analysis().temp_size_in_bytes / 2**20


@contextlib.contextmanager
def precision(name):
    """float32 or float64 for the duration."""
    with jax.enable_x64(name == "float64"):
        yield jnp.dtype(name)


def table(title, header, rows, out=None):
    """Print a Markdown table, and append it to `out`."""
    lines = [f"**{title}**", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    text = "\n".join(lines) + "\n"
    print(text, flush=True)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
