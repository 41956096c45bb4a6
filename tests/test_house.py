"""The house as a whole: what imports what, and that the README is true."""

import ast
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import eqjax
from eqjax.cli import _parse

ROOT = Path(__file__).parents[1]
FLOORS = {
    "analytic": 1,
    "fields": 2,
    "relaxation": 3,
    "gradients": 4,
    "stability": 4,
    "language": 5,
    "training": 5.5,  # training may use language, never the other way round
    "plots": 6,
    "demo": 6.5,
    "showcase": 6.5,
    "cli": 7,
    "__main__": 8,
}


def imports(path):
    """Absolute names of everything that a module imports."""
    package = ["eqjax", *path.relative_to(ROOT / "eqjax").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "eqjax").rglob("*.py")), ids=str)
def test_a_floor_imports_only_from_floors_below(path):
    room = path.relative_to(ROOT / "eqjax").parts[0].removesuffix(".py")
    for name in imports(path):
        assert not re.match(r"(equinox|diffrax|optimistix|lineax|jax)\.(internal|_)", name), name
        if name.startswith("eqjax.") and room in FLOORS:
            other = name.split(".")[1]
            assert other == room or FLOORS[other] < FLOORS[room], f"{path} imports {name}"


def test_version_comes_from_the_metadata_and_types_are_shipped():
    assert eqjax.__version__ == importlib.metadata.version("eqjax")
    assert (Path(eqjax.__file__).parent / "py.typed").exists()


def test_the_python_example_of_the_readme_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code[1] + "\nassert metrics['updated']\n"],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert "AsymEP" in done.stdout and "cosine" in done.stdout


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"^\.venv/bin/python -m eqjax (.*)$", text, re.M)
    assert len(commands) >= 2
    for command in commands:
        _parse(shlex.split(command))
    targets = set(re.findall(r"^make (\w+)", text, re.M))
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (ROOT / link).exists(), link
