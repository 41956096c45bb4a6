"""AEON in `make_step`: backpropagation through one read, whose r and m go on to the next batch."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, PRNGKeyArray, PyTree

from ..fields import trainable
from ..gradients import AbstractEstimator, GradientEstimate, Report
from ._aeon import AeonGPT2, Resonance

_Tokens = Int[jax.Array, "b t"]


class AeonBackprop(AbstractEstimator):
    """The gradient of an `AeonGPT2` over batches of consecutive windows. *Objective: output.*

    Row b of each batch continues sequence b, whose r and m it finds in the `carry`. With `resonant_adamw` the closed loop of AEON
    is a step like any other:

    ```python
    aeon, optimiser = AeonBackprop(), resonant_adamw(1e-3, LossController(rate=0.1), key=key)
    step = make_step(aeon, optimiser)
    state = TrainState.create(model, optimiser, key=key, carry=aeon.start(model, 16))
    ```

    forward with r and m → losses and errors → schedule α → control a, μ, σ → update θ → recur r and m. A gradient that is
    not finite changes neither model nor optimiser; r and m, which follow the cross-entropies whatever the loss, stay bounded. `signals`: `recurrence`, the root mean
    square of r. Several estimates without the carry read every window in the initial state.

    **Arguments:** `trains`: function from models to a mask of the trained arrays.
    """

    objective: ClassVar[str] = "output"
    trains: Callable = trainable

    def start(self, model: AeonGPT2, batch: int) -> Resonance:
        """The carry at step 0, for batches of `batch` sequences."""
        return jax.tree.map(lambda a: jnp.zeros((batch, *a.shape), a.dtype), model.initial())

    def settle(self, field: Any, z0: PyTree, x: PyTree) -> Any:
        """**Raises:** `ValueError`: there is nothing to settle."""
        raise ValueError("An `AeonGPT2` computes its output at once; call it.")

    def __call__(
        self,
        model: AeonGPT2,
        loss: Callable,
        batch: tuple[_Tokens, _Tokens],
        *,
        key: PRNGKeyArray | None = None,
        subset: Bool[jax.Array, " b"] | None = None,
        carry: Resonance | None = None,
    ) -> GradientEstimate:
        carry = self.start(model, batch[0].shape[0]) if carry is None else carry
        return _estimate(self, model, loss, batch, subset, carry)


@eqx.filter_jit
def _estimate(estimator, model, loss, batch, subset, carry):
    weights, rest = eqx.partition(model, estimator.trains(model))
    taken = jnp.ones(batch[0].shape[0], bool) if subset is None else subset

    def mean_loss(weights):
        read = eqx.combine(weights, rest).read
        logits, after = jax.vmap(read)(*batch, carry)
        losses = jax.vmap(loss)(logits, batch[1])
        return jnp.mean(losses, where=taken), (losses, after)

    (total, (losses, after)), grads = jax.value_and_grad(mean_loss, has_aux=True)(weights)
    r = after.recurrence
    signals = {"recurrence": jnp.sqrt(jnp.mean(r * r))}
    report = Report.computed(losses, taken & jnp.isfinite(losses))
    return GradientEstimate(total, grads, report, states=None, carry=after, signals=signals)
