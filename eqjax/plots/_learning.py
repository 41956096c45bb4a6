"""How a state settles, how training went, and how gradients compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._figure import curve, curves as drawn, legend, logarithmic, look, panels


def residuals(curves: Mapping[str, tuple[Any, Any]], *, title: str = "", ax: Any = None) -> Figure:
    """Force residual against field evaluations, on a logarithmic axis.

    **Arguments:** `curves`: name to `(evaluations, residuals)`, each 1-D. `title`: above it. `ax`: axes to draw on; by
    default of a new figure.

    ```python
    figure = ej.plots.residuals({"Anderson": ([1, 5, 9], [1.0, 1e-2, 1e-5])})
    ```
    """
    labels = "field evaluations", "force residual ‖F‖/‖z‖"
    return drawn(curves, labels=labels, title=title, log="y", ax=ax)


def training(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    baselines: Mapping[str, float] | None = None,
    ax: Any = None,
) -> Figure:
    """Loss, residuals and gradient cosine along training, one curve per run.

    **Arguments:** `runs`: name to the lines of its `metrics.jsonl`. `baselines`: name to a cross-entropy, drawn as a
    level line. `ax`: axes of the three panels, or of the first ones; by default of a new figure.

    ```python
    figure = ej.plots.training({"mine": [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]})
    ```
    """
    figure, found = panels(ax, 13, 4, 1, 3)
    for axes, draw in zip(found, (_loss, _residual, _cosine), strict=False):
        for i, (name, lines) in enumerate(runs.items()):
            draw(axes, i, name, lines)
        axes.set_xlabel("step")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    for i, (name, level) in enumerate((baselines or {}).items()):
        _level(found[0], level, name, 1 - 0.28 * i)
    return figure


def _loss(axes: Axes, i: int, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    curve(axes, i, name, *_series(lines, "loss"), marker="", alpha=0.8)
    steps, values = _series(lines, "validation")
    dots: dict[str, Any] = look(i) | {"linestyle": "none"}
    axes.plot(steps, values, **dots)
    axes.set(ylabel="cross-entropy (nats/char)", title="loss (marks: validation)")


def _residual(axes: Axes, i: int, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    axes.set_yscale("log")
    for k, key in enumerate(("free", "adjoint")):
        x, y = _series(lines, f"{key}_residual")
        if k == 0 or len(x):
            curve(axes, 2 * i + k, f"{name}, {key}", x, y, color=look(i)["color"], linewidth=1)
    axes.set(ylabel="relative residual", title="worst accepted residual")


def _cosine(axes: Axes, i: int, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    axes.set_yscale("log")
    steps, cosines = _series(lines, "probe_cosine")
    # The distance from 1 is what there is to see; below the resolution of float32 it is noise.
    curve(axes, i, name, steps, np.maximum(1 - cosines, 1e-8))
    axes.set(ylabel="1 - cosine", title="gradient against the exact oracle")
    if i == 0:
        _level(axes, 1e-3, "cosine 0.999", 1)


def comparison(table: Any, *, ax: Any = None) -> Figure:
    """A `Comparison` at a glance: error, adjoint residual and cost, one row per estimator.

    **Arguments:** `table`: what `eqjax.compare` returns. `ax`: axes of the three panels, or of the first ones; by default of
    a new figure.

    ```python
    table = ej.compare(model, ej.squared_error, batch, [ej.AsymEP(), ej.OracleAdjoint()])
    figure = ej.plots.comparison(table)
    ```
    """
    rows = table.rows
    figure, found = panels(ax, 12, 1.8 + 0.32 * len(rows), 1, 3, sharey=True)
    columns = (
        ("relative_error", f"relative error against {table.reference}"),
        ("adjoint_residual", "worst adjoint residual"),
        ("field_evaluations", "field evaluations"),
    )
    places = np.arange(len(rows))
    for axes, (column, label) in zip(found, columns, strict=False):
        values = np.array([getattr(row, column) for row in rows], float)
        shown = np.isfinite(values) & (values > 0)
        for i, objective in enumerate(dict.fromkeys(row.objective for row in rows)):
            mine = shown & np.array([row.objective == objective for row in rows])
            dots = look(i) | {"linestyle": "none", "markersize": 6}
            axes.plot(values[mine], places[mine], **dots, label=f"gradient of the {objective}")
        if shown.any():
            logarithmic(axes, values[shown])
        axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    for axes in found[:1] if ax is None else found:  # ours share an axis y
        axes.set_yticks(places, [row.estimator for row in rows])
        axes.set_ylabel("estimator")
    legend(found[0], ax)
    return figure


def _level(axes: Axes, level: Any, name: str, place: Any) -> None:
    axes.axhline(level, color="0.5", linewidth=0.8)
    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axes.annotate(name, (place, level), **where)


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)
