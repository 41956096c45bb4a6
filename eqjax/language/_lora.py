"""Other kinds of linear maps in a model: low-rank adapters (LoRA, Hu et al. 2022), in peft's format on disk, and frozen 4-bit
weights, NormalFloat-4 in blocks (QLoRA, Dettmers et al. 2023)."""

import json
import math
import os
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from .._checks import check_count, check_key, check_kind, check_positive
from ._gpt2 import GPT2, AbstractLinear, Linear
from ._hub import opened, read_json, replacing

_Model = TypeVar("_Model", bound=PyTree)
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
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
    """
    check_kind(eqx.Module, "a `GPT2`, or what holds one", model=model)
    check_count(rank=rank)
    check_positive(alpha=alpha)
    check_key(key=key)
    check_kind((tuple, list), "a tuple of names", targets=targets)
    scale = alpha / (math.sqrt(rank) if rs else rank)
    found = []

    def adapt(path, node):
        name = _dotted(path).split(".")[-1]
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
            f"{', '.join(sorted({path.split('.')[-1] for path in _paths(model)}))}."
        )
    return adapted


def adapters(model: PyTree) -> PyTree[bool]:
    """Which leaves are adapters: like `trainable(model)`, but true for A and B only."""

    def mark(_, node):
        fixed = jax.tree.map(lambda _: False, node)
        if not isinstance(node, AdaptedLinear):
            return fixed
        return eqx.tree_at(lambda n: (n.a, n.b), fixed, (True, True))

    return each_linear(mark, model)


def merge(model: _Model) -> _Model:
    """The same model with plain linear maps: adapters added to the weights, 4-bit weights written out."""
    check_kind(eqx.Module, "a `GPT2`, or what holds one", model=model)
    return each_linear(lambda _, node: node.plain() if _is_linear(node) else node, model)


def save_adapters(model: GPT2, folder: str | os.PathLike) -> None:
    """Write the adapters of a `GPT2`, without its other weights, as a folder that peft reads."""
    if not isinstance(model, GPT2):
        raise ValueError(
            f"`model` must be a GPT2, got a {type(model).__name__}. Of one with memory, save `model.gpt2`."
        )
    found = adapted_maps(model)
    shapes = {(node.a.shape[-1], node.scale) for node in found.values()}
    if not found:
        raise ValueError("`model` has no adapters: make some with `lora`.")
    if len(shapes) != 1:
        raise ValueError(
            "`model` has adapters of several ranks or scales; peft's format here holds one."
        )
    ((rank, scale),) = shapes
    tensors = {}
    for path, node in found.items():
        for layer, (a, b) in enumerate(zip(np.asarray(node.a), np.asarray(node.b), strict=True)):
            tensors[_name(path, layer, "A")] = np.ascontiguousarray(a.T)
            tensors[_name(path, layer, "B")] = np.ascontiguousarray(b.T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": sorted({path.split(".")[-1] for path in found}),
        "fan_in_fan_out": True,
        "bias": "none",
    }
    with replacing(folder) as fresh:
        safetensors.numpy.save_file(tensors, fresh / _WEIGHTS, metadata={"format": "pt"})
        (fresh / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def load_adapters(model: GPT2, folder: str | os.PathLike) -> GPT2:
    """Put the adapters of a folder, written by `save_adapters` or by peft, on a `GPT2`.

    `ValueError` names a setting that is more than LoRA, or the tensor that does not fit.
    """
    folder = Path(folder)
    settings = read_json(folder / _CONFIG)
    for name, plain in _PLAIN.items():
        if settings.get(name) not in plain:
            raise ValueError(
                f"{folder / _CONFIG} asks for {name}={settings.get(name)!r}, which is more than plain LoRA."
            )
    if missing := [name for name in ("r", "lora_alpha", "target_modules") if name not in settings]:
        raise ValueError(f"{folder / _CONFIG} has no {missing[0]}: it is not the file of a LoRA.")
    targets = settings["target_modules"]
    model = lora(
        model,
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        rs=bool(settings.get("use_rslora")),
        key=jax.random.key(0),
    )
    with opened(folder / _WEIGHTS) as file:
        names, used = set(file.keys()), set()

        def read(path, layer, letter, like):
            name = _name(path, layer, letter)
            found = file.get_tensor(name).T if name in names else None
            used.add(name)
            if found is None or found.shape != like.shape[1:]:
                state = "is missing" if found is None else f"has shape {found.T.shape}"
                raise ValueError(
                    f"the tensor {name} {state} in {folder / _WEIGHTS}; the model needs {like.shape[:0:-1]}."
                )
            return found

        def fill(path, node):
            if not isinstance(node, AdaptedLinear):
                return node

            def stacked(letter, old):
                layers = [read(_dotted(path), i, letter, old) for i in range(len(old))]
                return jnp.asarray(np.stack(layers), old.dtype)

            a, b = stacked("A", node.a), stacked("B", node.b)
            return AdaptedLinear(node.base, a, b, node.scale)

        model = each_linear(fill, model)
    if left := sorted(names - used):
        raise ValueError(
            f"{folder / _WEIGHTS} has tensors for which the model has no place, such as {left[0]}. Do they belong to "
            "another model?"
        )
    return model


# Settings of peft's that change what a LoRA layer computes, and the values with which they do not.
_PLAIN = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    **dict.fromkeys(("use_dora", "lora_bias", "use_qalora"), (None, False)),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (None, {})),
    **dict.fromkeys(("modules_to_save", "layers_to_transform", "layer_replication"), (None, [])),
    **dict.fromkeys(("trainable_token_indices", "target_parameters"), (None, [])),
    "alora_invocation_tokens": (None, []),
    # The others (pissa, olora, loftq, eva, corda) take something off the base weights first.
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal"),
}


def each_linear(function: Any, model: Any) -> Any:
    """`function(path, node)` of every linear map in the model, and of every leaf outside of them."""
    return jax.tree_util.tree_map_with_path(function, model, is_leaf=_is_linear)


def _is_linear(node: Any) -> bool:
    return isinstance(node, AbstractLinear)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(getattr(key, "name", str(key)) for key in path)


def _paths(model: Any) -> dict[str, AbstractLinear]:
    """Every linear map of the model by its path, such as `blocks.attn.c_attn`."""
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_linear)
    return {_dotted(path): node for path, node in nodes if _is_linear(node)}


def adapted_maps(model: Any) -> dict[str, AdaptedLinear]:
    """Every linear map with an adapter, by its path."""
    return {path: node for path, node in _paths(model).items() if isinstance(node, AdaptedLinear)}


def _name(path: str, layer: int, letter: str) -> str:
    """peft's name of one layer's tensor."""
    inside = path.removeprefix("blocks.")
    return f"base_model.model.transformer.h.{layer}.{inside}.lora_{letter}.weight"


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
    """
    check_kind(eqx.Module, "a `GPT2`, or what holds one", model=model)

    def small(_, node):
        if isinstance(node, AdaptedLinear):
            return AdaptedLinear(small(_, node.base), node.a, node.b, node.scale)
        return _quantised(node) if isinstance(node, Linear) else node

    return each_linear(small, model)
