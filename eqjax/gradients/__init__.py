"""Estimators of dL/dθ, and `compare`, which lays them side by side."""

from .asymep import (
    AdjointCoordinates as AdjointCoordinates,
    AsymEP as AsymEP,
    RawStates as RawStates,
)
from .bptt import BPTT as BPTT
from .compare import Comparison as Comparison, agreement as agreement, compare as compare
from .estimate import (
    AbstractEquilibriumEstimator as AbstractEquilibriumEstimator,
    AbstractEstimator as AbstractEstimator,
    Accept as Accept,
    Adjoint as Adjoint,
    GradientEstimate as GradientEstimate,
    Report as Report,
    Response as Response,
)
from .oracle import OracleAdjoint as OracleAdjoint
