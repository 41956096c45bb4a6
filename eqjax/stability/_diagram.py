"""What a diagram is made of: branches joined, laid beside one another, and told apart."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ._bifurcation import SpecialPoint
from ._continuation import Branch
from ._cycle_continuation import CycleBranch


class Diagram(eqx.Module):
    """All branches that were met, as `diagram` returns them. It prints as a table of the special points of each.

    - `branches`: `Branch`es of fixed points, each followed both ways; `origins`: in words, where each was met.
    - `cycles`: `CycleBranch`es, and `cycle_origins`.
    - `missed`: in words, what was met and could not be followed, or was not, for depth or number.
    """

    branches: tuple[Branch, ...]
    origins: tuple[str, ...] = eqx.field(static=True)
    cycles: tuple[CycleBranch, ...]
    cycle_origins: tuple[str, ...] = eqx.field(static=True)
    missed: tuple[str, ...] = eqx.field(static=True)

    def __str__(self) -> str:
        parts = [f"{len(self.branches)} branches of fixed points, {len(self.cycles)} of cycles"]
        for name, branches, origins in (
            ("branch", self.branches, self.origins),
            ("cycles", self.cycles, self.cycle_origins),
        ):
            for i, (branch, origin) in enumerate(zip(branches, origins, strict=True)):
                parts.append(f"\n{name} {i}, from {origin}: {branch}")
        parts += [f"\nmissed: {text}" for text in self.missed]
        return "\n".join(parts)


def joined(back: Branch | None, ahead: Branch) -> Branch:
    """One branch of two that set out from the same point, in opposite directions."""
    if back is None or back.parameters.size < 2:
        return ahead
    before = back.parameters.size - 1

    def both(a, b):
        if not eqx.is_array(a):
            return a
        join = np.concatenate if isinstance(a, np.ndarray) else jnp.concatenate
        return join([a[:0:-1], b])

    names = ("parameters", "states", "residuals", "spectra", "multipliers", "unstable")
    names += ("unstable_euler", "reliable")
    arrays = {name: jax.tree.map(both, getattr(back, name), getattr(ahead, name)) for name in names}
    special = [_turned(point, before) for point in reversed(back.special_points)]
    special += [_moved(point, before) for point in ahead.special_points]
    ended = f"one way {back.ended}, the other way {ahead.ended}"
    return Branch(**arrays, special_points=tuple(special), step=ahead.step, ended=ended)


def _changed(point: SpecialPoint, **changes: Any) -> SpecialPoint:
    entries = {name: getattr(point, name) for name in SpecialPoint.__dataclass_fields__}
    return SpecialPoint(**(entries | changes))


def _turned(point: SpecialPoint, before: int) -> SpecialPoint:
    """The point as it is met the other way."""
    index = before - 1 - point.index
    return _changed(point, index=index, change=-point.change, change_euler=-point.change_euler)


def _moved(point: SpecialPoint, before: int) -> SpecialPoint:
    return _changed(point, index=point.index + before)


class Ruler(eqx.Module):
    """Lengths as the path measures them: in the parameter relative to the bounds, in the state relative to its size."""

    low: float
    span: float

    def row(self, parameter: Any, state: PyTree[Array]) -> np.ndarray:
        return np.append(np.asarray(ravel_pytree(state)[0], float), float(parameter))

    def rows(self, branch: Any) -> np.ndarray:
        """The points of a branch."""
        leaves = [
            np.reshape(np.asarray(a, float), (branch.parameters.size, -1))
            for a in jax.tree.leaves(branch.states)
        ]
        return np.concatenate([*leaves, np.asarray(branch.parameters, float)[:, None]], axis=1)

    def scale(self, row: np.ndarray) -> np.ndarray:
        """By what differences near a row are divided."""
        state = row[:-1]
        size = np.sqrt(max(float(np.sum(state**2)), state.size))
        return np.append(np.full(state.size, size), self.span)

    def apart(self, a: np.ndarray, b: np.ndarray) -> float:
        """How far two points are from one another."""
        return float(np.linalg.norm((a - b) / self.scale(b)))

    def beside(self, row: np.ndarray, rows: np.ndarray) -> float:
        """How far a point is from a branch: from cubics through four neighbours, since chords cut its bends."""
        units = self.scale(row)
        points = (rows - row) / units
        if len(points) < 4:
            return float(np.min(np.linalg.norm(points, axis=1)))
        starts, steps = points[:-1], np.diff(points, axis=0)
        squares = np.maximum(np.sum(steps**2, axis=1), 1e-300)
        place = np.clip(-np.sum(starts * steps, axis=1) / squares, 0, 1)
        gaps = np.linalg.norm(starts + place[:, None] * steps, axis=1)
        near = np.argsort(gaps)[:4]
        return min(self._from_cubic(points, int(i)) for i in near)

    def _from_cubic(self, points: np.ndarray, i: int) -> float:
        first = int(np.clip(i - 1, 0, len(points) - 4))
        nodes = points[first : first + 4]
        along = np.append(0, np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1)))
        if np.min(np.diff(along)) <= 0:
            return float(np.min(np.linalg.norm(nodes, axis=1)))
        fit = np.polynomial.Polynomial.fit
        at = np.linspace(along[i - first], along[i - first + 1], 201)
        # Through the nodes, so of degree three; of each component one.
        weights = np.stack([fit(along, unit, 3)(at) for unit in np.eye(4)], axis=1)
        return float(np.min(np.linalg.norm(weights @ nodes, axis=1)))


class ComesBack(eqx.Module):
    """A callback that ends a branch where it comes back to its beginning."""

    ruler: Ruler
    rows: list[np.ndarray]
    found: list[bool]

    def __call__(self, parameter, state, spectrum) -> bool:
        row = self.ruler.row(parameter, state)
        self.rows.append(row)
        if len(self.rows) < 5:
            return False
        units = self.ruler.scale(row)
        last, now = ((r - self.rows[0]) / units for r in self.rows[-2:])
        step = now - last
        length = np.linalg.norm(step)
        place = float(np.clip(-(last @ step) / max(length**2, 1e-300), 0, 1))
        ahead = (self.rows[1] - self.rows[0]) / units
        back = np.linalg.norm(last + place * step) < 0.1 * length and step @ ahead > 0
        self.found.append(bool(back))
        return bool(back)

    @property
    def closed(self) -> bool:
        return any(self.found)


class Standing(eqx.Module):
    """A callback that ends a branch of cycles where the period grows and the parameter stands still: at a homoclinic orbit."""

    span: float
    seen: list[tuple[float, float]]

    def __call__(self, parameter, orbit) -> bool:
        self.seen.append((float(parameter), float(orbit.period)))
        if len(self.seen) < 5:
            return False
        (before, shorter), (now, longer) = self.seen[-2:]
        return abs(now - before) < 1e-10 * self.span and longer > 1.05 * shorter


def is_known(ruler: Ruler, row: np.ndarray, seen: Sequence[np.ndarray], reach: float) -> bool:
    """Whether a point is one of those seen."""
    return any(ruler.apart(row, other) < reach for other in seen)
