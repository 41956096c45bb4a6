"""`switch`: from a branch point onto the other branch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._bifurcation import SpecialPoint
from ._continuation import Branch, Problem
from ._jacobian import state_dtype
from ._parameter import Line, find, replaced
from ._path import advance, corrector, product_at
from ._spectrum import spectrum


def switch(
    field: Callable[..., Any],
    branch: Branch,
    point: SpecialPoint,
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    size: float = 0.02,
    k: int = 6,
    key: PRNGKeyArray | None = None,
) -> tuple[Any, PyTree[Array]]:
    """A fixed point on the branch that crosses `branch` in a branch point, from which to continue.

    Both branches leave along the plane of the tangent and the null vector of J; the step is taken in it, square to the
    branch that is known (Keller 1977).

    **Arguments:**

    - `field`, `x`, `where`: as they were given to `continuation`, which returned `branch`, real.
    - `point`: one of its special points, with `flow == "branch point"`.
    - `size`: of the step, in units of the path; its sign chooses the side.
    - `k`: modes searched for the one of eigenvalue 0. `key`: of the first Krylov vector, `jax.random.key(0)` by default.

    **Returns:** the field, with the parameter of the new point, and its state:
    `continuation(*switch(...), where=where, bounds=bounds)` follows them.

    **Raises:** `ValueError` if `point` is no branch point, the state is complex, or no point of another branch is found.
    """
    if point.flow != "branch point":
        raise ValueError(
            f'`point` must be a special point with flow "branch point", got "{point.flow}": no branches cross there.'
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
    found = spectrum(replaced(field, index, low), here, x, k=k, key=key, throw=False)
    nearest = jnp.argmin(jnp.abs(found.values))
    null = jax.tree.map(lambda leaf: leaf[nearest].real, found.vectors), jnp.zeros_like(low)

    def neighbour(i):
        return jax.tree.map(lambda leaf: leaf[i], branch.states), branch.parameters[i] / span

    inner = product_at(here)
    before, after = neighbour(point.index), neighbour(point.index + 1)
    along = _unit(jax.tree.map(jnp.subtract, after, before), inner)
    overlap = inner(along, null)
    aside = _unit(jax.tree.map(lambda n, a: n - overlap * a, null, along), inner)
    line = Line(field, low, span, index)
    problem = Problem(line=line, x=x, solver=corrector(here), key=key, max_steps=20, k=1)
    base = here, jnp.zeros_like(low)
    new = advance(problem, base, aside, aside, jnp.asarray(size, real))
    if not new.converged:
        raise ValueError(
            f"`switch` found no point on another branch: force residual {float(new.residual):.1e}. Try another `size`."
        )
    return line.at(new.y[1]), new.y[0]


def _unit(pair, inner):
    size = jnp.sqrt(inner(pair, pair))
    return jax.tree.map(lambda a: a / size, pair)
