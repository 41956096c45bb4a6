"""Requirements of a quick selection of the tests, one a line: `python .ci/requirements.py oldest` or `newest`.

The engine and all its extras, and of the extra `test` what every test file imports; the oracles of single files (torch,
transformers, scikit-learn) and the linters are left out. *Oldest*: exactly the lower bounds that pyproject.toml declares.
*Newest*: whatever the registry has, for `pip install --upgrade`. `report` tells what an environment got.
"""

import importlib.metadata
import platform
import re
import sys
import tomllib
from pathlib import Path

TOOLS = ("beartype", "chex", "hypothesis", "pytest", "pytest-xdist")


def declared():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    yield from project["project"]["dependencies"]
    for name in ("training", "language", "plots", "cli"):
        yield from (line for line in extras[name] if not line.startswith("eqjax"))
    yield from (line for line in extras["test"] if re.split("[>=]=", line)[0] in TOOLS)


def main(which):
    pairs = [re.fullmatch(r"([\w-]+)>=([\w.]+)", line).groups() for line in declared()]
    if which == "report":
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name, _ in pairs)
        print(f"Python {platform.python_version()}: {found}")
    else:
        for name, bound in pairs:
            print(f"{name}=={bound}" if which == "oldest" else f"{name}>={bound}")


if __name__ == "__main__":
    main(*sys.argv[1:])
