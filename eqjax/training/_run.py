"""A training run: started from a recipe, or opened from its folder alone."""

import contextlib
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from .._checks import check_kind, given
from .._files import TextFile, space_for, write_text
from ..gradients import AbstractEstimator, Report
from ._checkpoint import Checkpoints
from ._folder import (
    Interrupt,
    Metrics,
    alone,
    blamed_on,
    checkpoints,
    claimed,
    kept_text,
    opened_run,
    read_beside,
    text_file,
)
from ._mesh import any_process, check_hosts, gathered, next_rows, shares
from ._recipe import AbstractRecipe, Evaluation, Material
from ._room import StepMemory
from ._step import Step, TrainState, check_finite
from ._trackers import Tracker, check_trackers, tracked

_REPORTED = {field.name for field in dataclasses.fields(Report)} - {"loss"}


def _rates(values: dict[str, Any], inputs: jax.Array, seconds: float) -> dict[str, float]:
    """How much was done in a second."""
    count = jax.process_count()
    told = {"tokens_per_second": count * inputs.size / seconds}
    calls = values.get("field_evaluations", 0) * count * len(inputs)
    return told | ({"evaluations_per_second": calls / seconds} if calls else {})


@dataclasses.dataclass
class TrainingReport:
    """What a training measured: median `seconds_per_step` (after compilation), `compile_seconds`,
    `memory_bytes`, the buffers that the compiled step needs beyond its arguments, and how many of its updates
    were `skipped` because no sample was accepted."""

    seconds_per_step: float = float("nan")
    compile_seconds: float = float("nan")
    memory_bytes: int = 0
    skipped: int = 0


