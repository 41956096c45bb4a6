"""GPT-2 against transformers, LoRA against peft, tokens and text."""

import dataclasses
import functools
import json
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regex
import safetensors.numpy
from hypothesis import Phase, given, settings, strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import only: they are not ours
    import peft
    import torch
    import transformers

from eqjax.analytic import causal_mask, cross_entropy, gelu, tree_cast
from eqjax.fields import trainable
from eqjax.language import (
    GPT2,
    BPETokenizer,
    DotProduct,
    GPT2Config,
    Heads,
    Sampler,
    adapters,
    autoregress,
    generate,
    load_adapters,
    load_gpt2,
    lora,
    merge,
    quantise,
    save_adapters,
    save_gpt2,
    train_bpe,
)
from eqjax.language._attend import DroppedOut
from eqjax.language._quantise import NF4

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)

SHAPE = {"vocab_size": 97, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 4}
TINY = GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=2, n_head=2)
IDS = np.array([(7 * i * i + 3 * i + 1) % 97 for i in range(24)])
# Of the model below, by transformers 5.23 in float64.
LOSS, NORM = 6.262245958702592, 106.205931950075
LAST = (1.29287237149036, 0.331298474952591, -1.8595533631487, 2.84943920885808)


def reference():
    """The reference model in torch: every parameter a sine."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE)).double().eval()
    with torch.no_grad():
        for k, (name, parameter) in enumerate(sorted(model.named_parameters())):
            wave = torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + k)
            values = 1 + 0.1 * wave if re.search(r"ln_.*weight", name) else 0.2 * wave
            parameter.copy_(values.reshape(parameter.shape))
    return model


@eqx.filter_jit
def run(model, ids, **options):
    return model(jnp.asarray(ids), **options)


@pytest.fixture(scope="module")
def theirs():
    return reference()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_gpt2(folder)


@pytest.fixture(scope="module")
def logits(model):
    return run(model, IDS)


def torch_logits(model, ids, **options):
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids))[None], **options).logits[0].numpy()


def rewritten(folder, path, change, config=None):
    """A copy of a folder whose tensors went through `change`."""
    path.mkdir()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(change(tensors), path / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps(settings))
    return path


# --- parity


def test_the_reference_case(logits):
    assert jnp.allclose(logits[-1, :4], jnp.array(LAST), rtol=0, atol=1e-12)
    assert abs(jnp.linalg.norm(logits) - NORM) < 1e-11
    assert abs(cross_entropy(logits[:-1], jnp.asarray(IDS[1:])) - LOSS) < 1e-12


def test_the_reference_case_in_float32_and_bfloat16(folder, logits):
    single = run(load_gpt2(folder, dtype=jnp.float32), IDS)
    assert single.dtype == jnp.float32
    assert jnp.max(jnp.abs(single - logits.astype(jnp.float32))) < 1e-5
    half = load_gpt2(folder, dtype=jnp.bfloat16)
    assert half.wte.dtype == jnp.bfloat16

    def loss(half):
        return cross_entropy(half(jnp.asarray(IDS))[:-1], jnp.asarray(IDS[1:]))

    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(loss))(half)
    assert value.dtype == jnp.float32 and abs(value - LOSS) < 0.05
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@settings(max_examples=3, phases=[Phase.generate])
@given(
    heads=st.sampled_from([1, 3]),
    width=st.sampled_from([4, 6]),
    layers=st.integers(1, 3),
    inner=st.sampled_from([None, 10]),
    activation=st.sampled_from(["gelu_new", "gelu", "relu", "silu", "tanh"]),
    scaled=st.booleans(),
    by_layer=st.booleans(),
    tied=st.booleans(),
    padding=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_random_models_agree_with_transformers(
    tmp_path_factory,
    heads,
    width,
    layers,
    inner,
    activation,
    scaled,
    by_layer,
    tied,
    padding,
    seed,
):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=13,
        n_positions=12,
        n_embd=heads * width,
        n_layer=layers,
        n_head=heads,
        n_inner=inner,
        activation_function=activation,
        scale_attn_weights=scaled,
        scale_attn_by_inverse_layer_idx=by_layer,
        tie_word_embeddings=tied,
        initializer_range=0.4,
    )
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("random")
    theirs.save_pretrained(path)
    ours = load_gpt2(path)
    ids = np.random.default_rng(seed).integers(0, 13, 9)
    mask = np.arange(9) >= padding
    full = run(ours, ids, mask=jnp.ones(9, bool))
    assert np.allclose(full, torch_logits(theirs, ids), rtol=0, atol=1e-12)
    padded = run(ours, ids, mask=jnp.asarray(mask))
    options = {
        "attention_mask": torch.tensor(mask)[None].long(),
        "position_ids": torch.tensor(np.maximum(mask.cumsum() - 1, 0))[None],
    }
    expected = torch_logits(theirs, ids, **options)
    assert np.allclose(padded[padding:], expected[padding:], rtol=0, atol=1e-12)
    assert jnp.isfinite(padded).all()


def test_gelu_new():
    x = np.linspace(-6, 6, 101)
    theirs = transformers.activations.NewGELUActivation()(torch.tensor(x)).numpy()
    assert np.allclose(gelu(jnp.asarray(x)), theirs, rtol=0, atol=1e-15)
    assert (
        np.abs(gelu(jnp.asarray(x)) - jax.nn.gelu(jnp.asarray(x), approximate=False)).max() > 1e-4
    )


def test_hidden_states(model, theirs):
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)[None], output_hidden_states=True).hidden_states
    ours = model.hidden(jnp.asarray(IDS))
    assert np.allclose(ours[:-1], torch.cat(expected[:-1]).numpy(), rtol=0, atol=1e-13)
    assert np.allclose(model.ln_f(ours[-1]), expected[-1][0].numpy(), rtol=0, atol=1e-13)


def test_gradients_are_those_of_torch_and_of_finite_differences(model, theirs):
    ids = jnp.asarray(IDS)
    loss = eqx.filter_jit(lambda model: cross_entropy(model(ids)[:-1], ids[1:]))
    grads = eqx.filter_jit(eqx.filter_grad(loss))(model)
    theirs.zero_grad()
    answers = theirs(torch.tensor(IDS)[None]).logits[0, :-1]
    torch.nn.functional.cross_entropy(answers, torch.tensor(IDS[1:])).backward()
    blocks = theirs.transformer.h
    for ours, parameter in (
        (grads.wte, theirs.transformer.wte.weight),
        (grads.blocks.attn.c_attn.weight[0], blocks[0].attn.c_attn.weight),
        (grads.blocks.mlp.c_fc.bias[2], blocks[2].mlp.c_fc.bias),
    ):
        assert np.allclose(ours, parameter.grad.numpy(), rtol=0, atol=1e-13)
    direction = jax.tree.map(lambda leaf: jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), grads)
    ahead, behind = (
        loss(eqx.apply_updates(model, jax.tree.map(lambda d: e * d, direction)))
        for e in (1e-6, -1e-6)
    )
    slope = sum(
        jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (grads, direction)), strict=True)
    )
    assert abs((ahead - behind) / 2e-6 - slope) < 1e-6 * abs(slope)


# --- folders


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
    with pytest.raises(ValueError, match=r"model-00002.* cannot be read as safetensors"):
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
        (same, {"n_layer": 0}, "`n_layer` must be an integer of at least 1"),
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


# --- the model itself


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


def test_dropout_needs_a_key(model, logits):
    one, two = run(model, IDS, key=jax.random.key(0)), run(model, IDS, key=jax.random.key(1))
    assert jnp.array_equal(one, run(model, IDS, key=jax.random.key(0)))
    assert jnp.max(jnp.abs(one - two)) > 1e-2
    none = dataclasses.replace(model.config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    still = dataclasses.replace(model, config=none)
    assert jnp.allclose(run(still, IDS, key=jax.random.key(0)), logits, rtol=0, atol=1e-13)


def test_initial_weights_are_those_of_gpt2():
    config = GPT2Config(vocab_size=50, n_positions=40, n_embd=64, n_layer=4, n_head=2)
    model = GPT2.init(config, jax.random.key(0))
    residual = 0.02 / 8**0.5
    for weight, std in (
        (model.wte, 0.02),
        (model.wpe, 0.02),
        (model.blocks.attn.c_attn.weight, 0.02),
        (model.blocks.attn.c_proj.weight, residual),
        (model.blocks.mlp.c_proj.weight, residual),
    ):
        assert jnp.allclose(jnp.std(weight), std, rtol=0.05)
    size = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert (
        size
        == transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**config.to_dict())
        ).num_parameters()
    )


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
    pairs = [jax.tree.leaves(p(model, tokens, jax.random.key(1))) for p in (whole, less)]
    for a, b in zip(*pairs, strict=True):
        assert jnp.max(jnp.abs(a - b)) <= 1e-12 * jnp.max(jnp.abs(a))
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

    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
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


# --- generation


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
    traces = []

    class Counting(eqx.Module):
        def __call__(self, heads, extra):
            traces.append(1)
            return DotProduct()(heads)

    @eqx.filter_jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def write(model, prompt, sampler, key):
        def read(token, cache):
            logits, cache = model.extend(token[None], cache)
            return logits[-1], cache

        logits, cache = model.extend(prompt, model.cache(), attend=Counting())
        return autoregress(read, logits[-1], cache, 3, sampler=sampler, key=key)[0].tokens

    for i, warmth in enumerate((0.5, 1.0, 2.0)):
        prompt = jnp.array([i, 1])
        write(model, prompt, Sampler(warmth, top_k=i + 1, top_p=0.9), jax.random.key(i))
    assert len(traces) <= 2  # a scan may trace its body twice


# --- LoRA


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("rs", "loss"), [(False, 6.244503), (True, 6.136487)])
def test_lora_is_that_of_peft(rs, loss, model, logits, tmp_path):
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_rslora=rs
    )
    theirs = peft.get_peft_model(reference(), settings).double().eval()
    named = sorted((n, p) for n, p in theirs.named_parameters() if "lora_" in n)
    with torch.no_grad():
        for k, (_, p) in enumerate(named):
            i = torch.arange(p.numel(), dtype=torch.float64)
            p.copy_(0.05 * torch.cos(0.53 * i + k).reshape(p.shape))
    assert sum(p.numel() for _, p in named) == 3168
    theirs.save_pretrained(tmp_path / "theirs")

    ids = jnp.asarray(IDS)
    ours = load_adapters(model, tmp_path / "theirs")
    found = run(ours, IDS)
    assert abs(cross_entropy(found[:-1], ids[1:]) - loss) < 1e-6
    assert np.allclose(found, torch_logits(theirs, IDS), rtol=0, atol=1e-13)
    if not rs:
        expected = jnp.array([1.450211470791, 0.124448531532, -1.663078787097, 2.720222384664])
        assert jnp.allclose(found[-1, :4], expected, rtol=0, atol=1e-10)
    assert jnp.max(jnp.abs(found - logits)) > 0.1
    merged = merge(ours)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    assert jnp.linalg.norm(run(merged, IDS) - found) <= 1e-14 * jnp.linalg.norm(found)

    save_adapters(ours, tmp_path / "ours")
    assert eqx.tree_equal(load_adapters(model, tmp_path / "ours"), ours, rtol=1e-15)
    back = peft.PeftModel.from_pretrained(reference(), tmp_path / "ours").double().eval()
    assert np.allclose(torch_logits(back, IDS), found, rtol=0, atol=1e-13)


def test_only_adapters_train_and_they_start_at_nothing(model, logits):
    ids = jnp.asarray(IDS)
    adapted = lora(model, rank=2, alpha=4, key=jax.random.key(0))
    assert jnp.array_equal(run(adapted, IDS), logits)
    assert not trainable(adapted).blocks.attn.c_attn.base.weight
    adapted = lora(quantise(model), rank=2, alpha=4, key=jax.random.key(0))  # QLoRA
    marks = adapters(adapted)
    assert jax.tree.structure(marks) == jax.tree.structure(trainable(adapted))
    trained, fixed = eqx.partition(adapted, marks)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 3168 // 2

    @eqx.filter_jit
    def step(trained):
        def loss(trained):
            return cross_entropy(eqx.combine(trained, fixed)(ids)[:-1], ids[1:])

        value, grads = eqx.filter_value_and_grad(loss)(trained)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, trained, grads)

    first, trained = step(trained)
    for _ in range(5):
        last, trained = step(trained)
    assert last < first - 1e-3


def test_lora_refuses(model, tmp_path):
    with pytest.raises(ValueError, match="no linear map q_proj.*c_attn, c_fc, c_proj"):
        lora(model, rank=2, alpha=2, targets=("q_proj",), key=jax.random.key(0))
    with pytest.raises(ValueError, match="`rank` must be at least 1"):
        lora(model, rank=0, alpha=2, key=jax.random.key(0))
    adapted = lora(model, rank=2, alpha=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="adapters on c_attn already"):
        lora(adapted, rank=2, alpha=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="is not a plain GPT-2"):
        save_gpt2(adapted, tmp_path)
    with pytest.raises(ValueError, match="has no adapters"):
        save_adapters(model, tmp_path)
    save_adapters(adapted, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    other = GPT2.init(TINY, jax.random.key(0))
    with pytest.raises(ValueError, match=r"attn\.c_attn\.lora_A\.weight has shape \(2, 24\)"):
        load_adapters(other, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    deeper = safetensors.numpy.load_file(weights)
    more = {name.replace("h.0.", "h.9."): tensor for name, tensor in deeper.items()}
    safetensors.numpy.save_file(deeper | more, weights)
    with pytest.raises(ValueError, match=r"no place, such as base_model.*h\.9\."):
        load_adapters(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora=True, which is more than plain LoRA"):
        load_adapters(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match="has no r: it is not the file of a LoRA"):
        load_adapters(model, tmp_path)


def test_four_bit_weights(model, logits):
    levels = [-1, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0]
    levels += [
        0.07958030,
        0.16093020,
        0.24611230,
        0.33791524,
        0.44070983,
        0.56261700,
        0.72295684,
        1,
    ]
    assert np.allclose(NF4, levels, rtol=0, atol=3e-7)
    small = quantise(model)
    weight, after = model.blocks.mlp.c_fc.weight, merge(small).blocks.mlp.c_fc.weight
    blocks = np.abs(np.asarray(weight).reshape(3, -1, 64)).max(axis=-1, keepdims=True)
    gap = 0.5 * np.diff(NF4).max()
    error = np.abs(np.asarray(after - weight)).reshape(3, -1, 64)
    assert (error <= gap * blocks + 1e-12).all() and error.max() > 0
    assert jnp.allclose(
        merge(quantise(merge(small))).blocks.mlp.c_fc.weight, after, rtol=0, atol=1e-15
    )
    assert small.blocks.mlp.c_fc.codes.nbytes * 16 == weight.nbytes
    found = run(small, IDS)
    assert jnp.allclose(found, run(merge(small), IDS), rtol=0, atol=1e-12)
    assert 0 < jnp.linalg.norm(found - logits) / jnp.linalg.norm(logits) < 0.5
    adapted = lora(small, rank=2, alpha=2, key=jax.random.key(0))
    marks = trainable(adapted)
    assert not marks.blocks.mlp.c_proj.base.largest and marks.blocks.mlp.c_proj.a
    other = quantise(lora(model, rank=2, alpha=2, key=jax.random.key(0)))
    assert eqx.tree_equal(other, adapted)


# --- tokenizer

HUGS = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}


def test_the_textbook_corpus():
    tokenizer = train_bpe([word for word, n in HUGS.items() for _ in range(n)], 260)
    pairs = Counter()
    for word, n in HUGS.items():
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += n
    assert pairs.most_common(1) == [(("u", "g"), 20)]
    assert tokenizer.merges == [("u", "g"), ("u", "n"), ("h", "ug")]
    assert tokenizer.size == 260 and tokenizer.end == 0
    assert len(tokenizer.encode("hugs")) == 2 and len(tokenizer.encode("bug")) == 2


@given(text=st.text(max_size=30))
def test_every_text_comes_back(text):
    tokenizer = train_bpe(["the cat sat on the mat, the cat sat"], 270)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and tokenizer.decode(ids) == text


def byte_pairs(text, merges):
    """Byte-pair encoding from its definition: split into words, then apply the merges in their order."""
    words = regex.findall(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text
    )
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
    pieces = []
    for word in words:
        parts = [letters[byte] for byte in word.encode()]
        for pair in merges:
            joined, i = [], 0
            while i < len(parts):
                step = 2 if tuple(parts[i : i + 2]) == pair else 1
                joined.append("".join(parts[i : i + step]))
                i += step
            parts = joined
        pieces += parts
    return pieces


def test_tokens_are_those_of_the_definition():
    text = (
        "It's what they've said: we'll settle, DON'T we?  naïve café\n\n\tdef f(x):  # 12 345\r\n"
        "Ελληνικά Русский 日本語の文章 한국어 ½ ℝ²\u2028 e\u0301 👩‍👩‍👧 🏳️‍🌈 🇩🇪 😀😀 \x00\ufeff end "
    )
    tokenizer = train_bpe([text * 3, "settle settles settled " * 9], 420)
    vocabulary = json.loads(tokenizer.text)["model"]["vocab"]
    assert len(tokenizer.merges) > 100
    for sample in (text, text[::-1], text.upper(), text.replace(" ", "  ")):
        expected = [vocabulary[piece] for piece in byte_pairs(sample, tokenizer.merges)]
        assert tokenizer.encode(sample).tolist() == expected


def test_tokenizers_from_files(tmp_path):
    tokenizer = train_bpe(["the cat sat on the mat, the cat sat"], 270)
    text = "the hat sat<|endoftext|> on ÄÖ"
    ids = tokenizer.encode(text)
    assert tokenizer.end in ids and tokenizer.decode(ids) == text
    assert BPETokenizer(tokenizer.text) == tokenizer
    tokenizer.save(tmp_path)
    assert BPETokenizer.load(tmp_path) == tokenizer
    assert BPETokenizer.load(tmp_path / "tokenizer.json") == tokenizer

    old = tmp_path / "old"
    old.mkdir()
    model = json.loads(tokenizer.text)["model"]
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in tokenizer.merges)
    (old / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    assert np.array_equal(BPETokenizer.load(old).encode(text), ids)
    theirs = transformers.GPT2Tokenizer.from_pretrained(old)
    assert theirs.encode(text) == ids.tolist()

    (old / "merges.txt").write_text("#version: 0.2\nqq zz\n")
    with pytest.raises(ValueError, match="make no tokenizer"):
        BPETokenizer.load(old)
    (old / "merges.txt").unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        BPETokenizer.load(old)
    cutting = json.loads(tokenizer.text) | {
        "truncation": {
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        }
    }
    assert np.array_equal(BPETokenizer(json.dumps(cutting)).encode(text), ids)
    with pytest.raises(ValueError, match="not the contents of a tokenizer.json"):
        BPETokenizer("{}")
    (old / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        BPETokenizer.load(old)


def test_tokenizers_that_do_not_fit(model):
    tokenizer = train_bpe(["the cat"], 257)
    with pytest.raises(ValueError, match="has 257 tokens, but the model's vocab_size is 97"):
        tokenizer.check(model)
    with pytest.raises(ValueError, match=r"\[-1, 257\] are not in the vocabulary of 257"):
        tokenizer.decode([5, 257, -1])
    with pytest.raises(ValueError, match="`size` must be at least 257"):
        train_bpe(["the cat"], 256)
    with pytest.raises(ValueError, match="got one text"):
        train_bpe("the cat", 300)
    large = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_size=257))
    tokenizer.check(large)
