"""Trackers get what `metrics.jsonl` gets, a run that goes on goes on there, and one that fails does no harm."""

import dataclasses
import importlib.metadata
import json
import sys
import types

import pytest

from eqjax import _extras
from eqjax.cli import main
from eqjax.recipes import GPT2Settings, open_run
from eqjax.training import Aim, Run, TensorBoard, WandB, read_metrics, trackers_of
from eqjax.training._trackers import tracked


class Kept:
    """A tracker that keeps all it is told."""

    def __init__(self, fails_at=None):
        self.begun, self.lines, self.closed, self.fails_at = [], [], 0, fails_at

    def begin(self, folder, settings, after):
        self.begun.append((folder, settings["width"], after))

    def log(self, step, values):
        if step == self.fails_at:
            raise OSError("the network is gone")
        self.lines.append({"step": step} | values)

    def close(self):
        self.closed += 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was cut in two, with trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    text = folder / "text.txt"
    text.write_text("settle and answer, then settle once more. " * 60)
    sizes = {"width": 8, "heads": 2, "length": 8, "batch": 4, "warmup": 1, "evaluate_windows": 8}
    often = {
        "log_every": 1,
        "save_every": 2,
        "evaluate_every": 2,
        "layers": 1,
    }
    kept, fails = Kept(), Kept(fails_at=2)
    run = Run.start(GPT2Settings(out=folder / "run", text=text, steps=4, **sizes, **often))

    def stop(step, values):
        if step == 3:
            raise RuntimeError("cut")

    with (
        pytest.raises(RuntimeError),
        pytest.warns(UserWarning, match="Kept failed.*network.*goes on without"),
    ):
        run.train(on_step=stop, log=[kept, fails, TensorBoard()])
    again = open_run(folder / "run")
    assert int(again.state.step) == 2
    more = Kept()
    again.train(log=[more, TensorBoard()])
    return folder, again, (kept, fails, more)


def test_a_tracker_gets_the_lines_of_the_log_and_is_closed(trained):
    folder, _, (kept, fails, more) = trained
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    timed = ("seconds", "per_second")
    told = lambda line: {
        k: v for k, v in line.items() if v is not None and v == v and not k.endswith(timed)
    }
    assert [told(line) for line in lines if line["step"] > 2] == [told(line) for line in more.lines]
    assert [told(line) for line in lines if line["step"] <= 2] == [
        told(line) for line in kept.lines if line["step"] <= 2
    ]
    assert kept.begun == [(folder / "run", 8, 0)] and more.begun == [(folder / "run", 8, 2)]
    assert (kept.closed, fails.closed, more.closed) == (1, 1, 1)
    assert [line["step"] for line in fails.lines] == [1]


def test_one_that_fails_is_closed_and_no_other_one_is_left_out(tmp_path):
    """Also of trackers that are equal to one another, and with a metric that is no number."""
    same = dataclasses.make_dataclass("Same", [], bases=(Kept,))
    good, bad = same(), same()
    for tracker, fails in ((good, None), (bad, 1)):
        Kept.__init__(tracker, fails)
    assert good == bad
    with (
        pytest.warns(UserWarning, match="Same failed"),
        tracked([good, bad], tmp_path, {"width": 8}, 0) as log,
    ):
        for step in (1, 2):
            log(step, {"loss": 0.5, "verdict": "good", "none": None, "parts": [1, 2]})
    want = {"loss": 0.5, "parts/0": 1.0, "parts/1": 2.0}
    assert good.lines == [{"step": 1} | want, {"step": 2} | want]
    assert (good.closed, bad.closed, bad.lines) == (1, 1, [])


