"""Adaptive resonance in continuous time, and as a learning law (ARLL) that is coupled to the states of a GPT-2."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from .. import analytic
from ..fields import AbstractForceField, hyperparameter, trainable
from ..language import GPT2, DotProduct, GPT2Config
from ._art import FuzzyART, complement_code, stack


class AdaptiveResonance(AbstractForceField):
    """A prototype w and a state h that settle on one another: `τ ẇ = (h∧w) - w`, `τ ḣ = λ (w - h)`.

    The state is `(w, h)`, two real arrays of one shape; the input `x` is not used. With λ = 0 the state is clamped,
    and an Euler step of η τ is the learning rule of fuzzy ART with the rate η. Every component goes its own way:
    with u = w - h, `τ u̇ = -(1 + λ) u` where u > 0, `-λ u` where u < 0. So w never rises, h moves towards it, and
    `½ ‖w - h‖²` never rises.

    **Arguments:** `tau`: τ > 0, a time. `pull`: λ ≥ 0.
    """

    tau: Float[Array, ""] = hyperparameter(default=1.0)
    pull: Float[Array, ""] = hyperparameter(default=0.0)

    def __check_init__(self):
        _refuse(self.tau, lambda v: v > 0, "`tau` must be above 0")
        _refuse(self.pull, lambda v: v >= 0, "`pull` must be at least 0")

    def __call__(self, t: Any, z: tuple[Array, Array], x: Any = None) -> tuple[Array, Array]:
        w, h = z
        tau, pull = self.tau.astype(w.dtype), self.pull.astype(w.dtype)
        return (jnp.minimum(h, w) - w) / tau, pull * (w - h) / tau


def squash(h: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Hidden states as features in (0, 1): the logistic function of their layer norm.

    Signed activations give fuzzy ART no information: `|h∧w| / |h|` is then near 1 for *any* two vectors. Squashed and
    complement-coded, two independent Gaussian vectors match at .76: set the vigilance above that.
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
    """The hidden states that leave every block: L groups of width C."""

    def shape(self, config: GPT2Config) -> tuple[int, int]:
        return config.n_layer, config.n_embd

    def __call__(self, model, tokens):
        hidden = model.hidden(tokens)
        return model.unembed(hidden[-1]), hidden[1:]


class HeadTap(AbstractTap):
    """What every attention head mixes, before the projection: L·H groups of width C / H."""

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
    """
    held = analytic.tree_held(art)
    # argmin of ‖h - w‖² without an array (n, K, f)
    order = jnp.sum(held.weight**2, axis=-1)[None] - 2 * inputs @ held.weight.T
    used = jnp.arange(held.weight.shape[0], dtype=jnp.int32) < held.count
    best = jnp.argmin(jnp.where(used[None], order, jnp.inf), axis=-1)
    distance = jnp.sum((inputs - held.weight[best]) ** 2, axis=-1)
    return jnp.where(held.count > 0, distance, 0)


class ARLLState(eqx.Module):
    """What changes while the law is at work: `model`, `opt_state`, and `prototypes`, a `FuzzyART` with a leading axis
    of G groups."""

    model: GPT2
    opt_state: PyTree
    prototypes: FuzzyART


