"""`switch`: from a branch point onto the other branch, from a Hopf point to its cycle."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray, PyTree

from ._bifurcation import SpecialPoint
from ._continuation import Branch, Problem
from ._cycle_continuation import CycleBranch
from ._cycle_points import CyclePoint
from ._cycle_problems import Collocated, Shooting
from ._cycle_search import DEGREE
from ._cycle_switch import off_cycle
from ._cycles import COLLOCATED, PeriodicOrbit
from ._jacobian import state_dtype
from ._linear_solver import solver_of
from ._parameter import Line, find, replaced
from ._path import advance, corrector, product_at
from ._profile import curve_on
from ._sparse import SparseLU
from ._spectrum import spectrum
from ._transforms import Rightmost


def switch(
    field: Callable[..., Any],
    branch: Branch | CycleBranch,
    point: SpecialPoint | CyclePoint,
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    size: float = 0.02,
    k: int = 6,
    linear_solver: Any = None,
    key: PRNGKeyArray | None = None,
) -> tuple[Any, Any]:
    """What branches off from `branch` in a special point, from which to continue: at a branch point the fixed points, or
    the cycles, of the other branch, at a Hopf point a small cycle, at a period doubling a cycle of twice the period.

    Both branches of fixed points leave along the plane of the tangent and the null vector of J; the step is taken in it,
    square to the branch that is known (Keller 1977). The cycle is predicted by the critical eigenvector q, as
    `z + Re(q exp iωt)`, and corrected at that amplitude, with the parameter as an unknown: it comes out on the side where
    there are cycles, stable or not. From a cycle the step is taken along the null vector of its collocation equations; at a
    period doubling it is run through twice, and this is the eigenvector of the multiplier -1.

    **Arguments:**

    - `field`, `x`, `where`: as they were given to `continuation`, or `cycle_continuation`, which returned `branch`, real.
    - `point`: one of its special points, with `flow` "branch point" or "Hopf"; of a branch of collocated cycles, with
      `type` "branch point" or "period doubling".
    - `size`: of the step, or of the cycle at most, in units of the path; at a branch point its sign chooses the side. A step
      onto other cycles is cut where it would pass the next special point of their branch.
    - `k`: modes searched for the critical one; multipliers of a new cycle. `linear_solver`: as for `continuation`, of fixed
      points. `key`: of the first Krylov vector, `jax.random.key(0)` by default.

    **Returns:** the field, with the parameter of the new point, and its state, or a `PeriodicOrbit`:
    `continuation(*switch(...), where=where, bounds=bounds)` follows the one, `cycle_continuation` the other.

    **Raises:** `ValueError` if `point` is none of these, the state is complex, or nothing is found that branches off.

    ```python
    born = lambda f, branch, hopf: ej.stability.switch(f, branch, hopf, where=gain)
    # `born(network, branch, hopf)`: the network beyond gain .8, and a small cycle of period 2π/.8
    ```
    """
    if isinstance(point, CyclePoint):
        return off_cycle(field, branch, point, x, where=where, size=size, k=k, key=key)
    if point.flow not in ("branch point", "Hopf"):
        raise ValueError(
            f'`point` must be a special point with flow "branch point" or "Hopf", got "{point.flow}": no branches cross '
            "there."
        )
    real = state_dtype(point.state)
    if jnp.issubdtype(real, jnp.complexfloating):
        raise ValueError("`branch` is complex: continue `eqjax.Realified(field)` instead.")
    key = jax.random.key(0) if key is None else key
    index, _ = find(field, where)
    low = jnp.asarray(point.parameter, real)
    span = jnp.asarray(jnp.ptp(branch.parameters), real)
    here = jax.tree.map(jnp.asarray, point.state)
    k = min(k, optax.tree.size(here))
    critical = replaced(field, index, low)
    linear_solver = solver_of(linear_solver, critical, here, x)
    sparse = isinstance(linear_solver, SparseLU)
    transform = Rightmost(linear_solver) if sparse else None
    found = spectrum(critical, here, x, k=k, transform=transform, key=key, throw=False)
    nearest = jnp.argmin(jnp.abs(found.values - 1j * point.frequency))
    line = Line(field, low, span, index)
    if point.flow == "Hopf":
        vector = jax.tree.map(lambda leaf: leaf[nearest], found.vectors)
        # Where the branch bends soon, only a smaller cycle is near its prediction.
        for part in (1, 0.5, 0.25, 0.1, 0.03):
            found = _born(line, x, here, vector, point.frequency, part * size, key)
            if found[1].converged:
                return found
        raise ValueError(
            f"`switch` found no cycle: residual {float(found[1].residual):.1e}. Try a smaller `size`."
        )
    null = jax.tree.map(lambda leaf: leaf[nearest].real, found.vectors), jnp.zeros_like(low)

    def neighbour(i):
        return jax.tree.map(lambda leaf: leaf[i], branch.states), branch.parameters[i] / span

    inner = product_at(here)
    before, after = neighbour(point.index), neighbour(point.index + 1)
    along = _unit(jax.tree.map(jnp.subtract, after, before), inner)
    overlap = inner(along, null)
    aside = _unit(jax.tree.map(lambda n, a: n - overlap * a, null, along), inner)
    problem = Problem(
        line=line,
        x=x,
        solver=None,
        linear_solver=linear_solver,
        key=key,
        max_steps=20,
        k=1,
    )
    base = here, jnp.zeros_like(low)
    new = advance(problem, base, aside, aside, jnp.asarray(size, real))
    if not new.converged:
        raise ValueError(
            f"`switch` found no point on another branch: force residual {float(new.residual):.1e}. Try another `size`."
        )
    return line.at(new.y[1]), new.y[0]


def _born(line, x, here, vector, frequency, size, key):
    """The field and the cycle of a size around a Hopf point."""
    z, unravel = ravel_pytree(here)
    q = np.asarray(ravel_pytree(vector)[0])
    zero, period = jnp.zeros_like(z[0]), jnp.asarray(2 * np.pi / frequency, z.dtype)
    inner = product_at(z)
    # The longest excursion of the ellipse, each component in its own unit, lies ahead, and the cycle passes it.
    units = np.maximum(abs(q), 1e-6 * np.max(abs(q)))
    q = q * np.exp(-0.5j * np.angle(np.sum((q / units) ** 2)))
    ahead, aside = (jnp.asarray(part, z.dtype) for part in (q.real, q.imag))
    scale = abs(size) / jnp.sqrt(inner((ahead, zero), (ahead, zero)))
    ahead, aside = scale * ahead, scale * aside
    normal = ahead / jnp.asarray(units, z.dtype) ** 2
    shared = {"line": line, "x": x, "key": key, "unravel": unravel}
    if z.size <= COLLOCATED:
        angle = lambda t: 2 * np.pi * t[:, None]
        turn = lambda t: z[None] + jnp.cos(angle(t)) * ahead[None] - jnp.sin(angle(t)) * aside[None]
        count = 40
        guess = curve_on(turn, jnp.full(count, 1 / count, z.dtype), jnp.log(period), DEGREE)
        tight = jnp.asarray(float(jnp.finfo(z.dtype).eps) ** 0.75, z.dtype)
        problem = Collocated(
            tol=tight, max_steps=jnp.asarray(30, int), k=min(6, z.size - 1), **shared
        )
        nowhere = jax.tree.map(jnp.zeros_like, guess)
        row = nowhere._replace(nodes=nowhere.nodes.at[0].set(normal))
    else:
        guess, row = (z + ahead, jnp.log(period)), (normal, zero)
        solver = dfx.Tsit5(scan_kind="lax")
        newton = corrector(z, dense=0)
        problem = Shooting(
            solver=newton, integrator=solver, steps=200, ncv=None, max_steps=30, k=6, **shared
        )
    nothing = jax.tree.map(jnp.zeros_like, guess), zero
    found = advance(problem, (guess, zero), nothing, (row, zero), zero)
    return line.at(found.y[1]), PeriodicOrbit.at(found, unravel)


def _unit(pair, inner):
    size = jnp.sqrt(inner(pair, pair))
    return jax.tree.map(lambda a: a / size, pair)
