"""Files that are whole or not there, and one line where the disk is full."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

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


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file as UTF-8, with line ends as they are: all of it, or nothing."""
    with whole(path) as temporary:
        temporary.write_bytes(text.encode())


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
