"""What more than one command does."""

import dataclasses
import re
from typing import Any, Literal

from .._checks import check_count, check_seed
from ..training import TRACKERS, Run, TrainingReport, trackers_of
from ._working import talk

TrackerName = Literal["tensorboard", "wandb", "aim"]


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


def check_alone(argv: list[str]) -> None:
    """`ValueError` if other flags go with --resume, at their defaults or not."""
    flags = [word.partition("=")[0] for word in argv if word.startswith("--")]
    if others := [flag for flag in flags if flag not in ("--resume", "--devices", "--log")]:
        raise ValueError(
            f"--resume goes on with the settings of its run, but for --devices and --log, and takes no others: leave {', '.join(others)} out."
        )


def trained(command: Any, *told: str) -> tuple[Run, TrainingReport]:
    """The run that a training command starts, or goes on with, and what its training measured; a bar shows what is `told`."""
    from ..demo import progress_bar, train_with_bar

    names = command.log
    if command.resume:
        devices = command.settings.devices
        run = Run.open(command.resume, [type(command.settings)], devices=devices)
        names = names or trackers_of(command.resume)
    else:
        run = Run.start(command.settings)
    console, log = talk(), [TRACKERS[name]() for name in names]
    console.print(f"Text: {run.material.source}; writing to {run.recipe.out}.")
    with progress_bar(console, *told) as progress:
        return run, train_with_bar(run, progress, getattr(run.recipe, "estimator", "gpt2"), log)


def print_entropy(run: Run) -> None:
    """How well a model of any recipe predicts validation text, in a line."""
    from ..language import bigram_cross_entropy

    entropy = run.evaluate(run.validation_ids).cross_entropy
    bigram = bigram_cross_entropy(run.train_ids, run.validation_ids, run.tokenizer.size)
    print(f"validation cross-entropy {entropy:.4f} nats/token (bigram {bigram:.3f})")


def check_sampling(command: Any) -> None:
    """`ValueError` for settings of a command that writes, before anything is read."""
    from ..language import Sampler

    filters = (getattr(command, name, None) for name in ("top_k", "top_p"))
    Sampler(command.temperature, *filters)
    check_count(count=command.count)
    check_seed(seed=command.seed)


def encoded(tokenizer: Any, prompt: str):
    """The token ids of `--prompt`; `ValueError` if it is empty, or has what the tokenizer does not know."""
    if not prompt:
        raise ValueError("--prompt is empty: give at least one character to go on from.")
    try:
        return tokenizer.encode(prompt)
    except ValueError as error:
        raise ValueError(f"--prompt: {error}") from None
