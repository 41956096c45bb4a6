"""eqjax: differentiable dynamics. A force field settles, the settled state answers, and the gradient comes
back by settling again.

How a field settles and how it learns is here at once; the other rooms load at their first use, the applications
`language`, `memory`, `resonance`, `recipes`, `plots` and `showcase` with what their extras bring."""

import importlib as _importlib
import importlib.metadata as _metadata
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import (
    analytic as analytic,
    fields as fields,
    gradients as gradients,
    relaxation as relaxation,
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
    AsymEP as AsymEP,
    Backprop as Backprop,
    DyadicEP as DyadicEP,
    EnergyEP as EnergyEP,
    ForwardEligibility as ForwardEligibility,
    HolomorphicEP as HolomorphicEP,
    Nudge as Nudge,
    OracleAdjoint as OracleAdjoint,
    TruncatedAdjoint as TruncatedAdjoint,
    VectorFieldEP as VectorFieldEP,
    compare as compare,
)
from .relaxation import (
    GMRES as GMRES,
    RESULTS as RESULTS,
    Anderson as Anderson,
    NewtonKrylov as NewtonKrylov,
    Picard as Picard,
    TimeStepping as TimeStepping,
    TokenOrder as TokenOrder,
    equilibrium as equilibrium,
    force_residual as force_residual,
    relax as relax,
)

if _TYPE_CHECKING:
    from . import (
        homeostasis as homeostasis,
        language as language,
        memory as memory,
        plots as plots,
        recipes as recipes,
        resonance as resonance,
        showcase as showcase,
        stability as stability,
        training as training,
    )

__version__ = _metadata.version("eqjax")
_LAZY = "stability homeostasis training language memory resonance recipes plots showcase".split()


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _importlib.import_module(f"{__name__}.{name}")


def __dir__():
    return sorted({*(name for name in globals() if not name.startswith("_")), *_LAZY})
