"""What a field does near a state: its spectrum, how it loses stability along a parameter, and what comes after."""

from .bifurcation import SpecialPoint as SpecialPoint
from .check import Check as Check, check as check
from .classify import Outcome as Outcome, classify as classify
from .continuation import (
    AbstractPath as AbstractPath,
    Branch as Branch,
    Natural as Natural,
    PseudoArclength as PseudoArclength,
    continuation as continuation,
)
from .cycles import PeriodicOrbit as PeriodicOrbit, periodic_orbit as periodic_orbit
from .eigenvalue import eigenvalue as eigenvalue
from .krylov_schur import (
    AbstractTransform as AbstractTransform,
    Eigenpairs as Eigenpairs,
    krylov_schur as krylov_schur,
)
from .lyapunov import (
    Lyapunov as Lyapunov,
    finite_time_exponents as finite_time_exponents,
    lyapunov as lyapunov,
)
from .normal_form import HopfNormalForm as HopfNormalForm, hopf_normal_form as hopf_normal_form
from .normality import (
    Estimate as Estimate,
    asymmetry as asymmetry,
    commutator as commutator,
    henrici as henrici,
    numerical_abscissa as numerical_abscissa,
    pseudospectral_abscissa as pseudospectral_abscissa,
)
from .spectrum import RESULTS as RESULTS, Spectrum as Spectrum, spectrum as spectrum
from .switch import switch as switch
from .transforms import Propagator as Propagator, ShiftInvert as ShiftInvert
