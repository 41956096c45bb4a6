"""What neurons, oscillators and memories do: voltages, spikes, rates, the order among phases, and what is recalled."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..relaxation import SpikeTrain
from ._figure import panels, styled


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
    height, ratios = (3.4, (1,)) if stimulus is None else (4.4, (4, 1))
    shape = {"nrows": len(ratios), "height_ratios": ratios, "sharex": True, "squeeze": False}
    figure, found = panels(8, height, **shape)
    above, *below = found[:, 0]
    for values, look in styled(traces):
        above.plot(np.asarray(times), np.asarray(values), **look)
    above.set(ylabel=labels[1], title=title)
    if len(traces) > 1:
        figure.legend(loc="outside right upper", fontsize=8)
    for axes in below:
        axes.plot(np.asarray(times), np.asarray(stimulus), color="0.3")
        axes.set(ylabel=labels[2])
    found[-1, 0].set(xlabel=labels[0])
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
    figure, (above, below) = panels(8, 5, 2, 1, sharex=True, height_ratios=(3, 1))
    above.grid(False)
    edges = np.linspace(0, duration, max(1, round(duration / width)) + 1)
    first = 0
    for count, look in styled(groups):
        mine = (indices >= first) & (indices < first + count)
        dots = look | {"linestyle": "none"}
        above.plot(times[mine], indices[mine], marker=".", markersize=2, **dots)
        found, _ = np.histogram(times[mine], edges)
        below.stairs(1000 * found / (count * np.diff(edges)), edges, **look)
        first += count
    above.set(ylabel="neuron", ylim=(-0.5, n - 0.5), title=title)
    below.set(xlabel="time (ms)", ylabel="rate (Hz)", xlim=(0, duration))
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
    figure, axes = panels(7, 4.2)
    for (current, rate), look in styled(curves):
        few = len(np.asarray(current)) < 60
        axes.plot(np.asarray(current), np.asarray(rate), marker="." if few else "", **look)
    for i, (name, current) in enumerate((marks or {}).items()):
        line = ("--", ":", "-.")[i % 3]
        axes.axvline(current, color="0.4", linewidth=0.9, linestyle=line, label=name)
    axes.set(xlabel=f"current ({unit})", ylabel="rate (Hz)", title=title)
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
    figure, axes = panels(6.5, 4.2)
    for i, (name, curve) in enumerate((theory or {}).items()):
        axes.plot(*map(np.asarray, curve), color="0.4", linestyle=("-", ":")[i % 2], label=name)
    for i, (name, curve) in enumerate(curves.items()):
        marker = f"C{i}" + "osD^"[i % 4]
        axes.plot(*map(np.asarray, curve), marker, markersize=5, label=name)
    if onset is not None:
        name = f"critical: {onset:.4g}"
        axes.axvline(onset, color="0.4", linewidth=0.9, linestyle="--", label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(-0.03, 1.03), title=title)
    axes.legend(fontsize=8)
    return figure


def recall(
    patterns: Mapping[str, Any], energies: Any = None, *, label: str = "sweep", title: str = ""
) -> Figure:
    """Patterns before and after, one column each, and the energy along the way.

    **Arguments:** `patterns`: name of a row (stored, cue, recalled) to images `(m, height, width)`, m the same in all rows.
    `energies (m, steps)`: the energy of each, drawn beside them; or None. `label`: of its axis. `title`: above the whole.

    **Raises:** `ValueError` if the rows are not of one number of images.
    """
    rows = {name: np.asarray(images) for name, images in patterns.items()}
    shapes = {name: images.shape for name, images in rows.items()}
    if any(len(s) != 3 for s in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
        raise ValueError(
            f"`patterns` must hold as many images in every row, each row of the shape (m, height, width), got {shapes}."
        )
    count = next(iter(shapes.values()))[0]
    height = 0.5 + sum(0.1 + 1.3 * s[1] / s[2] for s in shapes.values())
    more, least = (0.6, 1.0) if energies is None else (4.2, 2.8)
    size = 1.3 * count + more, max(height, least)
    figure = Figure(figsize=size, layout="constrained")
    whole: Any = figure
    if energies is not None:
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.3 * count, 4.0))
        whole, beside = parts
        axes = beside.subplots()
        for i, path in enumerate(np.asarray(energies)):
            axes.plot(np.arange(len(path)), path, f"C{i % 10}", marker=".", label=f"{i + 1}")
        axes.set(xlabel=label, ylabel="energy")
        axes.grid(alpha=0.3)
    found = whole.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(found, rows.items(), strict=True):
        low, high = images.min(), images.max()
        for i, (axes, image) in enumerate(zip(line, images, strict=True)):
            axes.imshow(image, cmap="Greys", vmin=low, vmax=high, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if i == 0:
                axes.set_ylabel(name)
    for i, axes in enumerate(found[0]):
        axes.set_title(str(i + 1), color=f"C{i % 10}", fontsize=9)
    figure.suptitle(title)
    return figure
