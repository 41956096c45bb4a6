"""Does AEON train a small GPT-2 better, or through more, than AdamW? And which of its parts does it?

    python experiments/aeon.py --quick       # to see that it runs
    python experiments/aeon.py               # the table

Character GPT-2 (2 layers, 64 wide, 4 heads, windows of 64, no dropout) on tiny Shakespeare; 16 streams of consecutive windows,
so that r and m of a stream go on from window to window; float32. Every row sees the same batches for a seed, for as many steps,
with warm-up, cosine to a tenth, clipping at norm 1, and weight decay .1. The peak learning rate is tuned for the first
row and for AEON alike, on an undisturbed run of a seed that is not in the table; the ablations take AEON's.

- *calm*: nothing happens. Validation cross-entropy in nats per character, read in streams from an empty state.
- *shock*: a twentieth of the steps, after two fifths of them, has random targets. The figures are the validation loss at the
  end, and the *regret*: the mean over the fifth of the run after the burst of (training loss - that of the same seed and
  row when calm).
- *shift*: after half of the steps the text is another one, Python's help texts. Loss on the new text at the end, mean training
  loss over the first tenth of the run on it (*adapting*), and loss on the old text at the end (*kept*).

Every figure is the mean over the seeds, with the least and the greatest.
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqjax.language import GPT2, CharTokenizer, GPT2Config, split, tiny_shakespeare
from eqjax.language.aeon import AeonGPT2
from eqjax.language.corpus import fallback_text
from eqjax.training.resonant import ClosedLoop, LossController, resonant_adamw

CONTROL = {"rate": 0.1, "momentum_gain": 0.03, "noise": 0.02, "noise_gain": 0.5}
OFF = {"recurrence": False, "resonance": False}
# Parts of the model that are left out, settings of the controller.
ROWS = {
    "AdamW, GPT-2": (OFF, {}),
    "AEON": ({}, CONTROL),
    "AEON, no r": ({"recurrence": False}, CONTROL),
    "AEON, no m": ({"resonance": False}, CONTROL),
    "AEON, no controller": ({}, {}),
    "AEON, no noise": ({}, CONTROL | {"noise": 0.0}),
    "controller alone": (OFF, CONTROL),
    "AEON, K_r = .5": ({}, CONTROL | {"coupling": 0.5}),
}


def streams(ids, shape, rng):
    """Windows of the shape `(steps, streams, window)` and their targets; each stream goes on from a place of its own."""
    steps, count, window = shape
    starts = rng.integers(0, len(ids), count)
    index = starts[None, :, None] + window * np.arange(steps)[:, None, None]
    index = index + np.arange(window + 1)[None, None]
    text = ids[index % len(ids)]
    return text[..., :-1], text[..., 1:]


def batches(event, texts, vocabulary, shape, seed):
    """All batches of a run."""
    rng, steps = np.random.default_rng(seed), shape[0]
    inputs, targets = streams(texts[0], shape, rng)
    others = streams(texts[1], (steps - steps // 2, *shape[1:]), rng)
    if event == "shock":
        burst = slice(2 * steps // 5, 2 * steps // 5 + max(1, steps // 20))
        targets = targets.copy()
        targets[burst] = rng.integers(0, vocabulary, targets[burst].shape)
    if event == "shift":
        inputs, targets = (
            np.concatenate([ours[: steps // 2], other])
            for ours, other in zip((inputs, targets), others, strict=True)
        )
    return jnp.asarray(inputs), jnp.asarray(targets)


@eqx.filter_jit
def run(loop, state, data):
    """The state after every batch, and the losses."""
    arrays, rest = eqx.partition(state, eqx.is_array)

    def step(arrays, batch):
        state, metrics = loop(eqx.combine(arrays, rest), batch)
        return eqx.filter(state, eqx.is_array), metrics["loss"]

    arrays, losses = jax.lax.scan(step, arrays, data)
    return eqx.combine(arrays, rest), losses


@eqx.filter_jit
def validation(model, data):
    """Mean loss over streams of windows, read one after the other from an empty state."""

    def read(state, window):
        losses, state = model.losses(*window, state)
        return state, jnp.mean(losses)

    stream = lambda windows: jnp.mean(jax.lax.scan(read, model.initial(), windows)[1])
    return jnp.mean(jax.vmap(stream, in_axes=1)(data))


class Study:
    """The texts, and one program for each row and rate."""

    def __init__(self, options):
        self.steps, self.width = options.steps, options.width
        self.shape = options.steps, options.streams, options.window
        old, new = tiny_shakespeare().text, fallback_text().text
        self.tokenizer = CharTokenizer.from_text(old + new)
        parts = [split(self.tokenizer.encode(text), options.window) for text in (old, new)]
        self.train = [train for train, _ in parts]
        rng = np.random.default_rng(0)
        shape = 8 if options.quick else 64, 16, options.window
        self.held = [tuple(map(jnp.asarray, streams(ids, shape, rng))) for _, ids in parts]

    def prepare(self, row):
        """The loop, and a function from a seed and a rate to the state at its beginning."""
        parts, control = ROWS[row]
        warmup = max(1, self.steps // 20)
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, self.steps, 0.1)
        adamw = resonant_adamw(
            schedule, LossController(**control), weight_decay=0.1, key=jax.random.key(9)
        )
        # The rate is a part of the state, so that one program serves all of them.
        rated = optax.inject_hyperparams(optax.scale)(step_size=1.0)
        loop = ClosedLoop(optax.chain(optax.clip_by_global_norm(1.0), adamw, rated))
        config = GPT2Config(
            vocab_size=self.tokenizer.size,
            n_positions=self.shape[2],
            n_embd=self.width,
            n_layer=2,
            n_head=4,
        )

        def start(seed, rate):
            k1, k2 = jax.random.split(jax.random.key(seed))
            state = loop.init(AeonGPT2(GPT2.init(config, k1), key=k2, **parts), self.shape[1])
            rated = optax.tree.set(state.opt_state, step_size=jnp.asarray(rate, jnp.float32))
            return eqx.tree_at(lambda s: s.opt_state, state, rated)

        return loop, start

    def trained(self, prepared, event, seed, rate):
        loop, start = prepared
        data = batches(event, self.train, self.tokenizer.size, self.shape, seed)
        state, losses = run(loop, start(seed, rate), data)
        return state.model, np.array(losses)

    def tuned(self, row, prepared, rates):
        """The rate that serves a row best when calm, on a seed of its own."""
        found = {}
        for rate in rates:
            model, _ = self.trained(prepared, "calm", 1000, rate)
            found[rate] = float(validation(model, self.held[0]))
        told = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in found.items())
        print(f"{row}, validation loss by rate: {told}", flush=True)
        return min(found, key=lambda rate: np.nan_to_num(found[rate], nan=np.inf))

    def figures(self, prepared, seed, rate):
        """One seed of a row."""
        steps = self.steps
        model, calm = self.trained(prepared, "calm", seed, rate)
        figures = {"calm": validation(model, self.held[0])}
        after = 2 * steps // 5 + max(1, steps // 20)
        shocked, losses = self.trained(prepared, "shock", seed, rate)
        window = slice(after, after + steps // 5)
        figures["shock"] = validation(shocked, self.held[0])
        figures["regret"] = np.mean(losses[window] - calm[window])
        shifted, losses = self.trained(prepared, "shift", seed, rate)
        figures["shift"] = validation(shifted, self.held[1])
        figures["adapting"] = np.mean(losses[steps // 2 : steps // 2 + max(1, steps // 10)])
        figures["kept"] = validation(shifted, self.held[0])
        return {name: float(value) for name, value in figures.items()}


def cell(values):
    low, high = min(values), max(values)
    return f"{np.mean(values):.3f}" + (f" ({low:.3f} … {high:.3f})" if len(values) > 1 else "")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--quick", action="store_true", help="20 small steps, one seed and rate")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds, options.rates = 20, 1, [3e-3]
        options.width, options.window, options.streams = 16, 16, 4
    study = Study(options)
    prepared = {row: study.prepare(row) for row in ROWS}
    base, aeon, *_ = ROWS
    rates = {row: study.tuned(row, prepared[row], options.rates) for row in (base, aeon)}
    names = "calm", "shock", "regret", "shift", "adapting", "kept"
    heads = "row", "parameters", "rate", *names, "time"
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|", flush=True)
    for row in ROWS:
        begun, rate = time.time(), rates.get(row, rates[aeon])
        found = [study.figures(prepared[row], seed, rate) for seed in range(options.seeds)]
        model = prepared[row][1](0, rate).model
        weights = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        cells = [cell([figures[name] for figures in found]) for name in names]
        size, seconds = sum(leaf.size for leaf in weights), time.time() - begun
        print(f"| {row} | {size} | {rate:g} | {' | '.join(cells)} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
