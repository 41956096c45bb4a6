"""How a field settles: `relax` (Diffrax), `equilibrium` (Optimistix), and the solvers those libraries lack.

Beside what [all examples](../look-up.md#examples) begin from, those of this room begin from these lines:

```python
tokens = jnp.ones((3, 4))
block = ej.fields.ThickBlock(4, 2, key=jax.random.key(1))
```
"""

from ._anderson import Anderson as Anderson, AndersonTypeI as AndersonTypeI
from ._broyden import Broyden as Broyden
from ._equilibrium import Equilibrium as Equilibrium, equilibrium as equilibrium
from ._fallback import (
    Fallback as Fallback,
    with_tolerance as with_tolerance,
)
from ._firing import (
    AbstractScheme as AbstractScheme,
    EventDriven as EventDriven,
    SpikeTrain as SpikeTrain,
    SpikingState as SpikingState,
    fire as fire,
)
from ._fixed_step import FixedStep as FixedStep
from ._fresh import warn_of_fresh as warn_of_fresh
from ._gmres import (
    GMRES as GMRES,
    adjoint_solver as adjoint_solver,
    solve_linear as solve_linear,
)
from ._implicit_euler import BackwardEuler as BackwardEuler, IMEXEuler as IMEXEuler
from ._loop import while_wanted as while_wanted
from ._newton_krylov import NewtonKrylov as NewtonKrylov
from ._picard import Picard as Picard
from ._pseudo_transient import PseudoTransient as PseudoTransient
from ._quorum import Quorum as Quorum
from ._refine import Refine as Refine
from ._relax import Relaxation as Relaxation, relax as relax
from ._residual import (
    RESULTS as RESULTS,
    MeasuresForce as MeasuresForce,
    Solver as Solver,
    check_field as check_field,
    check_structure as check_structure,
    explained as explained,
    force_residual as force_residual,
    residual_ratio as residual_ratio,
)
from ._step_control import OvershootController as OvershootController
from ._time_stepping import TimeStepping as TimeStepping
from ._token_order import (
    TokenOrder as TokenOrder,
    check_causal as check_causal,
    settled_after as settled_after,
)
from ._triangular import linear_in_order as linear_in_order
