"""What keeps `import eqjax` small: applications that load when they are asked for, and extras that are asked for by name."""

import functools
import importlib
import importlib.metadata
import re
from collections.abc import Callable
from types import ModuleType


def lazily(package: str, names: str) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package some of whose modules load at first use.

    **Arguments:** `package`: its name; `names`: of those modules, with blanks between them.
    """
    lazy = names.split()

    def load(name: str) -> ModuleType:
        if name not in lazy:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    def listed() -> list[str]:
        loaded = vars(importlib.import_module(package))
        return sorted({*(name for name in loaded if not name.startswith("_")), *lazy})

    return load, listed


@functools.cache
def require(extra: str) -> None:
    """Nothing, if the packages of an extra of eqjax are installed; a one-line `ImportError` that names it, if not."""
    missing = sorted(name for name in _packages(extra) if not _installed(name))
    if missing:
        raise ImportError(
            f"this part of eqjax needs {', '.join(missing)}: pip install 'eqjax[{extra}]'"
        )


def _packages(extra: str) -> set[str]:
    """Names of the packages of an extra, from the metadata of eqjax: pyproject.toml alone lists them."""
    found = set()
    for line in importlib.metadata.requires("eqjax") or ():
        name, own, of = re.match(
            r"([\w.-]+)(?:\[([\w,-]+)\])?.*?(?:extra == ['\"]([\w-]+)|$)", line
        ).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if of != extra:
            continue
        if name == "eqjax":
            found.update(*map(_packages, own.split(",")))
        else:
            found.add(name)
    return found


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