@dataclasses.dataclass
class Run:
    """A run in memory: `Run.start(recipe)` begins one, `Run.open(folder, recipes)` goes on with one.

    `recipe`: its settings. `material`: text and tokenizer. `step`, `state`, `data`: what `train` goes on with.
    `train_ids`, `validation_ids`: the text as tokens.
    """

    recipe: Any
    material: Material
    step: Step
    state: TrainState
    data: Any
    train_ids: np.ndarray
    validation_ids: np.ndarray

    @classmethod
    def start(cls, recipe: AbstractRecipe, *, fallback: bool = True) -> "Run":
        """A fresh run: reads the text, builds everything, writes `config.yaml` and a copy of the text.

        **Arguments:** `recipe`; `fallback`: use Python's help texts where tiny Shakespeare cannot be had.

        **Raises:** `ValueError` for a folder that holds a run, or cannot be written.
        """
        check_kind(AbstractRecipe, "a recipe, such as `TrainConfig()`", recipe=recipe)
        recipe.check_start()
        lead = jax.process_index() == 0
        with claimed(recipe.out) if lead else contextlib.nullcontext():
            material = recipe.gather(fallback=fallback)
            if lead:
                # The text stays with the run: a moved folder, or a corpus that is out of reach later, does no harm.
                write_text(text_file(recipe.out), material.text)
                if isinstance(material.text, TextFile):  # which may change, or go
                    material.text = TextFile(text_file(recipe.out), "utf-8")
            run = cls(recipe, material, *recipe.build(material))
            run.step = recipe.over_devices(run.step, recipe.mesh())
        if lead:
            recipe.save(recipe.out / "config.yaml")
        return run

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        recipes: Iterable[type[AbstractRecipe]],
        *,
        step: int | None = None,
        devices: int | None = None,
    ) -> "Run":
        """Rebuild a run from its folder: model, optimiser, step, random key and position in the data.

        **Arguments:** `folder`; `recipes`: the kinds of run that will do; `step`: the checkpoint, by default the newest; `devices`:
        how many train it from now on, by default as many as before, of which only `train` asks that they are there.

        **Raises:** `CheckpointError` if there is no such run or checkpoint, or it or the text beside it is damaged. `ValueError`
        if there are no such `devices`.
        """
        check_kind((str, os.PathLike), "the folder of a run", folder=folder)
        path, kinds = Path(folder), {recipe.command: recipe for recipe in recipes}

        def read() -> "Run":
            with opened_run(path, kinds, step) as (kept, about):
                kind = kinds[about["command"]]
                told = kind.from_dict(about["config"], str(path))
                recipe = dataclasses.replace(told, out=path, **given(devices=devices))
                mesh = None if devices is None else recipe.mesh()
                material = recipe.recall(kept_text(path, about), about["source"], about)
                run = cls(recipe, material, *recipe.build(material))
                run.state = kept.restore(run.state, step)
                run.step = recipe.over_devices(run.step, mesh)
            run.data.set_state(about["data"])
            return run

        run = read_beside(path, read)
        check_finite(run.state.model)
        return run

    @property
    def model(self) -> Any:
        return self.state.model

    @property
    def mesh(self) -> Mesh | None:
        """The devices that share a batch out, and an evaluation."""
        return self.step.mesh

    @property
    def estimator(self) -> AbstractEstimator:
        return self.step.estimator

    @property
    def tokenizer(self) -> Any:
        return self.material.tokenizer

    def about(self) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "command": self.recipe.command,
            "config": self.recipe.to_dict(),
            **self.material.about,
            "text_sha256": self.material.digest,
            "source": self.material.source,
            "data": self.data.get_state(),
        }

    def evaluate(self, ids: np.ndarray, *, model: PyTree = None) -> Evaluation:
        """How well the run's model (or another `model`) predicts the token `ids`, settled as in training.

        Windows that did not settle count like the others: the model answers with the state it has.
        """
        model = gathered(self.model if model is None else model)
        check_finite(model)
        return self.recipe.evaluate(self, model, ids)

    def _writer(self, stack: contextlib.ExitStack) -> Checkpoints | None:
        """The checkpoints, of the one process that writes; None on other hosts."""
        recipe = self.recipe
        if jax.process_index() > 0:
            return None
        stack.enter_context(alone(recipe.out))
        how = {"keep": recipe.keep, "wait": not recipe.save_async}
        return stack.enter_context(Checkpoints(checkpoints(recipe.out), **how))

    def train(
        self,
        *,
        on_step: Callable[[int, dict[str, Any]], None] | None = None,
        on_memory: Callable[[StepMemory], None] | None = None,
        log: Tracker | Sequence[Tracker] = (),
    ) -> TrainingReport:
        """Train until `recipe.steps`, writing metrics and checkpoints into the run's folder.

        A run that is killed at any moment goes on by `Run.open` and `train`, to bit-identical parameters. On Ctrl-C the
        step is finished and kept first; a second Ctrl-C acts at once.

        **Arguments:** `on_step(step, metrics)` is called after every logged step (for a progress bar); `on_memory(memory)` before the
        first update, with what it needs of each device. `log`: trackers that get every line of `metrics.jsonl`, too: `TensorBoard()`,
        `WandB()`, `Aim()`, or any `Tracker`.

        **Raises:** `ValueError` if another process writes there, the folder has a newer checkpoint, or a step does not fit into the
        memory of its devices: with what would. An error in a step is told with its batch (`crash.json`). `OSError` where the
        disk is full, with how to go on.
        `KeyboardInterrupt` after Ctrl-C, with how to go on.
        """
        recipe, first, outcome = self.recipe, int(self.state.step), TrainingReport()
        trackers = check_trackers(log)
        check_finite(self.model)
        settings = recipe.to_dict()
        check_hosts("settings", {name: settings[name] for name in settings if name != "out"})
        self.step = recipe.over_devices(self.step, recipe.mesh())

        def report(step: int, values: dict[str, Any]) -> None:
            # What the report of an estimator does not have (NaN) is left out of the file: in a GPT-2 nothing settles.
            there = {k: v for k, v in values.items() if k not in _REPORTED or not math.isnan(v)}
            if kept is not None:
                metrics.write(step, **there)
                track(step, there)
            if on_step is not None:
                on_step(step, values)

        def save(step: int) -> None:
            whole = gathered(self.state)
            if kept is not None:
                kept.save(step, whole, self.about())

        again = f"`eqjax {recipe.command} --resume {recipe.out}`"
        with (
            space_for(recipe.out, f"Free space, then go on with {again}."),
            contextlib.ExitStack() as stack,
            Interrupt() as interrupt,
        ):
            kept = self._writer(stack)
            latest = first if kept is None else kept.latest()
            if kept is not None and latest is None:
                kept.save(0, self.state, self.about())
            elif latest != first:
                raise ValueError(
                    f"{recipe.out}: the run is at step {first}, but its newest checkpoint is {latest}. Open the newest, or "
                    "copy the folder and delete the later checkpoints there."
                )
            if kept is not None:
                metrics = Metrics(recipe.out / "metrics.jsonl", after=first)
                track = stack.enter_context(tracked(trackers, recipe.out, settings, first))
            if first == 0 and (values := recipe.diagnose(self, 0)):
                report(0, values)
            durations, compiled = [], None
            for step in range(first + 1, recipe.steps + 1):
                place = self.data.get_state()
                inputs, targets = map(jnp.asarray, next_rows(self.data))
                start = time.perf_counter()
                if compiled is None:
                    compiled = self.step.compile(self.state, (inputs, targets))
                    outcome.compile_seconds = time.perf_counter() - start
                    outcome.memory_bytes = compiled.memory_bytes
                    memory, mesh = compiled.memory, self.step.mesh
                    if on_memory is not None:
                        on_memory(memory)
                    memory.check(recipe.batch, recipe.accumulate, shares(mesh))
                    start = time.perf_counter()
                with blamed_on(recipe.out, step, place, inputs, self.tokenizer):
                    found = compiled(self.state, (inputs, targets))
                    self.state, found = jax.block_until_ready(found)
                durations.append(time.perf_counter() - start)
                outcome.skipped += not bool(found["updated"])
                if step == recipe.steps or any(n and step % n == 0 for n in recipe.cadences()):
                    values = {k: v.tolist() if v.ndim else float(v) for k, v in found.items()}
                    values |= {"seconds": durations[-1], **_rates(values, inputs, durations[-1])}
                    report(step, values | recipe.diagnose(self, step))
                asked = any_process(interrupt.asked)
                if step % recipe.save_every == 0 or step == recipe.steps or asked:
                    save(step)
                if asked and step < recipe.steps:
                    raise KeyboardInterrupt(
                        f"Stopped after step {step}, which is kept. Go on with it by {again}."
                    )
            self.state = gathered(self.state)
            if kept is not None:
                recipe.finish(self)
        if durations:
            outcome.seconds_per_step = statistics.median(durations)
        return outcome
