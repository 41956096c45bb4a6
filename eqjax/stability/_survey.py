"""`diagram`: every branch of fixed points that is met from one, in one call."""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._checks import check_arrays, check_count, check_kind, check_positive
from ._bifurcation import SpecialPoint
from ._continuation import Branch, continuation
from ._cycle_continuation import cycle_continuation
from ._deflation import equilibria
from ._diagram import ComesBack, Diagram, Ruler, Standing, is_known, joined
from ._jacobian import real_dtype
from ._parameter import Line, find, replaced
from ._storage import load, save
from ._switch import switch


def diagram(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    bounds: tuple[Any, Any],
    depth: int = 3,
    starts: PyTree[Array] | None = None,
    at: Sequence[float] | None = None,
    cycles: dict[str, Any] | None = None,
    size: float = 0.02,
    max_branches: int = 50,
    folder: str | Path | None = None,
    progress: Callable[[str], Any] | None = None,
    **settings: Any,
) -> Diagram:
    """The bifurcation diagram of a field: the branch of fixed points through `z0`, both ways, all that branch off from it and
    from these, and, if asked for, disconnected ones and cycles.

    At every branch point `switch` leads to the other branch, which is followed both ways unless it is known. With `starts`,
    `equilibria` looks for fixed points that are on no branch, by deflation. A branch that comes back to its beginning ends
    there.

    **Arguments:**

    - `field`, `z0`, `x`, `where`, `bounds`: as for `continuation`, of a real state. `settings`: any other of its arguments
      but `backwards` and `callback`.
    - `depth`: over how many branch points in a row branches are followed; 0: only that through `z0`.
    - `starts`: states with a leading axis, from which deflation sets out at the parameters `at`, by default the present one
      and both bounds.
    - `cycles`: from every Hopf point the cycles are followed, too, with these settings of `cycle_continuation`; `{}` for its
      defaults; where they go to a homoclinic orbit they end, and `homoclinic` tells more.
    - `size`: as for `switch`. Branches that are nearer than a tenth of it count as one. `max_branches`: at most.
    - `folder`: where every branch is kept as soon as it is known: called once more with it, `diagram` goes on from there.
      The whole is in its file `diagram` at the end, for `load`.
    - `progress`: called with a line of text after each branch; `print`, for one.

    **Returns:** a `Diagram`. At a branch point where more than two branches cross, `switch` finds one of them, deflation all.

    **Raises:** `ValueError` as `continuation` does, or if `folder` holds another diagram.

    ```python
    everything = lambda f, z0: ej.stability.diagram(f, z0, where=gain, bounds=(0.0, 1.0), cycles={})
    ```
    """
    check_arrays(z0=z0)
    check_count(0, depth=depth)
    check_count(max_branches=max_branches)
    check_positive(size=size)
    check_kind((dict, type(None)), "a dictionary of settings, or None", cycles=cycles)
    for name in ("backwards", "callback"):
        if name in settings:
            raise ValueError(f"`{name}` is none of `diagram`'s settings: it follows both ways.")
    real = real_dtype(z0)
    line, _ = Line.of(field, where, bounds, real)
    low, high = map(float, bounds)
    for value in at or ():
        if not low <= value <= high:
            raise ValueError(f"`at` holds {value}, which is outside the `bounds` {bounds}.")
    if folder is not None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
    survey = _Survey(
        call={"x": x, "where": where},
        bounds=(low, high),
        ruler=Ruler(low, high - low),
        size=size,
        max_branches=max_branches,
        folder=folder,
        progress=progress or (lambda text: None),
        settings=settings,
        depth=depth,
        cycle_settings=cycles,
    )
    present = find(field, where)[1]
    survey.follow(line.field, jax.tree.map(jnp.asarray, z0), 0, f"z0 at {present:.6g}")
    survey.drain()
    if starts is not None:
        for value in (present, low, high) if at is None else at:
            there = replaced(line.field, line.index, jnp.asarray(value, jnp.result_type(float)))
            found = equilibria(there, starts, x, count=survey.max_branches)
            for i in np.flatnonzero(np.asarray(found.found)):
                state = jax.tree.map(lambda a, i=int(i): a[i], found.states)
                survey.follow(there, state, 0, f"deflation at {value:.6g}")
                survey.drain()
    whole = survey.whole()
    if folder is not None:
        save(folder / "diagram", whole)
    return whole


