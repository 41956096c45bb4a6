"""`homoclinic`: the loop at a saddle to which a branch of cycles goes as their period grows without end."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, PyTree

from .._checks import check_count, check_kind
from ._centre_manifold import Place, at_fixed_parameter
from ._cycle_continuation import CycleBranch
from ._jacobian import real_dtype
from ._parameter import Line, find


class Homoclinic(eqx.Module):
    """What `homoclinic` returns.

    - `parameter`: where the period diverges, and its `error`: the change by one cycle fewer, which does not know the
      error of the cycles themselves. `saddle`: the fixed point there.
    - `values (n,)`: its eigenvalues, by falling real part. `rate`: the λ of `p - p* ~ exp(-λT)`.
    - `saddle_quantity`: σ, the sum of the real parts of the two leading eigenvalues, right and left of the axis. Negative: one
      stable cycle is born of the loop, where one mode is unstable; positive: none of its cycles is stable.
    - `focus`: whether a leading eigenvalue is complex. With σ > 0 there is chaos nearby (Shilnikov 1965), if it is the stable
      one; with it unstable, if σ < 0.
    - `converged`: whether there is a saddle, and the parameter follows that law.
    """

    parameter: float
    error: float
    saddle: PyTree[Array]
    values: Complex[np.ndarray, " n"]
    rate: float
    saddle_quantity: float
    focus: bool = eqx.field(static=True)
    converged: bool = eqx.field(static=True)

    @property
    def shilnikov(self) -> bool:
        """Whether chaos is to be expected nearby."""
        right = self.values[np.real(self.values) > 0]
        inward = bool(right.size and abs(right[-1].imag) > 0)
        sigma = -self.saddle_quantity if inward else self.saddle_quantity
        return self.converged and self.focus and sigma > 0

    def __str__(self) -> str:
        word = "homoclinic loop" if self.converged else "no homoclinic loop: ended"
        kind = "saddle-focus" if self.focus else "saddle"
        more = "; chaos nearby (Shilnikov)" if self.shilnikov else ""
        return f"{word} at parameter {self.parameter:.10g} ± {self.error:.0e}, {kind} quantity {self.saddle_quantity:.6g}{more}"


# Why by extrapolation. Most of a long period is spent near the saddle, and its logarithm law is known: with x the distance at
# which the cycle enters, T = -ln(x)/λᵤ + …, and x - x^ν = C (p - p*) with ν = |λₛ|/λᵤ: so p - p* ~ exp(-λT), with λ the smaller
# of both rates (Shilnikov; Kuznetsov 2004, ch. 6). Two cycles and this λ give p*, a third one the error.
def homoclinic(
    field: Callable[..., Any],
    branch: CycleBranch,
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    steps: int = 2000,
) -> Homoclinic:
    """Where a branch of cycles goes to a homoclinic orbit, and of what kind its saddle is.

    The saddle is sought from where the last cycle is slowest.

    **Arguments:**

    - `field`, `x`, `where`: as they were given to `cycle_continuation`. `branch`: what that returned; its end counts, whose
      periods grow.
    - `steps`: of a Runge–Kutta method of fourth order, once round the last cycle.

    **Returns:** a `Homoclinic`; `converged` is False where the branch does not go to one: no saddle (a fold on the cycle makes
    periods grow, too), or periods that do not follow the law.

    **Raises:** `ValueError` if the branch has fewer than four cycles, or its state is complex.

    ```python
    near = lambda f, cycles: ej.stability.homoclinic(f, cycles, where=gain, steps=2000)
    ```
    """
    check_count(10, steps=steps)
    check_kind(CycleBranch, "what `cycle_continuation` returned", branch=branch)
    if branch.parameters.size < 4:
        raise ValueError(
            f"`branch` has {branch.parameters.size} cycles, and the law takes four: follow it further."
        )
    parameters, periods = (np.asarray(a, float) for a in (branch.parameters, branch.periods))
    end = _moving(parameters)
    parameters, periods = parameters[:end], periods[:end]
    last = jax.tree.map(lambda a: a[end - 1], branch.states)
    dtype = real_dtype(last, "branch")
    index, _ = find(field, where)
    line = Line(field, jnp.zeros((), dtype), jnp.ones((), dtype), index)
    place = Place.of(line, x, last, jnp.asarray(parameters[-1], dtype))
    slowest = np.asarray(_slowest(place, jnp.asarray(periods[-1] / steps, dtype), steps))
    parameter, error = float(parameters[-1]), np.inf
    saddle = Saddle.near(place, slowest, parameter)
    # It moves with the parameter, whose limit depends on its eigenvalues.
    for _ in range(2):
        if saddle.proper:
            parameter, error = _limit(parameters[-4:], periods[-4:], saddle.rate)
            saddle = Saddle.near(place, saddle.state, parameter)
    follows = False
    if saddle.proper:
        # With each cycle the limit must change less than the parameter does.
        pace = abs(parameters[-1] - parameters[-2])
        long = bool((np.diff(periods[-4:]) > 0).all()) and saddle.rate * periods[-1] > 10
        follows = long and error < 0.1 * pace + 1e-10 * max(abs(parameter), 1)
    right, left = saddle.leading
    return Homoclinic(
        parameter=parameter,
        error=float(error),
        saddle=place.unravel(jnp.asarray(saddle.state, dtype)),
        values=saddle.values,
        rate=saddle.rate,
        saddle_quantity=right.real + left.real,
        focus=bool(abs(right.imag) > 0 or abs(left.imag) > 0),
        converged=bool(follows),
    )


class Saddle(NamedTuple):
    """A fixed point, its eigenvalues by falling real part, and whether it is one, near where it was sought, of both signs."""

    state: np.ndarray
    values: np.ndarray
    proper: bool

    @classmethod
    def near(cls, place: Place, z: np.ndarray, parameter: float) -> "Saddle":
        state, solved = _settled(place, z, parameter)
        if not solved:
            return cls(state, np.full(z.size, np.nan + 0j), False)
        values: Any = np.linalg.eigvals(_matrix(place, state, parameter)).astype(complex)
        values = values[np.argsort(-values.real, kind="stable")]
        return cls(state, values, bool(values.real[0] > 0 > values.real[-1]))

    @property
    def leading(self) -> tuple[complex, complex]:
        """The eigenvalues nearest to the axis, right and left of it."""
        if not self.proper:
            return complex("nan"), complex("nan")
        real = np.real(self.values)
        return complex(self.values[real > 0][-1]), complex(self.values[real < 0][0])

    @property
    def rate(self) -> float:
        right, left = self.leading
        return min(right.real, -left.real)


def _moving(parameters: np.ndarray) -> int:
    """How many cycles there are before the parameter stands still: beyond, the period grows on and nothing is learnt."""
    moves = np.flatnonzero(abs(np.diff(parameters)) > 1e-10 * np.ptp(parameters))
    return max(4, int(moves[-1]) + 2 if moves.size else 0)


def _limit(parameters: np.ndarray, periods: np.ndarray, rate: float) -> tuple[float, float]:
    """p* of `p = p* + C exp(-λT)` through the last two cycles, and its change from the two before."""

    def through(i: int) -> float:
        ratio = np.exp(-rate * (periods[i] - periods[i - 1]))
        return float((parameters[i] - ratio * parameters[i - 1]) / (1 - ratio))

    return through(-1), abs(through(-1) - through(-2))


def _matrix(place: Place, z: np.ndarray, parameter: float) -> np.ndarray:
    return at_fixed_parameter(_moved(place, z, parameter).jacobian())


def _moved(place: Place, z: np.ndarray, parameter: float) -> Place:
    dtype = place.z.dtype
    new = jnp.asarray(z, dtype), jnp.asarray(parameter, dtype)
    return eqx.tree_at(lambda p: (p.z, p.q), place, new)


def _settled(place: Place, z: np.ndarray, parameter: float) -> tuple[np.ndarray, bool]:
    """The fixed point near a state, by Newton's method, and whether it is near."""
    begin, size = z, np.inf
    for _ in range(20):
        force = np.asarray(_force(_moved(place, z, parameter)))
        step = np.linalg.lstsq(_matrix(place, z, parameter), force, rcond=None)[0]
        z, size = z - step, np.linalg.norm(step) / max(np.linalg.norm(z), 1)
        if not np.isfinite(size) or size < 1e-13:
            break
    near = np.linalg.norm(z - begin) < 0.3 * max(np.linalg.norm(begin), 1)
    return z, bool(size < 1e-8 and near)


@eqx.filter_jit
def _force(place):
    return place.force(place.z, place.q)


@eqx.filter_jit
def _slowest(place, step, steps):
    """Where a turn from the state of a place is slowest."""
    force = lambda z: place.force(z, place.q)

    def body(carry, _):
        z, best, least = carry
        a = force(z)
        b = force(z + 0.5 * step * a)
        c = force(z + 0.5 * step * b)
        d = force(z + step * c)
        speed = jnp.linalg.norm(a)
        slower = speed < least
        best = jnp.where(slower, z, best)
        return (z + step / 6 * (a + 2 * b + 2 * c + d), best, jnp.where(slower, speed, least)), None

    start = place.z, place.z, jnp.full_like(step, jnp.inf)
    (_, best, _), _ = jax.lax.scan(body, start, None, length=steps)
    return best
