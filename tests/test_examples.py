"""What one calls has an example in its docstring, of a few lines, that runs: the flat names, and those of every room."""

import ast
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

import equinox as eqx
import pytest

import eqjax

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / ".ci"))

from reference import ROOMS, path, public

PAGE = (ROOT / "docs" / "look-up.md").read_text("utf-8")
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
# Results of calls that state a wider type.
RESULTS = {"HomeostatState", "SettledContinuation", "StepMemory"}


def shown():
    """Every name with its room, but for those of the command line, and of a room whose packages are not there."""
    for room in ROOMS[:-1]:
        try:
            yield from ((room, name, inspect.unwrap(v)) for name, v in public(room).items())
        except ImportError:  # tests/test_house.py asks for what it says
            continue


NAMES = list(shown())
KINDS = {name: value for _, name, value in NAMES if inspect.isclass(value)}


def kinds_in(*annotations):
    """Which classes of ours these speak of."""
    return KINDS.keys() & set(re.findall(r"\w+", " ".join(map(str, annotations))))


@functools.cache
def returned():
    """Classes that a call returns, and those that they are made of: one is given them."""
    calls = [v for _, _, v in NAMES if inspect.isfunction(v)]
    for kind in KINDS.values():
        members = (getattr(m, "fget", getattr(m, "__func__", m)) for m in vars(kind).values())
        calls += filter(inspect.isfunction, map(inspect.unwrap, members))
    found, new = set(), kinds_in(*(call.__annotations__.get("return") for call in calls))
    while new - found:
        found |= new
        new = kinds_in(*(v for n in found for v in inspect.get_annotations(KINDS[n]).values()))
    return found | RESULTS


def called(name, value):
    """Whether a user calls it: a function, or a class that is no base, no result and no command, whose help is its docstring."""
    if not inspect.isclass(value):
        return inspect.isfunction(value) and not name.startswith("check_")
    base = inspect.isabstract(value) or name.startswith("Abstract")
    command = any(kind.__name__ in ("AbstractRecipe", "AbstractShow") for kind in value.__mro__)
    other = issubclass(value, tuple | Exception) or isinstance(value, type(eqx.Enumeration))
    return not (base or command or other or name in returned())


@functools.cache
def begun(room):
    """What the page says all examples begin from, and those of a room besides."""
    names = dict(begun(None)) if room else {}
    text = inspect.getdoc(importlib.import_module(f"eqjax.{room}")) if room else PAGE
    exec("".join(BLOCK.findall(text)), names)
    return names


def calls_fit(code, names):
    """Also of a function that is not run the arguments are those of what it calls."""
    for call in ast.walk(ast.parse(code)):
        target = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if re.fullmatch(r"ej(\.\w+)+", target) and not any(
            isinstance(a, ast.Starred) for a in call.args
        ):
            named = {a.arg: None for a in call.keywords if a.arg}
            inspect.signature(eval(target, names)).bind(*call.args, **named)


EXAMPLES = {
    path(room, name): (room, value)
    for room, name, value in NAMES
    if called(name, value) or "```python" in (inspect.getdoc(value) or "")
}
FLAT = {f"ej.{n}" for n in dir(eqjax) if not inspect.ismodule(getattr(eqjax, n))}


def test_the_flat_names_have_examples():
    assert EXAMPLES.keys() >= FLAT


@pytest.mark.parametrize("name", sorted(EXAMPLES, key=lambda n: (EXAMPLES[n][0], n)))
def test_an_example_runs(name):
    room, value = EXAMPLES[name]
    (code,) = BLOCK.findall(inspect.getdoc(value) or "")
    assert name in code
    try:
        names = dict(begun(None if name in FLAT else room))
        calls_fit(code, names)
        exec(code, names)
    except ImportError as error:
        if "eqjax[" not in str(error):
            raise
        pytest.skip(str(error))  # an extra is not there
