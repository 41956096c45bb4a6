"""Adaptive resonance as a learning law (ARLL) that is coupled to the states of a GPT-2."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import analytic
from .._checks import check_count, check_not_negative
from ..fields import hyperparameter, trainable
from ..gradients import AbstractEstimator, GradientEstimate, Report, accepted_mean, check_call
from ..language import GPT2, DotProduct, GPT2Config
from ._art import FuzzyART, complement_code, stacked

_Tokens = Int[Array, "b t"]


def squash(h: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Hidden states as features in (0, 1): the logistic function of their layer norm.

    Signed activations give fuzzy ART no information: `|h∧w| / |h|` is then near 1 for *any* two vectors. Squashed and
    complement-coded, two independent Gaussian vectors match at .76: set the vigilance above that.

    ```python
    assert ej.resonance.squash(x).tolist() == [0.5] * 4
    ```
    """
    return jax.nn.sigmoid(analytic.layer_norm(h))


class AbstractTap(eqx.Module):
    """Which states of a GPT-2 meet prototypes, in G groups of width d that have prototypes of their own."""

    @abc.abstractmethod
    def shape(self, config: GPT2Config) -> tuple[int, int]:
        """`(G, d)`."""

    @abc.abstractmethod
    def __call__(
        self, model: GPT2, tokens: Int[Array, " t"]
    ) -> tuple[Float[Array, "t v"], Float[Array, "g t d"]]:
        """The logits of one sequence, and its states, in one forward pass without dropout."""


class LayerTap(AbstractTap):
    """The hidden states that leave every block: L groups of width C.

    ```python
    law = ej.resonance.ARLL(strength=0.1, tap=ej.resonance.LayerTap())  # the default
    ```
    """

    def shape(self, config: GPT2Config) -> tuple[int, int]:
        return config.n_layer, config.n_embd

    def __call__(self, model, tokens):
        hidden = model.hidden(tokens)
        return model.unembed(hidden[-1]), hidden[1:]


class HeadTap(AbstractTap):
    """What every attention head mixes, before the projection: L·H groups of width C / H.

    ```python
    law = ej.resonance.ARLL(strength=0.1, tap=ej.resonance.HeadTap())
    ```
    """

    def shape(self, config: GPT2Config) -> tuple[int, int]:
        return config.n_layer * config.n_head, config.n_embd // config.n_head

    def __call__(self, model, tokens):
        def attend(heads, _):
            mixed = DotProduct()(heads)[0]
            return mixed, jnp.swapaxes(mixed, 0, 1)

        last, mixed = model.run(model.embed(tokens), attend)
        return model.unembed(last), mixed.reshape(-1, *mixed.shape[2:])


def nearest_distance(art: FuzzyART, inputs: Float[Array, "n f"]) -> Float[Array, " n"]:
    """`min_w ‖h - w‖²` over the committed categories, for every input h (coded); 0 while there are none.

    The categories are held: the gradient moves the inputs only.

    ```python
    assert ej.resonance.nearest_distance(art, inputs).tolist() == [0, 0, 0]  # there are no categories yet
    ```
    """
    held = analytic.tree_held(art)
    # argmin of ‖h - w‖² without an array (n, K, f)
    order = jnp.sum(held.weight**2, axis=-1)[None] - 2 * inputs @ held.weight.T
    used = jnp.arange(held.weight.shape[0], dtype=jnp.int32) < held.count
    best = jnp.argmin(jnp.where(used[None], order, jnp.inf), axis=-1)
    distance = jnp.sum((inputs - held.weight[best]) ** 2, axis=-1)
    return jnp.where(held.count > 0, distance, 0)


