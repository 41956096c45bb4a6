"""`explorer`: a page in which one moves a field's parameters by hand."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from .._checks import check_count, check_kind, check_positive, given, refuse
from .._files import write_text
from ..fields import AbstractCausalField
from ..stability import Branch, CycleBranch
from ._explorer_branch import branch_data, parameter_data
from ._explorer_tokens import token_data

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("numbers.js", "fields.js", "chart.js", "branch.js", "tokens.js", "start.js")
_LARGEST = 2_000_000  # bytes


def explorer(
    what: Any,
    path: str | Path,
    x: PyTree = None,
    *,
    field: Callable[..., Any] | None = None,
    where: Callable[[Any], Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    start: PyTree = None,
    cycles: CycleBranch | Sequence[CycleBranch] = (),
    coordinates: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    parameter: str | None = None,
    step: float | None = None,
    span: float | None = None,
    steps: int = 60,
    title: str = "",
) -> Path:
    """Write one HTML file, to be opened from disk, in which a branch, a field or a causal block is explored by hand.

    *A branch*: a slider goes along it, another sets the Euler step ε. Eigenvalues μ move in their plane, and 1 + εμ beside it;
    special points are labelled for flow and Euler map, and are gone to by a click. With its field also the trajectory from a
    start that is dragged in the plane of two coordinates. Of Hodgkin–Huxley, Hopfield, Kuramoto and gain networks it is
    integrated in the page, by the flow and in Euler's steps; of any other field trajectories from a grid of starts are
    computed here, and the nearest is shown. With `cycles` the cycle there, as it grows. *A field with `bounds`*: the same
    without fixed points. *A causal field*: what is left of the force at every token while it settles by Euler's steps, who
    attends to whom, and the eigenvalues of every token's own block.

    Numbers in the page are the library's at the points of the branch, to nine digits, and between them by straight lines.

    **Arguments:**

    - `what`: a `Branch`; one of those four fields, with `where`, `bounds` and `start`; or an `AbstractCausalField`, with the
      input `x (T, C)`. `path`: of the file, which is replaced. `x`: clamped input, as for `relax`.
    - `field`, `where`: of a branch, as `continuation` was given them. `cycles`: from `cycle_continuation`; needs them.
    - `start`: a state, where trajectories begin; by default beside the fixed point. Of a causal field: where settling
      begins, `(T, C)`; by default x.
    - `coordinates`: which numbers of the state are shown, by default the first eight. `names`: of these, or of the tokens.
      `parameter`: its name.
    - `step`: ε where the page begins, by default that of the branch, or half the largest that holds all modes where the
      branch begins. `span`: how long trajectories are. `steps`: Euler's, of a causal field. `title`: of the page.

    **Returns:** the path.

    **Raises:** `ValueError` if `what` is none of these, lacks what it needs or has what is meant for another, or if the page
    would be larger than 2 MB.

    ```python
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gain.html"
        settings = dict(where=lambda f: f.gain, bounds=(0.0, 1.0), start=jnp.array([0.1, 0.0]))
        assert ej.plots.explorer(network, path, **settings) == path
    ```
    """
    check_positive(**given(step=step, span=span))
    check_count(1, 2000, steps=steps)
    check_kind(str, "text", title=title, **given(parameter=parameter))
    names = None if names is None else list(names)
    for name in names or ():
        check_kind(str, "texts", names=name)
    shared = {"field": field, "where": where, "bounds": bounds, "parameter": parameter}
    if isinstance(what, Branch):
        _unused("a branch", bounds=bounds)
        check_kind((CycleBranch, list, tuple), "a `CycleBranch`, or several", cycles=cycles)
        found = [cycles] if isinstance(cycles, CycleBranch) else list(cycles)
        for cycle in found:
            check_kind(CycleBranch, "of `CycleBranch`", cycles=cycle)
        how = {"cycles": found, "coordinates": coordinates, "names": names, "parameter": parameter}
        data = branch_data(what, field, x, where, start=start, step=step, span=span, **how)
    elif isinstance(what, AbstractCausalField) and bounds is None:
        _unused("a causal field", **shared, cycles=cycles, coordinates=coordinates, span=span)
        data = token_data(what, x, start, names=names, step=step, steps=steps)
    elif callable(what):
        _unused("a field without a branch", field=field, cycles=cycles)
        how = {"coordinates": coordinates, "names": names, "parameter": parameter}
        data = parameter_data(what, x, where, bounds, start, step=step, span=span, **how)
    else:
        refuse("what", "be a `Branch`, a field with `bounds`, or a causal field", what)
    path = Path(path)
    text = _page(data | {"title": title})
    if len(text.encode()) > _LARGEST:
        raise ValueError(
            f"The page would have {len(text.encode()) / 1e6:.1f} MB, and 2 MB are allowed. Show fewer `coordinates`, "
            "follow the branch in longer steps, or take fewer tokens."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _unused(of: str, **settings: Any) -> None:
    """Refuse settings that are meant for something else."""
    for name, value in settings.items():
        if value is not None and value != ():
            raise ValueError(f"`{name}` is no setting of the page of {of}: leave it out.")


def _page(data: dict[str, Any]) -> str:
    """The whole file: page, style, scripts and data in one."""
    read = lambda name: (_PAGE / name).read_text("utf-8")
    text = json.dumps(rounded(data), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    parts = {
        "STYLE": read("style.css"),
        "SCRIPT": "\n".join(map(read, _SCRIPTS)),
        # No end tag of a script, and no comment that begins, can hide in the data.
        "DATA": text.replace("<", "\\u003c"),
        "TITLE": escaped(data["title"] or "eqjax explorer"),
    }
    # All at once: what is put in is not looked at again, whatever names stand in it.
    return re.sub("@(STYLE|SCRIPT|DATA|TITLE)@", lambda found: parts[found[1]], read("page.html"))


def escaped(text: str) -> str:
    """Text as it stands between tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def rounded(value: Any, digits: int = 9) -> Any:
    """What JSON holds of a tree: arrays as lists, numbers to so many digits, and null for what is not finite."""
    if dataclasses.is_dataclass(value):
        return rounded(vars(value))
    if isinstance(value, dict):
        return {name: rounded(part, digits) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part, digits) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    array = np.asarray(value)
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.tolist()
    # Pictures need fewer digits than numbers, and are the most of a page.
    short = lambda v: float(f"{v:.{digits}g}") if np.isfinite(v) else None
    return short(float(array)) if array.ndim == 0 else [rounded(row, digits) for row in array]
