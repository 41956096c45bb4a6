"""How a field settles: `relax` (Diffrax), `equilibrium` (Optimistix), and the solvers those libraries lack."""

from .anderson import Anderson as Anderson
from .broyden import Broyden as Broyden
from .equilibrium import Equilibrium as Equilibrium, equilibrium as equilibrium
from .fallback import Fallback as Fallback
from .gmres import GMRES as GMRES
from .implicit_euler import BackwardEuler as BackwardEuler, IMEXEuler as IMEXEuler
from .newton_krylov import NewtonKrylov as NewtonKrylov
from .picard import Picard as Picard
from .pseudo_transient import PseudoTransient as PseudoTransient
from .refine import Refine as Refine
from .relax import Relaxation as Relaxation, relax as relax
from .residual import (
    RESULTS as RESULTS,
    force_residual as force_residual,
    residual_ratio as residual_ratio,
)
from .step_control import OvershootController as OvershootController
from .time_stepping import TimeStepping as TimeStepping
