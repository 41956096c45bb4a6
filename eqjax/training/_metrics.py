"""Metrics as JSON lines."""

import json
import math
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers and lists for arrays, None for NaN and infinities."""
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
    """

    def __init__(self, path: str | Path, *, after: int = 0):
        self.path = Path(path)
        kept = [line for line in read_metrics(self.path) if line["step"] <= after] if after else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, "utf-8")
        temporary.replace(self.path)

    def write(self, step: int, **values: Any) -> None:
        line = json.dumps({"step": step} | plain(values))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line torn by a crash is left out."""
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
