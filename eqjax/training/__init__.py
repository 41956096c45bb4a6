"""The pure step, the loop around it, checkpoints and metrics; one run over any recipe."""

from ._checkpoint import CheckpointError as CheckpointError, Checkpoints as Checkpoints
from ._folder import holds_run as holds_run
from ._loop import TrainingReport as TrainingReport, in_chunks as in_chunks
from ._metrics import Metrics as Metrics, plain as plain, read_metrics as read_metrics
from ._recipe import (
    AbstractRecipe as AbstractRecipe,
    Evaluation as Evaluation,
    Material as Material,
    Parts as Parts,
)
from ._run import Run as Run
from ._settings import Settings as Settings
from ._step import (
    Step as Step,
    TrainState as TrainState,
    check_finite as check_finite,
    make_step as make_step,
)
