"""Digits learned one pair after the other: a question of `resonance.py`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from resonance_tables import SCORES, anchored, auroc, ewc, figures, header, nearest, row, summary

import eqjax as ej
from eqjax.fields import FeedForward, trainable
from eqjax.resonance import (
    FuzzyART,
    SimpleARTMAP,
    complement_code,
    nearest_distance,
    squash,
)


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
