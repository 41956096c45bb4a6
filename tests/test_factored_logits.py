"""Cross-entropy of logits that are not multiplied out: the plain one's value, gradients and refusals, in less memory."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.analytic import FactoredLogits, cross_entropy
from eqjax.gradients import Backprop
from eqjax.language import GPT2, GPT2Config
from eqjax.memory import MemoryGPT2
from eqjax.recipes._gpt2 import _read

BATCH, TOKENS, WIDTH, WORDS = 3, 11, 4, 7
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(BATCH, TOKENS, WIDTH)))
HEAD = jnp.asarray(RNG.normal(size=(WORDS, WIDTH)))
TARGETS = jnp.asarray(RNG.integers(0, WORDS, (BATCH, TOKENS))).at[0, 3].set(-100)
WEIGHTS = jnp.asarray(RNG.uniform(size=(BATCH, TOKENS)))


def mean(make, targets=TARGETS):
    """The mean loss of a batch, whose logits are made of hidden states and head."""
    one = lambda hidden, head, y, w: cross_entropy(make(hidden, head), y, w)
    batched = jax.vmap(one, (0, None, 0, 0))
    return lambda hidden, head: jnp.mean(batched(hidden, head, targets, WEIGHTS))


def plain(hidden, head):
    return hidden @ head.T


@pytest.mark.parametrize("chunk", [1, 4, 11])
def test_value_and_gradients_are_those_of_the_plain_loss(chunk, assert_close):
    both = lambda make: jax.jit(jax.value_and_grad(mean(make), (0, 1)))(HIDDEN, HEAD)
    assert_close(both(lambda *a: FactoredLogits(*a, chunk)), both(plain), atol=1e-12)


def test_a_batch_may_be_one_array_and_a_frozen_head_costs_no_product(assert_close):
    loss = lambda hidden: cross_entropy(FactoredLogits(hidden, HEAD, 4), TARGETS, WEIGHTS)
    wanted = lambda hidden: cross_entropy(plain(hidden, HEAD), TARGETS, WEIGHTS)
    assert_close(*(jax.jit(jax.grad(f))(HIDDEN) for f in (loss, wanted)), atol=1e-12)
    assert FactoredLogits(HIDDEN, HEAD).shape == (BATCH, TOKENS, WORDS)
    products = lambda arg: str(
        jax.make_jaxpr(jax.grad(mean(lambda *a: FactoredLogits(*a, 4)), arg))(HIDDEN, HEAD)
    ).count("dot_general")
    assert products((0, 1)) > products(0)


def test_ids_shapes_and_chunks_that_are_none():
    make = lambda *a: FactoredLogits(*a, 4)
    wrong = TARGETS.at[1, 2].set(WORDS)
    with pytest.raises(ValueError, match=r"`targets` must lie in \[0, 7\), got 7"):
        cross_entropy(make(HIDDEN, HEAD), wrong)
    losses = jax.jit(jax.vmap(lambda h, y: cross_entropy(make(h, HEAD), y)))(HIDDEN, wrong)
    assert jnp.isnan(losses).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="`targets` must have shape"):
        cross_entropy(make(HIDDEN, HEAD), TARGETS[0])
    with pytest.raises(ValueError, match="`chunk` must be at least 1"):
        FactoredLogits(HIDDEN, HEAD, 0)
    assert cross_entropy(make(HIDDEN, HEAD), jnp.full_like(TARGETS, -100)) == 0


def test_logits_are_in_memory_a_chunk_at_a_time_and_the_head_has_no_batch():
    batch, tokens, width, words = 2, 256, 16, 2048
    hidden, head = jnp.ones((batch, tokens, width)), jnp.ones((words, width))
    targets = jnp.ones((batch, tokens), int)

    def gradient(make):
        loss = jax.vmap(lambda h, w, y: cross_entropy(make(h, w), y), (0, None, 0))
        total = lambda h, w: jnp.mean(loss(h, w, targets))
        return jax.jit(jax.value_and_grad(total, (0, 1)))

    few = gradient(lambda *a: FactoredLogits(*a, 32))
    temporary = lambda f: f.lower(hidden, head).compile().memory_analysis().temp_size_in_bytes
    assert temporary(few) < temporary(gradient(plain)) / 3
    assert f"[{batch},{words},{width}]" not in str(jax.make_jaxpr(few)(hidden, head))


def test_half_precision_multiplies_in_half_and_sums_in_full(assert_close):
    hidden, head = HIDDEN.astype(jnp.bfloat16), HEAD.astype(jnp.bfloat16)
    loss = mean(lambda *a: FactoredLogits(*a, 4))
    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, grads = both(hidden, head)
    exact, wanted = jax.value_and_grad(mean(plain), (0, 1))(
        *(a.astype(float) for a in (hidden, head))
    )
    assert value.dtype == jnp.float32
    assert np.isclose(value, exact, rtol=1e-6)
    for found, right in zip(grads, wanted, strict=True):
        assert found.dtype == jnp.bfloat16
        assert_close(found.astype(float), right, rtol=2e-2, atol=2e-3)
    text = str(jax.make_jaxpr(both)(hidden, head))
    products = re.findall(r"= dot_general\[.*?\n\s*\] (\w+) (\w+)", text, re.S)
    kinds = dict(re.findall(r"\b(\w+):(\w+)\[", text))
    assert len(products) == 4 and {kinds[name] for pair in products for name in pair} == {"bf16"}


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_backprop_casts_arrays_and_leaves_factors(dtype):
    seen = []

    class Model(eqx.Module):
        head: jax.Array

        def __call__(self, hidden):
            return FactoredLogits(hidden, self.head, 4), hidden

    def loss(outputs, targets):
        seen.append(jax.tree.map(lambda a: a.dtype, outputs))
        return cross_entropy(outputs[0], targets)

    estimate = Backprop(dtype=dtype)(Model(HEAD), loss, (HIDDEN, TARGETS))
    logits, hidden = seen[0]
    assert {logits.hidden, logits.head} == {jnp.dtype(dtype or float)}
    assert hidden == jnp.dtype(float) and estimate.grads.head.dtype == jnp.dtype(float)
    wanted = jnp.mean(jax.vmap(lambda h, y: cross_entropy(plain(h, HEAD), y))(HIDDEN, TARGETS))
    assert np.isclose(estimate.loss, wanted, rtol=1e-2 if dtype else 1e-12)


def test_a_gpt2_gives_its_logits_in_factors(key, assert_close):
    model = GPT2.init(GPT2Config(13, 8, 8, 1, 2, tie_word_embeddings=False), key)
    both = jax.jit(lambda tokens: (model.factored(tokens), model(tokens)))
    factored, logits = both(jnp.arange(8))
    assert_close(factored.hidden @ model.lm_head.T, logits, atol=1e-12)


@pytest.mark.parametrize("memory", [False, True])
def test_the_recipe_trains_and_evaluates_on_factors(memory, key):
    def read():
        model = GPT2.init(GPT2Config(13, 8, 8, 1, 2), key)
        model = MemoryGPT2(model, early=eqx.nn.GRUCell, capacity=4, key=key) if memory else model
        return _read(4, False, None, model, jnp.arange(8), None)

    logits = eqx.filter_eval_shape(read)
    assert isinstance(logits, FactoredLogits) and logits.shape == (8, 13)
