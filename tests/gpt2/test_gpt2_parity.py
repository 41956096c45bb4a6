"""GPT-2 against transformers: logits, hidden states, gradients, initial weights."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from gpt2_reference import IDS, run, torch_logits
from hypothesis import Phase, given, settings, strategies as st

from eqjax.analytic import cross_entropy, gelu
from eqjax.language import (
    GPT2,
    GPT2Config,
    load_gpt2,
)

# Of the model below, by transformers 5.23 in float64.
LOSS, NORM = 6.262245958702592, 106.205931950075
LAST = (1.29287237149036, 0.331298474952591, -1.8595533631487, 2.84943920885808)


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
    chex.assert_tree_all_finite(grads)


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
    assert np.allclose(gelu(jnp.asarray(x)), theirs, rtol=0, atol=4e-15)
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
