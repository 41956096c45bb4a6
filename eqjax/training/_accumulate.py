"""A batch in parts, one after the other: the gradient of a batch whose activations would not fit."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp

from ..gradients import (
    AbstractEstimator,
    AbstractOuterEstimator,
    Averaged,
    GradientEstimate,
    batch_keys,
    by_sample,
    check_call,
)


class Accumulated(AbstractOuterEstimator):
    """An estimator that takes a batch in `parts`, in turn, and adds up: to rounding the estimate of the whole batch, its mean over
    the accepted samples, and every sample its random key. What a solver makes of a whole batch (`Quorum`) it makes of each part.
    """

    estimator: AbstractEstimator
    parts: int = eqx.field(static=True)

    def __call__(self, model, loss, batch, *, key=None, subset=None):
        settles = self.objective != "output"
        batch = check_call(model, loss, batch, key, subset, settles=settles)
        size = jax.tree.leaves(batch)[0].shape[0]
        own, shared = eqx.partition(self.estimator, by_sample(self.estimator))
        cut = lambda leaf: leaf.reshape(self.parts, size // self.parts, *leaf.shape[1:])
        rows = jax.tree.map(cut, (batch, own, batch_keys(key, size), subset))

        def weighed(rows):
            batch, own, keys, subset = rows
            found = eqx.combine(own, shared)(model, loss, batch, key=keys, subset=subset)
            _check_signals(found)
            counted = found.report.accepted if settles else jnp.ones(size // self.parts, bool)
            count = jnp.sum(counted)
            weigh = lambda leaf: count.astype(leaf.dtype) * leaf
            value = jnp.where(count > 0, found.loss, 0)
            spread = jax.tree.map(lambda v: weigh(weigh(v)), found.variance)
            total = count, weigh(value), jax.tree.map(weigh, found.grads), spread
            return total, (found.report, found.states)

        def add(total, rows):
            new, told = weighed(rows)
            return jax.tree.map(jnp.add, total, new), told

        first = jax.tree.map(lambda leaf: leaf[0], rows)
        shapes = jax.eval_shape(weighed, first)[0]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (count, value, grads, variance), told = jax.lax.scan(add, nothing, rows)
        mean = lambda leaf: leaf / jnp.maximum(count, 1).astype(leaf.dtype)
        joined = lambda leaf: leaf.reshape(size, *leaf.shape[2:])
        report, states = jax.tree.map(joined, told)
        value = jnp.where(count > 0, mean(value), jnp.nan)
        variance = jax.tree.map(lambda v: mean(mean(v)), variance)
        return GradientEstimate(value, jax.tree.map(mean, grads), report, states, variance)


def _check_signals(estimate: GradientEstimate) -> None:
    if estimate.signals:
        names = ", ".join(estimate.signals)
        raise ValueError(
            f"`accumulate`: what of the parts of a batch makes the signals {names} of the whole is not known. Take it as one."
        )


def accumulated(estimator: AbstractEstimator, parts: int) -> AbstractEstimator:
    """`estimator`, its batch in so many parts; itself for one."""
    if parts == 1:
        return estimator
    if isinstance(estimator, Averaged):  # a repeat is a mean over the whole batch
        return replace(estimator, estimator=accumulated(estimator.estimator, parts))
    return Accumulated(estimator, parts)  # pyright: ignore[reportCallIssue]
