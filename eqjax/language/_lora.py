"""Other kinds of linear maps in a model: low-rank adapters (LoRA, Hu et al. 2022), and frozen 4-bit weights, NormalFloat-4 in
blocks (QLoRA, Dettmers et al. 2023)."""

import math
from statistics import NormalDist
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from .._checks import check_count, check_key, check_kind, check_positive
from ._gpt2 import AbstractLinear, Linear

_Model = TypeVar("_Model", bound=PyTree)
_BLOCK = 64


class AdaptedLinear(AbstractLinear):
    """`base(x) + scale · (x A) B`, with A `(i, r)` and B `(r, o)`; the base is left alone by training."""

    base: AbstractLinear = eqx.field(metadata={"hyperparameter": True})
    a: Float[Array, "*l i r"]
    b: Float[Array, "*l r o"]
    scale: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
        return self.base(x) + self.scale * ((x @ self.a) @ self.b)

    def plain(self) -> Linear:
        base = self.base.plain()
        return Linear(base.weight + self.scale * (self.a @ self.b), base.bias)


def lora(
    model: _Model,
    *,
    rank: int,
    alpha: float | int,
    targets: tuple[str, ...] = ("c_attn", "c_proj"),
    rs: bool = False,
    key: PRNGKeyArray,
) -> _Model:
    """The model with adapters on its linear maps; it computes what it did before, since B starts at 0.

    **Arguments:**

    - `model`: a `GPT2`, or anything that holds one. `rank`: r ≥ 1.
    - `alpha`: the adapters are scaled by `alpha / r`, or with `rs` by `alpha / sqrt(r)` (rsLoRA, Kalajdzievski 2023).
    - `targets`: attribute names of the maps: `c_attn`, `c_proj` (in attention and MLP alike), `c_fc`.
    - `key`: of A, uniform in ±1/sqrt(i) as in peft.

    Train what `adapters(model)` marks; `merge` makes the model plain again.

    ```python
    adapted = ej.language.lora(gpt2, rank=2, alpha=4, key=key)
    assert jnp.all(adapted(tokens) == gpt2(tokens))  # B starts at 0
    ```
    """
    check_kind(eqx.Module, "a `GPT2`, or what holds one", model=model)
    check_count(rank=rank)
    check_positive(alpha=alpha)
    check_key(key=key)
    check_kind((tuple, list), "a tuple of names", targets=targets)
    scale = alpha / (math.sqrt(rank) if rs else rank)
    found = []

    def adapt(path, node):
        name = dotted(path).split(".")[-1]
        if not isinstance(node, AbstractLinear) or name not in targets:
            return node
        if isinstance(node, AdaptedLinear):
            raise ValueError(f"`model` has adapters on {name} already: `merge(model)` first.")
        found.append(name)
        weight = eqx.filter_eval_shape(lambda n: n.plain(), node).weight
        *layers, i, o = weight.shape
        own = jax.random.fold_in(key, len(found))
        a = i**-0.5 * jax.random.uniform(own, (*layers, i, rank), minval=-1, maxval=1)
        b = jnp.zeros((*layers, rank, o))
        return AdaptedLinear(node, a.astype(weight.dtype), b.astype(weight.dtype), scale)

    adapted = each_linear(adapt, model)
    missing = sorted(set(targets) - set(found))
    if missing or not found:
        raise ValueError(
            f"`targets={targets}`: the model has no linear map {', '.join(missing)}. Its maps are "
            f"{', '.join(sorted({path.split('.')[-1] for path in linear_maps(model)}))}."
        )
    return adapted


def adapters(model: PyTree) -> PyTree[bool]:
    """Which leaves are adapters: like `trainable(model)`, but true for A and B only.

    ```python
    adapted = ej.language.lora(gpt2, rank=1, alpha=1, key=key)
    mask = ej.language.adapters(adapted)  # `Backprop(trains=ej.language.adapters)` trains these alone
    assert mask.blocks.attn.c_attn.a and not mask.wte
    ```
    """

    def mark(_, node):
        fixed = jax.tree.map(lambda _: False, node)
        if not isinstance(node, AdaptedLinear):
            return fixed
        return eqx.tree_at(lambda n: (n.a, n.b), fixed, (True, True))

    return each_linear(mark, model)


def merge(model: _Model) -> _Model:
    """The same model with plain linear maps: adapters added to the weights, 4-bit weights written out.

    ```python
    adapted = ej.language.lora(gpt2, rank=1, alpha=1, key=key)
    assert eqx.tree_equal(ej.language.merge(adapted), gpt2)
    ```
    """
    check_kind(eqx.Module, "a `GPT2`, or what holds one", model=model)
    return each_linear(lambda _, node: node.plain() if _is_linear(node) else node, model)


