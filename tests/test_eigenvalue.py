"""The derivative of an eigenvalue: in parameters, state and input, along a branch, and where there is none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spectra import KEY, dense_jacobian, matrix, of, settle, sorted_by
from toys import Linear

from eqjax.stability import eigenvalue


def difference(f, h=1e-5):
    """A central difference of fourth order at 0."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def test_the_derivative_in_parameters_state_and_input(settled_block):
    problem = settled_block
    direction = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(9).standard_normal(leaf.shape)), problem
    )

    def truth(h):
        moved = jax.tree.map(lambda a, d: a + h * d, problem, direction)
        return sorted_by(np.linalg.eigvals(dense_jacobian(*moved)), lambda v: v.imag, 1)[0]

    @eqx.filter_jit
    def ours(problem):
        value, pull = jax.vjp(lambda p: eigenvalue(*p, which="LI", key=KEY), problem)
        parts = (pull(jnp.asarray(c, complex))[0] for c in (1, -1j))
        return value, *parts

    value, *gradients = ours(problem)
    expected = difference(truth)
    assert abs(value - truth(0)) < 1e-10 and value.imag > 0
    for gradient, part in zip(gradients, (expected.real, expected.imag), strict=True):
        along = sum(
            jnp.sum(a * b)
            for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        assert abs(along - part) < 1e-6 * abs(part)


def test_the_total_derivative_along_a_branch_of_equilibria(settled_block):
    block, z0, x = settled_block

    def at(gain):
        moved = eqx.tree_at(lambda b: b.attention_gain, block, gain)
        return moved, settle(moved, z0, x), x

    def truth(h):
        return np.linalg.eigvals(dense_jacobian(*at(jnp.asarray(1.0 + h)))).real.max()

    @jax.jit
    def slope(gain):
        return jax.value_and_grad(lambda g: eigenvalue(*at(g), key=KEY).real)(gain)

    value, slope = slope(jnp.asarray(1.0))
    expected = difference(truth, 1e-3)
    assert abs(value - truth(0)) < 1e-10
    assert abs(slope - expected) < 1e-6 * abs(expected)
    # The state's own motion matters: with the state held fixed it is another number.
    held = difference(
        lambda h: np.linalg.eigvals(dense_jacobian(at(jnp.asarray(1.0 + h))[0], z0, x)).real.max(),
        1e-3,
    )
    assert abs(held - expected) > 1e-3 * abs(expected)


def test_forward_mode_closures_and_complex_states():
    a, b = jnp.asarray(matrix(12, 10, "complex128")), jnp.asarray(matrix(12, 11, "complex128"))

    @jax.jit
    def ours(s):
        def shifted(s):
            matrix = a + jax.lax.complex(s, jnp.zeros_like(s)) * b  # the field closes over s
            return eigenvalue(lambda t, z, x: matrix @ z, jnp.zeros(12, complex), key=KEY)

        return jax.jvp(shifted, (s,), (jnp.ones_like(s),))

    def truth(s):
        return sorted_by(np.linalg.eigvals(np.asarray(a) + s * np.asarray(b)), np.real, 1)[0]

    value, derivative = ours(jnp.asarray(0.0))
    expected = difference(truth, 1e-4)
    assert abs(value - truth(0)) < 1e-10 and abs(derivative - expected) < 1e-6 * abs(expected)


def test_derivatives_that_do_not_exist():
    jordan = jnp.array([[1.0, 1.0], [0.0, 1.0]])

    def rightmost(a):
        return eigenvalue(Linear(a), jnp.zeros(2), key=KEY, throw=False).real

    assert np.all(np.isnan(jax.grad(rightmost)(jordan)))
    with pytest.raises(ValueError, match="eigenvalue"):
        jax.grad(lambda a: of(a, k=1).values[0].real)(jordan)
    with pytest.raises(ValueError, match="eigenvalue"):
        jax.hessian(rightmost)(jordan)
