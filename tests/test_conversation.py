"""Conversations through the memory of GPT-2, and a memory's file."""

import dataclasses
import subprocess
import sys

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from memory_models import CLOSE, CONFIG, opened, plain, read, remembering, tokens

from eqjax.analytic import tree_cast
from eqjax.language import Sampler, generate, lora
from eqjax.memory import AttentionWithMemory, load_memory, reply, save_memory
from eqjax.memory._memory import fingerprint


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


def test_an_answer_goes_through_the_memory_across_segments_and_prompts(key):
    model = opened(remembering())
    memory = slow_memory = model.memory()
    for seed in (0, 1):
        prompt = tokens(8, seed)
        # No token is -1; a stop is given so that the next test finds the program compiled.
        answer, memory = reply(model, prompt, memory, 9, key=key, stop=-1)
        said, slow_memory = slow_reply(model, prompt, slow_memory, 9, key)
        assert answer.tokens.tolist() == said and answer.length == 9 and len(set(said)) > 3
        chex.assert_tree_all_finite(memory)
        chex.assert_trees_all_close(memory, slow_memory, **CLOSE)
    fresh = reply(model, prompt, memory.reset(), 9, key=key, stop=-1)[0]
    again = generate(model, prompt, 9, key=key, stop=-1)
    assert again.tokens.tolist() == fresh.tokens.tolist()


def test_answers_of_a_batch_stop_each_for_itself():
    model = opened(remembering())
    prompts = jnp.stack([tokens(8), tokens(8, seed=4)])
    keys = jax.random.split(jax.random.key(2), 2)
    ask = lambda prompt, key, stop: reply(model, prompt, model.memory(), 9, key=key, stop=stop)
    together = jax.vmap(ask, in_axes=(0, 0, None))(prompts, keys, jnp.array(5))
    for i in range(2):
        alone = ask(prompts[i], keys[i], 5)
        chex.assert_tree_all_finite(alone)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, **CLOSE
        )
        assert alone[1].tokens == 8 + alone[0].length
    assert together[0].length[0] != together[0].length[1]
    config = dataclasses.replace(model.gpt2.config, eos_token_id=5)
    ending = eqx.tree_at(lambda m: m.gpt2, model, dataclasses.replace(model.gpt2, config=config))
    by_itself, _ = reply(ending, prompts[1], ending.memory(), 9, key=keys[1])
    chex.assert_trees_all_close(
        by_itself, alone[0], **CLOSE
    )  # the end of the model's texts is the default


def test_the_memory_keeps_the_precision_of_the_model():
    model = remembering(gpt2=tree_cast(plain(), jnp.bfloat16))
    ask = lambda m, ids: reply(m, ids, m.memory(), 3, key=jax.random.key(0))
    memory = eqx.filter_eval_shape(ask, model, tokens(7))[1]
    chex.assert_trees_all_equal_dtypes(memory, model.memory())
    assert not any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(memory))
    assert memory.slots.key.dtype == jnp.bfloat16 and memory.slots.mass.dtype == jnp.float32


# On disk


SCRIPT = """
import sys; sys.path[:0] = ["tests", "."]
import conftest, memory_models as t
from eqjax.memory import load_memory, save_memory
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
