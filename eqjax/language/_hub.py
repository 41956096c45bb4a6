"""GPT-2 folders as Hugging Face writes them: `config.json` and safetensors, whole or in shards."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.typing import DTypeLike

from .._checks import check_kind
from .._files import space_for
from ._gpt2 import GPT2
from ._gpt2_config import GPT2Config

# Sorted by name, as they are moved, the shards are complete when the index appears.
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = "model-{}-of-{}.safetensors"
_HUB = "hf://"
# Where a folder without a tokenizer.json tells the tokens beside its vocabulary: older ones, later ones.
ADDED, TOKENIZER_CONFIG = "added_tokens.json", "tokenizer_config.json"


def load_gpt2(source: str | os.PathLike, *, dtype: DTypeLike | None = None) -> GPT2:
    """Read a GPT-2 language model from a folder in the format of Hugging Face.

    Tensor names may carry the prefix `transformer.` or not, and the weights may be sharded.

    **Arguments:**

    - `source`: a local folder, or the name of a model such as `"gpt2"`, which huggingface_hub then fetches into its
      own cache.
    - `dtype`: of the weights; by default that of the file.

    **Returns:** a `GPT2`. **Raises:** `ValueError`, naming the file or the tensor, for a folder that holds no GPT-2;
    `ConnectionError` for a name that cannot be fetched.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        ej.language.save_gpt2(gpt2, folder)
        assert eqx.tree_equal(ej.language.load_gpt2(folder), gpt2)  # or by name: `load_gpt2("gpt2")`
    ```
    """
    folder = resolved(source)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no config.json: it is not the folder of a saved model.{_cure(folder)}"
        )
    config = GPT2Config.from_dict(read_json(path))
    with _opened(folder) as tensors:
        return _filled(config, tensors, dtype)


def save_gpt2(
    model: GPT2, folder: str | os.PathLike, *, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write a model as a folder that `load_gpt2` and transformers (`GPT2LMHeadModel.from_pretrained`) read.

    A model that was there is replaced once the new one is written, and no file of it stays. A program that is killed in
    between leaves the old model, or the new one, or a folder that is refused, with all of the new one in it; never
    parts of two.

    **Arguments:** `model`; `folder`, made if needed; `max_shard_bytes`: tensors beyond it go to several files
    (`model-00001-of-00002.safetensors`, … and an index); a larger tensor has a file of its own.

    **Raises:** `ValueError` if the linear maps of the model are not plain ones (merge LoRA adapters first).

    ```python
    with tempfile.TemporaryDirectory() as folder:
        ej.language.save_gpt2(gpt2, folder)  # as transformers reads it
        assert (Path(folder) / "model.safetensors").exists()
    ```
    """
    if max_shard_bytes < 1:
        raise ValueError(f"`max_shard_bytes` must be at least 1, got {max_shard_bytes}.")
    if jax.tree.structure(model) != jax.tree.structure(_empty(model.config)):
        raise ValueError(
            "`model` is not a plain GPT-2: it has adapters, or weights of another form. `merge(model)` makes it plain."
        )
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        names, array = _names(path, model.config), np.asarray(leaf)
        parts = list(array) if len(names) > 1 or _is_stacked(path) else [array]
        for name, part in zip(names, parts, strict=True):
            prefix = "" if name.startswith("lm_head") else "transformer."
            tensors[prefix + name] = np.ascontiguousarray(part)
    shards = _shards(tensors, max_shard_bytes)
    text = json.dumps(model.config.to_dict(), indent=2) + "\n"
    config = Path(folder) / "config.json"
    # Nothing finds the weights once index and whole file are gone; one file under the same settings is simply replaced.
    old = [_INDEX, _WHOLE] + [file.name for file in config.parent.glob(_SHARD.format("*", "*"))]
    if list(shards) == [_WHOLE] and config.is_file() and config.read_bytes() == text.encode():
        old.remove(_WHOLE)
    with replacing(folder, old) as fresh:
        for file, names in shards.items():
            part = {name: tensors[name] for name in names}
            safetensors.numpy.save_file(part, fresh / file, metadata={"format": "pt"})
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
                "weight_map": {name: file for file, names in shards.items() for name in names},
            }
            (fresh / _INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        (fresh / "config.json").write_bytes(text.encode())


@contextlib.contextmanager
def replacing(folder: str | os.PathLike, old: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder whose files move into `folder`, by name, once all of them are written.

    Before that the files `old` are removed, in this order. What is interrupted during the move stays in a folder
    `.written-…`.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        with ej.language.replacing(folder) as fresh:
            (fresh / "a.txt").write_text("all of it, or nothing")
        assert (Path(folder) / "a.txt").exists()
    ```
    """
    folder = Path(folder)
    with space_for(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    try:
        with space_for(folder):
            yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    fresh = fresh.rename(folder / fresh.name.replace(".writing-", ".written-"))
    for name in old:
        (folder / name).unlink(missing_ok=True)
    for file in sorted(fresh.iterdir()):
        os.replace(file, folder / file.name)
    fresh.rmdir()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ValueError` names the file that holds none.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "config.json").write_text('{"n_layer": 2}')
        assert ej.language.read_json(path) == {"n_layer": 2}
    ```
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a JSON {type(found).__name__}, not an object.")
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading; `ValueError` names a file that is missing or damaged.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        ej.language.save_gpt2(gpt2, folder)
        with ej.language.opened(Path(folder) / "model.safetensors") as file:
            assert "transformer.wpe.weight" in file.keys()
    ```
    """
    try:
        file = safetensors.safe_open(path, framework="np")
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    with file:
        yield _Tensors(path, file)


