"""How settled a state is, and how a solve ended."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PyTree, ScalarLike

from .._checks import (
    FAILURES,
    check_arrays,
    check_callable,
    check_positive,
    check_tolerance,
    given,
    is_clear,
    tried,
)
from ..analytic import on_shards

Solver = optx.AbstractFixedPointSolver | optx.AbstractRootFinder


@runtime_checkable
class MeasuresForce(Protocol):
    """A solver whose tolerance speaks of the force residual: `‖F(z)‖ ≤ atol + rtol · max(‖z‖, scale)`, in its `norm`.

    ```python
    assert isinstance(ej.Anderson(rtol=1e-5), ej.relaxation.MeasuresForce)
    ```
    """

    rtol: ScalarLike
    atol: ScalarLike
    norm: Callable[[Any], Array]
    scale: ScalarLike | None


class RESULTS(dfx.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Outcome of a solve: those of Diffrax, Optimistix and Lineax, and one of our own.

    ```python
    found = ej.equilibrium(field, start, x, solver=ej.Anderson(rtol=1e-5), throw=False)
    assert found.result == ej.RESULTS.successful
    ```
    """

    successful = ""
    residual_above_tolerance = (
        "The state did not settle: its force residual is above the tolerance. Either (a) the solver needs more "
        "steps (`max_steps=...`); (b) the tolerance is below what this dtype can reach (float32 floors near "
        "2e-7 relative); or (c) the field has no fixed point near this start, or only one the solver cannot "
        "reach: look at `residual`, try another solver, a smaller `mixing` or `step`, or a warm start."
    )


_NAMES = (
    "successful max_steps_reached singular breakdown stagnation conlim nonfinite_input nonlinear_max_steps_reached "
    "nonlinear_divergence nonfinite dt_min_reached event_occurred max_steps_rejected internal_error"
).split()


# Why not always Equinox' own: it looks the word up in a table, outside of what is traced, where nothing can vary over devices.
def promoted(result: Any, kind: type[Any]) -> RESULTS:
    """A result of Diffrax or Optimistix, of this `kind`, as one of ours, which it may be already."""
    if isinstance(result, RESULTS):
        return result
    if not on_shards():
        return RESULTS.promote(result)
    found = RESULTS.residual_above_tolerance
    for name in _NAMES:
        if (same := getattr(kind, name, None)) is not None:
            found = RESULTS.where(result == same, RESULTS.promote(same), found)
    return found  # pyright: ignore[reportReturnType]


def compiled_once(body: Callable[..., Any]) -> Callable[..., Any]:
    """From a field to `body`, compiled: one program for all fields of a structure, however often it is called."""
    program = eqx.filter_jit(body)
    # A function that closes over arrays would stay in the cache, with them, for ever.
    return lambda field: program if getattr(field, "__closure__", None) is None else body


def residual_ratio(
    force: PyTree[Array],
    z: PyTree[Array],
    *,
    norm: Callable[[Any], Array] = optx.two_norm,
    scale: ScalarLike = 1.0,
) -> Float[Array, ""]:
    """The force residual `‖F(z)‖ / max(‖z‖, scale)`: of the force, never of a step.

    ```python
    assert ej.relaxation.residual_ratio(x, 4 * x) == 0.25
    ```
    """
    return norm(force) / jnp.maximum(norm(z), scale)


def force_residual(field, z: PyTree[Array], x: PyTree = None, *, t: float = 0.0, **kwargs):
    """`residual_ratio` of a field at state `z` under input `x` (one sample); `norm` and `scale` by keyword.

    ```python
    assert ej.force_residual(field, start, x) > 0.1
    ```
    """
    return residual_ratio(field(t, z, x), z, **kwargs)


# Why that of the start, and at most 1. A state of 1e-6, in units of its own, is no smaller than one of 1. But a start far
# away, or the fast modes of a stiff field at 0, must not loosen what is asked: slow modes would count as settled.
def scale_of(solver: Any, size: Array, y: PyTree[Array]) -> Float[Array, ""]:
    """The `scale` of a solver or, where that is None, of the start y with force `size`: ‖y‖, else `size`, at most 1."""
    if solver.scale is not None:
        return jnp.asarray(solver.scale, size.dtype)
    own = solver.norm(y)
    own = jnp.where(own > 0, own, size)
    return jnp.where(own > 0, jnp.minimum(own, 1), jnp.ones_like(size))  # 1 for NaN, too


def is_met(solver: Any, size: Array, y: PyTree[Array], scale: Array) -> Array:
    """Whether `size`, the norm of the force at `y`, meets the tolerance of `solver`; never where it overflowed."""
    extent = jnp.maximum(solver.norm(y), scale)
    return (size <= solver.atol + solver.rtol * extent) & jnp.isfinite(size)


def check_solver(solver: Any, *, both_zero: bool = False) -> None:
    """`ValueError` for tolerances that no solve can meet, or a residual that is measured by none."""
    check_tolerance(solver.rtol, solver.atol, both_zero=both_zero)
    check_callable("of a state, such as `optimistix.two_norm`", norm=solver.norm)
    check_positive(**given(scale=solver.scale))


def check_inexact(z: Any) -> None:
    """Refuse a state of whole numbers."""
    for leaf in jax.tree.leaves(z):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"`z0` has a leaf of dtype {leaf.dtype}: a state that moves is floating or complex. Pass {leaf.dtype} "
                "numbers as part of `x` or of the field."
            )


def check_structure(z: Any, force: Any) -> None:
    """The force must look like the state, leaf by leaf (arrays or their shapes); say where it does not."""
    check_inexact(z)
    ours, theirs = (jax.tree.map(lambda a: (a.shape, a.dtype.name), t) for t in (z, force))
    if jax.tree.structure(z) != jax.tree.structure(force) or ours != theirs:
        raise ValueError(
            f"`field(t, z, x)` must return an array for every leaf of `z`, of the same shape and dtype. "
            f"z: {ours}; force: {theirs}. Give `z0` the shape of the state, and model and data one dtype."
        )


# Asked on failure only: a solve that goes well traces its field as often as it must, and no more.
@contextlib.contextmanager
def explained(field: Any, z: PyTree[Array], x: PyTree) -> Iterator[None]:
    """What fails in here fails with a `ValueError` if `field`, `z` or `x` is to blame, which it names.

    ```python
    with ej.relaxation.explained(field, start, x):  # an error in here speaks of `field`, `z` or `x`
        field(0.0, start, x)
    ```
    """
    try:
        yield
    except FAILURES as error:
        if not is_clear(error):
            check_field(field, z, x)
        raise


def check_field(field: Any, z: PyTree[Array], x: PyTree) -> None:
    """`ValueError` where the force cannot be had, or is not like the state."""
    check_callable("field(t, z, x)", field=field)
    check_arrays(z0=z)
    z = jax.tree.map(jnp.asarray, z)
    check_structure(z, tried("field(t, z, x)", lambda z, x: field(0.0, z, x), z=z, x=x))


def evaluations_told(solver: Any, stats: dict[str, Any]) -> Array:
    """Field evaluations that a solve reports in its `stats`; -1 for a foreign solver that does not say."""
    if isinstance(solver, optx.FixedPointIteration):
        return stats["num_steps"]
    return jnp.asarray(stats.get("field_evaluations", -1))
