"""Text from GPT-2: how a token is drawn, where a text stops, and that both compile once."""

import dataclasses
import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from gpt2_reference import IDS, TINY, run

from eqjax.language import (
    GPT2,
    DotProduct,
    Sampler,
    autoregress,
    generate,
)


def test_filters_are_those_of_transformers():
    rng = np.random.default_rng(0)
    for temperature, k, p in ((0.7, None, None), (1.0, 5, None), (1.3, None, 0.6), (0.5, 20, 0.9)):
        scores = rng.normal(size=(1, 50)) * 3
        expected = torch.tensor(scores) / temperature
        if k is not None:
            expected = transformers.TopKLogitsWarper(k)(None, expected)
        if p is not None:
            expected = transformers.TopPLogitsWarper(p)(None, expected)
        found = Sampler(temperature, k, p).filtered(jnp.asarray(scores[0]))
        assert np.allclose(found, expected[0].numpy(), rtol=1e-12)
    assert jnp.isfinite(Sampler(top_p=1e-9).filtered(jnp.asarray(scores[0]))).sum() == 1
    assert jnp.isfinite(Sampler(top_k=99, top_p=1.0).filtered(jnp.asarray(scores[0]))).all()


def test_tokens_are_drawn_with_their_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    draw = jax.jit(jax.vmap(Sampler(0.5, top_k=3), in_axes=(None, 0)))
    counts = jnp.bincount(draw(logits, jax.random.split(jax.random.key(0), 20000)), length=4)
    weights = jnp.array([0.25, 0.09, 0.0225, 0.0])
    assert jnp.allclose(counts / 20000, weights / weights.sum(), atol=0.01)
    assert Sampler(0.0)(logits, jax.random.key(0)) == 0
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            Sampler(**wrong)


# One prompt length, one count and a stop that never comes, so that these tests share what is compiled.
PROMPT, NEVER = jnp.asarray(IDS[:7]), 1000


def test_greedy_text_is_that_of_transformers(model, theirs):
    expected = theirs.generate(
        torch.tensor(IDS[:7])[None], max_new_tokens=20, do_sample=False, eos_token_id=None
    )
    found = generate(model, PROMPT, 20, key=jax.random.key(0), temperature=0, stop=NEVER)
    assert np.array_equal(found.tokens, expected[0, 7:].numpy()) and found.length == 20


def test_generation_stops(model, key):
    free = generate(model, PROMPT, 20, key=key, stop=NEVER).tokens
    assert len(set(free.tolist())) > 5
    stop = free[5]
    first = int(jnp.argmax(free == stop))
    for cache in (True, False):
        found = generate(model, PROMPT, 20, key=key, stop=stop, cache=cache)
        assert found.length == first + 1
        assert jnp.array_equal(found.tokens[: first + 1], free[: first + 1])
        assert (found.tokens[first:] == stop).all()


def test_generation_stops_where_the_model_ends_its_texts(model, key):
    free = generate(model, PROMPT, 20, key=key, stop=NEVER).tokens
    ends = free[5].item(), free[9].item()
    first = min(free.tolist().index(end) for end in ends)

    def ending(tokens):
        config = dataclasses.replace(model.config, eos_token_id=tokens)
        return dataclasses.replace(model, config=config)

    found = generate(ending(ends), PROMPT, 20, key=key)
    assert found.length == first + 1
    assert jnp.array_equal(found.tokens[: first + 1], free[: first + 1])
    assert (found.tokens[first + 1 :] == ends[-1]).all()
    assert generate(ending(ends[0]), PROMPT, 20, key=key).length == free.tolist().index(ends[0]) + 1
    assert generate(ending(ends), PROMPT, 20, key=key, stop=()).length == 20


def test_generation_attends_as_told(model, key):
    def biased(heads, extra):
        return DotProduct()(heads._replace(value=-2 * heads.value))

    cached = generate(model, PROMPT, 20, key=key, attend=biased)
    assert jnp.array_equal(
        cached.tokens, generate(model, PROMPT, 20, key=key, attend=biased, cache=False).tokens
    )
    assert not jnp.array_equal(cached.tokens, generate(model, PROMPT, 20, key=key).tokens)


