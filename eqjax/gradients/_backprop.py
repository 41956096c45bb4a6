"""Plain backpropagation: the gradient of models that compute their output at once."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._checks import FAILURES, check_callable, is_clear, shown
from ..analytic import FactoredLogits, tree_cast, vary_like
from ..fields import trainable
from ._estimate import (
    AbstractEstimator,
    GradientEstimate,
    Report,
    accepted_mean,
    batch_keys,
    check_call,
    scalar_loss,
)


def called(model: Any, inputs: Any, key: PRNGKeyArray | None) -> Any:
    """`model(inputs)`: of a model that draws nothing."""
    return model(inputs)


def _full(outputs):
    """The outputs of a model in full precision."""
    kept = lambda node: isinstance(node, FactoredLogits)
    cast = lambda node: node if kept(node) else tree_cast(node, jnp.result_type(float))
    return jax.tree.map(cast, outputs, is_leaf=kept)


class Backprop(AbstractEstimator):
    """The gradient of `L(model(inputs))`, by reverse mode (Rumelhart, Hinton & Williams 1986). *Objective: output.*

    With it `make_step` trains any Equinox model, and a yardstick has the same loop, metrics and checkpoints as an
    equilibrium model. A sample whose loss is not finite spoils the gradient of its batch (`make_step` then leaves it out).

    **Arguments:**

    - `call`: `(model, inputs, key) -> outputs` of one sample; by default `model(inputs)`. The key is None without one.
    - `trains`: function from models to a mask of the trained arrays.
    - `dtype`: of model and inputs in the forward and backward pass, such as bfloat16; loss and gradients stay in full
      precision, and outputs are cast to it, but for `FactoredLogits`, whose factors are meant to be short. None
      leaves all as it is.
    - `context`: for `make_step(..., mesh=...)`, an axis of the mesh whose devices share the tokens of every sample out: `call` gets
      those of its device, and meets the others by attention in a ring (`eqjax.language.RingAttention`). The loss must be a mean over
      tokens, of which no two devices count differently many.

    ```python
    import equinox as eqx

    layer = eqx.nn.Linear(4, 4, key=jax.random.key(1))
    assert jnp.any(ej.Backprop()(layer, ej.squared_error, batch).grads.weight != 0)
    ```
    """

    objective: ClassVar[str] = "output"
    call: Callable[..., Any] = called
    trains: Callable = trainable
    dtype: DTypeLike | None = eqx.field(static=True, default=None)
    context: str | None = eqx.field(static=True, default=None)

    def settle(self, field: Any, z0: PyTree[Array], x: PyTree) -> Any:
        """**Raises:** `ValueError`: there is nothing to settle."""
        raise ValueError("A model trained by `Backprop` computes its output at once; call it.")

    def __check_init__(self):
        check_callable("call(model, inputs, key)", call=self.call)

    def __call__(self, model, loss, batch, *, key=None, subset=None):
        batch = check_call(model, loss, batch, key, subset, settles=False)
        try:
            return self._estimate(model, loss, batch, key, subset)
        except FAILURES as error:
            if is_clear(error):
                raise
            raise ValueError(
                f"`model` or `loss` fails on `batch` {shown(batch)}: {error}"
            ) from error

    @eqx.filter_jit
    def _estimate(self, model, loss, batch, key, subset):
        inputs, targets = batch
        model = vary_like(model, batch)
        trained, held = eqx.partition(model, self.trains(model))
        size = jax.tree.leaves(inputs)[0].shape[0]
        taken = jnp.ones(size, bool) if subset is None else subset

        def mean(trained):
            full = eqx.combine(trained, held)

            def one(inputs, targets, key):
                if self.dtype is None:
                    return scalar_loss(loss(self.call(full, inputs, key), targets))
                outputs = self.call(*tree_cast((full, inputs), self.dtype), key)
                return scalar_loss(loss(_full(outputs), targets))

            values = eqx.filter_vmap(one)(inputs, targets, batch_keys(key, size))
            return accepted_mean(values, taken), values

        (total, values), grads = eqx.filter_value_and_grad(mean, has_aux=True)(trained)
        report = Report.computed(values, taken & jnp.isfinite(values))
        return GradientEstimate(total, grads, report, states=None)
