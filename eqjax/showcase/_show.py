"""What a show is, and how it is presented."""

import abc
import dataclasses
from pathlib import Path

import jax
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from .. import plots


@dataclasses.dataclass(frozen=True)
class Shown:
    """What a show has found. `rows`: what was measured, the figure, the known answer. `pictures`: file name to figure."""

    rows: tuple[tuple[str, str, str], ...]
    pictures: dict[str, Figure]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractShow(abc.ABC):
    """A show: its fields are the flags of `eqjax run`."""

    out: Path | None = None
    """Folder for the pictures; runs/NAME if not given."""

    @abc.abstractmethod
    def __call__(self) -> Shown:
        """Run it."""


def check_size(size: int, least: int, most: int) -> None:
    """Refuse a size that shows nothing, or that would take too long."""
    if not least <= size <= most:
        raise ValueError(f"`size` must lie between {least} and {most}, got {size}.")


def present(show: AbstractShow) -> None:
    """Run a show in float64, print its table, and write its pictures.

    ```python
    show = lambda: ej.showcase.present(ej.showcase.XorShow(beta=10.0))  # `eqjax run xor`
    ```
    """
    name = type(show).__name__.removesuffix("Show").lower()
    out = Path("runs") / name if show.out is None else show.out
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"`out` {out} is a file; name a folder.")
    console = Console()
    console.print(" ".join((type(show).__doc__ or "").split()))
    with jax.enable_x64(True):
        shown = show()
    table = Table("", "measured", "known", box=SIMPLE)
    for row in shown.rows:
        table.add_row(*row)
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    for file, figure in shown.pictures.items():
        plots.save(figure, out / file)
    console.print(f"Written to {out}: {', '.join(shown.pictures)}.")
