"""Each flat name has an example in its docstring, of a few lines, that runs."""

import inspect
import re
from pathlib import Path

import pytest

import eqjax

PAGE = (Path(__file__).parents[1] / "docs" / "look-up.md").read_text("utf-8")
NAMES = [n for n in dir(eqjax) if not inspect.ismodule(getattr(eqjax, n))]
BLOCK = re.compile(r"```python\n(.*?)```", re.S)


@pytest.fixture(scope="module")
def begun():
    """What the page says all examples begin from."""
    names = {}
    exec("".join(BLOCK.findall(PAGE)), names)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_a_flat_name_has_an_example_that_runs(name, begun):
    (code,) = BLOCK.findall(inspect.getdoc(getattr(eqjax, name)) or "")
    assert f"ej.{name}" in code
    exec(code, dict(begun))
