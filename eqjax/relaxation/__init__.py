"""How a field settles: `relax` (Diffrax), `equilibrium` (Optimistix), and the solvers those libraries lack."""

from .anderson import Anderson as Anderson
from .equilibrium import Equilibrium as Equilibrium, equilibrium as equilibrium
from .gmres import GMRES as GMRES
from .newton_krylov import NewtonKrylov as NewtonKrylov
from .picard import Picard as Picard
from .relax import Relaxation as Relaxation, relax as relax
from .residual import (
    RESULTS as RESULTS,
    force_residual as force_residual,
    residual_ratio as residual_ratio,
)
