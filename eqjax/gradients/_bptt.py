"""Backpropagation through time."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from .._checks import check_count, check_kind, check_positive, given
from ..analytic import vary_like
from ..fields import trainable
from ..relaxation import RESULTS, relax
from ._estimate import (
    AbstractEstimator,
    GradientEstimate,
    Report,
    accepted_mean,
    blamed,
    borrow,
    check_call,
    scalar_loss,
    zero_unless,
)
from ._real import real_view
from ._reversible import Reversible


class BPTT(AbstractEstimator):
    """The exact gradient of the deployed horizon `L(z_T)`: backpropagation through the relaxation.

    *Objective: finite horizon*, not equilibrium: it includes how the parameters change the *speed* of settling,
    and the dependence of `z_T` on the initial state. The two agree as the residual goes to 0.

    **Arguments:**

    - `steps`: T. `step`: ε, a float or an array. `solver`: a Diffrax solver, or `Reversible(...)`, which keeps one
      state only.
    - `truncate`: backpropagate through the last so many steps only (Williams & Peng 1990), the state before them
      held fixed: biased, cheaper. None for all.
    - `adjoint`: how Diffrax keeps the trajectory; checkpointed by default (memory grows as √T);
      `diffrax.RecursiveCheckpointAdjoint(checkpoints=steps)` stores every state.
    - `trains`: function from models to a mask of the trained arrays.

    A sample whose trajectory or loss is not finite is not accepted: the gradient is then computed again
    without it, so its neighbours never notice. (A gradient that overflows only on its way back spoils the
    batch; `make_step` then leaves the update out.)

    ```python
    estimator = ej.BPTT(steps=200, step=0.1, truncate=50)  # called as any: estimator(model, loss, batch)
    assert estimator.objective == "finite horizon"
    ```
    """

    objective: ClassVar[str] = "finite horizon"
    steps: int = 100
    step: ScalarLike = 0.1
    solver: dfx.AbstractSolver | Reversible = dfx.Euler()
    truncate: int | None = None
    adjoint: dfx.AbstractAdjoint = dfx.RecursiveCheckpointAdjoint()
    trains: Callable = trainable

    def __check_init__(self):
        check_count(steps=self.steps)
        check_positive(step=self.step)
        check_kind((dfx.AbstractSolver, Reversible), "a Diffrax solver", solver=self.solver)
        check_kind(dfx.AbstractAdjoint, "a Diffrax adjoint", adjoint=self.adjoint)
        check_count(**given(truncate=self.truncate))
        if self.truncate is not None and self.truncate > self.steps:
            raise ValueError(
                f"`truncate` must lie between 1 and `steps` = {self.steps}, got {self.truncate}."
            )

    def settle(self, field, z0, x):
        return self._relax(field, z0, x, self.steps)

    def _relax(self, field, z0, x, steps):
        lengths: Any = {"step": self.step, "steps": steps}
        if isinstance(self.solver, Reversible):
            return self.solver.relax(field, z0, x, **lengths)
        ways = {"solver": self.solver, "adjoint": self.adjoint}
        return relax(field, z0, x, **lengths, **ways, throw=False)

    def __call__(self, model, loss, batch, *, key=None, subset=None):
        batch = check_call(model, loss, batch, key, subset)
        with blamed(model, loss, batch):
            return self._estimate(model, loss, batch, subset)

    @eqx.filter_jit
    def _estimate(self, model, loss, batch, subset):
        model = vary_like(model, batch)
        trained, held = eqx.partition(model, self.trains(model))
        # Diffrax, for one, does not promise much for complex states.
        view, shown = real_view(model, batch[0])

        def one(model, inputs, target):
            x = model.encode(inputs)
            last = self.steps if self.truncate is None else self.truncate
            z, before = model.initial(x), 0
            if last < self.steps:
                start = self._relax(model.field, z, x, self.steps - last)
                z, before = jax.lax.stop_gradient(start.value), start.stats["field_evaluations"]
            settled = self._relax(model.field, z, x, last)
            value = scalar_loss(loss(model.decode(settled.value), target))
            fine = settled.result == RESULTS.successful
            # One evaluation a step and, where it is differentiated, one product with Jᵀ: the least it can cost.
            cost = before + 2 * settled.stats["field_evaluations"]
            return value, jnp.where(fine, settled.residual, jnp.nan), cost, settled.value

        def objective(trained, batch, accepted):
            model = view(eqx.combine(trained, held))
            outcome = eqx.filter_vmap(one, in_axes=(None, 0, 0))(model, *batch)
            return accepted_mean(outcome[0], accepted), outcome

        def attempt(carry):
            _, accepted, _, _ = carry
            # The first attempt takes every sample; another follows only if one of them is not finite.
            (_, outcome), grads = jax.value_and_grad(objective, has_aux=True)(
                trained, borrow(accepted, batch), accepted
            )
            usable = accepted & jnp.isfinite(outcome[0]) & jnp.isfinite(outcome[1])
            return jnp.any(usable != accepted), usable, outcome, grads

        with jax.default_matmul_precision("highest"):
            size = jax.tree.leaves(batch)[0].shape[0]
            everyone = jnp.ones(size, bool) if subset is None else subset
            shapes = jax.eval_shape(lambda: attempt((True, everyone, None, None)))
            # NaN, since a compiler that skips the loop (seen with `while` in CUDA graphs) must not pass for a loss of 0.
            nothing = lambda s: jnp.nan if jnp.issubdtype(s.dtype, jnp.inexact) else 0
            blank = jax.tree.map(lambda s: jnp.full(s.shape, nothing(s), s.dtype), shapes[2:])
            first = (jnp.asarray(True), everyone, *blank)
            _, accepted, outcome, grads = jax.lax.while_loop(lambda carry: carry[0], attempt, first)
        *reported, evaluations, states = outcome
        value, residual = (jnp.where(accepted, a, jnp.nan) for a in reported)
        report = Report.computed(value, accepted, residual, evaluations)
        grads = zero_unless(jnp.any(accepted), grads)
        return GradientEstimate(accepted_mean(value, accepted), grads, report, shown(states))
