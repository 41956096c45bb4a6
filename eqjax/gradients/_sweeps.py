"""The nudged phases of a causal field, settled in reverse order of its tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Int, PyTree

from ..analytic import while_loop
from ..relaxation import TokenOrder, scanned, transposed, wanted, with_scale, with_tolerance

CAP, ROUNDING = (
    4.0,
    4.0,
)  # in radii; and in units of rounding of the state, that of a difference of forces


class _Carry(NamedTuple):
    a: PyTree[Array]
    residual: Float[Array, ""]
    shrink: Float[Array, ""]
    calls: Int[Array, ""]
    sweep: Int[Array, ""]


# Why sweeps. In adjoint coordinates the nudged force is `Jᵀa + ∂L/∂z` up to O(β), and Jᵀ is upper triangular: what the
# tokens before it do to a token cancels but for O(β). So each token's own equation is solved from the last one back with
# the earlier ones held where the sweep before has left them, and a few sweeps settle the rest. Only near a small nudge: at
# displacements of 1e-2 they stall.
def swept(phases, nudge, residual, most: int = 4):
    """Sweep until `residual(a, β)`, the nudged force of the whole, meets the tolerance of `nudge`.

    The nudge moves no token by more than `CAP` times its share of the radius; under which a sweep gains less than half, it
    is quartered, for that sample.

    **Returns:** a, β, its residual, and the evaluations of the window.
    """
    response = phases.response
    field, x, z = response.field, response.x, response.z
    order: TokenOrder = nudge.solver
    tolerance = order.rtol + order.atol
    share = z.shape[0] ** -0.5
    memory = field.remember(z)
    still = jax.tree.map(jnp.zeros_like, memory)

    def sweep(a, beta, first):
        """All tokens once, given the a of the sweep before; in the first there is none, and nothing else is displaced: each
        chunk then follows its own."""
        # No token is asked for less than what rounding leaves of a difference of forces.
        noise = ROUNDING * jnp.finfo(z.dtype).eps * response.extent / beta
        asked = share * jnp.maximum(0.7 * tolerance, noise)
        each = with_scale(with_tolerance(order, lambda *_: (0.0, asked)), 1.0)
        steps = beta * phases.nodes
        states = z[None] - steps[:, None, None] * a[None]
        memories = jax.vmap(field.remember)(states)
        pulls = phases.average(jax.vmap(response.pull_at)(states))
        moved = jax.jvp(field.remember, (z,), (a,))[1]

        def stage(pulled, start, begin, z, x, force0, pull):
            after = lambda u, m: field.after(0.0, u, x, m, start)
            _, push = jax.linearize(after, z, memory)
            back, noted = jax.linear_transpose(push, z, memory), transposed(field.remember, z)
            chunk = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, z.shape[0], 0)
            (late,) = noted(jax.tree.map(chunk, pulled))

            def force(a):
                own = phases.nodes * jnp.where(first, furthest(z, a, 1.0), beta)
                phase = lambda step, m: (force0 - after(z - step * a, m)) / step
                driven = phases.average(jax.vmap(phase)(own, memories))
                return driven + pull - push(a, moved) + back(a)[0] + late

            more = lambda a: jax.tree.map(jnp.add, pulled, back(a)[1])
            return force, begin, more

        rows = (a, z, x, phases.anchor, pulls)
        return scanned(each, nudge.steps, still, rows, stage, reverse=True)

    one = jnp.ones((), z.dtype)
    radius = nudge.size(phases, response.pull) / response.extent  # of a unit a

    def furthest(z, a, times):
        """The nudge that moves no token by more than so many times the radius: curvature is felt token by token."""
        far, near = jax.vmap(optx.two_norm)(a), jax.vmap(optx.two_norm)(z)
        # Of one that has none yet: as if it were the pull's.
        return times * radius * jnp.min(near / jnp.maximum(far, share))

    def size(carry):
        whole = nudge.size(phases, carry.a)
        return carry.shrink * jnp.minimum(whole, furthest(z, carry.a, CAP))

    def step(carry):
        found = sweep(carry.a, size(carry), carry.sweep == 0)
        a = found.value
        new = carry._replace(a=a)
        left = residual(a, size(new))
        # Negated, so that NaN shrinks too; and what is worse than before is not kept.
        poor = ~(left <= 0.5 * carry.residual)
        better = left < carry.residual
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), a, carry.a)
        return _Carry(
            a=kept,
            residual=jnp.where(better, left, carry.residual),
            shrink=jnp.where(poor & (left > tolerance), 0.25 * carry.shrink, carry.shrink),
            calls=carry.calls + found.evaluations + 1,
            sweep=carry.sweep + 1,
        )

    def going(carry):
        return (carry.residual > tolerance) & (carry.sweep < most)

    count = jnp.asarray(0)
    # A pull of zero has the adjoint zero, which is where it begins.
    start = _Carry(jnp.zeros_like(z), optx.two_norm(response.pull), one, count, count)
    held = lambda carry: jax.tree.map(
        lambda new, old: jnp.where(going(carry), new, old), step(carry), carry
    )
    final = while_loop(lambda carry: wanted(going(carry)), held, start)
    return final.a, size(final), final.residual, final.calls
