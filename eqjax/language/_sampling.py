"""Choosing the next token, and the loop that goes on choosing."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, ScalarLike


class Sampler(eqx.Module):
    """Draws a token from logits: `sampler(logits (V,), key) -> token`.

    **Arguments:**

    - `temperature`: logits are divided by it; 0 takes the likeliest token.
    - `top_k`: only the k likeliest tokens (Fan et al. 2018). `top_p`: of these, the fewest likeliest ones that
      together have probability p (Holtzman et al. 2020), at least one. None: no limit.

    Filters apply in this order. All three may be numbers or arrays: changing them does not recompile.
    """

    temperature: Array
    top_k: Array | None
    top_p: Array | None

    def __init__(
        self,
        temperature: ScalarLike = 1.0,
        top_k: ScalarLike | None = None,
        top_p: ScalarLike | None = None,
    ):
        for name, value, good, allowed in (
            ("temperature", temperature, lambda t: t >= 0, "not negative"),
            ("top_k", top_k, lambda k: k >= 1, "at least 1, or None"),
            ("top_p", top_p, lambda p: 0 < p <= 1, "in (0, 1], or None"),
        ):
            if isinstance(value, (int, float)) and not good(value):
                raise ValueError(f"`{name}` must be {allowed}, got {value}.")
        self.temperature = jnp.asarray(temperature, jnp.result_type(float))
        self.top_k = None if top_k is None else jnp.asarray(top_k, jnp.int32)
        self.top_p = None if top_p is None else jnp.asarray(top_p, jnp.result_type(float))

    def filtered(self, logits: Float[Array, " v"]) -> Float[Array, " v"]:
        """The logits over the temperature, `-inf` for tokens that are not drawn."""
        warmth = jnp.where(self.temperature == 0, 1, self.temperature)
        logits = logits / warmth.astype(logits.dtype)
        if self.top_k is not None:
            k = jnp.clip(self.top_k, 1, logits.size)
            logits = jnp.where(logits >= jnp.sort(logits)[-k], logits, -jnp.inf)
        if self.top_p is not None:
            order = jnp.argsort(logits)
            below = jnp.cumsum(jax.nn.softmax(logits[order]))
            kept = (below > 1 - self.top_p.astype(logits.dtype)).at[-1].set(True)
            logits = jnp.where(jnp.zeros_like(kept).at[order].set(kept), logits, -jnp.inf)
        return logits

    def __call__(self, logits: Float[Array, " v"], key: PRNGKeyArray) -> Int[Array, ""]:
        drawn = jax.random.categorical(key, self.filtered(logits))
        return jnp.where(self.temperature == 0, jnp.argmax(logits), drawn).astype(jnp.int32)


class Continuation(eqx.Module):
    """New tokens, int32 `(n,)`, of which the first `length` were written; the rest repeat the (last) stop token."""

    tokens: Int[Array, " n"]
    length: Int[Array, ""]


def autoregress(
    read: Callable[[Int[Array, ""], PyTree], tuple[Float[Array, " v"], PyTree]],
    logits: Float[Array, " v"],
    state: PyTree,
    count: int,
    *,
    sampler: Callable[[Any, Any], Int[Array, ""]],
    key: PRNGKeyArray,
    stop: ScalarLike | Int[Array, " s"] | tuple[int, ...] | None = None,
) -> tuple[Continuation, Float[Array, " v"], PyTree]:
    """Draw a token, read it, and again, in one `while_loop`.

    **Arguments:**

    - `read`: callable `(token, state) -> (logits (V,), state)`: what follows the token, and what is remembered.
    - `logits`, `state`: after the prompt. `count`: most tokens to draw.
    - `sampler`: such as a `Sampler`; token i is drawn with the key `fold_in(key, i)`.
    - `stop`: the token, or tokens, after which to stop; it is written, and read, too.

    **Returns:** the `Continuation`, and the logits and the state after its last token.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    ends = jnp.append(-1, jnp.asarray(() if stop is None else stop, jnp.int32))  # -1: no token

    def running(carry):
        i, token, *_ = carry
        return (i < count) & (jnp.all(token != ends) | (i == 0))

    def step(carry):
        i, _, tokens, logits, state = carry
        token = sampler(logits, jax.random.fold_in(key, i))
        logits, state = read(token, state)
        return i + 1, token, tokens.at[i].set(token), logits, state

    zero = jnp.zeros((), jnp.int32)
    start = zero, zero, jnp.full(count, jnp.maximum(ends[-1], 0)), logits, state
    length, _, tokens, logits, state = jax.lax.while_loop(running, step, start)
    return Continuation(tokens, length), logits, state
