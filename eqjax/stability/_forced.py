"""Fields that are driven with a known period."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ._profile import Closing


class Forced(eqx.Module):
    """A field that is driven periodically in t, for `periodic_orbit`, `cycle_continuation` and `switch`: the period of its
    cycles is that of the drive, or a multiple of it, and is not solved for.

    - `field`: callable `field(t, z, x) -> dz/dt`, with `field(t + T, z, x) = field(t, z, x)`.
    - `period`: T, a number, or a function of the field: with `lambda f: 2 * jnp.pi / f.omega` the frequency of the drive
      may be the parameter of a branch, `where=lambda f: f.field.omega`.

    ```python
    class Driven(ej.AbstractForceField):
        omega: jax.Array

        def __call__(self, t, z, x):
            return jnp.cos(self.omega * t) - z


    driven = ej.stability.Forced(Driven(jnp.asarray(2.0)), period=lambda f: 2 * jnp.pi / f.omega)
    assert driven.field.omega == 2
    ```
    """

    field: Callable[..., Any]
    period: Any

    def __init__(self, field: Callable[..., Any], period: Any):
        self.field = field
        self.period = period if callable(period) else jnp.asarray(period, jnp.result_type(float))

    def __call__(self, t, z, x):
        return self.field(t, z, x)

    @property
    def length(self) -> Array:
        """The period of the drive, as a number."""
        return jnp.asarray(self.period(self.field) if callable(self.period) else self.period)


# Why a phase: as one more unknown, φ̇ = 1/T and φ = 0 at first, it makes the field autonomous, and what is known of such
# cycles holds: the end of a turn is its beginning, but for a whole number in φ. The plane across the flow is that of the
# stroboscopic map, and no multiplier belongs to the phase.
def flat_force(field: Any, unravel: Callable[[Array], PyTree], x: PyTree) -> Callable:
    """The force on flat states, which of a driven field end with its phase."""
    if not isinstance(field, Forced):
        return lambda z: ravel_pytree(field(0.0, unravel(z), x))[0]

    def force(z):
        length = field.length.astype(z.dtype)
        moved = field.field(z[-1] * length, unravel(z[:-1]), x)
        return jnp.append(ravel_pytree(moved)[0], 1 / length)

    return force


def closing_of(turns: Array, size: int) -> Closing:
    """How cycles close that take so many periods of their drive; of a state of `size` numbers with its phase."""
    jump = jnp.zeros(size, turns.dtype).at[-1].set(turns)
    return Closing(jnp.ones_like(jump), jump)


def without_phase(z: Array, closing: Closing | None) -> Array:
    """The state itself, of one or of many."""
    return z if closing is None else z[..., :-1]


def check_drive(field: Forced, z0: PyTree[Array], x: PyTree) -> None:
    """**Raises:** `ValueError` if a field does not repeat itself with the period of its drive. Traced, it is not looked at."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((field, z0, x))):
        return
    length = float(field.length)
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"`period` of the drive must be positive, got {length}.")
    now, later = _probed(field, z0, x)
    size, gap = np.max(np.abs(now)), np.max(np.abs(later - now))
    if gap > np.sqrt(np.finfo(now.dtype).eps) * max(size, 1.0):
        raise ValueError(
            f"`field` is not periodic in t with `period` {length:.6g}: after one its force differs by {gap:.1e}. Pass its "
            "period, or a function of the field that gives it."
        )


@eqx.filter_jit
def _forces(field, z0, x, times):
    return jax.vmap(lambda t: ravel_pytree(field(t, z0, x))[0])(times)


def _probed(field, z0, x):
    """The force at a few times, and one period later."""
    parts = jnp.asarray([0.0, 0.137, 0.481, 0.759], jax.tree.leaves(z0)[0].dtype)
    length = field.length.astype(parts.dtype)
    return tuple(np.asarray(_forces(field, z0, x, (parts + late) * length)) for late in (0, 1))
