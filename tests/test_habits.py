"""What a shell sees of the command line: exit codes, completion, quiet; and what a release asks for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eqjax import cli
from eqjax.cli import _working, main

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import strays

sys.path.pop(0)


def code(*words):
    try:
        main(list(words))
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_exit_codes_are_those_of_the_page(monkeypatch, tmp_path, capsys):
    page = (ROOT / "docs" / "look-up" / "cli.md").read_text("utf-8")
    assert re.findall(r"^\| (\d+) \|", page, re.M) == ["0", "1", "2", "130"]
    assert code("--version") == code("train", "--help") == 0
    for words in (
        ["walk"],
        ["train", "--width", "wide"],
        ["evaluate", str(tmp_path)],
        ["train", "--width", "3"],
    ):
        assert code(*words) == 2, words
    kind = cli._runs.RunsCommand
    monkeypatch.setitem(
        cli._RUN, kind, lambda command: (_ for _ in ()).throw(KeyboardInterrupt("so"))
    )
    capsys.readouterr()
    assert code("--no-cache", "runs") == 130 and capsys.readouterr().err == "\nso\n"
    # A fault is Python's own: where it happened, and code 1.
    monkeypatch.setitem(cli._RUN, kind, lambda command: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--no-cache", "runs"])


def test_quiet_is_for_one_command(monkeypatch, capsys):
    seen = []
    monkeypatch.setitem(
        cli._RUN, cli._runs.RunsCommand, lambda command: seen.append(_working.is_quiet())
    )
    monkeypatch.setattr(_working, "_PAUSE", 0.001)
    main(["runs", "--quiet", "--no-cache"])
    with _working.working("settling") as tell:
        tell("on the way")
        _working.talk().print("Text: some")
    assert "".join(capsys.readouterr()) == ""
    main(["--no-cache", "runs"])
    assert seen == [True, False]


def test_the_shell_completes_commands_and_flags(tmp_path, capsys):
    assert code("--tyro-print-completion", "bash") == 0
    script = tmp_path / "eqjax.sh"
    script.write_text(capsys.readouterr().out)
    ask = (
        f"source {script}; COMP_WORDS=(eqjax {{words}}); COMP_CWORD={{at}}; _tyro_eqjax eqjax {{last}} x; "
        'echo "${{COMPREPLY[@]}}"'
    )
    for words, wanted in (("spec", "spectrum"), ("train --homeostat-c", "--homeostat-controller")):
        *_, last = words.split()
        line = ask.format(words=words, at=len(words.split()), last=last)
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run([bash, "-c", line], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [wanted]


def test_a_release_is_tried_and_published_without_a_secret():
    workflow = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    steps = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert steps[1:] == [".ci/run", ".ci/release"] and "GITHUB_REF_NAME" in steps[0]
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["permissions"] == {
        "id-token": "write"
    }
    assert "secrets." not in (ROOT / ".github/workflows/publish.yml").read_text("utf-8")
    script = (ROOT / ".ci" / "release").read_text("utf-8")
    assert "demo --steps 40" in script and "py.typed" in script and "consumer.py" in script


def test_strays_of_a_source_distribution_are_named():
    good = [
        "e-1/eqjax/__init__.py",
        "e-1/PKG-INFO",
        "e-1/README.md",
        "e-1/.ci/run",
        "e-1/pyproject.toml",
    ]
    assert list(strays.strays(good)) == []
    bad = ["e-1/notes.txt", "e-1/eqjax/__pycache__/a.pyc", "e-1/runs/demo/x", "e-1/.env"]
    assert list(strays.strays([*good, *bad])) == bad
