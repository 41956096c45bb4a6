"""GPT-2 with memory: its laws, its file, and conversations through it."""

import dataclasses
import operator
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, strategies as st

from eqjax.analytic import cross_entropy, tree_cast
from eqjax.language import (
    GPT2,
    GPT2Config,
    Heads,
    Sampler,
    adapters,
    generate,
    lora,
    quantise,
)
from eqjax.memory import (
    AttentionWithMemory,
    Fifo,
    LeastAttended,
    LeastSalient,
    MemoryGPT2,
    Slots,
    Summarise,
    load_memory,
    memory_parameters,
    reply,
    save_memory,
    segment_loss,
)
from eqjax.memory._attention_memory import Fused, Recall
from eqjax.memory._memory import fingerprint
from eqjax.memory._recurrence import Recurrence
from eqjax.memory._slots import write

CONFIG = GPT2Config(vocab_size=11, n_positions=6, n_embd=16, n_layer=2, n_head=2)
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


def some_heads(key, t=4, width=3):
    parts = jax.random.normal(key, (3, t, 2, width))
    return Heads(*parts, None, jax.random.normal(jax.random.key(9), (t, 6)))


def some_slots(key, s=5, width=3):
    k1, k2, k3 = jax.random.split(key, 3)
    key, value = jax.random.normal(k1, (2, s, 2, width))
    valid, order = jnp.arange(s) % 3 != 1, jax.random.permutation(k3, s).astype(jnp.int32)
    salience = jax.random.uniform(k2, (s,), minval=0.1)
    return Slots.tokens(key, value, valid, salience, order, jnp.zeros((), jnp.int32))


def test_local_tokens_and_valid_slots_share_one_softmax(key):
    heads, slots = some_heads(key), some_slots(key)
    recall = Recall.init(2, 6, capacity=5, key=key)
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


def test_padding_is_neither_seen_nor_remembered(assert_close):
    model, ids, wild = opened(remembering()), tokens(4), tokens(2, seed=3) - 100
    real = jnp.arange(6) < 4
    logits, memory = read(model, jnp.concatenate([ids, wild]), mask=real)
    padded, same = read(model, jnp.concatenate([wild, ids]), mask=real[::-1])
    assert_close((padded[2:], same), (logits[:4], memory))
    assert memory.tokens == 4
    assert_close(read(model, tokens(6), memory, jnp.zeros(6, bool))[1], memory)


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


# Short term


