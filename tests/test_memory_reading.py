"""GPT-2 with memory reads: what its logits may depend on, what is remembered, and what learns."""

import operator

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory_models import CLOSE, opened, plain, read, remembering, some_heads, some_slots, tokens

from eqjax.analytic import cross_entropy
from eqjax.language import adapters, lora, quantise
from eqjax.memory import memory_parameters, reply, segment_loss
from eqjax.memory._attention_memory import Fused, SlotRecall
from eqjax.memory._memory_gpt2 import ShortTermMemory

# Reading


@pytest.mark.parametrize(
    "make",
    [
        lambda: remembering(late=eqx.nn.LSTMCell, layers=(0, 1)),
        lambda: remembering(gpt2=lora(quantise(plain()), rank=2, alpha=2, key=jax.random.key(5))),
    ],
    ids=["every layer", "adapted 4-bit"],
)
def test_a_fresh_model_has_the_logits_of_its_gpt2(make):
    model, ids = make(), tokens(6)
    expected, memory = model.gpt2(ids), None
    for _ in range(3):  # with slots and states full of what was read before, too
        logits, memory = read(model, ids, memory)
        assert jnp.max(jnp.abs(logits - expected)) < 1e-13
    assert bool(jnp.all(memory.slots.valid)) and memory.tokens == 18 and memory.segments == 3
    other = read(opened(model), ids, memory)[0]
    assert jnp.max(jnp.abs(other - expected)) > 1e-3


def test_local_tokens_and_valid_slots_share_one_softmax(key):
    heads, slots = some_heads(key), some_slots(key)
    recall = SlotRecall.init(2, 6, capacity=5, key=key)
    recall = eqx.tree_at(lambda r: r.gate, recall, jnp.array([0.03, 0.1]))
    attend = Fused(jnp.array(0), jnp.array([True, True, True, False]))
    mixed, (after, salience) = attend(heads, (recall, slots))
    q, k, v = (np.array(a) for a in (heads.query, heads.key, heads.value))
    there, gate = jax.tree.map(np.array, (slots, 10 * recall.gate))
    mass = np.zeros(5)
    for h in range(2):
        for t in range(4):
            local = np.exp(k[: t + 1, h] @ q[t, h])
            far = there.salience * there.valid * np.exp(there.key[:, h] @ q[t, h])
            total = local.sum() + far.sum()
            fused = (local @ v[: t + 1, h] + far @ there.value[:, h]) / total
            alone = local @ v[: t + 1, h] / local.sum()
            expected = alone + gate[h] * (fused - alone)
            assert np.allclose(mixed[t, h], expected, atol=1e-13)
            mass += far / total / 2 * (t < 3)
    assert np.allclose(after.mass, mass, atol=1e-13)
    assert np.array_equal(after.reads, np.where(there.valid, 3, 0))
    assert bool(jnp.all((salience > 0) & (salience < 1)))
    # Whatever lies in an empty slot takes no part, nor does it reach a gradient.
    empty = ~slots.valid[:, None, None]
    wild = eqx.tree_at(
        lambda s: (s.key, s.value),
        slots,
        tuple(jnp.where(empty, wild, a) for wild, a in ((1e3, slots.key), (1e6, slots.value))),
    )
    assert bool(jnp.all(attend(heads, (recall, wild))[0] == mixed))
    grads = eqx.filter_grad(lambda s: jnp.sum(attend(heads, (recall, s))[0] ** 2))(wild)
    for leaf in (grads.key, grads.value, grads.salience):
        assert bool(jnp.all(jnp.isfinite(leaf))) and not bool(jnp.any(leaf[~slots.valid]))
        assert bool(jnp.all(jnp.any(leaf[slots.valid].reshape(3, -1) != 0, axis=1)))


def test_no_token_sees_a_later_one():
    model, ids = opened(remembering()), tokens(6)
    _, memory = read(model, tokens(6, seed=1))
    before = read(model, ids, memory)[0]
    after = read(model, ids.at[3].set((ids[3] + 1) % 11), memory)[0]
    changed = jnp.any(before != after, axis=1)
    assert not bool(jnp.any(changed[:3])) and bool(jnp.all(changed[3:]))


def test_padding_is_neither_seen_nor_remembered():
    model, ids, wild = opened(remembering()), tokens(4), tokens(2, seed=3) - 100
    real = jnp.arange(6) < 4
    logits, memory = read(model, jnp.concatenate([ids, wild]), mask=real)
    padded, same = read(model, jnp.concatenate([wild, ids]), mask=real[::-1])
    chex.assert_tree_all_finite((logits, memory))
    chex.assert_trees_all_close((padded[2:], same), (logits[:4], memory), **CLOSE)
    assert memory.tokens == 4
    chex.assert_trees_all_close(
        read(model, tokens(6), memory, jnp.zeros(6, bool))[1], memory, **CLOSE
    )


