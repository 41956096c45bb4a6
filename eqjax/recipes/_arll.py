"""A GPT-2 under the adaptive-resonance learning law."""

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from .._checks import check_number
from ..language import batches, split
from ..resonance import ARLL, HeadTap, LayerTap
from ..training import Material, Parts, TrainState, make_step
from ._gpt2 import AbstractGPT2Recipe, gpt2_optimiser
from ._tokens import tokenised


@dataclasses.dataclass(frozen=True)
class ARLLSettings(AbstractGPT2Recipe):
    """Settings of `eqjax gpt2 arll`: hidden states are pulled to prototypes that grow with them."""

    command: ClassVar[str] = "gpt2 arll"
    out: Path = Path("runs/arll")
    strength: float = 0.01
    """λ, of the pull to the nearest prototype; 0 leaves the GPT-2 as it would be."""
    tap: Literal["layers", "heads"] = "layers"
    """Which states meet prototypes: those that leave the blocks, or what every head mixes."""
    stride: int = 8
    """Prototypes learn at every so-many-th position."""
    capacity: int = 64
    """Prototypes in each group, at the most."""
    vigilance: float = 0.85
    """ρ: how well a state must match a prototype to belong to it. Above .76, where independent states match."""
    rate: float = 1.0
    """How fast a prototype follows its states."""

    def __post_init__(self):
        super().__post_init__()
        self.check_above_zero("stride capacity vigilance rate")
        self.check_not_negative("strength")
        check_number("be at most 1", lambda v: v <= 1, vigilance=self.vigilance, rate=self.rate)
        if self.stride > self.length:
            raise ValueError(
                f"`stride` {self.stride} is longer than a window, `length` {self.length}."
            )

    def build(self, material: Material) -> Parts:
        train_ids, validation_ids = split(tokenised(material, self.out), self.length)
        tap = LayerTap() if self.tap == "layers" else HeadTap()
        law = ARLL(strength=jnp.asarray(self.strength), tap=tap, stride=self.stride)
        optimiser = gpt2_optimiser(self)
        prototypes = law.start(
            material.model, capacity=self.capacity, vigilance=self.vigilance, rate=self.rate
        )
        key = jax.random.key(self.seed + 1)
        return Parts(
            make_step(law, optimiser),
            TrainState.create(material.model, optimiser, key=key, carry=prototypes),
            batches(train_ids, length=self.length, batch=self.batch, seed=self.seed),
            train_ids,
            validation_ids,
        )
