"""Sampling text from an equilibrium language model: every character is decoded by settling."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..fields import AbstractEquilibriumModel
from ..relaxation import Anderson, equilibrium


class Sample(eqx.Module):
    """`tokens`: the new ones, int32 `(n,)`. `residual`: force residual at which each was read, `(n,)`."""

    tokens: Int[Array, " n"]
    residual: Float[Array, " n"]


def _settle(field, z0, x):
    return equilibrium(field, z0, x, solver=Anderson(rtol=1e-4), throw=False)


@eqx.filter_jit
def generate(
    model: AbstractEquilibriumModel,
    prompt: Int[Array, " p"],
    count: int,
    *,
    length: int,
    key: PRNGKeyArray,
    temperature: float | Array = 1.0,
    settle: Callable = _settle,
    warm: bool = True,
) -> Sample:
    """Continue `prompt` by `count` tokens.

    The last `length` tokens are the window. For every token the window settles, and the logits at its last
    position are sampled.

    **Arguments:**

    - `prompt`: at least one token. `count`: tokens to generate. `length`: the window, at most the model's.
    - `key`: random key. `temperature`: of the sampling; 0 takes the likeliest token.
    - `settle`: callable `(field, z0, x)` to a result with `value` and `residual`, such as the `settle` of the
      estimator that trained the model; by default `equilibrium` by Anderson to 1e-4.
    - `warm`: start from the previous settled state; with False, always from `model.initial`.
    """
    if prompt.shape[0] < 1 or count < 1:
        raise ValueError(
            f"`prompt` and `count` must hold at least one token, got {prompt.shape[0]} and {count}."
        )
    prompt = prompt[-length:].astype(jnp.int32)
    filled = prompt.shape[0]
    window = jnp.zeros(length, jnp.int32).at[:filled].set(prompt)
    state = model.initial(model.encode(window))

    def step(carry, key):
        window, filled, state = carry
        settled = settle(model.field, state, model.encode(window))
        # A state that did not settle to finite numbers must not start the next one.
        good = jnp.isfinite(settled.residual) & warm
        logits = jax.tree.leaves(model.decode(settled.value))[0][filled - 1]
        cold = jnp.asarray(temperature) == 0
        drawn = jax.random.categorical(
            key, logits / jnp.where(cold, 1, temperature).astype(logits.dtype)
        )
        token = jnp.where(cold, jnp.argmax(logits), drawn).astype(jnp.int32)
        full = filled == length
        window = jnp.where(full, jnp.roll(window, -1), window)
        window = window.at[jnp.minimum(filled, length - 1)].set(token)
        fresh = model.initial(model.encode(window))
        state = jax.tree.map(
            lambda z, z0: jnp.where(good & ~full, z, jnp.where(good, jnp.roll(z, -1, axis=0), z0)),
            settled.value,
            fresh,
        )
        return (window, jnp.minimum(filled + 1, length), state), (token, settled.residual)

    with jax.default_matmul_precision("highest"):
        _, (tokens, residual) = jax.lax.scan(
            step, (window, jnp.asarray(filled), state), jax.random.split(key, count)
        )
    return Sample(tokens, residual)
