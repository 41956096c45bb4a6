"""What a field does near a state: its spectrum, how it loses stability along a parameter, and what comes after.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
network, origin, key = ej.fields.GainNetwork(gain=0.5), jnp.zeros(2), jax.random.key(1)
gain = lambda f: f.gain
branch = ej.stability.continuation(network, origin, where=gain, bounds=(0.0, 1.0), step=1.0, k=2)
hopf = branch.special_points[-1]  # at gain .8
turning, growth = ej.fields.StuartLandau(), lambda f: f.growth
```
"""

from ._bifurcation import SpecialPoint as SpecialPoint
from ._check import Check as Check, check as check
from ._classify import Classification as Classification, classify as classify
from ._codim_two import CurvePoint as CurvePoint
from ._continuation import Branch as Branch, continuation as continuation
from ._critical_curves import (
    Curve as Curve,
    fold_curve as fold_curve,
    hopf_curve as hopf_curve,
)
from ._curve_switch import switch_curve as switch_curve
from ._cycle_continuation import (
    CycleBranch as CycleBranch,
    cycle_continuation as cycle_continuation,
)
from ._cycle_curves import CycleCurve as CycleCurve, cycle_curve as cycle_curve
from ._cycle_points import CyclePoint as CyclePoint
from ._cycles import PeriodicOrbit as PeriodicOrbit, periodic_orbit as periodic_orbit
from ._deflation import Equilibria as Equilibria, equilibria as equilibria
from ._diagram import Diagram as Diagram
from ._eigenvalue import eigenvalue as eigenvalue, quotient as quotient
from ._forced import Forced as Forced
from ._homoclinic import Homoclinic as Homoclinic, homoclinic as homoclinic
from ._homoclinic_curve import (
    HomoclinicCurve as HomoclinicCurve,
    homoclinic_curve as homoclinic_curve,
)
from ._hopf_point import HopfPoint as HopfPoint, hopf_point as hopf_point
from ._jacobian import jacobian as jacobian, state_dtype as state_dtype
from ._krylov_schur import (
    AbstractTransform as AbstractTransform,
    Eigenpairs as Eigenpairs,
    krylov_schur as krylov_schur,
)
from ._lyapunov import (
    Lyapunov as Lyapunov,
    finite_time_exponents as finite_time_exponents,
    lyapunov as lyapunov,
)
from ._map_normal_form import (
    MapNormalForm as MapNormalForm,
    map_normal_form as map_normal_form,
)
from ._normal_form import HopfNormalForm as HopfNormalForm, hopf_normal_form as hopf_normal_form
from ._normal_forms import NormalForm as NormalForm, normal_form as normal_form
from ._normality import (
    Estimate as Estimate,
    asymmetry as asymmetry,
    commutator as commutator,
    fastest_growth as fastest_growth,
    henrici as henrici,
    numerical_abscissa as numerical_abscissa,
    pseudospectral_abscissa as pseudospectral_abscissa,
    signs as signs,
    square as square,
)
from ._path import (
    AbstractPath as AbstractPath,
    Natural as Natural,
    PseudoArclength as PseudoArclength,
)
from ._preconditioned import Preconditioned as Preconditioned
from ._propagation import euler_map as euler_map
from ._sparse import SparseLU as SparseLU
from ._spectrum import (
    Spectrum as Spectrum,
    SpectrumResults as SpectrumResults,
    spectrum as spectrum,
)
from ._storage import load as load, save as save
from ._survey import diagram as diagram
from ._switch import switch as switch
from ._token_spectrum import (
    TokenSpectrum as TokenSpectrum,
    token_blocks as token_blocks,
    token_spectrum as token_spectrum,
)
from ._transforms import (
    Propagator as Propagator,
    Rightmost as Rightmost,
    ShiftInvert as ShiftInvert,
)
