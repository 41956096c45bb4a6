"""What can be trained, each from its settings: the equilibrium language model, GPT-2, AEON, ARLL."""

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
