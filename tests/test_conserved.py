"""Equilibria of fields that conserve something."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.relaxation import (
    RESULTS,
    Anderson,
    AndersonTypeI,
    Broyden,
    NewtonKrylov,
    Picard,
    PseudoTransient,
    Refine,
    TimeStepping,
    TokenOrder,
    equilibrium,
)


def exchange(t, z, x):
    return jnp.stack([-x * z[0] + z[1], x * z[0] - z[1]])


SOLVERS = [Anderson, AndersonTypeI, Broyden, NewtonKrylov, PseudoTransient, Picard, TimeStepping]


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_conserved_is_held_and_differentiated(solver):
    """z₀ + z₁ is 2 for ever: z* = (2, 2x) / (1 + x)."""

    def settled(z0, x):
        found = equilibrium(exchange, z0, x, solver=solver(1e-10), conserved=jnp.sum)
        assert found.value.shape == (2,)
        return found.value

    z0, x = jnp.array([2.0, 0.0]), jnp.asarray(3.0)
    assert np.allclose(settled(z0, x), [0.5, 1.5], atol=1e-8)
    if solver is not Anderson:  # the derivative is the same for all
        return
    in_z0, in_x = jax.jacrev(settled, (0, 1))(z0, x)
    assert np.allclose(in_x, [-0.125, 0.125], atol=1e-8)
    assert np.allclose(in_z0, [[0.25, 0.25], [0.75, 0.75]], atol=1e-8)


def test_several_and_curved_ones_also_in_a_batch():
    """On a sphere `Az` without its radial part settles at the first eigenvector; |z|² stays, and so does a spectator."""
    matrix = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, -1.0]])

    def field(t, z, x):
        v, push = z["v"], x * matrix @ z["v"]
        return {"v": push - v * (v @ push) / (v @ v), "w": 0 * z["w"]}

    squares = lambda z: (z["v"] @ z["v"], z["w"])

    def settled(v, w):
        return equilibrium(
            field, {"v": v, "w": w}, 1.0, solver=NewtonKrylov(1e-11), conserved=squares
        )

    starts = jnp.array([[3.0, 1.0, 0.1], [0.1, 0.02, 0.01]])
    found = jax.vmap(settled)(starts, jnp.array([5.0, 7.0]))
    first = np.linalg.eigh(matrix)[1][:, -1]
    size = np.linalg.norm(starts, axis=1)
    assert np.allclose(np.abs(found.value["v"]), size[:, None] * np.abs(first), atol=1e-7)
    assert np.allclose(found.value["w"], [5, 7])
    energy = lambda v: jnp.sum(settled(v, jnp.asarray(5.0)).value["v"] ** 4)
    kept = np.sum(first**4)  # of |v|⁴
    v = starts[0]
    assert np.allclose(jax.grad(energy)(v), 4 * kept * (v @ v) * v, rtol=1e-6)


def test_what_is_not_conserved_does_not_settle():
    """`z* = x`, whatever z0; z₀ + z₁ is not conserved, and the two pull at one another."""
    field = lambda t, z, x: x - z
    args = field, jnp.array([2.0, 0.0]), jnp.array([3.0, 4.0])
    for precision in ("highest", Refine("bfloat16")):
        found = equilibrium(*args, conserved=jnp.sum, throw=False, precision=precision)
        assert found.result == RESULTS.residual_above_tolerance and found.residual > 0.1


def test_bad_ones_are_refused():
    z0, x = jnp.array([2.0, 0.0]), 3.0
    for conserved, told in (
        (3, "must be a function"),
        (lambda z: z[5] @ z, "fails here"),
        (lambda z: z > 0, "1 to 2 floating-point numbers, got"),
        (lambda z: jnp.zeros(3), "1 to 2 floating-point numbers, got"),
        (lambda z: (), "1 to 2 floating-point numbers, got"),
    ):
        with pytest.raises(ValueError, match=f"`conserved.*{told}"):
            equilibrium(exchange, z0, x, conserved=conserved)
    with pytest.raises(ValueError, match="not for `TokenOrder`"):
        equilibrium(exchange, z0, x, solver=TokenOrder(), conserved=jnp.sum)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="real states"):
        equilibrium(exchange, z0.astype(complex), x, conserved=jnp.sum)
