"""Runs of a GPT-2: `Backprop`, training with and without memory, going on, generation and chat from the command line."""

import dataclasses
import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import eqjax as ej
from eqjax.cli import main
from eqjax.language import (
    GPT2,
    GPT2Config,
    generate,
    load_gpt2,
    save_gpt2,
    train_bpe,
)
from eqjax.memory import MemoryGPT2, load_memory, reply
from eqjax.recipes import GPT2Settings, TrainConfig, open_run
from eqjax.recipes._gpt2 import gpt2_optimiser
from eqjax.training import (
    CheckpointError,
    Run,
    TrainState,
    make_step,
    read_metrics,
)

SMALL = {"layers": 1, "heads": 2, "width": 8, "length": 8, "batch": 3, "warmup": 1}
RARE = {"steps": 4, "evaluate_every": 4, "evaluate_windows": 8, "save_every": 2, "log_every": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = "settle and answer then settle once more ".split()
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("text") / "plain text.txt"
    path.write_text("\n".join(" ".join(rng.permutation(words)) for _ in range(60)))
    return path


def settings(text, out, **others):
    # A pretrained model has sizes of its own, and a setting without effect is refused.
    own = "layers heads width tokens vocabulary".split() if "start" in others else ()
    small = {name: value for name, value in SMALL.items() if name not in own}
    return GPT2Settings(text=text, out=out, **small, **(RARE | others))


def test_backprop_is_the_gradient_of_the_mean(assert_close):
    model = eqx.nn.MLP(2, "scalar", 6, 1, key=jax.random.key(0))
    batch = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], float), jnp.array([0.0, 1, 1, 0])
    loss = lambda output, target: (output - target) ** 2
    subset = jnp.array([True, True, False, True])
    for taken in (jnp.ones(4, bool), subset):
        estimate = ej.Backprop()(model, loss, batch, subset=taken)
        rows = jnp.flatnonzero(taken)
        mean = lambda m, rows=rows: jnp.mean(
            jax.vmap(lambda u, y: loss(m(u), y))(batch[0][rows], batch[1][rows])
        )
        value, grads = eqx.filter_value_and_grad(mean)(model)
        assert_close(estimate.grads, eqx.filter(grads, eqx.is_array))
        assert_close(estimate.loss, value)
        assert jnp.array_equal(estimate.report.accepted, taken)
    half = ej.Backprop(dtype=jnp.bfloat16)(model, loss, batch)
    whole = ej.Backprop()(model, loss, batch)
    for a, b in zip(jax.tree.leaves(half.grads), jax.tree.leaves(whole.grads), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=0.05)
    with pytest.raises(ValueError, match="Backprop"):
        ej.Backprop().settle(None, None, None)


def test_a_step_by_backprop_trains_any_model_and_leaves_out_what_is_not_finite():
    model = eqx.nn.MLP(2, "scalar", 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    batch = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]], float), jnp.array([0.0, 1, 1, 0])
    estimator, optimiser = ej.Backprop(), optax.adam(3e-2)
    step = make_step(estimator, optimiser, loss=lambda output, target: (output - target) ** 2)
    state = TrainState.create(model, optimiser, key=jax.random.key(1))
    for _ in range(150):
        state, metrics = step(state, batch)
    assert metrics["loss"] < 1e-2 and metrics["accepted"] == 1
    before = jax.tree.leaves(eqx.filter(state.model, eqx.is_array))
    before = [np.asarray(leaf) for leaf in before]
    state, metrics = step(state, (batch[0].at[1].set(jnp.nan), batch[1]))
    assert not metrics["updated"] and metrics["accepted"] == 0.75
    for old, new in zip(
        before, jax.tree.leaves(eqx.filter(state.model, eqx.is_array)), strict=True
    ):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("memory", ["none", "both"])
