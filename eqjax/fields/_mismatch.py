"""Devices are never made to measure: fixed mismatch and passing noise of a field's parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_key, check_not_negative
from ._base import AbstractForceField, trainable


def _varied(field: PyTree, factors: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, factor: leaf if factor is None else leaf * factor,
        field,
        factors,
        is_leaf=lambda leaf: leaf is None,
    )


def deviations(field: PyTree, spread: ScalarLike, key: PRNGKeyArray) -> PyTree:
    """Factors `1 + spread · N(0, 1)`, one for every number that trains; None for the rest."""
    check_not_negative(spread=spread)
    check_key(key=key)
    leaves, tree = jax.tree.flatten(eqx.filter(field, trainable(field)))
    keys = jax.random.split(key, max(1, len(leaves)))
    drawn = [
        1 + jnp.asarray(spread, leaf.dtype) * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys[: len(leaves)], strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def perturbed(field: Any, spread: ScalarLike, key: PRNGKeyArray) -> Any:
    """One realisation of a noisy device: the field with every trained parameter multiplied by `1 + spread · N(0, 1)`.

    The same realisation gives force, JVP and VJP. **Arguments:** `field`; `spread`: relative standard deviation;
    `key`: random key of the realisation.

    ```python
    device = ej.fields.perturbed(field, 0.01, key)
    assert not jnp.any(device.weight == field.weight)
    ```
    """
    return _varied(field, deviations(field, spread, key))


class Mismatched(AbstractForceField):
    """A field on a device whose components deviate from their nominal values, for good.

    Training changes the nominal parameters; the force, and so every gradient, is that of the device, whose
    parameters are `nominal · (1 + spread · N(0, 1))`.

    **Arguments:** `field`: the nominal field; `spread`: relative standard deviation, ≥ 0; `key`: which device.

    ```python
    device = ej.fields.Mismatched(field, 0.01, key=key)
    assert 0 < jnp.abs(device(0.0, x, x) - field(0.0, x, x)).max() < 0.1
    ```
    """

    field: AbstractForceField
    factors: PyTree[Array] = eqx.field(metadata={"hyperparameter": True})

    def __init__(self, field: AbstractForceField, spread: float, *, key: PRNGKeyArray):
        self.field, self.factors = field, deviations(field, spread, key)

    def __call__(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        return _varied(self.field, self.factors)(t, z, x)
