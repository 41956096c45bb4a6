"""The folder of a run: what lies where in it, and whether it is whole."""

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ._checkpoint import CheckpointError, Checkpoints


def checkpoints(folder: str | os.PathLike) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(folder) / "checkpoints"


def holds_run(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a run that can be opened: one with a complete checkpoint."""
    if not checkpoints(folder).is_dir():
        return False
    with Checkpoints(checkpoints(folder)) as found:
        return found.latest() is not None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder for a new run, which is made; what was made goes again if the run does not begin after all.

    **Raises:** `ValueError` if it holds a run, or files of somebody else, or cannot be written.
    """
    if holds_run(folder):
        with Checkpoints(checkpoints(folder)) as kept:
            command = kept.about().get("command", "train")
        raise ValueError(
            f"`out` {folder} already holds a run. Go on with it by `eqjax {command} --resume {folder}`, "
            "or choose another folder."
        )
    if _text(folder).exists() and not (folder / "config.yaml").exists():
        raise ValueError(
            f"`out` {folder} holds a {_text(folder).name} that is no run's, and would be replaced. Choose another folder."
        )
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"`out` {folder}: cannot write there ({error.strerror}). Choose another folder."
        ) from None
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def keep_text(folder: Path, text: str) -> None:
    """The text stays with the run: a moved folder, or a corpus that is out of reach later, does no harm."""
    _text(folder).write_bytes(text.encode("utf-8"))


def kept_text(folder: Path, about: dict[str, Any]) -> str:
    """The run's copy of its text; `CheckpointError` if it is not the one that its checkpoint speaks of."""
    path = _text(folder)
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != about["text_sha256"]:
        raise CheckpointError(
            f"{path}: missing, or not the text that this run was trained on ({about['source']}). "
            "Put a copy of that back in its place."
        )
    return data.decode("utf-8")


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def opened_run(
    folder: Path, commands: Collection[str], step: int | None
) -> Iterator[tuple[Checkpoints, dict[str, Any]]]:
    """The checkpoints of a run, and what the one at `step` says about itself; `CheckpointError` if it is no run of one of these
    commands."""
    names = " or ".join(f"`eqjax {command}`" for command in commands)
    nothing = CheckpointError(
        f"{folder}: no run here (no complete checkpoint). Name the folder that {names} wrote."
    )
    if not checkpoints(folder).is_dir():
        raise nothing
    with Checkpoints(checkpoints(folder)) as kept:
        if kept.latest() is None:
            raise nothing
        about = {"command": "train"} | kept.about(step)
        if about["command"] not in commands:
            raise CheckpointError(
                f"{folder}: this run is one of `eqjax {about['command']}`, not of {names}."
            )
        yield kept, about


def _text(folder: Path) -> Path:
    return folder / "text.txt"
