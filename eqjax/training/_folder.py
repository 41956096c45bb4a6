"""The folder of a run: what lies where in it, and whether it is whole; metrics as JSON lines."""

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._files import TextFile, append_line, held, write_text
from ._checkpoint import CheckpointError, Checkpoints, UnreadableError


def checkpoints(folder: str | os.PathLike) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(folder) / "checkpoints"


def text_file(folder: str | os.PathLike) -> Path:
    """Where it keeps its text."""
    return Path(folder) / "text.txt"


def holds_run(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a run that can be opened: one with a complete checkpoint.

    ```python
    assert not ej.training.holds_run("nowhere")
    ```
    """
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
    if text_file(folder).exists() and not (folder / "config.yaml").exists():
        raise ValueError(
            f"`out` {folder} holds a {text_file(folder).name} that is no run's, and would be replaced. Choose another folder."
        )
    new, bare = not folder.exists(), not text_file(folder).exists()
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
        for made in [text_file(folder)] * bare + list(folder.glob("tokens-*.bin")):
            made.unlink(missing_ok=True)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


# A lock of the system's, and not a file that is there or not: of a process that was killed nothing is left to clear up.
@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The only writer of a run's folder. **Raises:** `ValueError` if another process is, with which and since when."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / "writer").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"{folder}: another process writes there, {file.read().strip() or 'just started'}. Wait for it, or end it; its "
                "claim ends with it."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}\n")
        file.flush()
        yield


def writer(folder: Path) -> str | None:
    """Which process writes to a run's folder, and since when; None if none does."""
    said = ""
    try:
        import fcntl

        with (folder / "writer").open(encoding="utf-8") as file:
            said = file.read().strip()
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return said or "a process that just started"
    except (ImportError, OSError):
        pass
    return None


def read_beside(
    folder: Path, read: Callable[[], Any], waits: tuple[float, ...] = (0.3, 1, 3)
) -> Any:
    """`read()`, tried again while another process writes to the folder: what it met may be half written, or replaced."""
    for wait in (*waits, None):
        try:
            return read()
        except UnreadableError as error:
            if (who := writer(folder)) is None:
                raise
            if wait is None:
                raise CheckpointError(
                    f"{folder}: {who} writes there, and there is nothing yet that can be read. Nothing is lost: try again "
                    "later, or when it has ended."
                ) from error
            time.sleep(wait)
    raise AssertionError


@contextlib.contextmanager
def blamed_on(folder: Path, step: int, place: Any, inputs: Any, tokenizer: Any) -> Iterator[None]:
    """An error in here is told with the batch that it met: in `crash.json`, and in a note that the error carries."""
    try:
        yield
    except Exception as error:
        host = f"-{jax.process_index()}" if jax.process_index() else ""
        path = folder / f"crash{host}.json"
        told = {"step": step, "error": f"{type(error).__name__}: {error}", "data": place}
        with contextlib.suppress(OSError, ValueError):  # what it is about is the first error
            told["batch"] = [tokenizer.decode(row) for row in np.asarray(inputs)]
            write_text(path, json.dumps(told, ensure_ascii=False, indent=1))
            error.add_note(f"In step {step}; its batch is in {path}.")
        raise


class Interrupt:
    """Within its context Ctrl-C is a wish, `asked`, that is granted when a step is done; a second one acts at once."""

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def kept_text(folder: Path, about: dict[str, Any]) -> str | TextFile:
    """The run's copy of its text; `CheckpointError` if it is not the one that its checkpoint speaks of."""
    path = text_file(folder)
    with path.open("rb") if path.exists() else io.BytesIO() as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != about["text_sha256"]:
        raise CheckpointError(
            f"{path}: missing, or not the text that this run was trained on ({about['source']}). "
            "Put a copy of that back in its place."
        )
    return held(TextFile(path, "utf-8"))


@contextlib.contextmanager
def opened_run(
    folder: Path, commands: Collection[str], step: int | None
) -> Iterator[tuple[Checkpoints, dict[str, Any]]]:
    """The checkpoints of a run, and what the one at `step` says about itself; `CheckpointError` if it is no run of one of these
    commands."""
    names = " or ".join(f"`eqjax {command}`" for command in commands)
    nothing = UnreadableError(
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


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers and lists for arrays, None for NaN and infinities.

    ```python
    assert ej.training.plain({"w": start, "loss": float("nan")}) == {"w": [0, 0, 0, 0], "loss": None}
    ```
    """
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if getattr(value, "ndim", 0):
        return plain(value.tolist())
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None  # JSON has no NaN


class Metrics:
    """An append-only `metrics.jsonl`; every line holds a `step` and is on disk when `write` returns.

    **Arguments:** `path`: the file. `after`: keep only the lines up to this step (a resumed run repeats what was
    logged after its checkpoint).

    ```python
    with tempfile.TemporaryDirectory() as folder:
        ej.training.Metrics(Path(folder) / "metrics.jsonl").write(1, loss=2.0)
        assert ej.training.read_metrics(Path(folder) / "metrics.jsonl")[0]["loss"] == 2
    ```
    """

    def __init__(self, path: str | Path, *, after: int = 0):
        self.path = Path(path)
        kept = [line for line in read_metrics(self.path) if line["step"] <= after] if after else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(self.path, text)

    def write(self, step: int, **values: Any) -> None:
        append_line(self.path, json.dumps({"step": step} | plain(values)))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line torn by a crash is left out.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}')
        assert ej.training.read_metrics(path) == [{"step": 1, "loss": 2.0}]
    ```
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_text("utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
