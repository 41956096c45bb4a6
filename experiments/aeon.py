"""Does AEON train a small GPT-2 better, or through more, than AdamW? And which of its parts does it?

    python experiments/aeon.py --quick                              # three rows, to see that it runs
    python experiments/aeon.py --seeds 6 --json aeon.json           # the table
    python experiments/aeon.py --rows 0 2 --json a.json             # some rows, in a process of their own ...
    python experiments/aeon.py --join a.json b.json --plot p.png    # ... and one table of them all

Character GPT-2 (2 layers, 64 wide, 4 heads, windows of 64, no dropout) on tiny Shakespeare; 16 streams of consecutive windows,
so that r and m of a stream go on from window to window; float32. For a seed every row has the same batches and, but for the
larger GPT-2, the same first weights; as many steps, warm-up over a twentieth of them, cosine to a tenth, clipping at norm 1,
and weight decay .1. Every row's peak learning rate is tuned in the same way: of the same rates, that with the least mean of
*calm* over three seeds that are not in the table. One at the edge of those is marked: a better one may lie beyond.

- *calm*: nothing happens. Validation cross-entropy in nats per character, read in streams from an empty state.
- *shock*: a twentieth of the steps, after two fifths of them, has random targets. Validation loss at the end. *regret*: mean
  over the fifth of the run after the burst of (training loss - that of the same seed and row when calm).
- *shift*: after half of the steps the text is another one, Python's help texts. Validation loss on it at the end. *adapting*:
  mean training loss over the first tenth of the run on it. *kept*: validation loss on the old text at the end.

Little is good. A figure is the mean over the seeds ± their standard deviation and, in brackets, the difference from the first row,
paired by seed, likewise. *factor*: what the controller makes of the rate, a geometric mean over the calm runs. The rows of a
model share a program; with as many seeds as rates it serves tuning and table, otherwise each has its own.
"""

import json
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqjax.language import (
    GPT2,
    CharTokenizer,
    GPT2Config,
    read_text,
    split,
    tiny_shakespeare,
)
from eqjax.language._corpus import fallback_text
from eqjax.resonance import AeonBackprop, AeonGPT2, LossController, resonant_adamw
from eqjax.training import TrainState, make_step

jax.config.update("jax_default_matmul_precision", "float32")  # on a GPU, too
OFF = {"recurrence": False, "resonance": False}
RATE, MOMENTUM, NOISE = {"rate": 0.1}, {"momentum_gain": 0.03}, {"noise": 0.02, "noise_gain": 0.5}
CONTROL = RATE | MOMENTUM | NOISE
RISING = {"momentum_gain": -0.03}  # with success, as the publication has it
BASE, LARGER = "AdamW, GPT-2", "AdamW, GPT-2 as large as AEON"
SHOWN = BASE, "AEON", "controller alone"  # in the plot, and by --quick
# Parts of the model that are left out, settings of the controller.
ROWS = {
    BASE: (OFF, {}),
    LARGER: (OFF, {}),
    "AEON": ({}, CONTROL),
    "AEON, no r": ({"recurrence": False}, CONTROL),
    "AEON, no m": ({"resonance": False}, CONTROL),
    "AEON, no controller": ({}, {}),
    "AEON, no noise": ({}, RATE | MOMENTUM),
    "AEON, momentum rising with success": ({}, CONTROL | RISING),
    "AEON, K_r = .5": ({}, CONTROL | {"coupling": 0.5}),
    "AEON, K_r = -.5": ({}, CONTROL | {"coupling": -0.5}),
    "controller alone": (OFF, CONTROL),
    "rate alone": (OFF, RATE),
    "momentum alone": (OFF, MOMENTUM),
    "momentum alone, rising with success": (OFF, RISING),
    "noise alone": (OFF, NOISE),
}
GAINS = "rate", "momentum_gain", "noise", "noise_gain", "coupling"
EVENTS, TUNING = ("calm", "shock", "shift"), (1000, 1001, 1002)
FIGURES = "calm", "shock", "regret", "shift", "adapting", "kept"
SETTINGS = {"seeds": 3, "steps": 2000, "width": 64, "window": 64, "streams": 16}


class Steering(eqx.Module):
    """A `LossController` whose gains are data, so that one program serves all rows of a model. They are not checked, so that
    the momentum's may be negative; and noise is always drawn, if only to be scaled by 0."""

    gains: tuple
    momentum, noise = LossController.momentum, 1.0

    def init(self):
        return LossController().init()

    def __call__(self, state, loss, recurrence=None):
        where = lambda controller: [getattr(controller, name) for name in GAINS]
        return eqx.tree_at(where, LossController(), self.gains)(state, loss, recurrence)


