"""What an associative memory was given, what it made of it, and the energy on the way."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure


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
    if (
        not rows
        or any(len(s) != 3 for s in shapes.values())
        or len({s[0] for s in shapes.values()}) > 1
    ):
        raise ValueError(
            f"`patterns` must hold as many images in every row, each row of the shape (m, height, width), got {shapes}."
        )
    count = next(iter(shapes.values()))[0]
    height = 0.5 + sum(0.1 + 1.3 * s[1] / s[2] for s in shapes.values())
    least = 1.0 if energies is None else 2.8
    figure = Figure(
        figsize=(1.3 * count + (0.6 if energies is None else 4.2), max(height, least)),
        layout="constrained",
    )
    whole: Any = figure
    if energies is not None:
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.3 * count, 4.0))
        whole, beside = parts
        axes = beside.subplots()
        for i, path in enumerate(np.asarray(energies)):
            axes.plot(np.arange(len(path)), path, f"C{i % 10}", marker=".", label=f"{i + 1}")
        axes.set(xlabel=label, ylabel="energy")
        axes.grid(alpha=0.3)
    panels = whole.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        low, high = images.min(), images.max()
        for i, (axes, image) in enumerate(zip(line, images, strict=True)):
            axes.imshow(image, cmap="Greys", vmin=low, vmax=high, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if i == 0:
                axes.set_ylabel(name)
    for i, axes in enumerate(panels[0]):
        axes.set_title(str(i + 1), color=f"C{i % 10}", fontsize=9)
    figure.suptitle(title)
    return figure
