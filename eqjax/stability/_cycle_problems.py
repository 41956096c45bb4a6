"""What is solved along a branch of cycles: shooting, or collocation."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..relaxation import NewtonKrylov
from ._collocation import defect
from ._cycle_newton import Rows, across, corrected, ends_of, tangent
from ._forced import flat_force, without_phase
from ._krylov_schur import eigenpairs, resolve
from ._multipliers import floquet
from ._parameter import Line
from ._path import AbstractProblem, Correction, newton, product_at
from ._profile import Profile, better_mesh, fastest, redrawn, rolled, stages
from ._propagation import turn
from ._shooting import DRIFT, multipliers_resolved


class Turn(NamedTuple):
    """What is told of a cycle, with a point of it; `centre` is amid what its components reach, `logs` are those of the
    multipliers across it."""

    state: Array
    period: Array
    amplitude: Array
    centre: Array
    logs: Array
    reliable: Array
    drift: Array


# Why ln T: Newton's method cannot make the period negative, and a step in it is relative, so that neither a
# fast cycle nor one that nears a homoclinic orbit needs another scale. Why a phase tied to `base`: it moves
# along with the branch, where a fixed section would in time be left by the cycle or touched by it.
class Shooting(AbstractProblem):
    """A cycle: `z(T) = z` and a phase, for the state (z, ln T), z flat."""

    line: Line
    x: PyTree
    solver: NewtonKrylov
    integrator: dfx.AbstractSolver
    key: PRNGKeyArray
    unravel: Callable[[Array], PyTree] = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    k: int = eqx.field(static=True)
    ncv: int | None = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def pace(self, z, q):
        return ravel_pytree(self.line.at(q)(0.0, self.unravel(z), self.x))[0]

    def flow(self, z, period, q, *watched):
        field, integrator = self.line.at(q), self.integrator
        step = period / self.steps
        return turn(field, integrator, self.unravel, z, self.x, step, self.steps, *watched)

    def correct(self, predicted, base, normal):
        begin = base[0][0]

        def equations(y):
            (z, log_period), q = y
            along = self.pace(begin, q)
            # Of unit length, so that GMRES, which minimises all rows together, weighs it like the rest.
            phase = jnp.vdot(along, z - begin) / jnp.linalg.norm(along)
            return self.flow(z, jnp.exp(log_period), q) - z, phase

        inner = self.inner(base[0])
        return newton(equations, inner, self.solver, self.max_steps, predicted, normal)

    def settled(self, point):
        return point

    def inner(self, base):
        # The state is measured relative to its size; ln T, being relative already, as it is.
        inner = product_at(base[0])
        return lambda a, b: inner((a[0][0], a[1]), (b[0][0], b[1])) + a[0][1] * b[0][1]

    def findings(self, state, q, base):
        z, period = state[0], jnp.exp(state[1])
        end, monodromy = jax.linearize(lambda z: self.flow(z, period, q), z)
        pace = self.pace(z, q)
        along = pace / jnp.linalg.norm(pace)

        def across(v):
            return v - along * jnp.vdot(along, v)

        # On the plane across the flow the monodromy matrix is the derivative of the Poincaré map: the
        # multiplier 1 along the cycle is gone, and with it the defective pair that it forms in a fold.
        first = across(jax.random.normal(self.key, z.shape, z.dtype))
        product = lambda v: across(monodromy(across(v)))
        largest = resolve("LM", None)
        pairs, _ = eigenpairs(product, first, self.key, self.k, largest, self.ncv, None, 1000)
        # The flow's direction returns with factor 1: what it misses is the integration's error.
        drift = jnp.abs(jnp.vdot(along, monodromy(along)) - 1)
        # Extremes need all steps: watched in passing, the trajectory is never stored.
        reached = lambda seen, z: (jnp.minimum(seen[0], z), jnp.maximum(seen[1], z))
        low, high = self.flow(z, period, q, reached, (z, z))
        size = jnp.maximum(jnp.linalg.norm(z), 1)
        # A fixed point also returns, but does not move on the way. And a step as long as the cycle is small
        # may fall on its other side, where it moves the other way.
        moving = jnp.linalg.norm(pace) * period > jnp.sqrt(self.solver.rtol) * size
        moving &= jnp.vdot(pace, self.pace(base[0], q)) > 0
        return (
            jnp.linalg.norm(end - z) / size,
            moving,
            Turn(
                state=z,
                period=period,
                amplitude=0.5 * jnp.max(high - low),
                centre=0.5 * (high + low),
                logs=jnp.log(pairs.values),
                reliable=multipliers_resolved(pairs) & (drift < DRIFT),
                drift=drift,
            ),
        )


class Collocated(AbstractProblem):
    """A cycle as a `Profile` on a mesh that goes along with the branch, by the same row for its phase."""

    line: Line
    x: PyTree
    tol: Float[Array, ""]
    max_steps: Int[Array, ""]  # no static number: whoever asks for another one shares the program
    key: PRNGKeyArray
    unravel: Callable[[Array], PyTree] = eqx.field(static=True)
    k: int = eqx.field(static=True)

    def force(self, z, q):
        return flat_force(self.line.at(q), self.unravel, self.x)(z)

    def correct(self, predicted, base, normal):
        profile, q = predicted
        size, inner = profile.nodes.shape[1], self.inner(base[0])

        def overlap(v):
            ends = profile._replace(nodes=v[None, :size], log_period=v[size])
            return inner(normal, (ends, v[size + 1]))

        now = ends_of(*predicted)
        phase = Rows.at(self.force, *base)
        rows = Rows(
            phase.matrix.at[1].set(jax.grad(overlap)(jnp.zeros_like(now))),
            phase.anchors.at[1].set(now),
        )
        found = corrected(self.force, profile, q, rows, self.tol, self.max_steps)
        ahead = tangent(self.force, found.profile, found.q, rows)
        return Correction((found.profile, found.q), ahead, found.converged, found.steps)

    def inner(self, base):
        # As for one that is shot from its first node.
        inner = product_at(base.nodes[0])
        ends = lambda pair: (pair[0].nodes[0], pair[1])
        return lambda a, b: inner(ends(a), ends(b)) + a[0].log_period * b[0].log_period

    def settled(self, point):
        return _on_better_mesh(self, point)

    def findings(self, state, q, base):
        period, flow = state.period, self.force(state.nodes[0], q)
        logs, drift = floquet(self.force, state, q, self.k)
        seen = jnp.concatenate([state.nodes[:, None], stages(state)], axis=1)
        seen = without_phase(seen, state.closing)
        low, high = jnp.min(seen, axis=(0, 1)), jnp.max(seen, axis=(0, 1))
        size = jnp.maximum(jnp.linalg.norm(state.nodes[0]), 1)
        # A fixed point is a solution, too, of any period; and a step as long as the cycle is small may turn it round.
        moving = jnp.linalg.norm(flow) * period > jnp.sqrt(self.tol) * size
        moving &= jnp.vdot(flow, self.force(base.nodes[0], q)) > 0
        return (
            defect(self.force, state, q) / size,
            moving,
            Turn(
                state=without_phase(state.nodes[0], state.closing),
                period=period,
                amplitude=0.5 * jnp.max(high - low),
                centre=0.5 * (high + low),
                logs=logs,
                reliable=jnp.all(jnp.isfinite(logs.imag)) & (drift < DRIFT),
                drift=drift,
            ),
        )


# The first node fixes the phase, and should stay where the cycle is fast. A tangent is free up to a shift along the cycle,
# and leaves with the one that the phase of the next step asks for.
class TwoParameters(AbstractProblem):
    """Cycles of a kind: the profile and (q₁, …), along the second parameter. `force(z, s)` takes all of (q₁, …, q₂), and `rows`
    are the conditions besides being a cycle, at `base`."""

    tol: eqx.AbstractVar[Float[Array, ""]]
    max_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def force(self, z: Array, s: Array, /) -> Array: ...

    @abc.abstractmethod
    def rows(self, base: Any) -> list[tuple[Array, Array]]: ...

    def correct(self, predicted, base, normal):
        (profile, rest), q = predicted
        s, inner, count = jnp.append(rest, q), self.inner(base[0]), profile.nodes.shape[1]
        now = ends_of(profile, s)

        def overlap(v):
            ends = profile._replace(nodes=v[None, :count], log_period=v[count])
            return inner(normal, ((ends, v[count + 1 : -1]), v[-1]))

        found = [*self.rows(base), (jax.grad(overlap)(jnp.zeros_like(now)), now)]
        rows = Rows(*(jnp.stack(part) for part in zip(*found, strict=True)))
        end = corrected(self.force, profile, s, rows, self.tol, self.max_steps)
        ahead, slope = tangent(self.force, end.profile, end.q, rows)
        y = (end.profile, end.q[:-1]), end.q[-1]
        return Correction(y, ((ahead, slope[:-1]), slope[-1]), end.converged, end.steps)


@eqx.filter_jit
def _on_better_mesh(problem, point):
    """A point and its tangent on a mesh that fits better."""
    (profile, q), (ahead, slope) = point.y, point.tangent
    profile, ahead = remeshed(problem.force, profile, q, ahead)
    inner, tangent = problem.inner(profile), (ahead, slope)
    size = jnp.sqrt(inner(tangent, tangent))
    return point._replace(y=(profile, q), tangent=jax.tree.map(lambda a: a / size, tangent))


def remeshed(
    force: Callable, profile: Profile, q: Array, ahead: Profile
) -> tuple[Profile, Profile]:
    """A profile and its tangent on a better mesh, which begins where it is fastest."""
    widths, turn = better_mesh(profile), fastest(profile)
    redraw = lambda p: rolled(redrawn(p, widths), turn)
    profile, ahead = jax.jvp(redraw, (profile,), (ahead,))
    return profile, in_phase(force, profile, q, ahead)


def in_phase(force: Callable, profile: Profile, q: Array, ahead: Profile) -> Profile:
    """A tangent shifted along the cycle, to leave the phase at the first node as it is."""
    z = jnp.concatenate([profile.nodes[:, None], stages(profile)], axis=1)
    forces = lambda z: jax.vmap(jax.vmap(lambda z: force(z, q)))(z)
    velocity = forces(z)
    _, growth = jax.jvp(forces, (z,), (velocity,))
    normal = across(force, profile, q)
    late = jnp.vdot(normal, ahead.nodes[0]) / jnp.vdot(normal, velocity[0, 0])
    return ahead._replace(
        nodes=ahead.nodes - late * velocity[:, 0], slopes=ahead.slopes - late * growth[:, 1:]
    )