class ARLL(eqx.Module):
    """The adaptive-resonance learning law: cross-entropy, plus λ times the distance of hidden states to prototypes that
    themselves learn, and grow, by fuzzy ART.

    `law(state, batch) -> (state, metrics)` is one pure compiled step on `batch`, two integer arrays (B, T), inputs and
    targets. The weights descend, by `optimiser`, the token-mean cross-entropy plus λ times the mean over sequences,
    groups and positions of `min_w ‖h - w‖²`, where h is the squashed and complement-coded state and w the prototypes
    before the step. Then every group's prototypes learn these states, at every `stride`-th position, in the order of
    the batch. With λ = 0 the weights are those of the optimiser alone.

    `metrics`: `loss`; `cross_entropy`, in nats; `distance`, the second term without λ; `novelty (B,)` of each sequence
    before its states are learned (1 - best match, mean over groups and those positions); `categories (G,)`; `overflow
    (G,)`, the states that found no room so far. Where the gradient is not finite nothing changes, and `updated` is
    false.

    **Arguments:** `optimiser`: an Optax transformation. `strength`: λ ≥ 0, an array, so that a sweep does not
    recompile. `tap`: which states, an `AbstractTap`. `stride`: at least 1.
    """

    optimiser: optax.GradientTransformation
    strength: Float[Array, ""] = hyperparameter(default=0.0)
    tap: AbstractTap = LayerTap()
    stride: int = eqx.field(default=8, static=True)

    def __check_init__(self):
        _refuse(self.strength, lambda v: v >= 0, "`strength` must be at least 0")
        _refuse(self.stride, lambda v: v >= 1, "`stride` must be at least 1")

    def init(
        self, model: GPT2, *, capacity: int = 64, vigilance: Any = 0.85, rate: Any = 1.0
    ) -> ARLLState:
        """The state at the start: no prototypes, and room for `capacity` in each group; else as `FuzzyART.empty`."""
        groups, width = self.tap.shape(model.config)
        dtype = model.wte.dtype
        art = FuzzyART.empty(2 * width, capacity, vigilance=vigilance, rate=rate, dtype=dtype)
        opt_state = self.optimiser.init(eqx.filter(model, trainable(model)))
        return ARLLState(model, opt_state, stack(art, groups))

    def __call__(
        self, state: ARLLState, batch: tuple[Int[Array, "b t"], Int[Array, "b t"]]
    ) -> tuple[ARLLState, dict[str, Array]]:
        if batch[0].shape[1] < self.stride:
            raise ValueError(
                f"prototypes learn at every `stride`={self.stride}-th position and the batch is only "
                f"{batch[0].shape[1]} long: choose a smaller `stride`, or longer sequences."
            )
        return _update(self, state, batch)

    def loss(
        self,
        model: GPT2,
        prototypes: FuzzyART,
        batch: tuple[Int[Array, "b t"], Int[Array, "b t"]],
    ) -> tuple[
        Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""], Float[Array, "g b t f"]]
    ]:
        """`(loss, (cross-entropy, distance, coded states))`."""
        tokens, targets = batch
        logits, coded = jax.vmap(lambda one: self._read(model, one), out_axes=(0, 1))(tokens)
        cross_entropy = analytic.cross_entropy(logits, targets)
        flat = coded.reshape(coded.shape[0], -1, coded.shape[-1])
        distance = jnp.mean(jax.vmap(nearest_distance)(prototypes, flat))
        total = cross_entropy + self.strength.astype(distance.dtype) * distance
        return total, (cross_entropy, distance, coded)

    @eqx.filter_jit
    def novelty(
        self, model: GPT2, prototypes: FuzzyART, tokens: Int[Array, "b t"]
    ) -> Float[Array, " b"]:
        """How new every sequence is: 1 - the best match of its states, the mean over groups and positions."""

        def one(sequence):
            return jnp.mean(_novelty(prototypes, self._read(model, sequence)[1]))

        return lax.map(one, tokens)

    def _read(self, model, tokens):
        logits, states = self.tap(model, tokens)
        return logits, complement_code(squash(states))


def _novelty(prototypes: FuzzyART, coded: Float[Array, "g n f"]) -> Float[Array, "g n"]:
    return jax.vmap(lambda art, inputs: jax.vmap(art.novelty)(inputs))(prototypes, coded)


@eqx.filter_jit
def _update(law, state, batch):
    model, prototypes = state.model, state.prototypes
    weights, rest = eqx.partition(model, trainable(model))

    def loss(weights):
        return law.loss(eqx.combine(weights, rest), prototypes, batch)

    (total, (cross_entropy, distance, coded)), grads = jax.value_and_grad(loss, has_aux=True)(
        weights
    )
    with jax.numpy_dtype_promotion("standard"):  # Optax' schedules mix int and float
        updates, opt_state = law.optimiser.update(grads, state.opt_state, weights)
    seen = coded[:, :, law.stride - 1 :: law.stride]
    inputs = seen.reshape(seen.shape[0], -1, seen.shape[-1])
    novelty = _novelty(prototypes, inputs).reshape(seen.shape[:3])
    learned, _ = jax.vmap(lambda art, inputs: lax.scan(FuzzyART.step, art, inputs))(
        prototypes, inputs
    )
    new = ARLLState(eqx.apply_updates(model, updates), opt_state, learned)
    good = jnp.isfinite(optax.tree.norm(grads))  # a category of NaN would stay for ever
    kept = analytic.tree_where(good, new, state)
    metrics = {
        "loss": total,
        "cross_entropy": cross_entropy,
        "distance": distance,
        "novelty": jnp.mean(novelty, axis=(0, 2)),
        "categories": kept.prototypes.count,
        "overflow": kept.prototypes.overflow,
        "updated": good,
    }
    return kept, metrics


def _refuse(value: Any, good: Any, message: str) -> None:
    # NumPy, because under `jit` JAX would trace even what it does with constants.
    if not isinstance(value, Tracer) and not good(np.asarray(value)):
        raise ValueError(f"{message}, got {value}.")
