"""How a field loses its fixed points: branches, spectra, cycles and flows on the plane."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..stability import Branch, Curve, CycleBranch, CycleCurve, Diagram, Spectrum
from ._figure import COLOURS, curve, legend, panels

_MARKERS = {
    "fold": "s",
    "branch point": "D",
    "Hopf": "o",
    "flip": "^",
    "Neimark–Sacker": "v",
    "period doubling": "<",
    "torus": ">",
    "cusp": "d",
    "Bautin": "h",
    "Bogdanov–Takens": "P",
    "zero–Hopf": "X",
    "Hopf–Hopf": "8",
}
_STABLE, _EULER, _UNSTABLE = "stable", "Euler leaves", "unstable"
_LINES: dict[str, dict[str, Any]] = {
    _STABLE: {"color": COLOURS[0], "linestyle": "-"},
    _EULER: {"color": COLOURS[1], "linestyle": "-."},
    _UNSTABLE: {"color": COLOURS[3], "linestyle": "--"},
}


def branch(
    branch: Branch,
    *,
    value: Callable[[Any], Any] | None = None,
    labels: tuple[str, str] = ("parameter", "‖z‖"),
    ax: Any = None,
) -> Figure:
    """A bifurcation diagram: a number of the state against the parameter, and below it the growth of the fastest mode.

    Solid where the fixed point is stable, dash-dotted where only Euler leaves it, dashed where the flow does. Every kind of
    special point has a marker and its places in the legend, with the label of the flow and that of the Euler map: full
    where both change, half where the flow alone does, hollow where Euler does.

    **Arguments:** `branch`: from `stability.continuation`. `value`: the number of a state; its norm by default. `labels`:
    of the two axes. `ax`: axes of the two panels, or of the first; by default of a new figure.

    ```python
    draw = lambda found: ej.plots.branch(found, labels=("gain", "‖z‖"))  # what `continuation` found
    ```
    """
    value = _norm if value is None else value
    along = _along(branch, value)
    figure, found = panels(ax, 9, 6, 2, sharex=True, height_ratios=(2, 1))
    euler = branch.unstable_euler
    kind = lambda p: p.flow if euler is None else f"flow: {p.flow}, Euler: {p.euler}"
    there = lambda point: float(value(point.state))
    _draw(found[0], branch, along, there, kind, euler, places=True)
    found[0].set(ylabel=labels[1])
    found[-1].set(xlabel=labels[0])
    for below in found[1:]:
        _growth(below, branch)
    legend(found[0], ax, columns=2)
    return figure


def _growth(axes: Axes, branch: Branch) -> None:
    parameters = np.asarray(branch.parameters)
    growth = np.max(np.real(np.asarray(branch.spectra.values)), axis=1)
    curve(axes, 0, "max Re μ", parameters, growth, marker="")
    if branch.multipliers is not None:
        size = np.max(np.abs(np.asarray(branch.multipliers)), axis=1)
        curve(axes, 1, "max |λ| - 1", parameters, size - 1, marker="")
    for point in branch.special_points:
        axes.axvline(point.parameter, color="0.8", linewidth=0.8, zorder=0)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set(ylabel="growth")
    axes.legend(fontsize=8)


def diagram(
    diagram: Diagram,
    *,
    value: Callable[[Any], Any] | None = None,
    labels: tuple[str, str] = ("parameter", "‖z‖"),
    ax: Any = None,
) -> Figure:
    """All branches of a diagram: a number of the state against the parameter, solid where the flow stays, dashed where it
    leaves; special points by their kind; and of cycles the number at the point that is kept of each, dotted.

    **Arguments:** `diagram`: from `stability.diagram`. `value`, `labels`: as for `branch`. `ax`: axes to draw on; by default of
    a new figure.

    ```python
    draw = lambda found: ej.plots.diagram(found, value=lambda z: z[0])  # what `ej.stability.diagram` found
    ```
    """
    value = _norm if value is None else value
    figure, (axes,) = panels(ax, 9, 5.5)
    for branch in diagram.branches:
        along = _along(branch, value)
        there = lambda point: float(value(point.state))
        _draw(axes, branch, along, there, lambda point: point.type, branch.unstable_euler)
    for cycle in diagram.cycles:
        along = _along(cycle, value)
        parameters = np.asarray(cycle.parameters)
        axes.plot(parameters, along, color=COLOURS[2], linestyle=":", label="cycles")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    legend(axes, ax)
    return figure


def _along(branch: Any, value: Callable[[Any], Any]) -> list[float]:
    """The number of each state of a branch."""
    at = lambda i: jax.tree.map(lambda a: a[i], branch.states)
    return [float(value(at(i))) for i in range(branch.parameters.size)]


def spectrum(spectrum: Spectrum, *, step: float | None = None, ax: Any = None) -> Figure:
    """Eigenvalues μ in the complex plane, with the imaginary axis, where the flow loses them, and the circle
    `|1 + εμ| = 1`, where Euler does.

    **Arguments:** `spectrum`: from `stability.spectrum`, of one sample or a batch. `step`: ε; by default that of the
    spectrum, and without either no circle. `ax`: axes to draw on; by default of a new figure.

    ```python
    found = ej.stability.spectrum(network, jnp.zeros(2), k=2, step=1.0)
    figure = ej.plots.spectrum(found)
    ```
    """
    values = np.asarray(spectrum.values).ravel()
    if step is None and spectrum.step is not None:
        step = float(np.ravel(np.asarray(spectrum.step))[0])
    figure, (axes,) = panels(ax, 7, 5.5)
    re, im = np.real(values), np.imag(values)
    grows = re > 0
    leaves = ~grows & (abs(1 + (step or 0) * values) > 1)
    kinds = (
        ("decays", ~grows & ~leaves, _STABLE, "o"),
        ("Euler alone leaves", leaves, _EULER, "^"),
        ("grows", grows, _UNSTABLE, "X"),
    )
    for name, mine, as_branch, marker in kinds:
        if mine.any():
            colour = _LINES[as_branch]["color"]
            axes.plot(re[mine], im[mine], marker, color=colour, label=f"{name} ({mine.sum()})")
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    # As much of the plane as the eigenvalues and the origin ask for, of a disc that may be far larger.
    width, height = np.ptp(np.append(re, 0)), 2 * np.max(abs(im))
    margin = 0.12 * max(width, height, 1e-12)
    left, right = min(re.min(), 0) - margin, max(re.max(), 0) + margin
    top = 0.5 * height + margin
    if step is not None:
        angle = np.linspace(0, 2 * np.pi, 2001)
        circle = (np.exp(1j * angle) - 1) / step
        axes.fill(circle.real, circle.imag, color=COLOURS[0], alpha=0.08)
        name = f"|1 + εμ| = 1, ε = {step:.4g}"
        axes.plot(circle.real, circle.imag, color=COLOURS[0], linewidth=1, label=name)
    # A narrow cloud has more of the plane around it, and so fills the canvas; a very narrow one would not be seen.
    equal = 0.2 < (right - left) / (2 * top) < 5
    if equal:
        canvas = axes.get_window_extent()
        wider = max(0.0, 2 * top * canvas.width / canvas.height - (right - left)) / 2
        left, right = left - wider, right + wider
        top = max(top, 0.5 * (right - left) * canvas.height / canvas.width)
    axes.set(xlim=(left, right), ylim=(-top, top), xlabel="Re μ", ylabel="Im μ")
    axes.set_aspect("equal" if equal else "auto")
    legend(axes, ax)
    return figure


def cycles(branch: CycleBranch, *, label: str = "parameter", ax: Any = None) -> Figure:
    """A branch of cycles: amplitude, period and the size of the multipliers, solid where the cycle is stable.

    **Arguments:** `branch`: from `stability.cycle_continuation`. `label`: of the parameter. `ax`: axes of the three panels, or
    of the first ones; by default of a new figure.

    ```python
    draw = lambda found: ej.plots.cycles(found, label="gain")  # what `cycle_continuation` found
    ```
    """
    figure, found = panels(ax, 13, 4.4, 1, 3)
    kind = lambda point: point.type
    rows = (
        ("amplitude", branch.amplitudes, lambda point: point.amplitude),
        ("period T", branch.periods, lambda point: point.period),
    )
    for axes, (name, along, there) in zip(found, rows, strict=False):
        _draw(axes, branch, np.asarray(along), there, kind, places=True)
        axes.set(xlabel=label, ylabel=name)
    for axes in found[2:]:
        _multipliers(axes, branch)
        axes.set(xlabel=label, ylabel="|multipliers|")
    legend(found[0], ax)
    return figure


def _multipliers(axes: Axes, branch: CycleBranch) -> None:
    # As many orders as a picture can hold.
    sizes = np.exp(np.clip(np.real(np.asarray(branch.log_multipliers)), -200, 200))
    for i in range(sizes.shape[1]):
        curve(axes, i, None, branch.parameters, sizes[:, i])
    if np.max(sizes) > 10:  # linear around 1 all the same, where it matters
        axes.set_yscale("symlog", linthresh=2)
    axes.axhline(1, color="0.3", linewidth=0.8)
    for point in branch.special_points:
        axes.axvline(point.parameter, color="0.8", linewidth=0.8, zorder=0)


def critical_curves(
    curves: Mapping[str, Curve | CycleCurve],
    *,
    labels: tuple[str, str] = ("first parameter", "second parameter"),
    ax: Any = None,
) -> Figure:
    """Folds, Hopf points, critical cycles and their like in two parameters, and the points of codimension two on them.

    **Arguments:** `curves`: name to a `Curve`, from `stability.fold_curve` or `hopf_curve`, or a `CycleCurve`, from
    `cycle_curve`. `labels`: of the two axes. `ax`: axes to draw on; by default of a new figure.

    ```python
    figure = ej.plots.critical_curves({}, labels=("a", "b"))  # name to what `hopf_curve` returns
    ```
    """
    figure, (axes,) = panels(ax, 6.5, 5)
    kinds: dict[str, list[Any]] = {}
    for i, (name, found) in enumerate(curves.items()):
        curve(axes, i, name, *np.asarray(found.parameters).T, marker="")
        for point in found.special_points:
            kinds.setdefault(point.type, []).append(point.parameters)
    for name, places in kinds.items():
        marker = _MARKERS.get(name, "*")
        x, y = np.asarray(places, float).T
        axes.plot(x, y, "k", linestyle="none", marker=marker, label=name)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    legend(axes, ax)
    return figure


def phase_portrait(
    field: Callable[..., Any],
    limits: tuple[tuple[Any, Any], tuple[Any, Any]],
    x: Any = None,
    *,
    curves: Mapping[str, Any] | None = None,
    points: int = 60,
    ax: Any = None,
) -> Figure:
    """The flow of a field on the plane, with its nullclines.

    **Arguments:** `field`, `x`: as for `relax`, of a state of shape (2,). `limits`: of the first coordinate and of the
    second. `curves`: name to states `(m, 2)`, drawn over it: trajectories, cycles; a single one as a dot. `points`: of
    the grid, along either side. `ax`: axes to draw on; by default of a new figure.

    ```python
    figure = ej.plots.phase_portrait(oscillator, ((-2, 2), (-2, 2)), points=8)
    ```
    """
    first, second = (np.linspace(*limit, points) for limit in limits)
    grid = jnp.asarray(np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2))
    force = np.asarray(jax.vmap(lambda z: field(0.0, z, x))(grid)).reshape(points, points, 2)
    figure, (axes,) = panels(ax, 6.5, 5.5)
    axes.grid(False)
    axes.streamplot(first, second, force[..., 0], force[..., 1], color="0.75", linewidth=0.7)
    for i, (style, colour) in enumerate((("--", COLOURS[0]), (":", COLOURS[1]))):
        name = f"$\\dot z_{i + 1} = 0$"
        axes.contour(first, second, force[..., i], [0.0], colors=colour, linestyles=style)
        axes.plot([], [], color=colour, linestyle=style, label=name)
    for i, (name, states) in enumerate((curves or {}).items()):
        path = np.atleast_2d(np.asarray(states))
        curve(axes, i, name, *path.T, color=COLOURS[(i + 2) % len(COLOURS)])
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=limits[0], ylim=limits[1])
    legend(axes, ax)
    return figure


def _norm(state: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(np.asarray(a)) ** 2) for a in jax.tree.leaves(state))))


def _look(unstable: int, unstable_euler: int) -> str:
    return _UNSTABLE if unstable > 0 else _EULER if unstable_euler > 0 else _STABLE


def _draw(
    axes: Axes,
    branch: Any,
    along: Any,
    there: Callable,
    kind: Callable,
    euler: Any = None,
    *,
    places: bool = False,
) -> None:
    """A branch whose points have the values `along` and whose special points those that `there` gives, in pieces that look
    as their first point does; special points are marked, those of a `kind` alike, and named with or without their
    `places`."""
    # Between neighbouring points the counts change at the special points, and the line there.
    nodes = []
    for i, p in enumerate(np.asarray(branch.parameters)):
        counts = [int(branch.unstable[i]), 0 if euler is None else int(euler[i])]
        nodes.append((p, along[i], _look(*counts)))
        for point in (s for s in branch.special_points if s.index == i):
            counts[0] += point.change
            counts[1] += 0 if euler is None else point.change_euler
            nodes.append((point.parameter, there(point), _look(*counts)))
    start, named = 0, set()
    for i in range(1, len(nodes)):
        if i == len(nodes) - 1 or nodes[i][2] != nodes[start][2]:
            look = nodes[start][2]
            p, value, _ = zip(*nodes[start : i + 1], strict=True)
            axes.plot(p, value, **_LINES[look], label=None if look in named else look)
            named.add(look)
            start = i
    kinds: dict[str, list[Any]] = {}
    for point in branch.special_points:
        kinds.setdefault(kind(point), []).append(point)
    for name, points in kinds.items():
        p, value = [s.parameter for s in points], [there(s) for s in points]
        name += f", at {_listed(p, np.ptp(branch.parameters))}" if places else ""
        axes.plot(p, value, **_mark(points[0], euler is not None), label=name, zorder=5)


def _mark(point: Any, euler: bool) -> dict[str, Any]:
    """A marker of each type: full, or half where the flow alone changes, or hollow where the Euler map alone does."""
    fill = "full"
    if euler:
        fill = {point.flow: "none", point.euler: "left"}.get("–", "full")
    marker = _MARKERS.get(point.type, "*")
    return {"color": "k", "linestyle": "none", "marker": marker, "fillstyle": fill, "markersize": 7}


def _listed(places: list[float], span: Any, most: int = 3) -> str:
    told = ", ".join(f"{0.0 if abs(p) < 1e-12 * span else p:.6g}" for p in places[:most])
    return told if len(places) <= most else f"{told} … ({len(places)})"
