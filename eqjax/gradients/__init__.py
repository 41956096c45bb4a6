"""Estimators of dL/dθ, and `compare`, which lays them side by side."""

from .asymep import AsymEP as AsymEP, VectorFieldEP as VectorFieldEP
from .averaged import Averaged as Averaged
from .backprop import Backprop as Backprop
from .bptt import BPTT as BPTT
from .compare import Comparison as Comparison, agreement as agreement, compare as compare
from .corrections import (
    ExactCorrection as ExactCorrection,
    NoCorrection as NoCorrection,
    ProbeCorrection as ProbeCorrection,
)
from .dyadic import DyadicEP as DyadicEP
from .energy import EnergyEP as EnergyEP
from .estimate import (
    AbstractEstimator as AbstractEstimator,
    Accept as Accept,
    GradientEstimate as GradientEstimate,
    Report as Report,
)
from .forward import (
    ExactEligibility as ExactEligibility,
    ForwardEligibility as ForwardEligibility,
    LowRank as LowRank,
    RandomDirections as RandomDirections,
)
from .holomorphic import HolomorphicEP as HolomorphicEP, LockIn as LockIn
from .holomorphy import check_holomorphic as check_holomorphic
from .nudged import (
    AdjointCoordinates as AdjointCoordinates,
    RawStates as RawStates,
    SharedAdjoint as SharedAdjoint,
)
from .oracle import OracleAdjoint as OracleAdjoint
from .response import (
    AbstractAdjointEstimator as AbstractAdjointEstimator,
    AbstractEquilibriumEstimator as AbstractEquilibriumEstimator,
    Adjoint as Adjoint,
    Response as Response,
)
from .reversible import Reversible as Reversible
from .stencils import Central as Central, OneSided as OneSided, RootsOfUnity as RootsOfUnity
from .truncated import TruncatedAdjoint as TruncatedAdjoint
