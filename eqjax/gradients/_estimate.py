"""What every gradient estimator is and returns."""

import abc
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int, PRNGKeyArray, PyTree

from .._checks import (
    FAILURES,
    check_arrays,
    check_callable,
    check_key,
    check_number,
    given,
    is_clear,
    refuse,
    tried,
)
from ..relaxation import Equilibrium, MeasuresForce, Relaxation, check_field, warn_of_fresh


class Report(eqx.Module):
    """Diagnostics of a gradient estimate, one value per sample. NaN where an estimator has no such quantity.

    `loss`; `free_residual`: force residual of the free state; `nudged_residual`: force residual of the nudged
    field (the largest of the phases); `adjoint_residual`: `‖Jᵀa + ∂L/∂z‖ / ‖∂L/∂z‖` of the `a` used, measured
    exactly; `displacement`: how far the nudged states moved, `|β| ‖a‖ / ‖z‖`; `field_evaluations`: evaluations of F and
    products with J or Jᵀ while settling; `accepted`: whether the sample contributes to the gradient; `unsettled`: settled in
    token order, the fraction of its tokens whose free residual is above what is accepted.
    """

    loss: Float[Array, "*b"]
    free_residual: Float[Array, "*b"]
    nudged_residual: Float[Array, "*b"]
    adjoint_residual: Float[Array, "*b"]
    displacement: Float[Array, "*b"]
    field_evaluations: Int[Array, "*b"]
    accepted: Bool[Array, "*b"]
    unsettled: Float[Array, "*b"]

    @classmethod
    def computed(
        cls, loss: Float[Array, "*b"], accepted: Bool[Array, "*b"], residual=None, evaluations=None
    ) -> "Report":
        """Without nudge or adjoint; of a model that computes its output at once without residual: nothing settled."""
        nothing = jnp.full_like(loss, jnp.nan)
        residual = nothing if residual is None else residual
        calls = jnp.zeros(loss.shape, int) if evaluations is None else evaluations
        return cls(loss, residual, nothing, nothing, nothing, calls, accepted, nothing)

    def summary(self) -> dict[str, Array]:
        """Scalars for a log: mean loss and *worst* residuals over the accepted samples, mean cost over all,
        fraction accepted."""

        def worst(values):
            # NaN (no such quantity, or nothing accepted) stays NaN.
            top = jnp.max(jnp.where(self.accepted, values, -jnp.inf))
            return jnp.where(jnp.isneginf(top), jnp.nan, top)

        residuals = "free_residual", "nudged_residual", "adjoint_residual", "displacement"
        return {
            "loss": accepted_mean(self.loss, self.accepted),
            **{name: worst(getattr(self, name)) for name in residuals},
            "field_evaluations": jnp.mean(self.field_evaluations.astype(self.loss.dtype)),
            "accepted": jnp.mean(self.accepted.astype(self.loss.dtype)),
            "unsettled": jnp.mean(self.unsettled),
        }


class GradientEstimate(eqx.Module):
    """What an estimator returns.

    `loss`: mean over the accepted samples (NaN if there are none). `grads`: in the structure of the model, None
    where nothing is trained; zero if no sample is accepted. `report`: per-sample diagnostics. `states`: where the
    loss was read off, per sample (a leading batch axis; of a sample that was not accepted, whatever was reached).
    `variance`: of a random estimate that drew more than once, its estimated total variance `E‖ĝ - E ĝ‖²`; None
    otherwise. `carry`: what an estimator that remembers wants back with the next batch. `signals`: what else there is to
    know, by name; `make_step` logs it and passes it to the optimiser, as Optax' extra arguments.
    """

    loss: Float[Array, ""]
    grads: PyTree
    report: Report
    states: PyTree[Array]
    variance: Float[Array, ""] | None = None
    carry: PyTree = None
    signals: dict[str, Array] = eqx.field(default_factory=dict)