@pytest.mark.parametrize("cell", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_a_recurrence_is_the_same_in_one_segment_or_many(cell, key, assert_close):
    part = eqx.tree_at(lambda r: r.gate, Recurrence(cell, 4, units=3, key=key), jnp.ones(4))
    h, real = jax.random.normal(key, (6, 4)), jnp.ones(6, bool)
    whole = part(h, part.initial(), real)
    first, state = part(h[:1], part.initial(), real[:1])
    second, state = part(h[1:], state, real[1:])
    assert_close((jnp.concatenate([first, second]), state), whole)
    assert not bool(jnp.any(whole[0] == h))


def test_the_early_state_after_one_segment_or_many_agrees(assert_close):
    model = eqx.tree_at(lambda m: m.gpt2.wpe, opened(remembering()), replace_fn=jnp.zeros_like)
    ids, memory = tokens(6), None
    for part in range(3):
        memory = read(model, ids, memory, jnp.arange(6) // 2 == part)[1]
    assert_close(memory.early, read(model, ids)[1].early)
    assert memory.segments == 3 and memory.tokens == 6


# Long term


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
def test_slots_are_the_same_in_one_segment_or_many(eviction, key, assert_close):
    recall = Recall.init(2, 6, capacity=4, eviction=eviction, threshold=0.3, key=key)
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
    assert_close(after([1, 2, 6]), one)
    assert_close(after([5]), one)
    total = jnp.sum(jnp.where(real & (salience >= 0.3), salience, 0))
    if isinstance(eviction, Summarise):  # nothing is lost
        assert_close(jnp.sum(one.slots.salience), total)
    else:
        assert bool(jnp.all(one.slots.salience >= 0.3))
        assert not bool(jnp.any(jnp.all(one.slots.key == state[7][None], axis=(1, 2))))


def test_a_summary_of_equal_keys_is_worth_what_they_were(key, assert_close):
    a, b, c = some_slots(key, s=3), *(candidates([w], 7 + i) for i, w in enumerate((0.2, 0.6)))
    same = jax.random.normal(key, (2, 3))
    filled = eqx.tree_at(
        lambda s: (s.key, s.valid), a, (a.key.at[jnp.array([0, 2])].set(same), jnp.ones(3, bool))
    )
    filled = eqx.tree_at(lambda s: s.written, filled, jnp.array([0, 2, 1], jnp.int32))
    new = eqx.tree_at(lambda s: s.salience, b, jnp.full(1, 1e-300))  # takes no part
    merged = write(filled, new, Summarise())
    recall = eqx.tree_at(lambda r: r.gate, Recall.init(2, 6, capacity=3, key=key), jnp.full(2, 0.1))
    attend, heads = Fused(jnp.array(0), jnp.ones(4, bool)), some_heads(key)
    before, after = (attend(heads, (recall, s))[0] for s in (filled, merged))
    assert_close(after, before)
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
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(memory))
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


def test_every_gate_learns_from_the_first_step():
    model = remembering()
    ids = tokens(12).reshape(3, 4)
    loss = lambda m: segment_loss(m, ids, ids)[0]
    grads = eqx.filter_jit(eqx.filter_grad(loss))(model)
    for gate in (grads.early.gate, grads.late.gate, grads.recall.gate):
        assert bool(jnp.all(gate != 0))
    grads = eqx.filter_jit(eqx.filter_grad(loss))(opened(model))
    assert bool(jnp.all(grads.recall.weight != 0)) and bool(jnp.all(grads.recall.bias != 0))


# Training


def test_the_loss_over_segments_is_that_of_reading_them_one_by_one(assert_close):
    model = opened(remembering())
    ids, targets = tokens(18).reshape(3, 6), tokens(18, seed=1).reshape(3, 6)
    mask = jnp.ones((3, 6), bool).at[1, 0].set(False)

    memory, total = model.memory(), 0.0
    for part, wanted, real in zip(ids, targets, mask, strict=True):
        logits, memory = read(model, part, memory, real)
        total += sum(float(cross_entropy(logits[i], wanted[i])) for i in range(6) if real[i])
    loss = eqx.filter_jit(segment_loss)(model, ids, targets, mask=mask)
    assert_close(loss, (jnp.array(total / 17), memory))


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


# Conversation


def slow_reply(model, prompt, memory, count, key):
    """Every token from all of its segment, read anew."""
    limit, said, part = CONFIG.n_positions, [], []
    for i in range(prompt.size + count):
        token = prompt[i] if i < prompt.size else said[-1]
        if len(part) == limit:
            memory, part = read(model, jnp.array(part), memory, jnp.ones(limit, bool))[1], []
        part.append(int(token))
        real = jnp.arange(limit) < len(part)
        logits, after = read(model, jnp.array(part + [0] * (limit - len(part))), memory, real)
        if i >= prompt.size - 1 and len(said) < count:
            draw = jax.random.fold_in(key, len(said))
            said.append(int(Sampler()(logits[len(part) - 1], draw)))
    return said, after


def test_an_answer_goes_through_the_memory_across_segments_and_prompts(key, assert_close):
    model = opened(remembering())
    memory = slow_memory = model.memory()
    for seed in (0, 1):
        prompt = tokens(8, seed)
        # No token is -1; a stop is given so that the next test finds the program compiled.
        answer, memory = reply(model, prompt, memory, 9, key=key, stop=-1)
        said, slow_memory = slow_reply(model, prompt, slow_memory, 9, key)
        assert answer.tokens.tolist() == said and answer.length == 9 and len(set(said)) > 3
        assert_close(memory, slow_memory)
    fresh = reply(model, prompt, memory.reset(), 9, key=key, stop=-1)[0]
    again = generate(model, prompt, 9, key=key, stop=-1)
    assert again.tokens.tolist() == fresh.tokens.tolist()


def test_answers_of_a_batch_stop_each_for_itself(assert_close):
    model = opened(remembering())
    prompts = jnp.stack([tokens(8), tokens(8, seed=4)])
    keys = jax.random.split(jax.random.key(2), 2)
    ask = lambda prompt, key, stop: reply(model, prompt, model.memory(), 9, key=key, stop=stop)
    together = jax.vmap(ask, in_axes=(0, 0, None))(prompts, keys, jnp.array(5))
    for i in range(2):
        alone = ask(prompts[i], keys[i], 5)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone)
        assert alone[1].tokens == 8 + alone[0].length
    assert together[0].length[0] != together[0].length[1]
    config = dataclasses.replace(model.gpt2.config, eos_token_id=5)
    ending = eqx.tree_at(lambda m: m.gpt2, model, dataclasses.replace(model.gpt2, config=config))
    by_itself, _ = reply(ending, prompts[1], ending.memory(), 9, key=keys[1])
    assert_close(by_itself, alone[0])  # the end of the model's texts is the default


