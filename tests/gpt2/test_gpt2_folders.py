"""Folders of GPT-2: read and written as transformers do, whole or not at all, and from the hub."""

import dataclasses
import json
import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from gpt2_reference import IDS, SHAPE, TINY, run, torch_logits

from eqjax.analytic import tree_cast
from eqjax.language import (
    GPT2,
    BPETokenizer,
    GPT2Config,
    load_gpt2,
    save_gpt2,
    train_bpe,
)


def rewritten(folder, path, change, config=None):
    """A copy of a folder whose tensors went through `change`."""
    path.mkdir()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(change(tensors), path / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps(settings))
    return path


def test_names_with_and_without_prefix_and_the_masks_of_old_files(folder, tmp_path, model):
    def bare(tensors):
        tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors["lm_head.weight"] = tensors["wte.weight"]
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = np.ones((1, 1, 32, 32), bool)
            tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4)
        return tensors

    path = rewritten(folder, tmp_path / "bare", bare, {"n_ctx": 32, "summary_type": "cls_index"})
    assert eqx.tree_equal(load_gpt2(path), model)


def test_sharded_folders(theirs, tmp_path, model):
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert eqx.tree_equal(load_gpt2(tmp_path), model)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match=r"names .model-00002.* which is no file"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_what_is_saved_is_read_by_transformers_and_by_us(tied, dtype, tmp_path):
    config = GPT2Config(**SHAPE, n_inner=40, tie_word_embeddings=tied)
    ours = tree_cast(GPT2.init(config, jax.random.key(3)), dtype)
    save_gpt2(ours, tmp_path)
    save_gpt2(ours, tmp_path)  # over itself
    assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert eqx.tree_equal(load_gpt2(tmp_path), ours)
    kind = torch.float64 if dtype == jnp.float64 else torch.bfloat16
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=kind).eval()
    if dtype == jnp.float64:
        expected = torch_logits(theirs, IDS)
        assert np.allclose(run(ours, IDS), expected, rtol=0, atol=1e-13)
    bare = theirs.transformer.h[1].mlp.c_fc.weight.detach().double().numpy()
    assert np.array_equal(ours.blocks.mlp.c_fc.weight[1].astype(jnp.float64), bare)


def test_shards_are_read_by_transformers_and_by_us(model, logits, tmp_path):
    save_gpt2(model, tmp_path, max_shard_bytes=60_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    stored = {}
    for file in tmp_path.glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 60_000 or len(tensors) == 1
        stored |= dict.fromkeys(tensors, file.name)
    assert index["weight_map"] == stored and len(set(stored.values())) > 2
    count = len(set(stored.values()))
    assert set(stored.values()) == {
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
    }
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_array))
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in leaves)
    assert eqx.tree_equal(load_gpt2(tmp_path), model)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert np.allclose(logits, torch_logits(theirs, IDS), rtol=0, atol=1e-12)
    save_gpt2(model, tmp_path, max_shard_bytes=1)  # every tensor by itself
    assert len(list(tmp_path.glob("*.safetensors"))) == len(stored)
    assert eqx.tree_equal(load_gpt2(tmp_path), model)
    with pytest.raises(ValueError, match="`max_shard_bytes` must be at least 1, got 0"):
        save_gpt2(model, tmp_path, max_shard_bytes=0)


@pytest.mark.parametrize("before", [10**9, 12_000, 4_000])
@pytest.mark.parametrize("after", [10**9, 12_000])
@pytest.mark.parametrize("same", [True, False])
def test_a_save_that_is_killed_anywhere_leaves_one_model_or_none(
    before, after, same, tmp_path, monkeypatch
):
    """From few files to many and back; never are parts of two models read as one."""
    old = GPT2.init(TINY, jax.random.key(0))
    config = TINY if same else dataclasses.replace(TINY, n_head=4)  # in the same shapes
    new = GPT2.init(config, jax.random.key(1))

    class Killed(BaseException):
        pass

    def dying(function, left):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    found = []
    for kill in range(100):
        folder = tmp_path / str(kill)
        save_gpt2(old, folder, max_shard_bytes=before)
        left = [kill]
        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (Path, "rename"), (Path, "unlink")):
                patch.setattr(module, name, dying(getattr(module, name), left))
            patch.setattr(Path, "rmdir", dying(Path.rmdir, left))
            try:
                save_gpt2(new, folder, max_shard_bytes=after)
                finished = True
            except Killed:
                finished = False
        try:
            read = load_gpt2(folder)
            found.append("old" if eqx.tree_equal(read, old) else "new")
            assert found[-1] == "old" or eqx.tree_equal(read, new)
        except ValueError as error:
            found.append("none")
            (rest,) = folder.glob(".written-*")
            assert f"move the files in {rest.name}" in str(error)
            for file in rest.iterdir():
                file.replace(folder / file.name)
            assert eqx.tree_equal(load_gpt2(folder), new)
        if finished:
            break
    assert finished and found[0] == "old" and found[-1] == "new"
    assert found == sorted(found, key=("old", "none", "new").index)
    if same and before == after == 10**9:
        assert "none" not in found
    expected = tmp_path / "expected"
    save_gpt2(new, expected, max_shard_bytes=after)
    assert {f.name for f in folder.iterdir()} == {f.name for f in expected.iterdir()}


