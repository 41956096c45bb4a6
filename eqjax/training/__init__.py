"""The pure step, the loop around it, checkpoints and metrics."""

from .checkpoint import CheckpointError as CheckpointError, Checkpoints as Checkpoints
from .config import TrainConfig as TrainConfig
from .folder import holds_run as holds_run
from .loop import Outcome as Outcome
from .metrics import Metrics as Metrics, read_metrics as read_metrics
from .resonant import (
    ClosedLoop as ClosedLoop,
    LoopState as LoopState,
    LossController as LossController,
    ResonantState as ResonantState,
    resonant_adamw as resonant_adamw,
)
from .run import (
    Evaluation as Evaluation,
    Run as Run,
    evaluate as evaluate,
    open_run as open_run,
    start_run as start_run,
    train as train,
)
from .step import (
    Step as Step,
    TrainState as TrainState,
    check_finite as check_finite,
    make_step as make_step,
)
