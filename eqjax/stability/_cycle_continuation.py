"""`cycle_continuation`: a periodic orbit followed through a parameter, with all that befalls it on the way."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray, PyTree

from .._checks import check_count, check_key, given
from ..relaxation import NewtonKrylov
from ._cycle_points import CyclePoint, CycleSample, bounded, cycle_points, cycle_table
from ._cycle_problems import Collocated, Shooting
from ._cycles import COLLOCATED, PeriodicOrbit, periodic_orbit
from ._forced import Forced
from ._hopf_point import hopf_point
from ._jacobian import state_dtype
from ._parameter import Line, replaced
from ._path import AbstractPath, PseudoArclength, corrector, first_point, follow_path


class CycleBranch(eqx.Module):
    """A branch of cycles, as `cycle_continuation` returns it. It prints as a table of its special points.

    - `parameters (m,)`, `states` (leading axis m), `periods (m,)`: a point of each cycle, in order, and its period T.
    - `amplitudes (m,)`: half the largest peak-to-peak excursion of any component.
    - `log_multipliers (m, k)`: logarithms of the largest transverse Floquet multipliers, largest first, without the one
      along the cycle: `ln|μ| + i arg μ`, of any size. `multipliers (m, k)`: themselves.
    - `unstable (m,)`: how many of them lie outside the unit circle.
    - `residuals (m,)`: what is left of the equations, relative to `max(‖z‖, 1)`.
    - `drift (m,)`: by how much the multiplier along the cycle, which is 1, misses it: the error of the integration.
    - `reliable (m,)`: whether all the multipliers asked for converged there, and `drift` is small. Where not, counts may
      be wrong.
    - `special_points`: `CyclePoint`s, in order. `ended`: in words, why the branch ends where it does.
    """

    parameters: Float[Array, " m"]
    states: PyTree[Array]
    periods: Float[Array, " m"]
    amplitudes: Float[Array, " m"]
    log_multipliers: Complex[Array, "m k"]
    unstable: Int[np.ndarray, " m"]
    residuals: Float[Array, " m"]
    drift: Float[Array, " m"]
    reliable: Bool[Array, " m"]
    special_points: tuple[CyclePoint, ...]
    ended: str = eqx.field(static=True)

    @property
    def multipliers(self) -> Complex[Array, "m k"]:
        """The multipliers themselves; 0 or infinite where they leave the range of the dtype."""
        return jnp.exp(self.log_multipliers)

    def __str__(self) -> str:
        first, last = float(self.parameters[0]), float(self.parameters[-1])
        doubtful = int(jnp.sum(~self.reliable))
        doubt = f"; MULTIPLIERS NOT CONVERGED at {doubtful} points" if doubtful else ""
        head = (
            f"{self.parameters.size} cycles from {first:.6g} to {last:.6g}; {self.ended}; "
            f"largest residual {float(jnp.max(self.residuals)):.1e}, drift {float(jnp.max(self.drift)):.1e}{doubt}"
        )
        return f"{head}\n{cycle_table(self.special_points)}"


def cycle_continuation(
    field: Callable[..., Any],
    orbit: PeriodicOrbit,
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    bounds: tuple[Any, Any],
    backwards: bool = False,
    path: AbstractPath = PseudoArclength(),
    steps: int | None = None,
    k: int = 6,
    ncv: int | None = None,
    solver: dfx.AbstractSolver = dfx.Tsit5(scan_kind="lax"),
    newton: NewtonKrylov | None = None,
    max_points: int = 400,
    max_steps: int = 12,
    tol: float | None = None,
    callback: Callable[[float, PeriodicOrbit], Any] | None = None,
    key: PRNGKeyArray | None = None,
) -> CycleBranch:
    """Follow a periodic orbit of `field` through one of its parameters, and find where its stability changes and how. Of a
    `Forced` field that may be the frequency of the drive.

    The equations of `periodic_orbit`, collocation or shooting, bordered for pseudo-arclength in (state, ln period,
    parameter) (Keller 1977; Doedel, Keller & Kernevez 1991): folds of cycles are passed. The mesh goes along. The Floquet
    multipliers are those of the derivative of the Poincaré map. Between two cycles whose counts of unstable multipliers
    differ, or whose tangents point opposite ways in the parameter, the special point is located by Brent's method. The
    loop over cycles is Python: not under `jit` or `vmap`.

    **Arguments:**

    - `field`, `x`: as for `periodic_orbit`. `orbit`: what that returned at the parameter's present value.
    - `where`, `bounds`, `backwards`, `path`, `max_points`: as for `continuation`.
    - `steps`, `solver`: single shooting, as for `periodic_orbit`; otherwise the mesh is that of `orbit`.
    - `k`: multipliers followed, at most one fewer than the state has numbers, and at least one more than ever are
      unstable. `ncv`: as for `spectrum`.
    - `newton`: the corrector of single shooting; by default `NewtonKrylov` to eps^¾. `max_steps`: of Newton's method for
      each cycle.
    - `tol`: to which special points are located, in units of the path; eps^⅔ by default.
    - `callback(parameter, orbit)`: called at every cycle; the branch ends when it returns True.
    - `key`: of the first Krylov vector, `jax.random.key(0)` by default.

    **Returns:** a `CycleBranch`. A change and its reversal between two neighbouring cycles are not seen: lower `most`.
    A cycle that shrinks to a fixed point ends in its `hopf_point`. Towards a homoclinic orbit, where the period
    diverges, `drift` tells when `steps`, or the mesh, no longer suffice.

    **Raises:** `ValueError` if the parameter is no scalar float leaf, the bounds are reversed or do not hold it, the
    state is complex or a single number, or no cycle is found from `orbit`.

    ```python
    orbit = lambda f: ej.stability.periodic_orbit(f, jnp.array([1.0, 0.0]), period=6.0, intervals=4)
    follow = lambda f: ej.stability.cycle_continuation(f, orbit(f), where=growth, bounds=(0.5, 2.0), k=1)
    # `follow(turning)` has amplitudes √μ
    ```
    """
    z0, unravel = ravel_pytree(jax.tree.map(jnp.asarray, orbit.state))
    real = state_dtype(orbit.state)
    if jnp.issubdtype(real, jnp.complexfloating):
        raise ValueError(
            "`orbit` is complex: wrap the field in `eqjax.Realified` and begin with its orbit."
        )
    forced = isinstance(field, Forced)
    if z0.size < 2 and not forced:
        raise ValueError("`orbit` is of one number: on a line nothing returns.")
    if forced and (steps is not None or orbit.profile is None or orbit.profile.closing is None):
        raise ValueError(
            "Cycles of a `Forced` field are collocated: pass `orbit` as `periodic_orbit` returned it for that field, and "
            "no `steps`."
        )
    check_count(k=k, max_steps=max_steps, **given(steps=steps))
    check_key(**given(key=key))
    line, q = Line.of(field, where, bounds, real)
    key = jax.random.key(0) if key is None else key
    # One direction is the flow's own.
    k = min(k, z0.size if forced else z0.size - 1)
    shared = {"line": line, "x": x, "key": key, "unravel": unravel, "k": k}
    if steps is None and z0.size <= COLLOCATED:
        if orbit.profile is None:
            orbit = periodic_orbit(field, orbit.state, x, period=orbit.period, throw=False)
        problem = Collocated(
            tol=jnp.asarray(float(jnp.finfo(real).eps) ** 0.75, real),
            max_steps=jnp.asarray(max_steps, int),
            **shared,
        )
        guess = orbit.profile
    else:
        problem = Shooting(
            solver=corrector(z0, dense=0) if newton is None else newton,
            integrator=solver,
            steps=1000 if steps is None else steps,
            ncv=ncv,
            max_steps=max_steps,
            **shared,
        )
        guess = z0, jnp.log(jnp.asarray(orbit.period, real))
    start = first_point(problem, guess, q, backwards)
    if not start.converged:
        raise ValueError(
            f"No cycle found from `orbit`: Newton's method ended at residual {float(start.residual):.1e}. Either (a) "
            "pass what `periodic_orbit` returns for the field with the parameter's present value; (b) allow more "
            "`max_steps`, or more `steps` of the integration; or (c) it fell on a fixed point."
        )

    def sample(point) -> CycleSample:
        turn = point.found
        logs: Any = np.asarray(turn.logs)
        whole = (None, None)
        if isinstance(problem, Collocated):
            ahead, pace = point.tangent
            whole = point.y[0], (ahead, pace * line.span)
        return CycleSample(
            parameter=line.number(point.y[1]),
            state=(turn.state, turn.period, turn.amplitude, turn.centre, whole),
            slope=float(point.tangent[1]),
            multipliers=bounded(logs[np.argsort(-logs.real, kind="stable")]),
            converged=bool(point.converged & turn.reliable),
            # A multiplier that a symmetry keeps at 1 is there to within the error of the integration.
            unstable=int(np.sum(logs.real > np.sqrt(np.finfo(logs.dtype).eps))),
        )

    def stop(point, seen):
        cycle = PeriodicOrbit.at(point, unravel)
        return callback is not None and callback(seen.parameter, cycle)

    # Small relative to the branch, and shrinking: one that begins at a Hopf point is small, too.
    largest = float(start.found.amplitude)

    def examine(leg):
        nonlocal largest
        special = cycle_points(leg, unravel)
        before, now = float(leg.first.state[2]), float(leg.last.state[2])
        largest = max(largest, now)
        if forced:  # whose response need be no cycle around a fixed point
            return special, ""
        # A small cycle may be just passing: only a Hopf point where it is heading ends the branch.
        if now < min(before, 0.05 * largest) and (hopf := _hopf(problem, leg, where)):
            return [*special, hopf], "the cycle shrank to a fixed point"
        return special, ""

    stacked, samples, special, ended = follow_path(
        problem,
        path,
        start,
        sample=sample,
        examine=examine,
        stop=stop,
        max_points=max_points,
        tol=tol,
    )
    return CycleBranch(
        parameters=jax.device_put(np.asarray(line.number(stacked.y[1]), stacked.y[1].dtype)),
        states=jax.vmap(unravel)(stacked.found.state),
        periods=stacked.found.period,
        amplitudes=stacked.found.amplitude,
        log_multipliers=stacked.found.logs,
        unstable=np.asarray([seen.unstable for seen in samples]),
        residuals=stacked.residual,
        drift=stacked.found.drift,
        reliable=stacked.found.reliable,
        special_points=special,
        ended=ended,
    )


def _hopf(problem, leg, where) -> CyclePoint | None:
    """The Hopf point to which a small cycle shrinks, if it is where that would be: the parameter goes with the square
    of the amplitude."""
    first, last, line = leg.first, leg.last, problem.line
    _, period, after, centre, _ = last.state
    before = first.state[2]
    change = last.parameter - first.parameter
    # Through the last two cycles, amplitude² as a line in the parameter, to where it is 0.
    expected = last.parameter + change * float(after**2 / (before**2 - after**2))
    field = replaced(line.field, line.index, jnp.asarray(last.parameter))
    frequency = 2 * np.pi / float(period)
    # From the cycle's middle, at its frequency: both are off by the square of the amplitude only.
    found = hopf_point(
        field,
        problem.unravel(centre),
        problem.x,
        where=where,
        frequency=jnp.asarray(frequency, period.dtype),
        k=problem.k + 1,
        key=problem.key,
        throw=False,
    )
    parameter, omega = float(found.parameter), float(found.frequency)
    # Newton's method may have gone to some other Hopf point of the same field.
    near = abs(parameter - expected) <= abs(change) and abs(omega / frequency - 1) < 0.1
    if not (found.converged and near):
        return None
    return CyclePoint(
        parameter=parameter,
        interval=(parameter, parameter),
        state=found.state,
        period=2 * np.pi / omega,
        amplitude=0.0,
        type="Hopf",
        change=0,
        status="converged",
        multiplier=1 + 0j,
        frequency=omega,
        index=leg.number + 1,
    )
