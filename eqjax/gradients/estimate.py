"""What every gradient estimator returns, and the half of the work that they share.

All equilibrium estimators differ only in the adjoint state `a` that they propose; one expression turns it
into a gradient: that of `mean_b [loss(decode(z), y) + ⟨a, F(z, encode(u))⟩]` with `z` and `a` held fixed.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..fields import AbstractEquilibriumModel
from ..relaxation import Equilibrium, Relaxation, equilibrium


class Report(eqx.Module):
    """Diagnostics of a gradient estimate, one value per sample. NaN where an estimator has no such quantity.

    `loss`; `free_residual`: force residual of the free state; `nudged_residual`: force residual of the nudged
    field (the larger of the two phases); `adjoint_residual`: `‖Jᵀa + ∂L/∂z‖ / ‖∂L/∂z‖` of the `a` used, measured
    exactly; `displacement`: `‖z₊ - z₋‖ / 2‖z‖`; `field_evaluations`: evaluations of F and products with J or
    Jᵀ while settling; `accepted`: whether the sample contributes to the gradient.
    """

    loss: Float[Array, "*b"]
    free_residual: Float[Array, "*b"]
    nudged_residual: Float[Array, "*b"]
    adjoint_residual: Float[Array, "*b"]
    displacement: Float[Array, "*b"]
    field_evaluations: Int[Array, "*b"]
    accepted: Bool[Array, "*b"]

    def summary(self) -> dict[str, Array]:
        """Scalars for a log: mean loss and *worst* residuals over the accepted samples, mean cost over all,
        fraction accepted."""

        def worst(values):
            # NaN (no such quantity, or nothing accepted) stays NaN.
            top = jnp.max(jnp.where(self.accepted, values, -jnp.inf))
            return jnp.where(jnp.isneginf(top), jnp.nan, top)

        return {
            "loss": accepted_mean(self.loss, self.accepted),
            "free_residual": worst(self.free_residual),
            "nudged_residual": worst(self.nudged_residual),
            "adjoint_residual": worst(self.adjoint_residual),
            "displacement": worst(self.displacement),
            "field_evaluations": jnp.mean(self.field_evaluations.astype(self.loss.dtype)),
            "accepted": jnp.mean(self.accepted.astype(self.loss.dtype)),
        }


class GradientEstimate(eqx.Module):
    """`loss`: mean over the accepted samples (NaN if there are none). `grads`: in the structure of the model,
    None where nothing is trained; zero if no sample is accepted. `report`: per-sample diagnostics."""

    loss: Float[Array, ""]
    grads: PyTree
    report: Report


class Accept(eqx.Module):
    """Which samples are usable: both residuals finite and at most these thresholds."""

    free_residual: float | Array = 3e-2
    adjoint_residual: float | Array = 0.3

    def __check_init__(self):
        for name in ("free_residual", "adjoint_residual"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"`Accept({name}=...)` must be above 0, got {value}.")


class AbstractEstimator(eqx.Module):
    """`estimator(model, loss, batch, *, key=None, subset=None) -> GradientEstimate`: pure, and jitted.

    `loss(outputs, targets)` is the scalar of one sample; `batch = (inputs, targets)` has a leading batch axis;
    `key` is for estimators that draw random numbers; `subset`, bool `(B,)`, leaves samples out beforehand.
    `objective` says what is differentiated: "equilibrium" `L(z*)` or "finite horizon" `L(z_T)`.
    """

    objective: eqx.AbstractClassVar[str]
    trains: eqx.AbstractVar[Callable]

    @abc.abstractmethod
    def settle(self, field: Callable, z0: PyTree[Array], x: PyTree) -> Equilibrium | Relaxation:
        """The estimator's own free settling of one sample: what a model trained by it should answer with."""

    @abc.abstractmethod
    def __call__(
        self,
        model: AbstractEquilibriumModel,
        loss: Callable,
        batch: tuple,
        *,
        key: Any = None,
        subset: Any = None,
    ) -> GradientEstimate:
        """Estimate the gradient of the mean of `loss(outputs, targets)` over `batch = (inputs, targets)`."""


class Response(NamedTuple):
    """One sample at its free equilibrium, in units in which `‖∂L/∂z‖ = 1`: what an adjoint is computed from.

    `z`: the free state; `force0 = F(z)`; `pull = ∂L/∂z / ‖∂L/∂z‖`; `pull_size = ‖∂L/∂z‖`; `extent = max(‖z‖, scale)`;
    callables `force(z)`, `pull_at(z)`, `jvp(v) = J v`, `vjp(v) = Jᵀ v`, with J at the free state.
    """

    z: PyTree[Array]
    force0: PyTree[Array]
    pull: PyTree[Array]
    pull_size: Array
    extent: Array
    force: Callable
    pull_at: Callable
    jvp: Callable
    vjp: Callable


class Adjoint(NamedTuple):
    """`value`: a proposed solution of `Jᵀa + pull = 0` (unit pull), and how it was come by."""

    value: PyTree[Array]
    evaluations: Array
    nudged_residual: Any = jnp.nan
    displacement: Any = jnp.nan


