"""One step of a field as a map that is differentiated exactly."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ScalarLike


def one_step(
    field, solver: dfx.AbstractSolver, unravel: Callable, z: Array, x, step: Array
) -> Array:
    """The flat state one step after `z`, of an autonomous field; with `Euler()` and step 1 a field `g(z) - z` gives g."""
    term = dfx.ODETerm(field)
    zero, z = jnp.zeros_like(step), unravel(z)
    state = solver.init(term, zero, step, z, x)
    return ravel_pytree(solver.step(term, zero, step, z, x, state, made_jump=False)[0])[0]


# Why steps of fixed length: their number does not depend on the state, so that z(T) is a smooth function of z
# and T whose JVP is exact. Adaptive steps would jump by the tolerance from one iterate to the next, and
# Newton's method would stall there.
def turn(field, solver, unravel, z, x, step, steps, watch=lambda seen, z: seen, seen: Any = None):
    """The flat state after so many equal steps; or what `watch` made of those on the way, if given `seen`."""

    def body(carry, _):
        z, seen = carry
        z = one_step(field, solver, unravel, z, x, step)
        return (z, watch(seen, z)), None

    end, told = jax.lax.scan(body, (z, seen), None, length=steps)[0]
    return end if seen is None else told


def euler_map(field: Callable[..., Any], step: ScalarLike) -> Callable[..., Any]:
    """`z + ε F(z)` as a function of (t, z, x): its Jacobian has the multipliers `1 + εμ` for eigenvalues.

    ```python
    step = ej.stability.euler_map(network, 0.1)
    assert not step(0.0, origin, None).any()
    ```
    """

    def stepped(t, z, x):
        force = field(t, z, x)
        return jax.tree.map(lambda a, f: a + jnp.asarray(step).astype(f.dtype) * f, z, force)

    return stepped
