"""Points of codimension two on curves of folds and of Hopf points: what tells of them, and the equations that define them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..analytic import tree_held
from ._spectrum import aligned

# What may happen on a curve of each kind: tests that change sign there.
EVENTS = {
    "fold": ("Bogdanov–Takens", "cusp", "zero–Hopf"),
    "Hopf": ("Bautin", "Bogdanov–Takens", "zero–Hopf", "Hopf–Hopf"),
    "Neimark–Sacker": (
        "Chenciner",
        "1:1 resonance",
        "1:2 resonance",
        "1:3 resonance",
        "1:4 resonance",
    ),
}
# Where the first of them has a pole: at a zero–Hopf point, at a resonance 1:3.
POLES = {"Hopf": 2, "Neimark–Sacker": 3, "torus": 3}
# Where they go by vectors, whose signs are free.
ORIENTED = ("fold", "period doubling")
# Where a pair meets on the real axis its curve ends, and its equations are singular; those of the real ones are regular.
SINGULAR = {
    "Hopf": {"Bogdanov–Takens": "fold"},
    "Neimark–Sacker": {"1:1 resonance": "fold", "1:2 resonance": "flip"},
}
# Where another curve is met.
TOGETHER = ("zero–Hopf", "Hopf–Hopf")


class CurvePoint(eqx.Module):
    """A point of codimension two: `type` "Bogdanov–Takens", "cusp", "Bautin", "zero–Hopf" or "Hopf–Hopf", under the Euler map
    or of cycles "Chenciner" or "1:1 resonance" to "1:4 resonance", of cycles "cusp of cycles" or "generalised period
    doubling", too; both `parameters`, in the order of `where`; the fixed point there, or a point of the cycle and its
    `period` (0 of a fixed point); `frequencies` of its critical pairs, that of the curve first; `error` of either parameter
    relative to its bounds, and `index` of the last point of the curve before it. `status` "converged", or "bracketed" if
    the equations of such a point did not lead to it."""

    type: str = eqx.field(static=True)
    parameters: tuple[float, float]
    state: PyTree[Array]
    frequencies: tuple[float, ...]
    error: float
    status: str = eqx.field(static=True)
    index: int = eqx.field(static=True)
    period: float = 0.0

    @property
    def frequency(self) -> float:
        """The first of its frequencies, or 0."""
        return self.frequencies[0] if self.frequencies else 0.0


def curve_table(points: Sequence[CurvePoint]) -> str:
    rows: list[Sequence[str]] = [("type", "first", "second", "error", "status", "frequencies")]
    for p in points:
        numbers = (f"{v:.12g}" for v in p.parameters)
        frequencies = ", ".join(f"{v:.8g}" for v in p.frequencies) or "–"
        rows.append((p.type, *numbers, f"{p.error:.0e}", p.status, frequencies))
    return aligned(rows) if points else "no special points"


@eqx.filter_jit
def matrix_at(problem, y, q) -> Array:
    """The Jacobian at a candidate. On its own: with eigenvalues in it, a compiled program could not be kept on disk."""
    return jax.jacfwd(lambda z: problem.at(q).force(z, y.q))(y.z)


def rest_of(values: Any, critical: tuple[complex, ...]) -> Any:
    """The eigenvalues but those nearest to the critical ones."""
    for value in critical:
        values = np.delete(values, np.argmin(abs(values - value)))
    return values


def critical_of(kind: str, frequency: float) -> tuple[complex, ...]:
    """The critical eigenvalues on a curve."""
    return (0j,) if kind == "fold" else (1j * frequency, -1j * frequency)


# Why of all eigenvalues. Sums of two vanish where a pair crosses, and their product is real and changes sign there, as the
# determinant of the bialternate product does (Kuznetsov 2004, ch. 10), whatever eigenvalues collide and part on the way; the
# least of them, in place of the product, is of size one. It also vanishes at neutral saddles, which are told apart later.
def further_tests(kind: str, values: Any, frequency: float) -> np.ndarray:
    """What changes sign at a zero–Hopf point, and on a curve of Hopf points at a Hopf–Hopf point."""
    rest = rest_of(values, critical_of(kind, frequency))
    first, second = np.triu_indices(len(rest), 1)
    size = abs(rest[first]) + abs(rest[second]) + np.finfo(rest.real.dtype).tiny
    pairs = _least((rest[first] + rest[second]) / size)
    if kind == "fold":
        return np.array([pairs])
    return np.array([_least(rest / max(abs(values))), pairs])


def angle_tests(angle: float) -> np.ndarray:
    """What changes sign at the resonances of a pair `exp(±iθ)`."""
    return np.array([angle, np.pi - angle, angle - 2 * np.pi / 3, angle - np.pi / 2])


def _least(numbers: Any) -> float:
    """The least modulus, with the sign of the product, which is real."""
    if not numbers.size or np.min(abs(numbers)) == 0:
        return 1.0 if not numbers.size else 0.0
    sign = np.prod(numbers / abs(numbers)).real
    return float(np.copysign(np.min(abs(numbers)), sign))


def met_frequency(kind: str, event: str, values: Any, frequency: float) -> float:
    """The frequency of the pair that the curve meets; 0 of a real eigenvalue, NaN if two real ones are but opposite."""
    if event == "zero–Hopf" and kind == "Hopf":
        return 0.0
    rest = rest_of(values, critical_of(kind, frequency))
    above = rest[rest.imag > np.finfo(rest.real.dtype).eps ** 0.5 * max(abs(values))]
    if not above.size:
        return float("nan")
    first, second = np.triu_indices(len(rest), 1)
    size = abs(rest[first]) + abs(rest[second])
    least = np.min(abs(rest[first] + rest[second]) / size)
    nearest = above[np.argmin(abs(above.real) / abs(above))]
    # Two real ones, opposite, are nearer to a sum of zero than any pair.
    own = abs(nearest.real) / abs(nearest)
    return float(nearest.imag) if own <= 1.01 * least + 1e-12 else float("nan")


def _both(problem, event: str) -> tuple[Any, Any]:
    """The equations of the curve and of the one that it meets."""
    other = "Hopf" if event == "Hopf–Hopf" or problem.system.kind == "fold" else "fold"
    return problem.system, dataclasses.replace(problem.system, kind=other)


# Why both curves' own equations: a point of both is a regular root of them together, and no eigenvalue is differentiated.
@eqx.filter_jit
def polished_both(problem, event: str, y, q, other: Array):
    """The point where a curve meets another one, near a sample: candidate, second parameter, the other frequency, and how far
    the last of Newton's steps went."""
    first, second = (s.kind == "Hopf" for s in _both(problem, event))
    start = (y.z, y.q, q, y.extra if first else (), other if second else ())
    flat, unravel = ravel_pytree(start)

    def parts(u):
        z, q1, q2, own, met = unravel(u)
        point = y._replace(z=z, q=q1, extra=own)
        systems = _both(dataclasses.replace(problem, system=problem.at(q2)), event)
        return tuple(zip(systems, (point, point._replace(extra=met)), strict=True))

    def body(carry, _):
        u, borders, _ = carry
        vectors = tuple(s.vectors(p, b) for (s, p), b in zip(parts(u), borders, strict=True))

        def equations(u):
            rows = [
                s.equations(p, v, b.left)
                for (s, p), v, b in zip(parts(u), vectors, borders, strict=True)
            ]
            tails = [ravel_pytree(row[1:])[0] for row in rows]
            return jnp.concatenate([rows[0].z, *tails])

        step = jnp.linalg.solve(jax.jacfwd(equations)(u), equations(u))
        turned = tuple(s.directions(v) for (s, _), v in zip(parts(u), vectors, strict=True))
        return (u - step, turned, jnp.max(jnp.abs(step[y.z.size :][:2]))), None

    begun = tuple(s.directions(s.vectors(p, s.first_vectors(p))) for s, p in parts(flat))
    carry = flat, tree_held(begun), jnp.zeros_like(q)
    (flat, _, size), _ = jax.lax.scan(body, carry, None, length=10)
    z, q1, q2, own, met = unravel(flat)
    return y._replace(z=z, q=q1, extra=own), q2, met, size