def test_a_run_goes_on_to_the_same_weights(text, tmp_path, memory):
    others = {"dropout": 0.1} if memory == "none" else {"memory": memory, "segments": 2, "slots": 4}
    config = settings(text, tmp_path / "whole", **others)
    whole = Run.start(config)
    outcome = whole.train()
    assert outcome.skipped == 0
    part = Run.start(dataclasses.replace(config, out=tmp_path / "part"))
    with pytest.raises(KeyboardInterrupt):
        part.train(on_step=lambda step, _: _stop(step == 4))
    again = open_run(tmp_path / "part", GPT2Settings)
    assert int(again.state.step) == 2
    again.train()
    leaves = [jax.tree.leaves(eqx.filter(run.model, eqx.is_array)) for run in (whole, again)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    opened = open_run(tmp_path / "whole", GPT2Settings)
    found = opened.evaluate(opened.validation_ids)
    assert found == whole.evaluate(whole.validation_ids)
    if memory == "none":
        saved = load_gpt2(tmp_path / "whole" / "model")
        np.testing.assert_array_equal(saved.wte, whole.model.wte)
    else:  # cut off from its memory it is not the model that learned
        assert not (tmp_path / "whole" / "model").exists()
    with pytest.raises(CheckpointError, match="of `eqjax gpt2 train`, not of `eqjax train`"):
        open_run(tmp_path / "whole", TrainConfig)
    with pytest.raises(ValueError, match="already holds a run"):
        Run.start(config)


def test_layers_computed_anew_give_the_same_run_and_metrics_say_what_there_is(text, tmp_path):
    runs = []
    for checkpointing in (False, True):
        config = settings(
            text, tmp_path / f"{checkpointing}", gradient_checkpointing=checkpointing, dropout=0.1
        )
        runs.append(Run.start(config))
        runs[-1].train()
    leaves = [jax.tree.leaves(eqx.filter(run.model, eqx.is_array)) for run in runs]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    lines = read_metrics(config.out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [2, 4]
    assert all(value is not None for line in lines for value in line.values())
    assert {
        "loss",
        "gradient_norm",
        "accepted",
        "updated",
        "seconds",
        "tokens_per_second",
    } <= lines[-1].keys()
    assert not {"free_residual", "nudged_residual", "displacement"} & lines[-1].keys()
    with pytest.raises(ValueError, match="`gradient_checkpointing` is for a GPT-2 without memory"):
        settings(text, tmp_path, memory="slots", gradient_checkpointing=True)
    with pytest.raises(ValueError, match="`dropout` is for a GPT-2 without memory"):
        settings(text, tmp_path, memory="slots", dropout=0.1)


def test_generation_from_the_command_line_ends_with_the_text(text, tmp_path, capsys):
    """A model that says nothing but one token ends there if that is its end, and goes on otherwise."""
    tokenizer = train_bpe([text.read_text()], 270)
    told = tokenizer.encode("settle")[0].item()
    for end in (None, told, (5, told)):
        config = GPT2Config(
            vocab_size=tokenizer.size,
            n_positions=16,
            n_embd=8,
            n_layer=1,
            n_head=2,
            tie_word_embeddings=False,
            eos_token_id=end,
        )
        model = GPT2.init(config, jax.random.key(0))
        model = eqx.tree_at(
            lambda m: (m.ln_f.weight, m.ln_f.bias, m.lm_head),
            model,
            (
                jnp.zeros(8),
                jnp.ones(8),
                jnp.zeros_like(model.lm_head).at[told].set(1),
            ),
        )
        save_gpt2(model, tmp_path)
        tokenizer.save(tmp_path)
        main(
            [
                "gpt2",
                "generate",
                str(tmp_path),
                "--prompt",
                "a",
                "--count",
                "6",
                "--temperature",
                "0",
            ]
        )
        repeats = 6 if end is None else 1
        assert capsys.readouterr().out == "a" + tokenizer.decode([told] * repeats) + "\n"


def _stop(now):
    if now:
        raise KeyboardInterrupt


def test_decay_is_of_matrices_only():
    gpt2 = GPT2.init(
        GPT2Config(vocab_size=7, n_positions=4, n_embd=4, n_layer=2, n_head=2), jax.random.key(0)
    )
    model = MemoryGPT2(gpt2, capacity=2, late=None, key=jax.random.key(1))
    model = jax.tree.map(lambda leaf: leaf + 1 if eqx.is_inexact_array(leaf) else leaf, model)
    weights = eqx.filter(model, eqx.is_inexact_array)
    optimiser = gpt2_optimiser(GPT2Settings(warmup=0, steps=10, weight_decay=0.5))
    zero = jax.tree.map(jnp.zeros_like, weights)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimiser.update(zero, optimiser.init(weights), weights)
    moved = {
        jax.tree_util.keystr(path): bool(jnp.any(leaf != 0))
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert {name for name, yes in moved.items() if yes} == {
        ".gpt2.wte",
        ".gpt2.wpe",
        ".gpt2.blocks.attn.c_attn.weight",
        ".gpt2.blocks.attn.c_proj.weight",
        ".gpt2.blocks.mlp.c_fc.weight",
        ".gpt2.blocks.mlp.c_proj.weight",
        ".early.recurrent.cell.weight_ih",
        ".early.recurrent.cell.weight_hh",
        ".early.weight",
    }


def test_only_adapters_and_memory_learn_when_asked(text, tmp_path):
    tokenizer = train_bpe([text.read_text()], 270)
    config = GPT2Config(vocab_size=tokenizer.size, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    save_gpt2(GPT2.init(config, jax.random.key(0)), tmp_path / "pretrained")
    tokenizer.save(tmp_path / "pretrained")
    start = str(tmp_path / "pretrained")
    for number, others in enumerate(
        ({"lora_rank": 2}, {"memory": "slots", "slots": 4, "segments": 2, "freeze": True})
    ):
        run = Run.start(settings(text, tmp_path / f"{number}", start=start, **others))
        before = jax.tree.map(np.asarray, eqx.filter(run.model, eqx.is_array))
        run.train()
        after = eqx.filter(run.model, eqx.is_array)
        changed = {
            jax.tree_util.keystr(path)
            for (path, new), old in zip(
                jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True
            )
            if not np.array_equal(new, old)
        }
        assert changed and not any(
            name.endswith((".wte", ".wpe", "base.weight")) for name in changed
        )
        assert all(
            ".a" in name or ".b" in name if number == 0 else ".recall" in name for name in changed
        )


def test_the_command_line(text, tmp_path, capsys, monkeypatch):
    flags = [f"--{k}={v}" for k, v in (SMALL | RARE | {"length": 24}).items()]
    flags = [flag.replace("_", "-") for flag in flags]
    out = tmp_path / "a run"
    main(
        [
            "gpt2",
            "train",
            "--text",
            str(text),
            "--out",
            str(out),
            "--memory",
            "both",
            "--slots",
            "4",
            *flags,
        ]
    )
    assert "validation cross-entropy" in capsys.readouterr().out
    main(["gpt2", "generate", str(out), "--prompt", "settle", "--count", "12", "--top-k", "3"])
    written = capsys.readouterr().out
    assert written.startswith("settle") and len(written.removesuffix("\n")) == 18
    # A chat that is continued by another run of the program is the chat that never stopped.
    chat = ["gpt2", "chat", str(out), "--count", "5", "--temperature", "0", "--memory"]

    def say(file, words):
        monkeypatch.setattr("sys.stdin", io.StringIO(words))
        main([*chat, str(tmp_path / file)])
        return capsys.readouterr()

    whole = say("whole", "settle once\nand answer\n").out
    first, second = say("parts", "settle once\n").out, say("parts", "and answer\n")
    assert "Goes on after" in second.err and whole == first + second.out
    kept = [safetensors.numpy.load_file(tmp_path / name) for name in ("whole", "parts")]
    for name in kept[0] | kept[1]:
        np.testing.assert_array_equal(kept[0][name], kept[1][name])
    # Padding takes room in the context, and does nothing else: the first line alone fills half of it.
    run = open_run(out, GPT2Settings)
    line, newline = (jnp.asarray(run.tokenizer.encode(t)) for t in ("settle once\n", "\n"))
    greedy = {"key": jax.random.key(0), "temperature": 0, "stop": newline}
    answer, memory = reply(run.model, line, run.model.memory(), 5, **greedy)
    said = run.tokenizer.decode(answer.tokens[: int(answer.length)])
    assert first == said.strip("\n") + "\n"
    # What is generated goes through the memory, which stays as it is.
    file = tmp_path / "whole"
    before = file.read_bytes()
    told = ["gpt2", "generate", str(out), "--prompt", "once", "--count", "30", "--temperature", "0"]
    main([*told, "--memory", str(file)])
    prompt, memory = jnp.asarray(run.tokenizer.encode("once")), load_memory(file, run.model)
    expected = generate(run.model, prompt, 30, memory=memory, key=jax.random.key(0), temperature=0)
    assert capsys.readouterr().out == "once" + run.tokenizer.decode(expected.tokens) + "\n"
    assert file.read_bytes() == before


def _fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_misuse_is_told(text, tmp_path, capsys):
    out = tmp_path / "plain"
    Run.start(settings(text, out)).train()
    told = _fails(capsys, "gpt2", "chat", out, "--memory", tmp_path / "m")
    assert "has no memory" in told and "--memory both" in told
    assert "--prompt" in _fails(capsys, "gpt2", "generate", out, "--prompt", "")
    assert "not in the vocabulary" in _fails(capsys, "gpt2", "generate", out, "--prompt", "Ж")
    assert "config.json" in _fails(capsys, "gpt2", "generate", tmp_path)
    assert "without memory" in _fails(capsys, "gpt2", "generate", out, "--memory", tmp_path / "m")
    assert "--start" in _fails(capsys, "gpt2", "train", "--lora-rank", 2)
    assert "--freeze" in _fails(capsys, "gpt2", "train", "--freeze", "--start", out / "model")
    assert "no run here" in _fails(capsys, "gpt2", "train", "--resume", tmp_path)
    other = tmp_path / "latin.txt"
    other.write_bytes("caf\xe9 ".encode("latin-1") * 100)
    assert "UTF-8" in _fails(capsys, "gpt2", "train", "--text", other, "--out", tmp_path / "x")