class AbstractEquilibriumEstimator(AbstractEstimator):
    """Estimators of the gradient of `L(z*)`, `F(z*) = 0`; a subclass says how it finds the adjoint state."""

    objective: ClassVar[str] = "equilibrium"
    free: eqx.AbstractVar[Any]
    free_steps: eqx.AbstractVar[int]
    accept: eqx.AbstractVar[Accept]

    @abc.abstractmethod
    def adjoint(self, response: Response) -> Adjoint:
        """The adjoint state of one sample."""

    def settle(self, field, z0, x):
        return equilibrium(field, z0, x, solver=self.free, max_steps=self.free_steps, throw=False)

    @eqx.filter_jit
    def __call__(self, model, loss, batch, *, key=None, subset=None):
        inputs, targets = check_batch(batch)
        with jax.default_matmul_precision("highest"):
            settle = eqx.filter_vmap(self._settle, in_axes=(None, None, 0, 0))
            z, a, report = settle(model, loss, inputs, targets)
            if subset is not None:
                report = eqx.tree_at(lambda r: r.accepted, report, report.accepted & subset)
            grads = self._gradient(model, loss, inputs, targets, z, a, report.accepted)
        return GradientEstimate(accepted_mean(report.loss, report.accepted), grads, report)

    def _settle(self, model, loss, inputs, target):
        x = model.encode(inputs)
        free = self.settle(model.field, model.initial(x), x)
        z = free.value
        value, pull = jax.value_and_grad(lambda s: loss(model.decode(s), target))(z)
        size = optx.two_norm(pull)
        unit = jnp.where(size > 0, size, jnp.ones_like(size))

        def force(state):
            return model.field(0.0, state, x)

        def pull_at(state):
            gradient = jax.grad(lambda s: loss(model.decode(s), target))(state)
            return jax.tree.map(lambda g: g / unit, gradient)

        force0, jvp = jax.linearize(force, z)
        transpose = jax.linear_transpose(jvp, z)
        response = Response(
            z=z,
            force0=force0,
            pull=jax.tree.map(lambda g: g / unit, pull),
            pull_size=unit,
            extent=jnp.maximum(optx.two_norm(z), 1.0),
            force=force,
            pull_at=pull_at,
            jvp=jvp,
            vjp=lambda v: transpose(v)[0],
        )
        adjoint = self.adjoint(response)
        defect = jax.tree.map(jnp.add, response.vjp(adjoint.value), response.pull)
        adjoint_residual = optx.two_norm(defect)
        adjoint_residual = jnp.where(size > 0, adjoint_residual, jnp.zeros_like(size))
        finite = jnp.isfinite(value) & jnp.isfinite(size) & jnp.isfinite(adjoint_residual)
        accepted = (
            finite
            & (free.residual <= self.accept.free_residual)
            & (adjoint_residual <= self.accept.adjoint_residual)
        )
        real = size.dtype
        report = Report(
            loss=value,
            free_residual=free.residual,
            nudged_residual=jnp.asarray(adjoint.nudged_residual, real),
            adjoint_residual=adjoint_residual,
            displacement=jnp.asarray(adjoint.displacement, real),
            field_evaluations=free.stats["field_evaluations"] + adjoint.evaluations + 1,
            accepted=accepted,
        )
        a = jax.tree.map(lambda v: size * v, adjoint.value)
        return z, a, report

    def _gradient(self, model, loss, inputs, targets, z, a, accepted):
        inputs, targets, z, a = borrow(accepted, (inputs, targets, z, a))
        trained, held = eqx.partition(model, self.trains(model))

        def objective(trained):
            model = eqx.combine(trained, held)

            def one(inputs, target, z, a):
                force = model.field(0.0, z, model.encode(inputs))
                work = jax.tree.map(lambda u, v: jnp.sum(u * v), a, force)
                return loss(model.decode(z), target) + sum(jax.tree.leaves(work))

            return accepted_mean(eqx.filter_vmap(one)(inputs, targets, z, a), accepted)

        return zero_unless(jnp.any(accepted), jax.grad(objective)(trained))


def accepted_mean(values: Float[Array, "*b"], accepted: Bool[Array, " b"]) -> Float[Array, ""]:
    """The mean over accepted samples; NaN when there are none."""
    total = jnp.sum(jnp.where(accepted, values, jnp.zeros_like(values)))
    return total / jnp.sum(accepted).astype(values.dtype)


def borrow(accepted: Bool[Array, "*b"], tree: PyTree) -> PyTree:
    """Replace each rejected sample by an accepted one. It enters with weight zero, so what it holds does not
    matter as long as it is finite: 0 · NaN would spoil its neighbours."""
    index = jnp.where(accepted, jnp.arange(accepted.size), jnp.argmax(accepted))
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)


def zero_unless(condition: Bool[Array, ""], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, jnp.zeros_like(leaf)), tree)


def check_batch(batch: Any) -> tuple[PyTree, PyTree]:
    """`batch` must be `(inputs, targets)` with one leading batch axis everywhere."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError("`batch` must be a pair `(inputs, targets)`.")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tuple(batch))]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"Every array in `batch` needs the same leading batch axis, of length at least 1; got shapes {shapes}."
        )
    return jax.tree.map(jnp.asarray, tuple(batch))


def check_steps(**steps: int) -> None:
    for name, value in steps.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def settle_adjoint(residual: Callable, response: Response, solver: Any, steps: int):
    """Solve `residual(a) = 0` from `a = 0` in adjoint coordinates.

    There `‖pull‖ = 1`, so the solver's relative tolerance is read as an absolute one on the adjoint residual:
    relative to ‖a‖ it would loosen as a slow mode amplifies a.
    """
    tolerance = solver.rtol + solver.atol
    solver = eqx.tree_at(lambda s: (s.rtol, s.atol), solver, (0.0, tolerance))
    start = jax.tree.map(jnp.zeros_like, response.pull)
    return equilibrium(
        lambda t, a, x: residual(a), start, solver=solver, max_steps=steps, throw=False
    )
