"""The energy transformer for next-token prediction: attention and memory as one associative memory."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int, PRNGKeyArray, PyTree, ScalarLike

from .. import analytic
from .._checks import check_flags, check_positive, refuse
from ._associative import AssociativeMemory, Polynomial, Quadratic, Softmax
from ._base import AbstractForceField, hyperparameter, scalar
from ._model import AbstractEquilibriumModel
from ._parts import normal


class Blocks(eqx.Module):
    """`Σ_k L_k(z_k)` over consecutive blocks z_k: each kind of neuron has its own Lagrangian.

    **Arguments:** `lagrangians`: callables `(n,) -> ()`; `sizes`: the n of each.

    ```python
    both = ej.fields.Blocks((ej.fields.Quadratic(), ej.fields.Quadratic()), (1, 3))
    assert both(x) == ej.fields.Quadratic()(x)
    ```
    """

    lagrangians: tuple[Callable[[Any], Any], ...]
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        if len(self.lagrangians) != len(self.sizes) or min(self.sizes, default=0) < 1:
            raise ValueError(
                f"`sizes` must give each of the {len(self.lagrangians)} lagrangians at least one neuron, got {self.sizes}."
            )

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        if z.size != sum(self.sizes):
            raise ValueError(f"There are {sum(self.sizes)} neurons in the blocks, got {z.size}.")
        ends = [sum(self.sizes[: k + 1]) for k in range(len(self.sizes))]
        parts = zip(self.lagrangians, self.sizes, ends, strict=True)
        return jnp.sum(
            jnp.stack([lagrangian(z[end - size : end]) for lagrangian, size, end in parts])
        )


class Context(eqx.Module):
    """Room for L embedded tokens, one to an attention neuron; the shape never changes, so nothing is compiled again.

    `rows (L, D)`: the embeddings. `written`: how many tokens were written so far; token t sits in row `t mod L`.

    ```python
    room = ej.fields.Context(rows=jnp.zeros((8, 2)), written=jnp.asarray(0))
    assert room.rows.shape == (8, 2)
    ```
    """

    rows: Float[Array, "L D"]
    written: Int[Array, ""]

    @classmethod
    def of(cls, rows: Float[Array, "l D"], room: int) -> "Context":
        """The context after l ≥ 1 embedded tokens, of which it holds the last `room`."""
        written, width = rows.shape
        if room < 1 or written < 1:
            raise ValueError(
                f"`room` and the number of tokens must be at least 1, got {room} and {written}."
            )
        kept = rows[-room:]
        places = (written - kept.shape[0] + jnp.arange(kept.shape[0])) % room
        empty = jnp.zeros((room, width), rows.dtype)
        return cls(empty.at[places].set(kept), jnp.asarray(written, jnp.int32))

    @property
    def used(self) -> Bool[Array, " L"]:
        """Which of the attention neurons take part."""
        return jnp.arange(self.rows.shape[0], dtype=self.written.dtype) < self.written

    def append(self, row: Float[Array, " D"]) -> "Context":
        """With one more token: a neuron that was idle is connected or, once there is none, that of the oldest token is
        reprogrammed, so that the window slides."""
        place = self.written % self.rows.shape[0]
        return Context(self.rows.at[place].set(row), self.written + 1)


class Attending(eqx.Module):
    """`(1/β) log Σ exp(β z)` over the neurons in use: the activation of the others is 0. At least one must be."""

    beta: Float[Array, ""]
    used: Bool[Array, " n"]

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        smooth = analytic.logsumexp(analytic.scale(z, self.beta), self.used)
        return analytic.scale(smooth, 1 / self.beta)


class EnergyTransformer(AbstractForceField):
    """The energy transformer in its causal next-token form (Hoover et al. 2023; as a circuit, Bacvanski et al. 2025).

    The visible neurons v `(D,)` are the embedding of the token to come; the hidden ones are L attention neurons, one for
    each token of the context, whose patterns are the context's embeddings, and M memory neurons, whose patterns ξ are
    learned. It is the `AssociativeMemory` of both, with the energy

    `Σ g (v - a) - L_v + Σ f (h - b) - L_attn - L_memory - fᵀ ξ g`, `L_attn = β⁻¹ log Σ exp β h`.

    The input x is the embedded context: an array `(l, D)`, l ≤ L, or a `Context` with room for l. The state is `(v, h)`
    with h `(l + M,)`. A token is *appended* as one more row of x and one more attention neuron; a window *slides* when
    the row of its oldest token is overwritten: the order of the rows means nothing to the energy but for the biases,
    which stay with the neurons.

    **Arguments:**

    - `width`: D. `memories`: M. `context`: L, the most tokens that have a bias of their own.
    - `beta`: β of the attention. `visible`, `memory`: Lagrangians. As published they are quadratic and
      `Polynomial(2)`, and that energy has no lower bound once the patterns are large; a bounded activation of the
      visible neurons (`LogCosh()`: rails; `Spherical()`: a layer norm) bounds every trajectory.
    - `visible_time`, `hidden_time`: τ. `key`: random key of the patterns, which are drawn non-negative.

    ```python
    memory = ej.fields.EnergyTransformer(2, 3, context=2, key=key)
    v, h = memory(0.0, (two, jnp.zeros(5)), patterns)  # two tokens to attend to, and three memories
    assert h.shape == (5,)
    ```
    """

    patterns: Float[Array, "M D"]
    visible_bias: Float[Array, " D"]
    attention_bias: Float[Array, " L"]
    memory_bias: Float[Array, " M"]
    visible: Callable[[Any], Any]
    memory: Callable[[Any], Any]
    beta: Float[Array, ""] = hyperparameter()
    visible_time: Float[Array, ""] = hyperparameter()
    hidden_time: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        width: int,
        memories: int,
        context: int,
        *,
        beta: float = 0.1,
        visible: Callable[[Any], Any] = Quadratic(),
        memory: Callable[[Any], Any] = Polynomial(2),
        visible_time: float = 0.1,
        hidden_time: float = 0.01,
        key: PRNGKeyArray,
    ):
        sizes = {"width": width, "memories": memories, "context": context}
        check_positive(**sizes, beta=beta, visible_time=visible_time, hidden_time=hidden_time)
        self.patterns = jnp.abs(normal(key, (memories, width), width**-0.5))
        self.visible_bias, self.memory_bias = jnp.zeros(width), jnp.zeros(memories)
        self.attention_bias = jnp.zeros(context)
        self.visible, self.memory = visible, memory
        self.beta = scalar(beta)
        self.visible_time, self.hidden_time = scalar(visible_time), scalar(hidden_time)

    def network(self, x: Float[Array, "l D"] | Context) -> AssociativeMemory:
        """The associative memory that a context of l ≤ L tokens makes of it. **Raises:** `ValueError` for more."""
        rows = x.rows if isinstance(x, Context) else x
        attention = Attending(self.beta, x.used) if isinstance(x, Context) else Softmax(self.beta)
        tokens, memories = rows.shape[0], self.memory_bias.size
        if tokens > self.attention_bias.size:
            raise ValueError(
                f"The context has {tokens} tokens, and there is room for {self.attention_bias.size}: overwrite the oldest."
            )
        network = AssociativeMemory(
            jnp.concatenate([rows, self.patterns]),
            visible=self.visible,
            hidden=Blocks((attention, self.memory), (tokens, memories)),
            visible_bias=self.visible_bias,
            hidden_bias=jnp.concatenate([self.attention_bias[:tokens], self.memory_bias]),
        )
        times = self.visible_time, self.hidden_time
        return eqx.tree_at(lambda n: (n.visible_time, n.hidden_time), network, times)

    def initial(self, x: Float[Array, "l D"] | Context) -> tuple[Array, Array]:
        """The state at rest: v = a and h = 0."""
        rows = x.rows if isinstance(x, Context) else x
        return self.visible_bias, jnp.zeros(rows.shape[0] + self.memory_bias.size, rows.dtype)

    def published(self, x: Float[Array, "l D"] | Context) -> tuple[Array, Array]:
        """The start of the publications: v = 0 and h = (b, c), the biases of the hidden neurons. A finite horizon answers
        otherwise from there than from `initial`, and where there are several fixed points another may be reached."""
        rows = x.rows if isinstance(x, Context) else x
        hidden = jnp.concatenate([self.attention_bias[: rows.shape[0]], self.memory_bias])
        return jnp.zeros_like(self.visible_bias), hidden

    def __call__(self, t: Any, z: PyTree[Array], x: Float[Array, "l D"] | Context) -> PyTree[Array]:
        return self.network(x)(t, z, 0.0)

    def energy(self, z: PyTree[Array], x: Float[Array, "l D"] | Context) -> Inexact[Array, ""]:
        """The energy of a state under the context x."""
        return self.network(x).energy(z, 0.0)

    def adiabatic(self) -> "AdiabaticTransformer":
        """The dynamics of the visible neurons alone, in the limit τ_h → 0: the same fixed points, far fewer steps."""
        return AdiabaticTransformer(self)


class AdiabaticTransformer(AbstractForceField):
    """An `EnergyTransformer` whose hidden neurons follow at once; see `AdiabaticMemory`. The state is v `(D,)`.

    **Arguments:** `transformer`: the network; its `hidden_time` is ignored.

    ```python
    memory = ej.fields.EnergyTransformer(2, 3, context=2, key=key)
    fast = ej.fields.AdiabaticTransformer(memory)
    assert fast(0.0, two, patterns).shape == two.shape
    ```
    """

    transformer: EnergyTransformer

    def initial(self, x: Float[Array, "l D"] | Context) -> Float[Array, " D"]:
        """The state at rest: v = a."""
        return self.transformer.visible_bias

    def complete(
        self, v: Inexact[Array, " D"], x: Float[Array, "l D"] | Context
    ) -> tuple[Array, Array]:
        """`(v, h)`: the state of the whole network."""
        return self.transformer.network(x).adiabatic().complete(v)

    def __call__(self, t: Any, z: Inexact[Array, " D"], x: Float[Array, "l D"] | Context) -> Array:
        return self.transformer.network(x).adiabatic()(t, z, 0.0)

    def energy(
        self, z: Inexact[Array, " D"], x: Float[Array, "l D"] | Context
    ) -> Inexact[Array, ""]:
        """The energy of a state under the context x."""
        return self.transformer.network(x).adiabatic().energy(z, 0.0)


class EnergyTransformerLM(AbstractEquilibriumModel):
    """An energy transformer that predicts the next token: `logits = g(v) W`, or `g(v) W + d`.

    One sequence settles once and gives the logits of the token after it. To generate, append and settle again:

    ```python
    memory = ej.fields.EnergyTransformer(2, 3, context=4, key=key)
    model = ej.fields.EnergyTransformerLM(memory, vocabulary=8, key=key)
    settle = lambda f, z, x: ej.equilibrium(f, z, x, solver=ej.Anderson(1e-5, mixing=0.01))
    greedy, read = ej.language.Sampler(0.0), model.reader(settle)
    write = lambda context, n: ej.language.autoregress(
        read, model.answer(context, settle), context, n, sampler=greedy, key=key
    )
    context = model.encode(jnp.array([1, 2]))  # `write(context, 100)[0].tokens`
    ```

    **Arguments:**

    - `field`: the energy transformer. `vocabulary`: number of tokens, at least 2.
    - `bias`: whether the readout has one, d, which starts at 0. The published parity model has.
    - `start`: "rest" (v = a and h = 0) or "published" (v = 0 and h = (b, c)); see `EnergyTransformer.published`.
    - `key`: of the embedding, which is drawn non-negative, and of the readout.
    """

    field: EnergyTransformer
    embedding: Float[Array, "V D"]
    readout: Float[Array, "D V"]
    bias: Float[Array, " V"] | None
    start: str = eqx.field(static=True)

    def __init__(
        self,
        field: EnergyTransformer,
        vocabulary: int,
        *,
        bias: bool = False,
        start: str = "rest",
        key: PRNGKeyArray,
    ):
        if start not in ("rest", "published"):
            refuse("start", 'be "rest" or "published"', start)
        check_flags(bias=bias)
        if vocabulary < 2:
            raise ValueError(f"`vocabulary` must hold at least 2 tokens, got {vocabulary}.")
        a, b = jax.random.split(key)
        width = field.visible_bias.size
        self.field = field
        self.embedding = jnp.abs(normal(a, (vocabulary, width), 1.0))
        self.readout = normal(b, (width, vocabulary), width**-0.5)
        self.bias = jnp.zeros(vocabulary) if bias else None
        self.start = start

    def encode(self, inputs: Int[Array, " l"]) -> Context:
        """The context after l ≥ 1 tokens, of which the network holds the last L."""
        return Context.of(self.embedding[inputs], self.field.attention_bias.size)

    def initial(self, x: Context) -> tuple[Array, Array]:
        return self.field.initial(x) if self.start == "rest" else self.field.published(x)

    def decode(self, z: PyTree[Array]) -> Float[Array, " V"]:
        logits = jax.grad(self.field.visible)(z[0]) @ self.readout
        return logits if self.bias is None else logits + self.bias

    def answer(self, context: Context, settle: Callable[..., Any]) -> Float[Array, " V"]:
        """The logits of the next token. `settle`: callable `(field, z0, x)` to a result with the settled `value`."""
        return self.decode(settle(self.field, self.initial(context), context).value)

    def reader(self, settle: Callable[..., Any]) -> Callable[[ScalarLike, Context], tuple]:
        """`read(token, context) -> (logits, context)`: append the token, settle from the start, answer; one step of
        `language.autoregress`."""

        def read(token, context):
            context = context.append(self.embedding[token])
            return self.answer(context, settle), context

        return read
