"""How the learning rate of every recipe goes."""

from typing import Any

import optax


def warmup_cosine(config: Any) -> optax.Schedule:
    """Linear warm-up to the `learning_rate` of a configuration, then a cosine down to a tenth of it."""
    warmup = min(config.warmup, config.steps - 1)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.learning_rate,
        config.learning_rate,
        warmup,
        config.steps,
        0.1 * config.learning_rate,
    )
