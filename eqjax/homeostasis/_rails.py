"""Optax transformations that keep parameters within bounds, after the optimiser has had its say."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._checks import check_callable, check_finite_number, check_positive


class CapState(NamedTuple):
    """The largest norm of each weight."""

    caps: PyTree[Array]


def cap_norms(
    factor: float, *, where: Callable[[Any], Any] = lambda params: params
) -> optax.GradientTransformation:
    """Keep the Frobenius norm of every weight of two axes or more at most `factor` times what it was at initialisation.

    The last of an `optax.chain`: it shrinks what the update would make too large, radially (a projected step).

    **Arguments:** `factor` > 0; `where`: which part of the model, all of it by default: `lambda m: m.field.attention`.
    **Raises:** `ValueError` if nothing there is trained.

    ```python
    optimiser = optax.chain(optax.sgd(0.1), ej.homeostasis.cap_norms(2.0, where=lambda m: m.field))
    assert optimiser.init(model)
    ```
    """
    check_positive(factor=factor)
    check_callable("of the parameters, such as `lambda m: m.field`", where=where)

    def init(params):
        weights = [a for a in jax.tree.leaves(where(params)) if jnp.ndim(a) >= 2]
        if not weights:
            raise ValueError("`where` picks no trained weight of two axes or more.")
        return CapState([factor * jnp.linalg.norm(a) for a in weights])

    def capping(state):
        caps = iter(state.caps)

        def capped(step, param):
            if jnp.ndim(param) < 2:
                return step
            cap, new = next(caps), param + step
            size = jnp.linalg.norm(new)
            share = jnp.minimum(1, cap / jnp.where(size > 0, size, 1))
            return new * share.astype(new.dtype) - param

        return capped

    return _projection("cap_norms", where, init, capping)


def rails(low: float, high: float, *, where: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Keep parameters between `low` and `high`: rails for an attention gain that is trained, say.

    The last of an `optax.chain`. A parameter that starts outside is brought to the nearest rail by the first update.

    **Arguments:** `where`: which, as in `eqx.tree_at`: `lambda m: m.field.attention_gain`. A `hyperparameter` must first be
    trained: see `eqjax.trainable`. **Raises:** `ValueError` if nothing there is trained, or `low` ≥ `high`.

    ```python
    mask = lambda m: m.field.bias
    optimiser = optax.chain(optax.sgd(0.1), ej.homeostasis.rails(-1.0, 1.0, where=mask))
    ```
    """
    check_finite_number(low=low, high=high)
    check_callable("of the parameters, such as `lambda m: m.field`", where=where)
    if not low < high:
        raise ValueError(f"`low` must be below `high`, got {low} and {high}.")

    def init(params):
        if not jax.tree.leaves(where(params)):
            raise ValueError(
                "`where` picks nothing that is trained. To train a hyperparameter, hand the estimator a `trains` that flips "
                "its entry in `eqjax.trainable(model)`, and the same to `TrainState.create`."
            )
        return optax.EmptyState()

    railed = lambda step, param: jnp.clip(param + step, low, high) - param
    return _projection("rails", where, init, lambda state: railed)


def _projection(name, where, init, step_of) -> optax.GradientTransformation:
    """Updates of what is at `where` replaced by `step_of(state)(update, parameter)`."""

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                f"`{name}` acts on parameters: call `update(updates, state, params)` with them."
            )
        old, now = where(updates), where(params)
        new = jax.tree.map(step_of(state), old, now)
        return new if old is updates else eqx.tree_at(where, updates, new), state

    return optax.GradientTransformation(init, update)