def test_the_memory_keeps_the_precision_of_the_model():
    model = remembering(gpt2=tree_cast(plain(), jnp.bfloat16))
    ask = lambda m, ids: reply(m, ids, m.memory(), 3, key=jax.random.key(0))
    memory = eqx.filter_eval_shape(ask, model, tokens(7))[1]
    for a, b in zip(jax.tree.leaves(memory), jax.tree.leaves(model.memory()), strict=True):
        assert a.dtype == b.dtype and a.dtype != jnp.float64
    assert memory.slots.key.dtype == jnp.bfloat16 and memory.slots.mass.dtype == jnp.float32


# On disk

SCRIPT = """
import sys; sys.path[:0] = ["tests", "."]
import conftest, test_memory_language as t
from eqjax.language.memory import load_memory, save_memory
model = t.opened(t.remembering())
memory = load_memory(sys.argv[1], model)
assert memory.tokens == 6 and bool(memory.slots.valid.all())
save_memory(memory.reset(), sys.argv[1], model)
"""


def test_a_conversation_is_continued_in_another_process(tmp_path):
    model, path = opened(remembering()), tmp_path / "talk" / "memory.safetensors"
    memory = read(model, tokens(6))[1]
    save_memory(memory, path, model)
    assert eqx.tree_equal(load_memory(path, model), memory)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert eqx.tree_equal(load_memory(path, model), model.memory())
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), memory)
    save_memory(batch, path, model)
    assert eqx.tree_equal(load_memory(path, model), batch)


def test_a_memory_of_another_model_or_a_damaged_one_is_refused(tmp_path, monkeypatch):
    model, path = remembering(), tmp_path / "memory"
    memory = read(model, tokens(6))[1]
    save_memory(memory, path, model)
    good = path.read_bytes()
    trained = eqx.tree_at(lambda m: m.gpt2.wte, model, model.gpt2.wte.at[0, 0].add(1e-12))
    for other in (
        trained,
        remembering(capacity=6),
        remembering(late=None),
        remembering(layers=(0,)),
    ):
        with pytest.raises(ValueError, match="another model"):
            load_memory(path, other)
    with pytest.raises(ValueError, match="not a memory of `model`: at `.slots.key`"):
        save_memory(memory, path, remembering(capacity=6))
    layer = AttentionWithMemory(16, 2, capacity=5, key=jax.random.key(0))
    with pytest.raises(ValueError, match="not a memory of `model`"):
        save_memory(memory, path, layer)
    with pytest.raises(ValueError, match="`memory` is spoilt: at `.early`"):
        save_memory(eqx.tree_at(lambda m: m.early, memory, jnp.nan * memory.early), path, model)
    assert path.read_bytes() == good
    adapted = (lora(model.gpt2, rank=1, alpha=a, key=jax.random.key(0)) for a in (1, 2))
    assert len({fingerprint(eqx.tree_at(lambda m: m.gpt2, model, gpt2)) for gpt2 in adapted}) == 2
    for place in (3, 40, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 64]) + good[place + 1 :])
        with pytest.raises(ValueError, match=str(path)):
            load_memory(path, model)
    for length in (0, 5, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            load_memory(path, model)
    safetensors.numpy.save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a memory"):
        load_memory(path, model)
    with pytest.raises(ValueError, match="cannot be read"):
        load_memory(tmp_path / "none", model)
    with pytest.raises(ValueError, match="is a folder"):
        save_memory(memory, tmp_path, model)

    def broken(tensors, file, metadata):
        file.write_bytes(good[:50])
        raise OSError("no space left on device")

    path.write_bytes(good)
    monkeypatch.setattr(safetensors.numpy, "save_file", broken)
    with pytest.raises(OSError, match="no space"):
        save_memory(memory, path, model)
    assert path.read_bytes() == good and [file.name for file in tmp_path.iterdir()] == ["memory"]


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


def test_recurrences_alone_are_a_memory_too():
    model = opened(remembering(capacity=0, late=None))
    assert model.memory().slots is None
    logits, memory = read(model, tokens(6))
    assert bool(jnp.all(read(model, tokens(6), memory)[0] != logits))