class Accept(eqx.Module):
    """Which samples are usable: both residuals finite and at most these thresholds.

    `free_residual` is by default a hundred times what the free solver was asked for, though not below what rounding leaves
    (a thousand eps) nor above 3e-2, which is also that of a solver without a tolerance.

    `prefix`: of a window settled in `TokenOrder`, take the tokens before the first one that is not settled. Theirs is the
    exact gradient of their part of the loss, since Jᵀ is upper triangular: what later tokens do is nothing to them. For a
    model that decodes token by token, and a loss that is a sum over tokens. The loss reported is of all.

    ```python
    accept = ej.Accept(free_residual=1e-3)
    seen = accept.settled(jnp.array([1e-4, 1e-2]), ej.Anderson(1e-5))
    assert seen.tolist() == [True, False]
    ```
    """

    free_residual: float | Array | None = None
    adjoint_residual: float | Array = 0.3
    prefix: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        # Infinity takes every sample that is finite.
        bounds = {"free_residual": self.free_residual, "adjoint_residual": self.adjoint_residual}
        check_number("be above 0", lambda v: v > 0, **given(**bounds))

    def settled(self, residual: Float[Array, "..."], solver: Any) -> Bool[Array, "..."]:
        """Whether the residual of a free state settled by `solver` is good enough."""
        if self.free_residual is not None:
            return residual <= self.free_residual
        most = jnp.asarray(3e-2, residual.dtype)
        if isinstance(solver, MeasuresForce):
            asked = jnp.asarray(solver.rtol + solver.atol, residual.dtype)
            fitting = jnp.clip(100 * asked, 1e3 * jnp.finfo(residual.dtype).eps, most)
            # A tolerance of 0 asks for all steps (`Picard`).
            most = jnp.where(asked > 0, fitting, most)
        return residual <= most


class AbstractEstimator(eqx.Module):
    """`estimator(model, loss, batch, *, key=None, subset=None) -> GradientEstimate`: pure, and jitted.

    `loss(outputs, targets)` is the scalar of one sample; `batch = (inputs, targets)` has a leading batch axis;
    A model whose state is complex is seen with real and imaginary parts for a state, unless an estimator refuses it.
    `key` is for estimators that draw random numbers, also one for each sample, of which a part of a batch keeps its own; `subset`, bool `(B,)`, leaves samples out beforehand.
    `objective` says what is differentiated: "equilibrium" `L(z*)`, "finite horizon" `L(z_T)`, or "output" where
    nothing settles. An estimator that
    remembers from batch to batch has `start(model, …) -> carry` and takes that `carry`, too.
    """

    objective: eqx.AbstractClassVar[str]
    trains: eqx.AbstractVar[Callable]
    carries_rows: ClassVar[bool] = False
    """Whether what it carries has a leading batch axis."""

    def __check_init__(self):
        check_callable("of a model to a mask, such as `eqjax.trainable`", trains=self.trains)

    @abc.abstractmethod
    def settle(self, field: Callable, z0: PyTree[Array], x: PyTree) -> Equilibrium | Relaxation:
        """The estimator's own free settling of one sample: what a model trained by it should answer with."""

    def per_sample(self) -> tuple:
        """Settings that may be arrays `(B,)`, one for every sample."""
        return ()

    @abc.abstractmethod
    def __call__(
        self,
        model: Any,
        loss: Callable,
        batch: tuple,
        *,
        key: PRNGKeyArray | None = None,
        subset: Bool[Array, " b"] | None = None,
    ) -> GradientEstimate:
        """Estimate the gradient of the mean of `loss(outputs, targets)` over `batch = (inputs, targets)`."""


class AbstractOuterEstimator(AbstractEstimator):
    """An estimator that asks another one, with whose objective it trains and settles."""

    estimator: eqx.AbstractVar[AbstractEstimator]

    @property
    def objective(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.estimator.objective

    @property
    def trains(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.estimator.trains

    def per_sample(self):
        return self.estimator.per_sample()

    def settle(self, field, z0, x):
        return self.estimator.settle(field, z0, x)


def by_sample(estimator: AbstractEstimator) -> Callable[[Any], bool]:
    """Which leaves of an estimator have an entry for every sample.

    ```python
    every = ej.AsymEP(beta=jnp.full(2, 1e-3))
    assert ej.gradients.by_sample(every)(every.nudged.beta)
    ```
    """
    each = {id(value) for value in estimator.per_sample() if np.ndim(value)}
    return lambda leaf: id(leaf) in each


def accepted_mean(values: Float[Array, "*b"], accepted: Bool[Array, " b"]) -> Float[Array, ""]:
    """The mean over accepted samples; NaN when there are none.

    ```python
    assert ej.gradients.accepted_mean(jnp.array([1.0, 5.0]), jnp.array([True, False])) == 1
    ```
    """
    total = jnp.sum(jnp.where(accepted, values, jnp.zeros_like(values)))
    return total / jnp.sum(accepted).astype(values.dtype)


def borrow(accepted: Bool[Array, "*b"], tree: PyTree) -> PyTree:
    """Replace each rejected sample by an accepted one. It enters with weight zero, so what it holds does not
    matter as long as it is finite: 0 · NaN would spoil its neighbours.

    ```python
    seen = ej.gradients.borrow(jnp.array([True, False]), jnp.array([1.0, jnp.nan]))
    assert seen.tolist() == [1, 1]
    ```
    """
    index = jnp.where(accepted, jnp.arange(accepted.size), jnp.argmax(accepted))
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)


def zero_unless(condition: Bool[Array, ""], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, jnp.zeros_like(leaf)), tree)


