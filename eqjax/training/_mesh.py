"""Several devices of one host: each settles its share of a batch, and what is told of it is of the whole batch."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, PyTree

from .._checks import check_count, given, refuse
from ..analytic import tree_cast
from ..gradients import (
    BPTT,
    AbstractEstimator,
    AbstractOuterEstimator,
    Averaged,
    GradientEstimate,
    batch_keys,
    by_sample,
    check_call,
)
from ._tensor import TENSOR, laid_out

CONTEXT = "sequence"  # the axis of a mesh that shares the tokens of a sample out


def as_mesh(name: str, asked: Any) -> Mesh | None:
    """A mesh from a mesh, or a count of devices; None of None or 1: the one device that JAX takes. Its first axis shares the batch
    out; a second one, `sequence`, the tokens of every sample, or `tensor`, the units of wide layers. `name`: of the argument, for the `ValueError` about a mesh of other
    axes, or of more devices than there are."""
    if asked is None:
        return None
    if not isinstance(asked, Mesh):
        check_count(**{name: asked})
        there = jax.local_devices()
        if asked > len(there):
            raise ValueError(
                f"`{name}` asks for {asked} devices, and there are {len(there)} ({there[0].platform}). Ask for at most "
                f"{len(there)}. For a trial a CPU can stand for several: set JAX_NUM_CPU_DEVICES={asked} in the environment, or "
                f'`jax.config.update("jax_num_cpu_devices", {asked})` before anything is computed.'
            )
        found = [d for host in _hosts(jax.devices()) for d in host[:asked]]
        return None if len(found) == 1 else Mesh(found, ("batch",), axis_types=(AxisType.Auto,))
    axes = asked.axis_names
    if axes in ((CONTEXT,), (TENSOR,)):
        axes = "batch", *axes
        asked = Mesh(asked.devices[None], axes)
    if len(axes) != 1 and set(axes) not in ({"batch", CONTEXT}, {"batch", TENSOR}):
        allowed = f"have one axis, over which the batch is shared out, or the axes `batch` and `{CONTEXT}`, or `batch` and `{TENSOR}`"
        refuse(name, allowed, axes, "Pass `jax.make_mesh((2,), ('batch',))`, say.")
    devices = asked.devices.T if axes[1:] == ("batch",) else asked.devices
    return Mesh(devices, sorted(axes), axis_types=(AxisType.Auto,) * len(axes))


def _hosts(devices: Iterable[jax.Device]) -> list[list[jax.Device]]:
    """Devices by the process that they belong to."""
    found = {}
    for device in devices:
        found.setdefault(device.process_index, []).append(device)
    return [found[process] for process in sorted(found)]


def hosts(mesh: Mesh | None) -> int:
    """How many processes the devices of a mesh belong to, each of which gives its own rows of a batch."""
    return 1 if mesh is None else len(_hosts(mesh.devices.flat))


def check_hosts(what: str, told: Any) -> None:
    """`ValueError` on all processes unless all are told the same; `what` it is, an argument."""
    if jax.process_count() == 1:
        return
    text = f"{jax.__version__} {told}".encode()
    ours = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    every = multihost_utils.process_allgather(ours)
    if wrong := [i for i, theirs in enumerate(every) if not np.array_equal(theirs, every[0])]:
        raise ValueError(
            f"`{what}`: process {wrong[0]} has others than process 0. Give all hosts the same settings, shapes of a batch, devices "
            "and version of JAX."
        )


def shapes(tree: PyTree) -> list[tuple]:
    """The arrays of a tree, by name: what a program is compiled for."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(k), a.shape, str(a.dtype)) for k, a in named if eqx.is_array(a)]


def with_context(
    name: str, mesh: Mesh | None, asked: int | None, axis: str = CONTEXT
) -> Mesh | None:
    """`mesh`, each of whose devices becomes `asked` of them, along a second axis (`sequence`: they share the tokens of a sample out);
    `name` is of the argument.

    ```python
    assert ej.training.with_context("devices", None, None) is None
    ```
    """
    check_count(**given(**{name: asked}))
    if asked in (None, 1):
        return mesh
    share = shares(mesh)
    found = as_mesh(name, share * asked)
    assert found is not None
    devices = found.devices.reshape(share, asked)
    return Mesh(devices, ("batch", axis), axis_types=(AxisType.Auto,) * 2)


