"""What the questions about resonance share: elastic weight consolidation, scores over tasks, rows of a table."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqjax as ej
from eqjax.fields import trainable


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


def nearest(to, inputs):
    return np.sqrt([((to - one) ** 2).sum(axis=-1).min() for one in inputs])