@dataclasses.dataclass(frozen=True)
class _Tensors:
    """A safetensors file whose errors name it."""

    path: Path
    file: Any

    def keys(self) -> list[str]:
        return list(self.file.keys())

    def metadata(self) -> dict[str, str] | None:
        return self.file.metadata()

    def get_tensor(self, name: str) -> np.ndarray:
        try:
            return self.file.get_tensor(name)
        except (AttributeError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{self.path}: the tensor {name} cannot be read ({error}): NumPy does not have its dtype."
            ) from None


def resolved(source: str | os.PathLike, what: str = "a saved GPT-2") -> Path:
    """A local folder; that of a model on the Hugging Face hub is fetched first, weights and tokenizer. A name that begins with
    `hf://` is one of the hub, whatever local folders there are.

    **Raises:** `ValueError` for what can be neither; `ConnectionError` for a name that cannot be fetched.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        assert ej.language.resolved(folder) == Path(folder)
    ```
    """
    check_kind((str, os.PathLike), "a folder, or the name of a model", source=source)
    on_hub = isinstance(source, str) and source.startswith(_HUB)
    if not on_hub and Path(source).is_dir():
        return Path(source)
    name = os.fspath(source).removeprefix(_HUB if on_hub else "")
    if (not on_hub and Path(source).exists()) or not re.fullmatch(r"[\w.-]*\w(/\w[\w.-]*)?", name):
        raise ValueError(f"{name} is not a folder. Give the folder of {what}.")
    try:
        import huggingface_hub  # only where a name asks for it

        tokens = ["tokenizer.json", "vocab.json", "merges.txt", ADDED, TOKENIZER_CONFIG]
        wanted = ["config.json", "*.safetensors", _INDEX, *tokens]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # whatever went wrong, the cure is the same
        raise ConnectionError(
            f"{source} is no local folder, and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {error}). Give the folder of {what}."
        ) from error


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Every tensor of the folder by its bare name, as a pair of an open file and its name there."""
    if (folder / _WHOLE).is_file():
        shards = [_WHOLE]
    elif (folder / _INDEX).is_file():
        shards = _listed(folder)
    else:
        raise ValueError(f"{folder} has neither {_WHOLE} nor {_INDEX}.{_cure(folder)}")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(opened(folder / shard)) for shard in shards]
        pairs = [(file, name) for file in files for name in list(file.keys())]
        tensors = {name.removeprefix("transformer."): (file, name) for file, name in pairs}
        if len(tensors) < len(pairs):
            raise ValueError(
                f"{folder} has a tensor twice, under one name or with and without the prefix transformer."
            )
        yield tensors


def _listed(folder: Path) -> list[str]:
    """The files that the index names: of this folder, and nothing that is no file."""
    listed = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{folder / _INDEX} has no weight_map from tensors to files.")
    shards = sorted(set(listed.values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ValueError(f"{folder / _INDEX} names {shard!r}, which is no file of that folder.")
    return shards


def _cure(folder: Path) -> str:
    """What to do about a folder without weights."""
    files = sorted(folder.iterdir())
    if rest := [file.name for file in files if file.name.startswith(".written-")]:
        return f" Its saving was interrupted: move the files in {rest[0]} into it."
    if other := [file.name for file in files if file.suffix in (".bin", ".h5")]:
        return f" Convert {other[0]} with transformers' save_pretrained."
    return ""


def _shards(tensors: dict[str, np.ndarray], limit: int) -> dict[str, list[str]]:
    """The names of the tensors of every file, filled in order up to `limit` bytes."""
    groups, room = [], 0
    for name, tensor in tensors.items():
        if not groups or tensor.nbytes > room:
            groups, room = [*groups, []], limit
        groups[-1].append(name)
        room -= tensor.nbytes
    if len(groups) == 1:
        return {_WHOLE: groups[0]}
    shard = lambda i: _SHARD.format(f"{i:05d}", f"{len(groups):05d}")
    return {shard(i): group for i, group in enumerate(groups, 1)}


def _empty(config: GPT2Config) -> GPT2:
    """The model's structure, with shapes for arrays."""
    return eqx.filter_eval_shape(GPT2.init, config, jax.random.key(0))


