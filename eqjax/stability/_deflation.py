"""`equilibria`: one fixed point after another, from the same starts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from .._checks import check_arrays, check_count, check_positive, given, refuse
from ..relaxation import check_structure, explained
from ._defining import solve_square
from ._jacobian import real_dtype


class Equilibria(eqx.Module):
    """What `equilibria` returns. It prints as a table.

    - `states`: the fixed points, with a leading axis of `count`, in the order in which they were found; NaN where none was.
    - `found (count,)`: where there is one. `residuals (count,)`: the force residuals `‖F‖ / max(‖z‖, 1)`.
    - `starts (count,)`: from which of the starts each was found.
    - `exhausted`: whether the search ended since no start led to another one, and not since `count` were found. It is
      no proof that there are no more.
    """

    states: PyTree[Array]
    found: Bool[Array, "*b count"]
    residuals: Float[Array, "*b count"]
    starts: Int[Array, "*b count"]
    exhausted: Bool[Array, "*b"]

    def __str__(self) -> str:
        if isinstance(self.found, Tracer) or self.found.ndim > 1:
            return repr(self)
        number = int(jnp.sum(self.found))
        why = "no start led to another" if self.exhausted else "as many as were asked for"
        head = f"{number} fixed points; {why}"
        if not number:
            return head
        flat = np.concatenate(
            [
                np.reshape(np.asarray(a), (len(self.found), -1))
                for a in jax.tree.leaves(self.states)
            ],
            axis=1,
        )
        rows = (
            f"{', '.join(f'{v:.6g}' for v in z[:6])}{', …' if z.size > 6 else ''}  (start {int(s)}, residual {float(r):.1e})"
            for z, s, r in zip(flat[:number], self.starts, self.residuals, strict=False)
        )
        return "\n".join([head, *rows])


def equilibria(
    field: Callable[..., Any],
    starts: PyTree[Array],
    x: PyTree = None,
    *,
    count: int = 16,
    power: ScalarLike = 2.0,
    scale: ScalarLike | PyTree[Array] = 1.0,
    apart: ScalarLike | None = None,
    tol: ScalarLike | None = None,
    max_steps: int = 200,
) -> Equilibria:
    """Distinct fixed points of a field, stable or not, by deflated Newton (Farrell, Birkisson & Funke 2015).

    Newton's method on `M(z) F(z) = 0` with `M = ∏ (1 + ‖z - r‖⁻ᵖ)` over the fixed points r that are known: it is kept away
    from these, and so the same start leads to others. M changes the length and the sign of Newton's step, not its line, so
    that each step is one linear solve with J, by LU up to 400 numbers and by `GMRES` beyond. Under `jit` and `vmap`.

    **Arguments:**

    - `field`, `x`: as for `equilibrium`, of a real state.
    - `starts`: states with a leading axis: `z0[None]` for one, or for many `jax.random.normal(key, (20, n))`. Each is used
      until it leads to no other fixed point. Starts on a plane of symmetry of the field may stay there.
    - `count`: after how many the search ends. `power`: p.
    - `scale`: by which differences of states are divided before they are measured: a number, or a state of numbers where
      units differ.
    - `apart`: fixed points are the same if they are no farther apart, in that unit; eps^⅓ by default, since a double one is
      known to no better than the root of eps.
    - `tol`: of the force residual `‖F‖ / max(‖z‖, 1)`; eps^¾ by default. `max_steps`: of Newton's method for each attempt.

    **Returns:** an `Equilibria`; none found is no error. Which of them the flow stays at,
    `jax.vmap(lambda z: check(field, z, x))(found.states)` tells.

    **Raises:** `ValueError` if the state is complex, `starts` has no leading axis, or `scale` is not positive.

    ```python
    found = ej.stability.equilibria(network, jnp.ones((1, 2)), count=1)
    assert found.found.all() and jnp.abs(found.states).max() < 1e-9
    ```
    """
    check_arrays(starts=starts, scale=scale)
    check_count(count=count, max_steps=max_steps)
    check_positive(power=power, **given(apart=apart, tol=tol))
    starts = jax.tree.map(jnp.asarray, starts)
    real = real_dtype(starts, "starts")
    lengths = {a.shape[:1] for a in jax.tree.leaves(starts)}
    if len(lengths) != 1 or lengths == {()} or lengths == {(0,)}:
        raise ValueError(
            "`starts` must be states with one leading axis, at least 1 long: pass `jax.tree.map(lambda a: a[None], z0)` for a "
            "single one."
        )
    first = jax.tree.map(lambda a: a[0], starts)
    if jax.tree.structure(scale) != jax.tree.structure(first):
        check_positive(scale=scale)
        scale = jax.tree.map(lambda a: jnp.full_like(a, scale), first)
    scale = jax.tree.map(lambda s, a: jnp.broadcast_to(jnp.asarray(s, real), a.shape), scale, first)
    known = [a for a in jax.tree.leaves(scale) if not isinstance(a, Tracer)]
    if not all(bool(jnp.all(a > 0)) for a in known):
        refuse("scale", "be positive", scale)
    eps = float(jnp.finfo(real).eps)
    numbers = (power, eps ** (1 / 3) if apart is None else apart, eps**0.75 if tol is None else tol)
    with jax.default_matmul_precision("highest"):
        return _equilibria(
            field, starts, x, scale, [jnp.asarray(v, real) for v in numbers], count, max_steps
        )


class _Attempt(NamedTuple):
    """Where Newton's method stands: the state, its force, the length of the last full step, and whether it goes on."""

    z: Array
    force: Array
    length: Array
    steps: Array
    stuck: Array


