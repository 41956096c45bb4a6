"""Files that are whole or not there, texts that may be too long to hold, and one line where the disk is full."""

import contextlib
import dataclasses
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class DiskFullError(OSError):
    """No space is left for a file. `path`: which."""

    def __init__(self, path: str | os.PathLike, cure: str = "Free space, and try again."):
        super().__init__(f"{path} could not be written: no space left on the disk. {cure}")
        self.path = path


# By its words, too: Orbax and safetensors raise errors of their own, with the system's inside.
def _is_full(error: Exception) -> bool:
    said = str(error)
    return getattr(error, "errno", None) in _FULL or any(os.strerror(n) in said for n in _FULL)


@contextlib.contextmanager
def space_for(path: str | os.PathLike, cure: str | None = None) -> Iterator[None]:
    """Within it a full disk is a `DiskFullError` that names `path`, or what was named further inside, and the `cure`."""
    told = () if cure is None else (cure,)
    try:
        yield
    except DiskFullError as error:
        raise (DiskFullError(error.path, *told) if told else error) from None
    except Exception as error:
        if not _is_full(error):
            raise
        raise DiskFullError(path, *told) from None


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path` to write to, which replaces it at the end; of a write that fails nothing is left."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        with space_for(path):
            yield temporary
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


PIECE = 2**16  # characters of a text that are taken at a time
IN_MEMORY = 2**26  # bytes of the longest text that is held


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A UTF-8 text that stays in its file, since it is too long to hold. A mark at its beginning is no character of it, unless
    `encoding` is plain `utf-8`."""

    path: Path
    encoding: str = "utf-8-sig"


def held(text: TextFile) -> str | TextFile:
    """The text itself, unless it is too long to hold."""
    long = text.path.stat().st_size > IN_MEMORY
    return text if long else text.path.read_bytes().decode(text.encoding)


def pieces(text: str | TextFile) -> Iterator[str]:
    """A text, piece by piece, with line ends as they are. **Raises:** `ValueError` for what is no UTF-8."""
    if isinstance(text, str):
        yield from (text[first : first + PIECE] for first in range(0, len(text), PIECE))
        return
    with text.path.open(encoding=text.encoding, newline="") as file:
        try:
            while piece := file.read(PIECE):
                yield piece
        except UnicodeDecodeError as error:
            raw: Any = file.buffer
            place = raw.tell() - len(error.object) + error.start
            raise ValueError(
                f"{text.path}: not UTF-8 text (byte {place} is {error.object[error.start]:#04x}). "
                "Is it a binary file? Convert it to UTF-8 first."
            ) from None


def digest(text: str | TextFile) -> str:
    """SHA-256 of a text in UTF-8."""
    found = hashlib.sha256()
    for piece in pieces(text):
        found.update(piece.encode())
    return found.hexdigest()


def write_text(path: str | os.PathLike, text: str | TextFile) -> None:
    """Write a file as UTF-8, with line ends as they are: all of it, or nothing."""
    with whole(path) as temporary, temporary.open("wb") as file:
        for piece in pieces(text):
            file.write(piece.encode())


def append_line(path: Path, line: str) -> None:
    """Append to a file: the line, or nothing."""
    with space_for(path):
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(f"{line}\n".encode())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise
