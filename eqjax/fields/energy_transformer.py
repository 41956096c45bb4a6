"""The energy transformer for next-token prediction: attention and memory as one associative memory."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PRNGKeyArray, PyTree

from .associative import AssociativeMemory, Polynomial, Quadratic, Softmax
from .base import AbstractForceField, hyperparameter, scalar
from .parts import normal


class Blocks(eqx.Module):
    """`Σ_k L_k(z_k)` over consecutive blocks z_k: each kind of neuron has its own Lagrangian.

    **Arguments:** `lagrangians`: callables `(n,) -> ()`; `sizes`: the n of each.
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


class EnergyTransformer(AbstractForceField):
    """The energy transformer in its causal next-token form (Hoover et al. 2023; as a circuit, Bacvanski et al. 2025).

    The visible neurons v `(D,)` are the embedding of the token to come; the hidden ones are L attention neurons, one for
    each token of the context, whose patterns are the context's embeddings, and M memory neurons, whose patterns ξ are
    learned. It is the `AssociativeMemory` of both, with the energy

    `Σ g (v - a) - L_v + Σ f (h - b) - L_attn - L_memory - fᵀ ξ g`, `L_attn = β⁻¹ log Σ exp β h`.

    The input x `(L, D)` is the embedded context, the state is `(v, h)` with h `(L + M,)`. A token is *appended* as one
    more row of x and one more attention neuron; a window *slides* when the row of its oldest token is overwritten: the
    order of the rows means nothing to the energy but for the biases.

    **Arguments:**

    - `width`: D. `memories`: M. `context`: L, the most tokens that have a bias of their own.
    - `beta`: β of the attention. `visible`, `memory`: Lagrangians. As published they are quadratic and
      `Polynomial(2)`, and that energy has no lower bound once the patterns are large; a bounded activation of the
      visible neurons (`LogCosh()`: rails; `Spherical()`: a layer norm) bounds every trajectory.
    - `visible_time`, `hidden_time`: τ. `key`: random key of the patterns, which are drawn non-negative.
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
        for name, value in (
            sizes | {"beta": beta, "visible_time": visible_time, "hidden_time": hidden_time}
        ).items():
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        self.patterns = jnp.abs(normal(key, (memories, width), width**-0.5))
        self.visible_bias, self.memory_bias = jnp.zeros(width), jnp.zeros(memories)
        self.attention_bias = jnp.zeros(context)
        self.visible, self.memory = visible, memory
        self.beta = scalar(beta)
        self.visible_time, self.hidden_time = scalar(visible_time), scalar(hidden_time)

    def network(self, x: Float[Array, "l D"]) -> AssociativeMemory:
        """The associative memory that a context of l ≤ L tokens makes of it. **Raises:** `ValueError` for more."""
        tokens, memories = x.shape[0], self.memory_bias.size
        if tokens > self.attention_bias.size:
            raise ValueError(
                f"The context has {tokens} tokens, and there is room for {self.attention_bias.size}: overwrite the oldest."
            )
        network = AssociativeMemory(
            jnp.concatenate([x, self.patterns]),
            visible=self.visible,
            hidden=Blocks((Softmax(self.beta), self.memory), (tokens, memories)),
            visible_bias=self.visible_bias,
            hidden_bias=jnp.concatenate([self.attention_bias[:tokens], self.memory_bias]),
        )
        times = self.visible_time, self.hidden_time
        return eqx.tree_at(lambda n: (n.visible_time, n.hidden_time), network, times)

    def initial(self, x: Float[Array, "l D"]) -> tuple[Array, Array]:
        """The state at rest: v = a and h = 0."""
        return self.visible_bias, jnp.zeros(x.shape[0] + self.memory_bias.size, x.dtype)

    def __call__(self, t: Any, z: PyTree[Array], x: Float[Array, "l D"]) -> PyTree[Array]:
        return self.network(x)(t, z, 0.0)

    def energy(self, z: PyTree[Array], x: Float[Array, "l D"]) -> Inexact[Array, ""]:
        """The energy of a state under the context x."""
        return self.network(x).energy(z, 0.0)
