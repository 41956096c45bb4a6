"""Does adaptive resonance protect what was learned before, and does it notice what is new?

    python experiments/resonance.py digits            # a minute; needs scikit-learn
    python experiments/resonance.py text              # some ten minutes on two cores; `--quick`: one or two
    python experiments/resonance.py novelty           # some three minutes

`digits`: scikit-learn's digits in five tasks (0, 1), …, (8, 9), every fifth image held out: simplified fuzzy ARTMAP
against a network that learns them one after the other, plainly, with replay, with EWC (Kirkpatrick et al. 2017; online,
Schwarz et al. 2018) and with the adaptive-resonance law (ARLL) at several strengths λ. `text`: the same question for a
small character GPT-2 that reads one book after the other. `novelty`, and the end of `digits`: how well each signal tells
windows of text (or digits) of another kind from held-out ones of the known kind (AUROC), against the distance to the
class mean and to the nearest neighbour.

ACC: mean over tasks at the end. BWT: mean over the earlier tasks of the end minus the moment each was learned.
Forgetting: best ever minus the end. For text all are in nats per character: a low ACC is then good, and BWT and
forgetting have the signs they have for accuracies (what is forgotten is negative, and positive).

For text all strengths λ, or γ, and all seeds of a method run side by side, each book in one scan; the batches of a seed
are the same for all methods, but for what joint training and replay put in their place. The best strength on a seed that
is not in the table is marked; differences to AdamW are between runs of one seed. `--texts`: names of books.py, or files.
"""

import argparse
import json
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from books import shelf
from resonance_digits import OPTIMISER, run_digits
from resonance_tables import SCORES, anchored, auroc, figures, header, nearest, row, summary

import eqjax as ej
from eqjax.language import GPT2, GPT2Config
from eqjax.resonance import (
    ARLL,
    HeadTap,
    LayerTap,
    squash,
)
from eqjax.training import TrainState, make_step

TUNING = 100  # the seed that chooses strengths


def side_by_side(function):
    return eqx.filter_jit(eqx.filter_vmap(function))


@side_by_side
def fresh(config, key):
    return GPT2.init(config, key)


@side_by_side
def begin(law, optimiser, model, key, capacity, vigilance):
    prototypes = law.start(model, capacity=capacity, vigilance=vigilance)
    return TrainState.create(model, optimiser, key=key, carry=prototypes)


@side_by_side
def read(law, optimiser, state, rows):
    """The state after the batches `rows (steps, b, t + 1)`."""
    step = make_step(law, optimiser)
    one = lambda state, rows: (step(state, (rows[:, :-1], rows[:, 1:]))[0], None)
    return jax.lax.scan(one, state, rows)[0]


def next_logits(model, tokens):
    return model(tokens)


@side_by_side
def protected(state, inputs, strength, key):
    """The state with EWC's anchor after a book."""
    found = anchored(state.opt_state, next_logits, state.model, inputs, strength, key)
    return eqx.tree_at(lambda s: s.opt_state, state, found)


@side_by_side
def cross_entropies(model, inputs, targets):
    """Of every window."""
    one = lambda pair: ej.cross_entropy(model(pair[0]), pair[1])
    return jax.lax.map(one, (inputs, targets), batch_size=32)


@side_by_side
def pooled(model, tokens):
    """The squashed states of every window, the mean over its positions."""
    one = lambda window: jnp.mean(squash(model.hidden(window)[1:]), axis=1).ravel()
    return jax.lax.map(one, tokens, batch_size=32)


@side_by_side
def novelties(law, model, prototypes, tokens):
    return law.novelty(model, prototypes, tokens)


def students(size, seeds, settings, options):
    """Untaught models and their keys: for every setting, one of every seed."""
    shape = {"n_positions": options.length, "n_embd": options.width}
    config = GPT2Config(size, n_layer=options.layers, n_head=options.heads, **shape)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds] * len(settings))
    return fresh(config, keys), keys


def laws(options, strength, stride=None):
    tap = HeadTap() if options.tap == "head" else LayerTap()
    one = ARLL(tap=tap, stride=stride or options.stride)
    return eqx.tree_at(lambda law: law.strength, one, strength)


def for_all(count, *arrays):
    """`count` copies of each, along a new leading axis."""
    return [jnp.broadcast_to(jnp.asarray(a), (count, *a.shape)) for a in arrays]


def windows(ids, shape, options, rng):
    starts = rng.integers(0, len(ids) - options.length - 1, shape)
    return ids[starts[..., None] + np.arange(options.length + 1)]


