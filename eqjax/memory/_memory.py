"""What a model remembers between calls: a value, and its file."""

import abc
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from .._checks import check_kind
from .._files import space_for
from ..language import opened, replacing
from ._slots import Slots, along

_FORMAT = "eqjax memory 1"


class Memory(eqx.Module):
    """What was kept of ONE sequence so far. It goes in and comes out of a model as a value; an empty one is all zeros.

    - `slots`: long-term memory, `Slots` (with a leading axis of layers in a `MemoryGPT2`). `early`, `late`: states of the
      recurrences. None where the model has no such part.
    - `segments`, `tokens`: how many were read.
    """

    slots: Slots | None
    early: PyTree[Array]
    late: PyTree[Array]
    segments: Int[Array, "*b"]
    tokens: Int[Array, "*b"]

    @staticmethod
    def empty(slots: Slots | None, early: PyTree[Array], late: PyTree[Array]) -> "Memory":
        """The memory before the first segment."""
        zero = jnp.zeros((), jnp.int32)
        return Memory(slots, early, late, zero, zero)

    def after(self, read: Bool[Array, " t"], *, slots: Slots | None) -> "Memory":
        """The memory after a segment of the tokens marked in `read`, which were written to `slots`."""
        segments = self.segments + jnp.any(read).astype(jnp.int32)
        tokens = self.tokens + jnp.sum(read, dtype=jnp.int32)
        return Memory(slots, self.early, self.late, segments, tokens)

    def reset(self, where: Bool[ArrayLike, "*b"] = True) -> "Memory":
        """The empty memory; of a batch of memories `(B, …)`, only those that the mask `where (B,)` marks are emptied."""
        mask = jnp.asarray(where)
        clear = lambda leaf: jnp.where(along(mask, leaf), jnp.zeros_like(leaf), leaf)
        return jax.tree.map(clear, self)


class AbstractRemembering(eqx.Module):
    """A model whose calls take and return a `Memory`."""

    @abc.abstractmethod
    def memory(self) -> Memory:
        """An empty memory."""

    def check(self, memory: Memory) -> Memory:
        """The memory itself; `ValueError` for one that this model does not have."""
        check_kind(Memory, "a memory, such as `model.memory()`", memory=memory)
        kinds = lambda tree: jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", tree)
        if kinds(eqx.filter_eval_shape(self.memory)) != kinds(memory):
            raise ValueError(
                "`memory` is not one of this model, or of a whole batch: start with `model.memory()`, and for a batch "
                "of sequences use `jax.vmap`."
            )
        return memory

    @abc.abstractmethod
    def about(self) -> dict[str, Any]:
        """The settings that decide what its memory means, besides the arrays of the model; a JSON value."""


def save_memory(memory: Memory, path: str | os.PathLike, model: AbstractRemembering) -> None:
    """Write a memory, of one sequence or a batch, to a safetensors file that only `model` can go on with.

    The file is replaced whole: on any failure an old one stays as it was.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        ej.memory.save_memory(remembering.memory(), path, remembering)
        assert path.exists()
    ```
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"`path` {path} is a folder. Give the name of a file.")
    arrays = _arrays(memory)
    _fits(arrays, _arrays(model.memory()), "`memory` is not a memory of `model`")
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and not jnp.isfinite(array).all():
            raise ValueError(
                f"`memory` is spoilt: at `{name}` it holds numbers that are not finite, and would for ever. Go on from "
                "the one before, which is still in the file if it was saved there."
            )
    about = {"format": _FORMAT, "model": fingerprint(model), "sha256": _digest(arrays)}
    with replacing(path.parent) as fresh, space_for(path):
        safetensors.numpy.save_file(arrays, fresh / path.name, metadata=about)


def load_memory(path: str | os.PathLike, model: AbstractRemembering) -> Memory:
    """Read a memory that was saved with the same model, in this process or another.

    **Raises:** `ValueError` for a file that is missing, damaged, or of another model: a memory means nothing to weights
    that did not write it, also if they are the same ones trained further.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        ej.memory.save_memory(remembering.memory(), path, remembering)
        assert ej.memory.load_memory(path, remembering).tokens == 0
    ```
    """
    path, empty = Path(path), model.memory()
    with opened(path) as file:
        about = file.metadata() or {}
        if about.get("format") != _FORMAT:
            raise ValueError(
                f"{path} is not a memory: its format is {about.get('format')!r}, not {_FORMAT!r}."
            )
        arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    if _digest(arrays) != about.get("sha256"):
        raise ValueError(f"{path} is damaged: its contents are not those that were saved.")
    if about.get("model") != fingerprint(model):
        raise ValueError(
            f"{path} is the memory of another model: other weights (trained further, adapted or cast count), or "
            "another configuration. Load the model that wrote it, or start with `model.memory()`."
        )
    _fits(arrays, _arrays(empty), f"{path} is the memory of another model")
    stored = lambda path, leaf: jnp.asarray(arrays[jax.tree_util.keystr(path)], leaf.dtype)
    return jax.tree_util.tree_map_with_path(stored, empty)


def fingerprint(model: AbstractRemembering) -> str:
    """SHA-256 of a model's arrays and of the settings that give its memory a meaning."""
    return _digest(_arrays(model), json.dumps(model.about(), sort_keys=True))


def _arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """Every array by its path."""
    return {
        jax.tree_util.keystr(path): np.array(leaf, order="C")  # a scalar stays one
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if eqx.is_array(leaf)
    }


def _digest(arrays: dict[str, np.ndarray], about: str = "") -> str:
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _fits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], complaint: str) -> None:
    """`ValueError` unless the arrays are the wanted ones, all with the same batch axes in front or none."""
    batches = set()
    kind = lambda a: "nothing" if a is None else f"{a.dtype.name}{list(a.shape)}"
    for name in sorted(found.keys() | wanted.keys()):
        ours, theirs = wanted.get(name), found.get(name)
        if ours is not None and theirs is not None and theirs.dtype == ours.dtype:
            extra = theirs.ndim - ours.ndim
            if extra >= 0 and theirs.shape[extra:] == ours.shape:
                batches.add(theirs.shape[:extra])
                continue
        raise ValueError(
            f"{complaint}: at `{name}` it has {kind(theirs)}, where {kind(ours)} is wanted."
        )
    if len(batches) > 1:
        raise ValueError(f"{complaint}: its arrays disagree on the batch, {sorted(batches)}.")