def shares(mesh: Mesh | None) -> int:
    """Into how many parts a batch is shared out."""
    return 1 if mesh is None else mesh.shape[mesh.axis_names[0]]


def context(mesh: Mesh | None) -> int:
    """Into how many parts the tokens of a sample are shared out."""
    return 1 if mesh is None else mesh.shape.get(CONTEXT, 1)


def check_shares(
    mesh: Mesh | None, size: int, batch: str, devices: str, accumulate: int = 1
) -> None:
    """`ValueError`, which names the arguments, for a batch of which not every device gets as much, in every part."""
    parts = shares(mesh)
    if size % (parts * accumulate):
        near = parts * accumulate * max(1, round(size / parts / accumulate))
        times = "" if accumulate == 1 else f"`accumulate` {accumulate} times "
        raise ValueError(
            f"`{batch}` of {size} samples is not divisible by {times}the {parts} devices of `{devices}`, of which each takes as "
            f"many. Take {near} samples, say."
        )


def check_pieces(mesh: Mesh | None, size: int, tokens: str, devices: str) -> None:
    """`ValueError`, which names both arguments, for samples of which not every device gets two pieces of as many tokens."""
    pieces = 2 * context(mesh)
    if pieces > 2 and size % pieces:
        near = pieces * max(1, round(size / pieces))
        raise ValueError(
            f"`{tokens}` of {size} tokens is not divisible by {pieces}, two pieces for each of the {pieces // 2} devices of "
            f"`{devices}`. Take {near} tokens, say."
        )


class Sharded(AbstractOuterEstimator):
    """An estimator whose batch is shared out over the first axis of a `mesh`, parameters being the same on all devices.

    Each device settles its samples in a loop of its own (`jax.shard_map`) and waits for the others only where gradients are
    summed. The estimate is that of the whole batch, to rounding, random numbers included: every sample has its key, wherever
    it is. What a solver makes of a whole batch (`Quorum`) it makes of each share. Of `BPTT`, and estimators that remember
    (`start`), the compiler partitions the work instead; so it does of all where the mesh cuts wide layers (`tensor`), or shares tokens
    out, too, unless the estimator says that it does so itself (`Backprop(context=...)`).
    """

    estimator: AbstractEstimator
    mesh: Mesh = eqx.field(static=True)
    split: bool = eqx.field(static=True, default=False)  # whether parameters lie in parts

    def __call__(self, model, loss, batch, *, key=None, subset=None, **remembered):
        settles = self.objective != "output"
        batch = check_call(model, loss, batch, key, subset, settles=settles)
        size = jax.tree.leaves(batch)[0].shape[0]
        check_shares(self.mesh, size, "batch", "mesh")
        # Diffrax' reverse mode does not run in `shard_map`, and what is remembered may be of all shares together.
        tokens = context(self.mesh) > 1
        alone = tokens and getattr(self.estimator, "context", None) != CONTEXT
        alone = alone or TENSOR in self.mesh.axis_names
        if isinstance(self.estimator, BPTT) or hasattr(self.estimator, "start") or alone:
            batch = constrained(self.mesh, batch, rows=True)
            return self.estimator(model, loss, batch, key=key, subset=subset, **remembered)
        keys = batch_keys(key, size)
        own, shared = eqx.partition(self.estimator, by_sample(self.estimator))
        # Parts of parameters are gathered as short as they are computed with; gradients are summed in full.
        short = getattr(self.estimator, "dtype", None)
        sent = model if short is None else tree_cast(model, short)
        if short is not None and self.split:  # or they would be gathered first, and shortened then
            sent = constrained(self.mesh, sent, split=True)
        arrays, rest = eqx.partition((shared, sent, loss), eqx.is_array)
        axis = self.mesh.axis_names[0]
        if tokens:
            for leaf in jax.tree.leaves(batch):
                check_pieces(self.mesh, leaf.shape[1] if leaf.ndim > 1 else 1, "batch", "mesh")
        whole = P(*self.mesh.axis_names)

        def share(arrays, rows):
            shared, sent, loss = eqx.combine(arrays, rest)
            batch, own, keys, subset = rows
            estimator = eqx.combine(own, shared)
            estimate = estimator(sent, loss, batch, key=keys, subset=subset)
            estimate = replace(estimate, grads=_typed_like(model, estimate.grads))
            return _together(_of_all_tokens(estimate, tokens), self.mesh, settles)

        out = (P(), P(axis))
        # Unchecked, since not all that settles says what varies; what leaves as the same on all devices is a sum over them.
        specs = P(), (whole, P(axis), P(axis), P(axis))
        work = jax.shard_map(share, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)
        (value, grads, variance), (report, states) = work(arrays, (batch, own, keys, subset))
        return GradientEstimate(value, grads, report, states, variance)


