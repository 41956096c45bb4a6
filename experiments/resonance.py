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
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from books import shelf

import eqjax as ej
from eqjax.fields import FeedForward, trainable
from eqjax.language import GPT2, GPT2Config
from eqjax.resonance import (
    ARLL,
    FuzzyART,
    HeadTap,
    LayerTap,
    SimpleARTMAP,
    complement_code,
    nearest_distance,
    squash,
)
from eqjax.training import TrainState, make_step

TUNING = 100  # the seed that chooses strengths


class Anchor(NamedTuple):
    """The state of EWC: how much every weight matters, where it should stay, and how strongly."""

    importance: Any
    place: Any
    strength: Any


def ewc():
    """EWC as an Optax transformation: adds the gradient of `γ/2 Σ importance (weight - place)²`."""

    def init(weights):
        return Anchor(jax.tree.map(jnp.zeros_like, weights), weights, jnp.zeros(()))

    def update(grads, state, weights):
        pull = lambda g, i, p, w: g + state.strength * i * (w - p)
        return jax.tree.map(pull, grads, state.importance, state.place, weights), state

    return optax.GradientTransformation(init, update)


@eqx.filter_jit
def fisher(logits, model, inputs, key):
    """The diagonal of the Fisher information: squared gradients, with labels drawn from the model itself."""
    weights, rest = eqx.partition(model, trainable(model))

    def one(pair):
        x, key = pair
        guess = jax.random.categorical(key, logits(model, x))
        loss = lambda w: ej.cross_entropy(logits(eqx.combine(w, rest), x), guess)
        return jax.tree.map(jnp.square, jax.grad(loss)(weights))

    squares = jax.lax.map(one, (inputs, jax.random.split(key, len(inputs))))
    return jax.tree.map(lambda s: jnp.mean(s, axis=0), squares)


def anchored(opt_state, logits, model, inputs, strength, key):
    """The optimiser's state, EWC's first in its chain, after a task."""
    found = fisher(logits, model, inputs, key)
    importance = jax.tree.map(jnp.add, opt_state[0].importance, found)
    place = eqx.filter(model, trainable(model))
    return (Anchor(importance, place, strength), *opt_state[1:])


def summary(values, digits=3):
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=len(values) > 1):.{digits}f}"


def figures(tables, sign=1):
    """ACC, BWT, forgetting and the mean score when just learned, of every seed; `sign` -1 where low is good."""
    tables = sign * np.asarray(tables)  # (seeds, tasks, tasks), larger is better
    end, when = tables[:, -1], np.diagonal(tables, axis1=1, axis2=2)
    backward = np.mean((end - when)[:, :-1], axis=1)
    forgot = np.mean((tables.max(axis=1) - end)[:, :-1], axis=1)
    return [sign * end.mean(axis=1), backward, forgot, sign * when.mean(axis=1)]


def row(*cells):
    print(f"| {' | '.join(cells)} |", flush=True)


def header(title, *columns):
    print(f"\n{title}\n")
    row(*columns)
    row(*["---"] * len(columns))


SCORES = "method", "ACC", "BWT", "forgetting", "when just learned"


def auroc(score, novel):
    order = np.argsort(np.argsort(score))
    n = novel.sum()
    return (order[novel].sum() - n * (n - 1) / 2) / (n * (len(score) - n))


# Digits


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data.astype(np.float32) / 16, data.target, np.arange(len(data.target)) % 5 == 0


