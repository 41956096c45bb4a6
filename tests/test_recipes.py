"""AEON and ARLL from the command line: trained, stopped and gone on with, like every recipe."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest

from eqjax.cli import main
from eqjax.language import GPT2, Streams, load_gpt2
from eqjax.recipes import AeonSettings, ARLLSettings, TrainConfig, open_run
from eqjax.training import CheckpointError, Run, read_metrics

SMALL = {"layers": 1, "heads": 2, "width": 8, "length": 8, "batch": 3, "warmup": 1}
RARE = {"steps": 4, "evaluate_every": 4, "evaluate_windows": 8, "save_every": 2, "log_every": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = "settle and answer then settle once more ".split()
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("text") / "plain.txt"
    path.write_text("\n".join(" ".join(rng.permutation(words)) for _ in range(60)))
    return path


@pytest.mark.parametrize("kind", [AeonSettings, ARLLSettings])
def test_a_run_goes_on_to_the_same_weights(kind, text, tmp_path):
    others = {"stride": 2, "capacity": 8} if kind is ARLLSettings else {}
    recipe = kind(text=text, out=tmp_path / "whole", **SMALL, **RARE, **others)
    whole = Run.start(recipe)
    assert whole.train().skipped == 0
    part = Run.start(dataclasses.replace(recipe, out=tmp_path / "part"))
    with pytest.raises(KeyboardInterrupt):
        part.train(on_step=_stop)
    again = open_run(tmp_path / "part")
    assert type(again.recipe) is kind and int(again.state.step) == 2
    again.train()
    states = [jax.tree.leaves(eqx.filter(run.state, eqx.is_array)) for run in (whole, again)]
    for a, b in zip(*states, strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    last = read_metrics(recipe.out / "metrics.jsonl")[-1]
    wanted = {"recurrence"} if kind is AeonSettings else {"categories", "novelty", "distance"}
    assert wanted | {"validation", "loss", "gradient_norm"} <= last.keys()
    with pytest.raises(CheckpointError, match=f"of `eqjax {kind.command}`, not of `eqjax train`"):
        open_run(recipe.out, TrainConfig)
    if kind is ARLLSettings:  # a GPT-2 like any other
        assert isinstance(whole.model, GPT2)
        np.testing.assert_array_equal(load_gpt2(recipe.out / "model").wte, whole.model.wte)


def _stop(step, values):
    if step == 4:
        raise KeyboardInterrupt


def test_the_equilibrium_model_learns_byte_pairs_too(text, tmp_path):
    sizes = {"width": 8, "heads": 2, "length": 8, "batch": 3, "warmup": 1, "chunk": 2}
    recipe = TrainConfig(text=text, out=tmp_path, tokens="bpe", vocabulary=270, **sizes, **RARE)
    assert Run.start(recipe).train().skipped == 0
    again = open_run(tmp_path, TrainConfig)
    words = "settle, Ωnce more"
    assert again.tokenizer.size == 270 == again.model.decode(jax.numpy.ones((1, 8))).shape[-1]
    assert again.tokenizer.decode(again.tokenizer.encode(words)) == words
    for settings in ({"tokens": "bpe", "vocabulary": 256}, {"vocabulary": 300}):
        with pytest.raises(ValueError, match="vocabulary"):
            TrainConfig(**settings).check_start()


def test_streams_read_on_and_return_to_a_position():
    ids = np.arange(50, dtype=np.int32)
    stream = Streams(ids, length=4, batch=3, seed=0)
    first, position = next(stream), None
    for _ in range(20):
        second = next(stream)
        np.testing.assert_array_equal(second[0][:, 0], first[1][:, -1])  # goes on where it stopped
        np.testing.assert_array_equal(second[1], (second[0] + 1) % 50)
        first, position = second, position or stream.get_state()
    again = Streams(ids, length=4, batch=3, seed=0)
    again.set_state(position)
    stream.set_state(position)
    np.testing.assert_array_equal(next(again)[0], next(stream)[0])


@pytest.mark.parametrize("words", [("gpt2", "aeon"), ("gpt2", "arll", "--stride", "2")])
def test_the_command_line_trains_them(words, text, tmp_path, capsys):
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in (SMALL | RARE).items()]
    out = tmp_path / "run"
    main([*words, "--text", str(text), "--out", str(out), *flags])
    assert "validation cross-entropy" in capsys.readouterr().out
    main([*words[:2], "--resume", str(out)])
    for bad, told in ((["--heads", "3"], "--width 8 is not divisible by --heads 3"),):
        with pytest.raises(SystemExit):
            main([*words, "--text", str(text), "--out", str(tmp_path / "no"), *flags, *bad])
        assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: ARLLSettings(vigilance=1.5), "`vigilance` must be at most 1"),
        (lambda: ARLLSettings(stride=100, length=8), "`stride` 100 is longer than a window"),
        (lambda: ARLLSettings.from_dict({"tap": "both"}), "`tap` must be 'layers' or 'heads'"),
        (lambda: AeonSettings(coupling=2.0), "`coupling` must lie between -1 and 1"),
        (lambda: AeonSettings(noise=-1.0), "`noise` must be at least 0"),
    ],
)
def test_misuse_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings()