def streams(ids, shape, rng):
    """Windows of the shape `(steps, streams, window)` and their targets; each stream goes on from a place of its own."""
    steps, count, window = shape
    starts = rng.integers(0, len(ids), (count, 1)) + np.arange(window + 1)
    text = ids[(starts + window * np.arange(steps)[:, None, None]) % len(ids)]
    return text[..., :-1].copy(), text[..., 1:].copy()


def batches(event, texts, vocabulary, shape, seed):
    """All batches of a run."""
    rng, steps = np.random.default_rng(seed), shape[0]
    inputs, targets = streams(texts[0], shape, rng)
    if event == "shock":
        burst = slice(2 * steps // 5, 2 * steps // 5 + max(1, steps // 20))
        targets[burst] = rng.integers(0, vocabulary, targets[burst].shape)
    if event == "shift":
        rest = slice(steps // 2, steps)
        inputs[rest], targets[rest] = streams(texts[1], inputs[rest].shape, rng)
    return inputs, targets


class Study:
    """Texts and batches, which all rows share, and what is done with them."""

    def __init__(self, options):
        self.width, self.rates, self.seeds = options.width, options.rates, range(options.seeds)
        self.shape = options.steps, options.streams, options.window
        old = read_text(options.text) if options.text else tiny_shakespeare()
        texts = old.text, fallback_text().text
        tokenizer = CharTokenizer.from_text("".join(texts))
        parts = (split(tokenizer.encode(text), options.window) for text in texts)
        (trained, held), self.vocabulary = zip(*parts, strict=True), tokenizer.size

        def stack(pairs):
            return tuple(jnp.asarray(np.stack(parts)) for parts in zip(*pairs, strict=True))

        def data(events, seeds):
            rest = trained, self.vocabulary, self.shape
            return stack(batches(event, *rest, seed) for event in events for seed in seeds)

        rng, windows = np.random.default_rng(0), 8 if options.quick else 64
        self.held = stack(streams(ids, (windows, 16, options.window), rng) for ids in held)
        self.tuning = data(["calm"], np.repeat(TUNING, len(self.rates)))
        self.table = data(EVENTS, self.seeds)

    def model(self, width, parts, key):
        config = GPT2Config(self.vocabulary, self.shape[2], n_embd=width, n_layer=2, n_head=4)
        k1, k2 = jax.random.split(key)
        return AeonGPT2(GPT2.init(config, k1), key=k2, **parts)

    def size(self, width, parts):
        shapes = eqx.filter_eval_shape(self.model, width, parts, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    @eqx.filter_jit
    def run(self, width, parts, gains, seeds, rates, data, held):
        """Runs side by side: their losses and log a, `(runs, steps)`, and validation losses on both texts, `(runs, 2)`."""
        steps, count, _ = self.shape
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, steps // 20), steps, 0.1)

        def one(seed, rate, data):
            weights, noise = jax.random.split(jax.random.key(seed))
            paced = lambda step: rate * schedule(step)
            adamw = resonant_adamw(paced, Steering(gains), weight_decay=0.1, key=noise)
            optimiser = optax.chain(optax.clip_by_global_norm(1.0), adamw)
            aeon, model = AeonBackprop(), self.model(width, parts, weights)
            start = {"carry": aeon.start(model, count), "trains": aeon.trains, "key": weights}
            state = TrainState.create(model, optimiser, **start)
            arrays, rest = eqx.partition(state, eqx.is_array)
            update = make_step(aeon, optimiser)

            def step(arrays, batch):
                state, metrics = update(eqx.combine(arrays, rest), batch)
                factor = optax.tree.get(state.opt_state, "control").rate
                return eqx.filter(state, eqx.is_array), (metrics["loss"], factor)

            arrays, told = jax.lax.scan(step, arrays, data)
            model = eqx.combine(arrays, rest).model

            def read(state, window):
                losses, state = model.losses(*window, state)
                return state, jnp.mean(losses)

            stream = lambda windows: jnp.mean(jax.lax.scan(read, model.initial(), windows)[1])
            return *told, jnp.mean(jax.vmap(jax.vmap(stream, in_axes=1))(held), axis=1)

        return jax.vmap(one)(seeds, rates, data)

    def record(self, row):
        """Tunes a row, measures it, and gives what is told of it."""
        begun, (parts, gains) = time.time(), ROWS[row]
        width, gains = self.width, tuple(jnp.float32(gains.get(name, 0)) for name in GAINS)
        while row == LARGER and self.size(width, parts) < self.size(self.width, {}):
            width += 4  # heads

        def run(seeds, rates, data):
            runs = jnp.int32(seeds), jnp.broadcast_to(jnp.float32(rates), len(seeds)), data
            return map(np.asarray, self.run(width, parts, gains, *runs, self.held))

        *_, held = run(np.repeat(TUNING, len(self.rates)), self.rates * len(TUNING), self.tuning)
        tuning = held[:, 0].reshape(len(TUNING), -1).mean(0)
        best = int(np.argmin(np.nan_to_num(tuning, nan=np.inf)))
        told = run(np.tile(self.seeds, len(EVENTS)), self.rates[best], self.table)
        losses, factors, held = (a.reshape(len(EVENTS), -1, a.shape[-1]) for a in told)
        (calm, shock, shift), steps = losses, self.shape[0]
        after, half = 2 * steps // 5 + max(1, steps // 20), steps // 2
        regret = (shock - calm)[:, after : after + steps // 5].mean(1)
        adapting = shift[:, half : half + max(1, steps // 10)].mean(1)
        values = held[0, :, 0], held[1, :, 0], regret, held[2, :, 1], adapting, held[2, :, 0]
        curves = losses[..., : steps // 5 * 5].mean(1).reshape(len(EVENTS), -1, 5).mean(2)
        return {
            "parameters": self.size(width, parts),
            "tuning": tuning.tolist(),
            "rate": f"{self.rates[best]:g}" + " (edge)" * (best in (0, len(tuning) - 1)),
            "factor": float(np.exp(factors[0].mean())),
            "figures": dict(zip(FIGURES, np.array(values).tolist(), strict=True)),
            "curves": dict(zip(EVENTS, curves.tolist(), strict=True)),  # means over 5 steps
            "seconds": time.time() - begun,
        }


def listed(*cells, head=False):
    rule = "\n" + "| --- " * len(cells) + "|"
    return "\n" * head + f"| {' | '.join(cells)} |" + rule * head


def line(row, records):
    """A row of the table."""
    told, base = records[row], records.get(BASE)
    spread = lambda values, sign: f"{np.mean(values):{sign}.3f} ± {np.std(values, ddof=1):.3f}"
    cells = [row, str(told["parameters"]), told["rate"], f"{told['factor']:.2f}"]
    for name, values in told["figures"].items():
        cells.append(spread(values, ""))
        if base and row != BASE:
            cells[-1] += f" [{spread(np.subtract(values, base['figures'][name]), '+')}]"
    return listed(*cells, f"{told['seconds']:.0f} s")


def plot(records, path):
    """Training losses of three rows around shock and shift, means over the seeds."""
    from matplotlib.figure import Figure

    from eqjax import plots

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    labels = "step", "training loss (nats per character)"
    for axes, event in zip(figure.subplots(1, 2), EVENTS[1:], strict=True):
        told = {row: records[row]["curves"][event] for row in filter(records.get, SHOWN)}
        found = {row: (5 * np.arange(len(curve)), curve) for row, curve in told.items()}
        plots.curves(found, labels=labels, title=event, ax=axes)
    plots.save(figure, path)


def main():
    numbers = dict(zip(map(str, range(len(ROWS))), ROWS, strict=True))
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3 * 2**i for i in range(6)])
    told = "of " + "; ".join(map(" ".join, numbers.items()))
    parser.add_argument("--rows", nargs="+", choices=[*numbers, *ROWS], metavar="ROW", help=told)
    parser.add_argument("--text", metavar="FILE", help="in place of tiny Shakespeare")
    parser.add_argument("--json", metavar="FILE", help="for the results, written row by row")
    parser.add_argument("--join", metavar="FILE", nargs="+", help="show these; run nothing")
    parser.add_argument("--plot", metavar="FILE", help="for the loss curves of three rows")
    parser.add_argument("--quick", action="store_true", help="a small run of three rows")
    options = parser.parse_args()
    begun, records, rows = time.time(), {}, options.rows or (SHOWN if options.quick else ROWS)
    if options.quick:
        vars(options).update(seeds=2, steps=20, width=16, window=16, streams=4, rates=[3e-3, 1e-2])
    if options.join:
        told = [json.loads(Path(path).read_text()) for path in options.join]
        settings, found = told[0]["settings"], {r: v for t in told for r, v in t["rows"].items()}
        if any(one["settings"] != settings for one in told):
            parser.error("--join: the files have different settings; join those of one study.")
        rows = filter(found.get, ROWS)
    else:
        study = Study(options)
        settings = {"device": jax.devices()[0].device_kind, "vocabulary": study.vocabulary}
        settings |= {name: getattr(options, name) for name in (*SETTINGS, "rates")}
    print(*(f"{name}: {value}" for name, value in settings.items()), sep=", ")
    print(listed("row", "parameters", "rate", "factor", *FIGURES, "time", head=True), flush=True)
    for row in (numbers.get(row, row) for row in rows):
        records[row] = found[row] if options.join else study.record(row)
        if options.json:
            Path(options.json).write_text(json.dumps({"settings": settings, "rows": records}))
        print(line(row, records), flush=True)
    print(listed("*calm* when tuned, by rate", *map(str, settings["rates"]), head=True))
    for row, record in records.items():
        print(listed(row, *(f"{loss:.3f}" for loss in record["tuning"])))
    if options.plot:
        plot(records, options.plot)
    print(f"\n{time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
