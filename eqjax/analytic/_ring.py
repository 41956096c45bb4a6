"""Causal attention over tokens that several devices share out: a ring (Liu, Zaharia & Abbeel 2023)."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Inexact

from .._checks import check_count
from ._devices import vary_like
from ._functions import at_least_float32


def ring_attention(
    q: Inexact[Array, "h t d"],
    k: Inexact[Array, "h t d"],
    v: Inexact[Array, "h t e"],
    axis: str,
    *,
    inverse_temperature: float | None = None,
    block: int = 512,
    recompute: bool = True,
) -> Inexact[Array, "h t e"]:
    """`attention(q, k, v, causal_mask(T))` to rounding, within `jax.shard_map`: each of the N devices of a mesh axis has t = T / N
    tokens, in order, and never more than those and a `block`² of scores.

    Keys and values go round the ring while a device attends to those it has, with the softmax taken online (Milakov &
    Gimelshein 2018). Device i works on the i-th of 2 N pieces of the sequence and on the i-th from behind, so that all have
    the same to do (the zig-zag order).

    **Arguments:** `q`, `k`, `v`: of the device's own tokens, an even number. `axis`: of the mesh. `inverse_temperature`: β, by
    default `1/sqrt(d)`. `block`: tokens whose scores are there at a time. `recompute`: the backward pass goes round once more
    and computes the scores anew, in memory of O(t); without it derivatives are taken of every kind (forward mode, too), and
    reverse mode keeps what came by, O(T).

    **Raises:** `ValueError` outside of `jax.shard_map`, and for an odd number of tokens.

    ```python
    from jax.sharding import PartitionSpec as P

    attend = lambda q: ej.analytic.ring_attention(q, q, q, "sequence")
    mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = P(None, "sequence")
    shared = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec)
    assert jax.eval_shape(shared, q[:, :2]).shape == (2, 2, 2)
    ```
    """
    check_count(block=block)
    size, tokens = ring_size(axis), q.shape[1]
    if tokens % 2:
        raise ValueError(
            f"`{axis}` shares {size * tokens} tokens out over {size} devices: their number must be divisible by {2 * size}."
        )
    beta = q.shape[-1] ** -0.5 if inverse_temperature is None else inverse_temperature
    ends = q.shape[-1], 2 * q.shape[-1]
    whole = jnp.concatenate([q * beta, k, v], axis=-1)
    parts = jnp.split(_spread(whole, axis, size), ends, axis=-1)
    work = _recomputed if recompute else lambda *args: _around(*args)[0]
    return _gathered(work(*parts, axis, block), axis, size)


def ring_size(axis: str) -> int:
    """How many devices share tokens out over this axis; `ValueError` where there is no such axis.

    ```python
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    size = lambda x: x + ej.analytic.ring_size("sequence")
    assert jax.shard_map(size, mesh=mesh, in_specs=P("sequence"), out_specs=P("sequence"))(x)[0] == 2
    ```
    """
    there = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    if axis not in there:
        raise ValueError(
            f"`axis` {axis!r} is none of those that are shared out here {there}: attend in a ring within `jax.shard_map` over "
            "a mesh with that axis, as `make_step(..., mesh=...)` does."
        )
    return lax.axis_size(axis)


class TokenRing(eqx.Module):
    """Devices that share the tokens of whole arrays out for attention, and leave all else to the compiler: for fields, whose
    derivatives are taken in both directions.

    **Arguments:** `mesh`; `axis`: which of its axes shares tokens out; `block`: as of `ring_attention`.

    **Raises:** `ValueError` if the mesh has no such axis.

    ```python
    mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    ring = ej.analytic.TokenRing(mesh)
    block = ej.fields.in_ring(ej.fields.ThickBlock(4, 2, key=key), ring)
    ```
    """

    mesh: Mesh = eqx.field(static=True)
    axis: str = eqx.field(static=True, default="sequence")
    block: int = eqx.field(static=True, default=512)

    def __check_init__(self):
        if self.axis not in self.mesh.axis_names:
            raise ValueError(
                f"`axis` {self.axis!r} is none of the mesh, which has {self.mesh.axis_names}."
            )

    def __call__(
        self,
        q: Inexact[Array, "h t d"],
        k: Inexact[Array, "h t d"],
        v: Inexact[Array, "h t e"],
        inverse_temperature: float | None = None,
    ) -> Inexact[Array, "h t e"]:
        """Causal attention of all T tokens."""
        pieces = 2 * self.mesh.shape[self.axis]
        if q.shape[1] % pieces:
            raise ValueError(
                f"`{self.axis}`: {q.shape[1]} tokens are not divisible by {pieces}, twice its devices."
            )
        return _island(self, inverse_temperature, q, k, v)


@functools.partial(jax.jit, static_argnums=1)
def _island(ring, beta, q, k, v):
    how = {"inverse_temperature": beta, "block": ring.block, "recompute": False}
    share = lambda q, k, v: ring_attention(q, k, v, ring.axis, **how)
    over = P(None, ring.axis)
    specs = {"in_specs": (over, over, over), "out_specs": over, "axis_names": {ring.axis}}
    return jax.shard_map(share, mesh=ring.mesh, check_vma=False, **specs)(q, k, v)


def _holder(piece: int, size: int) -> int:
    """Which device works on a piece of the sequence: the i-th from the front, and the i-th from behind."""
    return min(piece, 2 * size - 1 - piece)


def _spread(x: Array, axis: str, size: int) -> Array:
    """Pieces 2 i and 2 i + 1 of device i, in order, to those that work on them: `(2, h, t / 2, c)`, the earlier one first."""
    first, second = jnp.split(x, 2, axis=1)
    even = lax.ppermute(first, axis, [(i, _holder(2 * i, size)) for i in range(size)])
    second, even = lax.optimization_barrier((second, even))  # one after the other
    odd = lax.ppermute(second, axis, [(i, _holder(2 * i + 1, size)) for i in range(size)])
    swapped = lax.axis_index(axis) % 2 == 1
    return jnp.where(swapped, jnp.stack([odd, even]), jnp.stack([even, odd]))


def _gathered(x: Array, axis: str, size: int) -> Array:
    """The inverse."""
    swapped = lax.axis_index(axis) % 2 == 1
    even, odd = jnp.where(swapped, x[1], x[0]), jnp.where(swapped, x[0], x[1])
    first = lax.ppermute(even, axis, [(_holder(2 * i, size), i) for i in range(size)])
    odd, first = lax.optimization_barrier((odd, first))
    second = lax.ppermute(odd, axis, [(_holder(2 * i + 1, size), i) for i in range(size)])
    return jnp.concatenate([first, second], axis=1)


def _passed(x: Array, axis: str, size: int) -> Array:
    return lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])


def _around(q: Array, k: Array, v: Array, axis: str, block: int) -> tuple[Array, Array]:
    """What the two pieces of a device read of all, `(2, h, c, e)`, and the log-sum-exp of their scores, `(2, h, c)`."""
    size, index, wide = lax.axis_size(axis), lax.axis_index(axis), at_least_float32(q.dtype)
    real = jnp.zeros((), wide).real.dtype
    empty = (
        jnp.zeros(v.shape[1:], wide),
        jnp.full(q.shape[1:3], jnp.finfo(real).min, real),
        jnp.zeros(q.shape[1:3], wide),
    )
    pair = jnp.concatenate([k, v], axis=-1)
    read = functools.partial(_read, width=q.shape[-1], block=block)
    low, high = vary_like((empty, empty), q)
    coming = _passed(pair, axis, size)
    low = read(low, q[0], pair[0], diagonal=True)
    high = read(read(high, q[1], pair[0]), q[1], pair[1], diagonal=True)

    def step(carry, turns):
        low, high, pair = carry
        coming = _passed(pair, axis, size)  # on its way while this one is read
        earlier = index >= turns  # these keys come from a device before this one
        high = read(high, q[1], pair[0])
        # Of an earlier device the front piece is past for both of ours; of a later one both are for our last.
        own = _chosen(earlier, low, high)
        own = read(own, _chosen(earlier, q[0], q[1]), _chosen(earlier, pair[0], pair[1]))
        return (_chosen(earlier, own, low), _chosen(earlier, high, own), coming), None

    (low, high, _), _ = lax.scan(step, (low, high, coming), jnp.arange(1, size, dtype=jnp.int32))
    mixed, top, total = jax.tree.map(lambda *both: jnp.stack(both), low, high)
    return (mixed / total[..., None]).astype(v.dtype), top.astype(wide) + jnp.log(total)


def _chosen(condition: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _cut(a: Array, block: int) -> Array:
    """`(h, c, ...)` in blocks `(n, h, c / n, ...)`, the longest that divide it."""
    count = next(
        n for n in range(1, a.shape[1] + 1) if a.shape[1] % n == 0 and a.shape[1] // n <= block
    )
    return jnp.moveaxis(a.reshape(a.shape[0], count, -1, *a.shape[2:]), 1, 0)


def _joined(a: Array) -> Array:
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])


def _scores(q: Array, k: Array, place: Any, diagonal: bool) -> Array:
    """Those of a block, far below all others where a key comes later."""
    scores = jnp.einsum("htd,hsd->hts", q, k, preferred_element_type=at_least_float32(q.dtype))
    if not diagonal:
        return scores
    # Tied to the queries: what depends on no data would be computed for all blocks at once, ahead of the loop.
    place, _ = lax.optimization_barrier((place, q))
    row, column = (i * q.shape[1] + jnp.arange(q.shape[1]) for i in place)
    seen = jnp.broadcast_to((column[None] <= row[:, None])[None], scores.shape)
    return jnp.where(seen, scores, jnp.asarray(jnp.finfo(scores.dtype).min / 2, scores.dtype))


def _read(state, q, pair, *, width, block, diagonal=False):
    """The state of the online softmax of `q` after the keys and values `pair`, block by block."""
    keys = _cut(pair, block)
    count = jnp.arange(keys.shape[0])

    def rows(part):
        i, q, state = part

        def columns(state, part):
            j, pair = part
            mixed, top, total = state
            scores = _scores(q, pair[..., :width], (i, j), diagonal)
            new = lax.stop_gradient(jnp.maximum(top, jnp.max(scores.real, axis=-1)))
            powers = jnp.exp(scores - new[..., None].astype(scores.dtype))
            faded = jnp.exp(lax.stop_gradient(top) - new).astype(total.dtype)
            v = pair[..., width:]
            found = jnp.einsum(
                "hts,hse->hte", powers.astype(v.dtype), v, preferred_element_type=mixed.dtype
            )
            mixed = mixed * faded[..., None] + found
            return (mixed, new, total * faded + jnp.sum(powers, axis=-1)), None

        return lax.scan(columns, state, (count, keys))[0]

    cut = jax.tree.map(lambda a: _cut(a, block), (q, state))
    return jax.tree.map(_joined, lax.map(rows, (count, *cut)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _recomputed(q, k, v, axis, block):
    return _around(q, k, v, axis, block)[0]


def _recomputed_forward(q, k, v, axis, block):
    mixed, total = _around(q, k, v, axis, block)
    return mixed, (q, k, v, mixed, total)


def _recomputed_backward(axis, block, kept, given):
    """Once more round the ring: gradients of keys and values travel with them, and are home after the last turn."""
    q, k, v, mixed, total = kept
    size, index, wide = lax.axis_size(axis), lax.axis_index(axis), total.dtype
    share = jnp.einsum("phte,phte->pht", given, mixed, preferred_element_type=wide)
    queries = q, given, total, share
    front, back = (jax.tree.map(lambda a, i=i: a[i], queries) for i in (0, 1))
    back_read = functools.partial(_back, width=q.shape[-1], block=block)
    pair = jnp.concatenate([k, v], axis=-1)
    coming = _passed(pair, axis, size)
    low, early = back_read(front, pair[0], diagonal=True)
    high, late = back_read(back, pair[1], diagonal=True)
    both = back_read(back, pair[0])
    high, early = high + both[0], early + both[1]

    def step(carry, turns):
        low, high, pair, grown = carry
        earlier = index >= turns
        coming = _passed(pair, axis, size)
        more, early = back_read(back, pair[0])
        rows = _chosen(earlier, front, back)
        own, part = back_read(rows, _chosen(earlier, pair[0], pair[1]))
        nothing = jnp.zeros_like(part)
        here = [early + jnp.where(earlier, part, nothing), jnp.where(earlier, nothing, part)]
        low, high = low + jnp.where(earlier, own, 0), high + more + jnp.where(earlier, 0, own)
        _, grown = lax.optimization_barrier((coming, grown + jnp.stack(here)))
        return (low, high, coming, _passed(grown, axis, size)), None

    coming, grown = lax.optimization_barrier((coming, jnp.stack([early, late])))
    start = low, high, coming, _passed(grown, axis, size)
    (low, high, _, grown), _ = lax.scan(step, start, jnp.arange(1, size, dtype=jnp.int32))
    parts = jnp.split(grown, (q.shape[-1],), axis=-1)
    return (
        jnp.stack([low, high]).astype(q.dtype),
        parts[0].astype(k.dtype),
        parts[1].astype(v.dtype),
    )


def _back(queries, pair, *, width, block, diagonal=False):
    """Gradients of queries `(h, c, d)` and of the pair of keys and values `(h, c, d + e)`, block by block."""
    keys = _cut(pair, block)
    count = jnp.arange(keys.shape[0])

    def rows(grown, part):
        i, (q, given, total, share) = part

        def columns(found, part):
            j, pair = part
            k, v = pair[..., :width], pair[..., width:]
            powers = jnp.exp(_scores(q, k, (i, j), diagonal) - total[..., None])
            product = functools.partial(jnp.einsum, preferred_element_type=total.dtype)
            slopes = powers * (product("hte,hse->hts", given, v) - share[..., None])
            slopes, powers = slopes.astype(q.dtype), powers.astype(given.dtype)
            own = product("hts,htd->hsd", slopes, q), product("hts,hte->hse", powers, given)
            return found + product("hts,hsd->htd", slopes, k), jnp.concatenate(own, axis=-1)

        nothing = vary_like(jnp.zeros(q.shape, total.dtype), q, given)
        found, new = lax.scan(columns, nothing, (count, keys))
        return grown + new, found

    nothing = vary_like(jnp.zeros(keys.shape, queries[2].dtype), pair, queries)
    cut = jax.tree.map(lambda a: _cut(a, block), queries)
    grown, found = lax.scan(rows, nothing, (count, cut))
    return _joined(found), _joined(grown)


_recomputed.defvjp(_recomputed_forward, _recomputed_backward)