def five_tasks(fit, predict, x, y, held_out):
    """Accuracy on every task (column) after every task (row)."""
    table = np.zeros((5, 5))
    for task in range(5):
        fit(np.flatnonzero(~held_out & (y // 2 == task)))
        right = predict() == y
        table[task] = [np.mean(right[held_out & (y // 2 == k)]) for k in range(5)]
    return table


def artmap(x, y, held_out, seed):
    """One pass, in natural order at seed 0."""
    inputs, fit = complement_code(jnp.asarray(x)), eqx.filter_jit(SimpleARTMAP.learn)
    state = [SimpleARTMAP.empty(FuzzyART.empty(128, 300, vigilance=0.7))]

    def learn(chosen):
        chosen = np.random.default_rng(seed).permutation(chosen) if seed else chosen
        state[0] = fit(state[0], inputs[chosen], jnp.asarray(y[chosen]))

    classify = eqx.filter_jit(lambda m: jax.vmap(m.predict)(inputs))
    return five_tasks(learn, lambda: np.asarray(classify(state[0])), x, y, held_out)


NETWORK = optax.chain(ewc(), optax.adamw(1e-3))


def answer(model, u):
    return model.forward(u)[-1]


@eqx.filter_jit
def network_step(state, strength, u, target):
    model, opt_state, art = state

    def loss(model):
        layers = jax.vmap(model.forward)(u)
        coded = complement_code(squash(layers[-2]))
        distance = jnp.mean(nearest_distance(art, coded))
        return ej.cross_entropy(layers[-1], target) + strength * distance, coded

    grads, coded = eqx.filter_grad(loss, has_aux=True)(model)
    updates, opt_state = NETWORK.update(grads, opt_state, eqx.filter(model, trainable(model)))
    return eqx.apply_updates(model, updates), opt_state, art.learn(coded)[0]


@eqx.filter_jit
def network_guess(model, x):
    return jnp.argmax(jax.vmap(model.forward)(x)[-1], axis=-1)


def network(x, y, held_out, seed, *, strength=0.0, protect=0.0, replay=0, epochs=10):
    """64 – 100 – 10 units, `epochs` passes over each task in batches of 16; its hidden layer meets the prototypes."""
    model = FeedForward((64, 100, 10), activation=jnp.tanh, key=jax.random.key(seed))
    opt_state = NETWORK.init(eqx.filter(model, trainable(model)))
    state = model, opt_state, FuzzyART.empty(200, 64, vigilance=0.85)
    rng, stored = np.random.default_rng(seed), []

    def learn(chosen):
        nonlocal state, stored
        for _ in range(epochs):
            for part in np.array_split(rng.permutation(chosen), len(chosen) // 16):
                part = part[:16]
                if stored:
                    part = np.append(part[:8], rng.choice(stored, 8))
                batch = jnp.asarray(x[part]), jnp.asarray(y[part])
                state = network_step(state, jnp.asarray(strength, jnp.float32), *batch)
        if replay:
            stored = [*stored, *rng.choice(chosen, replay, replace=False)]
        if protect:
            model, opt_state, art = state
            examples = jnp.asarray(x[chosen[:250]]), jnp.asarray(protect, jnp.float32)
            opt_state = anchored(opt_state, answer, model, *examples, jax.random.key(seed))
            state = model, opt_state, art

    guess = lambda: np.asarray(network_guess(state[0], jnp.asarray(x)))
    return five_tasks(learn, guess, x, y, held_out)


def run_digits(options):
    x, y, held_out = data = digits()
    seeds = range(options.seeds)
    title = f"Digits, held-out accuracy, {options.seeds} seeds (orders of presentation for ARTMAP)"
    header(title, *SCORES)
    line = lambda name, tables: row(name, *map(summary, figures(tables)))
    line("simplified fuzzy ARTMAP, ρ = .7, one pass", [artmap(*data, s) for s in seeds])
    line("the same, natural order only", [artmap(*data, 0)])
    settings = [("network", {})]
    settings += [(f"+ replay of {n} per task", {"replay": n}) for n in (10, 40)]
    settings += [(f"+ EWC, γ = {g:g}", {"protect": g}) for g in (1e2, 1e3, 1e4, 1e5)]
    settings += [(f"+ ARLL, λ = {g:g}", {"strength": g}) for g in (1e-3, 1e-2, 1e-1, 1.0)]
    for name, chosen in settings:
        line(name, [network(*data, s, **chosen) for s in seeds])
    gaps = ((x[held_out][:, None] - x[~held_out][None]) ** 2).sum(-1)
    print(f"\n1-NN on all at once: {np.mean(y[~held_out][gaps.argmin(1)] == y[held_out]):.3f}")
    digit_novelty(*data)


def nearest(to, inputs):
    return np.sqrt([((to - one) ** 2).sum(axis=-1).min() for one in inputs])


def digit_novelty(x, y, held_out):
    known, novel = ~held_out & (y < 8), y[held_out] >= 8
    coded = complement_code(jnp.asarray(x))
    header("Digits 8 and 9 against 0 to 7", "signal", "AUROC")
    for vigilance in (0.7, 0.8, 0.9, 0.95):
        empty = FuzzyART.empty(128, 1200, vigilance=vigilance)
        art, _ = eqx.filter_jit(FuzzyART.learn)(empty, coded[known])
        score = np.asarray(jax.jit(jax.vmap(art.novelty))(coded[held_out]))
        choice = -np.asarray(jax.jit(jax.vmap(art.choices))(coded[held_out])).max(axis=1)
        named = f"1 - best match, ρ = {vigilance:g} ({int(art.count)} categories)"
        row(named, f"{auroc(score, novel):.3f}")
        row("- best choice, the same", f"{auroc(choice, novel):.3f}")
    means = np.stack([x[known & (y == c)].mean(axis=0) for c in range(8)])
    for name, to in (("class mean", means), ("1-NN", x[known])):
        row(name, f"{auroc(nearest(to, x[held_out]), novel):.3f}")


# Text: laws, models, states and batches have a leading axis, every strength with every seed, side by side.

OPTIMISER = optax.chain(ewc(), optax.adamw(2e-3))


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
