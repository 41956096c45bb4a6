"""Inexact Newton with a matrix-free linear solve, as an Optimistix root finder."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from .._checks import check_count, check_number
from ._gmres import GMRES, solve_linear
from ._loop import while_wanted
from ._residual import check_solver, is_met, scale_of


# `terminate` sees the iterate before the step: force and verdict of the new one are kept here.
class _NewtonState(eqx.Module):
    force: PyTree[Array]
    size: Float[Array, ""]
    forcing: Float[Array, ""]
    converged: Bool[Array, ""]
    stuck: Bool[Array, ""]
    evaluations: Int[Array, ""]
    scale: Float[Array, ""]


class AbstractInexactNewton(optx.AbstractRootFinder):
    """Root finders that end, `converged` or `stuck`, at their last iterate, and count evaluations in their state."""

    forcing: eqx.AbstractVar[ScalarLike]
    restart: eqx.AbstractVar[int]
    krylov_steps: eqx.AbstractVar[int]

    def __check_init__(self):
        check_solver(self)
        check_number("lie between 0 and 1", lambda v: 0 < v < 1, forcing=self.forcing)
        check_count(restart=self.restart, krylov_steps=self.krylov_steps)

    def terminate(self, fn, y, args, options, state, tags):
        stuck = state.stuck & ~state.converged
        result = optx.RESULTS.where(
            stuck, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return state.converged | stuck, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {"field_evaluations": state.evaluations, "scale": state.scale}


# Why not `optimistix.Newton` with a GMRES: it gives up at the first linear solve that misses its tolerance.
# Here that is no failure: any d with ‖F + J d‖ < ‖F‖ is a direction in which ‖F‖ falls (Eisenstat & Walker
# 1994), so what GMRES has when its products are spent is tried all the same: the line search is the judge.
class NewtonKrylov(AbstractInexactNewton):
    """Newton–Krylov with Eisenstat–Walker forcing and a backtracking line search (Kelley 1995, ch. 8).

    Each step solves `J d = -F(y)` by `GMRES` to the relative tolerance η of Eisenstat & Walker (1996, choice 2:
    `η = 0.9 (‖F⁺‖/‖F‖)²`, at most `forcing`), then halves d until ‖F‖ falls. The Jacobian is never formed. Every
    iterate is the best so far. `RESULTS.nonlinear_divergence` when no halving helps.

    **Arguments:**

    - `rtol`, `atol`: stop when `‖F(y)‖ ≤ atol + rtol · max(‖y‖, scale)`.
    - `forcing`: largest η, in (0, 1). `restart`, `krylov_steps`: cycle length and product budget of GMRES.
    - `halvings`: most backtracking steps. `norm`, `scale`: of the residual (None: see `equilibrium`).
    - `linear_solver`: any of Lineax in place of `GMRES`; `lineax.LU()` for a few hundred unknowns whose units differ.

    It may converge to a fixed point that is *unstable* for the relaxation (`PseudoTransient` will hardly). To check,
    `relax` from the fixed point with a small perturbation: from an unstable one the state leaves.

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.NewtonKrylov(rtol=1e-5))
    assert found.residual < 1e-5
    ```
    """

    rtol: ScalarLike
    atol: ScalarLike = 0.0
    forcing: ScalarLike = 0.3
    restart: int = eqx.field(default=30, static=True)
    krylov_steps: int = eqx.field(default=120, static=True)
    halvings: int = eqx.field(default=8, static=True)
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike | None = None
    linear_solver: lx.AbstractLinearSolver | None = None

    def __check_init__(self):
        check_count(0, halvings=self.halvings)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        force, _ = fn(y, args)
        size = self.norm(force)
        scale = scale_of(self, size, y)
        return _NewtonState(
            force=force,
            size=size,
            forcing=jnp.asarray(self.forcing, size.dtype),
            converged=is_met(self, size, y, scale),
            stuck=jnp.asarray(False),
            evaluations=jnp.asarray(1),
            scale=scale,
        )

    def step(self, fn, y, args, options, state, tags):
        _, aux = fn(y, args)  # only for its aux: an unused force is compiled away
        _, product = jax.linearize(lambda z: fn(z, args)[0], y)
        krylov = GMRES(state.forcing, 0.0, self.restart, self.krylov_steps)
        krylov = self.linear_solver or krylov
        # A sample whose batch goes on is asked for nothing more: 0 is solved, and accepted, at once.
        done = state.converged | state.stuck
        rhs = jax.tree.map(lambda f: jnp.where(done, 0, -f), state.force)
        # Its result is not looked at: see above.
        newton, _, stats = solve_linear(product, rhs, krylov)

        def moved(length):
            return jax.tree.map(lambda a, d: a + length.astype(a.dtype) * d, y, newton)

        def rejected(carry):
            _, _, size, length, tries = carry
            # A bare decrease may become ever smaller and stop short of a root; a sufficient one (Kelley 1995,
            # ch. 8) does not. Negated below: NaN, from beyond the domain of the field, is halved away alike.
            enough = size <= (1 - 1e-4 * length) * state.size
            return ~enough & ~done & (tries <= self.halvings)

        def attempt(carry):
            _, _, _, length, tries = carry
            # The full step is tried in the loop as well, so that the field is compiled into it only once.
            length = jnp.where(tries > 0, 0.5 * length, length)
            candidate = moved(length)
            force, _ = fn(candidate, args)
            return candidate, force, self.norm(force), length, tries + 1

        infinite = jnp.full_like(state.size, jnp.inf)
        start = (y, state.force, infinite, jnp.ones_like(state.size), jnp.asarray(0))
        candidate, force, size, _, tries = while_wanted(rejected, attempt, start)

        # At the floor of rounding no decrease is sufficient any more, but any is welcome.
        better = size < state.size
        new, force = jax.tree.map(
            lambda a, b: jnp.where(better, a, b), (candidate, force), (y, state.force)
        )
        new_size = jnp.where(better, size, state.size)
        target = self.atol + self.rtol * jnp.maximum(self.norm(new), state.scale)
        ratio = jnp.where(better, size / state.size, 1.0)
        remaining = target / jnp.where(new_size > 0, new_size, 1.0)
        forcing = eisenstat_walker(state.forcing, ratio, remaining, self.forcing)
        state = _NewtonState(
            force=force,
            size=new_size,
            forcing=forcing,
            converged=better & is_met(self, size, new, state.scale),
            # From the same point the next step would be the same again.
            stuck=~better,
            evaluations=state.evaluations + stats.get("num_steps", 1) + tries,
            scale=state.scale,
        )
        return new, state, aux


# Why not one tight tolerance. Far from the root the linear model is good for a digit or two of d, and to
# solve it further is wasted (oversolving); near the root a loose solve costs Newton's quadratic rate. Choice
# 2 reads off the last step how good the model is.
def eisenstat_walker(
    previous: Array, ratio: Array, remaining: Any, most: ScalarLike
) -> Float[Array, ""]:
    """The next forcing term (Eisenstat & Walker 1996, choice 2).

    **Arguments:** the last one; `ratio` `‖F⁺‖/‖F‖`; what remains, `target/‖F⁺‖`; the largest allowed.
    """
    # Safeguard of choice 2: tighten gradually, and never past what the tolerance itself needs.
    held = 0.9 * previous**2
    forcing = jnp.maximum(0.9 * ratio**2, jnp.where(held > 0.1, held, 0))
    # Half of what remains is enough for the last step to arrive (Kelley 1995, ch. 6). Below 1e-6 a solve in
    # float32 would only stagnate.
    return jnp.clip(jnp.maximum(forcing, 0.5 * remaining), 1e-6, most)
