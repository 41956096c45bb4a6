"""What neurons and oscillators do: voltages, spikes, rates, and the order among phases."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..relaxation import SpikeTrain
from ._figure import styles


def trace(
    times: Any,
    traces: Mapping[str, Any],
    *,
    stimulus: Any = None,
    labels: tuple[str, str, str] = ("time (ms)", "V (mV)", "I (µA/cm²)"),
    title: str = "",
) -> Figure:
    """Voltages against time, and below them the stimulus.

    **Arguments:** `times (m,)`. `traces`: name to `(m,)`. `stimulus (m,)`: or None. `labels`: of time, traces and stimulus.
    """
    figure = Figure(figsize=(8, 3.4 if stimulus is None else 4.4), layout="constrained")
    heights = (1,) if stimulus is None else (4, 1)
    above, *below = np.ravel(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    for (name, values), (colour, line) in zip(traces.items(), styles(len(traces)), strict=True):
        above.plot(np.asarray(times), np.asarray(values), color=colour, linestyle=line, label=name)
    above.set(ylabel=labels[1], title=title)
    if len(traces) > 1:
        figure.legend(loc="outside right upper", fontsize=8)
    for axes in below:
        axes.plot(np.asarray(times), np.asarray(stimulus), color="0.3")
        axes.set(ylabel=labels[2])
    (below or [above])[-1].set(xlabel=labels[0])
    for axes in (above, *below):
        axes.grid(alpha=0.3)
    return figure


def raster(
    train: SpikeTrain,
    *,
    duration: float,
    groups: Mapping[str, int] | None = None,
    width: float = 5.0,
    title: str = "",
) -> Figure:
    """Every spike as a dot, and below the rate of each group of neurons.

    **Arguments:** `train`: from `relaxation.fire`. `duration`: of the run, ms. `groups`: name to a number of neurons, in the
    order of their indices, all of them; by default all are one group. `width`: of the bins of the rate, ms.

    **Raises:** `ValueError` if the groups do not make up all neurons.
    """
    n = train.counts.size
    groups = {"all": n} if groups is None else groups
    if sum(groups.values()) != n:
        raise ValueError(f"`groups` must make up all {n} neurons, got {dict(groups)}.")
    times, indices = np.asarray(train.times), np.asarray(train.indices)
    times, indices = times[indices >= 0], indices[indices >= 0]
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, duration, max(1, round(duration / width)) + 1)
    first = 0
    for (name, count), (colour, line) in zip(groups.items(), styles(len(groups)), strict=True):
        mine = (indices >= first) & (indices < first + count)
        above.plot(times[mine], indices[mine], ".", color=colour, markersize=2, label=name)
        found, _ = np.histogram(times[mine], edges)
        rate = 1000 * found / (count * np.diff(edges))
        below.stairs(rate, edges, color=colour, linestyle=line, label=name)
        first += count
    above.set(ylabel="neuron", ylim=(-0.5, n - 0.5), title=title)
    below.set(xlabel="time (ms)", ylabel="rate (Hz)", xlim=(0, duration))
    below.grid(alpha=0.3)
    if len(groups) > 1:
        below.legend(fontsize=8)
    return figure


def f_i_curve(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    marks: Mapping[str, float] | None = None,
    unit: str = "µA/cm²",
    title: str = "",
) -> Figure:
    """Firing rate against current.

    **Arguments:** `curves`: name to `(currents, rates)`, each 1-D, the rates in Hz. `marks`: name to a current that is
    marked by a line: a Hopf point, say. `unit`: of the current.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, (current, rate)), (colour, line) in zip(
        curves.items(), styles(len(curves)), strict=True
    ):
        few = len(np.asarray(current)) < 60
        axes.plot(
            np.asarray(current),
            np.asarray(rate),
            color=colour,
            linestyle=line,
            marker="." if few else "",
            label=name,
        )
    for i, (name, current) in enumerate((marks or {}).items()):
        axes.axvline(
            current, color="0.4", linewidth=0.9, linestyle=("--", ":", "-.")[i % 3], label=name
        )
    axes.set(xlabel=f"current ({unit})", ylabel="rate (Hz)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def order_parameter(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    theory: Mapping[str, tuple[Any, Any]] | None = None,
    onset: float | None = None,
    labels: tuple[str, str] = ("coupling K", "order parameter r"),
    title: str = "",
) -> Figure:
    """Order parameter r against coupling K: measured points over the curve of the theory.

    **Arguments:** `curves`: name to `(couplings, r)`, each 1-D. `theory`: the same, drawn as lines; or None. `onset`: the critical
    coupling, drawn as a line, or None. `labels`: of the axes.
    """
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate((theory or {}).items()):
        axes.plot(*map(np.asarray, curve), color="0.4", linestyle=("-", ":")[i % 2], label=name)
    for i, (name, (coupling, r)) in enumerate(curves.items()):
        axes.plot(
            np.asarray(coupling), np.asarray(r), f"C{i}" + "osD^"[i % 4], markersize=5, label=name
        )
    if onset is not None:
        axes.axvline(
            onset, color="0.4", linewidth=0.9, linestyle="--", label=f"critical: {onset:.4g}"
        )
    axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(-0.03, 1.03), title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
