"""Anderson acceleration as an Optimistix fixed-point solver."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree, ScalarLike

from .residual import check_tolerance


class _AndersonState(eqx.Module):
    best_y: PyTree[Array]  # kept here because `terminate` sees the old iterate only
    best_force: Inexact[Array, " n"]
    best_residual: Float[Array, ""]
    age: Int[Array, ""]  # evaluations since the best iterate
    converged: Bool[Array, ""]
    evaluations: Int[Array, ""]
    y: Inexact[Array, " n"]  # where the last step started
    force: Inexact[Array, " n"]
    dy: Inexact[Array, "m n"]
    df: Inexact[Array, "m n"]
    count: Int[Array, ""]  # differences stored since the last restart; -1: no previous point
    mixing: Float[Array, ""]


class Anderson(optx.AbstractFixedPointSolver):
    """Anderson acceleration, type II (Anderson 1965; Walker & Ni 2011), of `y ← g(y)` with `g(y) = y + F(y)`.

    `y⁺ = y + ζ f - (ΔY + ζ ΔF) γ`, `γ = argmin ‖f - ΔF γ‖² + ridge`, with `f = F(y)`: the mixing ζ plays the
    step ε. Memory: `2 · window` states. One field evaluation a step. Under `vmap` every sample keeps its own
    mixing, restarts and stopping.

    It watches the *force*, not the step, and returns the best iterate. When the residual rises above `growth`
    times the best one (or is not finite) the history is dropped, and the iteration restarts from the best
    iterate with half the mixing. After `patience` evaluations without a new best it gives up
    (`RESULTS.nonlinear_divergence`), so a tolerance below the floor of the dtype costs little.

    **Arguments:**

    - `rtol`, `atol`: stop when `‖F(y)‖ ≤ atol + rtol · max(‖y‖, scale)`.
    - `mixing`: ζ > 0. `window`: differences kept. `ridge`: Tikhonov term relative to the normalised Gram
      matrix; by default 10 units of rounding of the dtype.
    - `growth`, `patience`: see above. `norm`, `scale`: of the residual.

    Like every quasi-Newton method it may converge to a fixed point that is *unstable* for the relaxation.
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

    def __check_init__(self):
        check_tolerance(self.rtol, self.atol)
        if self.window < 1:
            raise ValueError(f"`window` must be at least 1, got {self.window}.")
        if isinstance(self.mixing, (int, float)) and not self.mixing > 0:
            raise ValueError(f"`mixing` must be above 0, got {self.mixing}.")

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        flat, _ = ravel_pytree(y)
        real = jnp.finfo(flat.dtype).dtype
        history = jnp.zeros((self.window, flat.size), flat.dtype)
        return _AndersonState(
            best_y=y,
            best_force=jnp.zeros_like(flat),
            best_residual=jnp.asarray(jnp.inf, real),
            age=jnp.asarray(0),
            converged=jnp.asarray(False),
            evaluations=jnp.asarray(0),
            y=flat,
            force=jnp.zeros_like(flat),
            dy=history,
            df=history,
            count=jnp.asarray(-1),
            mixing=jnp.asarray(self.mixing, real),
        )

    def step(self, fn, y, args, options, state, tags):
        image, aux = fn(y, args)
        force = jax.tree.map(jnp.subtract, image, y)
        flat, unravel = ravel_pytree(y)
        f, _ = ravel_pytree(force)

        size, extent = self.norm(force), jnp.maximum(self.norm(y), self.scale)
        residual = size / extent
        better = residual < state.best_residual  # false for NaN
        best_y = jax.tree.map(lambda new, old: jnp.where(better, new, old), y, state.best_y)
        best_force = jnp.where(better, f, state.best_force)
        best_residual = jnp.where(better, residual, state.best_residual)
        converged = better & (size <= self.atol + self.rtol * extent)

        lost = ~(residual <= self.growth * best_residual)
        has_previous = state.count >= 0
        slot = jnp.maximum(state.count, 0) % self.window
        dy = state.dy.at[slot].set(jnp.where(has_previous, flat - state.y, 0))
        df = state.df.at[slot].set(jnp.where(has_previous, f - state.force, 0))
        count = jnp.where(lost, 0, state.count + 1)
        mixing = jnp.where(lost, 0.5 * state.mixing, state.mixing)
        flat = jnp.where(lost, ravel_pytree(best_y)[0], flat)
        f = jnp.where(lost, best_force, f)

        valid = (jnp.arange(self.window) < count)[:, None]
        gamma = self._coefficients(jnp.where(valid, df, 0), f)
        gamma = jnp.where(valid[:, 0], gamma, 0)
        zeta = mixing.astype(f.dtype)
        new = flat + zeta * f - gamma @ dy - zeta * (gamma @ df)
        state = _AndersonState(
            best_y=best_y,
            best_force=best_force,
            best_residual=best_residual,
            age=jnp.where(better, 0, state.age + 1),
            converged=state.converged | converged,
            evaluations=state.evaluations + 1,
            y=flat,
            force=f,
            dy=dy,
            df=df,
            count=count,
            mixing=mixing,
        )
        return unravel(new), state, aux

    def _coefficients(self, df: Inexact[Array, "m n"], f: Inexact[Array, " n"]):
        size = jnp.sqrt(jnp.sum(jnp.abs(df) ** 2, axis=1))
        size = jnp.where(size > 0, size, jnp.ones_like(size))
        unit = df / size[:, None]
        ridge = 10 * jnp.finfo(f.dtype).eps if self.ridge is None else self.ridge
        gram = unit.conj() @ unit.T + ridge * jnp.eye(self.window, dtype=f.dtype)
        return jnp.linalg.solve(gram, unit.conj() @ f) / size

    def terminate(self, fn, y, args, options, state, tags):
        stalled = (state.age >= self.patience) & ~state.converged
        result = optx.RESULTS.where(
            stalled, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return state.converged | stalled, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return state.best_y, aux, {"field_evaluations": state.evaluations}
