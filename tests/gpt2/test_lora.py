"""Low-rank adapters against peft, and weights of four bits."""

import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from gpt2_reference import IDS, TINY, reference, run, torch_logits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # at import only: they are not ours
    import peft

from eqjax.analytic import cross_entropy
from eqjax.fields import trainable
from eqjax.language import (
    GPT2,
    adapters,
    load_adapters,
    lora,
    merge,
    quantise,
    save_adapters,
    save_gpt2,
)
from eqjax.language._lora import NF4


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
