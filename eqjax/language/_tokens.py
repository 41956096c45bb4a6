"""Characters to integers, and integers to batches."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """One token per character of `characters` (sorted, no repeats)."""

    characters: str

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        return cls("".join(sorted(set(text))))

    @property
    def size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32, one per character; `ValueError` for a character that is not in the vocabulary."""
        points = np.array([ord(c) for c in self.characters])
        wanted = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(points.dtype)
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
        return "".join(self.characters[int(i)] for i in np.asarray(ids).ravel())


def split(ids: np.ndarray, length: int, fraction: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Cut a token stream into training and validation parts; each must hold a window of `length + 1`."""
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

    starts = len(ids) - length

    def window(i):
        return ids[i : i + length], ids[i + 1 : i + length + 1]

    # Fewer windows than a batch would drop every batch of an epoch: repeat first.
    data = grain.MapDataset.range(starts).seed(seed).shuffle().repeat().map(window).batch(batch)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(data.to_iter_dataset(options))


class Streams:
    """An endless iterator over `batch` streams that read `ids` on from window to window, each from a place of its own, round
    and round: `(inputs, targets)`, each int32 `(batch, length)`, targets one ahead.

    `get_state()` is its position, a JSON value, and `set_state` returns to it, as in a Grain iterator.
    """

    def __init__(self, ids: np.ndarray, *, length: int, batch: int, seed: int):
        self._ids, self._length, self._read = ids, length, 0
        self._starts = np.random.default_rng(seed).integers(0, len(ids), (batch, 1))

    def __iter__(self) -> "Streams":
        return self

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
    available = (len(ids) - 1) // length
    starts = length * np.unique(np.linspace(0, available - 1, min(count, available)).astype(int))
    index = starts[:, None] + np.arange(length)[None]
    return ids[index], ids[index + 1]
