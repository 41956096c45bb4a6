"""Damped Picard iteration as an Optimistix fixed-point solver."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from .._checks import check_positive
from ._residual import check_solver, is_met, scale_of


class _PicardState(eqx.Module):
    converged: Bool[Array, ""]
    evaluations: Int[Array, ""]
    scale: Float[Array, ""]


class Picard(optx.AbstractFixedPointSolver):
    """Damped Picard iteration `y ← y + ε F(y)`: explicit Euler, run until the *force* residual is small.

    It is what relaxing hardware does: no history, no best iterate, the last state is returned.

    **Arguments:**

    - `rtol`, `atol`: stop when `‖F(y)‖ ≤ atol + rtol · max(‖y‖, scale)`. Both 0 (the default) asks for no
      tolerance: exactly `max_steps` steps are made.
    - `step_size`: ε > 0. `norm`, `scale`: of the residual (None: see `equilibrium`).

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.Picard(rtol=1e-5, step_size=0.5))
    assert found.residual < 1e-5
    ```
    """

    rtol: ScalarLike = 0.0
    atol: ScalarLike = 0.0
    step_size: ScalarLike = 0.1
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike | None = None

    def __check_init__(self):
        check_solver(self, both_zero=True)
        check_positive(step_size=self.step_size)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        scale = jnp.ones_like(self.norm(y))
        return _PicardState(jnp.asarray(False), jnp.asarray(0), scale)

    def step(self, fn, y, args, options, state, tags):
        image, aux = fn(y, args)
        force = jax.tree.map(jnp.subtract, image, y)
        size = self.norm(force)
        scale = jnp.where(state.evaluations == 0, scale_of(self, size, y), state.scale)
        converged = is_met(self, size, y, scale)
        new = jax.tree.map(lambda a, f: a + self.step_size * f, y, force)
        return new, _PicardState(converged, state.evaluations + 1, scale), aux

    def terminate(self, fn, y, args, options, state, tags):
        return state.converged, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {"field_evaluations": state.evaluations, "scale": state.scale}
