"""Adapters on disk, as the library peft writes and reads them: what its settings mean, and which of them are no plain LoRA."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from .._checks import check_count, check_flags, check_kind, check_positive
from ._gpt2 import GPT2
from ._hub import opened, read_json, replacing
from ._lora import AdaptedLinear, adapted_maps, dotted, each_linear, linear_maps

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ROOT = "base_model.model."

# Settings that this module understands, and those that say where an adapter came from, or how it is trained.
_UNDERSTOOD = (
    "peft_type init_lora_weights r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules "
    "layers_to_transform layers_pattern"
).split()
_IRRELEVANT = (
    "auto_mapping base_model_name_or_path corda_config eva_config fan_in_fan_out inference_mode loftq_config "
    "lora_dropout lora_ga_config megatron_core peft_version qalora_group_size revision runtime_config task_type"
).split()
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_NOTHING = (None, False, 0, "", "none", [], {})


def save_adapters(model: GPT2, folder: str | os.PathLike) -> None:
    """Write the adapters of a `GPT2`, without its other weights, as a folder that peft reads.

    Maps may have adapters of different ranks and scales: peft's `rank_pattern` and `alpha_pattern` say so.

    ```python
    adapted = ej.language.lora(gpt2, rank=1, alpha=1, key=key)
    with tempfile.TemporaryDirectory() as folder:
        ej.language.save_adapters(adapted, folder)  # as peft reads it
        assert (Path(folder) / "adapter_config.json").exists()
    ```
    """
    check_kind(GPT2, "a `GPT2`; of one with memory, save `model.gpt2`", model=model)
    found = {path.removeprefix("blocks."): node for path, node in adapted_maps(model).items()}
    if not found:
        raise ValueError("`model` has no adapters: make some with `lora`.")
    tensors = {}
    for path, node in found.items():
        for layer, (a, b) in enumerate(zip(np.asarray(node.a), np.asarray(node.b), strict=True)):
            name = f"{_ROOT}transformer.h.{layer}.{path}.lora_"
            tensors[f"{name}A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"{name}B.weight"] = np.ascontiguousarray(b.T)
    ranks = {path: node.a.shape[-1] for path, node in found.items()}
    alphas = {path: node.scale * ranks[path] for path, node in found.items()}
    (rank, *_), (alpha, *_) = ranks.values(), alphas.values()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(path): r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(path): a for path, a in alphas.items() if a != alpha},
        "target_modules": sorted(found),
        "fan_in_fan_out": True,
        "bias": "none",
    }
    with replacing(folder) as fresh:
        safetensors.numpy.save_file(tensors, fresh / _WEIGHTS, metadata={"format": "pt"})
        (fresh / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def load_adapters(model: GPT2, folder: str | os.PathLike) -> GPT2:
    """Put the adapters of a folder, written by `save_adapters` or by peft, on a `GPT2`.

    **Arguments:** `model`: a `GPT2` without adapters, also one with 4-bit weights. `folder`: with `adapter_config.json` and
    `adapter_model.safetensors`.

    **Returns:** the model with adapters, on the maps that peft would adapt: `target_modules` as a list of names, of their
    ends, of whole paths, as a regular expression or `"all-linear"`, less `exclude_modules`, in `layers_to_transform`, with
    ranks and scales by `rank_pattern` and `alpha_pattern`, `use_rslora` or not. Layers that have none get an adapter of
    zeros, which stays zero in training. Where one map has several scales in its layers, B takes the difference up: the same
    function, of which training moves B at another rate.

    **Raises:** `ValueError`, naming the setting, for one that is more than plain LoRA or that is unknown (`use_dora`,
    `modules_to_save`, an `init_lora_weights` that takes something off the base weights, …), and the tensor that does not fit.

    peft: Mangrulkar et al. 2022.

    ```python
    adapted = ej.language.lora(gpt2, rank=1, alpha=1, key=key)
    with tempfile.TemporaryDirectory() as folder:
        ej.language.save_adapters(adapted, folder)
        assert eqx.tree_equal(ej.language.load_adapters(gpt2, folder), adapted)
    ```
    """
    check_kind(GPT2, "a `GPT2`; of one with memory, `model.gpt2`", model=model)
    if there := adapted_maps(model):
        raise ValueError(f"`model` has adapters on {min(there)} already: `merge(model)` first.")
    folder = Path(folder)
    settings = read_json(folder / _CONFIG)
    _check_plain(settings, folder / _CONFIG)
    if not (folder / _WEIGHTS).is_file():
        older = (folder / "adapter_model.bin").exists()
        cure = " Save adapter_model.bin again by peft's save_pretrained." if older else ""
        raise ValueError(f"{folder} has no {_WEIGHTS}.{cure}")
    with opened(folder / _WEIGHTS) as file, _readable(folder / _CONFIG):
        names = set(file.keys())
        whole = any(name.startswith(f"{_ROOT}transformer.") for name in names)
        prefix = "transformer." if whole else ""  # of the whole model, or of its inside
        asked = {
            path: _asked(settings, path, prefix, model.config.n_layer)
            for path in linear_maps(model)
            if path.startswith("blocks.")
        }
        if not any(asked.values()):
            raise ValueError(
                f"{folder / _CONFIG}: target_modules={settings['target_modules']!r} name no linear map of the model. Its maps "
                f"are {', '.join(sorted({path.split('.')[-1] for path in asked}))}, as in {prefix}h.0.attn.c_attn."
            )
        used = set()

        def read(name: str, shape: tuple[int, int]) -> np.ndarray:
            found = file.get_tensor(name) if name in names else None
            used.add(name)
            if found is None or found.shape != shape:
                state = "is missing" if found is None else f"has shape {found.shape}"
                raise ValueError(
                    f"the tensor {name} {state} in {folder / _WEIGHTS}; the model needs {shape}."
                )
            if not (jnp.issubdtype(found.dtype, jnp.floating) and np.isfinite(found).all()):
                raise ValueError(
                    f"the tensor {name} in {folder / _WEIGHTS} holds no finite floating numbers."
                )
            return found.T

        def adapt(path, node):
            path = dotted(path)
            layers = asked.get(path)
            if not layers:
                return node
            weight = eqx.filter_eval_shape(lambda node: node.plain().weight, node)
            depth, i, o = weight.shape
            most = max(rank for rank, _ in layers.values())
            scale = next(iter(layers.values()))[1]
            parts = {}  # read before anything is made: a rank in a text file may be any
            for layer, (rank, own) in layers.items():
                name = f"{_ROOT}{_key(path, prefix, layer)}.lora_"
                shapes = {"A": (rank, i), "B": (o, rank)}
                parts[layer] = [read(f"{name}{s}.weight", shapes[s]) for s in shapes], own / scale
            a, b = np.zeros((depth, i, most)), np.zeros((depth, most, o))
            for layer, ((down, up), ratio) in parts.items():
                a[layer, :, : down.shape[1]], b[layer, : len(up)] = down, up * ratio
            kept = lambda array: jnp.asarray(array, weight.dtype)
            return AdaptedLinear(node, kept(a), kept(b), scale)

        model = each_linear(adapt, model)
    if left := sorted(names - used):
        raise ValueError(
            f"{folder / _WEIGHTS} has tensors for which the model has no place, such as {left[0]}. Do they belong to "
            "another model, or to embeddings? Only the linear maps of its blocks take adapters."
        )
    return model


def _check_plain(settings: dict[str, Any], path: Path) -> None:
    """Refuse what a LoRA layer alone does not compute."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{path} asks for peft_type={kind!r}, and only 'LORA' is understood. Merge the adapters into the model by peft's "
            "merge_and_unload, save that, and load it by `load_gpt2`."
        )
    start = settings.get("init_lora_weights")
    if not any(
        start is plain or (start == plain and type(start) is str) for plain in _PLAIN_STARTS
    ):
        raise ValueError(
            f"{path} asks for init_lora_weights={start!r}, which is more than plain LoRA: it began by changing the weights "
            "under the adapters, or holds a part of these. Save it by peft's save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=...), which makes it a plain one, or merge_and_unload and load_gpt2."
        )
    if missing := [name for name in ("r", "lora_alpha", "target_modules") if name not in settings]:
        raise ValueError(f"{path} has no {missing[0]}: it is not the file of a LoRA.")
    for name, value in settings.items():
        if name not in {*_UNDERSTOOD, *_IRRELEVANT} and value not in _NOTHING:
            raise ValueError(
                f"{path} asks for {name}={value!r}, which is more than plain LoRA, or is not known here. Merge the adapters "
                "into the model by peft's merge_and_unload, save that, and load it by `load_gpt2`."
            )
    check_count(r=settings["r"])
    check_positive(lora_alpha=settings["lora_alpha"])
    check_flags(use_rslora=settings.get("use_rslora") or False)
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(name) or {}
        check_kind(dict, "names with numbers", **{name: patterns})
        for value in patterns.values():
            (check_count if name == "rank_pattern" else check_positive)(**{name: value})
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = settings.get(name)
        texts = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{path} has {name}={value!r}; it must be a name or a list of names.")
    layers = settings.get("layers_to_transform")
    for layer in layers if isinstance(layers, list) else [] if layers is None else [layers]:
        check_count(0, layers_to_transform=layer)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except re.error as error:
        raise ValueError(
            f"{path} has no regular expression in {error.pattern!r}: {error}"
        ) from None


