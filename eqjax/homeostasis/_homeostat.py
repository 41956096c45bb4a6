"""Homeostats: what keeps a field settled while it learns. They stand between the gradient and the optimiser."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._checks import (
    check_callable,
    check_count,
    check_kind,
    check_not_negative,
    check_number,
    check_settings,
    given,
)
from ..analytic import tree_finite
from ..gradients import borrow
from . import _penalties as penalties
from ._controllers import AbstractController, Constant

_Scalar = Float[Array, ""]


class AbstractHomeostat(eqx.Module):
    """`homeostat(state, model, inputs, estimate, key) -> (grads, state, metrics)`: pure, inside the jitted step.

    It takes the task's `GradientEstimate` and gives the gradient that the optimiser gets, in the same structure, with its
    own next state, and scalars for the log.
    """

    @abc.abstractmethod
    def init(self, model: PyTree) -> PyTree[Array]:
        """The state before the first update."""

    @abc.abstractmethod
    def __call__(
        self, state: PyTree[Array], model: PyTree, inputs: PyTree, estimate: Any, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree[Array], dict[str, Array]]:
        """The gradient to be used, the next state, and metrics."""


def penalty_signal(report: Any, penalty: _Scalar) -> _Scalar:
    """The mean penalty itself: how far the margin is violated.

    ```python
    assert ej.homeostasis.penalty_signal(report, jnp.asarray(2.0)) == 2
    ```
    """
    return penalty


def residual_signal(report: Any, penalty: _Scalar) -> _Scalar:
    """The median free residual of the batch.

    ```python
    assert ej.homeostasis.residual_signal(report, jnp.asarray(0.0)) < 1e-4
    ```
    """
    return jnp.median(report.free_residual)


def rejected_signal(report: Any, penalty: _Scalar) -> _Scalar:
    """The fraction of the batch that was not accepted.

    ```python
    assert ej.homeostasis.rejected_signal(report, jnp.asarray(0.0)) == 0
    ```
    """
    return 1 - jnp.mean(report.accepted.astype(penalty.dtype))


def unsettled_signal(report: Any, penalty: _Scalar) -> _Scalar:
    """The fraction of the batch's tokens that were not settled, of a free phase in token order.

    ```python
    assert ej.homeostasis.unsettled_signal(report, jnp.asarray(0.0)).shape == ()
    ```
    """
    return jnp.mean(report.unsettled)


class HomeostatState(eqx.Module):
    """`controller`: its state; `task_norm`: running mean of the norm of the task's gradient, NaN before the first."""

    controller: PyTree[Array]
    task_norm: _Scalar


