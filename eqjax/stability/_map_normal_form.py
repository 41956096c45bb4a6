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
from ._jacobian import real_dtype
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

    With A, B, C the first three derivatives of the map, `A q = λ q`, `Aᵀ p = λ̄ p`, `‖q‖ = ⟨p, q⟩ = 1` (Kuznetsov, Elements
    of Applied Bifurcation Theory, 2004, eqs. 5.50, 5.52 and 5.74): `a = ⟨p, B(q, q)⟩/2`,
    `b = ⟨p, C(q, q, q) + 3B(q, (1 - A)⁻¹ B(q, q))⟩/6`, and
    `d = Re λ̄⟨p, C(q, q, q̄) + 2B(q, (1 - A)⁻¹ B(q, q̄)) + B(q̄, (λ² - A)⁻¹ B(q, q))⟩/2`. Not under `jit`.

    **Arguments:**

    - `map`: callable `map(t, z, x) -> z`, as `euler_map(field, step)` is; evaluated at t = 0.
    - `z`: its fixed point at the bifurcation, real, of at most 400 numbers. `x`: clamped input.

    **Returns:** a `MapNormalForm`. **Raises:** `ValueError` if the state is complex or larger.
    """
    real_dtype(z, "z")
    z = jax.tree.map(jnp.asarray, z)
    flat = ravel_pytree(z)[0]
    if flat.size > DENSE:
        raise ValueError(f"`z` has {flat.size} numbers; normal forms of maps take {DENSE} at most.")
    with explained(map, z, x):
        image, matrix = _linear(map, z, x)
    A: Any = np.asarray(matrix)
    values, right = np.linalg.eig(A)
    i = int(np.argmin(abs(np.log(np.maximum(abs(values), 1e-300)))))
    value = values[i] if values[i].imag >= 0 else values[i].conj()
    i = int(np.argmin(abs(values - value)))
    q = right[:, i] / np.linalg.norm(right[:, i])
    # Of the transposed matrix, for the inverse of a nearly defective one says little.
    left = np.linalg.eig(A.T)
    p = left[1][:, np.argmin(abs(left[0] - value.conj()))]
    p = p / np.vdot(q, p)
    pair = abs(value.imag) > np.sqrt(np.finfo(A.dtype).eps)
    kind = "Neimark–Sacker" if pair else "flip" if value.real < 0 else "fold"
    b, c = _bilinear(map, z, x, q, q), _cubic(map, z, x, q)
    one, solve = np.eye(len(q)), np.linalg.solve
    if kind == "fold":
        total = b / 2
    else:
        steady = solve(one - A, _bilinear(map, z, x, q, q.conj()))
        total = c + 2 * _bilinear(map, z, x, q, steady)
        double = solve(value**2 * one - A, b) if pair else steady
        total = total + _bilinear(map, z, x, q.conj(), double)
        total = np.conj(value) * total / 2 if pair else total / 6
    size = jnp.maximum(jnp.linalg.norm(flat), 1)
    return MapNormalForm(
        type=kind,
        coefficient=jnp.asarray(np.vdot(p, total).real, flat.dtype),
        multiplier=complex(value if pair else value.real),
        residual=jnp.linalg.norm(image - flat) / size,
    )


@eqx.filter_jit
def _linear(map, z, x):
    flat, unravel = ravel_pytree(z)
    flow = lambda v: ravel_pytree(map(0.0, unravel(v), x))[0]
    return flow(flat), jax.jacfwd(flow)(flat)


@eqx.filter_jit
def _derivative(map, z, x, directions):
    """The derivative along one direction after another, all real."""
    flat, unravel = ravel_pytree(z)
    flow = lambda v: ravel_pytree(map(0.0, unravel(v), x))[0]
    for direction in directions:
        flow = lambda v, f=flow, d=direction: jax.jvp(f, (v,), (d,))[1]
    return flow(flat)


# Of complex arguments by linearity: JVPs at complex states would ask of the map that it is holomorphic.
def _bilinear(map, z, x, a, b):
    along = lambda a, b: np.asarray(_derivative(map, z, x, (_as(z, a), _as(z, b))))
    real = along(a.real, b.real) - along(a.imag, b.imag)
    return real + 1j * (along(a.real, b.imag) + along(a.imag, b.real))


def _cubic(map, z, x, q):
    """C(q, q, q̄)"""
    along = lambda *v: np.asarray(_derivative(map, z, x, tuple(_as(z, a) for a in v)))
    a, b = q.real, q.imag
    return along(a, a, a) + along(a, b, b) + 1j * (along(a, a, b) + along(b, b, b))


def _as(z, vector):
    return jnp.asarray(vector, jax.tree.leaves(z)[0].dtype)
