"""Fields that couple neighbours only: their Jacobians factored, and what is found by that, against dense linear algebra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from spectra import brusselator, brusselator_eigenvalues
from toys import BrusselatorWave, Linear

from eqjax.relaxation import GMRES
from eqjax.stability import (
    Preconditioned,
    ShiftInvert,
    SparseLU,
    continuation,
    hopf_point,
    spectrum,
)
from eqjax.stability._linear_solver import direct_solver


class Bratu(eqx.Module):
    """`Δu + λ exp(u)` in the unit cube of as many dimensions as u has, 0 outside."""

    load: jax.Array

    def __call__(self, t, u, x):
        n, total = u.shape[0], self.load * jnp.exp(u)
        for axis in range(u.ndim):
            up, down = (jnp.roll(jnp.pad(u, 1), s, axis) for s in (1, -1))
            inside = (slice(1, -1),) * u.ndim
            total = total + (n + 1) ** 2 * ((up + down)[inside] - 2 * u)
        return total


def dense(field, z):
    matrix = jax.jacfwd(lambda v: field(0.0, v.reshape(z.shape), None).ravel())(z.ravel())
    return np.asarray(matrix)


@pytest.mark.parametrize(("shape", "colours"), [((12,), 3), ((5, 5), 8)])
def test_the_pattern_is_that_of_the_jacobian(shape, colours):
    field, z = Bratu(jnp.asarray(1.0)), jnp.zeros(shape)
    pattern = SparseLU.of(field, z).pattern
    found = np.zeros((z.size, z.size), bool)
    found[pattern.rows, pattern.cols] = True
    assert np.array_equal(found, dense(field, z) != 0) and pattern.count <= colours
    # Columns of one colour share no row.
    shown = found @ np.eye(pattern.count)[pattern.colours]
    assert shown.max() == 1 and "colours" in repr(pattern)


def test_a_coefficient_that_is_zero_here_belongs_to_the_pattern():
    class Advection(eqx.Module):
        def __call__(self, t, u, x):
            return jnp.where(u > 0, u * jnp.roll(u, 1), jnp.roll(u, -1))

    pattern = SparseLU.of(Advection(), jnp.zeros(9)).pattern
    assert pattern.rows.size == 27 and pattern.count == 3

    # Also of a sparse matrix, and of a loop.
    ring = BCOO.fromdense(jnp.roll(jnp.eye(9), 1, 0))
    twice = lambda t, u, x: jax.lax.fori_loop(0, 2, lambda _, v: v + ring @ v, u)
    assert SparseLU.of(twice, jnp.zeros(9)).pattern.rows.size == 45


def test_what_does_not_couple_neighbours_only_is_not_probed():
    like = jax.ShapeDtypeStruct((500,), jnp.float64)
    assert direct_solver(lambda v: jnp.ones((500, 500)) @ v, like) is None
    assert isinstance(direct_solver(lambda v: 2 * v, like), SparseLU)


@pytest.fixture(scope="module")
def tridiagonal():
    rng = np.random.default_rng(0)
    a = np.triu(np.tril(rng.standard_normal((20, 20)), 1), -1)
    banded = SparseLU.of(lambda t, z, x: z + jnp.roll(z, 1) + jnp.roll(z, -1), jnp.zeros(20))
    return a, banded, rng


@eqx.filter_jit
def solve(solver, matrix, right):
    operator = lx.MatrixLinearOperator(matrix)
    found = lx.linear_solve(operator, right, solver, throw=False)
    return found.value, found.result


@pytest.mark.parametrize("borders", [0, 2])
@pytest.mark.parametrize("shift", [0.0, 1j])
def test_bordered_shifted_and_transposed_systems_are_solved(tridiagonal, borders, shift):
    a, solver, rng = tridiagonal
    size = 20 + borders
    whole = rng.standard_normal((size, size)) + (shift != 0) * 1j
    whole[:20, :20] = a - shift * np.eye(20)
    right = rng.standard_normal(size).astype(whole.dtype)
    run = lambda right: solve(solver, jnp.asarray(whole), right)[0]
    value, back = jax.vjp(run, jnp.asarray(right))
    np.testing.assert_allclose(value, np.linalg.solve(whole, right), rtol=1e-10)
    np.testing.assert_allclose(back(value)[0], np.linalg.solve(whole.T, value), rtol=1e-10)


def test_a_solve_that_fails_says_so_and_spoils_no_other(tridiagonal):
    a, solver, _ = tridiagonal
    full = a + np.eye(20)[::-1]
    stack = jnp.asarray(np.stack([a, 0 * a, full, np.nan * a]))
    value, result = jax.vmap(lambda m: solve(solver, m, jnp.ones(20)))(stack)
    np.testing.assert_allclose(value[0], np.linalg.solve(a, np.ones(20)), rtol=1e-10)
    results = lx.RESULTS.successful, lx.RESULTS.singular, lx.RESULTS.stagnation, lx.RESULTS.singular
    for i, expected in enumerate(results):
        assert bool(jax.tree.map(lambda leaf: leaf[i], result) == expected)
    with pytest.raises(ValueError, match="`size` is 20"):
        solve(Preconditioned(lambda r: r, 20), jnp.eye(19), jnp.ones(19))
    with pytest.raises(ValueError, match="`pattern` is of 20 numbers"):
        solve(solver, jnp.eye(19), jnp.ones(19))


@pytest.mark.parametrize("hidden", [False, True])
def test_a_preconditioner_serves_bordered_and_transposed_systems(hidden):
    """By the Laplacian of 60 points, whose condition number is 1500, 20 products do."""
    n = 60
    near = np.linalg.inv(dense(Bratu(jnp.asarray(0.0)), jnp.zeros(n)))

    def inverse(r):
        if not hidden:
            return jnp.asarray(near) @ r
        return jax.pure_callback(lambda r: near @ np.asarray(r), r, r, vmap_method="sequential")

    rng = np.random.default_rng(1)
    whole = rng.standard_normal((n + 1, n + 1))
    whole[:n, :n] = np.linalg.inv(near) + 3 * np.eye(n)
    solver = Preconditioned(inverse, n, GMRES(1e-12, restart=20, max_steps=20))
    right = rng.standard_normal(n + 1)
    value, result = solve(solver, jnp.asarray(whole), right)
    assert bool(result == lx.RESULTS.successful)
    np.testing.assert_allclose(value, np.linalg.solve(whole, right), rtol=1e-8)
    if not hidden:
        _, back = jax.vjp(lambda b: solve(solver, jnp.asarray(whole), b)[0], jnp.asarray(right))
        np.testing.assert_allclose(back(value)[0], np.linalg.solve(whole.T, value), rtol=1e-8)


def test_bratu_folds_where_its_dense_jacobian_is_singular():
    field, n = Bratu(jnp.asarray(3.3)), 60
    branch = continuation(
        field,
        jnp.full(n, 0.5),
        where=lambda f: f.load,
        bounds=(3.2, 3.6),
        k=2,
        linear_solver=SparseLU(),
        callback=lambda load, z, found: z.max() > 1.3,
    )
    (fold,) = branch.special_points
    assert (fold.type, fold.change, fold.status) == ("fold", 1, "converged")
    # The error of second-order differences: 1.83 h².
    assert abs(fold.parameter - (3.5138307191 - 1.83 / (n + 1) ** 2)) < 1e-5
    there = Bratu(jnp.asarray(fold.parameter))
    values = np.linalg.eigvalsh(dense(there, fold.state))
    assert abs(values[-1]) < 1e-8 and abs(there(0.0, fold.state, None)).max() < 1e-9
    assert branch.reliable.all() and branch.unstable[0] == 0 and branch.unstable[-1] == 1
    last = dense(Bratu(branch.parameters[-1]), branch.states[-1])
    exact = np.linalg.eigvalsh(last)[::-1][:2]
    np.testing.assert_allclose(branch.spectra.values[-1], exact, atol=1e-9)


def test_a_hopf_point_of_a_large_state_is_differentiated():
    """L = √(.012 λ₁ / (β - 1 - α²)), λ₁ the least eigenvalue of the second difference."""
    n = 30
    lam = 4 * np.sin(np.pi / (2 * (n + 1))) ** 2 * (n + 1) ** 2
    z = (jnp.zeros(n), jnp.zeros(n))
    wave = BrusselatorWave(jnp.asarray(0.515), beta=jnp.asarray(5.45))  # pyright: ignore

    def length(beta):
        field = eqx.tree_at(lambda f: f.beta, wave, beta)
        found = hopf_point(field, z, where=lambda f: f.length, linear_solver=SparseLU(), k=2)
        return found.parameter

    value, slope = jax.value_and_grad(length)(wave.beta)
    exact = np.sqrt(0.012 * lam / 0.45)
    np.testing.assert_allclose([value, slope], [exact, -exact / 0.9], rtol=1e-10)


def test_the_rightmost_modes_of_a_stiff_field_take_few_products():
    """Without the structure it takes thousands, and of 1000 points the sign is wrong."""
    field, z = brusselator(250)
    exact = brusselator_eigenvalues(250)[:6]
    found = spectrum(field, z)
    np.testing.assert_allclose(found.values, exact, atol=1e-11)
    assert found.converged.all() and found.products < 120 and found.values[0].real > 0
    near = spectrum(field, z, transform=ShiftInvert(1.0), k=2)
    np.testing.assert_allclose(near.values, exact[:2], atol=1e-11)
    assert near.converged.all() and near.products < 120


def test_a_linear_solver_that_is_none_is_refused():
    field = Linear(-jnp.eye(2))
    with pytest.raises(ValueError, match="`linear_solver` must be a Lineax solver"):
        hopf_point(
            Bratu(jnp.asarray(1.0)),
            jnp.zeros(3),
            where=lambda f: f.load,
            linear_solver=field,  # pyright: ignore
        )