def test_tensorboard_reads_it_back_once(trained):
    """The events, read as records of TFRecord files: a resumed run tells from where on the earlier ones are void."""
    from tensorboardX.proto import event_pb2

    folder, *_ = trained
    found, starts = {}, []
    for path in sorted(
        (folder / "run" / "tensorboard").iterdir(), key=lambda p: (p.stat().st_mtime_ns, p.name)
    ):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(
                data[:8], "little"
            )  # a length, its checksum, the record, its checksum
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == event_pb2.SessionLog.START:
                starts.append(event.step)
                found = {key: value for key, value in found.items() if key[0] < event.step}
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found[event.step, value.tag] = value.simple_value
    assert starts == [3]
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    wanted = {(line["step"], k): v for line in lines for k, v in line.items() if k != "step"}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    assert {key for key in found if found[key] == found[key]} >= wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key], rel=1e-6) for key in wanted)
    assert trackers_of(folder / "run") == ["tensorboard"]


def stub(monkeypatch, name, **members):
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))
    monkeypatch.setattr(_extras, "require", lambda extra: None)
    monkeypatch.setattr("eqjax.training._trackers.require", lambda extra: None)


def test_a_run_at_weights_and_biases_goes_on(monkeypatch, tmp_path):
    calls = []

    class Logged:
        def __getattr__(self, name):
            return lambda *args, **how: calls.append((name, args, how))

    def init(**how):
        calls.append(("init", (), how))
        return Logged()

    stub(monkeypatch, "wandb", init=init)
    for after in (0, 3):
        tracker = WandB("project", mode="offline")
        tracker.begin(tmp_path, {"width": 8}, after)
        tracker.log(after + 1, {"loss": 1.0})
        tracker.close()
    first, second = (how for name, _, how in calls if name == "init")
    assert first == second and first["id"] and first["resume"] == "allow"
    assert first["project"] == "project" and first["mode"] == "offline"
    assert ("log", ({"step": 4, "loss": 1.0},), {}) in calls
    assert [name for name, *_ in calls] == ["init", "define_metric", "log", "finish"] * 2
    assert trackers_of(tmp_path) == ["wandb"]


def test_a_run_in_aim_goes_on(monkeypatch, tmp_path):
    calls = []

    class AimRun(dict):
        def __init__(self, known, **how):
            self.hash = known or "abc"
            calls.append(("begin", known, how["experiment"]))

        def track(self, value, name, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("close")

    repo = types.SimpleNamespace(from_path=lambda path, init: path)
    stub(monkeypatch, "aim", Run=AimRun, Repo=repo)
    for after in (0, 3):
        tracker = Aim()
        tracker.begin(tmp_path, {"width": 8}, after)
        tracker.log(after + 1, {"loss": 1.0})
        tracker.close()
    name = tmp_path.name
    assert calls == [
        ("begin", None, name),
        ("loss", 1.0, 1),
        "close",
        ("begin", "abc", name),
        ("loss", 1.0, 4),
        "close",
    ]


def test_what_is_no_tracker_or_not_installed_is_refused_before_anything_runs(
    trained, monkeypatch, capsys
):
    folder, again, _ = trained
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    for wrong in (print, TensorBoard, "tensorboard", [Kept(), 3]):
        with pytest.raises((ValueError, TypeError), match="log"):
            again.train(log=wrong)
    real = importlib.metadata.requires

    def requires(name):
        return [*real(name), 'nowhere-1>=2; extra == "wandb"']

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    _extras.require.cache_clear()
    with pytest.raises(ImportError, match=r"nowhere-1.*: pip install 'eqjax\[wandb\]'"):
        again.train(log=WandB())
    _extras.require.cache_clear()
    assert (folder / "run" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(SystemExit) as stop:
        main(["gpt2", "train", "--resume", str(folder / "run"), "--log", "carbon-copy"])
    assert stop.value.code == 2 and "tensorboard" in capsys.readouterr().err


def test_the_command_line_goes_on_with_the_trackers_of_a_run(trained, monkeypatch, capsys):
    folder, *_ = trained
    begun = []
    begin = TensorBoard.begin
    monkeypatch.setattr(
        TensorBoard, "begin", lambda self, *told: (begun.append(told[2]), begin(self, *told))[1]
    )
    main(["--quiet", "gpt2", "train", "--resume", str(folder / "run")])
    assert begun == [4]
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("validation cross-entropy")
    json.loads((folder / "run" / "trackers.json").read_text())
