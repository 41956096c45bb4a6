"""The pure training step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._checks import check_callable, check_count, check_flags, check_key, check_kind, given, refuse
from ..analytic import cross_entropy, tree_where
from ..fields import trainable
from ..gradients import AbstractEstimator
from ..homeostasis import AbstractHomeostat
from ._accumulate import accumulated
from ._mesh import (
    as_mesh,
    check_hosts,
    check_shares,
    constrained,
    hosts,
    placed,
    shapes,
    sharded,
    slowest,
)
from ._room import StepMemory, needed
from ._tensor import TENSOR, check_tensor


class TrainState(eqx.Module):
    """Everything that changes while training: `model`, `opt_state`, `step` (updates so far), `key`, the state of the
    `homeostat`, if there is one, and what the estimator has to `carry` on to the next batch, if anything."""

    model: PyTree
    opt_state: PyTree
    step: Int[Array, ""]
    key: PRNGKeyArray
    homeostat: PyTree = None
    carry: PyTree = None

    @classmethod
    def create(
        cls,
        model: PyTree,
        optimiser: optax.GradientTransformation,
        *,
        key: PRNGKeyArray,
        trains: Callable[[PyTree], PyTree] = trainable,
        homeostat: AbstractHomeostat | None = None,
        carry: PyTree = None,
    ) -> "TrainState":
        """The state at step 0. Arrays are copied, because the step donates (consumes) those of its state.

        **Arguments:** those of `make_step`; `trains`, if the estimator has one of its own; `carry`: of an estimator that
        remembers, its `start(model, …)`.
        """
        _check_optimiser(optimiser)
        check_key(key=key)
        check_callable("of a model to a mask, such as `eqjax.trainable`", trains=trains)
        check_kind(AbstractHomeostat, "a homeostat", **given(homeostat=homeostat))
        if not any(map(eqx.is_inexact_array, jax.tree.leaves(model))):
            refuse("model", "have arrays of floating-point numbers, which are trained", model)
        model, key = _copied((model, key))
        opt_state = _copied(optimiser.init(eqx.filter(model, trains(model))))
        held = None if homeostat is None else _copied(homeostat.init(model))
        return cls(model, opt_state, jnp.asarray(0, jnp.int32), key, held, _copied(carry))


def _copied(tree):
    copy = lambda leaf: jnp.array(leaf, copy=True) if eqx.is_array(leaf) else leaf
    return jax.tree.map(copy, tree)


class Step(eqx.Module):
    """`step(state, batch) -> (state, metrics)`; see `make_step`."""

    estimator: AbstractEstimator
    optimiser: optax.GradientTransformation
    homeostat: AbstractHomeostat | None
    loss: Callable
    mesh: Mesh | None = eqx.field(static=True, default=None)
    shard_parameters: bool = eqx.field(static=True, default=False)
    accumulate: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        check_flags(shard_parameters=self.shard_parameters)
        check_count(accumulate=self.accumulate)
        if self.shard_parameters and self.mesh is not None and TENSOR in self.mesh.axis_names:
            raise ValueError(
                "`shard_parameters` cuts all parameters, and the axis `tensor` of `mesh` wide layers: take one of the two."
            )
        if self.accumulate > 1 and hasattr(self.estimator, "start"):
            raise ValueError(
                f"`accumulate` takes a batch in parts, and `{type(self.estimator).__name__}` remembers from batch to batch. "
                "Leave `accumulate` out."
            )

    def __call__(self, state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, Any]]:
        self._check(state)
        check_tensor(self.mesh, state.model)
        _check_unused(state)
        return self._program(*self._placed(state, batch))

    @property
    def _program(self) -> Any:
        """Loops that the compiler partitions end together only if what all devices compute is the same on each, to the bit."""
        return _update_alike if self.mesh is not None and self.mesh.devices.ndim > 1 else _update

    def compile(self, state: TrainState, batch: tuple) -> "CompiledStep":
        """Compile ahead of time for the shapes of these arguments; the result can never recompile."""
        self._check(state)
        check_tensor(self.mesh, state.model)
        if hosts(self.mesh) > 1:
            check_hosts("batch", shapes((state, batch)))
        arguments = self._placed(state, batch, donate=False)
        return CompiledStep(self, self._program.lower(*arguments).compile())

    def _placed(self, state: TrainState, batch: tuple, *, donate: bool = True) -> tuple:
        """The arguments of the compiled step, where their devices want them: the batch in shares, the rest on all."""
        for leaf in jax.tree.leaves(batch) if self.accumulate > 1 or self.mesh is not None else ():
            size = jnp.shape(leaf)[0] * hosts(self.mesh) if jnp.ndim(leaf) else 1
            check_shares(self.mesh, size, "batch", "mesh", self.accumulate)
        if self.mesh is None:
            return (self, batch), state
        step, batch = placed(self.mesh, self), placed(self.mesh, batch, rows=True)
        return (step, batch), self._laid_out(placed, state, donate=donate)

    def _laid_out(self, put: Callable, state: TrainState, **how: Any) -> TrainState:
        carry = put(self.mesh, state.carry, rows=self.estimator.carries_rows, **how)
        trained = state.model, state.opt_state
        model, opt_state = put(self.mesh, trained, split=self.shard_parameters, **how)
        rest = dataclasses.replace(state, model=None, opt_state=None, carry=None)
        rest = put(self.mesh, rest, **how)
        return dataclasses.replace(rest, model=model, opt_state=opt_state, carry=carry)

    def _check(self, state: TrainState) -> None:
        check_kind(TrainState, "a `TrainState`, from `TrainState.create`", state=state)
        if (self.homeostat is None) != (state.homeostat is None):
            raise ValueError(
                "Step and state differ in having a homeostat: pass the same `homeostat` to `make_step` and to "
                "`TrainState.create(..., homeostat=...)`."
            )


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled `Step`, called like one. `memory_bytes`: buffers it needs beyond its arguments."""

    step: Step
    program: Any

    def __call__(self, state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, Any]]:
        _check_unused(state)
        return self.program(*self.step._placed(state, batch))

    @property
    def memory(self) -> StepMemory:
        """What it needs of each device, and what is there."""
        mesh = self.step.mesh
        device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        return needed(self.program.compiled, device)

    @property
    def memory_bytes(self) -> int:
        return self.program.compiled.memory_analysis().temp_size_in_bytes


