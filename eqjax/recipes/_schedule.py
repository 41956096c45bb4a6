"""How every recipe learns: AdamW with warm-up, cosine decay and clipping."""

from typing import Any

import optax


def warmup_cosine(config: Any) -> optax.Schedule:
    """Linear warm-up to the `learning_rate` of a configuration, then a cosine down to a tenth of it."""
    warmup, peak = min(config.warmup, config.steps - 1), config.learning_rate
    start = 0.0 if warmup else peak
    return optax.warmup_cosine_decay_schedule(start, peak, warmup, config.steps, 0.1 * peak)


def build_optimiser(config: Any, **settings: Any) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping; `settings`: more of `optax.adamw`'s."""
    adamw = optax.adamw(warmup_cosine(config), weight_decay=config.weight_decay, **settings)
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw)
