"""What can be trained: settings that know how to build what they describe."""

import abc
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import PyTree

from ._settings import Settings
from ._step import Step, TrainState

if TYPE_CHECKING:
    from ._run import Run


@dataclasses.dataclass
class Material:
    """What a run learns from, and begins with.

    `text`, and `source`, a sentence that says where it came from. `tokenizer`: has `encode`, `decode` and `size`. `about`: JSON
    that, beside the settings, rebuilds tokenizer and model. `model`: to begin with, unless the settings describe it.
    """

    text: str
    source: str
    tokenizer: Any
    about: dict[str, Any]
    model: PyTree = None


class Parts(NamedTuple):
    """What a recipe makes of its material: the `step`, its first `state`, an endless iterator of batches with
    `get_state` and `set_state`, and the token ids of the two parts of the text."""

    step: Step
    state: TrainState
    data: Any
    train_ids: np.ndarray
    validation_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`cross_entropy` in nats per token over `tokens` tokens; `residual`: median force residual of the settled
    windows; `unsettled`: fraction of windows whose residual exceeds the acceptance threshold. The last two are NaN
    where nothing settles, `unsettled` also for BPTT, which answers after a finite horizon, settled or not."""

    cross_entropy: float
    tokens: int
    residual: float = float("nan")
    unsettled: float = float("nan")

    def metrics(self) -> dict[str, float]:
        """As lines of the metrics."""
        told = {"validation": self.cross_entropy}
        if self.residual == self.residual:
            told |= {"validation_residual": self.residual, "validation_unsettled": self.unsettled}
        return told


@dataclasses.dataclass(frozen=True)
class AbstractRecipe(Settings, abc.ABC):
    """Settings of something that can be trained, and what they mean.

    A final recipe has one field for each setting, all with defaults, among them `out`, `steps`, `log_every`, `evaluate_every`,
    `save_every` and `keep`, which the run reads.
    """

    command: ClassVar[str]
    """What one types after `eqjax` to train it; a run's folder says so."""
    out: Path = Path("runs/train")
    """Folder of the run: configuration, metrics and checkpoints."""

    @abc.abstractmethod
    def gather(self, *, fallback: bool) -> Material:
        """Read text and pretrained model; `fallback` as for `eqjax.language.load_corpus`."""

    @abc.abstractmethod
    def recall(self, text: str, source: str, about: dict[str, Any]) -> Material:
        """The material again, from what a run's folder says of it."""

    @abc.abstractmethod
    def build(self, material: Material) -> Parts:
        """Everything that trains."""

    @abc.abstractmethod
    def evaluate(self, run: "Run", model: PyTree, ids: np.ndarray) -> Evaluation:
        """How well a model answers on token ids, settled as in training."""

    def diagnose(self, run: "Run", step: int) -> dict[str, float]:
        """More metrics, asked for at every logged step, and at 0 if there are any: by default those of validation."""
        settings: Any = self
        if step and (step % settings.evaluate_every == 0 or step == settings.steps):
            return run.evaluate(run.validation_ids).metrics()
        return {}

    def cadences(self) -> tuple[int, ...]:
        """Steps are logged at multiples of these too; 0 means never."""
        settings: Any = self
        return settings.log_every, settings.evaluate_every

    def finish(self, run: "Run") -> None:
        """What is written once a run has reached its end, besides its checkpoints."""