def each_linear(function: Any, model: Any) -> Any:
    """`function(path, node)` of every linear map in the model, and of every leaf outside of them."""
    return jax.tree_util.tree_map_with_path(function, model, is_leaf=_is_linear)


def _is_linear(node: Any) -> bool:
    return isinstance(node, AbstractLinear)


def dotted(path: tuple[Any, ...]) -> str:
    """A path in a model as one writes it."""
    return ".".join(getattr(key, "name", str(key)) for key in path)


def linear_maps(model: Any) -> dict[str, AbstractLinear]:
    """Every linear map of the model by its path, such as `blocks.attn.c_attn`."""
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_linear)
    return {dotted(path): node for path, node in nodes if _is_linear(node)}


def adapted_maps(model: Any) -> dict[str, AdaptedLinear]:
    """Every linear map with an adapter, by its path.

    ```python
    adapted = ej.language.lora(gpt2, rank=1, alpha=1, targets=("c_attn",), key=key)
    assert len(ej.language.adapted_maps(adapted)) == 1
    ```
    """
    return {
        path: node for path, node in linear_maps(model).items() if isinstance(node, AdaptedLinear)
    }


def _levels() -> tuple[float, ...]:
    quantile, tail = NormalDist().inv_cdf, (1 - 1 / 30 + 1 - 1 / 32) / 2
    below, above = ([quantile(tail + (0.5 - tail) * i / n) for i in range(n)] for n in (7, 8))
    return tuple(x / above[0] for x in (*(-q for q in below), 0.0, *reversed(above)))


# Quantiles of a normal distribution, 7 below and 8 above an exact 0, scaled to [-1, 1] (appendix E of the paper).
NF4 = _levels()


class QuantisedLinear(AbstractLinear):
    """`x W + b` with W in 4 bits: `codes` holds two of the 16 levels in a byte, `largest` scales blocks of 64."""

    codes: UInt8[Array, "*l n half"]
    largest: Float[Array, "*l n"] = eqx.field(metadata={"hyperparameter": True})
    bias: Float[Array, "*l o"] = eqx.field(metadata={"hyperparameter": True})
    inputs: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "t i"]) -> Float[Array, "t o"]:
        return self.plain()(x)

    def plain(self) -> Linear:
        codes = jnp.stack([self.codes >> 4, self.codes & 15], axis=-1)
        values = jnp.asarray(NF4, self.largest.dtype)[codes.astype(jnp.int32)]
        *layers, n, half, _ = values.shape
        shape = (*layers, self.inputs, self.bias.shape[-1])
        values = values.reshape(*layers, n, 2 * half) * self.largest[..., None]
        values = values.reshape(*layers, -1)[..., : math.prod(shape[-2:])]
        return Linear(values.reshape(shape), self.bias)


def _quantised(linear: Linear) -> QuantisedLinear:
    *layers, i, o = linear.weight.shape
    flat = linear.weight.reshape(*layers, i * o)
    flat = jnp.pad(flat, [(0, 0)] * len(layers) + [(0, -(i * o) % _BLOCK)])
    blocks = flat.reshape(*layers, -1, _BLOCK)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    levels = jnp.asarray(NF4, blocks.dtype)
    unit = blocks / jnp.where(largest == 0, 1, largest)[..., None]
    # The nearest level is found by the midpoints between them.
    codes = jnp.searchsorted((levels[1:] + levels[:-1]) / 2, unit).astype(jnp.uint8)
    pairs = codes.reshape(*codes.shape[:-1], -1, 2)
    return QuantisedLinear((pairs[..., 0] << 4) | pairs[..., 1], largest, linear.bias, i)


def quantise(model: _Model) -> _Model:
    """The model with its linear maps in frozen 4-bit weights, also those under adapters.

    Embeddings, layer norms and biases stay as they are. A weight takes 4 bits and 1/64 number. Training leaves the
    quantised maps alone; `lora(quantise(model), …)` is QLoRA, `merge` writes the weights out again.

    ```python
    small = ej.language.quantise(gpt2)
    assert jax.eval_shape(small, tokens).shape == (6, 8)
    ```
    """
    check_kind(eqx.Module, "a `GPT2`, or what holds one", model=model)

    def small(_, node):
        if isinstance(node, AdaptedLinear):
            return AdaptedLinear(small(_, node.base), node.a, node.b, node.scale)
        return _quantised(node) if isinstance(node, Linear) else node

    return each_linear(small, model)
