"""What a field does near a state: its spectrum, how it loses stability along a parameter, and what comes after."""

from .bifurcation import SpecialPoint as SpecialPoint
from .check import Check as Check, check as check
from .classify import Outcome as Outcome, classify as classify
from .continuation import Branch as Branch, continuation as continuation
from .controllers import (
    PI as PI,
    AbstractController as AbstractController,
    Constant as Constant,
    Multiplicative as Multiplicative,
)
from .cycle_continuation import (
    CycleBranch as CycleBranch,
    cycle_continuation as cycle_continuation,
)
from .cycle_points import CyclePoint as CyclePoint
from .cycles import PeriodicOrbit as PeriodicOrbit, periodic_orbit as periodic_orbit
from .eigenvalue import eigenvalue as eigenvalue
from .homeostat import (
    AbstractHomeostat as AbstractHomeostat,
    Homeostat as Homeostat,
    HomeostatState as HomeostatState,
    growth_homeostat as growth_homeostat,
    penalty_signal as penalty_signal,
    rejected_signal as rejected_signal,
    residual_signal as residual_signal,
)
from .hopf_point import HopfPoint as HopfPoint, hopf_point as hopf_point
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
from .path import (
    AbstractPath as AbstractPath,
    Natural as Natural,
    PseudoArclength as PseudoArclength,
)
from .penalties import (
    antisymmetry_penalty as antisymmetry_penalty,
    growth_penalty as growth_penalty,
    growth_rate as growth_rate,
    jacobian_penalty as jacobian_penalty,
    lognorm_penalty as lognorm_penalty,
    residual_penalty as residual_penalty,
    spectral_penalty as spectral_penalty,
)
from .rails import cap_norms as cap_norms, rails as rails
from .spectrum import RESULTS as RESULTS, Spectrum as Spectrum, spectrum as spectrum
from .storage import load as load, save as save
from .switch import switch as switch
from .transforms import Propagator as Propagator, ShiftInvert as ShiftInvert
