"""A disk that is full, and a reader beside a writer."""

import errno
import os
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.numpy
from matplotlib.figure import Figure

from eqjax import plots, stability
from eqjax._files import DiskFullError, write_text
from eqjax.cli import main
from eqjax.language import replacing
from eqjax.recipes import TrainConfig, open_run
from eqjax.training import CheckpointError, Checkpoints, Metrics, Run, read_metrics


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_rust(*_, **__):
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")


def save_model(folder):
    with replacing(folder) as fresh:
        (fresh / "config.json").write_text("{}")
        safetensors.numpy.save_file({"a": np.ones(1)}, fresh / "model.safetensors")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("settle and answer then settle once more " * 40)
    return TrainConfig(
        out=tmp_path / "run",
        text=path,
        width=4,
        heads=1,
        length=4,
        batch=2,
        steps=2,
        warmup=1,
        log_every=1,
        save_every=1,
        probe_every=0,
        evaluate_windows=2,
    )


def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on(config, monkeypatch, capsys):
    out = config.out
    cure = f"no space left on the disk. Free space, then go on with `eqjax train --resume {out}`.\n"
    config.save(out.parent / "settings.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(TrainConfig, "finish", lambda self, run: save_model(self.out / "model"))
        patch.setattr(safetensors.numpy, "save_file", in_rust)
        with pytest.raises(SystemExit) as stop:
            main(["train", "--config", str(out.parent / "settings.yaml")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {out / 'model'} could not be written: {cure}"
    assert not list((out / "model").iterdir())
    assert open_run(out).state.step == 2


def orbax_full(patch):
    def save(self, step, *_, **__):
        (Path(self.directory) / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    patch.setattr(ocp.CheckpointManager, "save", save)


def nothing_free(patch):
    patch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))


def test_a_checkpoint_on_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    state = {"a": jnp.arange(3.0)}
    monkeypatch.setattr("time.sleep", lambda _: None)
    with Checkpoints(tmp_path, keep=1) as kept:
        kept.save(1, state, {})
        for filled in (orbax_full, nothing_free):
            with monkeypatch.context() as patch:
                filled(patch)
                with pytest.raises(DiskFullError, match=f"{tmp_path / '2'} could not be written"):
                    kept.save(2, state, {})
            assert [path.name for path in tmp_path.iterdir()] == ["1"]
            assert np.array_equal(kept.restore(state)["a"], state["a"])


def test_a_line_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    metrics, opened = Metrics(tmp_path / "metrics.jsonl"), Path.open
    metrics.write(1, loss=2.0)

    def half(self, mode, *args, **kwargs):
        with opened(self, mode) as file:
            file.write(b'{"step": ')
        full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", half)
        with pytest.raises(DiskFullError, match=r"metrics\.jsonl could not be written"):
            metrics.write(2, loss=1.0)
    metrics.write(2, loss=1.0)
    assert read_metrics(metrics.path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


@pytest.mark.parametrize(
    ("name", "where", "write"),
    [
        ("a.json", "pathlib.Path.open", lambda path: write_text(path, "new")),
        ("metrics.jsonl", "pathlib.Path.open", Metrics),
        ("a.png", "matplotlib.figure.Figure.savefig", lambda path: plots.save(Figure(), path)),
        ("a.zip", "numpy.lib.format.write_array", lambda path: stability.save(path, np.ones(2))),
        ("model", "pathlib.Path.write_text", save_model),
    ],
)
def test_what_was_there_stays_whole_where_the_disk_is_full(
    name, where, write, tmp_path, monkeypatch
):
    path = tmp_path / name
    old = path
    if name == "model":
        path.mkdir()
        old = path / "model.safetensors"
    old.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(DiskFullError, match=f"{path} could not be written: .* try again"):
            write(path)
    assert old.read_bytes() == b"old" and len(list(old.parent.iterdir())) == 1


def test_a_reader_beside_a_writer_waits_or_says_so(config, monkeypatch):
    run = Run.start(config)
    where, waits = config.out / "checkpoints", []

    def beside(step, _):
        if step != 2:
            return
        # As a reader finds them that has listed the newest just before it was replaced.
        broken = [p for p in (where / "1").rglob("*") if p.is_file()]
        contents = [p.read_bytes() for p in broken]
        for path in broken:
            path.write_bytes(b"")
        monkeypatch.setattr("time.sleep", waits.append)
        with pytest.raises(
            CheckpointError, match=f"process {os.getpid()} on .* writes there"
        ) as stop:
            open_run(config.out)
        assert len(waits) == 3 and "damaged" not in str(stop.value)

        def written(_):
            for path, content in zip(broken, contents, strict=True):
                path.write_bytes(content)

        monkeypatch.setattr("time.sleep", written)
        assert open_run(config.out).state.step == 1
        with pytest.raises(CheckpointError, match="no checkpoint at step 7; there are"):
            open_run(config.out, step=7)

    run.train(on_step=beside)
    with Checkpoints(where) as kept:
        assert kept.latest() == 2
