"""The pure step, the loop around it, checkpoints and metrics; one run over any recipe.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import dataclasses
import tempfile
from pathlib import Path

import equinox as eqx
import numpy as np
import optax

key, optimiser = jax.random.key(1), optax.sgd(0.1)
state = ej.training.TrainState.create(model, optimiser, key=key)
```
"""

from ._checkpoint import (
    CheckpointError as CheckpointError,
    Checkpoints as Checkpoints,
    described as described,
    named_arrays as named_arrays,
    signature as signature,
)
from ._folder import (
    Metrics as Metrics,
    holds_run as holds_run,
    plain as plain,
    read_metrics as read_metrics,
)
from ._mesh import (
    by_tokens as by_tokens,
    check_pieces as check_pieces,
    gathered as gathered,
    with_context as with_context,
)
from ._recipe import (
    AbstractRecipe as AbstractRecipe,
    Evaluation as Evaluation,
    Material as Material,
    Parts as Parts,
    Settings as Settings,
    in_chunks as in_chunks,
)
from ._room import StepMemory as StepMemory
from ._run import Run as Run, TrainingReport as TrainingReport
from ._step import (
    Step as Step,
    TrainState as TrainState,
    check_finite as check_finite,
    make_step as make_step,
)
from ._trackers import (
    TRACKERS as TRACKERS,
    Aim as Aim,
    TensorBoard as TensorBoard,
    Tracker as Tracker,
    WandB as WandB,
    trackers_of as trackers_of,
)
