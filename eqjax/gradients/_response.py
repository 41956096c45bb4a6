"""The half of the work that all equilibrium estimators share.

They differ only in the adjoint state `a` that they propose; one expression turns it into a gradient: that of
`mean_b [loss(decode(z), y) + ⟨a, F(z, encode(u))⟩]` with `z` and `a` held fixed.
"""

import abc
import contextlib
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from .._checks import check_count, check_kind
from ..analytic import is_complex, scale as scaled, vary_like
from ..fields import on_complex_vectors
from ..relaxation import Solver, TokenOrder, equilibrium, with_tolerance
from ._estimate import (
    AbstractEstimator,
    Accept,
    GradientEstimate,
    Report,
    accepted_mean,
    batch_keys,
    blamed,
    borrow,
    by_sample,
    check_call,
    scalar_loss,
    zero_unless,
)
from ._real import real_view


class Response(NamedTuple):
    """One sample at a state z, in units in which `‖∂L/∂z‖ = 1`: what an adjoint is computed from.

    `field` and `x`: whose; `force0 = F(z)`; `pull = ∂L/∂z / ‖∂L/∂z‖`; `pull_size = ‖∂L/∂z‖`; `extent = max(‖z‖, scale)`;
    callables `force(z)`, `pull_at(z)`, `jvp(v) = J v`, `vjp(v) = Jᵀ v`, with J at z; all of them take complex states and vectors too, as far
    as the field is holomorphic.
    """

    field: Callable
    x: PyTree
    z: PyTree[Array]
    force0: PyTree[Array]
    pull: PyTree[Array]
    pull_size: Array
    extent: Array
    force: Callable
    pull_at: Callable
    jvp: Callable
    vjp: Callable

    def only_if(self, condition: Array) -> "Response":
        """This response, or one without a pull, whose adjoint is zero: a state that will not be accepted has no use for an
        adjoint, and would be the slowest of its batch to get one."""
        pull_at = lambda state: zero_unless(condition, self.pull_at(state))
        return self._replace(pull=zero_unless(condition, self.pull), pull_at=pull_at)


class Sample(NamedTuple):
    """One sample before it has settled: its field, input, start, and loss as a function of the state."""

    field: Callable
    x: PyTree
    z0: PyTree[Array]
    loss: Callable

    @classmethod
    def encoded(cls, model, loss, inputs, target) -> "Sample":
        x = model.encode(inputs)

        def objective(state):
            value = loss(model.decode(state), target)
            return scalar_loss(value, real=not is_complex(state))

        return cls(model.field, x, vary_like(model.initial(x), x), objective)

    def counting(self, tokens: Bool[Array, " t"] | None) -> "Sample":
        """This sample, with a loss that feels these tokens only; all of them if None."""
        if tokens is None:
            return self
        return self._replace(loss=lambda state: self.loss(only(tokens, state)))

    def response(
        self, z: PyTree[Array], field: Callable | None = None, scale: Array | float = 1.0
    ) -> Response:
        """The response at z; under another realisation of the field if one is given."""
        field = self.field if field is None else field

        def force(state):
            with _mixing(state):
                return field(0.0, state, self.x)

        pull = jax.grad(self.loss)(z)
        size = optx.two_norm(pull)
        unit = jnp.where(size > 0, size, jnp.ones_like(size))

        def pull_at(state):
            with _mixing(state):
                gradient = jax.grad(self.loss, holomorphic=is_complex(state))(state)
            return jax.tree.map(lambda g: scaled(g, 1 / unit), gradient)

        force0, jvp = jax.linearize(force, z)
        transpose = jax.linear_transpose(jvp, z)
        return Response(
            field=field,
            x=self.x,
            z=z,
            force0=force0,
            pull=jax.tree.map(lambda g: g / unit, pull),
            pull_size=unit,
            extent=jnp.maximum(optx.two_norm(z), scale),
            force=force,
            pull_at=pull_at,
            jvp=on_complex_vectors(lambda v: jvp(vary_like(v, z))),
            vjp=on_complex_vectors(lambda v: transpose(vary_like(v, force0))[0]),
        )