@dataclasses.dataclass
class _Survey:
    """What is known so far, and what waits to be looked at."""

    call: dict[str, Any]
    bounds: tuple[float, float]
    ruler: Ruler
    size: float
    max_branches: int
    folder: Path | None
    progress: Callable[[str], Any]
    settings: dict[str, Any]
    depth: int
    cycle_settings: dict[str, Any] | None
    branches: list = dataclasses.field(default_factory=list)
    origins: list = dataclasses.field(default_factory=list)
    rows: list = dataclasses.field(default_factory=list)
    cycles: list = dataclasses.field(default_factory=list)
    cycle_origins: list = dataclasses.field(default_factory=list)
    missed: list = dataclasses.field(default_factory=list)
    seen: list = dataclasses.field(default_factory=list)
    waiting: deque = dataclasses.field(default_factory=deque)

    def whole(self) -> Diagram:
        parts = self.branches, self.origins, self.cycles, self.cycle_origins, self.missed
        return Diagram(*map(tuple, parts))

    def follow(self, field, state, level: int, origin: str) -> None:
        """The branch through a fixed point, unless it is known; its special points wait from then on."""
        value = find(field, self.call["where"])[1]
        row = self.ruler.row(value, state)
        if any(self.ruler.beside(row, rows) < 0.1 * self.size for rows in self.rows):
            return
        if len(self.branches) >= self.max_branches:
            self.missed.append(f"{origin}: there are {self.max_branches} branches already")
            return
        name = f"branch-{len(self.branches):03d}"
        branch = self.kept(name, row, lambda: self.both_ways(field, state, origin))
        if branch is None:
            return
        self.branches.append(branch)
        self.origins.append(origin)
        self.rows.append(self.ruler.rows(branch))
        number = len(self.branches) - 1
        self.waiting += [(field, branch, number, point, level) for point in branch.special_points]
        self.progress(
            f"branch {number}, from {origin}: {branch.parameters.size} points, {len(branch.special_points)} special; "
            f"{len(self.waiting)} points wait"
        )

    def both_ways(self, field, state, origin: str) -> Branch | None:
        call: dict[str, Any] = {**self.call, **self.settings, "bounds": self.bounds}
        closing = ComesBack(self.ruler, [], [])
        try:
            ahead = continuation(field, state, **call, callback=closing)
            if closing.closed:
                return ahead
            return joined(continuation(field, state, **call, backwards=True), ahead)
        except ValueError as error:
            if not self.branches:  # that through `z0`
                raise
            self.missed.append(f"{origin}: {error}")
            return None

    def drain(self) -> None:
        """All that waits, and what is met on the way."""
        while self.waiting:
            field, branch, number, point, level = self.waiting.popleft()
            row = self.ruler.row(point.parameter, point.state)
            if point.flow not in ("branch point", "Hopf"):
                continue
            if is_known(self.ruler, row, self.seen, 0.1 * self.size):
                continue
            self.seen.append(row)
            origin = f"the {point.flow} of branch {number} at {point.parameter:.6g}"
            if point.flow == "Hopf":
                self.follow_cycles(field, branch, point, origin)
            elif level >= self.depth:
                self.missed.append(f"{origin}: deeper than {self.depth}")
            elif (found := self.switched(field, branch, point, origin)) is not None:
                self.follow(*found, level + 1, origin)

    def switched(self, field, branch: Branch, point: SpecialPoint, origin: str):
        try:
            return switch(field, branch, point, **self.call, size=self.size)
        except ValueError as error:
            self.missed.append(f"{origin}: {error}")
            return None

    def follow_cycles(self, field, branch: Branch, point: SpecialPoint, origin: str) -> None:
        """The cycles that are born in a Hopf point, unless they ended in it coming from another one."""
        settings = self.cycle_settings
        if settings is None:
            return

        def compute():
            found = self.switched(field, branch, point, origin)
            if found is None:
                return None
            down = find(found[0], self.call["where"])[1] < point.parameter
            call: dict[str, Any] = {**self.call, "bounds": self.bounds, "backwards": down}
            call |= {"callback": Standing(self.ruler.span, []), **settings}
            try:
                return cycle_continuation(*found, **call)
            except ValueError as error:
                self.missed.append(f"{origin}: {error}")
                return None

        row = self.ruler.row(point.parameter, point.state)
        cycles = self.kept(f"cycles-{len(self.cycles):03d}", row, compute)
        if cycles is None:
            return
        self.cycles.append(cycles)
        self.cycle_origins.append(origin)
        ends = [p for p in cycles.special_points if p.type == "Hopf"]
        self.seen += [self.ruler.row(p.parameter, p.state) for p in ends]
        self.progress(
            f"cycles {len(self.cycles) - 1}, from {origin}: {cycles.parameters.size} cycles"
        )

    def kept(self, name: str, row: np.ndarray, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, or gave when the folder was filled."""
        if self.folder is None:
            return compute()
        path = self.folder / name
        if path.exists():
            old = load(path)
            same = old["row"].shape == row.shape and tuple(old["bounds"]) == self.bounds
            if not (same and self.ruler.apart(old["row"], row) < 1e-6):
                raise ValueError(
                    f"`folder` {self.folder} holds another diagram: its {name} begins elsewhere. Choose an empty folder."
                )
            return old["result"]
        result = compute()
        if result is not None:
            save(path, {"row": row, "bounds": self.bounds, "result": result})
        return result