def test_a_batch_is_padded_on_the_left_and_each_prompt_stops_for_itself(model, key):
    prompts = jnp.asarray([IDS[:7], np.pad(IDS[:4], (3, 0))])
    mask = jnp.arange(7)[None] >= jnp.array([[0], [3]])
    keys = jax.random.split(key)
    options = {"temperature": 1.5, "top_k": 40, "top_p": 0.95}

    @functools.partial(jax.jit, static_argnums=4)
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None))
    def write(prompt, mask, key, stop, cache):
        return generate(model, prompt, 20, mask=mask, key=key, stop=stop, cache=cache, **options)

    free = write(prompts, mask, keys, jnp.array([NEVER, NEVER]), True)
    assert jnp.array_equal(
        free.tokens, write(prompts, mask, keys, jnp.array([NEVER, NEVER]), False).tokens
    )
    alone = generate(model, jnp.asarray(IDS[:4]), 20, key=keys[1], stop=NEVER, **options)
    assert jnp.array_equal(free.tokens[1], alone.tokens)
    stop = free.tokens[0, 5]
    found = write(prompts, mask, keys, jnp.array([int(stop), NEVER]), True)
    assert found.length[0] == int(jnp.argmax(free.tokens[0] == stop)) + 1
    assert jnp.array_equal(found.tokens[1], free.tokens[1]) and found.length[1] == 20


def test_beyond_the_context_generation_refuses_or_slides(model, key):
    prompt = jnp.asarray(IDS)
    with pytest.raises(ValueError, match=r"24 \+ 9 tokens, but .*n_positions=32.*cache=False"):
        generate(model, prompt, 9, key=key)
    tokens = generate(model, prompt, 12, key=key, temperature=0, cache=False).tokens
    text = jnp.concatenate([prompt, tokens.astype(prompt.dtype)])
    for end in (32, 34, 35):  # the last 32 tokens alone decide
        assert text[end] == jnp.argmax(run(model, text[end - 32 : end])[-1])
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, prompt[:0], 3, key=key)
    with pytest.raises(ValueError, match="got a dict"):
        generate({}, prompt, 3, key=key)
    with pytest.raises(RuntimeError, match=r"outside of the model's vocabulary, 0 … 96"):
        generate(model, PROMPT.at[0].set(97), 20, key=key, stop=NEVER)


def test_what_is_generated_leaves_a_state_that_goes_on(model, key):
    """Two calls of the loop are one longer one, given the same keys."""

    def read(token, cache):
        logits, cache = model.extend(token[None], cache)
        return logits[-1], cache

    @jax.jit
    def go_on(logits, cache):
        return autoregress(read, logits, cache, 10, sampler=Sampler(0.0), key=key)

    logits, cache = eqx.filter_jit(GPT2.extend)(model, PROMPT, model.cache())
    first, logits, cache = go_on(logits[-1], cache)
    second, _, _ = go_on(logits, cache)
    whole = generate(model, PROMPT, 20, key=key, temperature=0.0, stop=NEVER)
    assert jnp.array_equal(jnp.concatenate([first.tokens, second.tokens]), whole.tokens)


def test_generation_compiles_once(key):
    model = GPT2.init(TINY, jax.random.key(0))
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=2)  # a scan may trace its body twice
    def counted(heads, extra):
        return DotProduct()(heads)

    @eqx.filter_jit
    @chex.assert_max_traces(n=1)
    def write(model, prompt, sampler, key):
        def read(token, cache):
            logits, cache = model.extend(token[None], cache)
            return logits[-1], cache

        logits, cache = model.extend(prompt, model.cache(), attend=counted)
        return autoregress(read, logits[-1], cache, 3, sampler=sampler, key=key)[0].tokens

    for i, warmth in enumerate((0.5, 1.0, 2.0)):
        prompt = jnp.array([i, 1])
        write(model, prompt, Sampler(warmth, top_k=i + 1, top_p=0.9), jax.random.key(i))
