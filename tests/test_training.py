import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.analytic import cross_entropy
from eqjax.gradients import (
    Accept,
    AsymEP,
    OracleAdjoint,
)
from eqjax.recipes import TrainConfig, open_run
from eqjax.training import (
    CheckpointError,
    Checkpoints,
    Metrics,
    Run,
    TrainState,
    check_finite,
    make_step,
    read_metrics,
)

WORDS = (
    "the quick brown fox jumps over the lazy dog and then settles down by the river bank to rest "
)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a text.txt"
    rng = np.random.default_rng(0)
    words = WORDS.split()
    path.write_text(" ".join(words[i] for i in rng.integers(0, len(words), 800)))
    return path


@pytest.fixture
def config(text, tmp_path):
    return TrainConfig(
        out=tmp_path / "run",
        text=text,
        width=8,
        heads=2,
        length=8,
        batch=4,
        steps=12,
        warmup=2,
        log_every=2,
        save_every=5,
        probe_every=6,
        evaluate_every=6,
        evaluate_windows=16,
        learning_rate=1e-2,
    )


def parameters(run):
    return [np.asarray(a) for a in jax.tree.leaves(eqx.filter(run.state.model, eqx.is_array))]


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(parameters(one), parameters(two), strict=True))


@pytest.mark.parametrize("estimator", ["asymep", "oracle", "bptt"])
def test_training_lowers_the_loss_and_logs(config, estimator):
    run = Run.start(dataclasses.replace(config, estimator=estimator, steps=40))
    before = run.evaluate(run.validation_ids).cross_entropy
    seen = []
    outcome = run.train(on_step=lambda step, values: seen.append(step))
    after = run.evaluate(run.validation_ids)
    assert after.cross_entropy < before - 0.3 and after.tokens == 16 * 8
    lines = read_metrics(config.out / "metrics.jsonl")
    assert [x["step"] for x in lines] == seen == [0, *range(2, 41, 2)]
    assert lines[-1]["validation"] == pytest.approx(after.cross_entropy)
    probes = [x for x in lines if "probe_cosine" in x]
    assert len(probes) == 7 + 1 and all(x["probe_cosine"] > 0.99 for x in probes)
    assert outcome.memory_bytes > 0 and outcome.seconds_per_step > 0
    assert run.recipe.out.joinpath("config.yaml").exists()


def test_the_step_skips_an_update_when_nothing_is_accepted(language_batch):
    model, batch = language_batch
    nothing = AsymEP(accept=Accept(free_residual=1e-30))
    optimiser = optax.adamw(1e-2)
    state = TrainState.create(model, optimiser, key=jax.random.key(0))
    state, metrics = make_step(nothing, optimiser)(state, batch)
    assert not metrics["updated"] and metrics["accepted"] == 0 and state.step == 1
    assert bool(eqx.tree_equal(state.model, model))


def test_hyperparameters_neither_move_nor_decay_and_the_users_model_survives(language_batch):
    model, batch = language_batch
    optimiser = optax.adamw(1e-2, weight_decay=0.5)
    state = TrainState.create(model, optimiser, key=jax.random.key(0))
    step = make_step(OracleAdjoint(), optimiser)
    for _ in range(3):
        state, metrics = step(state, batch)
    assert metrics["updated"]
    assert state.model.field.leak == model.field.leak == 1.0
    assert state.model.field.attention_gain == 1.0
    assert not jnp.array_equal(state.model.decoder.weight, model.decoder.weight)


