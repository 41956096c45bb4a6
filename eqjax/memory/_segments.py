"""Texts longer than a model's context: training over segments, and answering with a memory."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike

from .._checks import check_count, check_key, check_kind, check_memory, check_tokens
from ..analytic import cross_entropy
from ..language import Continuation, Sampler, autoregress, generate, known
from ._memory import Memory
from ._memory_gpt2 import MemoryGPT2


def segment_loss(
    model: MemoryGPT2,
    tokens: Int[Array, "n t"],
    targets: Int[Array, "n t"],
    memory: Memory | None = None,
    *,
    mask: Bool[Array, "n t"] | None = None,
    weight: Float[Array, "n t"] | None = None,
) -> tuple[Float[Array, ""], Memory]:
    """Cross-entropy in nats per token of ONE text that is read in n segments, with the memory carried on between them.

    Under differentiation every segment is computed anew on the way back, so that the cost in memory is that of one
    segment and n memories (Chen et al. 2016). `tiles` cuts a text into segments.

    **Arguments:** `tokens`, `targets (n, t)`: the segments, and the token that follows each token. `memory`: to begin with,
    an empty one by default. `mask (n, t)`: false for padding. `weight (n, t)`: of each token's loss, by default 1
    where there is no padding.

    **Returns:** the weighted mean loss, and the memory after the last segment.

    ```python
    segments = jnp.zeros((2, 4), int)
    loss, memory = ej.memory.segment_loss(remembering, segments, segments)
    assert memory.tokens == 8
    ```
    """
    memory = model.memory() if memory is None else memory
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask

    @jax.checkpoint
    def read(memory, inputs):
        tokens, targets, mask, weight = inputs
        logits, memory = model(tokens, memory, mask=mask)
        losses = jnp.where(mask, jax.vmap(cross_entropy)(logits, targets), 0)
        weight = mask if weight is None else weight
        return memory, (jnp.sum(losses * weight.astype(losses.dtype)), jnp.sum(weight))

    memory, (losses, weights) = lax.scan(read, memory, (tokens, targets, mask, weight))
    return jnp.sum(losses) / jnp.sum(weights).astype(losses.dtype), memory


def reply(
    model: MemoryGPT2,
    prompt: Int[Array, " p"],
    memory: Memory,
    count: int,
    *,
    key: PRNGKeyArray,
    stop: ScalarLike | Int[Array, " s"] | tuple[int, ...] | None = None,
    mask: Bool[Array, " p"] | None = None,
    **sampling: Any,
) -> tuple[Continuation, Memory]:
    """Answer `prompt` by `count` tokens, with all that is in `memory`; what was read and said is remembered.

    Prompt and answer may be longer than the context: whenever n_positions tokens are read, they go to the memory and
    the next segment begins. The answer ends its segment.

    **Arguments:** `prompt (p,)`, at least one token; `memory`: such as `model.memory()`; `mask (p,)`: false for padding, which
    stands on the left; the others, `temperature`, `top_k` and `top_p` among them, as in `generate`.

    **Returns:** the `Continuation`, and the memory to answer the next prompt with.

    ```python
    memory = remembering.memory()
    answer = lambda prompt: ej.memory.reply(remembering, prompt, memory, 2, temperature=0.0, key=key)
    assert jax.eval_shape(answer, tokens)[0].tokens.shape == (2,)
    ```
    """
    check_tokens(prompt=prompt)
    check_count(count=count)
    check_memory(f"`count` {count}: a text of so many tokens", 100.0 * count)
    check_key(key=key)
    check_kind(Memory, "a memory, such as `model.memory()`", memory=memory)
    if prompt.shape[0] < 1:
        raise ValueError(
            "`prompt` must hold at least one token; to begin with nothing, give a start token."
        )
    mask = jnp.ones(prompt.shape, bool) if mask is None else mask
    stop = jnp.asarray(model.gpt2.config.ends if stop is None else stop, jnp.int32)
    sampler, prompt = Sampler(**sampling), known(model.gpt2, prompt, mask)
    return _reply(model, prompt, mask, memory, count, sampler, key, stop)


@eqx.filter_jit
def _reply(model, prompt, mask, memory, count, sampler, key, stop):
    limit = model.gpt2.config.n_positions
    whole = (prompt.size - 1) // limit * limit  # the answer goes on with at least one token
    segments = prompt[:whole].reshape(-1, limit), mask[:whole].reshape(-1, limit)
    read_all = lambda memory, part: (model(part[0], memory, mask=part[1])[1], None)
    memory, _ = lax.scan(read_all, memory, segments)
    logits, segment = model.extend(prompt[whole:], model.open(memory), mask=mask[whole:])

    def read(token, segment):
        turn = lambda segment: model.open(model.close(segment))
        segment = lax.cond(segment.cache.length == limit, turn, lambda same: same, segment)
        logits, segment = model.extend(token[None], segment)
        return logits[-1], segment

    how = {"sampler": sampler, "key": key, "stop": stop}
    continuation, _, segment = autoregress(read, logits[-1], segment, count, **how)
    return continuation, model.close(segment)


@generate.register(MemoryGPT2)
def _(model: MemoryGPT2, prompt: Any, count: int, *, memory: Memory | None = None, **settings: Any):
    memory = model.memory() if memory is None else memory
    return reply(model, prompt, memory, count, **settings)[0]