def only(tokens: Bool[Array, " t"], rows: PyTree[Array]) -> PyTree[Array]:
    """The same numbers, of which only those of these tokens, along the leading axis, have a derivative."""

    def held(leaf):
        chosen = tokens.reshape(tokens.shape + (1,) * (leaf.ndim - 1))
        return jnp.where(chosen, leaf, jax.lax.stop_gradient(leaf))

    return jax.tree.map(held, rows)


def _mixing(state: PyTree):
    """A complex nudge may meet the real parameters of whatever modules the user brought."""
    if is_complex(state):
        return jax.numpy_dtype_promotion("standard")
    return contextlib.nullcontext()


class Adjoint(NamedTuple):
    """`value`: a proposed solution of `Jᵀa + pull = 0` (unit pull), and how it was come by."""

    value: PyTree[Array]
    evaluations: Array
    nudged_residual: Array | float = jnp.nan
    displacement: Array | float = jnp.nan


class Free(NamedTuple):
    """A free settling: state, force residual, evaluations, with the one that linearises there, and its scale. In token
    order, also the fraction of tokens that is not settled, and which ones count, if not all."""

    value: PyTree[Array]
    residual: Array
    evaluations: Array
    scale: Array | float = 1.0
    unsettled: Array | float = jnp.nan
    counted: Bool[Array, " t"] | None = None


class Settled(NamedTuple):
    """What is left of one sample: the free state z, its adjoint a, a `Report`, and what else the `surrogate` wants."""

    z: PyTree[Array]
    a: PyTree[Array]
    report: Report
    memory: PyTree = None


class AbstractEquilibriumEstimator(AbstractEstimator):
    """Estimators of the gradient of `L(z*)`, `F(z*) = 0`."""

    objective: ClassVar[str] = "equilibrium"
    free: eqx.AbstractVar[Solver]
    free_steps: eqx.AbstractVar[int]
    accept: eqx.AbstractVar[Accept]

    def __check_init__(self):
        check_count(free_steps=self.free_steps)
        check_kind(Solver, "an Optimistix fixed-point solver or root finder", free=self.free)
        check_kind(Accept, "an `Accept(...)`", accept=self.accept)
        if self.accept.prefix and not isinstance(self.free, TokenOrder):
            raise ValueError(
                f"`Accept(prefix=True)` counts tokens that were settled in order: `free` must be a `TokenOrder`, got {self.free!r}."
            )

    @abc.abstractmethod
    def respond(self, model, loss, inputs, target, key) -> Settled:
        """Settle one sample, and propose its adjoint."""

    def surrogate(self, model, loss, inputs, target, z, a, memory) -> Float[Array, ""]:
        """The scalar of one sample whose gradient in the parameters, all states held fixed, is the estimate:
        `loss(decode(z), y) + ⟨a, F(z, encode(u))⟩`; `memory`: the tokens that count, if not all."""
        force = model.field(0.0, z, model.encode(inputs))
        work = jax.tree.map(lambda u, v: jnp.sum(u * v), a, force)
        outputs = model.decode(z)
        outputs = outputs if memory is None else only(memory, outputs)
        return scalar_loss(loss(outputs, target)) + sum(jax.tree.leaves(work))

    def check(self, model, loss, batch, key) -> None:
        """Refuse, before any work, a model that the estimator cannot treat, or a key or setting that is missing."""

    def settle(self, field, z0, x):
        return equilibrium(field, z0, x, solver=self.free, max_steps=self.free_steps, throw=False)

    def settle_freely(self, sample: Sample, field: Callable | None = None) -> Free:
        free = self.settle(sample.field if field is None else field, sample.z0, sample.x)
        told, residual, unsettled, counted = free.stats, free.residual, jnp.nan, None
        if "token_residuals" in told:
            each = told["token_residuals"]
            good = self.accept.settled(each, self.free)
            unsettled = 1 - jnp.mean(good.astype(each.dtype))
            if self.accept.prefix:
                counted = jnp.cumprod(good.astype(jnp.int32)).astype(bool)
                # Of the worst that counts; where the first one already failed, of that.
                residual = jnp.max(jnp.where(counted | (jnp.arange(each.size) == 0), each, 0))
        evaluations = told["field_evaluations"] + 1
        return Free(free.value, residual, evaluations, told["scale"], unsettled, counted)

    def judge(
        self,
        sample: Sample,
        free: Free,
        response: Response,
        adjoint: Adjoint,
        memory: PyTree = None,
    ) -> Settled:
        """Measure what was found, whatever the estimator, and accept it or not."""
        value, size = sample.loss(response.z), response.pull_size
        defect = jax.tree.map(jnp.add, response.vjp(adjoint.value), response.pull)
        adjoint_residual = optx.two_norm(defect)
        # No pull, no adjoint: there is nothing to be wrong about.
        pulled = optx.two_norm(response.pull) > 0
        adjoint_residual = jnp.where(
            pulled | ~jnp.isfinite(adjoint_residual), adjoint_residual, jnp.zeros_like(size)
        )
        finite = jnp.isfinite(value) & jnp.isfinite(size) & jnp.isfinite(adjoint_residual)
        report = Report(
            loss=value,
            free_residual=free.residual,
            nudged_residual=jnp.asarray(adjoint.nudged_residual, size.dtype),
            adjoint_residual=adjoint_residual,
            displacement=jnp.asarray(adjoint.displacement, size.dtype),
            field_evaluations=free.evaluations + adjoint.evaluations,
            unsettled=jnp.asarray(free.unsettled, size.dtype),
            accepted=finite
            & self.accept.settled(free.residual, self.free)
            & (adjoint_residual <= self.accept.adjoint_residual),
        )
        memory = free.counted if memory is None else memory
        return Settled(response.z, jax.tree.map(lambda v: size * v, adjoint.value), report, memory)

    def __call__(self, model, loss, batch, *, key=None, subset=None):
        batch = check_call(model, loss, batch, key, subset)
        with blamed(model, loss, batch):
            self.check(model, loss, batch, key)
            return _estimate(self, model, loss, batch, key, subset)


