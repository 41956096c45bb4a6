"""Weak and strong scaling of a training step over the devices of this host, and long windows in a ring.

`python benchmarks/scaling.py [--devices 1 2 4] [--batch 16] [--width 128] [--length 64]`. Strong: a batch that stays the same
is shared out. Weak: every device gets a batch of that size. The efficiency is that of n devices beside one: strong
t₁ / (n tₙ), weak t₁ / tₙ, of median seconds. Updates are made as in `eqjax train` and `eqjax gpt2 train`, in turn on
every number of devices, since a shared machine is not the same from minute to minute.

`python benchmarks/scaling.py --ring [--windows 16384 65536]`: a GPT-2 trained on one window, whose tokens n devices share
out, beside attention that one device computes by itself: seconds, tokens/s, and the MiB that each device needs beside
parameters and optimiser.

With --profile the last update of each configuration is profiled: what the first GPU did by kind of kernel, and how long it
had nothing to do.

Each configuration is on its own: of one that fails (out of memory, say) the table says so. None begins after --budget
seconds. Without several cards a CPU stands for them: JAX_NUM_CPU_DEVICES=2; what it tells of speed is little, since its
devices share the cores. A machine with the engine's packages alone will do.
"""

import gc
import statistics
import time

import jax
import jax.numpy as jnp
import lean
import numpy as np
import optax
from common import Text, arguments, device, model, table
from profiled import profile

from eqjax.gradients import Accept, AsymEP, Backprop, Nudge, OracleAdjoint, SharedAdjoint
from eqjax.language import GPT2, DotProduct, GPT2Config, RingAttention
from eqjax.relaxation import GMRES, Anderson
from eqjax.training import TrainState, make_step

_RATES = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
_START = time.perf_counter()


class Material:
    """Windows of text, or of noise where there is no text: it takes as long to learn."""

    def __init__(self, path):
        self.text = None
        if path is not None or not lean.missing:
            try:
                self.text = Text(path)
            except (OSError, ValueError) as error:
                print(f"noise for text: {error}", flush=True)
        self.size = 65 if self.text is None else self.text.tokenizer.size

    def batch(self, size, length, seed=0):
        if self.text is not None:
            return self.text.batch(size, length, seed)
        ids = np.random.default_rng(seed).integers(0, self.size, (size, length + 1))
        return jnp.asarray(ids[:, :-1], jnp.int32), jnp.asarray(ids[:, 1:], jnp.int32)


def short():
    """bfloat16 on a GPU, which is slow at the rest."""
    return jnp.bfloat16 if jax.default_backend() == "gpu" else None


