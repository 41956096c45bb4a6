"""Repeats of a random estimator."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_count, check_kind
from ._estimate import (
    AbstractEstimator,
    AbstractOuterEstimator,
    GradientEstimate,
    needed_key,
    total_variance,
)


class Averaged(AbstractOuterEstimator):
    """The mean of independent repeats of an estimator that draws random numbers, with its `variance`.

    *Objective: that of the estimator within.* For read noise, `ProbeCorrection`, or forward directions: the spread falls
    like 1/√repeats, the bias stays. The report states the worst residuals, the cost of all repeats together, and as
    accepted what some repeat accepted; `states` are those of the first repeat.

    **Arguments:** `estimator`; `repeats`: at least 2. Needs `key`.

    ```python
    estimator = ej.gradients.Averaged(ej.AsymEP(read_noise=0.01), repeats=8)  # called with a `key`
    assert estimator.objective == "equilibrium"
    ```
    """

    estimator: AbstractEstimator
    repeats: int = eqx.field(default=8, static=True)

    def __check_init__(self):
        check_kind(AbstractEstimator, "an estimator", estimator=self.estimator)
        check_count(2, repeats=self.repeats)

    def __call__(self, model, loss, batch, *, key=None, subset=None):
        keys = jax.random.split(needed_key(key, "`Averaged`"), self.repeats)
        every = _repeated(self.estimator, model, loss, batch, keys, subset)
        used = jnp.any(every.report.accepted, axis=1)
        count = jnp.sum(used)

        def mean(leaf):
            # A repeat without an accepted sample says nothing (its gradient is zero).
            return jnp.sum(leaf, axis=0) / jnp.maximum(count, 1).astype(leaf.dtype)

        report = jax.tree.map(lambda leaf: jnp.max(leaf, axis=0), every.report)
        loss_values = jnp.nanmean(every.report.loss, axis=0)
        evaluations = jnp.sum(every.report.field_evaluations, axis=0)
        report = replace(report, loss=loss_values, field_evaluations=evaluations)
        loss_value = jnp.sum(jnp.where(used, every.loss, 0)) / count.astype(every.loss.dtype)
        grads = jax.tree.map(mean, every.grads)
        states = jax.tree.map(lambda leaf: leaf[0], every.states)
        return GradientEstimate(loss_value, grads, report, states, total_variance(every.grads))


@eqx.filter_jit
def _repeated(estimator, model, loss, batch, keys, subset):
    return jax.lax.map(lambda k: estimator(model, loss, batch, key=k, subset=subset), keys)
