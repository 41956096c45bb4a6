"""How a field loses its fixed points: branches, spectra, cycles and flows on the plane."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..stability import Branch, CycleBranch, Diagram, Spectrum
from ._figure import panels

_MARKERS = {
    "fold": "s",
    "branch point": "D",
    "Hopf": "o",
    "flip": "^",
    "Neimark–Sacker": "v",
    "period doubling": "^",
    "torus": "v",
}


def branch(
    branch: Branch,
    *,
    value: Callable[[Any], Any] | None = None,
    labels: tuple[str, str] = ("parameter", "‖z‖"),
) -> Figure:
    """A bifurcation diagram: a number of the state against the parameter, and below it the growth of the fastest mode.

    Solid where the fixed point is stable, in another colour where only Euler leaves it, dashed where the flow does.
    Special points are marked, with the label of the flow and that of the Euler map.

    **Arguments:** `branch`: from `stability.continuation`. `value`: the number of a state; its norm by default. `labels`:
    of the two axes.
    """
    value = _norm if value is None else value
    along = _along(branch, value)
    figure, (above, below) = panels(9, 6, 2, 1, sharex=True, height_ratios=(2, 1))
    euler = branch.unstable_euler
    kind = lambda p: p.flow if euler is None else f"flow: {p.flow}, Euler: {p.euler}"
    said = lambda p: f"{kind(p)}, at {p.parameter:.6g}"
    _draw(above, branch, along, lambda point: float(value(point.state)), said, euler)
    parameters = np.asarray(branch.parameters)
    growth = np.max(np.real(np.asarray(branch.spectra.values)), axis=1)
    below.plot(parameters, growth, label="max Re μ")
    if branch.multipliers is not None:
        size = np.max(np.abs(np.asarray(branch.multipliers)), axis=1)
        below.plot(parameters, size - 1, "C1-", label="max |λ| - 1")
    for point in branch.special_points:
        below.axvline(point.parameter, color="0.8", linewidth=0.8, zorder=0)
    below.axhline(0, color="0.3", linewidth=0.8)
    above.set(ylabel=labels[1])
    below.set(xlabel=labels[0], ylabel="growth")
    below.legend(fontsize=8)
    handles = above.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, fontsize=8)
    return figure


def diagram(
    diagram: Diagram,
    *,
    value: Callable[[Any], Any] | None = None,
    labels: tuple[str, str] = ("parameter", "‖z‖"),
) -> Figure:
    """All branches of a diagram: a number of the state against the parameter, solid where the flow stays, dashed where it
    leaves; special points by their kind; and of cycles the number at the point that is kept of each, dotted.

    **Arguments:** `diagram`: from `stability.diagram`. `value`, `labels`: as for `branch`.
    """
    value = _norm if value is None else value
    figure, axes = panels(9, 5.5)
    for branch in diagram.branches:
        along = _along(branch, value)
        there = lambda point: float(value(point.state))
        _draw(axes, branch, along, there, lambda point: point.type, branch.unstable_euler)
    for cycle in diagram.cycles:
        along = _along(cycle, value)
        axes.plot(np.asarray(cycle.parameters), along, "C2:", label="cycles")
    axes.set(xlabel=labels[0], ylabel=labels[1])
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper center", ncols=4, fontsize=8)
    return figure


def _along(branch: Any, value: Callable[[Any], Any]) -> list[float]:
    """The number of each state of a branch."""
    at = lambda i: jax.tree.map(lambda a: a[i], branch.states)
    return [float(value(at(i))) for i in range(branch.parameters.size)]


def spectrum(spectrum: Spectrum, *, step: float | None = None) -> Figure:
    """Eigenvalues μ in the complex plane, with the imaginary axis, where the flow loses them, and the circle
    `|1 + εμ| = 1`, where Euler does.

    **Arguments:** `spectrum`: from `stability.spectrum`, of one sample or a batch. `step`: ε; by default that of the
    spectrum, and without either no circle.
    """
    values = np.asarray(spectrum.values).ravel()
    if step is None and spectrum.step is not None:
        step = float(np.ravel(np.asarray(spectrum.step))[0])
    figure, axes = panels(7, 5.5)
    re, im = np.real(values), np.imag(values)
    grows = re > 0
    leaves = ~grows & (abs(1 + (step or 0) * values) > 1)
    kinds = (("decays", ~grows & ~leaves, "C0o"), ("Euler alone leaves", leaves, "C1^"))
    for name, mine, style in (*kinds, ("grows", grows, "C3X")):
        if mine.any():
            axes.plot(re[mine], im[mine], style, label=f"{name} ({mine.sum()})")
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
        axes.fill(circle.real, circle.imag, color="C0", alpha=0.08)
        name = f"|1 + εμ| = 1, ε = {step:.4g}"
        axes.plot(circle.real, circle.imag, "C0-", linewidth=1, label=name)
    axes.set(xlim=(left, right), ylim=(-top, top), xlabel="Re μ", ylabel="Im μ")
    axes.set_aspect("equal" if 0.2 < (right - left) / (2 * top) < 5 else "auto")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure


def cycles(branch: CycleBranch, *, label: str = "parameter") -> Figure:
    """A branch of cycles: amplitude, period and the size of the multipliers, solid where the cycle is stable.

    **Arguments:** `branch`: from `stability.cycle_continuation`. `label`: of the parameter.
    """
    figure, (amplitude, period, multipliers) = panels(13, 4.4, 1, 3)
    kind = lambda point: f"{point.type}, at {point.parameter:.6g}"
    _draw(amplitude, branch, np.asarray(branch.amplitudes), lambda point: point.amplitude, kind)
    _draw(period, branch, np.asarray(branch.periods), lambda point: point.period, kind)
    # As many orders as a picture can hold.
    sizes = np.exp(np.clip(np.real(np.asarray(branch.log_multipliers)), -200, 200))
    for i in range(sizes.shape[1]):
        multipliers.plot(np.asarray(branch.parameters), sizes[:, i], color=f"C{i}")
    if np.max(sizes) > 10:  # linear around 1 all the same, where it matters
        multipliers.set_yscale("symlog", linthresh=2)
    multipliers.axhline(1, color="0.3", linewidth=0.8)
    amplitude.set(xlabel=label, ylabel="amplitude")
    period.set(xlabel=label, ylabel="period T")
    multipliers.set(xlabel=label, ylabel="|multipliers|")
    for point in branch.special_points:
        multipliers.axvline(point.parameter, color="0.8", linewidth=0.8, zorder=0)
    handles = amplitude.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, fontsize=8)
    return figure


def phase_portrait(
    field: Callable[..., Any],
    limits: tuple[tuple[Any, Any], tuple[Any, Any]],
    x: Any = None,
    *,
    curves: Mapping[str, Any] | None = None,
    points: int = 60,
) -> Figure:
    """The flow of a field on the plane, with its nullclines.

    **Arguments:** `field`, `x`: as for `relax`, of a state of shape (2,). `limits`: of the first coordinate and of the
    second. `curves`: name to states `(m, 2)`, drawn over it: trajectories, cycles; a single one as a dot. `points`: of
    the grid, along either side.
    """
    first, second = (np.linspace(*limit, points) for limit in limits)
    grid = jnp.asarray(np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2))
    force = np.asarray(jax.vmap(lambda z: field(0.0, z, x))(grid)).reshape(points, points, 2)
    figure = Figure(figsize=(6.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    axes.streamplot(first, second, force[..., 0], force[..., 1], color="0.75", linewidth=0.7)
    for i, (style, colour) in enumerate((("--", "C0"), (":", "C1"))):
        name = f"$\\dot z_{i + 1} = 0$"
        axes.contour(first, second, force[..., i], [0.0], colors=colour, linestyles=style)
        axes.plot([], [], color=colour, linestyle=style, label=name)
    for i, (name, states) in enumerate((curves or {}).items()):
        path = np.atleast_2d(np.asarray(states))
        axes.plot(*path.T, f"C{i + 2}", marker="o" if len(path) == 1 else "", label=name)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", xlim=limits[0], ylim=limits[1])
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure


def _norm(state: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.abs(np.asarray(a)) ** 2) for a in jax.tree.leaves(state))))


def _look(unstable: int, unstable_euler: int) -> str:
    return "unstable" if unstable > 0 else "Euler leaves" if unstable_euler > 0 else "stable"


def _draw(
    axes: Axes, branch: Any, along: Any, there: Callable, said: Callable, euler: Any = None
) -> None:
    """A branch whose points have the values `along` and whose special points those that `there` gives, in pieces that look
    as their first point does; special points are marked, with what is `said` of them."""
    # Between neighbouring points the counts change at the special points, and the line there.
    nodes = []
    for i, p in enumerate(np.asarray(branch.parameters)):
        counts = [int(branch.unstable[i]), 0 if euler is None else int(euler[i])]
        nodes.append((p, along[i], _look(*counts)))
        for point in (s for s in branch.special_points if s.index == i):
            counts[0] += point.change
            counts[1] += 0 if euler is None else point.change_euler
            nodes.append((point.parameter, there(point), _look(*counts)))
    styles = {"stable": "C0-", "Euler leaves": "C1-", "unstable": "C3--"}
    start, named = 0, set()
    for i in range(1, len(nodes)):
        if i == len(nodes) - 1 or nodes[i][2] != nodes[start][2]:
            look = nodes[start][2]
            p, value, _ = zip(*nodes[start : i + 1], strict=True)
            axes.plot(p, value, styles[look], label=None if look in named else look)
            named.add(look)
            start = i
    for point in branch.special_points:
        marker = _MARKERS.get(point.type, "*")
        axes.plot(point.parameter, there(point), "k" + marker, label=said(point), zorder=5)
