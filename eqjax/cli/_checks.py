"""What more than one command does."""

import dataclasses
import re
from typing import Any

from ..training import Run, TrainingReport


def as_flags(message: str, command: Any) -> str:
    """A message of the library, which speaks of `arguments`, in the --flags of a command (an instance, or its class)."""
    flags = _flags(command)
    flag = lambda m: "--" + m[1].replace("_", "-") if m[1] in flags else m[0]
    return re.sub(r"`(\w+)`", flag, message)


def _flags(command: Any) -> set[str]:
    found = set()
    for field in dataclasses.fields(command):
        value = getattr(command, field.name, None)
        if dataclasses.is_dataclass(value):
            found |= _flags(value)
        elif field.default is not dataclasses.MISSING:  # what has none is positional
            found.add(field.name)
    return found


def trained(command: Any, *told: str) -> tuple[Run, TrainingReport]:
    """The run that a training command starts, or goes on with, and what its training measured; a bar shows what is `told`."""
    from rich.console import Console

    from ..demo import progress_bar, train_with_bar

    if not command.resume:
        run = Run.start(command.settings)
    elif command.settings != type(command.settings)():
        raise ValueError(
            "--resume goes on with the settings of its run and takes no others; leave the other flags out."
        )
    else:
        run = Run.open(command.resume, [type(command.settings)])
    console = Console()
    console.print(f"Text: {run.material.source}; writing to {run.recipe.out}.")
    with progress_bar(console, *told) as progress:
        return run, train_with_bar(run, progress, getattr(run.recipe, "estimator", "gpt2"))


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
