"""A cycle by single shooting: for large fields that are not stiff."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from ..relaxation import NewtonKrylov
from ._jacobian import check_autonomous
from ._krylov_schur import Eigenpairs, eigenpairs, resolve
from ._propagation import turn

# Of the multiplier along a cycle: with more, those beside it are not known either.
DRIFT = 1e-2


def multipliers_resolved(pairs: Eigenpairs) -> Bool[Array, ""]:
    """Whether multipliers are known as well as it takes to compare them with 1: one of a direction that contracts
    strongly lies below the rounding of the products, and need not be known to its last digit."""
    eps = float(jnp.finfo(pairs.residuals.dtype).eps)
    size = jnp.abs(pairs.values)
    defects = pairs.residuals * jnp.maximum(size, eps ** (2 / 3) * pairs.magnitude)
    allowed = jnp.maximum(eps ** (2 / 3) * jnp.maximum(size, 1), 20 * eps * pairs.magnitude)
    return jnp.all(pairs.converged | (defects <= allowed))


@eqx.filter_jit
def shot(field, z0, x, period, steps, k, ncv, tol, max_steps, solver, key) -> dict[str, Any]:
    """The entries of a `PeriodicOrbit`."""
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
    # The velocity returns with factor 1: what it misses is the integration's error.
    along = force(z)
    drift = jnp.linalg.norm(monodromy(along) - along) / jnp.linalg.norm(along)
    # With a negative period the same cycle is run backwards, and the multipliers are inverted.
    converged = solved & (period > 0) & moves(z, period) & (drift < DRIFT)
    return {
        "state": unravel(z),
        "period": period,
        "log_multipliers": jnp.log(pairs.values),
        "residual": residual,
        "converged": converged & multipliers_resolved(pairs),
        "period_error": late,
        "drift": drift,
    }
