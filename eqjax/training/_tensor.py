"""Parameters cut over the axis `tensor` of a mesh, as their modules say: heads and hidden units by columns, and back by rows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import PyTree

from .._checks import refuse

TENSOR = "tensor"  # the axis of a mesh that shares the units of wide layers out


def is_cut(node: Any) -> bool:
    """Whether a module says, in `tensor_axes`, which of its arrays are cut, and along which axis."""
    return isinstance(getattr(type(node), "tensor_axes", None), dict)


def check_tensor(mesh: Mesh | AbstractMesh | None, model: PyTree) -> None:
    """`ValueError` for a model of which nothing is cut, or heads and units that the devices do not divide."""
    if mesh is None or TENSOR not in mesh.axis_names:
        return
    parts = mesh.shape[TENSOR]
    modules = [node for node in jax.tree.leaves(model, is_leaf=is_cut) if is_cut(node)]
    if not modules:
        cure = "Leave the axis `tensor` out of `mesh`; `shard_parameters` shares out those of any model."
        refuse("model", "have layers that say how to cut them, as `ThickBlock` has", model, cure)
    for node in modules:
        name, heads = type(node).__name__, getattr(node, "heads", None)
        sizes = {key: getattr(node, key).shape[axis] for key, axis in node.tensor_axes.items()}
        told = {"heads": heads} if heads is not None else sizes
        for key, size in told.items():
            if size % parts:
                raise ValueError(
                    f"`mesh`: the {size} of `{key}` of `{name}` are not divisible by the {parts} devices of its axis `{TENSOR}`. "
                    f"Take {parts * max(1, round(size / parts))}, say, or other devices."
                )


def laid_out(mesh: Mesh, tree: PyTree, plain: Callable[[Any], NamedSharding]) -> PyTree:
    """Where each leaf of a tree lies: as `plain` says, but for what is cut."""

    def of(node):
        found = jax.tree.map(plain, node)
        for name, axis in node.tensor_axes.items() if is_cut(node) else ():
            if eqx.is_array(getattr(node, name)):  # not where the optimiser has none
                lies = NamedSharding(mesh, P(*[None] * axis, TENSOR))
                found = eqx.tree_at(lambda n, name=name: getattr(n, name), found, lies)
        return found

    return jax.tree.map(of, tree, is_leaf=is_cut)
