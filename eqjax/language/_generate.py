"""Text from a model: an equilibrium model settles for every token, a GPT-2 reads on in its cache."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike

from ..fields import AbstractEquilibriumModel
from ..relaxation import Anderson, equilibrium
from ._attend import Attend
from ._gpt2 import GPT2, known
from ._sampling import Continuation, Sampler, autoregress


@functools.singledispatch
def generate(model: Any, prompt: Any, count: int, **settings: Any) -> Any:
    """Continue `prompt` by `count` tokens.

    Of an equilibrium model, `generate(model, prompt, count, *, length, key, temperature=1.0, settle=…, warm=True)`
    returns a `SettledContinuation`. The last `length` tokens are the window; for every token the window settles, and the logits
    at its last position are sampled.

    - `prompt`: at least one token. `count`: tokens to generate. `length`: the window, at most the model's.
    - `key`: random key. `temperature`: of the sampling; 0 takes the likeliest token.
    - `settle`: callable `(field, z0, x)` to a result with `value` and `residual`, such as the `settle` of the
      estimator that trained the model; by default `equilibrium` by Anderson to 1e-4.
    - `warm`: start from the previous settled state; with False, always from `model.initial`.

    Of a `GPT2`, `generate(model, prompt, count, *, key, temperature=1.0, top_k=None, top_p=None, stop=None, mask=None,
    cache=True, attend=None)` returns a `Continuation`.

    - `prompt (p,)`, `count`, `key`: as above. `temperature`, `top_k`, `top_p`: as in `Sampler`.
    - `stop`: the token, or tokens, after which to stop; by default the `eos_token_id` of the model's config, if it has
      one. `()` never stops.
    - `mask (p,)`: false for padding; a batch of unequal prompts is padded on the left and given to `jax.vmap`.
    - `cache`: keep the keys and values of the tokens read, so that every token is read once; prompt and
      continuation must fit into the model's context. With False the last n_positions tokens are read anew for
      every token, which never ends; the tokens are the same as long as both fit.
    - `attend`: as in `GPT2.run`, with no extra.

    Of a `MemoryGPT2` it is the `Continuation` of `reply`, whose settings it takes, after `memory` (empty by default).
    """
    raise ValueError(
        f"`model` must be a GPT2, a MemoryGPT2 or an equilibrium model, got a {type(model).__name__}."
    )


def _check(prompt: Int[Array, " p"], count: int) -> None:
    if prompt.shape[0] < 1 or count < 1:
        raise ValueError(
            f"`prompt` and `count` must hold at least one token, got {prompt.shape[0]} and {count}."
        )


class SettledContinuation(eqx.Module):
    """`tokens`: the new ones, int32 `(n,)`. `residual`: force residual at which each was read, `(n,)`."""

    tokens: Int[Array, " n"]
    residual: Float[Array, " n"]


def _settle(field, z0, x):
    return equilibrium(field, z0, x, solver=Anderson(rtol=1e-4), throw=False)


@generate.register(AbstractEquilibriumModel)
@eqx.filter_jit
def _settled(
    model: AbstractEquilibriumModel,
    prompt: Int[Array, " p"],
    count: int,
    *,
    length: int,
    key: PRNGKeyArray,
    temperature: float | Array = 1.0,
    settle: Callable = _settle,
    warm: bool = True,
) -> SettledContinuation:
    _check(prompt, count)
    sampler = Sampler(temperature)
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
        token = sampler(logits, key)
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
    return SettledContinuation(tokens, residual)


@generate.register(GPT2)
def _continued(
    model: GPT2,
    prompt: Int[Array, " p"],
    count: int,
    *,
    key: PRNGKeyArray,
    temperature: ScalarLike = 1.0,
    top_k: ScalarLike | None = None,
    top_p: ScalarLike | None = None,
    stop: ScalarLike | Int[Array, " s"] | tuple[int, ...] | None = None,
    mask: Bool[Array, " p"] | None = None,
    cache: bool = True,
    attend: Attend | None = None,
) -> Continuation:
    _check(prompt, count)
    limit = model.config.n_positions
    if cache and prompt.shape[0] + count > limit:
        raise ValueError(
            f"`prompt` and `count` make {prompt.shape[0]} + {count} tokens, but the model's context is "
            f"n_positions={limit}. Crop the prompt or ask for fewer tokens; or `cache=False` slides the window."
        )
    valid = jnp.ones(prompt.shape, bool) if mask is None else mask
    read_on = _cached if cache else _reread
    stop = jnp.asarray(model.config.ends if stop is None else stop, jnp.int32)
    prompt, sampler = known(model, prompt, valid), Sampler(temperature, top_k, top_p)
    return read_on(model, prompt, valid, count, sampler, key, stop, attend)


@eqx.filter_jit
def _cached(model, prompt, valid, count, sampler, key, stop, attend):
    def read(token, cache):
        logits, cache = model.extend(token[None], cache, attend=attend)
        return logits[-1], cache

    empty = model.cache(prompt.size + count)
    logits, cache = model.extend(prompt, empty, mask=valid, attend=attend)
    return autoregress(read, logits[-1], cache, count, sampler=sampler, key=key, stop=stop)[0]


@eqx.filter_jit
def _reread(model, prompt, valid, count, sampler, key, stop, attend):
    """Every token moves a window by one; padding on the left fills it up."""
    size = min(prompt.size + count, model.config.n_positions)
    before = max(size - prompt.size, 0)
    prompt, valid = (jnp.pad(a, (before, 0))[-size:] for a in (prompt, valid))

    def read(token, state):
        window, valid = state
        window = jnp.append(window[1:], token)
        valid = jnp.append(valid[1:], True)
        return model(window, mask=valid, attend=attend)[-1], (window, valid)

    logits = model(prompt, mask=valid, attend=attend)[-1]
    state = prompt, valid
    return autoregress(read, logits, state, count, sampler=sampler, key=key, stop=stop)[0]
