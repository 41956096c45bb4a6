"""The house as a whole: what imports what, what a room shows, and that README and CONTRIBUTING are true."""

import ast
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import eqjax
from eqjax.cli import _parse

ROOT = Path(__file__).parents[1]
# The one list of floors; CONTRIBUTING's table is checked against it.
FLOORS = {
    1: ("analytic",),
    2: ("fields",),
    3: ("relaxation",),
    4: ("gradients", "stability"),
    5: ("homeostasis",),
    6: ("training",),
    7: ("language",),
    8: ("memory", "resonance"),
    9: ("recipes",),
    10: ("plots",),
    11: ("showcase", "demo"),
    12: ("cli",),
}
ROOMS = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
ENGINE = {
    "jax",
    "equinox",
    "diffrax",
    "optimistix",
    "lineax",
    "optax",
    "jaxtyping",
    "numpy",
    "scipy",
}
EXTRAS = (
    "matplotlib orbax grain tokenizers safetensors huggingface_hub pooch tyro rich yaml "
    "tensorboardX wandb aim"
).split()
MODULES = sorted((ROOT / "eqjax").rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT / "eqjax").parts[0].removesuffix(".py")


def imports(path):
    """What a module imports from: pairs of a module and a name in it, None for a whole module."""
    package = ["eqjax", *path.relative_to(ROOT / "eqjax").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from ((module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_floor_imports_from_the_faces_of_floors_below(path):
    room = room_of(path)
    for module, name in imports(path):
        whole = f"{module}.{name}" if name else module
        assert not re.match(r"(equinox|diffrax|optimistix|lineax|jax)\.(internal|_)", whole), whole
        if module.split(".")[0] != "eqjax" or room not in ROOMS:
            continue
        parts = whole.split(".")
        if parts[1].startswith("_"):  # `_extras`
            continue
        assert parts[1] == room or ROOMS[parts[1]] < ROOMS[room], f"{path} imports {whole}"
        if parts[1] != room:
            assert len(module.split(".")) <= 2, f"{path} imports {whole} past the face of its room"


def test_modules_are_private_and_a_room_shows_what_it_means_to():
    for path in MODULES:
        parts = path.relative_to(ROOT / "eqjax").parts
        assert parts[0].removesuffix(".py") in {
            *ROOMS,
            "__init__",
            "__main__",
            "_checks",
            "_extras",
            "_files",
        }, path
        assert len(parts) == 1 or parts[-1].startswith("_"), f"{path} is not private"
    for room in ROOMS:
        face = importlib.import_module(f"eqjax.{room}")
        shown = {name: value for name, value in vars(face).items() if not name.startswith("_")}
        if room != "demo":  # a module, not a package
            modules = [
                name
                for name, value in shown.items()
                if isinstance(value, types.ModuleType) and value.__name__.startswith("eqjax")
            ]
            assert not modules, f"{room} leaks {modules}"


def test_a_class_has_one_name_and_a_name_is_defined_once():
    """But for the plots, which are named after what they draw."""
    seen = {}
    for path in MODULES:
        if room_of(path) == "plots":
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_"):
                    assert name not in seen, f"{name} in {path} and {seen[name]}"
                    seen[name] = path


def test_the_flat_names_are_few_and_all_documented():
    assert int(run("-c", "import eqjax; print(len(dir(eqjax)))").stdout) <= 46
    for room in ROOMS:
        face = importlib.import_module(f"eqjax.{room}")
        assert face.__doc__
        for name, value in vars(face).items():
            value = inspect.unwrap(value)  # a compiled function is none itself
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                assert inspect.getdoc(value), f"eqjax.{room}.{name} has no docstring"


def test_no_file_is_long():
    for folder in ("eqjax", "tests", "benchmarks", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text("utf-8").splitlines())
            assert lines <= 450, f"{path} has {lines} lines"


def test_scripts_import_what_there_is():
    """Those that no test runs: experiments, benchmarks and the gallery."""
    lost = []
    for folder in ("experiments", "benchmarks", "docs/gallery"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eqjax"):
                    module = importlib.import_module(node.module)
                    names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                    lost += [f"{path}: {node.module}.{name}" for name in names]
    assert lost == []


def test_the_floors_are_those_of_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.M)
    told = {int(n): tuple(re.findall(r"`(?:eqjax/)?(\w+)(?:/|\.py)?`", rooms)) for n, rooms in rows}
    assert told == FLOORS


def test_the_engine_imports_light_and_touches_no_device():
    code = (
        "import sys, eqjax, jax\n"
        f"print([m for m in {EXTRAS} if m in sys.modules])\n"
        "for room in ('stability', 'homeostasis', 'training'): getattr(eqjax, room)\n"
        f"print([m for m in {[*EXTRAS, 'scipy.optimize', 'scipy.linalg']} if m in sys.modules])\n"
        # Devices can still be chosen.
        "jax.config.update('jax_num_cpu_devices', 3); print(jax.device_count())\n"
    )
    assert run("-c", code).stdout.split("\n")[:3] == ["[]", "[]", "3"]


def test_the_engine_needs_its_own_packages_only():
    needed = [r for r in importlib.metadata.requires("eqjax") or () if "extra ==" not in r]
    assert {re.match(r"[\w-]+", r)[0] for r in needed} == ENGINE
    found = set()
    for path in MODULES:
        if room_of(path) in ROOMS and ROOMS[room_of(path)] <= ROOMS["training"]:
            found |= {module.split(".")[0] for module, _ in imports(path)}
    assert found - set(sys.stdlib_module_names) - {"eqjax"} <= ENGINE | {
        "orbax",
        "yaml",
        "tensorboardX",
        "wandb",
        "aim",
    }


@pytest.mark.parametrize(
    ("asked", "extra"),
    [("language", "language"), ("plots", "plots"), ("cli", "cli"), ("recipes", "language")],
)
def test_a_missing_extra_is_named_in_one_line(asked, extra):
    hidden = {"language": "tokenizers", "plots": "matplotlib", "cli": "tyro"}[extra]
    code = (
        "import importlib.metadata as m\n"
        f"old = m.version\ndef version(name):\n    if name == {hidden!r}: raise m.PackageNotFoundError(name)\n"
        "    return old(name)\n"
        f"m.version = version\nimport eqjax.{asked}\n"
    )
    done = run("-c", code, check=False)
    last = done.stderr.strip().split("\n")[-1]
    assert done.returncode != 0
    assert last.startswith("ImportError") and hidden in last and f"eqjax[{extra}]" in last


def test_checkpoints_ask_for_their_extra(monkeypatch, tmp_path):
    from eqjax import _extras

    real = importlib.metadata.version

    def version(name):
        if name == "orbax-checkpoint":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    _extras.require.cache_clear()
    with pytest.raises(ImportError, match=r"orbax-checkpoint: pip install 'eqjax\[training\]'"):
        eqjax.training.Checkpoints(tmp_path)


def test_version_comes_from_the_metadata_and_types_are_shipped():
    assert eqjax.__version__ == importlib.metadata.version("eqjax")
    assert (Path(eqjax.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eqjax.nothing


def run(*arguments, check=True):
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_the_python_example_of_the_readme_runs_on_the_engine_alone():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert code is not None
    after = (
        f"\nassert metrics['updated']\nimport sys\nassert not set({EXTRAS}) & set(sys.modules)\n"
    )
    done = run("-c", code[1] + after)
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


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


def test_the_paths_that_prose_names_exist():
    """`ej.room.name` in README, guide and findings is what one may type."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")]
    for page in pages:
        for path in set(re.findall(r"`(?:ej|eqjax)\.([\w.]+)", page.read_text("utf-8"))):
            value = eqjax
            for name in path.rstrip(".").split("."):
                assert hasattr(value, name), f"{page} names {path}"
                value = getattr(value, name)


def test_every_module_imports_by_itself():
    names = [m.name for m in pkgutil.walk_packages(eqjax.__path__, "eqjax.")]
    assert len(names) > 100
    for name in names:
        if name != "eqjax.__main__":
            importlib.import_module(name)


def test_asymep_is_read_in_nine_steps():
    """From the call to the nudged force there are no more than nine frames of the package, and the contrast stands in the third."""
    import jax

    package, deepest = str(Path(eqjax.__file__).parent), [0]

    class Watched(eqjax.AbstractForceField):
        weight: jax.Array

        def __call__(self, t, z, x):
            frame, depth = inspect.currentframe(), 0
            while frame is not None:
                depth += frame.f_code.co_filename.startswith(package)
                frame = frame.f_back
            deepest[0] = max(deepest[0], depth)
            return x - self.weight * z

    ones = jax.numpy.ones((2, 3))
    model = eqjax.EquilibriumModel(lambda u: u, Watched(ones[0]), lambda z: z)
    assert eqjax.AsymEP()(model, eqjax.squared_error, (ones, 2 * ones)).report.accepted.all()
    assert deepest[0] <= 9
    text = inspect.getsource(eqjax.gradients.AbstractNudgedEstimator.respond)
    assert "a = (z₋ - z₊)/2β" in text
