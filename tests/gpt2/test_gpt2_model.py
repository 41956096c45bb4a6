"""GPT-2 itself: caches, attention as a strategy, dropout, gradient checkpointing, and that it learns."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gpt2_reference import IDS, TINY, run

from eqjax.analytic import causal_mask, cross_entropy, tree_cast
from eqjax.fields import trainable
from eqjax.language import (
    GPT2,
    DotProduct,
    GPT2Config,
    Heads,
    generate,
)
from eqjax.language._attend import DroppedOut


def test_a_cache_changes_nothing(model, logits):
    ids, extend = jnp.asarray(IDS), eqx.filter_jit(GPT2.extend)
    first, cache = extend(model, ids[:8], model.cache(24))
    second, cache = extend(model, ids[8:16], cache)
    third, cache = extend(model, ids[16:], cache)
    assert jnp.allclose(jnp.concatenate([first, second, third]), logits, rtol=0, atol=1e-13)
    assert cache.length == 24 and cache.valid.all()
    with pytest.raises(RuntimeError, match="no room for these tokens"):
        extend(model, ids[16:], cache)


def test_a_padded_cache_and_a_batch_of_them(model, logits):
    ids = jnp.asarray(IDS)
    batch = jnp.stack([ids, jnp.pad(ids[:-4], (4, 0))])
    mask = jnp.stack([jnp.ones(24, bool), jnp.arange(24) >= 4])

    def read(ids, mask):
        first, cache = model.extend(ids[:9], model.cache(), mask=mask[:9])
        second, _ = model.extend(ids[9:], cache, mask=mask[9:])
        return jnp.concatenate([first, second])

    found = jax.jit(jax.vmap(read))(batch, mask)
    assert jnp.allclose(found[0], logits, rtol=0, atol=1e-13)
    assert jnp.allclose(found[1, 4:], logits[:20], rtol=0, atol=1e-13)


def test_attention_is_a_strategy(model, logits):
    """Slots in front of the tokens, biased keys and a run in two halves: no block is copied."""
    ids = jnp.asarray(IDS)
    config = model.config
    shape = (config.n_layer, 5, config.n_head, config.n_embd // config.n_head)
    slots = jax.random.normal(jax.random.key(0), shape)

    def remember(heads, extra):
        key, value, valid = extra
        seen = jnp.broadcast_to(valid[None], (heads.query.shape[0], valid.size))
        heads = heads._replace(
            key=jnp.concatenate([key, heads.key]),
            value=jnp.concatenate([value, heads.value]),
            mask=jnp.concatenate([seen, heads.visible()], axis=1),
        )
        return DotProduct()(heads)[0], heads.hidden[-1]

    @jax.jit
    def recall(valid):
        h, last = model.run(
            model.embed(ids), remember, (slots, slots, jnp.tile(valid[None], (3, 1)))
        )
        return model.unembed(h), last

    empty, last = recall(jnp.zeros(5, bool))
    assert jnp.allclose(empty, logits, rtol=0, atol=1e-13) and last.shape == (3, 24)
    assert jnp.max(jnp.abs(recall(jnp.arange(5) < 3)[0] - logits)) > 1e-2
    h, _ = model.run(model.embed(ids), stop=1)
    h, _ = model.run(h, start=1)
    assert jnp.allclose(model.unembed(h), logits, rtol=0, atol=1e-13)

    def careless(heads, extra):
        return DotProduct()(heads._replace(key=heads.key[1:], value=heads.value[1:]))

    with pytest.raises(ValueError, match="24 queries meet 23 keys"):
        model(ids, attend=careless)


def test_a_memory_composes_with_a_cache(model):
    ids = jnp.asarray(IDS)

    def biased(heads, extra):
        bias = jnp.sin(jnp.arange(heads.key.size)).reshape(heads.key.shape)
        return DotProduct()(heads._replace(key=heads.key + bias))

    first, cache = model.extend(ids[:12], model.cache(24), attend=biased)
    second, _ = model.extend(ids[12:], cache, attend=biased)
    expected = run(model, IDS, attend=biased)
    assert jnp.allclose(jnp.concatenate([first, second])[-12:], expected[-12:], rtol=0, atol=1e-12)


def test_fused_attention_and_dropout_of_weights(key):
    parts = jax.random.normal(key, (3, 7, 2, 5))
    heads = Heads(*parts, mask=None, hidden=jnp.zeros((7, 1)))
    expected = DotProduct()(heads)[0]
    with pytest.raises(ValueError, match='must be None, "xla" or "cudnn", got \'flash\''):
        DotProduct("flash")
    with pytest.raises(ValueError, match="is for float16 and bfloat16, got queries of float64"):
        DotProduct("cudnn")(heads)
    for dtype, atol in ((jnp.float32, 1e-6), (jnp.bfloat16, 0.03)):
        for fused, mask in ((None, None), ("xla", causal_mask(7))):
            found = DotProduct(fused)(Heads(*parts.astype(dtype), mask, heads.hidden))[0]
            assert found.dtype == dtype
            assert jnp.allclose(found.astype(jnp.float64), expected, rtol=0, atol=atol)
    assert jnp.allclose(DroppedOut(0.0)(heads, key)[0], expected)
    many = jax.jit(jax.vmap(lambda k: DroppedOut(0.3)(heads, k)[0]))
    dropped = many(jax.random.split(key, 2000))
    assert jnp.max(jnp.abs(jnp.mean(dropped, axis=0) - expected)) < 0.15
    assert jnp.max(jnp.abs(dropped[0] - expected)) > 0.1


def test_a_batch_attends_by_cudnn_in_the_shapes_that_it_takes(key, monkeypatch):
    """There is none here: XLA's attention stands in, and asks what the batching rule of cuDNN's asks."""
    asked, real = [], jax.nn.dot_product_attention

    def stand_in(query, key, value, *, mask, implementation, **how):
        if implementation == "cudnn":
            asked.append(query.shape[0])
            assert mask is None or mask.shape == (query.shape[1], query.shape[0], key.shape[0])
        return real(query, key, value, mask=mask, implementation="xla", **how)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    parts = np.random.default_rng(0).normal(size=(3, 8, 7, 2, 4))
    mask = np.random.default_rng(0).random((8, 7, 7)) < 0.5
    mask[:, :, 0] = True

    @jax.jit
    @jax.vmap
    def differences(query, key, value, mask):
        query, key, value = (a.astype(jnp.bfloat16) for a in (query, key, value))
        found = []
        for first in (4, 6):  # 3 queries, and 1
            heads = Heads(query[first:], key, value, mask[first:], jnp.zeros((7 - first, 1)))
            fused, plain = (DotProduct(how)(heads)[0].astype(float) for how in ("cudnn", None))
            found.append(jnp.max(jnp.abs(fused - plain)))
        return found

    assert (jnp.stack(differences(*parts, mask)) < 0.03).all()
    assert asked == [3]  # one query is XLA's
    small = tree_cast(GPT2.init(GPT2Config(16, 16, 8, 1, 2), key), jnp.bfloat16)
    options = {"key": key, "attend": DotProduct("cudnn")}
    write = jax.vmap(lambda prompt, mask: generate(small, prompt, 4, mask=mask, **options).tokens)
    shape = jax.eval_shape(write, jnp.zeros((8, 5), jnp.int32), jnp.ones((8, 5), bool))
    assert shape.shape == (8, 4) and set(asked[1:]) == {5}


def test_dropout_needs_a_key(model, logits):
    one, two = run(model, IDS, key=jax.random.key(0)), run(model, IDS, key=jax.random.key(1))
    assert jnp.array_equal(one, run(model, IDS, key=jax.random.key(0)))
    assert jnp.max(jnp.abs(one - two)) > 1e-2
    none = dataclasses.replace(model.config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    still = dataclasses.replace(model, config=none)
    assert jnp.allclose(run(still, IDS, key=jax.random.key(0)), logits, rtol=0, atol=1e-13)


def test_gradient_checkpointing_changes_no_gradient_and_keeps_less():
    config = dataclasses.replace(TINY, n_layer=6, n_positions=64, resid_pdrop=0.1)
    model = GPT2.init(config, jax.random.key(0))
    tokens = jnp.arange(64) % 11

    def program(checkpointing):
        @eqx.filter_jit
        def gradient(model, tokens, key):
            def loss(model):
                logits = model(tokens, key=key, gradient_checkpointing=checkpointing)
                return cross_entropy(logits[:-1], tokens[1:])

            return eqx.filter_grad(loss)(model)

        return gradient.lower(model, tokens, jax.random.key(1)).compile()

    whole, less = program(False), program(True)
    expected, found = (p(model, tokens, jax.random.key(1)) for p in (whole, less))
    size = jax.tree.map(lambda leaf: jnp.max(jnp.abs(leaf)), expected)
    relative = [jax.tree.map(jnp.divide, grads, size) for grads in (found, expected)]
    chex.assert_tree_all_finite(relative)
    chex.assert_trees_all_close(*relative, rtol=0, atol=1e-12)
    sizes = [p.compiled.memory_analysis().temp_size_in_bytes for p in (whole, less)]
    assert sizes[1] < 0.4 * sizes[0]


def test_tokens_and_contexts_that_do_not_fit(model):
    for tokens, positions in (([3, 97], [0, 1]), ([3, -1], [0, 1]), ([3, 3], [0, 32])):
        found = run(model, tokens, positions=jnp.array(positions))
        assert jnp.isnan(found[1]).all()
    with pytest.raises(ValueError, match="has 33 tokens and the model's context is n_positions=32"):
        model(jnp.zeros(33, int))


def test_a_small_model_learns_and_traces_once():
    model = GPT2.init(TINY, jax.random.key(0))
    text = jnp.asarray((np.arange(200) ** 2) % 11)
    optimiser = optax.adam(3e-2)
    trained, fixed = eqx.partition(model, trainable(model))
    opt_state = optimiser.init(trained)

    def loss(trained, ids):
        logits = jax.vmap(eqx.combine(trained, fixed))(ids[:, :-1])
        return cross_entropy(logits, ids[:, 1:])

    chex.clear_trace_counter()

    @eqx.filter_jit
    @chex.assert_max_traces(n=1)
    def step(trained, opt_state, ids):
        value, grads = eqx.filter_value_and_grad(loss)(trained, ids)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimiser.update(grads, opt_state)
        return eqx.apply_updates(trained, updates), opt_state, value

    values = []
    for i in range(40):
        starts = np.random.default_rng(i).integers(0, 180, 8)
        trained, opt_state, value = step(
            trained, opt_state, text[starts[:, None] + np.arange(13)[None]]
        )
        values.append(value)
    assert abs(values[0] - np.log(11)) < 0.1 and values[-1] < 0.5
