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
    trainable as trainable,
)
from .gradients import (
    BPTT as BPTT,
    Accept as Accept,
    AdjointCoordinates as AdjointCoordinates,
    AsymEP as AsymEP,
    GradientEstimate as GradientEstimate,
    OracleAdjoint as OracleAdjoint,
    RawStates as RawStates,
    compare as compare,
)
from .relaxation import (
    GMRES as GMRES,
    RESULTS as RESULTS,
    Anderson as Anderson,
    Equilibrium as Equilibrium,
    NewtonKrylov as NewtonKrylov,
    Picard as Picard,
    Relaxation as Relaxation,
    equilibrium as equilibrium,
    force_residual as force_residual,
    relax as relax,
)

__version__ = _metadata.version("eqjax")
