"""Texts that are too long to hold: made into tokens piece by piece, which stay in a file that is mapped into memory."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .._files import TextFile, pieces, whole
from ._bpe import BPETokenizer
from ._corpus import CharTokenizer

_KIND = np.dtype("<i4")
_DIGEST = hashlib.sha256().digest_size


def tokens_file(
    path: Path, tokenizer: CharTokenizer | BPETokenizer, text: str | TextFile
) -> np.ndarray:
    """The token ids of a text, int32, those of `tokenizer.encode(text)`, mapped from the file `path` and read where they are asked
    for. The file is written unless it is there, whole or not at all, and is neither held in memory nor is the text.

    A file that its own SHA-256 (its last bytes) does not fit is written anew. A tokenizer that does not cut at spaces, as GPT-2's
    does, gets the text at once.

    ```python
    tokenizer = ej.language.CharTokenizer("abc")
    with tempfile.TemporaryDirectory() as folder:
        found = ej.language.tokens_file(Path(folder) / "ids.bin", tokenizer, "cab")
        assert found.tolist() == [2, 0, 1]
    ```
    """
    found = _mapped(path)
    if found is None:
        _write(path, map(tokenizer.encode, _cut(tokenizer, text)))
        found = _mapped(path)
    assert found is not None
    return found


def _cut(tokenizer: CharTokenizer | BPETokenizer, text: str | TextFile) -> Iterable[str]:
    if isinstance(tokenizer, CharTokenizer):
        return pieces(text)
    return at_spaces(pieces(text)) if tokenizer.cuts_at_spaces else ["".join(pieces(text))]


# Where a word ends and a blank begins GPT-2's expression always cuts, whatever follows: it looks ahead in runs of blanks only.
def at_spaces(parts: Iterable[str]) -> Iterator[str]:
    """The same text, cut only before a space or line end after something else: its byte pairs are those of its pieces.

    ```python
    cut = list(ej.language.at_spaces(["settle an", "d answer"]))
    assert "".join(cut) == "settle and answer" and not any(part.endswith("an") for part in cut)
    ```
    """
    rest = ""
    for part in parts:
        before, rest = len(rest), rest + part
        places = range(len(rest) - 1, max(0, before - 1), -1)
        ends = (i for i in places if rest[i] in " \n" and not rest[i - 1].isspace())
        if cut := next(ends, 0):
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _write(path: Path, parts: Iterable[np.ndarray]) -> None:
    digest = hashlib.sha256()
    with whole(path) as temporary, temporary.open("wb") as file:
        for ids in parts:
            data = ids.astype(_KIND).tobytes()
            digest.update(data)
            file.write(data)
        file.write(digest.digest())


def _mapped(path: Path) -> np.ndarray | None:
    """The ids in a file; None if it is missing, or not as it was written."""
    size = path.stat().st_size - _DIGEST if path.is_file() else 0
    if size <= 0 or size % _KIND.itemsize:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for first in range(0, size, 2**20):
            digest.update(file.read(min(2**20, size - first)))
        if file.read() != digest.digest():
            return None
    return np.asarray(np.memmap(path, _KIND, "r", shape=(size // _KIND.itemsize,)))