def test_two_sequences_of_a_batch_never_see_one_another():
    model = opened(remembering())
    batched = eqx.filter_jit(eqx.filter_vmap(model))
    ids = jnp.stack([tokens(6), tokens(6, seed=1)])
    memory = batched(ids)[1]
    alone = read(model, ids[0])
    logits, after = batched(ids, memory)
    other, _ = batched(ids[:, ::-1].at[0].set(ids[0]), memory)
    assert bool(jnp.all(logits[0] == other[0])) and bool(jnp.any(logits[1] != other[1]))
    assert jnp.allclose(read(model, ids[0], alone[1])[0], logits[0], atol=1e-13)
    half = after.reset(jnp.array([False, True]))
    fresh = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), model.memory())
    assert eqx.tree_equal(*(jax.tree.map(lambda a: a[0], m) for m in (half, after)))
    assert eqx.tree_equal(*(jax.tree.map(lambda a: a[1], m) for m in (half, fresh)))
    assert eqx.tree_equal(after.reset(), fresh)


def test_recurrences_alone_are_a_memory_too():
    model = opened(remembering(capacity=0, late=None))
    assert model.memory().slots is None
    logits, memory = read(model, tokens(6))
    assert bool(jnp.all(read(model, tokens(6), memory)[0] != logits))


# Short term


@pytest.mark.parametrize("cell", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_a_recurrence_is_the_same_in_one_segment_or_many(cell, key):
    part = eqx.tree_at(lambda r: r.gate, ShortTermMemory(cell, 4, units=3, key=key), jnp.ones(4))
    h, real = jax.random.normal(key, (6, 4)), jnp.ones(6, bool)
    whole = part(h, part.initial(), real)
    first, state = part(h[:1], part.initial(), real[:1])
    second, state = part(h[1:], state, real[1:])
    chex.assert_tree_all_finite(whole)
    chex.assert_trees_all_close((jnp.concatenate([first, second]), state), whole, **CLOSE)
    assert not bool(jnp.any(whole[0] == h))


def test_the_early_state_after_one_segment_or_many_agrees():
    model = eqx.tree_at(lambda m: m.gpt2.wpe, opened(remembering()), replace_fn=jnp.zeros_like)
    ids, memory = tokens(6), None
    for part in range(3):
        memory = read(model, ids, memory, jnp.arange(6) // 2 == part)[1]
    chex.assert_tree_all_finite(memory)
    chex.assert_trees_all_close(memory.early, read(model, ids)[1].early, **CLOSE)
    assert memory.segments == 3 and memory.tokens == 6


# Training


def test_every_gate_learns_from_the_first_step():
    model = remembering()
    ids = tokens(12).reshape(3, 4)
    loss = lambda m: segment_loss(m, ids, ids)[0]
    grads = eqx.filter_jit(eqx.filter_grad(loss))(model)
    for gate in (grads.early.gate, grads.late.gate, grads.recall.gate):
        assert bool(jnp.all(gate != 0))
    grads = eqx.filter_jit(eqx.filter_grad(loss))(opened(model))
    assert bool(jnp.all(grads.recall.weight != 0)) and bool(jnp.all(grads.recall.bias != 0))


def test_the_loss_over_segments_is_that_of_reading_them_one_by_one():
    model = opened(remembering())
    ids, targets = tokens(18).reshape(3, 6), tokens(18, seed=1).reshape(3, 6)
    mask = jnp.ones((3, 6), bool).at[1, 0].set(False)

    memory, total = model.memory(), 0.0
    for part, wanted, real in zip(ids, targets, mask, strict=True):
        logits, memory = read(model, part, memory, real)
        total += sum(float(cross_entropy(logits[i], wanted[i])) for i in range(6) if real[i])
    loss = eqx.filter_jit(segment_loss)(model, ids, targets, mask=mask)
    chex.assert_tree_all_finite(loss)
    chex.assert_trees_all_close(loss, (jnp.array(total / 17), memory), **CLOSE)


def test_the_memory_trains_beside_a_frozen_gpt2():
    model = lora(remembering(), rank=1, alpha=1, key=jax.random.key(3))
    marks = memory_parameters(model)
    assert not any(jax.tree.leaves(marks.gpt2)) and all(
        jax.tree.leaves((marks.early, marks.late, marks.recall))
    )
    both = jax.tree.map(operator.or_, marks, adapters(model))
    names = {
        jax.tree_util.keystr(path).rsplit(".", 1)[-1]
        for path, mark in jax.tree_util.tree_leaves_with_path(both.gpt2)
        if mark
    }
    assert names == {"a", "b"}


# Misuse


def test_misuse_is_refused_with_the_cure():
    model = remembering()
    with pytest.raises(ValueError, match="1 to n_positions=6 tokens, got 7"):
        model(tokens(7))
    with pytest.raises(ValueError, match="`memory` is not one of this model"):
        model(tokens(6), remembering(late=None).memory())
    with pytest.raises(ValueError, match=r"`layers` must be some of 0 … 1, got \(2,\)"):
        remembering(layers=(2,))
    for name, value in (("capacity", -1), ("horizon", -1), ("threshold", 1.0)):
        with pytest.raises(ValueError, match=f"`{name}` must"):
            remembering(**{name: value})
    with pytest.raises(ValueError, match="`prompt` must hold at least one token"):
        reply(model, tokens(0), model.memory(), 1, key=jax.random.key(0))
    with pytest.raises(RuntimeError, match="outside of the model's vocabulary"):
        reply(model, tokens(8) - 100, model.memory(), 9, key=jax.random.key(0), stop=-1)
    segment = model.extend(tokens(4), model.open(model.memory()))[1]
    with pytest.raises(RuntimeError, match="no room for these tokens"):
        model.extend(tokens(3), segment)
