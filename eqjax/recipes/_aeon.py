"""AEON: a GPT-2 with internal recurrence attention, under a controller that listens to its loss."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._checks import check_between
from ..language import Streams, split
from ..resonance import AeonBackprop, AeonGPT2, LossController, resonant_adamw
from ..training import Evaluation, Material, Parts, Run, TrainState, make_step
from ._gpt2 import AbstractGPT2Recipe, matrices
from ._schedule import warmup_cosine
from ._tokens import tokenised


@dataclasses.dataclass(frozen=True)
class AeonSettings(AbstractGPT2Recipe):
    """Settings of `eqjax gpt2 aeon`: every row of a batch goes on reading where it stopped."""

    command: ClassVar[str] = "gpt2 aeon"
    out: Path = Path("runs/aeon")
    recurrence: bool = True
    """Whether the recurrence r biases keys and values."""
    resonance: bool = True
    """Whether the resonance memory m does."""
    rate_gain: float = 0.1
    """g_α: how far the learning rate follows the loss; 0 leaves it to its schedule."""
    momentum_gain: float = 0.03
    """g_μ: how far the momentum follows the loss, the other way."""
    noise: float = 0.02
    """σ₀: noise on the updates, relative to the parameters."""
    noise_gain: float = 0.5
    """g_σ: how far the noise follows the loss."""
    coupling: float = 0.0
    """K_r: how much the size of r brakes, from -1 to 1."""

    def __post_init__(self):
        super().__post_init__()
        self.check_not_negative("rate_gain momentum_gain noise noise_gain")
        check_between(-1, 1, coupling=self.coupling)

    def build(self, material: Material) -> Parts:
        train_ids, validation_ids = split(tokenised(material, self.out), self.length)
        key, weights, noise = jax.random.split(jax.random.key(self.seed + 1), 3)
        signals = {"recurrence": self.recurrence, "resonance": self.resonance}
        model = AeonGPT2(material.model, key=weights, **signals)
        controller = LossController(
            rate=self.rate_gain,
            momentum_gain=self.momentum_gain,
            noise=self.noise,
            noise_gain=self.noise_gain,
            coupling=self.coupling,
        )
        decay = {"weight_decay": self.weight_decay, "mask": matrices}
        adamw = resonant_adamw(warmup_cosine(self), controller, key=noise, **decay)
        optimiser = optax.chain(optax.clip_by_global_norm(self.clip), adamw)
        aeon = AeonBackprop()
        carry = aeon.start(model, self.batch)
        return Parts(
            make_step(aeon, optimiser),
            TrainState.create(model, optimiser, key=key, carry=carry),
            Streams(train_ids, length=self.length, batch=self.batch, seed=self.seed),
            train_ids,
            validation_ids,
        )

    def evaluate(self, run: Run, model: Any, ids: np.ndarray) -> Evaluation:
        """Read in streams, each from an empty state."""
        rows = max(1, min(self.batch, self.evaluate_windows))
        count = max(1, min(self.evaluate_windows // rows, (len(ids) - 1) // self.length))
        stream = Streams(ids, length=self.length, batch=rows, seed=0)
        windows = [next(stream) for _ in range(count)]
        inputs, targets = (jnp.asarray(np.stack(part)) for part in zip(*windows, strict=True))
        return Evaluation(float(_entropy(model, inputs, targets)), int(targets.size))


@eqx.filter_jit
def _entropy(model, inputs, targets):
    def read(state, window):
        losses, state = jax.vmap(model.losses)(*window, state)
        return state, jnp.mean(losses)

    start = AeonBackprop().start(model, inputs.shape[1])
    return jnp.mean(jax.lax.scan(read, start, (inputs, targets))[1])