def check_call(
    model: Any, loss: Any, batch: Any, key: Any, subset: Any, *, settles: bool = True
) -> tuple[PyTree, PyTree]:
    """The batch of arrays, if an estimator can be called with these; a model that `settles` has a field."""
    if settles and not all(
        hasattr(model, name) for name in ("field", "encode", "initial", "decode")
    ):
        refuse("model", "have a `field`, `encode`, `initial` and `decode`", model, _MODEL)
    check_callable("loss(outputs, targets)", loss=loss)
    batch = check_batch(batch)
    warn_of_fresh(model=model, loss=loss)
    size = jax.tree.leaves(batch)[0].shape[0]
    if not _each(key, size):
        check_key(**given(key=key))
    taken = subset if eqx.is_array_like(subset) else jnp.zeros(())
    if subset is not None and (jnp.shape(taken), jnp.result_type(taken)) != ((size,), jnp.bool_):
        refuse("subset", f"hold {size} bools, one for each sample", subset)
    return batch


_MODEL = "Build one by `eqjax.EquilibriumModel(encoder, field, decoder)`."


def scalar_loss(value: Any, *, real: bool = True) -> Inexact[Array, ""]:
    """The loss of one sample, if it is a number that can be differentiated; of a complex state it need not be `real`."""
    kind = jnp.floating if real else jnp.inexact
    if not isinstance(value, jax.Array) or value.shape != () or not jnp.issubdtype(value, kind):
        cure = ""
        if isinstance(value, (tuple, list, dict)):
            cure = "No auxiliary outputs are carried along: compute them from the `states` of the estimate."
        elif getattr(value, "shape", ()):
            cure = "Take the mean or the sum."
        refuse(*_LOSS, value, cure)
    return value


_LOSS = "loss(outputs, targets)", "return one floating-point number, computed by JAX"


@contextlib.contextmanager
def blamed(model: Any, loss: Callable, batch: tuple[PyTree, PyTree]) -> Iterator[None]:
    """What fails in here fails with a `ValueError` if a part of `model` or the `loss` is to blame, which it names."""
    try:
        yield
    except FAILURES as error:
        if not is_clear(error):
            _blame(model, loss, *jax.eval_shape(lambda b: jax.tree.map(lambda a: a[0], b), batch))
        raise


def _blame(model, loss, inputs, target):
    zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)
    x = zeros(tried("model.encode", model.encode, inputs=inputs))
    z = zeros(tried("model.initial", model.initial, x=x))
    check_field(model.field, z, x)
    outputs = tried("model.decode", model.decode, z=z)
    tried(
        "loss(outputs, targets)",
        lambda o, t: scalar_loss(loss(o, t)),
        outputs=outputs,
        targets=target,
    )


def check_batch(batch: Any) -> tuple[PyTree, PyTree]:
    """`batch` must be `(inputs, targets)` with one leading batch axis everywhere."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        refuse("batch", "be a pair `(inputs, targets)`", batch)
    check_arrays(inputs=batch[0], targets=batch[1])
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tuple(batch))]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise ValueError(
            f"Every array in `batch` needs the same leading batch axis, of length at least 1; got shapes {shapes}."
        )
    return jax.tree.map(jnp.asarray, tuple(batch))


def _each(key: Any, size: int | None = None) -> bool:
    """Whether these are keys for every sample, of `size` samples."""
    if not isinstance(key, jax.Array):
        return False
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == (1 if typed else 2) and size in (None, key.shape[0])


def needed_key(key: Any, why: str) -> Any:
    """The key, or keys for every sample, which there must be."""
    if key is None:
        raise ValueError(
            f"{why} draws random numbers: pass `key=jax.random.key(...)` to the estimator."
        )
    if not _each(key):
        check_key(key=key)
    return key


def batch_keys(key: Any, size: int) -> Any:
    """A key per sample, or None; keys that already are are not split again.

    ```python
    assert ej.gradients.batch_keys(jax.random.key(0), 3).shape == (3,)
    ```
    """
    return key if key is None or _each(key) else jax.random.split(key, size)


def total_variance(draws: PyTree[Float[Array, "k ..."]]) -> Float[Array, ""]:
    """Total variance of the *mean* of k ≥ 2 independent draws, over all entries of all leaves."""

    def spread(leaf):
        k = leaf.shape[0]
        return jnp.sum((leaf - jnp.mean(leaf, axis=0, keepdims=True)) ** 2) / (k * (k - 1))

    return jnp.sum(jnp.stack([spread(leaf) for leaf in jax.tree.leaves(draws)] or [0.0]))
