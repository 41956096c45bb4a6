"""Building blocks for sequences: recurrent networks, positions, masks, encoder and decoder layers. Plain modules of one
sample, `(length, width)`; `jax.vmap` for a batch."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..analytic import causal_mask
from ..fields import check_heads


class SimpleRNNCell(eqx.Module):
    """`h' = φ(W x + U h + b)` (Elman 1990), a cell like `equinox.nn.GRUCell` and `equinox.nn.LSTMCell`.

    **Arguments:** `input_size`, `hidden_size`: of x and h, at least 1. `activation`: φ, tanh by default. `key`: random key;
    weights are uniform within ±hidden_size^-½.

    **Raises:** `ValueError` for sizes below 1, and for an input or state of another shape.

    ```python
    cell = ej.language.SimpleRNNCell(4, 3, key=key)
    assert cell(state[0], jnp.zeros(3)).shape == (3,)
    ```
    """

    weight_ih: Float[Array, "h i"]
    weight_hh: Float[Array, "h h"]
    bias: Float[Array, " h"]
    activation: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: Callable[[Any], Any] = jnp.tanh,
        key: PRNGKeyArray,
    ):
        for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")
        width = hidden_size**-0.5
        shapes = (hidden_size, input_size), (hidden_size, hidden_size), (hidden_size,)
        self.weight_ih, self.weight_hh, self.bias = (
            jax.random.uniform(k, shape, minval=-width, maxval=width)
            for k, shape in zip(jax.random.split(key, 3), shapes, strict=True)
        )
        self.activation = activation

    @property
    def hidden_size(self) -> int:
        """Number of hidden units."""
        return self.bias.size

    def __call__(
        self, input: Float[Array, " _"], hidden: Float[Array, " _"], *, key: Any = None
    ) -> Float[Array, " h"]:
        for name, value, size in (
            ("input", input, self.weight_ih.shape[1]),
            ("hidden", hidden, self.hidden_size),
        ):
            if value.shape != (size,):
                raise ValueError(f"`{name}` must have the shape {(size,)}, got {value.shape}.")
        return self.activation(self.weight_ih @ input + self.weight_hh @ hidden + self.bias)


class RecurrentLayer(eqx.Module):
    """A cell run along a sequence. The state goes in and comes out as a value, so that a sequence may come in segments.

    **Arguments:** `cell`: callable `(input, state) -> state`: `SimpleRNNCell`, `equinox.nn.GRUCell`, `equinox.nn.LSTMCell`
    (whose state is the pair (h, c)), or your own, with any pytree as its state.

    ```python
    layer = ej.language.RecurrentLayer(ej.language.SimpleRNNCell(4, 3, key=key))
    last, states = layer(state, jnp.zeros(3))
    ```
    """

    cell: Callable[..., Any]

    def initial(self) -> PyTree[Array]:
        """The state zero, of a cell whose state is `(hidden_size,)`, or a pair of them as in an LSTM.

        **Raises:** `ValueError` for a cell without `hidden_size`.
        """
        size = getattr(self.cell, "hidden_size", None)
        if size is None:
            raise ValueError(
                f"`cell` {type(self.cell).__name__} has no `hidden_size` that would tell its first state: give `state`."
            )
        weights = [leaf for leaf in jax.tree.leaves(self.cell) if eqx.is_inexact_array(leaf)]
        zero = jnp.zeros(size, jnp.result_type(*weights) if weights else float)
        return (zero, zero) if isinstance(self.cell, eqx.nn.LSTMCell) else zero

    def __call__(
        self, inputs: PyTree[Array], state: PyTree[Array] | None = None
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """Run along `inputs`, whose leading axis is time.

        **Arguments:** `inputs`: `(t, …)`. `state`: where it begins; `initial()` by default.

        **Returns:** `(last, states)`: the last state, and all of them, with a leading axis of time.
        """

        def step(state, input):
            state = self.cell(input, state)
            return state, state

        return lax.scan(step, self.initial() if state is None else state, inputs)


def sinusoidal_positions(length: int, width: int) -> Float[Array, "length width"]:
    """Positions as sines and cosines of wavelengths from 2π to 10⁴ 2π (Vaswani et al. 2017, section 3.5):

    `P[t, 2i] = sin(t / 10⁴^(2i/width))`, `P[t, 2i+1] = cos(t / 10⁴^(2i/width))`, to be added to the embeddings.

    **Raises:** `ValueError` for an odd width, or numbers below 1.

    ```python
    positions = ej.language.sinusoidal_positions(6, 4)
    assert positions.shape == (6, 4) and positions[0].tolist() == [0, 1, 0, 1]
    ```
    """
    if length < 1 or width < 2 or width % 2:
        raise ValueError(
            f"`length` must be at least 1 and `width` even, got length={length} and width={width}."
        )
    rate = 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    angle = jnp.outer(jnp.arange(length).astype(rate.dtype), rate)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(length, width)


def look_ahead_mask(length: int) -> Bool[Array, "length length"]:
    """True where a query (row) may see a key (column): none that comes later.

    ```python
    assert ej.language.look_ahead_mask(2).tolist() == [[True, False], [True, True]]
    ```
    """
    return causal_mask(length)


def padding_mask(
    tokens: Int[Array, " keys"], *, padding: int = 0, queries: int | None = None
) -> Bool[Array, "queries keys"]:
    """True where the key (column) is no padding; `&` joins it to `look_ahead_mask`.

    A query that sees no key at all, padding before the first token say, receives the mean of all values: ignore its output.

    **Arguments:** `tokens (keys,)`: the token of each key. `padding`: the token that means nothing. `queries`: how many
    rows; by default as many as there are keys.

    ```python
    assert ej.language.padding_mask(jnp.array([3, 0]), queries=1).tolist() == [[True, False]]
    ```
    """
    rows = tokens.size if queries is None else queries
    return jnp.broadcast_to((tokens != padding)[None], (rows, tokens.size))


class PostNorm(eqx.Module):
    """`LayerNorm(z + sublayer(z))`, as published (Vaswani et al. 2017).

    ```python
    after = ej.language.PostNorm(4)
    assert after(state, lambda z: 0 * z).shape == (6, 4)
    ```
    """

    norm: eqx.nn.LayerNorm

    def __init__(self, width: int):
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(self, z: Float[Array, "t c"], sublayer: Callable[[Any], Any]):
        return jax.vmap(self.norm)(z + sublayer(z))


class PreNorm(eqx.Module):
    """`z + sublayer(LayerNorm(z))` (Xiong et al. 2020): learns without warm-up; put one more norm after the last layer.

    ```python
    before = ej.language.PreNorm(4)
    assert jnp.all(before(state, lambda z: 0 * z) == state)
    ```
    """

    norm: eqx.nn.LayerNorm

    def __init__(self, width: int):
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(self, z: Float[Array, "t c"], sublayer: Callable[[Any], Any]):
        return z + sublayer(jax.vmap(self.norm)(z))


class EncoderLayer(eqx.Module):
    """Self-attention, then a two-layer perceptron for each token, each with its residual connection. No dropout.

    **Arguments:**

    - `width` (C), a multiple of `heads`. `hidden`: units of the perceptron, 4 C by default.
    - `residual`: `PostNorm`, as published (Vaswani et al. 2017, section 3.1), or `PreNorm`; a callable `width -> module`
      with `module(z, sublayer)`.
    - `activation`: of the perceptron, ReLU by default. `key`: random key of the weights.

    **Raises:** `ValueError` if the width is no multiple of the heads.

    ```python
    layer = ej.language.EncoderLayer(4, 2, key=key)
    assert jax.eval_shape(layer, state).shape == (6, 4)
    ```
    """

    attention: eqx.nn.MultiheadAttention
    perceptron: eqx.nn.MLP
    residuals: tuple[Any, Any]

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int | None = None,
        residual: Callable[[int], Any] = PostNorm,
        activation: Callable[[Any], Any] = jax.nn.relu,
        key: PRNGKeyArray,
    ):
        a, b = jax.random.split(key)
        self.attention = _attention(width, heads, a)
        self.perceptron = _perceptron(width, hidden, activation, b)
        self.residuals = residual(width), residual(width)

    def __call__(
        self, z: Float[Array, "t c"], mask: Bool[Array, "t t"] | None = None
    ) -> Float[Array, "t c"]:
        """**Arguments:** `z (t, C)`; `mask (t, t)`, true where query (row) sees key (column): `padding_mask(tokens)`."""
        attend, think = self.residuals
        z = attend(z, lambda z: self.attention(z, z, z, mask))
        return think(z, jax.vmap(self.perceptron))


class DecoderLayer(eqx.Module):
    """Masked self-attention, attention to what an encoder found, then a perceptron for each token.

    **Arguments, raises:** as for `EncoderLayer`.

    ```python
    layer = ej.language.DecoderLayer(4, 2, key=key)
    assert jax.eval_shape(layer, state, state[:3]).shape == (6, 4)  # attends to three tokens of an encoder
    ```
    """

    attention: eqx.nn.MultiheadAttention
    cross_attention: eqx.nn.MultiheadAttention
    perceptron: eqx.nn.MLP
    residuals: tuple[Any, Any, Any]

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int | None = None,
        residual: Callable[[int], Any] = PostNorm,
        activation: Callable[[Any], Any] = jax.nn.relu,
        key: PRNGKeyArray,
    ):
        a, b, c = jax.random.split(key, 3)
        self.attention, self.cross_attention = (_attention(width, heads, k) for k in (a, b))
        self.perceptron = _perceptron(width, hidden, activation, c)
        self.residuals = residual(width), residual(width), residual(width)

    def __call__(
        self,
        z: Float[Array, "t c"],
        memory: Float[Array, "s c"],
        mask: Bool[Array, "t t"] | None = None,
        memory_mask: Bool[Array, "t s"] | None = None,
    ) -> Float[Array, "t c"]:
        """**Arguments:** `z (t, C)`; `memory (s, C)`: output of the encoder; `mask (t, t)`: by default the
        `look_ahead_mask`; `memory_mask (t, s)`: `padding_mask(source_tokens, queries=t)`."""
        mask = look_ahead_mask(z.shape[0]) if mask is None else mask
        attend, look, think = self.residuals
        z = attend(z, lambda z: self.attention(z, z, z, mask))
        z = look(z, lambda z: self.cross_attention(z, memory, memory, memory_mask))
        return think(z, jax.vmap(self.perceptron))


def _attention(width: int, heads: int, key: PRNGKeyArray) -> eqx.nn.MultiheadAttention:
    check_heads(width, heads)
    return eqx.nn.MultiheadAttention(heads, width, key=key)


def _perceptron(width, hidden, activation, key) -> eqx.nn.MLP:
    hidden = 4 * width if hidden is None else hidden
    return eqx.nn.MLP(width, width, hidden, depth=1, activation=activation, key=key)
