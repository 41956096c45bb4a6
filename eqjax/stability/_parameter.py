"""One scalar parameter of a field, picked as `eqx.tree_at` picks it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_kind, check_number, refuse


class Line(eqx.Module):
    """A field along one of its parameters, `low + q span`: tangents and steps know nothing of the parameter's units."""

    field: Any
    low: Float[Array, ""]
    span: Float[Array, ""]
    index: int = eqx.field(static=True)

    @classmethod
    def of(cls, field: Any, where: Callable[[Any], Any], bounds: tuple[Any, Any], dtype: Any):
        """The line between `bounds`, if they are in order and hold the present value; and where that is on it."""
        index, value = find(field, where)
        check_kind((tuple, list), "a pair (low, high)", bounds=bounds)
        if len(bounds) != 2:
            refuse("bounds", "be a pair (low, high)", bounds)
        for bound in bounds:
            check_number("be numbers", lambda v: True, bounds=bound)
        low, high = (float(bound) for bound in bounds)
        if not (low < high and np.isfinite([low, high]).all()):
            raise ValueError(
                f"`bounds` must be (low, high) with low < high, both finite, got {tuple(bounds)}. To follow the branch "
                "downwards pass backwards=True."
            )
        if not low <= value <= high:
            raise ValueError(
                f"`bounds` {(low, high)} do not hold the parameter's present value, {value:.6g}, where the branch begins. "
                "Widen them, or set it by `eqx.tree_at(where, field, value)` and begin at a solution there."
            )
        # A number would be compiled in.
        field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
        line = cls(field, jnp.asarray(low, dtype), jnp.asarray(high - low, dtype), index)
        return line, line.place(value)

    @classmethod
    def pair(cls, field: Any, where: Any, bounds: Any, present: float, dtype: Any):
        """The lines of two parameters, the first of which is `present` now; and where each is on its own."""
        second = find(field, where[1])
        # Both before the first line is made: what changed its type later would compile all anew.
        for index, value in (second, (find(field, where[0])[0], present)):
            field = replaced(field, index, jnp.asarray(value, jnp.result_type(float)))
        first, q1 = cls.of(field, where[0], bounds[0], dtype)
        other, q2 = cls.of(first.field, where[1], bounds[1], dtype)
        return first, q1, other, q2

    def value(self, q: Array) -> Array:
        """The parameter."""
        return self.low + q * self.span

    # On the host, where it is no program.
    def number(self, q: Any) -> Any:
        """The parameter as a number, or as an array of NumPy."""
        value = float(self.low) + np.asarray(q, float) * float(self.span)
        return value if value.ndim else float(value)

    def place(self, value: float) -> Array:
        """Where a value of the parameter is on the line."""
        return jnp.asarray((value - float(self.low)) / float(self.span), self.low.dtype)

    def at(self, q: Array) -> Any:
        """The field there."""
        return replaced(self.field, self.index, self.value(q))


def check_pair(**values: Any) -> None:
    """Arguments with something for each of two parameters."""
    for name, value in values.items():
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(f"`{name}` must be a pair, one for each of the two parameters.")


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
