"""`periodic_orbit`: a cycle, its period, and its Floquet multipliers."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_count, check_key, check_kind, check_positive, given
from ..relaxation import NewtonKrylov
from ._jacobian import check_autonomous, real_dtype
from ._krylov_schur import Eigenpairs, eigenpairs, resolve
from ._propagation import turn


class PeriodicOrbit(eqx.Module):
    """What `periodic_orbit` returns.

    - `state`: a point of the cycle; `period`: T.
    - `multipliers (k,)`: the largest eigenvalues of the monodromy matrix `∂z(T)/∂z(0)`, largest first. One is 1, along
      the cycle. Those far below 1 may be rounding.
    - `residual`: `‖z(T) - z(0)‖ / max(‖z‖, 1)`. `converged`: whether shooting and multipliers converged.
    - `period_error`: about what the integration adds to the period, from one turn in halved steps; NaN on a branch.
    """

    state: PyTree[Array]
    period: Float[Array, ""]
    multipliers: Complex[Array, " k"]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    period_error: Float[Array, ""]

    @property
    def transverse(self) -> Complex[Array, " m"]:
        """The multipliers without the one along the cycle, the nearest to 1."""
        # By value, not by rank: on an unstable cycle it is not the largest.
        along = jnp.argmin(jnp.abs(self.multipliers - 1))
        order = jnp.arange(self.multipliers.size - 1)
        return self.multipliers[jnp.where(order < along, order, order + 1)]

    @property
    def stable(self) -> Bool[Array, ""]:
        """Whether every transverse multiplier found lies inside the unit circle."""
        return self.converged & jnp.all(jnp.abs(self.transverse) < 1)

    def __str__(self) -> str:
        if isinstance(self.period, Tracer) or self.period.ndim:
            return repr(self)
        word = "stable" if self.stable else "unstable" if self.converged else "not converged:"
        sizes = ", ".join(f"{complex(m):.6g}" for m in self.multipliers)
        return (
            f"{word} cycle of period {float(self.period):.12g} ± {float(self.period_error):.0e}, multipliers "
            f"{sizes}, residual {float(self.residual):.1e}"
        )


def periodic_orbit(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    period: ScalarLike,
    steps: int = 1000,
    k: int = 6,
    ncv: int | None = None,
    tol: ScalarLike | None = None,
    max_steps: int = 30,
    # Diffrax' default for the stages has no forward mode, and every product here is a JVP.
    solver: dfx.AbstractSolver = dfx.Tsit5(scan_kind="lax"),
    key: PRNGKeyArray | None = None,
    throw: bool = True,
) -> PeriodicOrbit:
    """A periodic orbit of an autonomous field, stable or not, by single shooting.

    Newton–Krylov on `z(T; z) - z = 0` and `⟨F(z₀), z - z₀⟩ = 0` for state and period together. The Floquet multipliers
    come from products with the monodromy matrix, which are JVPs through the integration; by Krylov–Schur, so that
    nothing is formed. Their absolute error is about that of the orbit, relative to the largest.

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt`, evaluated near t = 0: autonomous. `x`: clamped input.
    - `z0`, `period`: a real state near the cycle, and a guess of T: what a simulation shows.
    - `steps`: of `solver`, an explicit Diffrax solver, of fixed length T/steps; its order sets the error.
    - `k`: multipliers, at most as many as the state has numbers. `ncv`: as for `spectrum`.
    - `tol`: of the shooting residual; eps^¾ by default. `max_steps`: of Newton's method.
    - `key`: of the first Krylov vector, `jax.random.key(0)` by default.
    - `throw`: raise if it does not converge. With `throw=False` look at `converged`.

    **Returns:** a `PeriodicOrbit` of the least period: from near 2T, 3T or 5T it comes back to T. Where Newton's method
    falls on a fixed point, which is a cycle of any period, it counts as not converged.

    **Raises:** `ValueError` on a complex state, a period or count that is not positive, or a field that depends on t.
    """
    check_count(k=k, steps=steps, max_steps=max_steps)
    check_positive(period=period, **given(tol=tol))
    check_key(**given(key=key))
    check_kind(dfx.AbstractSolver, "a Diffrax solver", solver=solver)
    dtype, k = real_dtype(z0), min(k, optax.tree.size(z0))
    key = jax.random.key(0) if key is None else key
    period = jnp.asarray(period, dtype)
    # Well above eps, for the rounding of all the steps of a turn enters z(T) - z(0).
    tol = jnp.asarray(float(jnp.finfo(dtype).eps) ** 0.75 if tol is None else tol, dtype)
    found = _periodic_orbit(field, z0, x, period, steps, k, ncv, tol, max_steps, solver, key)
    if throw:
        found = eqx.error_if(
            found,
            ~found.converged,
            "No cycle found near `z0` and `period`. Either (a) start nearer, from a state and period that a simulation "
            "shows; (b) allow more `max_steps`, or more `steps` of the integration; or (c) it fell on a fixed point.",
        )
    return found


def multipliers_resolved(pairs: Eigenpairs) -> Bool[Array, ""]:
    """Whether multipliers are known as well as it takes to compare them with 1: one of a direction that contracts
    strongly lies below the rounding of the products, and need not be known to its last digit."""
    eps = float(jnp.finfo(pairs.residuals.dtype).eps)
    size = jnp.abs(pairs.values)
    defects = pairs.residuals * jnp.maximum(size, eps ** (2 / 3) * pairs.magnitude)
    allowed = jnp.maximum(eps ** (2 / 3) * jnp.maximum(size, 1), 20 * eps * pairs.magnitude)
    return jnp.all(pairs.converged | (defects <= allowed))


@eqx.filter_jit
def _periodic_orbit(field, z0, x, period, steps, k, ncv, tol, max_steps, solver, key):
    check_autonomous(field, z0, x)
    flat, unravel = ravel_pytree(z0)

    def force(z):
        return ravel_pytree(field(0.0, unravel(z), x))[0]

    def flow(z, period):
        return turn(field, solver, unravel, z, x, period / steps, steps)

    # A cycle may be entered at any of its points, and along it the monodromy matrix minus I is singular: the
    # phase condition picks one, and the period is the unknown that it determines. Its row has unit length, on
    # the scale of the others, because GMRES minimises all rows together.
    pace = force(flat)
    pace = pace / jnp.linalg.norm(pace)

    def closed(y, _):
        z, period = y
        return flow(z, period) - z, jnp.vdot(pace, z - flat)

    # Most directions contract in a turn, so the matrix is -I but for a few: GMRES needs about as many
    # products as there are multipliers that are not small (Sánchez, Net, García-Archilla & Simó 2004).
    newton = NewtonKrylov(tol, restart=60, krylov_steps=240, scale=1.0)

    # Twice a period is a period too, with squared multipliers: what returns sooner is solved again for its own.
    def solve(carry):
        z, period, *_ = carry
        solution = optx.root_find(closed, newton, (z, period), max_steps=max_steps, throw=False)
        z, period = solution.value
        solved = solution.result == optx.RESULTS.successful
        parts = jnp.asarray([2, 3, 5], z.dtype)
        ends = jax.vmap(lambda part: flow(z, period / part))(parts)
        size = jnp.maximum(jnp.linalg.norm(z), 1)
        gaps = jnp.linalg.norm(ends - z[None], axis=1) / size
        # A shorter turn has shorter steps, and closes only to within the error of the longer ones.
        fine = turn(field, solver, unravel, z, x, period / (2 * steps), 2 * steps)
        error = jnp.linalg.norm(fine - flow(z, period)) / size
        near = jnp.minimum(1e3 * tol + 10 * error, jnp.maximum(1e-3, 1e3 * tol))
        sooner = solved & jnp.any(gaps < near) & moves(z, period / 5)
        part = parts[jnp.argmin(gaps)]
        return z, jnp.where(sooner, period / part, period), fine, solved, sooner

    def moves(z, period):
        # Relative to the state, and to the root of the tolerance: where z(T) - z is resolved to tol only, slower
        # motion than that would not tell a cycle from a fixed point, which returns, too.
        size = jnp.maximum(jnp.linalg.norm(z), 1)
        return jnp.linalg.norm(force(z)) * jnp.abs(period) > jnp.sqrt(tol) * size

    start = flat, period, flat, jnp.asarray(False), jnp.asarray(True)
    z, period, fine, solved, _ = jax.lax.while_loop(lambda carry: carry[-1], solve, start)
    # One linearisation of the whole turn serves the residual and all products.
    end, monodromy = jax.linearize(lambda z: flow(z, period), z)
    first = jax.random.normal(key, z.shape, z.dtype)
    pairs, _ = eigenpairs(monodromy, first, key, k, resolve("LM", None), ncv, None, 1000)
    residual = jnp.linalg.norm(end - z) / jnp.maximum(jnp.linalg.norm(z), 1)
    # Halved steps move the end of a turn, and along the orbit that is a time.
    late = jnp.abs(jnp.vdot(force(z), fine - end)) / jnp.vdot(force(z), force(z))
    # With a negative period the same cycle is run backwards, and the multipliers are inverted.
    converged = solved & (period > 0) & moves(z, period)
    return PeriodicOrbit(
        state=unravel(z),
        period=period,
        multipliers=pairs.values,
        residual=residual,
        converged=converged & multipliers_resolved(pairs),
        period_error=late,
    )
