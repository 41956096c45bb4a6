"""Weak and strong scaling of a training step over the devices of this host.

`python benchmarks/scaling.py [--devices 1 2 4] [--batch 16] [--width 128] [--length 64]`. Strong: a batch that stays the same
is shared out. Weak: every device gets a batch of that size. The efficiency is that of n devices beside one: strong
t₁ / (n tₙ), weak t₁ / tₙ, of median seconds. Updates are made as in `eqjax train` and `eqjax gpt2 train`, in turn on
every number of devices, since a shared machine is not the same from minute to minute. Without several cards a
CPU stands for them: JAX_NUM_CPU_DEVICES=2; what it tells of speed is little, since its devices share the cores.
"""

import statistics
import time

import jax
import optax
from common import Text, arguments, device, model, table

from eqjax.gradients import Accept, AsymEP, Backprop, Nudge, OracleAdjoint, SharedAdjoint
from eqjax.language import GPT2, GPT2Config
from eqjax.relaxation import GMRES, Anderson
from eqjax.training import TrainState, make_step


def learners(text, options):
    """By name: a model, and an estimator for it."""
    net = model(text, width=options.width, length=options.length)
    sizes = (options.width, options.layers, 4)
    config = GPT2Config(text.tokenizer.size, options.length, *sizes, **dict.fromkeys(_RATES, 0.0))
    gate, free = Accept(1e-4, 1e-2), Anderson(rtol=5e-5)
    nudge = Nudge(Anderson(rtol=3e-3), contrast=SharedAdjoint())
    return {
        "AsymEP": (net, AsymEP(free=free, nudged=nudge, accept=gate)),
        "oracle": (net, OracleAdjoint(free=free, adjoint_solver=GMRES(rtol=3e-3), accept=gate)),
        "GPT-2": (GPT2.init(config, jax.random.key(0)), Backprop(call=_factored)),
    }


_RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _factored(model, tokens, key):
    return model.factored(tokens)


class Trained:
    """A compiled step that goes on with its state."""

    def __init__(self, learner, devices, batch):
        net, estimator = learner
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))
        step = make_step(estimator, optimiser, mesh=devices)
        self.state = TrainState.create(net, optimiser, key=jax.random.key(0))
        self.step, self.seconds = step.compile(self.state, batch), []

    def update(self, batch, keep):
        start = time.perf_counter()
        self.state, self.metrics = jax.block_until_ready(self.step(self.state, batch))
        if keep:
            self.seconds.append(time.perf_counter() - start)


def measured(text, learner, options, *, weak):
    """Median seconds of an update, and the last metrics, by number of devices."""
    size = lambda devices: options.batch * (devices if weak else 1)
    draw = lambda devices, seed: text.batch(size(devices), options.length, seed=seed)
    runs = {n: Trained(learner, n, draw(n, 0)) for n in options.devices}
    for seed in range(options.updates + 2):
        for n, run in runs.items():
            run.update(draw(n, seed), keep=seed >= 2)
    return {n: (statistics.median(run.seconds), run.metrics) for n, run in runs.items()}


def main():
    parser = arguments(__doc__)
    there = jax.local_device_count()
    counts = [n for n in (1, 2, 4, 8, 16) if n <= there]
    parser.add_argument("--devices", type=int, nargs="+", default=counts)
    parser.add_argument("--batch", type=int, default=16, help="in all (strong), of each (weak)")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4, help="of the GPT-2")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="AsymEP, oracle, GPT-2")
    options = parser.parse_args()
    if options.quick:
        options.width, options.length, options.updates = 32, 16, 3
    text, rows = Text(options.text), []
    for name, learner in learners(text, options).items():
        if options.only and name not in options.only:
            continue
        for weak in (False, True):
            found = measured(text, learner, options, weak=weak)
            least = min(found)
            for n, (seconds, metrics) in found.items():
                batch = options.batch * (n if weak else 1)
                share = found[least][0] / seconds * (1 if weak else least / n)
                slowest = metrics.get("slowest")
                told = "" if slowest is None else " ".join(f"{float(v):.0f}" for v in slowest)
                rate = f"{batch * options.length / seconds:.0f}"
                kind = "weak" if weak else "strong"
                rows.append((name, kind, n, batch, f"{seconds:.4f}", rate, f"{share:.0%}", told))
    head = ("what", "scaling", "devices", "batch", "seconds", "tokens/s", "efficiency", "slowest")
    title = f"Training, C={options.width}, T={options.length}, on {device()}, {there} there"
    table(title, head, rows, options.out)


if __name__ == "__main__":
    main()
