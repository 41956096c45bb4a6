"""The nudged phases of a causal field, settled by sweeps from its last token back to its first."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Int, PyTree

from ..relaxation import TokenOrder, linear_in_order, while_wanted, with_tolerance

CAP = 4.0  # in radii


class _Carry(NamedTuple):
    a: PyTree[Array]
    left: PyTree[Array]
    residual: Float[Array, ""]
    shrink: Float[Array, ""]
    calls: Int[Array, ""]
    sweep: Int[Array, ""]


# Why sweeps. In adjoint coordinates the nudged force is `Jᵀa + ∂L/∂z` up to O(β), and Jᵀ is upper triangular. So a sweep
# finds, from the last token back, the displacement that takes what is left of the nudged force, were it linear; then the
# nudged force itself is evaluated, and what its curvature leaves is for the next one. Each gains a factor of O(β), so one
# is enough as a rule.
def swept(phases, nudge, force, most: int = 4):
    """Sweep until the nudged force of the whole, `force(a, β)`, meets the tolerance of `nudge`.

    The nudge moves no token by more than `CAP` times its share of the radius; under which a sweep gains less than half, it
    is quartered, for that sample.

    **Returns:** a, β, the norm of its force, and the evaluations of the window.
    """
    response = phases.response
    z, pull = response.z, response.pull
    order: TokenOrder = nudge.solver
    tolerance = order.rtol + order.atol
    # No flow: a token that its solver loses goes on in the next sweep, if it matters to the whole.
    back = replace(with_tolerance(order, lambda *_: (0.0, 0.7 * tolerance)), flow=None)
    radius = nudge.size(phases, pull) / response.extent  # of a unit a

    def size(a, shrink):
        far, near = jax.vmap(optx.two_norm)(a), jax.vmap(optx.two_norm)(z)
        # Of a token that has no displacement yet: as if it had its share of the pull's. Curvature is felt token by token.
        furthest = CAP * radius * jnp.min(near / jnp.maximum(far, z.shape[0] ** -0.5))
        return shrink * jnp.minimum(nudge.size(phases, a), furthest)

    def step(carry):
        at = (response.field, z, response.x, -carry.left)
        found = linear_in_order(*at, back, nudge.steps, reverse=True)
        a = carry.a + found.value
        left = force(a, size(a, carry.shrink))
        residual = optx.two_norm(left)
        # Negated, so that NaN shrinks too; and what is worse than before is not kept.
        poor = ~(residual <= 0.5 * carry.residual) & (residual > tolerance)
        better = residual < carry.residual
        kept = lambda new, old: jnp.where(better, new, old)
        return _Carry(
            a=kept(a, carry.a),
            left=kept(left, carry.left),
            residual=kept(residual, carry.residual),
            shrink=jnp.where(poor, 0.25 * carry.shrink, carry.shrink),
            calls=carry.calls + found.evaluations + 1,
            sweep=carry.sweep + 1,
        )

    def going(carry):
        return (carry.residual > tolerance) & (carry.sweep < most)

    count = jnp.asarray(0)
    # A pull of zero has the adjoint zero, which is where it begins.
    start = _Carry(
        jnp.zeros_like(pull), pull, optx.two_norm(pull), jnp.ones((), z.dtype), count, count
    )
    final = while_wanted(going, step, start)
    return final.a, size(final.a, final.shrink), final.residual, final.calls
