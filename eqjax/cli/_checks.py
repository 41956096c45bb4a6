"""What more than one command checks before it begins."""

import dataclasses
import re
from typing import Any

from ..training import AbstractRecipe, Run


def as_flags(message: str, command: Any) -> str:
    """A message of the library, which speaks of `arguments`, in the --flags of a command (an instance, or its class)."""
    flags = _flags(command)
    flag = lambda m: "--" + m[1].replace("_", "-") if m[1] in flags else m[0]
    return re.sub(r"`(\w+)`", flag, message)


def _flags(command: Any) -> set[str]:
    found = set()
    for field in dataclasses.fields(command):
        value = getattr(command, field.name, None)
        if value is None and field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if dataclasses.is_dataclass(value):
            found |= _flags(value)
        elif field.default is not dataclasses.MISSING:  # what has none is positional
            found.add(field.name)
    return found


def begun(command: Any) -> Run:
    """The run that a training command starts, or goes on with."""
    if not command.resume:
        return Run.start(command.settings)
    recipe: type[AbstractRecipe] = type(command.settings)
    if command.settings != recipe():
        raise ValueError(
            "--resume goes on with the settings of its run and takes no others; leave the other flags out."
        )
    return Run.open(command.resume, [recipe])


def check_prompt(prompt: str) -> None:
    """`ValueError` if there is nothing to go on from."""
    if not prompt:
        raise ValueError("--prompt is empty: give at least one character to go on from.")


def encoded(tokenizer: Any, prompt: str):
    """The token ids of `--prompt`; `ValueError` if it has what the tokenizer does not know."""
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        raise ValueError(f"--prompt: {error}") from None
