"""What the tests of GPT-2 with memory share: small models, their gates open or shut, and one way to read."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp

from eqjax.language import GPT2, GPT2Config, Heads
from eqjax.memory import (
    Fifo,
    LeastAttended,
    LeastSalient,
    MemoryGPT2,
    Slots,
    Summarise,
)

CONFIG = GPT2Config(vocab_size=11, n_positions=6, n_embd=16, n_layer=2, n_head=2)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # float64, summed in another order
EVICTIONS = Fifo(), LeastAttended(), LeastSalient(), Summarise()


def plain(**settings):
    model = GPT2.init(dataclasses.replace(CONFIG, **settings), jax.random.key(0))
    return eqx.tree_at(lambda m: m.wte, model, 10 * model.wte)


def opened(model):
    """The model with its gates open and its saliences apart."""

    def gates(m):
        return [part.gate for part in (m.early, m.late) if part is not None]

    model = eqx.tree_at(gates, model, [jnp.full(g.shape, 0.7, g.dtype) for g in gates(model)])
    if model.recall is None:
        return model
    weights = lambda m: (m.recall.gate, m.recall.weight)
    gate, weight = weights(model)
    return eqx.tree_at(weights, model, (jnp.full_like(gate, 0.07), 20 * weight))


def remembering(**settings):
    gpt2 = settings.pop("gpt2", None) or plain()
    settings = {"capacity": 5} | settings
    return MemoryGPT2(gpt2, **settings, key=jax.random.key(1))


def tokens(n, seed=0):
    return jax.random.randint(jax.random.key(seed), (n,), 0, CONFIG.vocab_size)


_read = eqx.filter_jit(lambda model, ids, memory, mask: model(ids, memory, mask=mask))


def read(model, ids, memory=None, mask=None):
    """Compiled once for all that read 6 tokens with the same kind of model."""
    memory = model.memory() if memory is None else memory
    return _read(model, ids, memory, jnp.ones(ids.shape, bool) if mask is None else mask)


def some_heads(key, t=4, width=3):
    parts = jax.random.normal(key, (3, t, 2, width))
    return Heads(*parts, None, jax.random.normal(jax.random.key(9), (t, 6)))


def some_slots(key, s=5, width=3):
    k1, k2, k3 = jax.random.split(key, 3)
    key, value = jax.random.normal(k1, (2, s, 2, width))
    valid, order = jnp.arange(s) % 3 != 1, jax.random.permutation(k3, s).astype(jnp.int32)
    salience = jax.random.uniform(k2, (s,), minval=0.1)
    return Slots.tokens(key, value, valid, salience, order, jnp.zeros((), jnp.int32))
