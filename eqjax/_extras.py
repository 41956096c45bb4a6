"""Extras are asked for by name, by what needs them."""

import functools
import importlib.metadata
import re


@functools.cache
def require(extra: str) -> None:
    """Nothing, if the packages of an extra of eqjax are installed; a one-line `ImportError` that names it, if not."""
    missing = []
    for name in sorted(_packages(extra)):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
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
