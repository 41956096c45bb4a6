"""How a state settles, how training went, and how gradients compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._figure import panels, styled


def residuals(curves: Mapping[str, tuple[Any, Any]], *, title: str = "") -> Figure:
    """Force residual against field evaluations, on a logarithmic axis.

    **Arguments:** `curves`: name to `(evaluations, residuals)`, each 1-D.
    """
    figure, axes = panels(6, 4)
    for (x, y), look in styled(curves):
        axes.semilogy(np.asarray(x), np.asarray(y), **look)
    axes.set(xlabel="field evaluations", ylabel="force residual ‖F‖/‖z‖", title=title)
    axes.legend()
    return figure


def training(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], *, baselines: Mapping[str, float] | None = None
) -> Figure:
    """Loss, residuals and gradient cosine along training, one curve per run.

    **Arguments:** `runs`: name to the lines of its `metrics.jsonl`. `baselines`: name to a cross-entropy, drawn as a
    level line.
    """
    figure, (loss, residual, cosine) = panels(13, 4, 1, 3)
    for lines, draw in styled(runs):
        name = draw["label"]
        loss.plot(*_series(lines, "loss"), **draw, alpha=0.8)
        dots = {"color": draw["color"], "marker": "o", "linestyle": "none"}
        loss.plot(*_series(lines, "validation"), **dots)
        residual.semilogy(*_series(lines, "free_residual"), **draw | {"label": f"{name}, free"})
        if len(_series(lines, "adjoint_residual")[0]):
            thin = draw | {"label": f"{name}, adjoint", "linewidth": 0.8, "alpha": 0.7}
            residual.semilogy(*_series(lines, "adjoint_residual"), **thin)
        steps, cosines = _series(lines, "probe_cosine")
        # The distance from 1 is what there is to see; below the resolution of float32 it is noise.
        cosine.semilogy(steps, np.maximum(1 - cosines, 1e-8), marker="o", **draw)
    for i, (name, level) in enumerate((baselines or {}).items()):
        _level(loss, level, name, 1 - 0.28 * i)
    loss.set(xlabel="step", ylabel="cross-entropy (nats/char)", title="loss (dots: validation)")
    residual.set(xlabel="step", ylabel="relative residual", title="worst accepted residual")
    cosine.set(xlabel="step", ylabel="1 - cosine", title="gradient against the exact oracle")
    _level(cosine, 1e-3, "cosine 0.999", 1)
    for axes in (loss, residual, cosine):
        axes.legend(fontsize=8)
    return figure


def comparison(table: Any) -> Figure:
    """A `Comparison` at a glance: error, adjoint residual and cost, one row per estimator.

    **Arguments:** `table`: what `eqjax.compare` returns.
    """
    rows = table.rows
    figure, found = panels(12, 1.4 + 0.32 * len(rows), 1, 3, sharey=True)
    columns = (
        ("relative_error", f"relative error against {table.reference}"),
        ("adjoint_residual", "worst adjoint residual"),
        ("field_evaluations", "field evaluations"),
    )
    places = np.arange(len(rows))
    for axes, (column, label) in zip(found, columns, strict=True):
        values = np.array([getattr(row, column) for row in rows], float)
        shown = np.isfinite(values) & (values > 0)
        for objective, colour in (("equilibrium", "C0"), ("finite horizon", "C1")):
            mine = shown & np.array([row.objective == objective for row in rows])
            axes.plot(values[mine], places[mine], "o", color=colour, label=objective)
        if shown.any():
            axes.set_xscale("log")
        axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    found[0].set_yticks(places, [row.estimator for row in rows])
    found[2].legend(title="objective", fontsize=8)
    return figure


def _level(axes: Axes, level: Any, name: str, place: Any) -> None:
    axes.axhline(level, color="0.5", linewidth=0.8)
    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axes.annotate(name, (place, level), **where)


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)
