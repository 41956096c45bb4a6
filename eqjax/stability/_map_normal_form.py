"""`map_normal_form`: what is born where a fixed point of a map loses its stability."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..relaxation import explained
from ._centre_manifold import Place
from ._jacobian import real_dtype
from ._normal_forms import of_map
from ._parameter import Line
from ._path import DENSE


class MapNormalForm(eqx.Module):
    """What `map_normal_form` returns.

    - `type`: by the multiplier nearest to the unit circle: "fold" at +1, "flip" at -1, "Neimark–Sacker" for a pair.
    - `coefficient`: in the critical direction, with eigenvectors of length 1: of a fold a in `ξ + a ξ²`; of a flip b in
      `-ξ + b ξ³`, positive where a stable orbit of period two is born; of a pair d in `exp(iθ) ζ (1 + d |ζ|²)`, its real
      part, negative where a stable invariant circle is born (Kuznetsov 2004, ch. 4 and 5.4). Its sign alone does not
      depend on how vectors are normalised.
    - `multiplier`: which one that is. `residual`: by how much the map moves the point.
    """

    type: str = eqx.field(static=True)
    coefficient: Float[Array, ""]
    multiplier: complex
    residual: Float[Array, ""]

    @property
    def supercritical(self) -> bool:
        """Whether what is born is stable, in the critical directions; False at a fold."""
        return bool(
            {"flip": self.coefficient > 0, "Neimark–Sacker": self.coefficient < 0}.get(
                self.type, False
            )
        )

    def __str__(self) -> str:
        kind = (
            ""
            if self.type == "fold"
            else "supercritical "
            if self.supercritical
            else "subcritical "
        )
        return f"{kind}{self.type}, coefficient {float(self.coefficient):.8g}, multiplier {self.multiplier:.8g}"


def map_normal_form(map: Callable[..., Any], z: PyTree[Array], x: PyTree = None) -> MapNormalForm:
    """The normal form of a map at a fixed point that is about to lose its stability: a fold, a flip (period doubling), or
    a Neimark–Sacker point (torus).

    By the reduction that `normal_form` makes, of the field `map(z) - z` and Euler steps of length 1; the same numbers as
    Kuznetsov's closed forms (Elements of Applied Bifurcation Theory, 2004, eqs. 5.50, 5.52 and 5.74). Not under `jit`.

    **Arguments:**

    - `map`: callable `map(t, z, x) -> z`, as `euler_map(field, step)` is; evaluated at t = 0.
    - `z`: its fixed point at the bifurcation, real, of at most 400 numbers. `x`: clamped input.

    **Returns:** a `MapNormalForm`. **Raises:** `ValueError` if the state is complex or larger.

    ```python
    point = ej.stability.euler_map(ej.fields.GainNetwork(gain=branch.special_points[0].parameter), 1.0)
    assert ej.stability.map_normal_form(point, origin).type == "Neimark–Sacker"
    ```
    """
    real_dtype(z, "z")
    z = jax.tree.map(jnp.asarray, z)
    flat = ravel_pytree(z)[0]
    if flat.size > DENSE:
        raise ValueError(f"`z` has {flat.size} numbers; normal forms of maps take {DENSE} at most.")
    with explained(map, z, x):
        image, matrix = _linear(map, z, x)
    A: Any = np.asarray(matrix)
    values = np.linalg.eigvals(A)
    i = int(np.argmin(abs(np.log(np.maximum(abs(values), 1e-300)))))
    value = values[i] if values[i].imag >= 0 else values[i].conj()
    pair = abs(value.imag) > np.sqrt(np.finfo(A.dtype).eps)
    kind = "Neimark–Sacker" if pair else "flip" if value.real < 0 else "fold"
    # As the field `map(z) - z` under Euler steps of length 1.
    field = _Moves(map, jnp.zeros((), flat.dtype))
    line = Line(field, field.nothing, jnp.ones_like(field.nothing), len(jax.tree.leaves(field)) - 1)
    place = Place.of(line, x, z, field.nothing)
    (coefficient,) = of_map(place, kind, float(np.angle(value)), 1.0)[0].values()
    size = jnp.maximum(jnp.linalg.norm(flat), 1)
    return MapNormalForm(
        type=kind,
        coefficient=jnp.asarray(coefficient, flat.dtype),
        multiplier=complex(value if pair else value.real),
        residual=jnp.linalg.norm(image - flat) / size,
    )


@eqx.filter_jit
def _linear(map, z, x):
    flat, unravel = ravel_pytree(z)
    flow = lambda v: ravel_pytree(map(0.0, unravel(v), x))[0]
    return flow(flat), jax.jacfwd(flow)(flat)


class _Moves(eqx.Module):
    """By how much a map moves a state, as a field with a parameter that does nothing."""

    map: Callable[..., Any]
    nothing: Float[Array, ""]

    def __call__(self, t, z, x):
        return jax.tree.map(jnp.subtract, self.map(t, z, x), z)
