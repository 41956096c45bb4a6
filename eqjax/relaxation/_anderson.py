"""Anderson acceleration as an Optimistix fixed-point solver."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree, ScalarLike

from ._secant import AbstractSecant, lengths, solve_oblique, solve_small, tikhonov


# Why differences. Anderson (1965) weighs whole iterates, with weights that sum to 1; in differences the same
# iterate comes from a least-squares problem without a constraint (Walker & Ni 2011; Fang & Saad 2009).
class Anderson(AbstractSecant):
    """Anderson acceleration (Anderson 1965; Walker & Ni 2011) of `y ← g(y)` with `g(y) = y + F(y)`.

    `y⁺ = y + ζ f - (ΔY + ζ ΔF) γ` with `f = F(y)`: the mixing ζ plays the step ε, and `γ = argmin ‖f - ΔF γ‖² + ridge`
    (type II, the usual one; for type I see `AndersonTypeI`). Memory: `2 · window` states. One field evaluation a step.
    Under `vmap` every sample keeps its own mixing, restarts and stopping.

    It watches the *force*, not the step, and returns the best iterate. An accelerated step is kept only while
    its residual stays below `growth` times the best one: above that (or not finite) the history is dropped, and
    the iteration restarts from the best iterate with half the mixing. After `patience` evaluations without a
    new best it gives up (`RESULTS.nonlinear_divergence`), so a tolerance below the floor of the dtype costs
    little.

    **Arguments:**

    - `rtol`, `atol`: stop when `‖F(y)‖ ≤ atol + rtol · max(‖y‖, scale)`.
    - `mixing`: ζ > 0. `window`: differences kept. `ridge`: Tikhonov term relative to the normalised Gram
      matrix; by default 10 units of rounding of the dtype.
    - `growth`, `patience`: see above. `norm`, `scale`: of the residual (None: see `equilibrium`).

    Like every quasi-Newton method it may converge to a fixed point that is *unstable* for the relaxation. To
    check, `relax` from the fixed point with a small perturbation: from an unstable one the state leaves.

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.Anderson(rtol=1e-5))
    assert found.residual < 1e-5 and found.stats["field_evaluations"] < 20
    ```
    """

    rtol: ScalarLike
    atol: ScalarLike = 0.0
    mixing: ScalarLike = 0.5
    window: int = eqx.field(default=8, static=True)
    ridge: ScalarLike | None = None
    growth: ScalarLike = 10.0
    patience: int = 24
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike | None = None

    def _coefficients(self, products, age, mixing):
        size = lengths(products.ff)
        ridge = tikhonov(self.ridge, size.dtype)
        # Normal equations, not the updated QR of Walker & Ni (2011): products of the few stored rows, which `vmap`
        # batches, where QR goes column by column. They square the condition number; unit rows and ridge bound the
        # harm, and a bad step is caught like any other, by its residual.
        gram = products.ff / size[:, None] / size[None, :] + ridge * jnp.eye(
            self.window, dtype=size.dtype
        )
        return solve_small(gram, products.f / size) / size


class AndersonTypeI(AbstractSecant):
    """Anderson acceleration of type I: `(ΔYᴴ ΔF) γ = ΔYᴴ f` (Fang & Saad 2009), a quasi-Newton method that meets all secant
    equations at once.

    All else, and the arguments, are those of `Anderson`; the `ridge` moves the diagonal away from zero.

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.relaxation.AndersonTypeI(rtol=1e-5))
    assert found.residual < 1e-5
    ```
    """

    rtol: ScalarLike
    atol: ScalarLike = 0.0
    mixing: ScalarLike = 0.5
    window: int = eqx.field(default=8, static=True)
    ridge: ScalarLike | None = None
    growth: ScalarLike = 10.0
    patience: int = 24
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike | None = None

    def _coefficients(self, products, age, mixing):
        size, test = lengths(products.ff), lengths(products.yy)
        ridge = tikhonov(self.ridge, size.dtype)
        # ΔYᴴ ΔF has no sign to rely on: hence the oblique ridge.
        matrix = products.yf / test[:, None] / size[None, :]
        return solve_oblique(matrix, products.y / test, ridge) / size
