"""What all pictures share: their panels, how their curves are told apart, their legends, and how they are written."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .._checks import refuse
from .._files import whole

# Lines and markers repeat after 5 and 8, so that 40 curves differ without their colours, too.
COLOURS = ("#1b4f8a", "#e07a1f", "#2f9e6e", "#a3245b", "#6aaede", "#6b5b95")
LINES = ("-", "--", "-.", ":", (0, (7, 1, 1, 1, 1, 1)))
MARKS = ("o", "s", "^", "D", "v", "X", "P", "*")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, atomically.

    ```python
    figure = ej.plots.residuals({"Anderson": ([1, 5, 9], [1.0, 1e-2, 1e-5])})
    with tempfile.TemporaryDirectory() as folder:
        ej.plots.save(figure, Path(folder) / "residuals.png")
    ```
    """
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=130)


def panels(
    ax: Any, width: Any, height: Any, rows: int = 1, columns: int = 1, **settings: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and the axes of its panels, each with a light grid: our own, or those of the caller's, who may give fewer
    than there are panels, and so gets the first of them.

    **Raises:** `ValueError` if `ax` is neither axes nor a list of them, or has too many.
    """
    if ax is None:
        figure = Figure(figsize=(width, height), layout="constrained")
        found = list(figure.subplots(rows, columns, squeeze=False, **settings).flat)
    else:
        found = [ax] if isinstance(ax, Axes) else list(ax) if isinstance(ax, Iterable) else []
        most = rows * columns
        if not 1 <= len(found) <= most or not all(isinstance(a, Axes) for a in found):
            many = f", or a list of up to {most}, one for each panel" if most > 1 else ""
            raise ValueError(f"`ax` must be Matplotlib axes{many}, got {ax!r}.")
        figure: Any = found[0].get_figure(root=True)
    for axes in found:
        axes.grid(alpha=0.3)
    return figure, found


def look(i: int) -> dict[str, Any]:
    """Colour, line and marker of the i-th curve, in print without colours no other's."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": LINES[i % len(LINES)],
        "marker": MARKS[i % len(MARKS)],
        "markersize": 4,
    }


def curve(axes: Axes, i: int, name: str | None, x: Any, y: Any, **more: Any) -> None:
    """Draw the i-th curve. Long ones are marked at a few places, not where the others are: of curves that coincide, all
    are seen."""
    x, y = np.asarray(x), np.asarray(y)
    where = (0.02 + 0.05 * (i % 4), 0.2) if len(x) > 25 else None
    drawn: dict[str, Any] = look(i) | {"markevery": where} | more
    if np.isfinite(np.asarray(y, float)).any():  # without a place for a marker Matplotlib fails
        axes.plot(x, y, **drawn, label=name)


def curves(
    found: Mapping[str, tuple[Any, Any]],
    *,
    labels: tuple[str, str] = ("", ""),
    title: str = "",
    log: str = "",
    ax: Any = None,
) -> Figure:
    """Curves of your own in the style of the others: told apart without colours, too.

    **Arguments:** `found`: name to `(x, y)`, each 1-D; the name "" stays out of the legend. `labels`: of the two axes. `title`:
    above them. `log`: which axes are logarithmic, "x", "y" or "xy". `ax`: axes to draw on; by default of a new figure.

    **Raises:** `ValueError` for another `log`.

    ```python
    figure = ej.plots.curves({"n²": ([1, 2, 4], [1, 4, 16])}, labels=("n", "cost"), log="xy")
    ```
    """
    if log not in ("", "x", "y", "xy"):
        refuse("log", 'be "", "x", "y" or "xy"', log)
    figure, (axes,) = panels(ax, 6, 4)
    for axis in log:
        axes.set(**{f"{axis}scale": "log"})
    for i, (name, (x, y)) in enumerate(found.items()):
        curve(axes, i, name or None, x, y)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    legend(axes, ax)
    return figure


def legend(axes: Axes, ax: Any, columns: int = 4, **more: Any) -> None:
    """Every name once: above our own figure, where no data are, or in the caller's axes `ax`."""
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    both = list(once.values()), list(once)
    if not once:
        return
    if ax is not None:
        axes.legend(*both, fontsize=8, **more)
    else:
        where = {"loc": "outside upper center", "ncols": min(columns, len(once))}
        figure: Any = axes.get_figure(root=True)
        figure.legend(*both, fontsize=8, **where, **more)


def logarithmic(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis x from decade to decade, with a few ticks, whose labels do not meet."""
    axes.set_xscale("log")
    low, high = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))
    axes.set_xlim(10.0 ** (low - 0.1), 10.0 ** (max(high, low + 1) + 0.1))
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_formatter(NullFormatter())
