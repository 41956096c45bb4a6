import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import matplotlib.image
import numpy as np
import pytest

from eqjax import stability
from eqjax.cli import _working, main
from eqjax.recipes import TrainConfig, open_run
from eqjax.recipes._examine import settle, windows

SMALL = (
    "--width 8 --heads 2 --length 8 --batch 4 --steps 4 --warmup 1 --evaluate-windows 16".split()
)


@pytest.fixture
def text(tmp_path):
    words = "settle and answer then settle once more ".split()
    rng = np.random.default_rng(1)
    path = tmp_path / "plain text.txt"
    path.write_text("\n".join(" ".join(rng.permutation(words)) for _ in range(150)))
    return path


def fails(capsys, *arguments):
    """What a failing command prints."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code not in (0, None)
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_help_teaches(capsys):
    for arguments in (["--help"], ["demo", "--help"], ["train", "--help"], ["compare", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    shown = capsys.readouterr().out
    for phrase in ("demo", "evaluate", "Force residual at which", "A YAML file", "--estimators"):
        assert phrase in " ".join(shown.replace("│", " ").split())


def test_train_evaluate_sample_compare(text, tmp_path, capsys):
    out = tmp_path / "a run"
    main(["train", "--text", str(text), "--out", str(out), *SMALL])
    shown = capsys.readouterr().out
    assert "validation cross-entropy" in shown and "unigram entropy" in shown
    assert {p.name for p in out.iterdir()} >= {"config.yaml", "metrics.jsonl", "checkpoints"}
    main(["evaluate", str(out)])
    whole = capsys.readouterr().out
    main(["evaluate", str(out), "--attention-gain", "0"])
    assert capsys.readouterr().out != whole
    main(["sample", str(out), "--prompt", "settle ", "--count", "20"])
    shown = capsys.readouterr().out
    assert shown.startswith("settle ") and len(shown) == len("settle ") + 20 + 1
    main(["compare", str(out), "--estimators", "asymep,bptt"])
    shown = capsys.readouterr().out
    assert "asymep" in shown and "bptt" in shown and "against OracleAdjoint" in shown
    sweep = "--estimators oracle,asymep,vector-field --nudged-steps 2,40 --beta 0.2,0.8"
    main(["compare", str(out), *sweep.split()])
    shown = capsys.readouterr().out
    rows = {r["estimator"]: r for r in json.loads((out / "compare.json").read_text())["rows"]}
    assert len(rows) == 9 and (out / "compare.png").stat().st_size > 10_000
    assert all(name in shown for name in rows)
    # More nudged steps help, a smaller β does not.
    few, many = rows["asymep T2=2 β=0.2"], rows["asymep T2=40 β=0.2"]
    assert few["adjoint_residual"] > 5 * many["adjoint_residual"]
    assert few["cosine"] == pytest.approx(rows["asymep T2=2 β=0.8"]["cosine"], abs=1e-3)
    for flags in (
        ["--estimators", "asymep,adam"],
        ["--beta", "0.2,x"],
        ["--nudged-steps", "0"],
        ["--batch", str(10**12)],
        ["--nudged-steps", "3", "--estimators", "oracle"],
    ):
        with pytest.raises(SystemExit):
            main(["compare", str(out), *flags])
        assert flags[0] in capsys.readouterr().err


def test_spectrum_and_continue_see_what_dense_algebra_sees(text, tmp_path, capsys):
    out = tmp_path / "held"
    held = "--estimator oracle --homeostat growth --homeostat-controller pi --keep 0 --save-every 2"
    main(["train", "--text", str(text), "--out", str(out), *SMALL, *held.split(), "--x64"])
    assert "penalty_weight" in (out / "metrics.jsonl").read_text()
    main(["spectrum", str(out), "--windows", "2", "--step", "2"])  # the one before the last
    shown = capsys.readouterr().out
    assert "the flow stays" in shown and "critical step" in shown and "2 of 2 windows" in shown
    found = stability.load(out / "spectrum.zip")
    run = open_run(out, step=2)
    for i, inputs in enumerate(windows(run, 2)):
        x, settled = settle(run.model, inputs)
        force = jax.jit(lambda z, x=x, field=run.model.field: field(0.0, z, x))
        dense = np.asarray(jax.jacfwd(force)(settled.value)).reshape(64, 64)
        assert found.values[i, 0].real == pytest.approx(np.linalg.eigvals(dense).real.max())
    main(["continue", str(out), "--bounds", "0.5", "1.5", "--window", "3"])
    shown = capsys.readouterr().out
    assert "points from" in shown and ("First loss" in shown or "stable all along" in shown)
    branch = stability.load(out / "branch.zip")
    assert branch.parameters[0] >= 0.5 and branch.parameters[-1] == pytest.approx(1.5)
    assert float(branch.residuals.max()) < 1e-9
    for name in ("spectrum.png", "branch.png"):
        assert matplotlib.image.imread(out / name).std() > 0.02
    main(["explore", "block", str(out), "--steps", "3", "--prompt", "settle "])
    page = out / "explorer.html"
    assert f"Written: {page}" in capsys.readouterr().out
    assert '"names":["s","e","t","t","l","e"," "]' in page.read_text("utf-8")
    for arguments, message in (
        (["explore", "block", out, "--steps", 0], "--steps"),
        (["explore", "block", out, "--prompt", ""], "--prompt is empty"),
        (["explore", "block", out, "--prompt", "settle and answer"], "--prompt has 17 tokens"),
        (["explore", "block", out, "--out", tmp_path], "--out"),
        (["spectrum", out, "--windows", 0], "--windows"),
        (["spectrum", out, "--k", 0], "--k"),
        (["spectrum", out, "--k", 10**6], "--k must be at most 64"),
        (["spectrum", out, "--step-size", -1], "--step-size"),
        (["spectrum", out, "--step", 3], "there are: 0, 2, 4"),
        (["continue", out, "--parameter", "mlp.up"], "attention_gain"),
        (["continue", out, "--parameter", "wings"], "leak"),
        (["continue", out, "--bounds", 2, 1], "--bounds"),
        (["continue", out, "--start", 7], "--start"),
        (["continue", out, "--window", 64], "--window"),
    ):
        assert message in fails(capsys, *arguments), arguments


def test_config_file_is_accepted_back_and_flags_win(text, tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    main(["train", "--text", str(text), "--out", str(first), "--leak", "0.5", *SMALL])
    config = first / "config.yaml"
    main(["train", "--config", str(config), "--out", str(second), "--seed", "3"])
    loaded = TrainConfig.load(second / "config.yaml")
    assert loaded.leak == 0.5 and loaded.seed == 3 and loaded.steps == 4 and loaded.out == second
    assert open_run(second).recipe == loaded


def test_resume_goes_on(text, tmp_path, capsys):
    out = tmp_path / "run"
    main(["train", "--text", str(text), "--out", str(out), *SMALL])
    capsys.readouterr()
    main(["train", "--resume", str(out)])
    assert "validation cross-entropy" in capsys.readouterr().out
    assert int(open_run(out).state.step) == 4


def test_demo_end_to_end(text, tmp_path, capsys):
    out = tmp_path / "demo"
    arguments = ["demo", "--text", str(text), "--out", str(out), "--steps", "8"]
    arguments += "--width 8 --heads 2 --length 8".split()
    main(arguments)
    shown = capsys.readouterr().out
    for phrase in ("AsymEP", "OracleAdjoint", "BPTT", "unigram entropy", "bigram", "writes:"):
        assert phrase in shown
    result = json.loads((out / "comparison.json").read_text())
    assert set(result["table"]) == {"AsymEP", "OracleAdjoint", "BPTT"}
    asymep = result["table"]["AsymEP"]
    assert asymep["checkpoints"] == asymep["checkpoints_qualifying"] == 9
    assert asymep["cosine_lowest_qualifying"] > 0.999
    assert result["float64_probe"]["relative_error"] < 1e-4
    assert result["seed"] == 0 and result["versions"]["jax"] and result["device"] == "cpu"
    assert len(result["samples"]["BPTT"]) == 200
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert {x["estimator"] for x in lines} == set(result["table"])
    # The three saw the same batches from the same weights: the first losses are one and the same.
    picture = matplotlib.image.imread(out / "curves.png")
    assert picture.shape[0] > 300 and picture.std() > 0.05
    for name in ("asymep", "oracle", "bptt"):
        assert int(open_run(out / name).state.step) == 8
    main(arguments)  # a second time, over what the first left
    assert "Written to" in capsys.readouterr().out
    (out / ".eqjax-demo").unlink()
    assert "not this demo's" in fails(capsys, *arguments)
    assert (out / "oracle" / "config.yaml").exists()


def test_bad_input_is_refused_before_any_training(text, tmp_path, capsys):
    out = tmp_path / "run"
    (tmp_path / "empty").write_text("")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "short").write_text("too short")
    (tmp_path / "bad.yaml").write_text("lenght: 3\n")
    base = ["train", "--out", out, "--text"]
    for arguments, message in (
        ([*base, tmp_path / "empty"], "is empty"),
        ([*base, tmp_path / "binary"], "not UTF-8 text"),
        ([*base, tmp_path / "missing"], "no such file"),
        ([*base, tmp_path / "short"], "too short"),
        ([*base, text, "--width", 10, "--heads", 4], "is not divisible by --heads 4"),
        ([*base, text, "--estimator", "magic"], "magic"),
        ([*base, text, "--solver", "magic"], "magic"),
        ([*base, text, "--free-rtol", 0], "must be above 0"),
        ([*base, text, "--block", "energy"], "looking at the answer"),
        ([*base, text, "--unknown", 3], "unknown"),
        (["train", "--config", tmp_path / "bad.yaml"], "did you mean `length`"),
        (["train", "--resume", tmp_path / "nowhere"], "no run here"),
        (["train", "--resume", out, "--steps", 9], "takes no others: leave --steps out"),
        (["train", f"--resume={out}", "--steps=1200"], "leave --steps out"),  # its default
        ([*base, text, "--seed", 2**70], "--seed must be at most"),
        ([*base, text, "--attention-gain", "nan"], "--attention-gain must be finite"),
        ([*base, text, "--width", 10**9], "GiB. Make it smaller"),
        ([*base, text, "--homeostat-margin", 0.1], "there is no --homeostat"),
        ([*base, text, "--homeostat", "growth", "--homeostat-samples", 99], "at most 16"),
        (["gpt2", *base, text, "--slots", 8], "--slots 8 has no effect"),
        (["gpt2", *base, text, "--vocabulary", 300], "--vocabulary 300 has no effect"),
        (["gpt2", *base, text, "--start", "gpt2", "--width", 64], "--width 64 has no effect"),
        (["sample", out, "--seed", 2**70, "--prompt", "a"], "--seed must be at most"),
        (["sample", out, "--temperature", "inf"], "--temperature must be finite"),
        (["gpt2", "generate", out, "--top-k", 0], "--top-k must be at least 1"),
        (["gpt2", "chat", out, "--memory", tmp_path], "is a folder"),
        (["compare", out, "--nudged-steps", 1.7], "--nudged-steps takes whole numbers"),
        (["compare", out, "--nudged-steps", "inf"], "--nudged-steps takes finite numbers"),
        (["compare", out, "--batch", 0], "--batch must be at least 1"),
        (["evaluate", out, "--attention-gain", "inf"], "--attention-gain must be finite"),
        (["evaluate", tmp_path], "no run here"),
        (["train", "--text", text, "--out", tmp_path / "short" / "x"], "cannot write there"),
    ):
        assert message in fails(capsys, *arguments), arguments
        assert not (out / "checkpoints").exists()


def test_long_work_says_what_it_does_and_short_work_nothing(capsys, monkeypatch):
    monkeypatch.setattr(_working, "_PAUSE", 0.05)
    with _working.working("settling") as tell:
        time.sleep(0.12)
        tell("answering")
        jax.jit(lambda x: x + 1)(np.zeros(17))  # which is compiled, and then no longer
        time.sleep(0.12)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("settling (") and told[-1].startswith("answering (")
    with _working.working("settling"):
        pass
    assert capsys.readouterr().err == ""
    _working._listen("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1)
    with _working.working("settling"):
        time.sleep(0.12)
    _working._listen("/jax/core/compile/backend_compile_duration", 0.1)
    assert capsys.readouterr().err.startswith("settling, compiling… (")


def test_module_runs_from_a_path_with_a_space(tmp_path):
    folder = tmp_path / "with a space"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "eqjax", "--help"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0 and "demo" in done.stdout


def test_where_programs_are_kept_is_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EQJAX_CACHE", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert "are kept in" not in fails(capsys, "evaluate", tmp_path / "none", "--no-cache")
        assert jax.config.values["jax_compilation_cache_dir"] is None
        assert f"are kept in {tmp_path / 'xla'}" in fails(capsys, "evaluate", tmp_path / "none")
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "xla")
        jax.config.update("jax_compilation_cache_dir", None)
        assert "are kept in" not in fails(capsys, "evaluate", tmp_path / "none")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
