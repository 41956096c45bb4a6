"""Names in a source distribution that belong to no folder of the project: `tar tzf dist/*.tar.gz | python .ci/strays.py`."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = re.compile(
    r"__pycache__|\.pyc$|\.so$|\.DS_Store|\.ipynb_checkpoints|(^|/)runs/|(^|/)\.venv|\.jax_cache"
)


def strays(names):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    asked = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    tops = {pattern[1:] for pattern in asked} | {"PKG-INFO", "pyproject.toml", ".gitignore"}
    for name in names:
        path = Path(*Path(name).parts[1:])
        top = path.parts[0] if path.parts else "PKG-INFO"
        if MADE.search(name) or not any(Path(top).match(pattern) for pattern in tops):
            yield name


if __name__ == "__main__":
    found = list(strays(sys.stdin.read().split("\n")[:-1]))
    sys.exit(f"strays: {', '.join(found)}" if found else 0)
