"""What all pictures share: their panels, how their curves are told apart, and how they are written."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .._files import whole

_STYLE = (("C0", "-"), ("C1", "--"), ("C2", ":"), ("C3", "-."))


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=130)


def panels(width: Any, height: Any, *shape: int, **settings: Any) -> tuple[Figure, Any]:
    """A figure and its axes, each with a light grid; rows and columns by default one."""
    figure = Figure(figsize=(width, height), layout="constrained")
    found = figure.subplots(*shape, **settings)
    for axes in np.ravel(found):
        axes.grid(alpha=0.3)
    return figure, found


def styled(curves: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Every curve with its label, colour and line, different in black and white too."""
    for i, (name, curve) in enumerate(curves.items()):
        colour, line = _STYLE[i % len(_STYLE)]
        yield curve, {"label": name, "color": colour, "linestyle": line}
