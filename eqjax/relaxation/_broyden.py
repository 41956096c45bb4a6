"""Broyden's method with limited memory, as an Optimistix fixed-point solver."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree, ScalarLike

from ._secant import AbstractSecant, lengths, solve_oblique, tikhonov


# Why the compact form. The usual recursion stores rank-one updates, each of which rests on those before it:
# to forget the oldest one means to restart. Here the matrix is one formula in ΔY and ΔF (Byrd, Nocedal &
# Schnabel 1994): any window of differences defines it, and the coefficients come from one m × m system.
class Broyden(AbstractSecant):
    """Broyden's "good" method (Broyden 1965) on `F(y) = g(y) - y = 0`, with the Jacobian guessed as `-I/ζ` at first.

    In the compact form of Byrd, Nocedal & Schnabel (1994), `y⁺ = y + ζ f - (ΔY + ζ ΔF) γ` with
    `(ΔYᴴ ΔF + L/ζ) γ = ΔYᴴ f`, L the entries of `ΔYᴴ ΔY` between a difference and its elders. Without L it would
    be Anderson's type I. Memory: `2 · window` states; the oldest difference is forgotten first. One field
    evaluation a step.

    Best iterate, restarts with half the mixing, patience, arguments and the caution about unstable fixed points
    are those of `Anderson`.

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.relaxation.Broyden(rtol=1e-5))
    assert found.residual < 1e-5
    ```
    """

    rtol: ScalarLike
    atol: ScalarLike = 0.0
    mixing: ScalarLike = 0.5
    window: int = eqx.field(default=16, static=True)
    ridge: ScalarLike | None = None
    growth: ScalarLike = 10.0
    patience: int = 24
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike | None = None

    def _coefficients(self, products, age, mixing):
        size, test = lengths(products.ff), lengths(products.yy)
        ridge = tikhonov(self.ridge, size.dtype)
        # Broyden's matrix meets the newest secant equation exactly, and the elder ones only as far as later
        # updates left them: L is what those took away. Anderson's type I meets all at once.
        elder = age[:, None] < age[None, :]  # row newer than column
        lower = jnp.where(elder, products.yy, 0)
        # Rows are scaled by ΔY and columns by ΔF, in both terms alike: one division puts γ right.
        matrix = (products.yf + lower / mixing) / test[:, None] / size[None, :]
        return solve_oblique(matrix, products.y / test, ridge) / size