class _Search(NamedTuple):
    """What is known: the fixed points, in rows, how many, how well, from where; and the start that is used."""

    roots: Array
    number: Array
    residuals: Array
    origins: Array
    start: Array


# Why the step is a number times Newton's: (M J + F ∇Mᵀ) s = -M F is solved by s = τ δ, with J δ = -F and
# τ = 1 / (1 - ∇(ln M)·δ) (Sherman & Morrison): the deflated matrix, which is full, is never formed.
@eqx.filter_jit
def _equilibria(field, starts, x, scale, numbers, count, max_steps):
    power, apart, tol = numbers
    first = jax.tree.map(lambda a: a[0], starts)
    with explained(field, first, x):
        check_structure(first, jax.eval_shape(lambda z: field(0.0, z, x), first))
    begin, unravel = jax.vmap(lambda z: ravel_pytree(z)[0])(starts), ravel_pytree(first)[1]
    unit = ravel_pytree(scale)[0]
    force = lambda z: ravel_pytree(field(0.0, unravel(z), x))[0]
    ratio = lambda z, f: jnp.linalg.norm(f) / jnp.maximum(jnp.linalg.norm(z), 1)
    norm = jnp.linalg.norm
    reach = 1e-3 * jnp.sqrt(jnp.asarray(unit.size, unit.dtype))
    aside = 0.01 * jax.random.normal(jax.random.key(0), unit.shape, unit.dtype)

    def log_deflation(z, search):
        """ln M"""
        known = jnp.arange(count) < search.number
        # Of places that are not in use neither the value nor the derivative may be NaN.
        roots = jnp.where(known[:, None], search.roots, 0)
        squares = jnp.sum(((z[None] - roots) / unit[None]) ** 2, axis=1)
        near = jnp.where(known, squares, 1.0)
        return jnp.sum(jnp.where(known, jnp.log1p(near ** (-0.5 * power)), 0.0))

    def distance(z, search):
        """To the nearest that is known."""
        gaps = norm((z[None] - search.roots) / unit[None], axis=1)
        return jnp.min(jnp.where(jnp.arange(count) < search.number, gaps, jnp.inf))

    def newton(z, f):
        _, product = jax.linearize(force, z)
        return solve_square(product, -f)

    def attempt(search):
        """Deflated Newton, damped, from the present start."""

        def merit(z, f):
            return log_deflation(z, search) + jnp.log(norm(f))

        def arrived(at):
            size = jnp.maximum(norm(at.z / unit), 1)
            return (ratio(at.z, at.force) <= tol) & (at.length <= jnp.sqrt(tol) * size)

        def unfinished(at):
            return ~arrived(at) & ~at.stuck & (at.steps < max_steps)

        def body(at):
            delta = newton(at.z, at.force)
            slope = jax.grad(log_deflation)(at.z, search) @ delta
            tau = 1 / (1 - slope)
            # Let grow sevenfold in a step: with a merit that must fall, a single start finds a third of what it can.
            now = merit(at.z, at.force)

            def worse(carry):
                size, tries = carry
                z = at.z + size * delta
                value = merit(z, force(z))
                return ~(value < now + 2.0) & (tries < 12)

            size, tries = jax.lax.while_loop(worse, lambda c: (0.5 * c[0], c[1] + 1), (tau, 0))
            z = at.z + size * delta
            f = force(z)
            exact = norm(f) == 0
            stuck = ~exact & ((tries >= 12) | ~jnp.all(jnp.isfinite(z)))
            return _Attempt(z, f, norm(size * delta / unit), at.steps + 1, stuck)

        z = begin[search.start]
        # On a fixed point M is infinite, and no step is defined.
        shaken = z + aside * jnp.maximum(jnp.abs(z), unit)
        z = jnp.where(distance(z, search) <= reach, shaken, z)
        zero = jnp.asarray(0)
        start = _Attempt(z, force(z), jnp.full_like(tol, jnp.inf), zero, jnp.asarray(False))
        end = jax.lax.while_loop(unfinished, body, start)
        return end.z, arrived(end)

    def polished(z):
        """Two plain steps, each of which is taken only where it helps."""
        f = force(z)
        for _ in range(2):
            other = z + newton(z, f)
            value = force(other)
            better = norm(value) < norm(f)
            z, f = jnp.where(better, other, z), jnp.where(better, value, f)
        return z, ratio(z, f)

    def searching(search):
        return (search.number < count) & (search.start < begin.shape[0])

    def look(search):
        z, arrived = attempt(search)
        z, residual = polished(z)
        new = arrived & (residual <= tol)
        new &= distance(z, search) > apart * jnp.maximum(norm(z / unit), 1)
        place = jnp.where(new, search.number, count)  # beyond the end nothing is set
        return _Search(
            roots=search.roots.at[place].set(z, mode="drop"),
            number=search.number + new.astype(search.number.dtype),
            residuals=search.residuals.at[place].set(residual, mode="drop"),
            origins=search.origins.at[place].set(search.start, mode="drop"),
            start=search.start + (~new).astype(search.start.dtype),
        )

    nothing = jnp.full((count,), jnp.nan, begin.dtype)
    rows = jnp.full((count, begin.shape[1]), jnp.nan, begin.dtype)
    zero = jnp.asarray(0)
    search = _Search(rows, zero, nothing, jnp.full((count,), -1), zero)
    end = jax.lax.while_loop(searching, look, search)
    return Equilibria(
        states=jax.vmap(unravel)(end.roots),
        found=jnp.arange(count) < end.number,
        residuals=end.residuals,
        starts=end.origins,
        exhausted=end.number < count,
    )
