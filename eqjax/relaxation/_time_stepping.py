"""Any Diffrax solver, run until the force is small, as an Optimistix fixed-point solver."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from .._checks import check_kind, check_positive, given
from ._fallback import with_step_scale
from ._relax import count_evaluations
from ._residual import RESULTS, check_solver, is_met, promoted, scale_of
from ._step_control import OvershootController


class _TimeState(eqx.Module):
    tprev: Float[Array, ""]
    tnext: Float[Array, ""]
    solver: PyTree[Any]
    controller: PyTree[Any]
    converged: Bool[Array, ""]
    result: RESULTS
    steps: Int[Array, ""]
    scale: Float[Array, ""]


# Why the stepping is taken out of `diffrax.diffeqsolve`: as a fixed-point solver it has what `equilibrium`
# gives to all of them, implicit differentiation, `Fallback` and a residual measured again. That takes one
# step of solver and controller at a time, and what Diffrax's own loop does for them, marked below.
class TimeStepping(optx.AbstractFixedPointSolver):
    """Time stepping to the steady state: `dy/dt = F(y)` by a Diffrax solver, until the *force* residual is small.

    So every Diffrax solver and step-size controller serves `equilibrium`, with each sample of a `vmap` stopping
    by itself. The last state is returned. When solver or controller fail, the solve ends with their result.

    **Arguments:**

    - `rtol`, `atol`: stop when `‖F(y)‖ ≤ atol + rtol · max(‖y‖, scale)`.
    - `solver`: any Diffrax solver of ODEs. `controller`: any Diffrax controller (`diffrax.ConstantStepSize()`
      for a fixed step; `diffrax.PIDController` needs a solver with an error estimate).
    - `step_size`: the first step; by default .1, or half of `⟨F, F⟩ / |⟨F, J F⟩|` at the start, where that is less.
      `norm`, `scale`: of the residual (None: see `equilibrium`).

    The residual costs one field evaluation a step, which Euler shares. Evaluations are counted for explicit
    Runge–Kutta methods.

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.TimeStepping(rtol=1e-5))
    assert found.residual < 1e-5
    ```
    """

    rtol: ScalarLike
    atol: ScalarLike = 0.0
    solver: dfx.AbstractSolver = dfx.Euler()
    controller: dfx.AbstractStepSizeController = OvershootController()
    step_size: ScalarLike | None = None
    norm: Callable[[PyTree], Array] = eqx.field(default=optx.two_norm, static=True)
    scale: ScalarLike | None = None

    def __check_init__(self):
        check_solver(self)
        check_positive(**given(step_size=self.step_size))
        check_kind(dfx.AbstractSolver, "a Diffrax solver", solver=self.solver)
        controllers = dfx.AbstractStepSizeController
        check_kind(controllers, "a Diffrax step-size controller", controller=self.controller)
        if self.solver.term_structure is not dfx.AbstractTerm:
            raise ValueError(
                f"`solver` must be a Diffrax solver of one ODE term, got {self.solver!r}. A solver of split or "
                "stochastic terms integrates the field itself: use `relax`."
            )

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        terms = _terms(fn)
        real = jnp.finfo(jnp.result_type(*jax.tree.leaves(y))).dtype
        # In the precision of the state: with x64 on, times as Python floats promote a float32 state silently.
        # And there is no horizon: settling has no time to be done by.
        t0, infinity = jnp.zeros((), real), jnp.asarray(jnp.inf, real)
        first = _first_step(fn, y, args) if self.step_size is None else self.step_size
        tnext, controller = self.controller.wrap(1).init(
            terms,
            t0,
            infinity,
            y,
            jnp.asarray(first, real),
            args,
            self.solver.func,
            self.solver.error_order(terms),
        )
        return _TimeState(
            tprev=t0,
            tnext=jnp.asarray(tnext),
            solver=_arrays(self.solver.init(terms, t0, tnext, y, args)),
            controller=_arrays(controller),
            converged=jnp.asarray(False),
            result=RESULTS.successful,
            steps=jnp.asarray(0),
            scale=jnp.ones_like(self.norm(y)),
        )

    def step(self, fn, y, args, options, state, tags):
        image, aux = fn(y, args)
        force = jax.tree.map(jnp.subtract, image, y)
        # Judged at y, before the step, which is then not kept: so the state that is returned is the one that
        # was measured. Optimistix' own iteration measures steps, and a short step is no small force.
        size = self.norm(force)
        scale = jnp.where(state.steps == 0, scale_of(self, size, y), state.scale)
        converged = is_met(self, size, y, scale)
        # Euler asks for the force at y only, which is known.
        euler = isinstance(self.solver, dfx.Euler)
        terms = dfx.ODETerm(lambda t, z, args: force) if euler else _terms(fn)
        y1, error, _, solver, solved = with_step_scale(self.solver, scale).step(
            terms, state.tprev, state.tnext, y, args, state.solver, made_jump=False
        )
        # As in Diffrax's loop: a controller would turn NaN into its next step, but ∞ into a short one.
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        keep, tprev, tnext, _, controller, controlled = self.controller.wrap(1).adapt_step_size(
            state.tprev,
            state.tnext,
            y,
            y1,
            args,
            error,
            self.solver.error_order(terms),  # pyright: ignore[reportArgumentType]
            state.controller,
        )
        # As there: an implicit solve may fail in a step that is rejected, and succeed in the shorter one.
        solved = dfx.RESULTS.where(jnp.asarray(keep), solved, dfx.RESULTS.successful)
        result = dfx.RESULTS.where(solved == dfx.RESULTS.successful, controlled, solved)
        kept = jnp.asarray(keep) & ~converged
        # With y goes the solver's memory: the last stage of a rejected step is the force at another state.
        new, solver = jax.tree.map(
            lambda a, b: jnp.where(kept, a, b), (y1, _arrays(solver)), (y, state.solver)
        )
        state = _TimeState(
            tprev=jnp.asarray(tprev),
            tnext=jnp.asarray(tnext),
            solver=solver,
            controller=_arrays(controller),
            converged=converged,
            result=RESULTS.where(converged, RESULTS.successful, promoted(result, dfx.RESULTS)),
            steps=state.steps + 1,
            scale=scale,
        )
        return new, state, aux

    def terminate(self, fn, y, args, options, state, tags):
        failed = (state.result != RESULTS.successful) & ~state.converged
        # Optimistix knows no results of Diffrax: `equilibrium` finds those in `stats`.
        result = optx.RESULTS.where(
            failed, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return state.converged | failed, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        stats = {"result": state.result, "scale": state.scale}
        counted = count_evaluations(self.solver, state.steps)
        if counted is not None:
            # The residual costs one more a step, which Euler shares.
            residuals = 0 if isinstance(self.solver, dfx.Euler) else state.steps
            begun = 2 if self.step_size is None else 0
            stats["field_evaluations"] = counted + residuals + begun
        return y, aux, stats


# Along the force, not by the norm of J: of a rotation, or of transient growth, a longer step is none the worse.
def _first_step(fn, y, args):
    force = lambda y: jax.tree.map(jnp.subtract, fn(y, args)[0], y)
    f = force(y)
    change = jax.jvp(force, (y,), (f,))[1]
    inner = lambda a, b: sum(
        jnp.vdot(*pair).real for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )
    size, rate = inner(f, f), jnp.abs(inner(f, change))
    fast = jnp.isfinite(rate) & (0.1 * rate > 0.5 * size)
    return jnp.where(fast, 0.5 * size / jnp.where(fast, rate, jnp.ones_like(rate)), 0.1)


def _terms(fn):
    def vector_field(t, y, args):
        return jax.tree.map(jnp.subtract, fn(y, args)[0], y)

    return dfx.ODETerm(vector_field)


def _arrays(tree):
    """Python numbers as arrays: what is carried round a loop may not change its type."""
    return jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, (bool, int, float)) else a, tree)
