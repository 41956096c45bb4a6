"""Adaptive resonance in continuous time."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ..fields import AbstractForceField, hyperparameter


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
        refuse_unless(self.tau, lambda v: v > 0, "`tau` must be above 0")
        refuse_unless(self.pull, lambda v: v >= 0, "`pull` must be at least 0")

    def __call__(self, t: Any, z: tuple[Array, Array], x: Any = None) -> tuple[Array, Array]:
        w, h = z
        tau, pull = self.tau.astype(w.dtype), self.pull.astype(w.dtype)
        return (jnp.minimum(h, w) - w) / tau, pull * (w - h) / tau


def refuse_unless(value: Any, good: Any, message: str) -> None:
    """`ValueError` for a value, known before tracing, that is not `good`."""
    # NumPy, because under `jit` JAX would trace even what it does with constants.
    if not isinstance(value, Tracer) and not good(np.asarray(value)):
        raise ValueError(f"{message}, got {value}.")
