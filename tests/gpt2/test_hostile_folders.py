"""Folders that lie, by mistake or on purpose: one clear line each, before anything is built of what they say."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from eqjax.language import load_adapters, load_gpt2


@pytest.fixture
def made(folder, tmp_path):
    """A folder with the reference's weights, changed by `change`, and its settings, replaced by `config`."""

    def make(change=lambda tensors: tensors, **config):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        safetensors.numpy.save_file(change(tensors), tmp_path / "model.safetensors")
        settings = json.loads((folder / "config.json").read_text()) | config
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_norm_epsilon", None),
        ("layer_norm_epsilon", -1),
        ("layer_norm_epsilon", "x"),
        ("layer_norm_epsilon", float("nan")),
        ("initializer_range", float("inf")),
        ("tie_word_embeddings", "false"),
        ("resid_pdrop", "0.1"),
        ("n_layer", 10**9),
        ("n_layer", True),
    ],
)
def test_settings_that_cannot_be_are_named(made, name, value):
    with pytest.raises(ValueError, match=name):
        load_gpt2(made(**{name: value}))


def changed(name, change):
    return lambda tensors: tensors | {name: change(tensors[name])}


HEAD = "transformer.ln_f.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(HEAD, lambda a: a.astype(np.int32)), "ln_f.weight is of int32"),
        (changed(HEAD, lambda a: a > 0), "ln_f.weight is of bool"),
        (changed(HEAD, lambda a: a * np.nan), "ln_f.weight holds numbers that are not finite"),
        (lambda tensors: tensors | {"ln_f.weight": tensors[HEAD]}, "a tensor twice"),
    ],
)
def test_tensors_that_cannot_be_are_named(made, change, message):
    with pytest.raises(ValueError, match=message):
        load_gpt2(made(change))


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/hostname", "pipe", "."])
def test_an_index_stays_in_its_folder(made, shard):
    folder = made()
    (folder.parent / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "pipe")
    index = {"weight_map": {HEAD: shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="which is no file of that folder"):
        load_gpt2(folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": null}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map_is_named(made, text):
    folder = made()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="no weight_map"):
        load_gpt2(folder)


def test_a_deep_json_is_named(made):
    folder = made()
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json cannot be read as JSON"):
        load_gpt2(folder)


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_4", "olora", "loftq"])
def test_adapters_that_change_the_base_are_refused(model, tmp_path, kind):
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_attn"]}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(settings | {"init_lora_weights": kind})
    )
    with pytest.raises(ValueError, match="init_lora_weights"):
        load_adapters(model, tmp_path)
