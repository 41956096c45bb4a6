"""Text from a model: how the next token is chosen; an equilibrium model settles for each, a GPT-2 reads on in its cache."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, ScalarLike

from .._checks import (
    check_callable,
    check_count,
    check_key,
    check_memory,
    check_not_negative,
    check_number,
    check_tokens,
    given,
)
from ..fields import AbstractEquilibriumModel, written
from ..relaxation import Anderson, TokenOrder, check_causal, equilibrium, settled_after
from ._attend import Attend
from ._gpt2 import GPT2, known


class Sampler(eqx.Module):
    """Draws a token from logits: `sampler(logits (V,), key) -> token`.

    **Arguments:**

    - `temperature`: logits are divided by it; 0 takes the likeliest token.
    - `top_k`: only the k likeliest tokens (Fan et al. 2018). `top_p`: of these, the fewest likeliest ones that
      together have probability p (Holtzman et al. 2020), at least one. None: no limit.

    Filters apply in this order. All three may be numbers or arrays: changing them does not recompile.

    ```python
    greedy = ej.language.Sampler(temperature=0.0, top_k=4)
    assert greedy(jnp.arange(8.0), key) == 7
    ```
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
        check_not_negative(temperature=temperature)
        check_count(**given(top_k=top_k))
        check_number("be in (0, 1]", lambda p: 0 < p <= 1, **given(top_p=top_p))
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

    ```python
    count = lambda token, state: (jax.nn.one_hot(token + 1, 8), state)  # after 2 comes 3
    greedy = ej.language.Sampler(temperature=0.0)
    found, _, _ = ej.language.autoregress(count, jnp.eye(8)[2], (), 3, sampler=greedy, key=key)
    assert found.tokens.tolist() == [2, 3, 4]
    ```
    """
    check_count(count=count)
    check_key(key=key)
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


@functools.singledispatch
def generate(model: Any, prompt: Any, count: int, **settings: Any) -> Any:
    """Continue `prompt` by `count` tokens.

    Of an equilibrium model, `generate(model, prompt, count, *, length, key, temperature=1.0, settle=…, warm=True)`
    returns a `SettledContinuation`. The last `length` tokens are the window; for every token the window settles, and the logits
    at its last position are sampled. With `settle` a `TokenOrder` only the new token settles, for as long as there is room in
    the window: the text is the same, since in a causal field the earlier ones do not feel it.

    - `prompt`: at least one token. `count`: tokens to generate. `length`: the window, at most the model's.
    - `key`: random key. `temperature`: of the sampling; 0 takes the likeliest token.
    - `settle`: a `TokenOrder`, for a causal field; or a callable `(field, z0, x)` to a result with `value` and `residual`,
      such as the `settle` of the estimator that trained the model; by default `equilibrium` by Anderson to 1e-4.
    - `warm`: start from the previous settled state; with False, and in order, always from `model.initial`.

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

    ```python
    found = ej.language.generate(gpt2, tokens[:2], 3, key=key, temperature=0.0)
    assert found.tokens.shape == (3,) and found.length == 3
    ```
    """
    raise ValueError(
        f"`model` must be a GPT2, a MemoryGPT2 or an equilibrium model, got a {type(model).__name__}."
    )


def _check(prompt: Int[Array, " p"], count: int, key: PRNGKeyArray) -> None:
    check_tokens(prompt=prompt)
    check_count(0, count=count)
    check_key(key=key)
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
def _settled(
    model: AbstractEquilibriumModel,
    prompt: Int[Array, " p"],
    count: int,
    *,
    length: int,
    key: PRNGKeyArray,
    temperature: float | Array = 1.0,
    settle: Callable | TokenOrder = _settle,
    warm: bool = True,
) -> SettledContinuation:
    _check(prompt, count, key)
    check_count(length=length)
    in_order = isinstance(settle, TokenOrder)
    if in_order:
        check_causal(model.field, model.initial(model.encode(prompt[-length:])))
    else:
        check_callable("settle(field, z0, x)", settle=settle)
    check_memory(f"`count` {count}: a text of so many tokens", 100.0 * count)
    model.encode(
        prompt[-length:]
    )  # refuses tokens that it does not know, which a compiled program cannot
    prompt, sampler = prompt[-length:].astype(jnp.int32), Sampler(temperature)
    run = _token_by_token if in_order else _window_by_window
    return run(model, prompt, jax.random.split(key, count), length, sampler, settle, warm)


@eqx.filter_jit
def _token_by_token(model, prompt, keys, length, sampler, order, warm):
    filled, field = prompt.shape[0], model.field
    window = jnp.zeros(length, jnp.int32).at[:filled].set(prompt)
    x = model.encode(window)
    z0 = model.initial(x)
    room = min(keys.shape[0], length - filled)
    row = lambda leaf, place: jax.lax.dynamic_slice_in_dim(leaf, place, 1, 0)

    def step(carry, inputs):
        window, memory, logits, residual = carry
        place, key = inputs
        token = sampler(logits, key)
        window = window.at[place].set(token)
        x = model.encode(window)
        at = (row(model.initial(x), place), row(x, place), memory, place)
        z, left = settled_after(field, *at, order)
        memory = written(memory, field.remember(z), place)
        return (window, memory, model.decode(z)[0], left), (token, residual)

    with jax.default_matmul_precision("highest"):
        found = equilibrium(field, z0[:filled], x[:filled], solver=order, throw=False)
        blank = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
        memory = jax.tree.map(blank, jax.eval_shape(field.remember, z0))
        memory = written(memory, field.remember(found.value), 0)
        logits, left = model.decode(found.value)[-1], found.stats["token_residuals"][-1]
        inputs = jnp.arange(filled, filled + room), keys[:room]
        (window, *_), told = jax.lax.scan(step, (window, memory, logits, left), inputs)
    if room == keys.shape[0]:
        return SettledContinuation(*told)
    # The window is full: it slides, every token gets another position, and all settle anew.
    settle = lambda field, z0, x: equilibrium(field, z0, x, solver=order, throw=False)
    rest = _window_by_window(model, window, keys[room:], length, sampler, settle, False)
    first = SettledContinuation(*told)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rest)


@eqx.filter_jit
def _window_by_window(model, prompt, keys, length, sampler, settle, warm):
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
        moved = lambda z: jnp.where(full, jnp.roll(z, -1, axis=0), z)
        chosen = lambda z, z0: jnp.where(good, moved(z), z0)
        state = jax.tree.map(chosen, settled.value, fresh)
        return (window, jnp.minimum(filled + 1, length), state), (token, settled.residual)

    start = window, jnp.asarray(filled), state
    with jax.default_matmul_precision("highest"):
        _, told = jax.lax.scan(step, start, keys)
    return SettledContinuation(*told)


@generate.register(GPT2)
def _continued(
    model: GPT2,
    prompt: Int[Array, " p"],
    count: int,
    *,
    key: PRNGKeyArray,
    stop: ScalarLike | Int[Array, " s"] | tuple[int, ...] | None = None,
    mask: Bool[Array, " p"] | None = None,
    cache: bool = True,
    attend: Attend | None = None,
    **sampling: Any,
) -> Continuation:
    _check(prompt, count, key)
    check_memory(f"`count` {count}: a text of so many tokens", 100.0 * count)
    limit = model.config.n_positions
    if cache and prompt.shape[0] + count > limit:
        raise ValueError(
            f"`prompt` and `count` make {prompt.shape[0]} + {count} tokens, but the model's context is "
            f"n_positions={limit}. Crop the prompt or ask for fewer tokens; or `cache=False` slides the window."
        )
    valid = jnp.ones(prompt.shape, bool) if mask is None else mask
    read_on = _cached if cache else _reread
    stop = jnp.asarray(model.config.ends if stop is None else stop, jnp.int32)
    prompt, sampler = known(model, prompt, valid), Sampler(**sampling)
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
        window, valid = jnp.append(window[1:], token), jnp.append(valid[1:], True)
        return model(window, mask=valid, attend=attend)[-1], (window, valid)

    logits, state = model(prompt, mask=valid, attend=attend)[-1], (prompt, valid)
    return autoregress(read, logits, state, count, sampler=sampler, key=key, stop=stop)[0]
