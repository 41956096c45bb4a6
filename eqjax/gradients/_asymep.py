"""Equilibrium propagation for vector fields: with the correction that makes it right, and without."""

from collections.abc import Callable
from typing import Any, ClassVar

from ..fields import trainable
from ..relaxation import Anderson
from ._corrections import AbstractCorrection, ExactCorrection, NoCorrection
from ._estimate import Accept
from ._nudged import AbstractContrast, AbstractNudgedEstimator, AdjointCoordinates
from ._response import adjoint_surrogate
from ._stencils import AbstractStencil, Central


class AsymEP(AbstractNudgedEstimator):
    """Asymmetric equilibrium propagation (Scurria et al., arXiv 2602.03670).

    *Objective: equilibrium.* Settle freely to z*; settle again, at nudges ±β, under the nudged field
    `F(z) - (J - Jᵀ)(z - z*) - β ∂L/∂z`, whose Jacobian at z* is Jᵀ; the contrast `a = (z₋ - z₊)/(2β)` tends to
    the oracle's adjoint with error O(β²), and `aᵀ ∂F/∂θ` is the gradient. Uses products with J and Jᵀ at z*,
    no backpropagation through time and no linear solver.

    **Arguments:**

    - `free`, `free_steps`: solver of the free phase and its budget.
    - `nudged`, `nudged_steps`: the same of the nudged phases; any Optimistix fixed-point solver. In adjoint
      coordinates its tolerance speaks about the adjoint residual.
    - `radius`: the settled displacement relative to ‖z*‖ (by default a fifth of where rounding meets curvature: for two
      phases 1e-3 in float32 and 1e-6 in float64); or `beta`: β itself, which multiplies the gradient of the loss
      as given. Both may be arrays, so that a study does not recompile.
    - `stencil`: the nudges: `Central(pairs)`, symmetric by default, or `OneSided()`.
    - `contrast`: `AdjointCoordinates()`, `SharedAdjoint()` (the fastest) or `RawStates()` (the literal one).
    - `correction`: `ExactCorrection()`, or `ProbeCorrection(...)` from forward perturbations only (needs `key`).
    - `read_noise`: relative standard deviation of a perturbation of every parameter of the field, drawn anew for
      every settle and fixed within it, the same for force, JVP and VJP (needs `key`); None for none.
    - `accept`: per-sample thresholds. `trains`: function from models to a mask of the trained arrays.
    """

    free: Any = Anderson(rtol=1e-5)
    nudged: Any = Anderson(rtol=1e-3)
    radius: Any = None
    beta: Any = None
    stencil: AbstractStencil = Central()
    contrast: AbstractContrast = AdjointCoordinates()
    correction: AbstractCorrection = ExactCorrection()
    read_noise: Any = None
    free_steps: int = 256
    nudged_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable

    def surrogate(self, model, loss, inputs, target, z, a, memory):
        return adjoint_surrogate(model, loss, inputs, target, z, a)


class VectorFieldEP(AbstractNudgedEstimator):
    """AsymEP without its correction (Scellier et al. 2018): the baseline that fails.

    *Objective: equilibrium*, but right only where the Jacobian is symmetric: its nudged phases answer with J⁻¹ where
    the gradient needs J⁻ᵀ. The nudged phases may settle perfectly (`nudged_residual`) while the adjoint is
    wrong (`adjoint_residual`), so by default no sample is refused for the latter.

    **Arguments:** as `AsymEP`, without `correction`.
    """

    free: Any = Anderson(rtol=1e-5)
    nudged: Any = Anderson(rtol=1e-3)
    radius: Any = None
    beta: Any = None
    stencil: AbstractStencil = Central()
    contrast: AbstractContrast = AdjointCoordinates()
    read_noise: Any = None
    free_steps: int = 256
    nudged_steps: int = 256
    accept: Accept = Accept(adjoint_residual=float("inf"))
    trains: Callable = trainable
    correction: ClassVar[AbstractCorrection] = NoCorrection()

    def surrogate(self, model, loss, inputs, target, z, a, memory):
        return adjoint_surrogate(model, loss, inputs, target, z, a)
