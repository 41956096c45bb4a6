"""`eqjax push`: a trained model, for others."""

import dataclasses
from pathlib import Path

import tyro

from ._working import working


@dataclasses.dataclass(frozen=True)
class PushCommand:
    """Publish a run's model: weights, settings, and a card that states data, figures and seed.

    `eqjax.recipes.pull` reads it back, verified to the last byte; `eqjax sample` and `eqjax gpt2 generate` take it in place of
    a run. The figures are measured on the way.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder, of `eqjax train` or `eqjax gpt2 train`."""
    where: tyro.conf.Positional[str]
    """A folder, or hf://owner/name: a repository on the Hugging Face hub (log in by `hf auth login`)."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    data: str | None = None
    """A sentence on the text; by default what the run knows of it."""
    license: str | None = None
    """Of the weights, such as apache-2.0; none is claimed if not given."""
    private: bool = False
    """Make a new repository a private one."""


def pushed(command: PushCommand) -> None:
    """Publish, and say where."""
    from ..recipes import open_run, push

    run = open_run(command.run, step=command.step)
    how = {"data": command.data, "license": command.license, "private": command.private or None}
    with working("measuring and writing"):
        where = push(run, command.where, **how)
    print(f"Published: {where}")
