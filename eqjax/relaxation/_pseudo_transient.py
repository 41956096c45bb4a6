"""Pseudo-transient continuation with a matrix-free linear solve, as an Optimistix root finder."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from .._checks import check_number, check_positive
from ._gmres import GMRES, solve_linear
from ._newton_krylov import AbstractInexactNewton, eisenstat_walker
from ._residual import is_met, scale_of


class _TransientState(eqx.Module):
    force: PyTree[Array]
    size: Float[Array, ""]
    delta: Float[Array, ""]
    forcing: Float[Array, ""]
    converged: Bool[Array, ""]
    stuck: Bool[Array, ""]
    evaluations: Int[Array, ""]
    scale: Float[Array, ""]


# Why this and not a line search. A search accepts a step where ‖F‖ falls, and so descends to any root, or to
# a minimum of ‖F‖ that is none; a stable fixed point may lie behind a rise. Following the flow has no such
# barrier, and since only its end is wanted each implicit step is solved by one Newton step, and δ grows as
# fast as the force lets it (Mulder & Van Leer 1985; analysed by Kelley & Keyes 1998).
class PseudoTransient(AbstractInexactNewton):
    """Pseudo-transient continuation with switched evolution relaxation (Kelley & Keyes 1998).

    Each step is one of linearly implicit Euler, `(I/δ - J) d = F(y)` by `GMRES`, and `δ⁺ = δ ‖F‖/‖F⁺‖`: small δ
    follows the flow `dy/dt = F(y)`, large δ is Newton's method. So it ends at Newton's rate and, having followed
    the flow, at a fixed point that is *stable*, where Newton's method from the same start may end at an unstable
    one. The force may rise on the way. The Jacobian is never formed.

    A step that is not finite, or that makes ‖F‖ more than `growth` times larger, is taken again with δ/4; when δ
    so falls below `min_step`, the result is `RESULTS.nonlinear_divergence`.

    **Arguments:**

    - `rtol`, `atol`: stop when `‖F(y)‖ ≤ atol + rtol · max(‖y‖, scale)`.
    - `step_size`: the first δ: short against the times in which the flow bends.
    - `min_step`, `max_step`: bounds of δ. `growth`: see above.
    - `forcing`: largest relative tolerance of the linear solves, in (0, 1), tightened as in `NewtonKrylov`.
    - `restart`, `krylov_steps`: cycle length and product budget of GMRES. `norm`, `scale`: of the residual (None: see `equilibrium`).

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.relaxation.PseudoTransient(rtol=1e-5))
    assert found.residual < 1e-5
    ```
    """

    rtol: ScalarLike
    atol: ScalarLike = 0.0
    step_size: ScalarLike = 0.1
    min_step: ScalarLike = 1e-6
    max_step: ScalarLike = 1e12
    growth: ScalarLike = 10.0
    forcing: ScalarLike = 0.3
    restart: int = eqx.field(default=30, static=True)
    krylov_steps: int = eqx.field(default=120, static=True)
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike | None = None

    def __check_init__(self):
        low, first, high = self.min_step, self.step_size, self.max_step
        check_positive(min_step=low, step_size=first, max_step=high)
        check_number("be above 1 and finite", lambda v: 1 < v < math.inf, growth=self.growth)
        if not any(eqx.is_array(step) for step in (low, first, high)) and not (
            0 < low <= first <= high  # pyright: ignore[reportOperatorIssue]
        ):
            raise ValueError(
                "Steps need 0 < `min_step` ≤ `step_size` ≤ `max_step`, "
                f"got {low}, {first} and {high}."
            )

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        force, _ = fn(y, args)
        size = self.norm(force)
        scale = scale_of(self, size, y)
        return _TransientState(
            force=force,
            size=size,
            delta=jnp.asarray(self.step_size, size.dtype),
            forcing=jnp.asarray(self.forcing, size.dtype),
            converged=is_met(self, size, y, scale),
            stuck=~jnp.isfinite(size),
            evaluations=jnp.asarray(1),
            scale=scale,
        )

    def step(self, fn, y, args, options, state, tags):
        _, aux = fn(y, args)  # only for its aux: an unused force is compiled away
        _, product = jax.linearize(lambda z: fn(z, args)[0], y)

        # Not I - δJ: as δ grows this tends to Newton's system, -J, instead of growing without bound.
        def shifted(v):
            return jax.tree.map(lambda a, b: a / state.delta.astype(a.dtype) - b, v, product(v))

        krylov = GMRES(state.forcing, 0.0, self.restart, self.krylov_steps)
        # Its result is not looked at: a poor step is met below, and a shorter δ makes an easier system.
        # A sample whose batch goes on is asked for nothing more: 0 is solved at once.
        done = state.converged | state.stuck
        rhs = jax.tree.map(lambda f: jnp.where(done, 0, f), state.force)
        step, _, stats = solve_linear(shifted, rhs, krylov)
        candidate = jax.tree.map(jnp.add, y, step)
        force, _ = fn(candidate, args)
        size = self.norm(force)

        # A rise is no error: only what explodes is taken back.
        kept = jnp.isfinite(size) & (size <= self.growth * state.size)
        new, force, size = jax.tree.map(
            lambda a, b: jnp.where(kept, a, b),
            (candidate, force, size),
            (y, state.force, state.size),
        )
        ratio = size / jnp.where(state.size > 0, state.size, 1.0)
        # A Newton step at the end may divide the force by 1e8: at most 1e3 of that is believed, lest one
        # lucky step be followed by one far too long. It also keeps a force of exactly 0 from dividing.
        delta = jnp.where(kept, state.delta / jnp.maximum(ratio, 1e-3), 0.25 * state.delta)
        target = self.atol + self.rtol * jnp.maximum(self.norm(new), state.scale)
        remaining = target / jnp.where(size > 0, size, 1.0)
        state = _TransientState(
            force=force,
            size=size,
            delta=jnp.clip(delta, self.min_step, self.max_step),
            forcing=eisenstat_walker(state.forcing, ratio, remaining, self.forcing),
            converged=kept & is_met(self, size, new, state.scale),
            # Unclipped δ: one that was accepted at the bound may go on.
            stuck=~kept & (delta < self.min_step),
            evaluations=state.evaluations + stats["num_steps"] + 1,
            scale=state.scale,
        )
        return new, state, aux