def test_no_recompilation_after_the_first_step(language_batch):
    model, batch = language_batch
    traces = []

    def loss(logits, targets):
        traces.append(1)
        return cross_entropy(logits, targets)

    optimiser = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 10))
    state = TrainState.create(model, optimiser, key=jax.random.key(0))
    step = make_step(AsymEP(), optimiser, loss=loss)
    state, _ = step(state, batch)
    first = len(traces)
    for _ in range(4):
        state, _ = step(state, batch)
    assert first > 0 and len(traces) == first


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, "")
from eqjax.recipes import TrainConfig, open_run
from eqjax.training import Run, holds_run
config = TrainConfig.load(Path(sys.argv[1]))
run = open_run(config.out) if holds_run(config.out) else Run.start(config)
print("ready", flush=True)
run.train(on_step=lambda step, values: print(step, flush=True))
print("done", flush=True)
"""


def test_an_interrupt_keeps_the_step_and_tells_how_to_go_on(config, tmp_path):
    config = dataclasses.replace(config, steps=6, save_every=100, log_every=1)
    whole = Run.start(dataclasses.replace(config, out=tmp_path / "whole"))
    whole.train()
    run = Run.start(config)
    press = lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None
    with pytest.raises(KeyboardInterrupt, match=f"after step 2.*--resume {config.out}"):
        run.train(on_step=press)
    resumed = open_run(config.out)
    assert int(resumed.state.step) == 2
    resumed.train()
    assert same(whole, resumed)


def test_a_folder_has_one_writer(config):
    run = Run.start(dataclasses.replace(config, steps=3, log_every=1))

    def intrude(step, _):
        if step == 2:
            with pytest.raises(ValueError, match=f"writes there, process {os.getpid()} on"):
                run.train()

    run.train(on_step=intrude)
    assert int(open_run(config.out).state.step) == 3


def test_kill_at_any_moment_then_resume_is_bit_identical(config, tmp_path):
    config = dataclasses.replace(config, steps=60, save_every=7, probe_every=0, evaluate_every=1000)
    whole = Run.start(dataclasses.replace(config, out=tmp_path / "whole"))
    whole.train()
    config.save(tmp_path / "config.yaml")
    environment = os.environ | {"JAX_ENABLE_X64": "0"}
    kills = 0
    # Killed as the first checkpoint is being written, between steps, and not at all.
    for wait, delay in (("ready", 0.0), ("ready", 0.05), ("2", 0.0), ("", 0.2), ("", None)):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "config.yaml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        while delay is not None and (seen := process.stdout.readline().strip()):
            if seen == wait or (not wait and seen.isdigit()):
                break
        if delay is not None:
            time.sleep(delay)  # the moment does not matter, so it need not be exact
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            process.communicate()
        else:
            out, error = process.communicate()
            assert process.returncode == 0 and "done" in out, error
    assert kills >= 3
    resumed = open_run(config.out)
    assert int(resumed.state.step) == 60
    assert same(whole, resumed)
    assert bool(eqx.tree_equal(whole.state.opt_state, resumed.state.opt_state))
    assert jnp.array_equal(
        jax.random.key_data(whole.state.key), jax.random.key_data(resumed.state.key)
    )
    logs = [read_metrics(Path(r.recipe.out) / "metrics.jsonl") for r in (whole, resumed)]
    assert [x["step"] for x in logs[0]] == [x["step"] for x in logs[1]]
    assert [x["loss"] for x in logs[0]] == [x["loss"] for x in logs[1]]


def test_the_homeostat_goes_on_where_it_was(config, tmp_path):
    config = dataclasses.replace(
        config, estimator="bptt", probe_every=0, homeostat="growth", homeostat_controller="pi"
    )
    whole = Run.start(config)
    whole.train()
    config = dataclasses.replace(config, out=tmp_path / "stopped")

    def stop(step, values):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run.start(config).train(on_step=stop)
    resumed = open_run(config.out)
    assert int(resumed.state.step) == 5
    assert not jnp.isnan(resumed.state.homeostat.controller.log_weight)
    resumed.train()
    assert same(whole, resumed)
    assert bool(eqx.tree_equal(whole.state.homeostat, resumed.state.homeostat))
    line = read_metrics(config.out / "metrics.jsonl")[-1]
    assert line["penalty_weight"] == pytest.approx(
        float(jnp.exp(resumed.state.homeostat.controller.log_weight))
    )


def test_a_run_is_rebuilt_from_its_folder_alone(config):
    run = Run.start(dataclasses.replace(config, block="real", leak=0.8, x64=True, probe_every=0))
    run.train()
    again = open_run(config.out)
    assert same(run, again) and again.recipe == run.recipe
    assert again.model.field.leak == 0.8 and again.tokenizer == run.tokenizer
    assert again.data.get_state() == run.data.get_state()
    assert again.evaluate(again.validation_ids) == run.evaluate(run.validation_ids)
    with pytest.raises(ValueError, match="already holds a run.*--resume"):
        Run.start(run.recipe)


@pytest.fixture
def saved(config):
    run = Run.start(dataclasses.replace(config, steps=4, save_every=100, probe_every=0))
    run.train()
    return run


@pytest.fixture
def orbax_debris():
    """Orbax leaves closed event loops behind when it fails; have them collected inside the test that caused it."""
    yield
    gc.collect()


debris = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def files(folder):
    return sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.stat().st_size)


@debris
def test_a_flipped_byte_anywhere_is_noticed_or_harmless(saved, orbax_debris):
    want = parameters(saved)
    noticed = 0
    for path in files(saved.recipe.out / "checkpoints" / "4"):
        original = path.read_bytes()
        for position in (len(original) // 3, len(original) // 2, len(original) - 2):
            damaged = bytearray(original)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            try:
                found = open_run(saved.recipe.out, step=4)
            except CheckpointError as error:
                assert "damaged" in str(error) or "format" in str(error) or "model" in str(error)
                noticed += 1
            else:
                assert all(
                    np.array_equal(a, b) for a, b in zip(want, parameters(found), strict=True)
                )
                assert found.recipe == saved.recipe
        path.write_bytes(original)
    assert noticed >= 3
    assert same(open_run(saved.recipe.out), saved)


@debris
def test_a_truncated_checkpoint_is_refused_and_the_older_one_intact(saved, orbax_debris):
    # The end of a single file may be a leftover that no array lives in: cut them all.
    for path in files(saved.recipe.out / "checkpoints" / "4"):
        if path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="checkpoint 4 is damaged"):
        open_run(saved.recipe.out)
    assert int(open_run(saved.recipe.out, step=0).state.step) == 0


@debris
def test_a_checkpoint_of_another_model_is_refused(saved, orbax_debris):
    with Checkpoints(saved.recipe.out / "checkpoints") as checkpoints:
        other = eqx.tree_at(lambda s: s.model.decoder.weight, saved.state, jnp.ones((8, 3)))
        with pytest.raises(
            CheckpointError, match=r"another model: at `.*decoder.*weight` it holds"
        ):
            checkpoints.restore(other)
        with pytest.raises(CheckpointError, match="no checkpoint at step 3; there are: 0, 4"):
            checkpoints.restore(saved.state, step=3)


def test_no_run_and_a_changed_text_are_refused(saved, tmp_path, text):
    with pytest.raises(CheckpointError, match="no run here"):
        open_run(tmp_path / "nowhere")
    text.unlink()  # the run has its own copy, and moves with it
    moved = saved.recipe.out.rename(tmp_path / "moved")
    assert same(open_run(moved), saved)
    copy = moved / "text.txt"
    copy.write_text(copy.read_text() + " and one more sentence")
    with pytest.raises(CheckpointError, match="not the text that this run was trained on"):
        open_run(moved)


def test_an_older_checkpoint_opens_but_does_not_train_over_the_newer(saved):
    log = (saved.recipe.out / "metrics.jsonl").read_text()
    older = open_run(saved.recipe.out, step=0)
    assert int(older.state.step) == 0
    with pytest.raises(ValueError, match="its newest checkpoint is 4"):
        older.train()
    assert (saved.recipe.out / "metrics.jsonl").read_text() == log


def test_nan_parameters_are_named_before_anything_is_done(saved):
    spoilt = eqx.tree_at(
        lambda s: s.model.field.mlp.up,
        saved.state,
        jnp.full_like(saved.model.field.mlp.up, jnp.nan),
    )
    with pytest.raises(ValueError, match=r"parameter `.field.mlp.up` holds NaN"):
        check_finite(spoilt.model)
    saved.state = spoilt
    with pytest.raises(ValueError, match="holds NaN"):
        saved.evaluate(saved.validation_ids)
    with pytest.raises(ValueError, match="holds NaN"):
        saved.train()


def test_an_unwritable_folder_is_refused(config, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match="cannot write there"):
        Run.start(dataclasses.replace(config, out=blocked / "run"))


def test_configuration_round_trips_and_refuses_what_it_does_not_know(config, tmp_path):
    path = tmp_path / "c.yaml"
    config.save(path)
    assert TrainConfig.load(path) == config
    path.write_text("width: 32\nheds: 2\n")
    with pytest.raises(ValueError, match="unknown setting `heds`; did you mean `heads`"):
        TrainConfig.load(path)
    for line, message in (
        ("width: many", "`width` must be int, got 'many'"),
        ("width: true", "`width` must be int, got True"),
        ("estimator: magic", "`estimator` must be 'asymep' or .*'vector-field', got 'magic'"),
        ("solver: 3", "`solver` must be"),
        ("- a list", "must hold lines `name: value`"),
        ("width: 30", "`width` 30 is not divisible by `heads` 4"),
        ("free_rtol: 0.0", "`free_rtol` must be above 0"),
        ("free_rtol: 1e-3", "nothing would be learned"),
        ("nudged_rtol: 0.1", "nothing would be learned"),
        ("radius: -1.0", "`radius` must be above 0"),
        ("seed: -1", "`seed` must be at least 0"),
        ("block: energy", "looking at the answer"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=message):
            TrainConfig.load(path)
    path.write_text("learning_rate: 2e-3\nclip: 1\nradius: null\nout: some where\n")
    assert TrainConfig.load(path).learning_rate == 0.002
    assert TrainConfig.load(path).out == Path("some where")
    with pytest.raises(ValueError, match="not a readable YAML"):
        TrainConfig.load(tmp_path / "missing.yaml")


def test_metrics_survive_a_torn_line_and_forget_what_comes_after(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Metrics(path)
    for step in (1, 2, 3):
        log.write(step, loss=jnp.asarray(0.5), bad=float("nan"), name="x")
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [x["step"] for x in read_metrics(path)] == [1, 2, 3]
    Metrics(path, after=2)
    assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [1, 2]
    assert read_metrics(path)[0] == {"step": 1, "loss": 0.5, "bad": None, "name": "x"}
    assert read_metrics(tmp_path / "none") == []


def test_a_start_that_fails_leaves_nothing_and_takes_nothing(config, tmp_path):
    with pytest.raises(ValueError, match="too short"):
        Run.start(dataclasses.replace(config, out=tmp_path / "new", length=10**6))
    assert not (tmp_path / "new").exists()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "text.txt").write_text("a diary")
    with pytest.raises(ValueError, match="no run's"):
        Run.start(dataclasses.replace(config, out=theirs))
    assert (theirs / "text.txt").read_text() == "a diary"
    # Without the type checks of the tests: a name that there is not is no other name.
    code = "from eqjax.recipes import TrainConfig; TrainConfig(estimator='nonsense')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "`estimator` must be 'asymep'" in done.stderr
