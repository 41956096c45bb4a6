"""One step of a field by a Diffrax solver, as a map that is differentiated exactly."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def one_step(
    field: Callable[..., Any], solver: dfx.AbstractSolver, z: PyTree[Array], x: PyTree, step: Array
) -> PyTree[Array]:
    """The state one step after `z`, of an autonomous field; with `Euler()` and step 1 a field `g(z) - z` gives g."""
    term = dfx.ODETerm(field)  # pyright: ignore[reportArgumentType]
    zero = jnp.zeros_like(step)
    state = solver.init(term, zero, step, z, x)
    return solver.step(term, zero, step, z, x, state, made_jump=False)[0]