def _is_stacked(path: tuple[Any, ...]) -> bool:
    return path[0].name == "blocks"


def _names(path: tuple[Any, ...], config: GPT2Config) -> list[str]:
    """The names in the file of the tensors of one leaf: one, or one for every layer."""
    first, *rest = (key.name for key in path)
    if _is_stacked(path):
        return [".".join(("h", str(layer), *rest)) for layer in range(config.n_layer)]
    return [".".join((first, *rest)) if rest else f"{first}.weight"]


def _filled(config: GPT2Config, tensors: dict[str, Any], dtype: DTypeLike | None) -> GPT2:
    used = set()
    # Before anything is made of it: a number in a text file may be any.
    layers = {int(found[1]) for name in tensors if (found := re.match(r"h\.(\d+)\.", name))}
    if len(layers) < config.n_layer:
        raise ValueError(
            f"config.json asks for n_layer={config.n_layer}, and the file has {len(layers)} layers."
        )

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"the tensor {name} {shape} is missing from the file.")
        file, stored = tensors[name]
        array = file.get_tensor(stored)
        if array.shape != shape:
            raise ValueError(
                f"the tensor {name} has shape {array.shape} in the file, but config.json makes it {shape}."
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"the tensor {name} is of {array.dtype} in the file: weights are floating."
            )
        if not np.isfinite(array).all():
            raise ValueError(f"the tensor {name} holds numbers that are not finite.")
        used.add(name)
        return array

    def fill(path, leaf):
        nonlocal dtype
        names, stacked = _names(path, config), _is_stacked(path)
        parts = [read(name, leaf.shape[1:] if stacked else leaf.shape) for name in names]
        array = np.stack(parts) if stacked else parts[0]
        if dtype is None:  # the first tensor speaks for all
            dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jnp.asarray(array, dtype)

    model = jax.tree_util.tree_map_with_path(fill, _empty(config))
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        head = read("lm_head.weight", model.wte.shape)
        if not np.array_equal(head, read("wte.weight", head.shape)):
            raise ValueError(
                "the file has a lm_head.weight that differs from wte.weight, but config.json ties them. Set "
                '"tie_word_embeddings": false there to use both.'
            )
    mask = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal one
    if left := sorted(name for name in set(tensors) - used if not mask.fullmatch(name)):
        raise ValueError(
            f"the file has tensors for which config.json has no place: {', '.join(left[:5])}"
            f"{', …' if len(left) > 5 else ''}. Does it belong to another model?"
        )
    return model
