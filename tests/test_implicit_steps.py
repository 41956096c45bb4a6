"""Implicit and split steps against their closed forms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from settling import SPLIT
from toys import Linear

from eqjax.relaxation import RESULTS, BackwardEuler, IMEXEuler, NewtonKrylov, relax


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        (BackwardEuler, jnp.float32),
        (BackwardEuler, jnp.float64),
        (diffrax.ImplicitEuler, jnp.float64),
    ],
)
def test_backward_euler_is_its_closed_form(solver, dtype):
    matrix = np.array([[-2.0, 30.0], [-30.0, -1.0]])
    x, eps = jnp.array([1.0, 2.0], dtype), jnp.finfo(dtype).eps
    want = np.zeros(2)
    for _ in range(7):
        want = np.linalg.solve(np.eye(2) - 0.1 * matrix, want + 0.1 * np.asarray(x))
    settle = lambda x: relax(
        Linear(jnp.asarray(matrix, dtype)),
        jnp.zeros(2, dtype),
        x,
        solver=solver(root_finder=NewtonKrylov(10 * eps)),
        step=0.1,
        steps=7,
    )
    value = jax.jit(jax.vmap(settle))(jnp.stack([x, 2 * x])).value
    assert value.dtype == dtype
    assert np.allclose(value, np.stack([want, 2 * want]), atol=100 * eps)


@pytest.mark.parametrize(
    "solver", [BackwardEuler(), diffrax.ImplicitEuler(root_finder=NewtonKrylov(1e-5))]
)
def test_a_long_rest_is_no_failure_in_any_unit(solver):
    """At rest at 0, where the force is the rounding of terms of size 1; and from 0 to 1e-7."""
    matrix = jnp.array([[-2.0, 30.0], [-30.0, -1.0]], jnp.float32)
    x = jnp.array([1.0, 2.0], jnp.float32)
    held = lambda t, z, x: matrix @ (z + x) - matrix @ x
    rest = relax(held, 0.3 * x, x, solver=solver, step=0.1, steps=100)
    assert rest.result == RESULTS.successful and rest.residual < 1e-4
    small = relax(lambda t, z, x: x - z, 0 * x, 1e-7 * x, solver=solver, step=0.1, steps=200)
    assert jnp.allclose(small.value, 1e-7 * x, rtol=1e-3, atol=0)


def test_backward_euler_and_its_gradient_form_no_jacobian():
    """10⁵ numbers would have a Jacobian of 37 GiB. The sum of the fixed point is twice that of x."""
    n = 100_000
    field = lambda t, z, x: x - z + 0.5 * jnp.roll(z, 1)
    x = jnp.cos(jnp.arange(n, dtype=jnp.float32))
    last = lambda x: jnp.sum(relax(field, x, x, solver=BackwardEuler(), step=50.0, steps=4).value)
    program = jax.jit(jax.grad(last)).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 200 * x.nbytes
    assert jnp.allclose(program(x), 2.0, atol=1e-3)


def test_imex_euler_is_its_closed_form_and_settles_where_euler_diverges():
    x, h, steps = jnp.array([1.0, 2.0]), 0.5, 40
    stiff, turn, want = np.diag(SPLIT.stiff), np.asarray(SPLIT.turn), np.zeros(2)
    for _ in range(steps):
        want = np.linalg.solve(np.eye(2) + h * stiff, want + h * (turn @ want + np.asarray(x)))

    def last(x):
        solver = IMEXEuler(NewtonKrylov(1e-12))
        found = relax(SPLIT, jnp.zeros(2), x, solver=solver, step=h, steps=steps)
        return jnp.sum(found.value), found

    gradient, found = jax.grad(last, has_aux=True)(x)
    assert np.allclose(found.value, want, atol=1e-11) and found.residual < 1e-6
    assert not relax(SPLIT, jnp.zeros(2), x, step=h, steps=steps, throw=False).residual < 1
    assert np.allclose(gradient, np.linalg.solve((stiff - turn).T, np.ones(2)), atol=1e-6)


@pytest.mark.parametrize("solver", [diffrax.KenCarp3, diffrax.Sil3])
def test_diffrax_split_solvers_take_a_split_field(solver):
    x = jnp.array([1.0, 2.0])
    found = relax(
        SPLIT,
        jnp.zeros(2),
        x,
        solver=solver(root_finder=NewtonKrylov(1e-9)),
        controller=diffrax.PIDController(rtol=1e-5, atol=1e-7),
        step=0.01,
        t1=0.5,
    )
    matrix = np.asarray(SPLIT.turn) - np.diag(SPLIT.stiff)
    rest = -np.linalg.solve(matrix, np.asarray(x))
    assert np.allclose(found.value, rest - scipy.linalg.expm(0.5 * matrix) @ rest, atol=1e-5)
