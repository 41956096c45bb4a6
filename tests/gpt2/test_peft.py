"""Every spelling that peft has for plain LoRA, against peft; and what is more than that is refused."""

import json
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from gpt2_reference import IDS, reference, run, torch_logits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import only: they are not ours
    import peft

from eqjax.language import load_adapters, lora, merge, quantise, save_adapters

SPELLINGS = {
    "all-linear": {"target_modules": "all-linear"},
    "peft's own choice": {},
    "a suffix with its parent": {"target_modules": ["attn.c_proj", "c_fc"]},
    "whole names": {
        "target_modules": ["transformer.h.0.attn.c_attn", "transformer.h.2.mlp.c_proj"]
    },
    "a regular expression": {"target_modules": r".*h\.[02]\..*(c_attn|mlp\.c_proj)"},
    "excluded names": {"target_modules": "all-linear", "exclude_modules": ["mlp.c_proj", "c_attn"]},
    "an excluded expression": {"target_modules": ["c_proj"], "exclude_modules": r".*h\.1\..*"},
    "one layer": {"target_modules": ["c_attn"], "layers_to_transform": 1},
    "some layers": {
        "target_modules": ["c_fc"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "h",
    },
    "ranks": {
        "target_modules": ["c_attn", "c_proj"],
        "rank_pattern": {"mlp.c_proj": 2, "c_attn": 5},
    },
    "ranks by layer": {
        "target_modules": ["c_attn"],
        "rank_pattern": {r"h\.1\.attn\.c_attn": 2},
        "alpha_pattern": {r"h\.2\.attn\.c_attn": 3},
        "use_rslora": True,
    },
    "alphas": {"target_modules": "all-linear", "alpha_pattern": {"c_fc": 32, "attn.c_proj": 1}},
    "another start": {"target_modules": ["c_attn"], "init_lora_weights": "gaussian"},
    "an orthogonal start": {"target_modules": ["c_attn"], "init_lora_weights": "orthogonal"},
}


@pytest.mark.filterwarnings("ignore")  # of peft: fan_in_fan_out, is_gradient_checkpointing
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_means_what_peft_means(spelling, model, logits, tmp_path):
    settings = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True} | SPELLINGS[spelling]
    theirs = peft.get_peft_model(reference(), peft.LoraConfig(**settings)).double().eval()
    with torch.no_grad():
        for k, (name, p) in enumerate(sorted(theirs.named_parameters())):
            if "lora_" in name:
                i = torch.arange(p.numel(), dtype=torch.float64)
                p.copy_(0.05 * torch.cos(0.53 * i + k).reshape(p.shape))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = torch_logits(theirs, IDS)
    ours = load_adapters(model, tmp_path / "theirs")
    found = run(merge(ours), IDS)
    assert np.allclose(found, expected, rtol=0, atol=1e-12)
    assert np.max(np.abs(found - logits)) > 1e-3
    if spelling in ("whole names", "ranks", "alphas"):
        save_adapters(ours, tmp_path / "ours")
        back = peft.PeftModel.from_pretrained(reference(), tmp_path / "ours").double().eval()
        assert np.allclose(torch_logits(back, IDS), expected, rtol=0, atol=1e-12)


REFUSED = {
    "use_dora": True,
    "bias": "lora_only",
    "use_rslora": "no",
    "layers_pattern": 5,
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [3],
    "layer_replication": [[0, 2], [1, 3]],
    "target_parameters": ["c_attn.weight"],
    "megatron_config": {"hidden_size": 24},
    "alora_invocation_tokens": [5],
    "use_qalora": True,
    "velora_config": {"scale": 1.0},
    "kasa_config": {"beta": 1.0},
    "ensure_weight_tying": True,
    "invented_tomorrow": {"a": 1},
    "peft_type": "LOHA",
    "r": 2.5,
    "lora_alpha": -1,
    "rank_pattern": {"c_attn": 0},
    "alpha_pattern": [1],
    "target_modules": [3],
    "layers_to_transform": ["one"],
} | {
    f"init_lora_weights={kind}": kind
    for kind in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "mica", 1)
}


