"""What neurons, oscillators and memories do: voltages, spikes, rates, the order among phases, and what is recalled."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..relaxation import SpikeTrain
from ._figure import LINES, curve, legend, look, panels


def trace(
    times: Any,
    traces: Mapping[str, Any],
    *,
    stimulus: Any = None,
    labels: tuple[str, str, str] = ("time (ms)", "V (mV)", "I (µA/cm²)"),
    title: str = "",
    ax: Any = None,
) -> Figure:
    """Voltages against time, and below them the stimulus.

    **Arguments:** `times (m,)`. `traces`: name to `(m,)`. `stimulus (m,)`: or None. `labels`: of time, traces and stimulus.
    `title`: above it. `ax`: axes of the two panels, or of the first; by default of a new figure.

    ```python
    figure = ej.plots.trace([0, 1, 2], {"V": [-65, 20, -70]}, stimulus=[0, 10, 10])
    ```
    """
    height, ratios = (3.4, (1,)) if stimulus is None else (4.4, (4, 1))
    rows = len(ratios)
    figure, found = panels(ax, 8, height, rows, height_ratios=ratios, sharex=True)
    above, *below = found
    for i, (name, values) in enumerate(traces.items()):
        curve(above, i, name, times, values, **({} if len(traces) > 1 else {"marker": ""}))
    above.set(ylabel=labels[1], title=title)
    if len(traces) > 1:
        legend(above, ax)
    for axes in below:
        axes.plot(np.asarray(times), np.asarray(stimulus), color="0.3")
        axes.set(ylabel=labels[2])
    found[-1].set(xlabel=labels[0])
    return figure


def raster(
    train: SpikeTrain,
    *,
    duration: float,
    groups: Mapping[str, int] | None = None,
    width: float = 5.0,
    title: str = "",
    ax: Any = None,
) -> Figure:
    """Every spike as a dot, and below the rate of each group of neurons.

    **Arguments:** `train`: from `relaxation.fire`. `duration`: of the run, ms. `groups`: name to a number of neurons, in the
    order of their indices, all of them; by default all are one group. `width`: of the bins of the rate, ms. `title`: above
    it. `ax`: axes of the two panels, or of the first; by default of a new figure.

    **Raises:** `ValueError` if the groups do not make up all neurons.

    ```python
    neurons = ej.fields.LeakyIntegrateAndFire(current=15.0)
    scheme = ej.relaxation.FixedStep(0.1)
    train = ej.relaxation.fire(neurons, jnp.zeros(1), t1=20.0, capacity=4, scheme=scheme)
    figure = ej.plots.raster(train, duration=20.0)
    ```
    """
    n = train.counts.size
    groups = {"all": n} if groups is None else groups
    if sum(groups.values()) != n:
        raise ValueError(f"`groups` must make up all {n} neurons, got {dict(groups)}.")
    times, indices = np.asarray(train.times), np.asarray(train.indices)
    times, indices = times[indices >= 0], indices[indices >= 0]
    figure, (above, *below) = panels(ax, 8, 5, 2, sharex=True, height_ratios=(3, 1))
    above.grid(False)
    edges = np.linspace(0, duration, max(1, round(duration / width)) + 1)
    first = 0
    for i, (name, count) in enumerate(groups.items()):
        mine = (indices >= first) & (indices < first + count)
        dots = look(i) | {"linestyle": "none", "markersize": 2, "markeredgewidth": 0.0}
        above.plot(times[mine], indices[mine], **dots, label=name)
        spikes, _ = np.histogram(times[mine], edges)
        line = {key: look(i)[key] for key in ("color", "linestyle")}
        for axes in below:
            axes.stairs(1000 * spikes / (count * np.diff(edges)), edges, **line, label=name)
        first += count
    above.set(ylabel="neuron", ylim=(-0.5, n - 0.5), xlim=(0, duration), title=title)
    for axes in below:
        axes.set(ylabel="rate (Hz)")
    [above, *below][-1].set(xlabel="time (ms)")
    if len(groups) > 1:
        # What tells the groups apart are the dots above and the lines below; the legend shows the former, larger.
        legend(above, ax, markerscale=3)
        for axes in below:
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def f_i_curve(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    marks: Mapping[str, float] | None = None,
    unit: str = "µA/cm²",
    title: str = "",
    ax: Any = None,
) -> Figure:
    """Firing rate against current.

    **Arguments:** `curves`: name to `(currents, rates)`, each 1-D, the rates in Hz. `marks`: name to a current that is
    marked by a line: a Hopf point, say. `unit`: of the current. `title`: above it. `ax`: axes to draw on; by default of a
    new figure.

    ```python
    figure = ej.plots.f_i_curve({"measured": ([0, 10, 20], [0, 68, 90])}, marks={"Hopf": 9.8})
    ```
    """
    figure, (axes,) = panels(ax, 7, 4.2)
    for i, (name, (current, rate)) in enumerate(curves.items()):
        few = {"markersize": 3, "markevery": None} if len(np.asarray(current)) < 100 else {}
        curve(axes, i, name, current, rate, **few)
    for i, (name, current) in enumerate((marks or {}).items()):
        axes.axvline(current, color="0.4", linewidth=0.9, linestyle=_line(i + 1), label=name)
    axes.set(xlabel=f"current ({unit})", ylabel="rate (Hz)", title=title)
    legend(axes, ax, columns=2)
    return figure


def order_parameter(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    theory: Mapping[str, tuple[Any, Any]] | None = None,
    onset: float | None = None,
    labels: tuple[str, str] = ("coupling K", "order parameter r"),
    title: str = "",
    ax: Any = None,
) -> Figure:
    """Order parameter r against coupling K: measured points over the curve of the theory.

    **Arguments:** `curves`: name to `(couplings, r)`, each 1-D. `theory`: the same, drawn as lines; or None. `onset`: the critical
    coupling, drawn as a line, or None. `labels`: of the axes. `title`: above it. `ax`: axes to draw on; by default of a new
    figure.

    ```python
    figure = ej.plots.order_parameter({"n = 1000": ([1, 2, 3], [0.1, 0.1, 0.6])}, onset=2.0)
    ```
    """
    figure, (axes,) = panels(ax, 6.5, 4.2)
    lines = theory or {}
    for i, (name, found) in enumerate(lines.items()):
        axes.plot(*map(np.asarray, found), color="0.4", linestyle=_line(i), label=name)
    for i, (name, found) in enumerate(curves.items()):
        axes.plot(
            *map(np.asarray, found), **look(i) | {"linestyle": "none", "markersize": 5}, label=name
        )
    if onset is not None:
        name = f"critical: {onset:.4g}"
        line = _line(max(1, len(lines)))
        axes.axvline(onset, color="0.4", linewidth=0.9, linestyle=line, label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(-0.03, 1.03), title=title)
    legend(axes, ax, columns=2)
    return figure


def recall(
    patterns: Mapping[str, Any],
    energies: Any = None,
    *,
    label: str = "sweep",
    title: str = "",
    ax: Any = None,
) -> Figure:
    """Patterns before and after, one column each, and the energy along the way; where energies coincide, one curve that
    names all its columns.

    **Arguments:** `patterns`: name of a row (stored, cue, recalled) to images `(m, height, width)`, m the same in all rows.
    `energies (m, steps)`: the energy of each, drawn beside them; or None. `label`: of its axis. `title`: above the whole. `ax`:
    axes of images and energies, or of the images alone; by default of a new figure.

    **Raises:** `ValueError` if the rows are not of one number of images.

    ```python
    figure = ej.plots.recall({"stored": np.ones((1, 4, 4)), "recalled": np.ones((1, 4, 4))})
    ```
    """
    rows = {name: np.asarray(images) for name, images in patterns.items()}
    shapes = {name: images.shape for name, images in rows.items()}
    if any(len(s) != 3 for s in shapes.values()) or len({s[0] for s in shapes.values()}) != 1:
        raise ValueError(
            f"`patterns` must hold as many images in every row, each row of the shape (m, height, width), got {shapes}."
        )
    count = next(iter(shapes.values()))[0]
    heights = [s[1] / s[2] for s in shapes.values()]
    images, energy = 1.2 * count + 0.8, 4.2
    size = (images, 0.8 + sum(0.1 + 1.2 * h for h in heights))
    if energies is None:
        figure, found = panels(ax, *size)
    else:
        widths = images + energy, max(size[1], 2.8)
        figure, found = panels(ax, *widths, 1, 2, width_ratios=(images, energy))
        for axes in found[1:]:
            _energies(axes, np.asarray(energies), label)
    _mosaic(found[0], rows, heights)
    (figure.suptitle if ax is None else found[0].set_title)(title)
    return figure


def _mosaic(axes: Axes, rows: Mapping[str, np.ndarray], heights: list[float]) -> None:
    """Images beside and below one another, each a unit wide, with a gap between them; each row in its own range."""
    tops = np.cumsum([0.0, *(h + 0.1 for h in heights[:-1])])
    for images, top, height in zip(rows.values(), tops, heights, strict=True):
        shades = {"cmap": "Greys", "vmin": images.min(), "vmax": images.max()}
        for i, image in enumerate(images):
            place = (1.1 * i, 1.1 * i + 1, top + height, top)
            axes.imshow(image, extent=place, interpolation="nearest", **shades)
            axes.add_patch(Rectangle((1.1 * i, top), 1, height, fill=False, color="0.6", lw=0.6))
    columns = 1.1 * np.arange(len(next(iter(rows.values()))))
    axes.grid(False)
    axes.set_yticks(tops + 0.5 * np.array(heights), list(rows))
    axes.set_xticks(columns + 0.5, [str(i + 1) for i in range(len(columns))])
    axes.set(xlim=(-0.1, columns[-1] + 1.1), ylim=(tops[-1] + heights[-1] + 0.1, -0.1))
    axes.set(xlabel="pattern", ylabel="state")
    axes.tick_params(length=0)


def _energies(axes: Axes, energies: np.ndarray, label: str) -> None:
    close = 5e-3 * max(float(np.ptp(energies)), 1e-12)  # less than the width of a line
    groups: list[list[int]] = []
    for i, path in enumerate(energies):
        alike = (g for g in groups if np.max(np.abs(path - energies[g[0]])) < close)
        group = next(alike, None)
        groups.append([i]) if group is None else group.append(i)
    for k, group in enumerate(groups):
        curve(axes, k, _numbers(group), np.arange(energies.shape[1]), energies[group[0]])
    axes.set(xlabel=label, ylabel="energy")
    axes.legend(title="pattern", fontsize=8)


def _numbers(group: list[int]) -> str:
    """Columns as they are numbered: a run of three or more by its ends."""
    if len(group) > 2 and group[-1] - group[0] == len(group) - 1:
        return f"{group[0] + 1} to {group[-1] + 1}, alike"
    return ", ".join(str(i + 1) for i in group)


def _line(i: int) -> Any:
    return LINES[i % len(LINES)]
