"""What a field does near a state: spectra, their derivatives, and how far from normal it is."""

from .eigenvalue import eigenvalue as eigenvalue
from .krylov_schur import (
    AbstractTransform as AbstractTransform,
    Eigenpairs as Eigenpairs,
    krylov_schur as krylov_schur,
)
from .normality import (
    Estimate as Estimate,
    asymmetry as asymmetry,
    commutator as commutator,
    henrici as henrici,
    numerical_abscissa as numerical_abscissa,
    pseudospectral_abscissa as pseudospectral_abscissa,
)
from .spectrum import RESULTS as RESULTS, Spectrum as Spectrum, spectrum as spectrum
from .transforms import Propagator as Propagator, ShiftInvert as ShiftInvert
