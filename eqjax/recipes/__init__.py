"""What can be trained, each from its settings: the equilibrium language model, GPT-2, AEON, ARLL.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

text = Path(tempfile.mkdtemp()) / "own.txt"
text.write_text("settle and answer, then settle once more. " * 20)
sizes = dict(width=4, heads=2, length=4, batch=2, evaluate_windows=2, steps=2, warmup=1, text=text)
recipe = ej.recipes.TrainConfig(out=text.parent / "run", estimator="bptt", bptt_steps=2, **sizes)
run = ej.training.Run.start(recipe)
```
"""

from .._extras import require as _require

_require("language")

from ._aeon import AeonSettings as AeonSettings
from ._arll import ARLLSettings as ARLLSettings
from ._equilibrium import (
    EstimatorName as EstimatorName,
    TrainConfig as TrainConfig,
    probe_batch as probe_batch,
    sample as sample,
)
from ._equilibrium_build import (
    build_estimator as build_estimator,
    reference_oracle as reference_oracle,
)
from ._examine import (
    RECIPES as RECIPES,
    check_windows as check_windows,
    follow as follow,
    in_double as in_double,
    open_run as open_run,
    scalar_parameter as scalar_parameter,
    windows as windows,
)
from ._gpt2 import GPT2Settings as GPT2Settings, pretrained as pretrained
from ._publish import (
    Published as Published,
    published as published,
    pull as pull,
    push as push,
)
