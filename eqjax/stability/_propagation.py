"""One step of a field as a map that is differentiated exactly."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, ScalarLike


def one_step(
    field: Callable[..., Any], solver: dfx.AbstractSolver, z: PyTree[Array], x: PyTree, step: Array
) -> PyTree[Array]:
    """The state one step after `z`, of an autonomous field; with `Euler()` and step 1 a field `g(z) - z` gives g."""
    term = dfx.ODETerm(field)  # pyright: ignore[reportArgumentType]
    zero = jnp.zeros_like(step)
    state = solver.init(term, zero, step, z, x)
    return solver.step(term, zero, step, z, x, state, made_jump=False)[0]


def euler_map(field: Callable[..., Any], step: ScalarLike) -> Callable[..., Any]:
    """`z + ε F(z)` as a function of (t, z, x): its Jacobian has the multipliers `1 + εμ` for eigenvalues."""

    def stepped(t, z, x):
        force = field(t, z, x)
        return jax.tree.map(lambda a, f: a + jnp.asarray(step).astype(f.dtype) * f, z, force)

    return stepped
