"""Equilibrium propagation for vector fields: with the correction that makes it right, and without."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
from jaxtyping import ScalarLike

from ..fields import trainable
from ..relaxation import Anderson, Solver
from ._corrections import AbstractCorrection, ExactCorrection, NoCorrection
from ._estimate import Accept
from ._nudge import Nudge
from ._nudged import AbstractNudgedEstimator, as_nudge


class AsymEP(AbstractNudgedEstimator):
    """Asymmetric equilibrium propagation (Scurria et al., arXiv 2602.03670).

    *Objective: equilibrium.* Settle freely to z*; settle again, at nudges ±β, under the nudged field
    `F(z) - (J - Jᵀ)(z - z*) - β ∂L/∂z`, whose Jacobian at z* is Jᵀ; the contrast `a = (z₋ - z₊)/(2β)` tends to
    the oracle's adjoint with error O(β²), and `aᵀ ∂F/∂θ` is the gradient. Uses products with J and Jᵀ at z*,
    no backpropagation through time and no linear solver.

    **Arguments:**

    - `free`, `free_steps`: solver of the free phase and its budget.
    - `nudged`: a `Nudge`, which says how the nudged phases settle, or a fixed-point solver for one.
    - `beta` or `radius`, by keyword: how far they are nudged, as in `Nudge`.
    - `correction`: `ExactCorrection()`, or `ProbeCorrection(...)` from forward perturbations only (needs `key`).
    - `read_noise`: relative standard deviation of a perturbation of every parameter of the field, drawn anew for
      every settle and fixed within it, the same for force, JVP and VJP (needs `key`); None for none.
    - `state_noise`: relative standard deviation of what is read of every number of a state, the free one and the nudged
      ones (needs `key`); None for none. It is divided by the nudge, which must be the larger.
    - `accept`: per-sample thresholds. `trains`: function from models to a mask of the trained arrays.

    ```python
    estimate = ej.AsymEP()(model, ej.squared_error, batch)
    assert jnp.allclose(estimate.grads.field.weight, exact, rtol=1e-2, atol=1e-3)
    ```
    """

    free: Solver = Anderson(rtol=1e-5)
    nudged: Nudge = eqx.field(default=Nudge(), converter=as_nudge)
    correction: AbstractCorrection = ExactCorrection()
    read_noise: ScalarLike | None = None
    state_noise: ScalarLike | None = None
    free_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable


class VectorFieldEP(AbstractNudgedEstimator):
    """AsymEP without its correction (Scellier et al. 2018): the baseline that fails.

    *Objective: equilibrium*, but right only where the Jacobian is symmetric: its nudged phases answer with J⁻¹ where
    the gradient needs J⁻ᵀ. The nudged phases may settle perfectly (`nudged_residual`) while the adjoint is
    wrong (`adjoint_residual`), so by default only one above 10 is refused for the latter.

    **Arguments:** as `AsymEP`, without `correction`.

    ```python
    estimate = ej.VectorFieldEP()(model, ej.squared_error, batch)
    assert not jnp.allclose(estimate.grads.field.weight, exact, rtol=1e-2, atol=1e-3)
    ```
    """

    free: Solver = Anderson(rtol=1e-5)
    nudged: Nudge = eqx.field(default=Nudge(), converter=as_nudge)
    read_noise: ScalarLike | None = None
    state_noise: ScalarLike | None = None
    free_steps: int = 256
    accept: Accept = Accept(adjoint_residual=10.0)
    trains: Callable = trainable
    correction: ClassVar[AbstractCorrection] = NoCorrection()
