"""The pure step, the loop around it, checkpoints and metrics."""

from ._checkpoint import (
    CheckpointError as CheckpointError,
    Checkpoints as Checkpoints,
)
from ._folder import (
    about_run as about_run,
    claim as claim,
    digest as digest,
    holds_run as holds_run,
    keep_text as keep_text,
    kept_text as kept_text,
    restored as restored,
)
from ._loop import (
    Outcome as Outcome,
    fit as fit,
    in_chunks as in_chunks,
)
from ._metrics import (
    Metrics as Metrics,
    plain as plain,
    read_metrics as read_metrics,
)
from ._settings import (
    Settings as Settings,
)
from ._step import (
    Step as Step,
    TrainState as TrainState,
    check_finite as check_finite,
    make_step as make_step,
)