def _typed_like(model: PyTree, grads: PyTree) -> PyTree:
    """Gradients in the precision of their parameters; None where nothing is trained."""
    like = lambda grad, leaf: None if grad is None else grad.astype(leaf.dtype)
    return jax.tree.map(like, grads, model, is_leaf=lambda node: node is None)


def _of_all_tokens(estimate: GradientEstimate, shared: bool) -> GradientEstimate:
    """What is told of samples whose tokens are shared out: the mean of the devices, and accepted where all accept it."""
    if not shared:
        return estimate
    report = estimate.report
    accepted = jax.lax.pmin(report.accepted.astype(jnp.int32), CONTEXT) > 0
    losses = jax.lax.pmean(report.loss, CONTEXT)
    return replace(estimate, report=replace(report, loss=losses, accepted=accepted))


def _together(estimate: GradientEstimate, mesh: Mesh, settles: bool) -> Any:
    """What is the same on all devices, and what each has of its own samples."""
    if estimate.signals:
        names = ", ".join(estimate.signals)
        raise ValueError(
            f"`mesh`: what of the shares of a batch makes the signals {names} of the whole is not known. Train on one device."
        )
    report = estimate.report
    # The mean that is weighed here is over the accepted samples; where nothing settles, over all.
    counted = report.accepted if settles else jnp.ones_like(report.accepted)
    count = jnp.sum(counted)
    axis = mesh.axis_names[0]
    total = jax.lax.psum(count, axis)
    parts = jnp.maximum(total, 1) * context(
        mesh
    )  # devices of one sample have as many of its tokens

    def mean(leaf: Array) -> Array:
        weighed = count.astype(leaf.dtype) * leaf
        return jax.lax.psum(weighed, mesh.axis_names) / parts.astype(leaf.dtype)

    value = mean(jnp.where(count > 0, estimate.loss, 0))
    value = jnp.where(total > 0, value, jnp.nan)
    grads, variance = jax.tree.map(mean, estimate.grads), estimate.variance
    if variance is not None:  # of a sum of independent shares
        part = (count / jnp.maximum(total, 1)).astype(variance.dtype)
        variance = jax.lax.psum(part * part * variance, axis)
    return (value, grads, variance), (report, estimate.states)


def sharded(
    estimator: AbstractEstimator, mesh: Mesh | None, split: bool = False
) -> AbstractEstimator:
    """`estimator` over the devices of `mesh`, where parameters lie in parts if they are `split`; itself without a mesh."""
    if mesh is None:
        return estimator
    if isinstance(estimator, Averaged):  # a repeat is a mean over the whole batch
        return replace(estimator, estimator=sharded(estimator.estimator, mesh, split))
    return Sharded(estimator, mesh, split)  # pyright: ignore[reportCallIssue]


def slowest(mesh: Mesh, evaluations: Array, parts: int) -> Array:
    """How many evaluations the slowest sample of every device took, in each of so many parts of a batch, in all: what the other
    devices waited for."""
    return jnp.sum(jnp.max(evaluations.reshape(parts, shares(mesh), -1), axis=2), axis=0)


