"""Equilibrium propagation with complex nudges."""

from collections.abc import Callable

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ScalarLike

from .._checks import check_count, check_kind, check_positive
from ..analytic import is_complex, scale
from ..fields import Realified, trainable
from ..relaxation import Anderson, Solver, relax
from ._corrections import AbstractCorrection, ExactCorrection
from ._estimate import Accept, scalar_loss
from ._holomorphy import check_holomorphic
from ._nudge import AbstractContrast, Nudge, Nudged
from ._nudged import AbstractNudgedEstimator, as_nudge
from ._real import refuse_complex_state
from ._stencils import AbstractStencil, Central, RootsOfUnity


class HolomorphicEP(AbstractNudgedEstimator):
    """Holomorphic equilibrium propagation (Laborieux & Zenke 2022) with the correction of AsymEP.

    *Objective: equilibrium.* N phases settle at complex nudges `β e^(2πik/N)` under
    `F(z) - (J - Jᵀ)(z - z*) - β ∂L/∂z`, and Cauchy's integral over them is the adjoint with error O(β^N): a *finite* β
    will do, far above the noise, as long as it lies inside the radius of analyticity. Two points are
    the symmetric contrast of `AsymEP`. The field itself runs on complex states; field, decoder and loss must be
    holomorphic there (functions from `eqjax.analytic` are), and what is not is refused by name.

    **Arguments:** as `AsymEP`, with `points`: N ≥ 2, any, in place of a `stencil`, and a default `radius` of a fifth of
    `eps^(1/(N + 1))`. The `contrast` of the `Nudge` may also be `LockIn(...)`.

    ```python
    estimate = ej.HolomorphicEP()(model, ej.squared_error, batch)
    assert jnp.allclose(estimate.grads.field.weight, exact, rtol=1e-2, atol=1e-3)
    ```
    """

    free: Solver = Anderson(rtol=1e-5)
    nudged: Nudge = eqx.field(default=Nudge(), converter=as_nudge)
    points: int = eqx.field(default=4, static=True)
    correction: AbstractCorrection = ExactCorrection()
    read_noise: ScalarLike | None = None
    state_noise: ScalarLike | None = None
    free_steps: int = 256
    accept: Accept = Accept()
    trains: Callable = trainable

    def __check_init__(self):
        RootsOfUnity(self.points)  # which refuses fewer than two
        if self.nudged.stencil != Central():
            raise ValueError(
                f"`HolomorphicEP` makes its own nudges, `points` of them: leave out `stencil`, got {self.nudged.stencil}."
            )

    @property
    def stencil(self) -> AbstractStencil:
        return RootsOfUnity(self.points)

    def check(self, model, loss, batch, key):
        super().check(model, loss, batch, key)
        refuse_complex_state(model, batch[0], "HolomorphicEP")
        inputs, target = jax.eval_shape(lambda b: jax.tree.map(lambda a: a[0], b), batch)
        x = jax.eval_shape(model.encode, inputs)
        z = jax.eval_shape(model.initial, x)
        known = (*jax.tree.flatten((z, x, target)), jax.tree.structure(model), loss)
        known = (tuple((a.shape, a.dtype.name) for a in known[0]), *known[1:])
        if known not in _CHECKED:
            check_holomorphic(lambda z, x: model.field(0.0, z, x), z, x, name="field")
            objective = lambda z, y: scalar_loss(loss(model.decode(z), y), real=not is_complex(z))
            check_holomorphic(objective, z, target, name="loss of the decoded state")
            _CHECKED.add(known)


_CHECKED: set = set()  # models (their structure, never their arrays) that passed


class LockIn(AbstractContrast):
    """Continuous-time lock-in: the nudge rotates, `β e^(iωt)`, the state follows and is demodulated,

    `a = Re (1/T) ∫ e^(-iωt) (z* - z)/β dt` over whole periods, after some that are left out.

    Nothing waits for a phase to settle; harmonics that curvature adds average out. The field has to keep up:
    the error is O(ω²), from `(iω - Jᵀ)⁻¹` in place of `-J⁻ᵀ`. Needs `HolomorphicEP`; its `beta` or `radius` fixes
    `β = radius · ‖z*‖/‖∂L/∂z‖`, and its `nudged` solver and `points` are not used.

    **Arguments:** `period`: 2π/ω, in units of the field's time; `periods`, `transient`: how many are demodulated, and
    left out first; `step`: of the integration, a whole number of times in the period; `solver`: a Diffrax solver.

    ```python
    nudge = ej.Nudge(contrast=ej.gradients.LockIn(period=60.0, step=0.1))
    estimator = ej.HolomorphicEP(nudged=nudge, beta=1e-2)
    ```
    """

    period: float = eqx.field(default=60.0, static=True)
    periods: int = eqx.field(default=1, static=True)
    transient: int = eqx.field(default=1, static=True)
    step: float = eqx.field(default=0.1, static=True)
    solver: dfx.AbstractSolver = dfx.Heun()

    def __check_init__(self):
        check_positive(period=self.period, step=self.step)
        check_count(periods=self.periods)
        check_count(0, transient=self.transient)
        check_kind(dfx.AbstractSolver, "a Diffrax solver", solver=self.solver)

    def settle(self, phases, nudge):
        response = phases.response
        if not np.iscomplexobj(phases.nodes):
            raise ValueError("`LockIn` turns a complex nudge: use it with `HolomorphicEP`.")
        beta = nudge.size(phases, response.pull)  # a unit pull stands in for a
        per_period = round(self.period / self.step)
        omega = 2 * np.pi / self.period
        start = self.transient * self.period

        def turning(t: Array, state, x):
            a, _ = state
            turn = lax.complex(jnp.cos(omega * t), jnp.sin(omega * t))
            here = jax.tree.map(lambda z, v: z - scale(v, beta), response.z, a)
            force = jax.tree.map(
                lambda f0, f, pull, anti: scale(f0 - f, 1 / beta) + turn * pull - anti,
                phases.anchor,
                phases.force(0)(here),
                response.pull_at(here),
                phases.antisymmetric(0, a),
            )
            gate = jnp.where(t >= start * (1 - 1e-6), 1 / (self.periods * self.period), 0.0)
            return force, jax.tree.map(lambda v: gate.astype(turn.dtype) * turn.conj() * v, a)

        zero = jax.tree.map(jnp.zeros_like, response.z)
        field, both = Realified(turning), (zero, zero)
        steps = per_period * (self.transient + self.periods)
        ran = relax(
            field,
            field.split(both),
            solver=self.solver,
            step=self.period / per_period,
            steps=steps,
            throw=False,
        )
        _, a = field.join(ran.value)
        # One phase that turned stands for all that would have stood still.
        every = jax.tree.map(lambda v: jnp.broadcast_to(v, (phases.nodes.size, *v.shape)), a)
        calls = ran.stats["field_evaluations"]
        return Nudged(every, beta, jnp.nan, calls, calls)
