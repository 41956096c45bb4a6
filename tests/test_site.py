"""The site: nothing is missing on it, and what it says the code says, too."""

import ast
import contextlib
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest
import yaml

import eqjax
from eqjax import cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
import reference
import site_pages

sys.path.pop(0)


def shown(room):
    """The names that a face imports, as its text has them."""
    tree = ast.parse((ROOT / "eqjax" / room / "__init__.py").read_text("utf-8"))
    aliases = (a for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names)
    return {a.asname for a in aliases if a.asname and not a.asname.startswith("_")}


@pytest.mark.parametrize("room", reference.ROOMS)
def test_every_public_name_is_on_the_page_of_its_room_with_its_call(room):
    assert f"::: eqjax.{room}" in (ROOT / "docs" / "look-up" / f"{room}.md").read_text("utf-8")
    page = reference.page(room)
    headings = re.findall(r"^### `ej\.(?:\w+\.)*(\w+)`", page, re.M)
    assert set(headings) == ({"main"} if room == "cli" else shown(room))
    for call in re.findall(r"^```python\n(\w[\w.]*\(.*?)\n```", page, re.M | re.S):
        ast.parse(f"def {call[call.rindex('.', 0, call.index('(')) + 1 :]}: ...")
    assert " object at " not in page


def test_calls_have_their_defaults_in_the_words_of_the_source():
    page = reference.page("relaxation")
    assert "### `ej.Picard` {#ej.Picard}" in page
    assert "    ridge: ScalarLike | None = None,\n    growth: ScalarLike = 10.0,\n" in page
    assert "    free: Solver = Anderson(rtol=1e-5),\n    nudged: Nudge = Nudge(),\n" in (
        reference.page("gradients")
    )
    assert "throw: bool = True" in page and ") -> " in page
    assert "- `nonlinear_divergence`: Nonlinear solve diverged." in page
    assert "- `free_rtol`: Force residual at which" in reference.page("recipes")
    assert "```python\nSpectrum.critical_step\n```" in reference.page("stability")


def test_a_state_is_no_emphasis():
    said = reference.prose("*Settle* to z* or F(z*) < 0, at `z*`, `Picard`, x_1: **so** *at last*")
    assert said == (
        r"*Settle* to z\* or F(z\*) &lt; 0, at `z*`, [`Picard`](relaxation.md#ej.Picard), x\_1: **so** *at last*"
    )


def test_every_command_has_its_help_on_the_site():
    help_texts = dict.fromkeys(cli._NAMES, site_pages.help_of("spectrum"))
    found = re.match(r"usage: eqjax \[-h\] \{([\w,]+)\}", site_pages.help_of())
    assert found is not None and set(found[1].split(",")) == {*help_texts, "gpt2"}
    assert "\x1b" not in help_texts["spectrum"] and "--windows INT" in help_texts["spectrum"]
    page = "\n".join(site_pages.commands("gpt2"))
    assert re.findall("^## `(.*)`", page, re.M) == [
        f"eqjax gpt2{word}" for word in ("", " train", " aeon", " arll", " generate", " chat")
    ]


def test_every_page_is_in_the_navigation():
    def leaves(node):
        children = node if isinstance(node, list) else node.values()
        for child in children:
            yield from [child] if isinstance(child, str) else leaves(child)

    there = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    tour = [f"learn/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")]
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    assert sorted(leaves(nav)) == sorted([*map(str, there), *tour])


def test_the_messages_of_the_debugging_page_are_those_of_the_code():
    pieces = []
    for path in (ROOT / "eqjax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                pieces.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(node.value)
    outcomes = vars(eqjax.RESULTS)["_name_to_item"].values()
    said = "\0".join([*pieces, *(eqjax.RESULTS[outcome] for outcome in outcomes)])
    page = (ROOT / "docs" / "debugging.md").read_text("utf-8")
    quoted = re.findall(r"```text\n(.*?)\n```", page, re.S)
    assert len(quoted) > 8
    for message in quoted:
        for part in re.split("…", message):
            assert part.strip(" .`,") in said, part


def test_the_example_of_the_landing_page_runs(capsys):
    page = (ROOT / "docs" / "index.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S)
    assert code is not None
    names = {}
    exec(code[1], names)
    assert names["estimate"].report.accepted.all()
    assert capsys.readouterr().out.count("\n") > 3


def test_pages_to_explore_are_those_of_the_command(monkeypatch):
    """Each is written once, however many lines ask for it."""
    written = []
    pool = types.SimpleNamespace(map=lambda act, names: map(written.append, names))
    monkeypatch.setattr(site_pages, "side_by_side", lambda: contextlib.nullcontext(pool))
    site_pages.all_explored.cache_clear()
    frames = [site_pages.explorer(name) for name in ("hh", "gain-toy")]
    site_pages.all_explored.cache_clear()
    assert written == ["gain-toy", "hh"] and 'src="../explore/hh.html"' in frames[0]
    assert re.search(r"\{([\w,-]+)\}", site_pages.help_of("explore"))[1] == "hh,gain-toy,block"


@pytest.mark.parametrize("path", sorted((ROOT / "docs/gallery").glob("*.py")), ids=lambda p: p.stem)
def test_a_picture_of_the_gallery_takes_fifteen_lines(path):
    """`make docs` runs them."""
    about, *body = ast.parse(path.read_text("utf-8")).body
    assert isinstance(about, ast.Expr) and not any(isinstance(n, ast.Assert) for n in body)
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = path.read_text("utf-8").splitlines()[body[len(imports)].lineno - 1 :]
    assert len([line for line in lines if line.strip()]) <= 15
    assert ast.unparse(body[-1]).startswith("figure = ej.plots.")


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    newest = re.search(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest is not None and newest[1] == citation["version"] == eqjax.__version__
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", newest[2])


def test_a_source_distribution_has_what_its_tests_read_and_no_strays():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all(p.startswith("/") and list(ROOT.glob(p[1:])) for p in patterns)
    read = {"CONTRIBUTING.md", "Makefile", ".ci", "docs", "experiments", "notebooks", "mkdocs.yml"}
    assert all(any(Path(name).match(p[1:]) for p in patterns) for name in read)


def test_the_workflow_runs_what_continuous_integration_runs_here():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]["run"]
    assert [step["run"] for step in steps["steps"] if "run" in step] == [".ci/run"]
