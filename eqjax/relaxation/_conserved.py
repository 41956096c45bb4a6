"""Quantities that a field conserves, held at their values where it began."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._checks import check_callable, refuse, tried
from ..analytic import is_complex
from ._token_order import TokenOrder


# Why this sum. The correction leads straight back to the given values, at rate 1, and is orthogonal to a force that conserves
# them: both vanish or neither does. J alone is singular across the values; with the correction it is not, so that every solver
# and the implicit derivative, that in the values included, are as for any other field.
class Conserving(eqx.Module):
    """`F(z) + Cᵀ (C Cᵀ)⁻¹ (c₀ - c(z))` with `C = dc/dz`; the input is `(x, c₀)`."""

    field: Callable[..., Any]
    conserved: Callable[[PyTree[Array]], PyTree]

    def values(self, z: PyTree[Array]) -> Float[Array, " k"]:
        return ravel_pytree(self.conserved(z))[0]

    def parts(self, z: PyTree[Array], x: tuple[PyTree, Array]) -> tuple[PyTree, PyTree]:
        """The force, and the correction."""
        flat, unravel = ravel_pytree(z)
        values = lambda flat: self.values(unravel(flat))
        rows = jax.jacrev(values)(flat)
        missing = jnp.linalg.solve(rows @ rows.T, x[1] - values(flat))
        return self.field(0.0, z, x[0]), unravel(missing @ rows)

    def __call__(self, t: Any, z: PyTree[Array], x: tuple[PyTree, Array]) -> PyTree[Array]:
        return jax.tree.map(jnp.add, *self.parts(z, x))


def conserving(
    field: Callable[..., Any], z0: PyTree[Array], x: PyTree, conserved: Any, solver: Any
) -> tuple[Conserving, tuple[PyTree, Array]]:
    """The field that holds what `conserved` says of `z0`, and its input."""
    check_callable("conserved(z)", conserved=conserved)
    if isinstance(solver, TokenOrder) or is_complex(z0):
        raise ValueError(
            "`conserved` is for real states, settled as a whole: not for `TokenOrder`, and not for complex states (see "
            "`ej.fields.Realified`)."
        )
    found = tried("conserved", conserved, z=z0)
    leaves = jax.tree.leaves(found)
    real = [hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    most = sum(leaf.size for leaf in jax.tree.leaves(z0))
    if not all(real) or not 1 <= sum(leaf.size for leaf in leaves) <= most:
        refuse("conserved", f"return 1 to {most} floating-point numbers", found)
    held = Conserving(field, conserved)
    return held, (x, held.values(z0))
