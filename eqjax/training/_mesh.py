"""Several devices of one host: each settles its share of a batch, and what is told of it is of the whole batch."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, PyTree

from .._checks import check_count, refuse
from ..gradients import BPTT, AbstractEstimator, Averaged, GradientEstimate, check_call


def as_mesh(name: str, asked: Any) -> Mesh | None:
    """A mesh of one axis from a mesh, or a count of devices; None of None or 1: the one device that JAX takes. `name`: of the
    argument, for the `ValueError` about a mesh of more axes, or of more devices than there are."""
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
        return None if asked == 1 else Mesh(there[:asked], ("batch",), axis_types=(AxisType.Auto,))
    if len(asked.axis_names) != 1:
        allowed = "have one axis, over which the batch is shared out"
        refuse(name, allowed, asked.axis_names, "Pass `jax.make_mesh((2,), ('batch',))`, say.")
    return Mesh(asked.devices, asked.axis_names, axis_types=(AxisType.Auto,))


def check_shares(mesh: Mesh | None, size: int, batch: str, devices: str) -> None:
    """`ValueError`, which names both arguments, for a batch of which not every device gets as much."""
    if mesh is not None and size % mesh.size:
        near = mesh.size * max(1, round(size / mesh.size))
        raise ValueError(
            f"`{batch}` of {size} samples is not divisible by the {mesh.size} devices of `{devices}`, of which each takes as "
            f"many. Take {near} samples, say."
        )


class Sharded(AbstractEstimator):
    """An estimator whose batch is shared out over the one axis of a `mesh`, parameters being the same on all devices.

    Each device settles its samples in a loop of its own (`jax.shard_map`) and waits for the others only where gradients are
    summed. The estimate is that of the whole batch, to rounding, random numbers included: every sample has its key, wherever
    it is. What a solver makes of a whole batch (`Quorum`) it makes of each share. Of `BPTT`, and estimators that remember
    (`start`), the compiler partitions the work instead.
    """

    estimator: AbstractEstimator
    mesh: Mesh = eqx.field(static=True)

    @property
    def objective(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.estimator.objective

    @property
    def trains(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.estimator.trains

    def settle(self, field, z0, x):
        return self.estimator.settle(field, z0, x)

    def __call__(self, model, loss, batch, *, key=None, subset=None, **remembered):
        settles = self.objective != "output"
        batch = check_call(model, loss, batch, key, subset, settles=settles)
        size = jax.tree.leaves(batch)[0].shape[0]
        check_shares(self.mesh, size, "batch", "mesh")
        # Diffrax' reverse mode does not run in `shard_map`, and what is remembered may be of all shares together.
        if isinstance(self.estimator, BPTT) or hasattr(self.estimator, "start"):
            batch = constrained(self.mesh, batch, rows=True)
            return self.estimator(model, loss, batch, key=key, subset=subset, **remembered)
        keys = None if key is None else jax.random.split(key, size)
        each = {id(value) for value in self.estimator.per_sample() if jnp.ndim(value)}
        own, shared = eqx.partition(self.estimator, lambda leaf: id(leaf) in each)
        arrays, rest = eqx.partition((shared, model, loss), eqx.is_array)
        (axis,) = self.mesh.axis_names

        def share(arrays, rows):
            shared, model, loss = eqx.combine(arrays, rest)
            own, batch, keys, subset = rows
            estimator = eqx.combine(own, shared)
            estimate = estimator(model, loss, batch, key=keys, subset=subset)
            return _together(estimate, axis, settles)

        out = (P(), P(axis))
        # Unchecked, since not all that settles says what varies; what leaves as the same on all devices is a sum over them.
        shares = jax.shard_map(
            share, mesh=self.mesh, in_specs=(P(), P(axis)), out_specs=out, check_vma=False
        )
        (value, grads, variance), (report, states) = shares(arrays, (own, batch, keys, subset))
        return GradientEstimate(value, grads, report, states, variance)


def _together(estimate: GradientEstimate, axis: str, settles: bool) -> Any:
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
    total = jax.lax.psum(count, axis)

    def mean(leaf: Array) -> Array:
        weighed = count.astype(leaf.dtype) * leaf
        return jax.lax.psum(weighed, axis) / jnp.maximum(total, 1).astype(leaf.dtype)

    value = mean(jnp.where(count > 0, estimate.loss, 0))
    value = jnp.where(total > 0, value, jnp.nan)
    grads, variance = jax.tree.map(mean, estimate.grads), estimate.variance
    if variance is not None:  # of a sum of independent shares
        part = (count / jnp.maximum(total, 1)).astype(variance.dtype)
        variance = jax.lax.psum(part * part * variance, axis)
    return (value, grads, variance), (report, estimate.states)


def sharded(estimator: AbstractEstimator, mesh: Mesh | None) -> AbstractEstimator:
    """`estimator` over the devices of `mesh`; itself without one."""
    if mesh is None:
        return estimator
    if isinstance(estimator, Averaged):  # a repeat is a mean over the whole batch
        return replace(estimator, estimator=sharded(estimator.estimator, mesh))
    return Sharded(estimator, mesh)  # pyright: ignore[reportCallIssue]


def slowest(mesh: Mesh, evaluations: Array) -> Array:
    """How many evaluations the slowest sample of every device took: what the other devices waited for."""
    return jnp.max(evaluations.reshape(mesh.size, -1), axis=1)


def _sharding(mesh: Mesh, rows: bool) -> NamedSharding:
    return NamedSharding(mesh, P(*mesh.axis_names) if rows else P())


def constrained(mesh: Mesh | None, tree: PyTree, *, rows: bool) -> PyTree:
    """Within `jit`: shared out over the devices by rows, or the same on all of them."""
    if mesh is None:
        return tree
    put = lambda a: jax.lax.with_sharding_constraint(a, _sharding(mesh, rows))
    return jax.tree.map(lambda leaf: put(leaf) if eqx.is_array(leaf) else leaf, tree)


def placed(mesh: Mesh | None, tree: PyTree, *, rows: bool, donate: bool = False) -> PyTree:
    """Outside of `jit`: the same, as arrays that lie there. Those that do already are taken as they are."""
    if mesh is None:
        return tree
    target = _sharding(mesh, rows)

    def put(leaf):
        if not eqx.is_array(leaf) or isinstance(leaf, Tracer):
            return leaf
        there = isinstance(leaf, jax.Array) and leaf.sharding == target
        return leaf if there else jax.device_put(leaf, target, donate=donate)

    return jax.tree.map(put, tree)
