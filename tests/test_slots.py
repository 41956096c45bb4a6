"""Slots, the long-term memory: who gives way, what is kept, and how far back a gradient reaches."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from memory_models import CLOSE, EVICTIONS, opened, plain, remembering, some_heads, some_slots

from eqjax.memory import (
    AttentionWithMemory,
    Fifo,
    LeastAttended,
    Slots,
    Summarise,
    segment_loss,
)
from eqjax.memory._attention_memory import Fused, SlotRecall
from eqjax.memory._slots import write


def reference(eviction, salience, rate, capacity):
    """The numbers of the tokens that are kept, by lists; slots that were read before have `rate`."""
    kept = list(range(len(rate)))
    rates = dict(enumerate(rate))
    for new in range(len(rate), len(salience)):
        if len(kept) == capacity:
            if isinstance(eviction, Fifo):
                out = min(kept)
            elif isinstance(eviction, LeastAttended):
                out = min(kept, key=lambda i: (rates.get(i, np.inf), i))
            else:
                out = min(kept, key=lambda i: (salience[i], i))
                if salience[out] > salience[new]:
                    continue
            kept.remove(out)
        kept.append(new)
    return kept


def candidates(salience, first=0):
    n = len(salience)
    state = jnp.arange(first, first + n, dtype=float)[:, None, None] * jnp.ones((1, 2, 3))
    number = jnp.arange(first, first + n, dtype=jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return Slots.tokens(state, -state, jnp.ones(n, bool), jnp.array(salience), number, zero)


written = eqx.filter_jit(write)


@pytest.mark.parametrize("eviction", EVICTIONS[:3], ids=lambda e: type(e).__name__)
@given(data=st.data())
def test_who_gives_way(eviction, data):
    capacity, cut = 4, 3
    weights = st.sampled_from([0.125, 0.25, 0.5])  # with ties
    salience = data.draw(st.lists(weights, min_size=9, max_size=9))
    rate = data.draw(st.lists(weights, min_size=cut, max_size=cut))
    slots = written(Slots.empty((capacity,), 2, 3, float), candidates(salience[:cut]), eviction)
    reads = jnp.pad(jnp.array(rate), (0, 1)) * 8
    slots = slots.attended(reads, jnp.array(8, jnp.int32))
    slots = written(slots, candidates(salience[cut:], cut), eviction)
    kept = reference(eviction, salience, rate, capacity)
    assert sorted(slots.written.tolist()) == kept and bool(jnp.all(slots.valid))
    assert jnp.array_equal(slots.key[:, 1, 2].astype(jnp.int32), slots.written)
    assert jnp.array_equal(slots.value, -slots.key)


@pytest.mark.parametrize("eviction", EVICTIONS, ids=lambda e: type(e).__name__)
def test_slots_are_the_same_in_one_segment_or_many(eviction, key):
    recall = SlotRecall.init(2, 6, capacity=4, eviction=eviction, threshold=0.3, key=key)
    layer = AttentionWithMemory(6, 2, capacity=4, key=key)
    state = jax.random.normal(key, (10, 2, 3))
    salience = jax.random.uniform(key, (10,))
    real = jnp.arange(10) != 7

    @eqx.filter_jit
    def after(cuts):
        memory = layer.memory()
        for a, b in zip([0, *cuts], [*cuts, 10], strict=True):
            part = state[a:b], -state[a:b], salience[a:b], real[a:b]
            slots = recall.write(memory.slots, *part, memory)
            # What is counted in segments must differ; all else must not.
            memory = eqx.tree_at(
                lambda m: m.segments, memory.after(part[-1], slots=slots), jnp.array(0, jnp.int32)
            )
        return memory

    one = after([])
    chex.assert_tree_all_finite(one)
    chex.assert_trees_all_close(after([1, 2, 6]), one, **CLOSE)
    chex.assert_trees_all_close(after([5]), one, **CLOSE)
    total = jnp.sum(jnp.where(real & (salience >= 0.3), salience, 0))
    if isinstance(eviction, Summarise):  # nothing is lost
        chex.assert_trees_all_close(jnp.sum(one.slots.salience), total, **CLOSE)
    else:
        assert bool(jnp.all(one.slots.salience >= 0.3))
        assert not bool(jnp.any(jnp.all(one.slots.key == state[7][None], axis=(1, 2))))


def test_a_summary_of_equal_keys_is_worth_what_they_were(key):
    a, b, c = some_slots(key, s=3), *(candidates([w], 7 + i) for i, w in enumerate((0.2, 0.6)))
    same = jax.random.normal(key, (2, 3))
    filled = eqx.tree_at(
        lambda s: (s.key, s.valid), a, (a.key.at[jnp.array([0, 2])].set(same), jnp.ones(3, bool))
    )
    filled = eqx.tree_at(lambda s: s.written, filled, jnp.array([0, 2, 1], jnp.int32))
    new = eqx.tree_at(lambda s: s.salience, b, jnp.full(1, 1e-300))  # takes no part
    merged = write(filled, new, Summarise())
    recall = eqx.tree_at(
        lambda r: r.gate, SlotRecall.init(2, 6, capacity=3, key=key), jnp.full(2, 0.1)
    )
    attend, heads = Fused(jnp.array(0), jnp.ones(4, bool)), some_heads(key)
    before, after = (attend(heads, (recall, s))[0] for s in (filled, merged))
    chex.assert_tree_all_finite(after)
    chex.assert_trees_all_close(after, before, **CLOSE)
    assert sorted(merged.written.tolist()) == [1, 2, 7]
    assert write(merged, c, Summarise()).valid.size == 3


@pytest.mark.parametrize("eviction", EVICTIONS, ids=lambda e: type(e).__name__)
def test_slots_never_exceed_their_number(eviction, key):
    layer = AttentionWithMemory(4, 2, capacity=7, eviction=eviction, key=key)
    memory, step = layer.memory(), eqx.filter_jit(layer)
    for seed in range(3):
        memory = step(jax.random.normal(jax.random.key(seed), (5, 4)), memory)[1]
        assert memory.slots.valid.shape == (7,)
        assert jnp.sum(memory.slots.valid) == min(5 * (seed + 1), 7)
        chex.assert_tree_all_finite(memory)
    numbers = memory.slots.written.tolist()
    assert len(set(numbers)) == 7 and min(numbers) >= 0 and max(numbers) < 15


@pytest.mark.parametrize("horizon", [0, 2, None])
def test_gradient_reaches_the_writes_within_the_horizon_and_no_further(horizon, key):
    layer = AttentionWithMemory(4, 2, capacity=20, horizon=horizon, key=key)
    layer = eqx.tree_at(lambda m: m.recall.gate, layer, jnp.full(2, 0.05))

    @eqx.filter_jit
    @jax.grad
    def reached(segments):
        memory = layer.memory()
        for x in segments:
            y, memory = layer(x, memory)
        return jnp.sum(y**2)

    norms = jnp.max(jnp.abs(reached(jax.random.normal(key, (5, 3, 4)))), axis=(1, 2))
    reach = 4 if horizon is None else horizon
    assert (norms > 0).tolist() == [i >= 4 - reach for i in range(5)]


def test_the_horizon_holds_in_the_model_and_through_the_scan():
    gpt2 = plain(tie_word_embeddings=False)
    model = opened(remembering(gpt2=gpt2, early=None, late=None, capacity=20, horizon=1))
    ids = jnp.arange(8).reshape(4, 2)  # every segment has tokens of its own
    weight = jnp.zeros((4, 2)).at[-1].set(1.0)
    loss = lambda m: segment_loss(m, ids, ids, weight=weight)[0]
    grads = eqx.filter_jit(eqx.filter_grad(loss))(model)
    assert jnp.any(grads.gpt2.wte != 0, axis=1).tolist() == [False] * 4 + [True] * 4 + [False] * 3