def test_ends_of_text_are_kept(folder, tmp_path):
    assert load_gpt2(folder).config.eos_token_id == 50256  # as transformers' default has it
    for number, (begin, end) in enumerate(((None, None), (3, 5), (0, (5, 7)))):
        config = dataclasses.replace(TINY, bos_token_id=begin, eos_token_id=end)
        path = tmp_path / str(number)
        save_gpt2(GPT2.init(config, jax.random.key(0)), path)
        assert load_gpt2(path).config == config
        theirs = transformers.GPT2LMHeadModel.from_pretrained(path).config
        assert theirs.bos_token_id == begin
        assert theirs.eos_token_id == (list(end) if isinstance(end, tuple) else end)
        theirs.save_pretrained(path)
        assert load_gpt2(path).config == config
    for wrong in ({"eos_token_id": True}, {"eos_token_id": [1, False]}, {"bos_token_id": True}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            GPT2Config.from_dict(wrong)


def test_a_failed_save_leaves_the_old_model_alone(model, tmp_path, monkeypatch):
    save_gpt2(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_gpt2(model, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_wrong_folders_are_refused(folder, tmp_path, monkeypatch):
    def without(tensors):
        del tensors["transformer.h.1.mlp.c_fc.weight"]
        return tensors

    def turned(tensors):
        name = "transformer.h.2.mlp.c_fc.weight"
        return tensors | {name: np.ascontiguousarray(tensors[name].T)}

    def more(tensors):
        return tensors | {"transformer.h.3.ln_1.weight": np.ones(24)}

    def headed(tensors):
        return tensors | {"lm_head.weight": np.ones((97, 24))}

    def same(tensors):
        return tensors

    for change, config, message in (
        (without, {}, r"h\.1\.mlp\.c_fc\.weight \(24, 96\) is missing"),
        (turned, {}, r"h\.2\.mlp\.c_fc\.weight has shape \(96, 24\) .* makes it \(24, 96\)"),
        (more, {}, r"no place: h\.3\.ln_1\.weight"),
        (headed, {}, "differs from wte.weight"),
        (same, {"vocab_size": 96}, r"wte\.weight has shape \(97, 24\)"),
        (same, {"n_layer": 2}, r"no place: h\.2\."),
        (same, {"tie_word_embeddings": False}, r"lm_head\.weight \(97, 24\) is missing"),
        (same, {"model_type": "llama"}, "asks for model_type='llama'"),
        (same, {"add_cross_attention": True}, "add_cross_attention=True"),
        (same, {"activation_function": "mish"}, "'mish'. is not known"),
        (same, {"n_head": 5}, "multiple of `n_head`"),
        (same, {"n_layer": 0}, "`n_layer` must be at least 1"),
        (same, {"attn_pdrop": 1.5}, r"`attn_pdrop` must lie in \[0, 1\)"),
    ):
        path = rewritten(folder, tmp_path / str(abs(hash(message))), change, config)
        with pytest.raises(ValueError, match=message):
            load_gpt2(path)

    path = rewritten(folder, tmp_path / "odd", same, {"rope_theta": 1e4})
    with pytest.warns(UserWarning, match="rope_theta"):
        load_gpt2(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_gpt2(path)
    weights.rename(path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="neither model.safetensors .* Convert pytorch_model.bin"):
        load_gpt2(path)
    (path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="JSON list, not an object"):
        load_gpt2(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load_gpt2(path)
    with pytest.raises(ValueError, match="no config.json"):
        load_gpt2(tmp_path)
    for name in (path / "config.json", tmp_path / "nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(ValueError, match="is not a folder"):
            load_gpt2(name)


def test_a_name_is_fetched_from_the_hub(folder, model, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(name, *, allow_patterns):
        asked.append(name)
        assert {"vocab.json", "added_tokens.json", "tokenizer_config.json"} < set(allow_patterns)
        if name != "somebody/gpt2":
            raise OSError("no route to host")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert eqx.tree_equal(load_gpt2("somebody/gpt2"), model)
    with pytest.raises(ConnectionError, match="gpt3 is no local folder.*no route to host"):
        load_gpt2("gpt3")
    assert asked == ["somebody/gpt2", "gpt3"]
    train_bpe(["the cat"], 257).save(folder)  # a tokenizer comes by its name, too
    assert BPETokenizer.load("somebody/gpt2") == BPETokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
