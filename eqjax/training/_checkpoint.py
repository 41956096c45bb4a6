"""Checkpoints that describe themselves and notice when a byte has changed."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._extras import require
from .._files import DiskFullError, space_for

_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of something else."""


class UnreadableError(CheckpointError):
    """A checkpoint that is missing or damaged, or that another process has just replaced."""


def named_arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The array leaves of a tree by path, random keys as their raw data.

    ```python
    assert list(ej.training.named_arrays({"w": x})) == ["['w']"]
    ```
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            named[jax.tree_util.keystr(path)] = np.asarray(leaf)
    return named


def described(array: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and SHA-256 of an array, as JSON.

    ```python
    assert ej.training.described(np.zeros(3))["shape"] == [3]
    ```
    """
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": digest}


def signature(manifest: dict[str, Any]) -> str:
    """SHA-256 of what can be written as JSON.

    ```python
    assert len(ej.training.signature({"step": 1})) == 64
    ```
    """
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax writes what its threads fail of to the log, with pages of where; what counts of it is raised, too."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one run, in a folder, newest `keep` of them (0: all).

    Written by Orbax, atomically: a crash at any moment leaves the older ones as they were. Every array and
    the description carry a SHA-256, since Orbax restores a flipped byte as wrong numbers without a word.

    **Arguments:** `folder`; `keep`: how many to keep, 0 for all; `wait`: until one is written. If not, what fails of it is raised
    by the next `save`, or at the end, and until then the one before it is the newest.

    ```python
    with tempfile.TemporaryDirectory() as folder, ej.training.Checkpoints(folder, keep=2) as kept:
        kept.save(1, {"w": x}, {"about": "a first one"})
        assert kept.latest() == 1 and kept.restore({"w": start})["w"].all()
    ```
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, wait: bool = True):
        require("training")
        import orbax.checkpoint as ocp  # here, since it is an extra

        self._args = ocp.args
        self.folder = Path(folder).absolute()
        self._wait, me, several = wait, jax.process_index(), jax.process_count() > 1
        # One process writes, whatever others there are, and each reads by itself.
        alone = ocp.options.MultiprocessingOptions
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep or None,
            enable_async_checkpointing=not wait,
            create=not several,
            multiprocessing_options=alone(me, {me}, f"process_{me}") if several else alone(),
        )
        if several:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def close(self) -> None:
        with _quiet(), space_for(self.folder):
            self._manager.close()

    def __exit__(self, *_: Any) -> None:
        self.close()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, about: dict[str, Any]) -> None:
        """Store the arrays of `state` and the JSON value `about`: whatever is needed to rebuild the rest."""
        arrays = named_arrays(state)
        if not self._wait:  # what the step goes on to write over
            arrays = {name: np.array(array) for name, array in arrays.items()}
        manifest = {
            "format": _FORMAT,
            "step": step,
            "about": json.loads(json.dumps(about)),
            "arrays": {name: described(array) for name, array in arrays.items()},
        }
        signed = self._args.JsonSave(manifest | {"sha256": signature(manifest)})
        items = self._args.Composite(arrays=self._args.StandardSave(arrays), manifest=signed)
        place = self.folder / str(step)
        # Asked first, since threads of Orbax that find the disk full say so each for itself, and late.
        if shutil.disk_usage(self.folder).free < sum(a.nbytes for a in arrays.values()) + 2**20:
            raise DiskFullError(place)
        try:
            with _quiet(), space_for(place):
                self._manager.save(step, args=items, force=True)
        except DiskFullError:
            time.sleep(0.5)  # they may still be writing
            for half in self.folder.glob(f"{step}.*"):
                shutil.rmtree(half, ignore_errors=True)
            raise

    def about(self, step: int | None = None) -> dict[str, Any]:
        """What was stored as `about`, verified."""
        return self._manifest(self._which(step))["about"]

    def restore(self, template: PyTree, step: int | None = None) -> PyTree:
        """`template` with its arrays replaced by those stored, verified to the last byte.

        `CheckpointError` when the checkpoint is damaged, or holds other arrays than the template asks for.
        """
        step = self._which(step)
        stored = self._manifest(step)["arrays"]
        wanted = {name: described(a) for name, a in named_arrays(template).items()}
        kind = lambda d: f"{d['dtype']}{d['shape']}" if d else "nothing"
        for name in sorted(wanted.keys() | stored.keys()):
            ours, theirs = kind(wanted.get(name)), kind(stored.get(name))
            if ours != theirs:
                raise CheckpointError(
                    f"{self.folder}: this checkpoint is of another model: at `{name}` it holds {theirs}, and {ours} "
                    "is wanted. Rebuild the model with the settings stored in the checkpoint."
                )
        empty = lambda d: jax.ShapeDtypeStruct(tuple(d["shape"]), np.dtype(d["dtype"]))
        target = self._args.StandardRestore({name: empty(d) for name, d in stored.items()})
        try:
            items = self._args.Composite(arrays=target)
            arrays = self._manager.restore(step, args=items)["arrays"]
        except Exception as error:
            raise self._damaged(step, error) from error
        for name, description in stored.items():
            if described(np.asarray(arrays[name])) != description:
                raise self._damaged(step, f"the array `{name}` is not the one that was saved")

        def fill(path, leaf):
            if not isinstance(leaf, jax.Array):
                return leaf
            value = arrays[jax.tree_util.keystr(path)]
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
            return jnp.asarray(value)

        return jax.tree_util.tree_map_with_path(fill, template)

    def _which(self, step: int | None) -> int:
        if not self._wait:
            self._manager.wait_until_finished()
        step = self.latest() if step is None else step
        if step is None:
            raise UnreadableError(f"{self.folder}: no complete checkpoint here.")
        if step not in (steps := self.steps()):
            raise CheckpointError(
                f"{self.folder}: no checkpoint at step {step}; there are: {', '.join(map(str, steps))}."
            )
        return step

    def _manifest(self, step: int) -> dict[str, Any]:
        try:
            items = self._args.Composite(manifest=self._args.JsonRestore())
            manifest = dict(self._manager.restore(step, args=items)["manifest"])
            digest = manifest.pop("sha256")
        except Exception as error:
            raise self._damaged(step, error) from error
        if digest != signature(manifest):
            raise self._damaged(step, "its description is not the one that was saved")
        if manifest["format"] != _FORMAT:
            raise CheckpointError(
                f"{self.folder}: checkpoint format {manifest['format']}, this version reads {_FORMAT}."
            )
        return manifest

    def _damaged(self, step: int, why: Any) -> UnreadableError:
        if isinstance(why, Exception):
            why = f"{type(why).__name__}: {''.join(str(why).splitlines()[:1])}"
        return UnreadableError(
            f"{self.folder}: checkpoint {step} is damaged ({why}). Restore a copy of it, or move the folder "
            f"{self.folder / str(step)} away to go on from the one before."
        )
