"""One scalar parameter of a field, picked as `eqx.tree_at` picks it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def find(field: Any, where: Callable[[Any], Any]) -> tuple[int, float]:
    """Which leaf of `field` the parameter is, and its present value, a number."""
    index, leaf = find_leaf(field, where)
    value = float(leaf)
    if not np.isfinite(value):
        raise ValueError(f"The parameter that `where` picks is {value}: set it to a number.")
    return index, value


def find_leaf(field: Any, where: Callable[[Any], Any]) -> tuple[int, Any]:
    """Which leaf of `field` the parameter is, and that leaf. By number it says the same of every field of this
    structure, where a fresh `lambda` would compile anew."""
    cure = (
        "Name a scalar float leaf, for example `lambda f: f.leak`, declared in the field as an array "
        "(`eqjax.fields.hyperparameter()`)."
    )
    marker = object()
    try:
        leaf = where(field)
        leaves = jax.tree.leaves(eqx.tree_at(where, field, marker))
        index = next(i for i, other in enumerate(leaves) if other is marker)
    except Exception as error:
        raise ValueError(f"`where` picks no leaf of `field`: {error}. {cure}") from error
    is_scalar = eqx.is_array(leaf) and leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.floating)
    if not (is_scalar or isinstance(leaf, float)):
        told = f"{leaf.dtype}{list(leaf.shape)}" if eqx.is_array(leaf) else repr(leaf)
        raise ValueError(f"`where` must pick a scalar float leaf of `field`, got {told}. {cure}")
    return index, leaf


def replaced(field: Any, index: int, value: Array) -> Any:
    """`field` with another value, in its own dtype, of the parameter that `find` found."""
    leaves, structure = jax.tree.flatten(field)
    old = leaves[index]
    leaves[index] = value.astype(old.dtype) if eqx.is_array(old) else value
    return jax.tree.unflatten(structure, leaves)
