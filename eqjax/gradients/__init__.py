"""Estimators of dL/dθ, and `compare`, which lays them side by side."""

from ._asymep import AsymEP as AsymEP, VectorFieldEP as VectorFieldEP
from ._averaged import Averaged as Averaged
from ._backprop import Backprop as Backprop
from ._bptt import BPTT as BPTT
from ._compare import (
    Comparison as Comparison,
    agreement as agreement,
    compare as compare,
    on_common_samples as on_common_samples,
)
from ._corrections import (
    ExactCorrection as ExactCorrection,
    NoCorrection as NoCorrection,
    ProbeCorrection as ProbeCorrection,
)
from ._dyadic import DyadicEP as DyadicEP
from ._energy import EnergyEP as EnergyEP
from ._estimate import (
    AbstractEstimator as AbstractEstimator,
    AbstractOuterEstimator as AbstractOuterEstimator,
    Accept as Accept,
    GradientEstimate as GradientEstimate,
    Report as Report,
    accepted_mean as accepted_mean,
    batch_keys as batch_keys,
    borrow as borrow,
    by_sample as by_sample,
    check_call as check_call,
)
from ._forward import (
    ExactEligibility as ExactEligibility,
    ForwardEligibility as ForwardEligibility,
    LowRank as LowRank,
    RandomDirections as RandomDirections,
)
from ._holomorphic import HolomorphicEP as HolomorphicEP, LockIn as LockIn
from ._holomorphy import check_holomorphic as check_holomorphic
from ._nudge import (
    AdjointCoordinates as AdjointCoordinates,
    Nudge as Nudge,
    RawStates as RawStates,
    SharedAdjoint as SharedAdjoint,
)
from ._nudged import AbstractNudgedEstimator as AbstractNudgedEstimator
from ._oracle import OracleAdjoint as OracleAdjoint
from ._response import (
    AbstractAdjointEstimator as AbstractAdjointEstimator,
    AbstractEquilibriumEstimator as AbstractEquilibriumEstimator,
    Adjoint as Adjoint,
    Response as Response,
)
from ._reversible import Reversible as Reversible
from ._stencils import Central as Central, OneSided as OneSided, RootsOfUnity as RootsOfUnity
from ._truncated import TruncatedAdjoint as TruncatedAdjoint
