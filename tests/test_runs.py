"""`eqjax runs`, on folders whose every figure is known."""

import json

import pytest
import yaml

from eqjax.cli import main
from eqjax.cli._runs import found_runs, read_run, recipe_of, series, sparkline
from eqjax.recipes import RECIPES, GPT2Settings, TrainConfig


def made(folder, settings, lines, torn=b""):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.to_dict()))
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    (folder / "metrics.jsonl").write_bytes(torn + text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    losses = [3.0, 2.5, 2.0, 2.25]
    held = [
        {"step": 10 * i, "validation": loss, "validation_unsettled": 0.1 / i, "seconds": 0.1 * i}
        for i, loss in enumerate(losses, 1)
    ]
    made(tmp_path / "runs" / "held", TrainConfig(width=32, steps=50, homeostat="growth"), held)
    free = [{"step": 5, "validation": 2.75}, {"step": 7, "validation": None, "accepted": 0.5}]
    torn = b'{"step": 3, "loss"\nnot a line\n[1]\n\xff\n{"validation": 1.0}\n'
    made(tmp_path / "runs" / "shown" / "bptt", TrainConfig(estimator="bptt"), [])
    (tmp_path / "runs" / "shown" / ".eqjax-demo").touch()
    made(tmp_path / "runs" / "more" / "gpt", GPT2Settings(steps=7, memory="both"), free, torn)
    return tmp_path / "runs"


def test_runs_are_listed_with_their_figures(folder, capsys):
    main(["runs"])
    said = capsys.readouterr().out
    held = next(line.split() for line in said.splitlines() if "held" in line)
    assert held[1:3] == ["train,", "asymep"]
    assert held[3:] == ["40/50", "2.0000", "at", "30", "█▅▁▃", "97.5%", "0.25"]
    gpt = next(line.split() for line in said.splitlines() if "gpt2 train" in line)
    assert gpt[3:] == ["7/7", "2.7500", "at", "5", "▁", "50.0%", "–"]
    assert "more/gpt: metrics.jsonl: 5 of 7 lines cannot be read (1, 2, 3, 4, 5)." in said
    main(["runs", "runs/more"])
    assert "held" not in capsys.readouterr().out


def test_what_is_damaged_is_told_and_hides_no_other_run(folder, capsys):
    """Settings without names, nested without end, a log that is a folder, a number beyond all, a link to what is there."""
    (folder / "held" / "config.yaml").write_text("1: 2\nwidth: [[]]\n")
    for name, settings in (("deep", "[" * 20_000), ("odd", "")):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(settings)
    (folder / "odd" / "metrics.jsonl").mkdir()
    (folder / "deep" / "metrics.jsonl").write_text(f'{{"step": 1, "validation": 1{"0" * 400}}}\n')
    (folder / "again").symlink_to(folder / "held")
    main(["runs"])
    said = capsys.readouterr().out
    assert "runs/deep: config.yaml cannot be read (maximum recursion depth" in said
    assert "runs/odd: config.yaml cannot be read" in said and "metrics.jsonl cannot be read" in said
    assert said.count("40/") == 1 and "2.7500 at 5" in said
    main(["runs", "runs/held", "runs/odd"])
    assert "settings that differ" in capsys.readouterr().out


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_name_is_cut_in_a_narrow_terminal(folder, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    main(["runs", "runs/held"])
    said = capsys.readouterr().out
    assert "runs/held" in said and "2.0000 at 30" in said and "…" not in said
    assert ("97.5%" in said, "█▅▁▃" in said) == (width >= 60, width >= 80)


def test_named_runs_are_compared_by_what_differs(folder, capsys):
    made(folder / "other", TrainConfig(width=64, steps=50, homeostat="growth"), [])
    main(["runs", "runs/held", "runs/other"])
    table = capsys.readouterr().out.partition("settings that differ")[2].splitlines()
    assert [line.split() for line in table if line] == [["held", "other"], ["width", "32", "64"]]
    made(folder / "twin", TrainConfig(width=64, steps=50, homeostat="growth"), [])
    main(["runs", "runs/other", "runs/twin"])
    assert "settings are the same" in capsys.readouterr().out


def test_damage_is_told_and_harms_no_neighbour(folder, capsys):
    (folder / "held" / "config.yaml").write_text("a: [")
    main(["runs"])
    said = capsys.readouterr().out
    assert "config.yaml cannot be read" in said and "40/?" in said and "gpt2 train" in said
    for wrong, message in (
        (["nowhere"], "no such folder"),
        (["runs/held/empty"], "no runs in there"),
    ):
        (folder / "held" / "empty").mkdir(exist_ok=True)
        with pytest.raises(SystemExit) as stop:
            main(["runs", *wrong])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_sparkline_ends_where_its_values_end():
    assert sparkline([]) == "" and sparkline([2.0]) == "▁" and sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([float(i) for i in range(8)]) == "▁▂▃▄▅▆▇█"
    long = sparkline([float(i) for i in range(1000)])
    assert len(long) == 24 and long[0] == "▁" and long[-1] == "█" and list(long) == sorted(long)


def test_every_recipe_is_told_by_its_settings(folder):
    for recipe in RECIPES:
        assert recipe_of(recipe().to_dict()).startswith(recipe.command)
    assert recipe_of({"wings": 2}) == recipe_of({}) == "?"
    assert [run.name for run in found_runs(folder)] == ["held", "gpt", "bptt"]
    assert series(read_run(folder / "held"), "validation")[-1] == (40, 2.25)


def test_what_is_not_finite_is_left_out(tmp_path):
    values = [2.0, float("inf"), float("nan"), 1.5]
    lines = [{"step": i, "validation": value} for i, value in enumerate(values)]
    made(tmp_path / "lost", TrainConfig(), lines)
    assert series(read_run(tmp_path / "lost"), "validation") == [(0, 2.0), (3, 1.5)]
    main(["runs", str(tmp_path)])
