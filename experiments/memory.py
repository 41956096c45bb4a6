"""What does memory buy a small GPT-2? None, recurrences, slots, or both, trained alike.

    python experiments/memory.py recall              # pairs in one segment or prompt, questions in another
    python experiments/memory.py passkey             # a value hidden 4, 16 and 64 windows back
    python experiments/memory.py text                # perplexity of a book beyond the window
    python experiments/memory.py evictions           # who gives way: recall across a gap, and the passkey
    python experiments/memory.py all --quick         # smaller: to see that it runs

One table; every figure is the mean over the seeds, with the least and the greatest. The seeds train side by side, in one
program. Two layers, 64 wide, 2 heads; AdamW 2e-3 with warm-up and cosine, clipped to norm 1; float32. Memory in the layer
three quarters up, the second of two.

*Tasks.* A vocabulary of 64: 16 keys, 32 values, 14 tokens of noise, a mark and a question mark; windows of 16.
`recall`: the first segment is noise with 4 pairs, key and value, in it; the second one asks for the values of the 4 keys in
another order, and only these four answers count. Without memory chance is 1/32; to know the values, but not whose they are,
is worth 1/4. Slots hold 12 of the 16 tokens. Half of the texts for training (`--near`) have their pairs in the segment of the
questions: what attention learns to find there it finds in the slots, too. The same models are then told the pairs in one prompt, answer 4 tokens, and are
asked in another prompt (`reply`, twice). `passkey`: a mark and a value are hidden in a window of noise, and asked for in
the 8th, half of the time their own; tested at 4, 16 and 64 windows, hidden in the first; 32 slots that keep the most
salient. `evictions`: `recall` with two segments of noise between, and `passkey`, by slots alone, 12 and 32 of them.
`text`: a book (`--book`, a name as in books.py or a file) in windows of 64 characters, 16 in a row in training, and the
whole validation text in 8 streams for testing; `emptied`: with an empty memory for every window; `sliding`: the second halves
of overlapping windows, which plain GPT-2 can do, too.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from books import book

from eqjax.language import (
    GPT2,
    CharTokenizer,
    GPT2Config,
    split,
    tiles,
)
from eqjax.memory import (
    Fifo,
    LeastAttended,
    LeastSalient,
    MemoryGPT2,
    Summarise,
    reply,
    segment_loss,
)

KEYS, VALUES, NOISE, MARK, ASK, VOCABULARY = 16, 32, 14, 62, 63, 64
WINDOW, PAIRS = 16, 4
MEMORIES: dict[str, dict[str, Any]] = {
    "none": {"early": None, "late": None, "capacity": 0},
    "recurrence": {"capacity": 0},
    "slots": {"early": None, "late": None},
    "both": {},
}
EVICTIONS = {type(e).__name__: e for e in (Fifo(), LeastAttended(), LeastSalient(), Summarise())}


class Texts(NamedTuple):
    """A batch: tokens and targets `(b, n, t)`, and the weight of each target in the loss."""

    tokens: jax.Array
    targets: jax.Array
    weight: jax.Array


Draw = Callable[[jax.Array, int], Texts]


def gpt2_with(memory, shape, key, *, capacity=12, **settings):
    """A fresh model; `memory` names a row of the tables, `shape` has what a `GPT2Config` shall have other than by default here."""
    k1, k2 = jax.random.split(key)
    here = {
        "vocab_size": VOCABULARY,
        "n_positions": WINDOW,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
    }
    config = GPT2Config(**{**here, **shape})
    settings = {"capacity": capacity, **settings, **MEMORIES[memory]}
    return MemoryGPT2(GPT2.init(config, k1), key=k2, **settings)


def noise(key, *shape):
    return KEYS + VALUES + jax.random.randint(key, shape, 0, NOISE)


def recall(key, batch, *, gap=0, near=0.0):
    """Pairs, `gap` segments of noise, questions. A fraction `near` has its pairs in the segment of the questions."""
    k1, k2, k3, k4, k5, k6 = jax.random.split(key, 6)
    some = jax.vmap(lambda k, n: jax.random.permutation(k, n)[:PAIRS], in_axes=(0, None))
    keys, values = (some(jax.random.split(k, batch), n) for k, n in ((k1, KEYS), (k2, VALUES)))
    values = KEYS + values
    pairs = jnp.stack([keys, values], axis=-1).reshape(batch, 2 * PAIRS)
    order = some(jax.random.split(k3, batch), PAIRS)
    asked, told = (jnp.take_along_axis(a, order, axis=1) for a in (keys, values))
    tokens = noise(k4, batch, gap + 2, WINDOW)
    # Not among the first 4 tokens: of 16, the slots hold 12.
    start = jax.random.randint(k5, (batch,), WINDOW - 12, WINDOW - 2 * PAIRS + 1)
    put = jax.vmap(jax.lax.dynamic_update_slice_in_dim, in_axes=(0, 0, 0, None))
    far = tokens.at[:, 0].set(put(tokens[:, 0], pairs, start, 0))
    local = tokens.at[:, -1, : 2 * PAIRS].set(pairs)
    is_near = jax.random.uniform(k6, (batch, 1, 1)) < near
    where = slice(2 * PAIRS, WINDOW, 2)
    tokens = jnp.where(is_near, local, far).at[:, -1, where].set(asked)
    targets = tokens.at[:, -1, where].set(told)
    return Texts(tokens, targets, jnp.zeros(tokens.shape).at[:, -1, where].set(1.0))


def passkey(key, batch, *, windows=8, near=0.0):
    """A mark and a value in a window of noise, the question in the last: the first window, or for training (`near` above 0)
    any; a fraction `near` has them where the question is."""
    k1, k2, k3, k4, k5, k6 = jax.random.split(key, 6)
    tokens = noise(k1, batch, windows, WINDOW)
    value = KEYS + jax.random.randint(k2, (batch,), 0, VALUES)
    row, half = jnp.arange(batch), WINDOW // 2
    place = jax.random.randint(k4, (batch,), 0, half - 1)
    window = jnp.where(
        jax.random.uniform(k6, (batch,)) < near,
        windows - 1,
        jax.random.randint(k3, (batch,), 0, windows - 1 if near else 1),
    )
    tokens = tokens.at[row, window, place].set(MARK).at[row, window, place + 1].set(value)
    asked = jax.random.randint(k5, (batch,), half, WINDOW)
    tokens = tokens.at[row, -1, asked].set(ASK)
    targets = tokens.at[row, -1, asked].set(value)
    return Texts(tokens, targets, jnp.zeros(tokens.shape).at[row, -1, asked].set(1.0))


@eqx.filter_jit
@partial(eqx.filter_vmap, in_axes=(eqx.if_array(0), None, 0, None))
def trained(model, draw: Draw, key, settings):
    """The models after `steps` of AdamW on fresh batches, a model and a key for each seed, and the losses."""
    steps, batch, rate = settings
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 10), steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    weights, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(weights, texts):
        one = lambda t: segment_loss(
            eqx.combine(weights, rest), t.tokens, t.targets, weight=t.weight
        )
        return jnp.mean(jax.vmap(one)(texts)[0])

    def step(carry, key):
        weights, state = carry
        value, grads = jax.value_and_grad(loss)(weights, draw(key, batch))
        updates, state = optimiser.update(grads, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    start = weights, optimiser.init(weights)
    (weights, _), losses = jax.lax.scan(step, start, jax.random.split(key, steps))
    return eqx.combine(weights, rest), losses


def accuracy(model, draw: Draw, key, batch=512):
    """How many of the answers that count are right."""
    texts = draw(key, batch)

    def one(tokens):
        return jax.lax.scan(lambda m, t: model(t, m)[::-1], model.memory(), tokens)[1]

    answers = jnp.argmax(jax.lax.map(one, texts.tokens, batch_size=64), axis=-1)
    right = (answers == texts.targets) & (texts.weight > 0)
    return jnp.sum(right) / jnp.sum(texts.weight > 0)


def told_and_asked(model, key, batch=256):
    """How often `reply` to a second prompt gives the value that the first prompt told."""
    k1, k2 = jax.random.split(key)
    texts = recall(k1, batch)
    start = WINDOW - 12
    asked = 2 * PAIRS

    def one(told, question, key):
        prompt = jnp.roll(told, start - jnp.argmax(told < KEYS))[: start + 2 * PAIRS]
        _, memory = reply(model, prompt, model.memory(), WINDOW - prompt.size, key=key)
        return reply(model, question, memory, 1, key=key, temperature=0.0)[0].tokens[0]

    keys, questions = jax.random.split(k2, batch), texts.tokens[:, -1, : asked + 1]
    answers = jax.vmap(one)(texts.tokens[:, 0], questions, keys)
    return jnp.mean(answers == texts.targets[:, -1, asked])


def spread(values, form="{:.3f}"):
    values = np.array(values)
    low, high = (form.format(v) for v in (values.min(), values.max()))
    return form.format(values.mean()) + (f" ({low} … {high})" if len(values) > 1 else "")


def measure(options, task, row, make, draw, tests, *, steps, batch=64):
    """Train and test all seeds at once, and print a line of the table."""
    start, steps = time.time(), options.steps or steps
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(
        jnp.arange(options.seeds)
    )
    models = eqx.filter_vmap(make)(keys[:, 0])
    models, losses = trained(models, draw, keys[:, 1], (steps, batch, options.rate))
    if options.verbose:
        course = np.array(losses, float).reshape(options.seeds, 10, -1).mean(-1).round(3)
        print(f"{task}, {row}: loss in tenths {course.tolist()}", flush=True)
    figures = {
        name: eqx.filter_jit(eqx.filter_vmap(test))(models, keys[:, 2])
        for name, test in tests.items()
    }
    weights = jax.tree.leaves(eqx.filter(models, eqx.is_inexact_array))
    size = sum(leaf.size for leaf in weights) // options.seeds
    cells = ", ".join(f"{name} {spread(values)}" for name, values in figures.items())
    print(
        f"| {task} | {row} | {size} | {steps} | {cells} | {time.time() - start:.0f} s |", flush=True
    )


def recall_rows(options):
    tests = {
        "right": lambda model, key: accuracy(model, recall, key),
        "in another prompt": told_and_asked,
    }
    draw = partial(recall, near=options.near)
    for memory in options.memories:
        make = partial(gpt2_with, memory, {})
        measure(options, "recall", memory, make, draw, tests, steps=4000)


def passkey_tests(options):
    def test(windows):
        draw = partial(passkey, windows=windows)
        return lambda model, key: accuracy(model, draw, key, 256)

    return {f"at {n}×": test(n) for n in ((4, 16) if options.quick else (4, 16, 64))}


def passkey_row(options, row, memory, eviction):
    make = partial(gpt2_with, memory, {}, capacity=32, eviction=eviction)
    draw = partial(passkey, near=options.near)
    measure(options, "passkey", row, make, draw, passkey_tests(options), steps=2000)


def passkey_rows(options):
    for memory in options.memories:
        passkey_row(options, memory, memory, LeastSalient())


def eviction_rows(options):
    across = partial(recall, gap=2)
    tests = {"right": lambda model, key: accuracy(model, across, key)}
    draw = partial(across, near=options.near)
    for name in options.evictions:
        eviction = EVICTIONS[name]
        make = partial(gpt2_with, "slots", {}, eviction=eviction)
        measure(options, "recall across a gap", name, make, draw, tests, steps=4000)
        passkey_row(options, name, "slots", eviction)


def text_rows(options):
    window, segments = options.window, options.segments
    text = book(options.book)
    tokenizer = CharTokenizer.from_text(text)
    train, validation = split(tokenizer.encode(text), window)
    streams = 8
    inputs, targets = tiles(validation, length=window, count=len(validation))
    rows = len(inputs) // (8 * streams) if options.quick else len(inputs) // streams
    inputs, targets = (
        jnp.array(a[: streams * rows]).reshape(streams, rows, window) for a in (inputs, targets)
    )
    stream = jnp.array(train)

    def draw(key, batch):
        starts = jax.random.randint(key, (batch,), 0, stream.size - segments * window)
        cut = lambda i: jax.lax.dynamic_slice_in_dim(stream, i, segments * window + 1)
        texts = jax.vmap(cut)(starts)
        tokens, next = (a.reshape(batch, segments, window) for a in (texts[:, :-1], texts[:, 1:]))
        return Texts(tokens, next, jnp.ones(tokens.shape))

    def perplexity(model, tokens, targets, weight=None):
        one = lambda *parts: segment_loss(model, *parts[:2], weight=parts[2])[0]
        weight = jnp.ones(tokens.shape) if weight is None else weight
        return jnp.exp(jnp.mean(jax.vmap(one)(tokens, targets, weight)))

    def emptied(model, key):
        return perplexity(model, *(a.reshape(-1, 1, window) for a in (inputs, targets)))

    def sliding(model, key):
        half = window // 2
        flat = (
            a.reshape(streams, -1)[:, half:-half].reshape(-1, 1, window) for a in (inputs, targets)
        )
        pairs = [
            jnp.concatenate([a.reshape(-1, 1, window), b])
            for a, b in zip((inputs, targets), flat, strict=True)
        ]
        late = jnp.broadcast_to((jnp.arange(window) >= half).astype(jnp.float32), pairs[0].shape)
        return perplexity(model, *pairs, late)

    tests = {
        "perplexity": lambda model, key: perplexity(model, inputs, targets),
        "emptied": emptied,
        "sliding": sliding,
    }
    shape = {"vocab_size": tokenizer.size, "n_positions": window}
    shape |= {"n_embd": options.width, "n_layer": options.layers, "n_head": options.heads}
    for memory in options.memories:
        make = partial(gpt2_with, memory, shape, capacity=options.slots, horizon=options.horizon)
        task = f"text, {options.book}"
        measure(options, task, memory, make, draw, tests, steps=1500, batch=options.batch)


TABLES = {
    "recall": recall_rows,
    "passkey": passkey_rows,
    "evictions": eviction_rows,
    "text": text_rows,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tables", nargs="+", choices=[*TABLES, "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of training, for every model")
    parser.add_argument("--memories", nargs="+", choices=[*MEMORIES], default=[*MEMORIES])
    parser.add_argument("--evictions", nargs="+", choices=[*EVICTIONS], default=[*EVICTIONS])
    parser.add_argument("--near", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--book", default="moby")
    parser.add_argument("--width", type=int, default=64, help="of the models that read the book")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--window", type=int, default=64, help="of the book")
    parser.add_argument("--segments", type=int, default=16, help="read in a row in training")
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--horizon", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="100 steps and smaller tests")
    parser.add_argument("--verbose", action="store_true", help="print the losses on the way")
    options = parser.parse_args()
    if options.quick and options.steps is None:
        options.steps = 100
    print(f"{jax.devices()[0].device_kind}, {options.seeds} seeds, rate {options.rate:g}\n")
    print(
        "| task | memory | parameters | steps | figures | time |\n" + "|---" * 6 + "|", flush=True
    )
    for name in TABLES if "all" in options.tables else options.tables:
        TABLES[name](options)


if __name__ == "__main__":
    main()