class ARLL(AbstractEstimator):
    """The adaptive-resonance learning law: the loss, plus λ times the distance of hidden states to prototypes that
    themselves learn, and grow, by fuzzy ART. *Objective: output.*

    ```python
    law, optimiser = ej.resonance.ARLL(strength=0.1), optax.adamw(1e-3)
    step = ej.training.make_step(law, optimiser)
    state = ej.training.TrainState.create(gpt2, optimiser, key=key, carry=law.start(gpt2))
    ```

    On a batch of two integer arrays (B, T), inputs and targets, the gradient is that of the mean loss plus λ times the
    mean over sequences, groups and positions of `min_w ‖h - w‖²`, where h is the squashed and complement-coded state and
    w the prototypes before the step. Then every group's prototypes, the `carry`, learn these states, at every
    `stride`-th position, in the order of the batch. With λ = 0 it is the gradient of the loss alone.

    `signals`: `cross_entropy`, the mean loss without the second term; `distance`, that term without λ; `novelty (B,)` of
    each sequence before its states are learned (1 - best match, mean over groups and those positions); `categories (G,)`;
    `overflow (G,)`, the states that found no room so far. Where the gradient is not finite the prototypes stay. A `subset` has a
    say in the gradient alone: prototypes learn of every sequence.

    **Arguments:** `strength`: λ ≥ 0, an array, so that a sweep does not recompile. `tap`: which states, an `AbstractTap`.
    `stride`: at least 1. `trains`: function from models to a mask of the trained arrays.
    """

    objective: ClassVar[str] = "output"
    strength: Float[Array, ""] = hyperparameter(default=0.0)
    tap: AbstractTap = LayerTap()
    stride: int = eqx.field(default=8, static=True)
    trains: Callable = trainable

    def __check_init__(self):
        check_not_negative(strength=self.strength)
        check_count(stride=self.stride)

    def start(
        self, model: GPT2, *, capacity: int = 64, vigilance: Any = 0.85, rate: Any = 1.0
    ) -> FuzzyART:
        """The carry at the start, a `FuzzyART` with a leading axis of G groups: no prototypes, and room for `capacity` in
        each group; else as `FuzzyART.empty`."""
        groups, width = self.tap.shape(model.config)
        dtype = model.wte.dtype
        art = FuzzyART.empty(2 * width, capacity, vigilance=vigilance, rate=rate, dtype=dtype)
        return stacked(art, groups)

    def settle(self, field: Any, z0: PyTree, x: PyTree) -> Any:
        """**Raises:** `ValueError`: there is nothing to settle."""
        raise ValueError("A GPT-2 computes its output at once; call it.")

    @eqx.filter_jit
    def __call__(
        self,
        model: GPT2,
        loss: Callable,
        batch: tuple[_Tokens, _Tokens],
        *,
        key: PRNGKeyArray | None = None,
        subset: Bool[Array, " b"] | None = None,
        carry: FuzzyART | None = None,
    ) -> GradientEstimate:
        if carry is None:
            raise ValueError(
                "`carry` is missing, the prototypes so far: pass `carry=law.start(model)`, to `TrainState.create` for a step."
            )
        batch = check_call(model, loss, batch, key, subset, settles=False)
        if batch[0].shape[1] < self.stride:
            raise ValueError(
                f"prototypes learn at every `stride`={self.stride}-th position and the batch is only "
                f"{batch[0].shape[1]} long: choose a smaller `stride`, or longer sequences."
            )
        weights, rest = eqx.partition(model, self.trains(model))
        taken = jnp.ones(batch[0].shape[0], bool) if subset is None else subset

        def objective(weights):
            losses, distance, coded = self.loss(eqx.combine(weights, rest), carry, batch, loss)
            total = losses + self.strength.astype(distance.dtype) * distance
            return jnp.mean(total, where=taken), (total, losses, distance, coded)

        (mean, told), grads = jax.value_and_grad(objective, has_aux=True)(weights)
        total, losses, distance, coded = told
        seen = coded[:, :, self.stride - 1 :: self.stride]
        inputs = seen.reshape(seen.shape[0], -1, seen.shape[-1])
        novelty = _novelty(carry, inputs).reshape(seen.shape[:3])
        learn = lambda art, inputs: lax.scan(FuzzyART.step, art, inputs)[0]
        learned = jax.vmap(learn)(carry, inputs)
        # A category of NaN would stay for ever.
        kept = analytic.tree_where(jnp.isfinite(optax.tree.norm(grads)), learned, carry)
        accepted = taken & jnp.isfinite(total)
        signals = {
            "cross_entropy": accepted_mean(losses, accepted),
            "distance": accepted_mean(distance, accepted),
            "novelty": jnp.mean(novelty, axis=(0, 2)),
            "categories": kept.count,
            "overflow": kept.overflow,
        }
        report = Report.computed(total, accepted)
        return GradientEstimate(mean, grads, report, states=None, carry=kept, signals=signals)

    def loss(
        self, model: GPT2, prototypes: FuzzyART, batch: tuple[_Tokens, _Tokens], loss: Callable
    ) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, "g b t f"]]:
        """`loss` and distance of every sequence, and its coded states."""
        tokens, targets = batch
        logits, coded = jax.vmap(lambda one: self._read(model, one), out_axes=(0, 1))(tokens)
        groups, count = coded.shape[:2]
        flat = coded.reshape(groups, -1, coded.shape[-1])
        distance = jax.vmap(nearest_distance)(prototypes, flat).reshape(groups, count, -1)
        return jax.vmap(loss)(logits, targets), jnp.mean(distance, axis=(0, 2)), coded

    @eqx.filter_jit
    def novelty(
        self, model: GPT2, prototypes: FuzzyART, tokens: Int[Array, "b t"]
    ) -> Float[Array, " b"]:
        """How new every sequence is: 1 - the best match of its states, the mean over groups and positions."""

        new = lambda sequence: jnp.mean(_novelty(prototypes, self._read(model, sequence)[1]))
        return lax.map(new, tokens)

    def _read(self, model, tokens):
        logits, states = self.tap(model, tokens)
        return logits, complement_code(squash(states))


def _novelty(prototypes: FuzzyART, coded: Float[Array, "g n f"]) -> Float[Array, "g n"]:
    return jax.vmap(lambda art, inputs: jax.vmap(art.novelty)(inputs))(prototypes, coded)
