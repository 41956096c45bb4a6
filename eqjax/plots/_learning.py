"""How a state settles, how training went, and how gradients compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ._figure import styles


def residuals(curves: Mapping[str, tuple[Any, Any]], *, title: str = "") -> Figure:
    """Force residual against field evaluations, on a logarithmic axis.

    **Arguments:** `curves`: name to `(evaluations, residuals)`, each 1-D.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, (x, y)), (colour, line) in zip(curves.items(), styles(len(curves)), strict=True):
        axes.semilogy(np.asarray(x), np.asarray(y), color=colour, linestyle=line, label=name)
    axes.set(xlabel="field evaluations", ylabel="force residual ‖F‖/‖z‖", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def training(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], *, baselines: Mapping[str, float] | None = None
) -> Figure:
    """Loss, residuals and gradient cosine along training, one curve per run.

    **Arguments:** `runs`: name to the lines of its `metrics.jsonl`. `baselines`: name to a cross-entropy, drawn as a
    level line.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, residual, cosine = figure.subplots(1, 3)
    for (name, lines), (colour, style) in zip(runs.items(), styles(len(runs)), strict=True):
        draw = {"color": colour, "linestyle": style, "label": name}
        loss.plot(*_series(lines, "loss"), **draw, alpha=0.8)
        loss.plot(*_series(lines, "validation"), color=colour, marker="o", linestyle="none")
        residual.semilogy(*_series(lines, "free_residual"), **draw | {"label": f"{name}, free"})
        if len(_series(lines, "adjoint_residual")[0]):
            thin = draw | {"label": f"{name}, adjoint", "linewidth": 0.8, "alpha": 0.7}
            residual.semilogy(*_series(lines, "adjoint_residual"), **thin)
        steps, cosines = _series(lines, "probe_cosine")
        # The distance from 1 is what there is to see; below the resolution of float32 it is noise.
        cosine.semilogy(steps, np.maximum(1 - cosines, 1e-8), marker="o", **draw)
    for i, (name, level) in enumerate((baselines or {}).items()):
        loss.axhline(level, color="0.5", linewidth=0.8)
        loss.annotate(
            name, (1 - 0.28 * i, level), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    loss.set(xlabel="step", ylabel="cross-entropy (nats/char)", title="loss (dots: validation)")
    residual.set(xlabel="step", ylabel="relative residual", title="worst accepted residual")
    cosine.set(xlabel="step", ylabel="1 - cosine", title="gradient against the exact oracle")
    cosine.axhline(1e-3, color="0.5", linewidth=0.8)
    cosine.annotate(
        "cosine 0.999", (1, 1e-3), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    for axes in (loss, residual, cosine):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def comparison(table: Any) -> Figure:
    """A `Comparison` at a glance: error, adjoint residual and cost, one row per estimator.

    **Arguments:** `table`: what `eqjax.compare` returns.
    """
    rows = table.rows
    figure = Figure(figsize=(12, 1.4 + 0.32 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    columns = (
        ("relative_error", f"relative error against {table.reference}"),
        ("adjoint_residual", "worst adjoint residual"),
        ("field_evaluations", "field evaluations"),
    )
    places = np.arange(len(rows))
    for axes, (column, label) in zip(panels, columns, strict=True):
        values = np.array([getattr(row, column) for row in rows], float)
        shown = np.isfinite(values) & (values > 0)
        for objective, colour in (("equilibrium", "C0"), ("finite horizon", "C1")):
            mine = shown & np.array([row.objective == objective for row in rows])
            axes.plot(values[mine], places[mine], "o", color=colour, label=objective)
        if shown.any():
            axes.set_xscale("log")
        axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
        axes.grid(alpha=0.3)
    panels[0].set_yticks(places, [row.estimator for row in rows])
    panels[2].legend(title="objective", fontsize=8)
    return figure


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)
