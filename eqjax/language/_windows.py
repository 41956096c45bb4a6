"""Token ids to batches: windows, shuffled or read on, wherever the ids lie."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .._checks import check_count, check_number, check_seed, refuse


def split(ids: np.ndarray, length: int, fraction: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Cut a token stream into training and validation parts; each must hold a window of `length + 1`.

    ```python
    train, validation = ej.language.split(ids, length=3, fraction=0.75)
    assert (len(train), len(validation)) == (30, 10)
    ```
    """
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


def batches(ids: np.ndarray, *, length: int, batch: int, seed: int) -> "Windows":
    """An endless, shuffled stream of `(inputs, targets)`, each int32 `(batch, length)`, targets one ahead; see `Windows`.

    ```python
    inputs, targets = next(ej.language.batches(ids, length=6, batch=2, seed=0))
    assert inputs.shape == (2, 6) and np.all(targets[:, :-1] == inputs[:, 1:])
    ```
    """
    import grain  # here, so that a model can be used without it

    check_count(length=length, batch=batch)
    check_seed(seed=seed)
    starts = len(ids) - length
    if starts < 1:
        refuse("length", f"be shorter than the text of {len(ids)} tokens", length)

    if starts >= 2**32:  # the shuffle counts in 32 bits
        refuse("ids", "be less than 2³² tokens", len(ids), "Cut the text.")
    # Fewer windows than a batch would drop every batch of an epoch: repeat first.
    data = grain.MapDataset.range(starts).seed(seed).shuffle().repeat().batch(batch)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return Windows(ids, iter(data.to_iter_dataset(options)), length)


def _own(rows: np.ndarray, part: int, parts: int) -> np.ndarray:
    return rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]


class Windows(Iterator):
    """An endless iterator over `(inputs, targets)`, each int32 `(batch, length)`, targets one ahead: windows of `ids` (which may lie in
    a file) from where the Grain iterator `starts` says, a batch of numbers at a time.

    `get_state()` is its position, a JSON value, and `set_state` returns to it.

    ```python
    windows = ej.language.Windows(ids, iter([np.array([0, 5])]), length=6)
    inputs, targets = next(windows)
    assert inputs[1].tolist() == ids[5:11].tolist()
    ```
    """

    def __init__(self, ids: np.ndarray, starts: Any, length: int):
        self._ids, self._starts, self._length = ids, starts, length

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        return self.read()

    def read(self, part: int = 0, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Of the next batch the `part`-th of so many equal parts; of the others nothing is read."""
        starts = _own(next(self._starts), part, parts)
        text = self._ids[starts[:, None] + np.arange(self._length + 1)]
        return text[:, :-1], text[:, 1:]

    def get_state(self) -> dict[str, Any]:
        return self._starts.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._starts.set_state(state)


class Streams(Iterator):
    """An endless iterator over `batch` streams that read `ids` on from window to window, each from a place of its own, round
    and round: `(inputs, targets)`, each int32 `(batch, length)`, targets one ahead.

    `get_state()` is its position, a JSON value, and `set_state` returns to it, as in a Grain iterator.

    ```python
    streams = ej.language.Streams(ids, length=6, batch=2, seed=0)
    inputs, targets = next(streams)
    assert np.all(next(streams)[0][:, 0] == targets[:, -1])  # they read on
    ```
    """

    def __init__(self, ids: np.ndarray, *, length: int, batch: int, seed: int):
        check_count(length=length, batch=batch)
        check_seed(seed=seed)
        self._ids, self._length, self._read = ids, length, 0
        self._starts = np.random.default_rng(seed).integers(0, len(ids), (batch, 1))

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        return self.read()

    def read(self, part: int = 0, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Of the next batch the `part`-th of so many equal parts; of the others nothing is read."""
        own = _own(self._starts, part, parts)
        places = own + self._length * self._read + np.arange(self._length + 1)
        self._read += 1
        text = self._ids[places % len(self._ids)]
        return text[:, :-1], text[:, 1:]

    def get_state(self) -> dict[str, int]:
        return {"windows": self._read}

    def set_state(self, state: dict[str, int]) -> None:
        self._read = state["windows"]


def tiles(ids: np.ndarray, *, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` windows spread evenly over `ids`, for evaluation: inputs and targets `(n, length)`.

    ```python
    inputs, targets = ej.language.tiles(ids, length=6, count=3)
    assert inputs.shape == (3, 6)
    ```
    """
    check_count(length=length, count=count)
    available = (len(ids) - 1) // length
    if available < 1:
        refuse("length", f"be shorter than the text of {len(ids)} tokens", length)
    starts = length * np.unique(np.linspace(0, available - 1, min(count, available)).astype(int))
    index = starts[:, None] + np.arange(length)[None]
    return ids[index], ids[index + 1]