class Homeostat(AbstractHomeostat):
    """A penalty on the field where it settled, whose weight a controller sets, added to the gradient of the task.

    **Arguments:**

    - `penalty(field, z, x, key)`: see `eqjax.homeostasis.growth_penalty` and its sisters; settings by `eqx.Partial`.
    - `controller`: `Constant`, `Multiplicative` or `PI`. `signal(report, penalty)`: what it listens to, a scalar:
      `penalty_signal`, `residual_signal`, `rejected_signal`, `unsettled_signal`.
    - `gate`: a batch of which a smaller fraction was accepted has no say in the task: the penalty acts alone. What single
      samples must fulfil is the estimator's `accept`.
    - `relative`: scale the penalty's gradient to the running norm of the task's, so that the weight is a ratio of the two.
    - `samples`: of the batch, take the penalty on the first so many only; all of them if None.

    Samples with a state or penalty that is not finite are left out. If the penalty's gradient is not finite, the step goes on
    without it. Metrics: `penalty`, `penalty_weight`, `penalty_signal`, `penalty_gradient_norm` (unweighted) and `gated`.

    ```python
    penalty = jax.tree_util.Partial(ej.homeostasis.growth_penalty, margin=0.5)
    homeostat = ej.homeostasis.Homeostat(penalty, ej.homeostasis.PI(), samples=4)
    ```
    """

    penalty: Callable[..., Array]
    controller: AbstractController = Constant()
    signal: Callable[[Any, Array], Array] = penalty_signal
    gate: float = 0.0
    relative: bool = eqx.field(default=False, static=True)
    samples: int | None = eqx.field(default=None, static=True)

    def __check_init__(self):
        check_callable("penalty(field, z, x, key)", penalty=self.penalty)
        check_callable("signal(report, penalty)", signal=self.signal)
        kinds = "a controller such as `Constant(1.0)`"
        check_kind(AbstractController, kinds, controller=self.controller)
        fraction = "be a fraction of the batch, 0 to 1"
        check_number(fraction, lambda v: 0 <= v <= 1, gate=self.gate)
        check_count(**given(samples=self.samples))

    def init(self, model):
        nothing = jnp.asarray(jnp.nan, jnp.result_type(float))
        return HomeostatState(self.controller.init(), nothing)

    def __call__(self, state, model, inputs, estimate, key):
        with jax.default_matmul_precision("highest"):
            value, grads = self._penalise(model, inputs, estimate, key)
        norm, task = optax.tree.norm(grads), optax.tree.norm(estimate.grads)
        signal = self.signal(estimate.report, value)
        weight, controller = self.controller(state.controller, signal)
        accepted = jnp.mean(estimate.report.accepted.astype(task.dtype))
        is_open = (accepted > 0) & (accepted >= self.gate) & jnp.isfinite(task)
        mean, new = state.task_norm, task.astype(state.task_norm.dtype)
        running = jnp.where(jnp.isnan(mean), new, 0.9 * mean + 0.1 * new)
        task_norm = jnp.where(is_open, running, mean)
        factor = weight.astype(norm.dtype)
        if self.relative:
            known = jnp.where(jnp.isnan(task_norm), 1.0, task_norm).astype(norm.dtype)
            factor = factor * known / jnp.where(norm > 0, norm, 1.0)
        usable = jnp.isfinite(norm) & jnp.isfinite(factor)

        def both(g, p):
            return jnp.where(is_open, g, 0) + jnp.where(usable, factor.astype(p.dtype) * p, 0)

        total = jax.tree.map(both, estimate.grads, grads)
        metrics = {
            "penalty": value,
            "penalty_weight": weight,
            "penalty_signal": signal,
            "penalty_gradient_norm": norm,
            "gated": ~is_open,
        }
        return total, HomeostatState(controller, task_norm), metrics

    def _penalise(self, model, inputs, estimate, key):
        """The mean penalty, and its gradient in the parameters that have one in the task."""
        count = estimate.report.accepted.shape[0]
        count = count if self.samples is None else min(self.samples, count)
        z, inputs = jax.tree.map(lambda leaf: leaf[:count], (estimate.states, inputs))
        keys = jax.random.split(key, count)
        finite = jax.vmap(tree_finite)(z)
        # A state that is not finite makes room for one that is: 0 · NaN would spoil its neighbours.
        z, inputs = borrow(finite, (z, inputs))
        z = jax.tree.map(lambda a: jnp.where(jnp.any(finite), a, 0), z)
        nothing = lambda g: g is None
        mask = jax.tree.map(lambda g: g is not None, estimate.grads, is_leaf=nothing)
        trained, held = eqx.partition(model, mask)

        def mean(trained):
            model = eqx.combine(trained, held)

            def one(z, inputs, key):
                return self.penalty(model.field, z, model.encode(inputs), key)

            values = jax.vmap(one)(z, inputs, keys)
            good = finite & jnp.isfinite(values)
            total = jnp.sum(jnp.where(good, values, 0))
            return total / jnp.maximum(jnp.sum(good), 1).astype(total.dtype)

        return jax.value_and_grad(mean)(trained)


def growth_homeostat(
    *,
    margin: float | Array = 0.3,
    weight: float | Array = 10.0,
    controller: AbstractController | None = None,
    samples: int | None = None,
    gate: float = 0.0,
    **settings: Any,
) -> Homeostat:
    """The homeostat to begin with: keep what is left of the force decaying at a rate of at least `margin`.

    **Arguments:** `margin`: per unit of time; `weight`: of the `growth_penalty`, constant unless a `controller` is given;
    `samples`, `gate`: as for `Homeostat`; `settings`: as for `growth_rate`.

    ```python
    homeostat = ej.homeostasis.growth_homeostat(margin=0.3)
    step = ej.training.make_step(ej.AsymEP(), optax.sgd(0.1), homeostat)
    ```
    """
    check_not_negative(margin=margin)
    check_settings(penalties.growth_rate, settings)
    penalty = eqx.Partial(penalties.growth_penalty, margin=margin, **settings)
    chosen = Constant(weight) if controller is None else controller
    return Homeostat(penalty, chosen, samples=samples, gate=gate)
