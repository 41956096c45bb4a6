"""What can be trained, each from its settings: the equilibrium language model, GPT-2, AEON, ARLL."""

from .._extras import require as _require

_require("language")

from ._equilibrium_build import (
    build_estimator as build_estimator,
    reference_oracle as reference_oracle,
)
from ._equilibrium_run import (
    Evaluation as Evaluation,
    Run as Run,
    evaluate as evaluate,
    open_run as open_run,
    probe_batch as probe_batch,
    sample as sample,
    start_run as start_run,
    train as train,
)
from ._equilibrium_settings import (
    EstimatorName as EstimatorName,
    TrainConfig as TrainConfig,
)
from ._examine import (
    check_windows as check_windows,
    follow as follow,
    in_double as in_double,
    parameter as parameter,
    windows as windows,
)
from ._gpt2 import (
    GPT2Settings as GPT2Settings,
    evaluate_gpt2 as evaluate_gpt2,
    open_gpt2 as open_gpt2,
    pretrained as pretrained,
    start_gpt2 as start_gpt2,
    train_gpt2 as train_gpt2,
)