def _key(path: str, prefix: str, layer: int) -> str:
    """peft's name of one layer of a map."""
    return f"{prefix}h.{layer}.{path.removeprefix('blocks.')}"


def _asked(
    settings: dict[str, Any], path: str, prefix: str, layers: int
) -> dict[int, tuple[int, float]]:
    """Rank and scale in those layers of a map that have an adapter."""
    found = {}
    for layer in range(layers):
        key = _key(path, prefix, layer)
        if _targeted(settings, key) and not _listed(settings.get("exclude_modules") or [], key):
            rank = _patterned(settings.get("rank_pattern"), key, settings["r"])
            alpha = _patterned(settings.get("alpha_pattern"), key, settings["lora_alpha"])
            root = math.sqrt(rank) if settings.get("use_rslora") else rank
            found[layer] = (rank, alpha / root)
    return found


def _targeted(settings: dict[str, Any], key: str) -> bool:
    targets = settings["target_modules"]
    if targets is None:
        targets = ["c_attn"]  # peft's own choice for a GPT-2
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return True
    if not _listed(targets, key):
        return False
    only, patterns = settings.get("layers_to_transform"), settings.get("layers_pattern") or []
    # As peft has it: layers are looked at only where a list of names found a map by its end.
    if only in (None, []) or isinstance(targets, str) or key in targets:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns
    # Of the layer, whose number stands behind a dot: without a prefix peft finds none.
    looks = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    matched = next(filter(None, (re.match(look, key) for look in looks)), None)
    return matched is not None and int(matched[1]) in ([only] if isinstance(only, int) else only)


def _listed(names: str | list[str], key: str) -> bool:
    """Whether a regular expression is all of `key`, or one of several names its end."""
    if isinstance(names, str):
        return re.fullmatch(names, key) is not None
    return any(key == name or key.endswith(f".{name}") for name in names)


def _patterned(patterns: dict[str, Any] | None, key: str, otherwise: Any) -> Any:
    """The value of the first pattern that is an end of `key`."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", key):
            return value
    return otherwise