class AbstractAdjointEstimator(AbstractEquilibriumEstimator):
    """Equilibrium estimators that settle freely, and then find the adjoint at the free state."""

    @abc.abstractmethod
    def adjoint(self, response: Response) -> Adjoint:
        """The adjoint state of one sample."""

    def respond(self, model, loss, inputs, target, key):
        sample = Sample.encoded(model, loss, inputs, target)
        free = self.settle_freely(sample)
        sample = sample.counting(free.counted)
        response = sample.response(free.value, scale=free.scale)
        adjoint = self.adjoint(response.only_if(self.accept.settled(free.residual, self.free)))
        return self.judge(sample, free, response, adjoint)


@eqx.filter_jit
def _estimate(estimator, model, loss, batch, key, subset):
    inputs, targets = batch
    model = vary_like(model, batch)
    size = jax.tree.leaves(batch)[0].shape[0]
    view, shown = real_view(model, inputs)
    has_rows = by_sample(estimator)
    own = lambda leaf: 0 if has_rows(leaf) else None

    with jax.default_matmul_precision("highest"):
        axes = (own, None, None, 0, 0, 0)
        respond = eqx.filter_vmap(type(estimator).respond, in_axes=axes)
        keys = batch_keys(key, size)
        z, a, report, memory = respond(estimator, view(model), loss, inputs, targets, keys)
        if subset is not None:
            report = eqx.tree_at(lambda r: r.accepted, report, report.accepted & subset)
        accepted = report.accepted
        samples = borrow(accepted, (inputs, targets, z, a, memory))
        trained, held = eqx.partition(model, estimator.trains(model))

        def objective(trained):
            model = view(eqx.combine(trained, held))
            one = eqx.filter_vmap(lambda sample: estimator.surrogate(model, loss, *sample))
            return accepted_mean(one(samples), accepted)

        grads = zero_unless(jnp.any(accepted), jax.grad(objective)(trained))
    return GradientEstimate(accepted_mean(report.loss, accepted), grads, report, shown(z))


def in_adjoint_coordinates(solver: Solver, phases: int = 1) -> Solver:
    """`solver` for an unknown a that so many phases share out: its tolerance, read as an absolute one.

    There `‖pull‖ = 1`, so this is a tolerance on the adjoint residual: relative to ‖a‖ it would loosen as a slow mode
    amplifies a.
    """
    absolute = lambda rtol, atol: (0.0, (rtol + atol) * phases**0.5)
    return with_tolerance(solver, absolute)