def by_tokens(mesh: Mesh | None, compute: Callable, model: PyTree, *windows: Array) -> Array:
    """`compute(model, *windows)`, a mean over tokens for every window: each device of a sample takes it of its own tokens.

    ```python
    error = lambda model, u, y: ej.squared_error(model.decode(u), y)
    assert ej.training.by_tokens(None, error, model, x, start) == 2
    ```
    """
    if mesh is None or context(mesh) == 1:
        return compute(model, *windows)
    arrays, rest = eqx.partition(model, eqx.is_array)
    own = lambda arrays, *own: jax.lax.pmean(compute(eqx.combine(arrays, rest), *own), CONTEXT)
    specs = {"in_specs": (P(), *[P(*mesh.axis_names)] * len(windows)), "out_specs": P("batch")}
    return jax.shard_map(own, mesh=mesh, check_vma=False, **specs)(arrays, *windows)


def _sharding(mesh: Mesh, leaf: Any, rows: bool, split: bool) -> NamedSharding:
    if split:
        # Along its longest axis of those that the devices divide; what has none is small.
        fits = [i for i, length in enumerate(jnp.shape(leaf)) if length and length % mesh.size == 0]
        if fits:
            longest = max(fits, key=lambda i: jnp.shape(leaf)[i])
            return NamedSharding(mesh, P(*[None] * longest, mesh.axis_names))
    if not rows:
        return NamedSharding(mesh, P())
    axes, shape = mesh.axis_names, jnp.shape(leaf)
    both = CONTEXT in axes and len(shape) > 1 and shape[1] % context(mesh) == 0
    return NamedSharding(mesh, P(*axes) if both else P(axes[0]))


def _layout(mesh: Mesh, tree: PyTree, rows: bool, split: bool) -> PyTree:
    plain = lambda leaf: _sharding(mesh, leaf, rows, split)
    if rows or TENSOR not in mesh.axis_names:
        return jax.tree.map(plain, tree)
    return laid_out(mesh, tree, plain)


def own_rows(tree: PyTree) -> PyTree:
    """Of a batch that all processes know, the rows that this one gives."""
    me, count = jax.process_index(), jax.process_count()
    share = lambda leaf: leaf[me * len(leaf) // count : (me + 1) * len(leaf) // count]
    return jax.tree.map(share, tree)


def next_rows(data: Any) -> PyTree:
    """The rows that this process gives of the next batch; of data that can `read` them alone no others are read."""
    if not hasattr(data, "read"):
        return own_rows(next(data))
    return data.read(jax.process_index(), jax.process_count())


def gathered(tree: PyTree) -> PyTree:
    """Arrays of several processes, whole on each of them: all must ask.

    ```python
    assert ej.training.gathered({"w": x})["w"] is x  # of one process
    ```
    """

    def whole(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = whole(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def any_process(asked: bool) -> bool:
    """Whether one of the processes asks: the same on all, or they would wait for each other."""
    if jax.process_count() == 1:
        return asked
    return bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))


def _of_hosts(leaf: Any, target: NamedSharding, rows: bool) -> jax.Array:
    """An array on the devices of several processes, from the rows that this one has, or from what all have."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _of_hosts(jax.random.key_data(leaf), target, rows)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    here = np.asarray(leaf)
    if rows:
        return jax.make_array_from_process_local_data(target, here)
    return jax.make_array_from_callback(here.shape, target, lambda part: here[part])


def constrained(
    mesh: Mesh | None, tree: PyTree, *, rows: bool = False, split: bool = False
) -> PyTree:
    """Within `jit`: shared out over the devices by rows, or split among them, or the same on all of them."""
    if mesh is None:
        return tree
    put = lambda a, lies: jax.lax.with_sharding_constraint(a, lies) if eqx.is_array(a) else a
    return jax.tree.map(put, tree, _layout(mesh, tree, rows, split))


def placed(
    mesh: Mesh | None,
    tree: PyTree,
    *,
    rows: bool = False,
    split: bool = False,
    donate: bool = False,
) -> PyTree:
    """Outside of `jit`: the same, as arrays that lie there. Those that do already are taken as they are."""
    if mesh is None:
        return tree

    several = hosts(mesh) > 1

    def put(leaf, target):
        if not eqx.is_array(leaf) or isinstance(leaf, Tracer):
            return leaf
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(target, leaf.ndim):
            return leaf
        return (
            _of_hosts(leaf, target, rows)
            if several
            else jax.device_put(leaf, target, donate=donate)
        )

    return jax.tree.map(put, tree, _layout(mesh, tree, rows, split))
