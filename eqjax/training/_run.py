"""A training run: started from a recipe, or opened from its folder alone."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ..gradients import AbstractEstimator
from ._folder import claimed, digest, keep_text, kept_text, opened_run
from ._loop import TrainingReport, fit
from ._recipe import AbstractRecipe, Evaluation, Material
from ._step import Step, TrainState, check_finite


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
        with claimed(recipe.out):
            material = recipe.gather(fallback=fallback)
            run = cls(recipe, material, *recipe.build(material))
        keep_text(recipe.out, material.text)
        recipe.save(recipe.out / "config.yaml")
        return run

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        recipes: Iterable[type[AbstractRecipe]],
        *,
        step: int | None = None,
    ) -> "Run":
        """Rebuild a run from its folder: model, optimiser, step, random key and position in the data.

        **Arguments:** `folder`; `recipes`: the kinds of run that will do; `step`: the checkpoint, by default the newest.

        **Raises:** `CheckpointError` if there is no such run or checkpoint, or it or the text beside it is damaged.
        """
        path, kinds = Path(folder), {recipe.command: recipe for recipe in recipes}
        with opened_run(path, kinds, step) as (kept, about):
            kind = kinds[about["command"]]
            recipe = dataclasses.replace(kind.from_dict(about["config"], str(path)), out=path)
            material = recipe.recall(kept_text(path, about), about["source"], about)
            run = cls(recipe, material, *recipe.build(material))
            run.state = kept.restore(run.state, step)
        run.data.set_state(about["data"])
        check_finite(run.state.model)
        return run

    @property
    def model(self) -> Any:
        return self.state.model

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
            "text_sha256": digest(self.material.text),
            "source": self.material.source,
            "data": self.data.get_state(),
        }

    def evaluate(self, ids: np.ndarray, *, model: PyTree = None) -> Evaluation:
        """How well the run's model (or another `model`) predicts the token `ids`, settled as in training.

        Windows that did not settle count like the others: the model answers with the state it has.
        """
        model = self.model if model is None else model
        check_finite(model)
        return self.recipe.evaluate(self, model, ids)

    def train(
        self, *, on_step: Callable[[int, dict[str, Any]], None] | None = None
    ) -> TrainingReport:
        """Train until `recipe.steps`, writing metrics and checkpoints into the run's folder.

        A run that is killed at any moment goes on by `Run.open` and `train`, to bit-identical parameters.

        **Arguments:** `on_step(step, metrics)` is called after every logged step (for a progress bar).
        """
        report = fit(self, on_step=on_step)
        self.recipe.finish(self)
        return report
