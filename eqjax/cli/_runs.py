"""`eqjax runs`: what the folders of runs hold, side by side."""

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH, _LEAST = 24, 8  # characters of a sparkline, the fewest where the terminal is narrow
_OTHERS = 80  # what the other columns take
# The width from which a terminal has room for a column; the others are always there.
_ROOM = {"validation": 76, "s/update": 66, "settled": 56, "recipe": 46}


@dataclasses.dataclass(frozen=True)
class RunsCommand:
    """List the runs in folders, newest first; of runs that are named themselves also the settings in which they differ.

    Best validation is that of metrics.jsonl, in nats per token, and the line beside it how it went; settled is the fraction of
    validation at the last evaluation, or of the samples of the last update; seconds are those of an update.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Runs, or folders with runs in them."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What is read of one run: its settings, the lines of its log, and what could not be read."""

    folder: Path
    settings: dict[str, Any]
    lines: list[dict[str, Any]]
    damage: str = ""


def _is_run(folder: Path) -> bool:
    if (folder / ".eqjax-demo").exists():
        return False  # it holds runs
    return (folder / "config.yaml").is_file() or (folder / "metrics.jsonl").is_file()


def found_runs(folder: Path) -> list[Path]:
    """The folder itself if it is a run, or the runs in it, also those of a demo."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder. Name a run, or a folder with runs in it.")
    if _is_run(folder):
        return [folder]
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [run for path in inside for run in ([path] if _is_run(path) else _within(path))]


def _within(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def read_run(folder: Path) -> Told:
    """Settings and log of a run; lines that a crash or a full disk has torn are left out, and told."""
    import yaml

    damage = []
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("no settings in it")
        settings = {str(name): value for name, value in settings.items()}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        settings = {}
        damage.append(f"config.yaml cannot be read ({' '.join(str(error).split())})")
    try:
        raw = (folder / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        raw = []
    except OSError as error:
        raw = []
        damage.append(f"metrics.jsonl cannot be read ({error.strerror})")
    lines, torn = [], []
    for number, line in enumerate(raw, 1):
        value = _line(line)
        lines.append(value) if value else torn.append(number)
    if torn:
        which = ", ".join(map(str, torn[:5])) + (", …" if len(torn) > 5 else "")
        damage.append(f"metrics.jsonl: {len(torn)} of {len(raw)} lines cannot be read ({which})")
    return Told(folder, settings, lines, "; ".join(damage))


def _line(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and type(value.get("step")) is int else None


def series(run: Told, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, where it is a finite number."""
    most = sys.float_info.max  # an integer may be larger
    number = lambda value: type(value) in (int, float) and -most <= value <= most
    values: Any = ((line["step"], line.get(name)) for line in run.lines)
    return [(step, float(value)) for step, value in values if number(value)]


def sparkline(values: list[float], width: int = _WIDTH) -> str:
    """Values as blocks between their least and largest, at most `width` of them, evenly taken, the last always."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    if not values:
        return ""
    low, high = min(values), max(values)
    span, most = (high - low) or 1.0, len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / span * most)] for value in values)


def recipe_of(settings: dict[str, Any]) -> str:
    """What was trained, as far as the names of its settings tell."""
    from ..recipes import RECIPES

    names = lambda recipe: {field.name for field in dataclasses.fields(recipe)}
    fits = [recipe for recipe in RECIPES if settings and set(settings) <= names(recipe)]
    if not fits:
        return "?"
    command = min(fits, key=lambda recipe: len(names(recipe))).command
    return f"{command}, {settings['estimator']}" if "estimator" in settings else command


def _row(run: Told, width: int) -> dict[str, str]:
    validation, seconds = series(run, "validation"), series(run, "seconds")
    unsettled, accepted = series(run, "validation_unsettled"), series(run, "accepted")
    settled = 1 - unsettled[-1][1] if unsettled else accepted[-1][1] if accepted else None
    last = max((line["step"] for line in run.lines), default=0)
    best = min(validation, key=lambda pair: pair[1], default=None)
    of = run.settings.get("steps", "?")
    return {
        "run": str(run.folder),
        "recipe": recipe_of(run.settings),
        "update": f"{last}/{of}",
        "best validation": "–" if best is None else f"{best[1]:.4f} at {best[0]}",
        "validation": sparkline([value for _, value in validation], width),
        "settled": "–" if settled is None else f"{settled:.1%}",
        "s/update": f"{statistics.median(value for _, value in seconds):.3g}" if seconds else "–",
    }


def differing(runs: list[Told]) -> Iterator[tuple[str, list[str]]]:
    """Names and values of the settings in which runs differ; – where a run has none of the name."""
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [str(run.settings[name]) if name in run.settings else "–" for run in runs]
        if name != "out" and len(set(values)) > 1:
            yield name, values


def runs(command: RunsCommand) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    found = [run for folder in command.folders for run in found_runs(folder)]
    once = {folder.resolve(): folder for folder in reversed(found)}  # a link names a run again
    told = [read_run(folder) for folder in reversed(once.values())]
    if not told:
        where = ", ".join(map(str, command.folders))
        raise ValueError(f"{where}: no runs in there. `eqjax train --out runs/first` makes one.")
    named = len(told) > 1 and all(folder in command.folders for folder in found)
    if not named:
        told.sort(key=lambda run: run.folder.stat().st_mtime, reverse=True)
    console = Console()
    wide = console.width if console.is_terminal else 400
    rows = [_row(run, min(_WIDTH, max(_LEAST, wide - _OTHERS))) for run in told]
    table = Table(box=None, pad_edge=False)
    names = [name for name in rows[0] if wide >= _ROOM.get(name, 0)]
    for name in names:
        side = "left" if name in ("run", "recipe", "validation") else "right"
        table.add_column(name, justify=side, overflow="fold", no_wrap=name not in ("run", "recipe"))
    for row in rows:
        table.add_row(*(row[name] for name in names))
    # Redirected, a line of the table is a line of the output.
    console.print(table, markup=False, width=None if console.is_terminal else wide)
    if named:
        names = [run.folder.name for run in told]
        names = names if len(set(names)) == len(told) else [str(run.folder) for run in told]
        table = Table("settings that differ", *names, box=None, pad_edge=False)
        for name, values in differing(told):
            table.add_row(name, *values)
        console.print()
        console.print(table if table.row_count else "Their settings are the same.", markup=False)
    for run in told:
        if run.damage:
            console.print(f"{run.folder}: {run.damage}.", markup=False, soft_wrap=True)
