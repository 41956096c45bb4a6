"""eqjax: differentiable dynamics. A force field settles, the settled state answers, and the gradient comes
back by settling again."""

import importlib.metadata as _metadata

from . import (
    analytic as analytic,
    fields as fields,
    gradients as gradients,
    language as language,
    plots as plots,
    relaxation as relaxation,
    stability as stability,
    training as training,
)
from .analytic import (
    cross_entropy as cross_entropy,
    squared_error as squared_error,
    tree_cast as tree_cast,
)
from .fields import (
    AbstractEnergyField as AbstractEnergyField,
    AbstractEquilibriumModel as AbstractEquilibriumModel,
    AbstractForceField as AbstractForceField,
    AbstractSplitField as AbstractSplitField,
    EquilibriumModel as EquilibriumModel,
    Realified as Realified,
    trainable as trainable,
)
from .gradients import (
    BPTT as BPTT,
    Accept as Accept,
    AdjointCoordinates as AdjointCoordinates,
    AsymEP as AsymEP,
    Averaged as Averaged,
    Backprop as Backprop,
    Central as Central,
    DyadicEP as DyadicEP,
    EnergyEP as EnergyEP,
    ExactCorrection as ExactCorrection,
    ExactEligibility as ExactEligibility,
    ForwardEligibility as ForwardEligibility,
    GradientEstimate as GradientEstimate,
    HolomorphicEP as HolomorphicEP,
    LockIn as LockIn,
    LowRank as LowRank,
    OneSided as OneSided,
    OracleAdjoint as OracleAdjoint,
    ProbeCorrection as ProbeCorrection,
    RandomDirections as RandomDirections,
    RawStates as RawStates,
    Reversible as Reversible,
    SharedAdjoint as SharedAdjoint,
    TruncatedAdjoint as TruncatedAdjoint,
    VectorFieldEP as VectorFieldEP,
    compare as compare,
)
from .relaxation import (
    GMRES as GMRES,
    RESULTS as RESULTS,
    Anderson as Anderson,
    BackwardEuler as BackwardEuler,
    Broyden as Broyden,
    Equilibrium as Equilibrium,
    Fallback as Fallback,
    IMEXEuler as IMEXEuler,
    NewtonKrylov as NewtonKrylov,
    OvershootController as OvershootController,
    Picard as Picard,
    PseudoTransient as PseudoTransient,
    Refine as Refine,
    Relaxation as Relaxation,
    TimeStepping as TimeStepping,
    equilibrium as equilibrium,
    force_residual as force_residual,
    relax as relax,
)

__version__ = _metadata.version("eqjax")