def make_step(
    estimator: AbstractEstimator,
    optimiser: optax.GradientTransformation,
    homeostat: AbstractHomeostat | None = None,
    *,
    loss: Callable = cross_entropy,
    mesh: Any = None,
    shard_parameters: Any = False,
    accumulate: Any = 1,
) -> Step:
    """One jitted training step, `step(state, batch) -> (state, metrics)`.

    The buffers of `state` are donated: use the returned state and drop the old one. A batch of which no sample
    is accepted, or whose gradient is not finite, changes neither model nor optimiser (`metrics["updated"]`
    says so); with a homeostat its penalty still does, so that a field that has come loose can settle again.

    **Arguments:** `estimator`; `optimiser`: any Optax transformation; `homeostat`: what keeps the field settled while it
    learns, such as `eqjax.homeostasis.growth_homeostat()`; `loss(outputs, targets)`: scalar of one sample, by default
    the token-mean cross-entropy; `mesh`: a `jax.sharding.Mesh` with one axis, or how many devices of this host: each settles its share of the
    batch by itself, parameters are the same on all, and mean, acceptance and metrics are of the whole batch, to rounding. With a second axis, `sequence`, its
    devices share the tokens of every sample out (`Backprop(context="sequence")`, `eqjax.fields.in_ring`); with a second axis
    `tensor` the heads and hidden units of layers that say how they are cut (`ThickBlock`, `RealBlock`), and the compiler
    partitions the solve.
    `shard_parameters`: each device of the mesh keeps its part only of parameters and of what the optimiser has of them, split
    along their longest axis that the devices divide (as in ZeRO, Rajbhandari et al. 2020); they are gathered for a step.
    `accumulate`: parts of a batch that are taken one after the other, for less memory; the gradient is that of the batch.

    **Returns:** a `Step`. `metrics` are arrays, scalar but for some `signals`: those of `Report.summary`, `gradient_norm` (of the task, before
    homeostat and optimiser), `updated`, the estimate's `signals`, and those of the homeostat; with a `mesh` also `slowest`,
    the evaluations that the slowest sample of each device took. An optimiser that takes Optax' extra
    arguments gets the loss as `value`, and the signals by name.

    ```python
    step = ej.training.make_step(ej.AsymEP(), optimiser, loss=ej.squared_error)
    # `state, metrics = step(state, batch)`, again and again
    ```
    """
    check_kind(AbstractEstimator, "an estimator, such as `AsymEP()`", estimator=estimator)
    _check_optimiser(optimiser)
    check_kind(AbstractHomeostat, "a homeostat", **given(homeostat=homeostat))
    check_callable("loss(outputs, targets)", loss=loss)
    if shard_parameters is True and mesh is None:
        raise ValueError(
            "`shard_parameters` needs a `mesh` of devices to keep the parts. Pass one."
        )
    found = as_mesh("mesh", mesh)
    return Step(estimator, optimiser, homeostat, loss, found, shard_parameters, accumulate)