def lessons(data, seed, options, *, joint=False, replay=0):
    """For every book its batches `(steps, b, t + 1)`, and 128 more windows. What only some methods draw comes from another
    generator, so that the rest is the same for all."""
    rng, other = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    steps, batch, stored = options.steps, options.batch, []
    for ids, _ in data:
        rows = windows(ids, (steps, batch), options, rng)
        if joint:
            share = steps, -(-batch // len(data))
            rows = np.concatenate([windows(i, share, options, other) for i, _ in data], axis=1)
        elif stored:
            old = np.concatenate(stored)
            rows[:, : batch // 4] = old[other.integers(0, len(old), (steps, batch // 4))]
        if replay:
            stored.append(windows(ids, replay, options, other))
        yield rows[:, :batch], windows(ids, 128, options, other)


def read_books(size, data, seeds, options, *, strengths=(), protect=(), **lesson):
    """Cross-entropies `(settings, seeds, after book, on book)`, and the prototypes at the end."""
    settings = strengths or protect or [0.0]
    models, keys = students(size, seeds, settings, options)
    strength = jnp.asarray(np.repeat(settings, len(seeds)), jnp.float32)
    # Where λ = 0, as little as possible is spent on prototypes.
    law = (
        laws(options, strength) if strengths else laws(options, 0 * strength, stride=options.length)
    )
    capacity = options.capacity if strengths else 1
    states = begin(law, OPTIMISER, models, keys, capacity, options.vigilance)
    table = []
    for parts in zip(*(lessons(data, s, options, **lesson) for s in seeds), strict=True):
        parts = zip(*parts, strict=True)
        rows, inputs = (jnp.asarray(np.stack(part * len(settings))) for part in parts)
        states = read(law, OPTIMISER, states, rows)
        if protect:
            states = protected(states, inputs[..., :-1], strength, keys)
        held = [for_all(len(keys), *pair) for _, pair in data]
        table.append([cross_entropies(states.model, *pair).mean(axis=1) for pair in held])
    apart = lambda leaf: np.reshape(leaf, (len(settings), len(seeds), *leaf.shape[1:]))
    return apart(np.moveaxis(np.array(table), 2, 0)), jax.tree.map(apart, states.carry)


def describe(options):
    return (
        f"{options.layers} layers × {options.width}, {options.heads} heads, windows of {options.length} characters, "
        f"batches of {options.batch}, {options.steps} steps a book, {options.seeds} seeds; prototypes per {options.tap}, "
        f"{options.capacity} in each group, from every {options.stride}th position"
    )


def note(options, **found):
    """A line of JSON, if a file is asked for."""
    if options.json:
        with open(options.json, "a") as file:
            print(json.dumps({**vars(options), **found}), file=file)


def run_text(options):
    size, data = shelf(options.texts, options.length, characters=options.characters)
    print(f"\n{size} characters; of each book {[len(ids) for ids, _ in data]}. {describe(options)}")
    title = f"Nats per character on held-out text: {' → '.join(options.texts)}"
    header(title, *SCORES, "ACC less AdamW's", "forgetting less AdamW's", "seconds, all its rows")
    methods = {
        "adamw": ("AdamW", {}),
        "joint": ("all books at once", {"joint": True}),
        "replay": ("+ replay of 64 windows a book", {"replay": 64}),
        "ewc": ("+ EWC, γ = {:g}", {"protect": options.protect}),
        "arll": ("+ ARLL, λ = {:g}", {"strengths": options.strengths}),
    }
    plain = None
    for method in options.methods:
        (label, how), start = methods[method], time.time()
        settings = how.get("protect") or how.get("strengths") or [0.0]
        seeds = [*range(options.seeds)] + [TUNING] * (len(settings) > 1)
        tables, art = read_books(size, data, seeds, options, **how)
        seconds, best = time.time() - start, np.argmin(tables[:, -1, -1].mean(axis=-1))
        for i, (setting, table) in enumerate(zip(settings, tables, strict=True)):
            found, name = figures(table[: options.seeds], sign=-1), label.format(setting)
            more = {"categories": art.count[i].tolist(), "no_room": art.overflow[i].tolist()}
            if method == "arll":
                positions = options.batch * (options.length // options.stride)
                lost = art.overflow[i].mean() / (options.steps * len(data) * positions)
                name += f" ({art.count[i].min()} to {art.count[i].max()} categories, {lost:.0%} find no room)"
            if len(settings) > 1 and i == best:
                name += f" (best on seed {TUNING})"
            plain = found if method == "adamw" else plain
            compared = plain and method != "adamw"
            apart = [summary(found[k] - plain[k]) if compared else "–" for k in (0, 2)]
            row(name, *map(summary, found), *apart, f"{seconds:.0f}")
            more |= {"seeds_read": seeds, "tables": table.tolist(), "seconds": seconds}
            note(options, method=method, setting=setting, **more)


def text_novelty(options):
    """Prototypes that learn the settled models' states on the first book, and other signals."""
    size, data = shelf(options.texts, options.length, characters=options.characters)
    print(f"\n{describe(options)}; for novelty 512, of 256 windows")
    title = f"Windows of the other books against held-out ones of {options.texts[0]}, AUROC"
    signals = "prototypes", "mean of the book", "1-NN", "cross-entropy"
    header(title, "λ", "ρ", "categories", *signals)
    start, (ids, known), settings = time.time(), data[0], [0.0, *options.strengths]
    rngs = [np.random.default_rng(seed) for seed in range(options.seeds)]
    rows, seen = (
        jnp.asarray(np.stack([windows(ids, shape, options, rng) for rng in rngs] * len(settings)))
        for shape in ((options.steps, options.batch), 512)
    )
    inputs, targets = for_all(
        len(rows), *(np.concatenate([held[k] for _, held in data]) for k in (0, 1))
    )
    novel = np.arange(inputs.shape[1]) >= len(known[0])
    few = seen[:, :256].reshape(-1, 16, 16, options.length + 1)

    models, keys = students(size, range(options.seeds), settings, options)
    strength = jnp.asarray(np.repeat(settings, options.seeds), jnp.float32)
    law, still, stop = laws(options, strength), laws(options, 0 * strength), optax.set_to_zero()
    states = begin(law, OPTIMISER, models, keys, options.capacity, options.vigilance)
    models = read(law, OPTIMISER, states, rows).model
    train, test = (np.asarray(pooled(models, tokens)) for tokens in (seen[..., :-1], inputs))
    pairs = list(zip(train, test, strict=True))
    others = [
        [nearest(a.mean(axis=0, keepdims=True), b) for a, b in pairs],
        [nearest(a, b) for a, b in pairs],
        np.asarray(cross_entropies(models, inputs, targets)),
    ]
    for vigilance in options.vigilances:
        art = read(still, stop, begin(still, stop, models, keys, 512, vigilance), few).carry
        own = np.asarray(novelties(still, models, art, inputs))
        scores = np.array([[auroc(one, novel) for one in signal] for signal in (own, *others)])
        scores = scores.reshape(len(signals), len(settings), -1)
        counts = np.reshape(art.count, (len(settings), -1))
        for i, setting in enumerate(settings):
            many = f"{counts[i].min()} to {counts[i].max()}"
            row(f"{setting:g}", f"{vigilance:g}", many, *map(summary, scores[:, i]))
            found = dict(zip(signals, scores[:, i].tolist(), strict=True))
            note(options, setting=setting, vigilance=vigilance, categories=many, **found)
    print(f"\n{time.time() - start:.0f} seconds")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("question", choices=["digits", "text", "novelty"])
    add("--quick", action="store_true", help="one seed, at most 100 steps")
    add("--seeds", type=int, default=3)
    add(
        "--texts",
        nargs="+",
        default=["shakespeare", "kjv", "moby"],
        help="as in books.py, or files",
    )
    add("--characters", type=int, default=300_000, help="of each book")
    add("--steps", type=int, default=300, help="of each book")
    add("--batch", type=int, default=16)
    add("--length", type=int, default=32)
    add("--layers", type=int, default=2)
    add("--width", type=int, default=64)
    add("--heads", type=int, default=4)
    add("--tap", choices=["layer", "head"], default="layer", help="what has prototypes of its own")
    add("--capacity", type=int, default=64, help="prototypes in each group")
    add("--stride", type=int, default=8, help="prototypes learn at every stride-th position")
    add("--vigilance", type=float, default=0.85)
    add("--vigilances", type=float, nargs="+", default=[0.85, 0.92], help="of `novelty`")
    add("--strengths", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1], help="λ of ARLL")
    add("--protect", type=float, nargs="+", default=[1e1, 1e2, 1e3, 1e5], help="γ of EWC")
    methods = ["adamw", "joint", "replay", "ewc", "arll"]
    add("--methods", nargs="+", choices=methods, default=methods, help="adamw first, to compare")
    add("--json", help="a file to which every row is appended")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = 1, min(options.steps, 100)
    options.device = jax.devices()[0].device_kind
    print(options.device)
    {"digits": run_digits, "text": run_text, "novelty": text_novelty}[options.question](options)


if __name__ == "__main__":
    main()
