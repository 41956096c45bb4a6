"""Anderson acceleration as an Optimistix fixed-point solver."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree, ScalarLike

from ._secant import (
    AbstractSecant,
    solve_oblique,
    tikhonov,
    unit_rows,
)


class Anderson(AbstractSecant):
    """Anderson acceleration (Anderson 1965; Walker & Ni 2011) of `y ← g(y)` with `g(y) = y + F(y)`.

    `y⁺ = y + ζ f - (ΔY + ζ ΔF) γ` with `f = F(y)`: the mixing ζ plays the step ε. Type II, the usual one, takes
    `γ = argmin ‖f - ΔF γ‖² + ridge`; type I solves `(ΔYᴴ ΔF) γ = ΔYᴴ f` (Fang & Saad 2009). Memory:
    `2 · window` states. One field evaluation a step. Under `vmap` every sample keeps its own mixing, restarts
    and stopping.

    It watches the *force*, not the step, and returns the best iterate. An accelerated step is kept only while
    its residual stays below `growth` times the best one: above that (or not finite) the history is dropped, and
    the iteration restarts from the best iterate with half the mixing. After `patience` evaluations without a
    new best it gives up (`RESULTS.nonlinear_divergence`), so a tolerance below the floor of the dtype costs
    little.

    **Arguments:**

    - `rtol`, `atol`: stop when `‖F(y)‖ ≤ atol + rtol · max(‖y‖, scale)`.
    - `mixing`: ζ > 0. `window`: differences kept. `ridge`: Tikhonov term relative to the normalised Gram
      matrix; by default 10 units of rounding of the dtype. In type I it moves the diagonal away from zero.
    - `growth`, `patience`: see above. `norm`, `scale`: of the residual. `type`: 1 or 2.

    Like every quasi-Newton method it may converge to a fixed point that is *unstable* for the relaxation. To
    check, `relax` from the fixed point with a small perturbation: from an unstable one the state leaves.
    """

    rtol: ScalarLike
    atol: ScalarLike = 0.0
    mixing: ScalarLike = 0.5
    window: int = eqx.field(default=8, static=True)
    ridge: ScalarLike | None = None
    growth: ScalarLike = 10.0
    patience: int = 24
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike = 1.0
    type: int = eqx.field(default=2, static=True)

    def __check_init__(self):
        if self.type not in (1, 2):
            raise ValueError(f"`type` must be 1 or 2, got {self.type!r}.")

    def _coefficients(self, dy, df, f, age, mixing):
        unit, size = unit_rows(df)
        ridge = tikhonov(self.ridge, f.dtype)
        if self.type == 2:
            gram = unit.conj() @ unit.T + ridge * jnp.eye(self.window, dtype=f.dtype)
            return jnp.linalg.solve(gram, unit.conj() @ f) / size.astype(f.dtype)
        test, _ = unit_rows(dy)
        return solve_oblique(test.conj() @ unit.T, test.conj() @ f, ridge) / size.astype(f.dtype)