def _check_unused(state: TrainState) -> None:
    if not isinstance(state.step, Tracer) and state.step.is_deleted():
        raise ValueError(
            "`state` was used before: a step takes the arrays of its state. Go on with the state that it returned."
        )


def _check_optimiser(optimiser: Any) -> None:
    if not isinstance(optimiser, optax.GradientTransformation):
        cure = "Pass `optax.adamw(1e-3)`, say."
        refuse("optimiser", "be an Optax transformation", optimiser, cure)


def _updated(fixed, state):
    step, batch = fixed
    key, draw = jax.random.split(state.key)
    remembered = {} if state.carry is None else {"carry": state.carry}
    shared = sharded(step.estimator, step.mesh, step.shard_parameters)
    estimator = accumulated(shared, step.accumulate)
    estimate = estimator(state.model, step.loss, batch, key=draw, **remembered)
    norm = optax.tree.norm(estimate.grads)
    metrics = {**estimate.report.summary(), "gradient_norm": norm, **estimate.signals}
    if step.mesh is not None and step.estimator.objective != "output":
        metrics["slowest"] = slowest(step.mesh, estimate.report.field_evaluations, step.accumulate)
    if step.homeostat is None:
        grads, held = estimate.grads, None
        good = jnp.isfinite(norm) & jnp.any(estimate.report.accepted)
    else:
        own = jax.random.fold_in(draw, 1)
        grads, held, told = step.homeostat(state.homeostat, state.model, batch[0], estimate, own)
        total = optax.tree.norm(grads)
        good = jnp.isfinite(total) & (total > 0)
        metrics |= told
    # The estimator gives None where nothing is trained; weight decay must see the same arrays.
    only = lambda g, p: None if g is None else p
    trained = jax.tree.map(only, grads, state.model, is_leaf=lambda leaf: leaf is None)
    with jax.numpy_dtype_promotion("standard"):  # Optax' schedules mix int and float
        update = optax.with_extra_args_support(step.optimiser).update
        told = {"value": estimate.loss, **estimate.signals}
        updates, opt_state = update(grads, state.opt_state, trained, **told)
    model = eqx.apply_updates(state.model, updates)
    model, opt_state = tree_where(good, (model, opt_state), (state.model, state.opt_state))
    new = TrainState(model, opt_state, state.step + 1, key, held, estimate.carry)
    metrics = constrained(step.mesh, metrics | {"updated": good})
    return step._laid_out(constrained, new), metrics


_update = eqx.filter_jit(_updated, donate="all-except-first")
# Sums in any order, as GPUs scatter gradients of embeddings, would let the copies of a parameter drift apart.
_ALIKE = {"xla_gpu_deterministic_ops": True}
_update_alike = eqx.filter_jit(  # pyright: ignore[reportCallIssue]
    _updated, donate="all-except-first", compiler_options=_ALIKE
)


def check_finite(model: PyTree) -> None:
    """`ValueError` naming the first parameter that holds a NaN or an infinity."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if eqx.is_inexact_array(leaf) and not bool(jnp.all(jnp.isfinite(leaf))):
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"parameter `{name}` holds NaN or infinite values: nothing can settle. Start from an earlier "
                "checkpoint, or with a smaller learning rate."
            )