def gpt2(vocabulary, length, options):
    heads = max(1, options.lm_width // 64)
    config = GPT2Config(vocabulary, length, options.lm_width, options.layers, heads, **_RATES)
    return GPT2.init(config, jax.random.key(0))


def learners(material, options):
    """By name: a model, an estimator for it, tokens of a window, and samples of a batch."""
    net = lambda: equilibrium(material, options)
    gate, free = Accept(1e-4, 1e-2), Anderson(rtol=5e-5)
    nudge = Nudge(Anderson(rtol=3e-3), contrast=SharedAdjoint())
    size = options.length, options.batch
    language = lambda: gpt2(material.size, options.lm_length, options)
    return {
        "AsymEP": (net, AsymEP(free=free, nudged=nudge, accept=gate), *size),
        "oracle": (
            net,
            OracleAdjoint(free=free, adjoint_solver=GMRES(rtol=3e-3), accept=gate),
            *size,
        ),
        "GPT-2": (
            language,
            Backprop(call=_factored, dtype=short()),
            options.lm_length,
            options.lm_batch,
        ),
    }


def equilibrium(material, options):
    class Tokens:
        tokenizer = material

    return model(Tokens, width=options.width, length=options.length)


def _factored(model, tokens, key):
    return model.factored(tokens)


class Trained:
    """A compiled step that goes on with its state."""

    def __init__(self, net, estimator, mesh, batch):
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
        step = make_step(estimator, optimiser, mesh=mesh)
        self.state = TrainState.create(net, optimiser, key=jax.random.key(0))
        start = time.perf_counter()
        self.step, self.seconds = step.compile(self.state, batch), []
        self.compiling = time.perf_counter() - start

    def update(self, batch, keep):
        start = time.perf_counter()
        self.state, self.metrics = jax.block_until_ready(self.step(self.state, batch))
        if keep:
            self.seconds.append(time.perf_counter() - start)

    @property
    def median(self):
        return statistics.median(self.seconds)


def spent(options):
    return time.perf_counter() - _START > options.budget


def guarded(what, function, *args):
    """What it returns, or in words why it does not."""
    try:
        return function(*args)
    except Exception as error:  # a benchmark goes on
        text = str(error)
        told = "out of memory" if "RESOURCE_EXHAUSTED" in text or "emory" in text else text
        told = f"{type(error).__name__}: {told.splitlines()[0][:80]}"
        print(f"{what}: {told}", flush=True)
        return told
    finally:
        gc.collect()


def scaled(material, name, learner, options):
    """Rows of one learner: strong and weak, of which one device is both."""
    make, estimator, length, batch = learner
    least = min(options.devices)
    sizes = [(n, batch) for n in options.devices]
    sizes += [(n, batch * n // least) for n in options.devices if n != least]
    runs = {}
    for n, size in sizes:
        if spent(options):
            print(f"{name} on {n}: not begun, {options.budget} s are over", flush=True)
            continue
        first = material.batch(size, length)
        run = guarded(f"{name} on {n}", lambda *a: Trained(make(), *a), estimator, n, first)
        if isinstance(run, Trained):
            runs[n, size] = run
            print(f"{name} on {n}, batch {size}: compiled in {run.compiling:.1f} s", flush=True)
    for seed in range(options.updates + 2):
        for (n, size), run in list(runs.items()):
            draw = material.batch(size, length, seed=seed)
            if guarded(f"{name} on {n}", run.update, draw, seed >= 2) is not None:
                del runs[n, size]
    if options.profile:
        where_it_goes(name, runs, material, length)
    rows = []
    for (n, size), run in runs.items():
        weak = size != batch
        one = runs.get((least, batch))
        share = "" if one is None else one.median / run.median * (1 if weak else least / n)
        slowest = run.metrics.get("slowest")
        told = "" if slowest is None else " ".join(f"{float(v):.0f}" for v in slowest)
        kind = "weak" if weak else "strong"
        cells = f"{run.median:.4f}", f"{size * length / run.median:.0f}", f"{share:.0%}"
        rows.append((name, kind, n, size, *cells, told, f"{run.compiling:.1f}"))
    return rows


def where_it_goes(name, runs, material, length):
    """Prints what an update of each run is made of."""
    for (n, size), run in runs.items():
        draw = material.batch(size, length, seed=0)
        found = guarded(f"profile of {name}", profile, lambda r=run, d=draw: r.update(d, False))
        told = next(iter(found.values()), {}) if isinstance(found, dict) else {}
        cells = ", ".join(f"{kind} {value:.4g}" for kind, value in told.items())
        print(f"{name} on {n}, batch {size}: {cells or 'no kernels seen'} (ms)", flush=True)


def _alone(implementation, model, tokens, key):
    attend = DotProduct(implementation)
    return model.factored(tokens, attend=attend, gradient_checkpointing=True)


def _in_ring(block, model, tokens, key):
    return model.factored(tokens, attend=RingAttention(block=block), gradient_checkpointing=True)


def ways(options):
    """By name: an estimator, and the mesh that it is for."""
    flash = "cudnn" if jax.default_backend() == "gpu" else "xla"
    for n in options.devices:
        if n == 1:
            for kind in ("plain", flash):
                how = None if kind == "plain" else kind
                call = jax.tree_util.Partial(_alone, how)
                yield kind, 1, Backprop(call=call, dtype=short()), None
        mesh = jax.make_mesh((1, n), ("batch", "sequence"), devices=jax.devices()[:n])
        call = jax.tree_util.Partial(_in_ring, options.block)
        yield "ring", n, Backprop(call=call, dtype=short(), context="sequence"), mesh


def around(material, length, way, options):
    """A row: one window of this length, trained this way."""
    name, n, estimator, mesh = way
    draw = lambda seed: material.batch(1, length, seed=seed)
    run = Trained(gpt2(material.size, length, options), estimator, mesh, draw(0))
    for seed in range(options.updates + 1):
        run.update(draw(seed), seed >= 1)
        if seed and sum(run.seconds) > 10:
            break
    rate = f"{length / run.median:.0f}"
    memory = f"{run.step.memory_bytes / 2**20:.0f}"
    return (length, name, n, f"{run.median:.4f}", rate, memory, f"{run.compiling:.1f}")


def rings(material, options):
    rows = []
    for length in options.windows:
        for way in ways(options):
            if spent(options):
                print(f"{way[:2]} at {length}: not begun, {options.budget} s are over", flush=True)
                continue
            row = guarded(
                f"{way[0]} on {way[1]}, T={length}", around, material, length, way, options
            )
            if isinstance(row, str):
                row = (length, *way[:2], row, "", "", "")
            print(*row, flush=True)
            rows.append(row)
    head = ("T", "attention", "devices", "seconds", "tokens/s", "MiB a device", "compiled in s")
    title = f"GPT-2 of width {options.lm_width}, {options.layers} layers, one window, on {device()}"
    table(title, head, rows, options.out)


def parsed():
    parser = arguments(__doc__)
    counts = [n for n in (1, 2, 4, 8, 16) if n <= jax.local_device_count()]
    parser.add_argument("--devices", type=int, nargs="+", default=counts)
    parser.add_argument("--batch", type=int, default=16, help="in all (strong), of each (weak)")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4, help="of the GPT-2")
    parser.add_argument("--lm-width", type=int, default=128, help="of the GPT-2")
    parser.add_argument("--lm-length", type=int, default=64, help="of the GPT-2")
    parser.add_argument("--lm-batch", type=int, default=16, help="of the GPT-2")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="AsymEP, oracle, GPT-2")
    parser.add_argument("--ring", action="store_true", help="long windows in a ring")
    parser.add_argument("--windows", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument(
        "--block", type=int, default=512, help="tokens whose scores are there at a time"
    )
    parser.add_argument("--profile", action="store_true", help="on GPUs")
    parser.add_argument(
        "--budget", type=float, default=1e9, help="seconds, after which none begins"
    )
    options = parser.parse_args()
    if options.quick:
        options.width, options.length, options.updates = 32, 16, 3
        options.lm_width, options.lm_length, options.windows = 64, 16, [256, 512]
    return options


def main():
    options = parsed()
    material = Material(options.text)
    if options.ring:
        return rings(material, options)
    rows = []
    for name, learner in learners(material, options).items():
        if not options.only or name in options.only:
            rows += scaled(material, name, learner, options)
            gc.collect()
    head = ("what", "scaling", "devices", "batch", "seconds", "tokens/s", "efficiency", "slowest")
    sizes = (
        f"C={options.width}, T={options.length}; GPT-2 C={options.lm_width}, T={options.lm_length}"
    )
    title = f"Training, {sizes}, on {device()}, {jax.local_device_count()} there"
    table(title, (*head, "compiled in s"), rows, options.out)


if __name__ == "__main__":
    main()