def test_what_is_more_than_lora_is_refused_by_name(model, tmp_path):
    save_adapters(lora(model, rank=2, alpha=4, key=jax.random.key(0)), tmp_path)
    plain = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(plain) <= {*peft.LoraConfig().to_dict()}
    for case, value in REFUSED.items():
        name = case.partition("=")[0]
        (tmp_path / "adapter_config.json").write_text(json.dumps(plain | {name: value}))
        with pytest.raises(ValueError, match=name):
            load_adapters(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(plain | {"r": 10**12}))
    with pytest.raises(ValueError, match="the model needs"):
        load_adapters(model, tmp_path)
    # Every setting of peft's is known here, so that none of its defaults is refused.
    every = peft.LoraConfig().to_dict() | plain
    (tmp_path / "adapter_config.json").write_text(json.dumps(every, default=str))
    load_adapters(model, tmp_path)


def test_a_file_that_does_not_fit_its_settings_is_refused(model, tmp_path):
    adapted = lora(model, rank=2, alpha=4, targets=("c_attn",), key=jax.random.key(0))
    save_adapters(adapted, tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    eighth = {
        k: v.astype(ml_dtypes.float8_e4m3fn)
        for k, v in safetensors.numpy.load_file(weights).items()
    }
    safetensors.numpy.save_file(eighth, weights)
    with pytest.raises(ValueError, match=r"tensor .*lora_A.* cannot be read"):
        load_adapters(model, tmp_path)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(
        ValueError, match=r"has no adapter_model\.safetensors.*peft's save_pretrained"
    ):
        load_adapters(model, tmp_path)
    save_adapters(adapted, tmp_path)
    plain = json.loads(config.read_text())
    for change, message in (
        ({"target_modules": ["q_proj"]}, "name no linear map.*c_attn, c_fc, c_proj"),
        ({"target_modules": "all-linear"}, r"attn\.c_proj\.lora_A\.weight is missing"),
        ({"exclude_modules": ["h.1.attn.c_attn"]}, r"no place, such as .*h\.1\.attn"),
        ({"rank_pattern": {"c_attn": 3}}, r"has shape \(2, 24\).*needs \(3, 24\)"),
        ({"target_modules": "*("}, "no regular expression"),
    ):
        config.write_text(json.dumps(plain | change))
        with pytest.raises(ValueError, match=message):
            load_adapters(model, tmp_path)
    config.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="has adapters on blocks.attn.c_attn already"):
        load_adapters(adapted, tmp_path)
    tensors = safetensors.numpy.load_file(weights)
    name = min(tensors)
    safetensors.numpy.save_file(tensors | {name: tensors[name] * np.nan}, weights)
    with pytest.raises(ValueError, match="no finite"):
        load_adapters(model, tmp_path)


def test_layers_without_an_adapter_never_get_one(model, tmp_path):
    """Their adapters are zeros, whose gradients are zeros; and four-bit weights take adapters, too."""
    save_adapters(
        lora(model, rank=2, alpha=4, targets=("c_attn",), key=jax.random.key(0)), tmp_path
    )
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    plain = json.loads(config.read_text())
    config.write_text(
        json.dumps(plain | {"layers_to_transform": [1], "target_modules": ["c_attn"]})
    )
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({k: t for k, t in tensors.items() if ".h.1." in k}, weights)
    ours = load_adapters(quantise(model), tmp_path)
    node = ours.blocks.attn.c_attn
    assert jnp.any(node.a[1]) and not jnp.any(node.a[jnp.array([0, 2])])
    x = jnp.ones((1, 24))
    grads = jax.grad(lambda ab: jnp.sum(jnp.sin(x @ ab[0] @ ab[1])))((node.a[0], node.b[0]))
    assert not any(map(jnp.any, grads))
