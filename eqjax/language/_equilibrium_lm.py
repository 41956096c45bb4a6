"""An equilibrium transformer as a next-token language model."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int, PRNGKeyArray

from .. import analytic
from .._checks import (
    check_count,
    check_finite_number,
    check_key,
    check_memory,
    check_positive,
    check_tokens,
)
from ..fields import (
    AbstractEquilibriumModel,
    AbstractForceField,
    EquilibriumModel,
    ThickBlock,
    check_heads,
)


class Embedding(eqx.Module):
    """Learned token and position embeddings, `x_t = tok[u_t] + pos[t]`, for at most `length` tokens.

    ```python
    embed = ej.language.Embedding(vocabulary=8, length=6, width=4, key=key)
    assert embed(tokens).shape == (6, 4)
    ```
    """

    tokens: Float[Array, "v c"]
    positions: Float[Array, "t c"]

    def __init__(
        self, vocabulary: int, length: int, width: int, *, scale: float = 6.0, key: PRNGKeyArray
    ):
        check_count(vocabulary=vocabulary, length=length, width=width)
        check_finite_number(scale=scale)
        check_key(key=key)
        size = 4.0 * (vocabulary + length) * width
        check_memory(
            f"`vocabulary` {vocabulary}, `length` {length}, `width` {width}: a table", size
        )
        k1, k2 = jax.random.split(key)
        self.tokens = scale * jax.random.normal(k1, (vocabulary, width))
        self.positions = 0.5 * scale * jax.random.normal(k2, (length, width))

    def __call__(self, inputs: Int[Array, " t"]) -> Float[Array, "t c"]:
        check_tokens(inputs=inputs)
        if inputs.shape[0] > self.positions.shape[0]:
            raise ValueError(
                f"`inputs`: the model reads at most {self.positions.shape[0]} tokens, got {inputs.shape[0]}: "
                "crop the input to its last tokens."
            )
        analytic.check_ids("inputs", inputs, self.tokens.shape[0])
        return analytic.rows(self.tokens, inputs) + self.positions[: inputs.shape[0]]


class Readout(eqx.Module):
    """Logits `z W_h`.

    ```python
    read = ej.language.Readout(width=4, vocabulary=8, key=key)
    assert read(state).shape == (6, 8)
    ```
    """

    weight: Float[Array, "c v"]

    def __init__(self, width: int, vocabulary: int, *, key: PRNGKeyArray):
        self.weight = 0.02 * jax.random.normal(key, (width, vocabulary))

    def __call__(self, z: Inexact[Array, "t c"]) -> Inexact[Array, "t v"]:
        return analytic.matmul(z, self.weight)


def equilibrium_lm(
    vocabulary: int,
    length: int,
    width: int,
    heads: int,
    *,
    block: Callable[..., AbstractForceField] = ThickBlock,
    embedding_scale: float = 6.0,
    key: PRNGKeyArray,
    **settings,
) -> EquilibriumModel:
    """A causal language model: embeddings clamp an equilibrium block, whose settled state is read out.

    **Arguments:**

    - `vocabulary`: tokens V. `length`: longest input T. `width`: channels C. `heads`.
    - `block`: the class of the field; it must be causal. `settings`: further arguments of the block.
    - `embedding_scale`: standard deviation of the initial token embeddings. The settled state inherits it and
      the layer norms divide by it, so a larger scale leaves the leak more room: on windows of 64 characters
      a block that begins at 1 has lost most fixed points after 600 to 900 steps of training, at 3 to 10 it
      keeps them for 1200 (see `docs/findings/embedding-scale.md`).
    - `key`: random key of the weights.

    **Returns:** an `EquilibriumModel`: int tokens `(t,)` in, logits `(t, V)` out.

    ```python
    model = ej.language.equilibrium_lm(vocabulary=8, length=6, width=4, heads=2, key=key)
    assert model.decode(model.encode(tokens)).shape == (6, 8)
    ```
    """
    check_count(vocabulary=vocabulary, length=length)
    check_heads(width, heads)
    check_positive(embedding_scale=embedding_scale)
    check_key(key=key)
    if not getattr(block, "causal", False):
        raise ValueError(
            f"`block={getattr(block, '__name__', block)}` is not causal: its symmetric attention lets a token feel the ones after "
            "it, so a next-token loss would be met by looking at the answer. Use ThickBlock, RealBlock or "
            "MonotoneBlock."
        )
    k1, k2, k3 = jax.random.split(key, 3)
    return EquilibriumModel(
        encoder=Embedding(vocabulary, length, width, scale=embedding_scale, key=k1),
        field=block(width, heads, key=k2, **settings),
        decoder=Readout(width, vocabulary, key=k3),
    )


def without_attention(model: AbstractEquilibriumModel) -> AbstractEquilibriumModel:
    """The same model with α = 0: what is left when no token sees another.

    ```python
    model = ej.language.equilibrium_lm(vocabulary=8, length=6, width=4, heads=2, key=key)
    assert ej.language.without_attention(model).field.attention_gain == 0
    ```
    """
    gain = model.field.attention_gain  # pyright: ignore[reportAttributeAccessIssue]
    return eqx.tree_at(lambda m: m.field.attention_gain, model, jnp.zeros_like(gain))
