"""Step-size control for settling, as a Diffrax controller: the longest step under which the force still falls."""

import math
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from .._checks import check_count, check_number, check_positive, given


class _OvershootState(eqx.Module):
    # Kept beside the times, since Diffrax cuts the last step off at t1.
    step: Float[Array, ""]
    least: Float[Array, ""]
    force: PyTree[Array]  # of the step before
    size: Float[Array, ""]  # its norm; 0 before the first step
    change: Float[Array, ""]  # smoothed relative change of ‖F‖² over a step
    turn: Float[Array, ""]  # smoothed ‖ΔF‖² / ‖F‖²
    best: Float[Array, ""]
    floored: Int[Array, ""]  # calls for less than the smallest step since the best size


class OvershootController(dfx.AbstractStepSizeController):
    """Lengthen the step while the force falls, shorten it only when the step itself made the force rise.

    Settling asks for no accuracy along the way, so an error estimate (`diffrax.PIDController`) is the wrong
    signal. Here it is the force `f = (y₁ - y₀) / (t₁ - t₀)` over a step: exactly `F(y₀)` for Euler, `F(y₁)` for
    backward Euler, and free of further field evaluations with every solver. From one step to the next,
    `‖f₁‖² - ‖f₀‖² ∓ ‖f₁ - f₀‖²` is the slope of ‖f‖² at the beginning (-) and at the end (+) of the step. Both
    are taken relative to `‖f₀‖²` and averaged over the last steps. Then

    - the force still falls at the end of a step: the next one is `growth` times as long;
    - it fell at the beginning but is larger after the step, an *overshoot*: `shrink` times;
    - it is smaller, but the step went well beyond the least force on its line: shorter by `growth`, for close to
      the critical step the force would fall without end and without use;
    - otherwise, just beyond the least force, or where the force would rise under the shortest step too (the
      transient growth of a non-normal field): as long as before.

    On a mode `a ± ib` Euler's step so settles just above the best fixed one, `-a/(a² + b²)`, at half the
    critical one. It is made for Euler: the steps of methods of higher order stay near those of Euler.

    Steps whose result is not finite are taken again, shortened. When a step shorter than `min_step` is called
    for `patience` times without a new smallest force, the solve ends with `diffrax.RESULTS.dt_min_reached`: such a
    field needs an implicit step or a solver like `Anderson`. An overshoot is seen one step late, so a start
    from which one step explodes needs a short first step.

    **Arguments:**

    - `growth` > 1, `shrink` in (0, 1): factors on the step.
    - `min_step`, `max_step`: bounds of the step; the first by default 1e-3, or a tenth of the
      first step. `patience`: see above.
    - `smoothing` in [0, 1): weight of the past in the averages.
    - `rounding`: a change of the force below so many units of its rounding is not counted.
    - `norm`: of force and state; it should come from an inner product.

    ```python
    solver = ej.TimeStepping(rtol=1e-5, controller=ej.relaxation.OvershootController(max_step=0.5))
    assert ej.equilibrium(field, start, x, solver=solver).residual < 1e-5
    ```
    """

    growth: ScalarLike = 1.05
    shrink: ScalarLike = 0.5
    min_step: ScalarLike | None = None
    max_step: ScalarLike = 1.0
    patience: int = 16
    smoothing: ScalarLike = 0.8
    rounding: ScalarLike = 4.0
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)

    def __check_init__(self):
        check_number("be above 1 and finite", lambda v: 1 < v < math.inf, growth=self.growth)
        check_number("lie between 0 and 1", lambda v: 0 < v < 1, shrink=self.shrink)
        check_number("lie in [0, 1)", lambda v: 0 <= v < 1, smoothing=self.smoothing)
        check_count(patience=self.patience)
        check_positive(rounding=self.rounding, **given(min_step=self.min_step))
        low, high = self.min_step, self.max_step
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not 0 < low <= high:
            raise ValueError(f"Steps need 0 < `min_step` ≤ `max_step`, got {low} and {high}.")

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        if dt0 is None:
            raise ValueError(
                "`OvershootController` needs a first step: pass `dt0` (in `relax`, `step`)."
            )
        zero = jnp.zeros_like(self.norm(y0))
        least = jnp.minimum(1e-3, 0.1 * dt0) if self.min_step is None else self.min_step
        step = jnp.clip(jnp.asarray(dt0), least, self.max_step)
        state = _OvershootState(
            step=step,
            least=jnp.asarray(least, step.dtype),
            force=jax.tree.map(jnp.zeros_like, y0),
            size=zero,
            change=zero,
            turn=zero,
            best=jnp.full_like(zero, jnp.inf),
            floored=jnp.asarray(0),
        )
        return t0 + step, state

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ) -> Any:
        # For Euler the forces of this step and of the one before are those at the two ends of the latter: it
        # is judged one step late, but without a field evaluation.
        state = controller_state
        duration = jnp.asarray(t1 - t0, state.size.dtype)
        force = jax.tree.map(lambda a, b: (a - b) / duration.astype(a.dtype), y1_candidate, y0)
        size = self.norm(force)
        # An infinite force would poison averages and comparisons: the last good one stays.
        finite = jnp.isfinite(size)
        force = jax.tree.map(lambda a, b: jnp.where(finite, a, b), force, state.force)

        # What rounding does to the force itself, and to its reading from a difference of states.
        eps = jnp.finfo(size.dtype).eps
        noise = self.rounding * eps * self.norm(y0) * (1 + 1 / duration)
        difference = self.norm(jax.tree.map(jnp.subtract, force, state.force))
        # At the floor of the dtype the force only jitters: as overshoot that would end a settled solve.
        clear = finite & (state.size > 0) & (difference > noise)
        square = jnp.where(clear, state.size**2, 1.0)
        changed = clear & (jnp.abs(size - state.size) > noise)

        # One step tells little: where eigenvectors are not orthogonal, ‖f‖ beats with the phase of a rotating
        # mode, and the sign of its change with it.
        def averaged(old, new):
            return jnp.where(clear, self.smoothing * old + (1 - self.smoothing) * new, old)

        change = averaged(state.change, jnp.where(changed, size**2 - square, 0) / square)
        turn = averaged(state.turn, jnp.where(clear, difference**2, 0) / square)
        # change - turn is the slope of ‖f‖² at the beginning of the step, change + turn at its end. Where the
        # first is not negative the force would have risen under any step: that is transient growth (Trefethen
        # & Embree 2005), and a shorter step only prolongs it.
        overshoot = ~finite | (clear & (change > 0) & (change < turn))
        falling = clear & (change + turn < 0)

        # On the line of the step the force is least at (turn - change) / (2 turn) of it.
        # -0.7 puts that at 0.85: from there to the end the step is left alone, lest it hunt.
        beyond = clear & (change < turn) & (change > -0.7 * turn)
        factor = jnp.where(falling, self.growth, jnp.where(beyond, 1 / self.growth, 1.0))
        # Length is won slowly and lost at once: beyond the critical step each step multiplies the error.
        factor = jnp.where(overshoot, self.shrink, factor)
        wanted = state.step * factor.astype(state.step.dtype)
        step = jnp.clip(wanted, state.least, self.max_step)
        # Wanted, not taken: at the bound the step itself does not show that it ought to be shorter.
        short = (overshoot | beyond) & (wanted < state.least)
        floored = state.floored + jnp.where(short, 1, 0)
        # A field that is passing through something stiff still makes new bests; one that circles makes none.
        floored = jnp.where(size < state.best, 0, floored)
        state = _OvershootState(
            step=step,
            least=state.least,
            force=force,
            size=jnp.where(finite, size, state.size),
            # An overshoot is answered once: the averages speak about the longer step.
            change=jnp.where(overshoot, 0, change),
            turn=jnp.where(overshoot, 0, turn),
            best=jnp.where(size < state.best, size, state.best),
            floored=floored,
        )
        result = dfx.RESULTS.where(
            floored >= self.patience, dfx.RESULTS.dt_min_reached, dfx.RESULTS.successful
        )
        start = jnp.where(finite, t1, t0)
        return finite, start, start + step, False, state, result
