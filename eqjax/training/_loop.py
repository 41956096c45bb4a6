"""The loop around a step: metrics, checkpoints, and going on where a run was stopped."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..gradients import Report
from ._checkpoint import Checkpoints
from ._folder import checkpoints
from ._metrics import Metrics
from ._step import check_finite

_REPORTED = {field.name for field in dataclasses.fields(Report)} - {"loss"}


@dataclasses.dataclass
class TrainingReport:
    """What a training measured: median `seconds_per_step` (after compilation), `compile_seconds`,
    `memory_bytes`, the buffers that the compiled step needs beyond its arguments, and how many of its updates
    were `skipped` because no sample was accepted."""

    seconds_per_step: float = float("nan")
    compile_seconds: float = float("nan")
    memory_bytes: int = 0
    skipped: int = 0


def fit(
    run: Any, *, on_step: Callable[[int, dict[str, Any]], None] | None = None
) -> TrainingReport:
    """The loop of `Run.train`: step, log, evaluate, save."""
    recipe, folder = run.recipe, checkpoints(run.recipe.out)
    check_finite(run.state.model)
    first = int(run.state.step)
    outcome = TrainingReport()

    def report(step: int, values: dict[str, Any]) -> None:
        # What the report of an estimator does not have (NaN) is left out of the file: in a GPT-2 nothing settles.
        there = {k: v for k, v in values.items() if k not in _REPORTED or not math.isnan(v)}
        metrics.write(step, **there)
        if on_step is not None:
            on_step(step, values)

    with Checkpoints(folder, keep=recipe.keep) as kept:
        latest = kept.latest()
        if latest is None:
            kept.save(0, run.state, run.about())
        elif latest != first:
            raise ValueError(
                f"{recipe.out}: the run is at step {first}, but its newest checkpoint is {latest}. Open the newest, or "
                "copy the folder and delete the later checkpoints there."
            )
        metrics = Metrics(recipe.out / "metrics.jsonl", after=first)
        if first == 0 and (values := recipe.diagnose(run, 0)):
            report(0, values)
        durations, compiled = [], None
        for step, batch in _numbered(run.data, first, recipe.steps):
            if compiled is None:
                start = time.perf_counter()
                compiled = run.step.compile(run.state, batch)
                outcome.compile_seconds = time.perf_counter() - start
                outcome.memory_bytes = compiled.memory_bytes
            start = time.perf_counter()
            run.state, values = jax.block_until_ready(compiled(run.state, batch))
            durations.append(time.perf_counter() - start)
            outcome.skipped += not bool(values["updated"])
            if step == recipe.steps or any(n and step % n == 0 for n in recipe.cadences()):
                values = {k: _number(v) for k, v in values.items()} | {"seconds": durations[-1]}
                report(step, values | recipe.diagnose(run, step))
            if step % recipe.save_every == 0 or step == recipe.steps:
                kept.save(step, run.state, run.about())
    if durations:
        outcome.seconds_per_step = statistics.median(durations)
    return outcome


def in_chunks(compute: Callable[..., Any], windows: tuple[np.ndarray, ...], chunk: int) -> Any:
    """`compute(*windows)`, `chunk` windows at a time, as NumPy arrays whose leading axis runs over all windows.

    The last chunk is filled up, so that one compiled shape serves all.
    """
    found = []
    for first in range(0, len(windows[0]), chunk):
        parts = [part[first : first + chunk] for part in windows]
        size = len(parts[0])
        parts = [np.concatenate([part, np.repeat(part[:1], chunk - size, 0)]) for part in parts]
        values = compute(*map(jnp.asarray, parts))
        found.append(jax.tree.map(lambda leaf, size=size: np.asarray(leaf)[:size], values))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


def _number(value: Array) -> Any:
    return float(value) if value.ndim == 0 else value.tolist()


def _numbered(data: Iterator, first: int, last: int) -> Iterator[tuple[int, tuple[Array, Array]]]:
    for step in range(first + 1, last + 1):
        inputs, targets = next(data)
        yield step, (jnp.asarray(inputs), jnp.asarray(targets))
