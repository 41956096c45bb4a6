"""Which text there is to learn from: a file, a data set of Hugging Face's, or tiny Shakespeare."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

from .._extras import require
from .._files import whole
from ._corpus import Corpus, cache_folder, fallback_text, read_text, tiny_shakespeare

_PREFIX = "datasets:"


def is_dataset(text: str | os.PathLike) -> bool:
    """Whether what stands for a text is the name of a data set."""
    return os.fspath(text).startswith(_PREFIX)


def dataset_text(name: str) -> Corpus:
    """The text of a data set, one row after the other with an empty line between them, kept in the cache.

    **Arguments:** `name`: `datasets:OWNER/NAME`, also with the name of a configuration, a split and a column, as in
    `datasets:wikitext@wikitext-2-raw-v1:train:text`; by default split `train`, column `text`.

    **Raises:** `ImportError` where `datasets` is not installed (extra `datasets`); `ValueError` for a column that there is not;
    `ConnectionError` for a data set that cannot be had.
    """
    require("datasets")
    import datasets  # pyright: ignore[reportMissingImports]

    place, *rest = os.fspath(name).removeprefix(_PREFIX).split(":")
    path, _, config = place.partition("@")
    if len(rest) > 2 or not path or not all(rest):
        raise ValueError(
            f"`text` {name}: write datasets:OWNER/NAME, or datasets:OWNER/NAME@CONFIGURATION:SPLIT:COLUMN."
        )
    split, column = [*rest, *("train", "text")[len(rest) :]]
    try:
        rows: Any = datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # whatever went wrong, the cure is the same
        raise ConnectionError(
            f"the data set {path} could not be loaded ({type(error).__name__}: {error}). See that its name, configuration "
            "and split are right, or give a file."
        ) from error
    if column not in rows.column_names:
        raise ValueError(
            f"`text` {name}: the data set has no column {column}, but {', '.join(rows.column_names)}."
        )
    about = f"{place}:{split}:{column}:{getattr(rows, '_fingerprint', '')}"
    folder = cache_folder() / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.txt"
    if not kept.is_file():
        _write(rows, column, kept)
    text = read_text(kept).text
    return Corpus(text, f"the data set {place} (split {split}, column {column})")


def _write(rows: Any, column: str, path: Path) -> None:
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for number, row in enumerate(rows):
            if not isinstance(row[column], str):
                raise ValueError(
                    f"`text`: row {number} of the data set has no text in column {column}, but a {type(row[column]).__name__}."
                )
            file.write("\n\n" * (number > 0) + row[column])


def load_corpus(text: str | os.PathLike | None = None, *, fallback: bool = True) -> Corpus:
    """The user's file or data set if `text` is given, or else tiny Shakespeare.

    **Arguments:** `text`: a path, or `datasets:OWNER/NAME`, a data set of Hugging Face's, where the library is installed (extra
    `datasets`); also `datasets:OWNER/NAME@CONFIGURATION:SPLIT:COLUMN`, by default split `train`, column `text`.

    With `fallback`, an unreachable tiny Shakespeare is replaced, under a visible warning, by `fallback_text`;
    without, its `ConnectionError` is raised.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "own.txt").write_text("settle and answer")
        assert ej.language.load_corpus(path).text == "settle and answer"  # without a path: tiny Shakespeare
    ```
    """
    if text is not None:
        if is_dataset(text):
            return dataset_text(os.fspath(text))
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
