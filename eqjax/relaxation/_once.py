"""A clear word where something can be differentiated in reverse once only."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

_TWICE = (
    "`relax` is differentiated twice in reverse, which its default adjoint cannot do: it keeps checkpoints, and its way back "
    "is a loop. Either (a) pass `adjoint=diffrax.DirectAdjoint()`, which stores every step and has all derivatives; or (b) "
    "differentiate forwards over reverse: `jax.jacfwd(jax.grad(...))`."
)


def reverse_once(field: Any, t: Array, z: Any, x: Any) -> tuple[Any, Any, Any]:
    """Field, state and input as they are; a second reverse pass through them raises a `ValueError` that says what to do."""
    closed = getattr(field, "__closure__", None) or ()
    if _traced([cell.cell_contents for cell in closed]):
        # What it closes over becomes visible to the guard.
        field = eqx.filter_closure_convert(field, t, z, x)
    if not _traced((field, z, x)):
        return field, z, x
    live, rest = eqx.partition((field, z, x), eqx.is_inexact_array)
    return eqx.combine(_guarded(live), rest)


def _traced(value: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


@jax.custom_vjp
def _guarded(tree):
    return tree


# The way back comes by here last, so that the way back from there comes by here first: before the loop that has none.
def _back(tree, cotangents):
    return (jax.tree.map(lambda g, a: g + _tied(a), cotangents, tree),)


_guarded.defvjp(lambda tree: (tree, tree), _back)


# A primitive, for none that JAX has may be batched and refuse to be transposed in words of its own.
_forwards = Primitive("forwards_only")
_forwards.def_impl(jnp.zeros_like)
_forwards.def_abstract_eval(lambda a: a)
mlir.register_lowering(_forwards, mlir.lower_fun(jnp.zeros_like, multiple_results=False))
batching.defvectorized(_forwards)


def _refuse(cotangent, a):
    raise ValueError(_TWICE)


# Linear, so that its derivative is itself.
ad.deflinear2(_forwards, _refuse)


def _tied(a):
    """0, with a derivative that can be taken forwards only."""
    return _forwards.bind(a)
