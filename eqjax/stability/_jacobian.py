"""The Jacobian of a field at a state, as products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._checks import check_arrays
from ..relaxation import check_structure, explained


class Jacobian(NamedTuple):
    """`J = ∂F/∂z` on flat vectors: `force`, F itself; `mv`, `v -> J v`; `transposed`, `v -> Jᵀ v`; `unravel`, from
    a flat vector to the structure of the state."""

    force: Array
    mv: Callable[[Array], Array]
    transposed: Callable[[Array], Array]
    unravel: Callable[[Array], PyTree]

    def adjoint(self, v: Array) -> Array:
        """`Jᴴ v`; for a real state the same as `transposed`."""
        return self.transposed(v.conj()).conj()

    def dense(self) -> Array:
        """J as a matrix: as many products as the state has numbers."""
        return jax.lax.map(self.mv, jnp.eye(self.force.size, dtype=self.force.dtype)).T

    def random(self, key: PRNGKeyArray) -> Array:
        """A Gaussian vector of the state's size and dtype."""
        return jax.random.normal(key, self.force.shape, self.force.dtype)


def jacobian(field: Callable[..., Any], z: PyTree[Array], x: PyTree = None) -> Jacobian:
    """The Jacobian of `field(0, z, x)` with respect to `z`, linearised once and never formed.

    ```python
    J = ej.stability.jacobian(network, origin)
    assert jnp.allclose(J.mv(jnp.array([1.0, 0.0])), jnp.array([-0.375, 0.5]))
    ```
    """
    state_dtype(z)
    z = jax.tree.map(jnp.asarray, z)
    with explained(field, z, x):
        force, product = jax.linearize(lambda state: field(0.0, state, x), z)
    check_structure(z, force)
    transpose = jax.linear_transpose(product, z)
    unravel = ravel_pytree(z)[1]
    return Jacobian(
        ravel_pytree(force)[0],
        lambda v: ravel_pytree(product(unravel(v)))[0],
        lambda v: ravel_pytree(transpose(unravel(v))[0])[0],
        unravel,
    )


def real_dtype(z: PyTree[Array], name: str = "z0") -> Any:
    """The `state_dtype` of a state that must be real."""
    dtype = state_dtype(z)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"`{name}` is complex: wrap the field in `eqjax.Realified` and pass `Realified.split({name})`."
        )
    return dtype


def state_dtype(z: PyTree[Array]) -> Any:
    """The one floating-point dtype, real or complex, of a state.

    ```python
    assert ej.stability.state_dtype((start, x)) == start.dtype
    ```
    """
    check_arrays(z=z)
    dtypes = {jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(z)}
    if len(dtypes) != 1 or not all(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
        names = sorted(dtype.name for dtype in dtypes)
        raise ValueError(
            f"`z` must hold arrays of one floating-point dtype, got {names or 'no arrays'}. Cast it, for example "
            "with `eqjax.tree_cast`."
        )
    return dtypes.pop()


# A field that is driven was read at t = 0 only, and the answer was that of another field.
def check_autonomous(field: Callable[..., Any], z: PyTree[Array], x: PyTree) -> None:
    """**Raises:** `ValueError` if the force depends on t. While tracing only: it traces the field."""
    with explained(field, z, x):
        program = jax.make_jaxpr(lambda t: field(t, z, x))(jnp.zeros((), real_dtype(z))).jaxpr
    if any(_feels(program, [True])):
        raise ValueError(
            "`field` depends on t, and only autonomous fields are treated here. Make the phase of the drive a part of the "
            "state: z = (z, φ) with φ̇ = ω, and read φ in place of ωt. For cycles pass `stability.Forced(field, period)`."
        )


def _feels(program, inputs):
    """Which outputs of a program depend on those `inputs` that are marked."""
    felt = {var for var, marked in zip(program.invars, inputs, strict=True) if marked}
    for equation in program.eqns:
        marks = [not hasattr(var, "val") and var in felt for var in equation.invars]
        if any(marks):
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            inner = getattr(inner, "jaxpr", inner)
            # A program called as it stands; of loops and branches, all outputs.
            called = inner is not None and len(inner.invars) == len(marks)
            called &= equation.primitive.name not in ("while", "scan", "cond")
            outputs = _feels(inner, marks) if called else [True] * len(equation.outvars)
            felt |= {var for var, out in zip(equation.outvars, outputs, strict=True) if out}
    return [not hasattr(var, "val") and var in felt for var in program.outvars]
