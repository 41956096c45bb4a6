"""Arrays that differ between devices, under `jax.shard_map`: their types say over which axes of the mesh they vary."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def on_shards() -> bool:
    """Whether this is traced inside of `jax.shard_map`, checked or not.

    ```python
    assert not ej.analytic.on_shards()
    ```
    """
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _axes(*trees: PyTree) -> set[str]:
    kinds = [getattr(leaf, "manual_axis_type", None) for leaf in jax.tree.leaves(trees)]
    return set().union(*(kind.varying for kind in kinds if kind is not None))


def _typed(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf, tree
    )


def vary_like(tree: PyTree, *others: PyTree) -> PyTree:
    """`tree`, its arrays varying over the devices over which any of it or of the `others` (arrays, or their types) does.

    ```python
    assert ej.analytic.vary_like(x, start).tolist() == x.tolist()
    ```
    """
    if not on_shards():
        return tree
    axes = _axes(_typed((tree, others)))

    def cast(leaf):
        missing = tuple(sorted(axes - _axes(_typed(leaf))))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    array = lambda leaf: isinstance(
        leaf, jax.Array | np.ndarray
    )  # words of an enumeration are NumPy's
    return jax.tree.map(lambda leaf: cast(leaf) if array(leaf) else leaf, tree)


def varies(tree: PyTree) -> bool:
    """Whether any array differs between devices, as far as its type says so.

    ```python
    assert not ej.analytic.varies(x)
    ```
    """
    return bool(_axes(_typed(tree)))


# Why not `fail(tree)` everywhere: the branches of Equinox' check must agree in what varies, and a callback's result does not.
def thrown(tree: PyTree, fail: Callable[[Any], Any]) -> PyTree:
    """`fail(tree)`, an `error_if` that gives its argument back, or raises.

    ```python
    checked = ej.analytic.thrown(x, lambda z: eqx.error_if(z, jnp.isnan(z), "not a number"))
    assert checked.tolist() == x.tolist()
    ```
    """
    if not on_shards():
        return fail(tree)
    token = fail(jnp.zeros(()))
    return jax.tree.map(lambda leaf: jax.lax.optimization_barrier((leaf, token))[0], tree)


# Why. What a loop carries keeps its type. It begins with zeros and counts, which are the same on all devices, and each device
# makes something else of them: JAX refuses that where it checks, as `shard_map` does unless told not to.
def while_loop(going: Callable[[Any], Any], step: Callable[[Any], Any], start: PyTree) -> PyTree:
    """`jax.lax.while_loop`, under `shard_map` too: all that it carries varies as any of it, or what `step` reads, does.

    ```python
    assert ej.analytic.while_loop(lambda n: n < 5, lambda n: n + 2, jnp.asarray(0)) == 6
    ```
    """
    if not on_shards():
        return jax.lax.while_loop(going, step, start)
    start = vary_like(start)
    start = vary_like(start, jax.eval_shape(step, start))
    return jax.lax.while_loop(going, lambda carry: vary_like(step(carry), start), start)
