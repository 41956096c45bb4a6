"""The Krylov–Schur method: its decomposition, every edge of a spectrum, and where Krylov spaces end early."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from spectra import KEY, assert_true_pairs, brusselator, matrix, of, sorted_by

from eqjax.stability import SpectrumResults, krylov_schur, spectrum
from eqjax.stability._decomposition import decompose

# The method


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_krylov_decomposition_holds(dtype):
    a = jnp.asarray(matrix(30, 0, dtype))
    settings = {"k": 3, "which": "LR", "ncv": 9, "max_restarts": 12}

    @jax.jit
    def run(start):
        def operator(v):
            return a @ v, jnp.asarray(1)

        return decompose(operator, start, KEY, tol=jnp.asarray(0.0), **settings)

    found = run(jnp.ones(30, dtype))
    m = int(found.size)
    basis, projection = np.asarray(found.basis), np.asarray(found.projection)
    v, s, b = basis[:m].T, projection[:m, :m], projection[m, :m]
    assert 3 <= m <= 4 and int(found.products) > 9
    # A V = V S + v bᴴ, with orthonormal vectors, and nothing beyond them.
    assert np.allclose(a @ v, v @ s + np.outer(basis[m], b), atol=1e-12)
    assert np.allclose(basis[: m + 1].conj() @ basis[: m + 1].T, np.eye(m + 1), atol=1e-13)
    assert not basis[m + 1 :].any() and not projection[m + 1 :].any()
    # S is an ordered Schur form: quasi-triangular, rightmost first.
    assert np.allclose(np.tril(s, -2), 0, atol=1e-14) and m == int(found.wanted)
    assert np.all(np.diff(np.diagonal(s).real) <= 1e-12)


RANKS = {
    "LR": lambda v: v.real,
    "SR": lambda v: -v.real,
    "LM": abs,
    "LI": lambda v: abs(v.imag),
}


@pytest.mark.parametrize("which", RANKS)
def test_each_edge_of_the_spectrum(which):
    for seed in (1, 2):
        a = matrix(30, seed)
        found = of(a) if which == "LR" else of(a, left=False, which=which)
        assert np.allclose(found.values, sorted_by(np.linalg.eigvals(a), RANKS[which], 4))
        assert_true_pairs(a, found, 1e-10)


def test_a_pair_that_k_cuts_is_found_whole():
    a = scipy.linalg.block_diag(
        [[1, 3], [-3, 1]], [[0.5, 1], [-1, 0.5]], -np.diag(np.arange(1.0, 27))
    )
    q = scipy.linalg.qr(matrix(30, 3))[0]
    found = of(q @ a @ q.T, k=3)
    assert np.allclose(found.values, [1 + 3j, 1 - 3j, 0.5 + 1j])
    assert_true_pairs(q @ a @ q.T, found, 1e-10)
    assert np.all(found.left_residuals <= 1e-10)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_single_precision_and_holomorphic_complex_states(dtype):
    tol = 1e-10 if dtype == "complex128" else 1e-4
    a = matrix(30, 4, dtype)
    found = of(a)
    truth = sorted_by(np.linalg.eigvals(a.astype("complex128")), lambda v: v.real, 4)
    assert found.values.dtype == np.result_type(dtype, "complex64")
    assert np.allclose(found.values, truth, rtol=tol)
    assert_true_pairs(a, found, tol)
    assert np.all(found.left_residuals <= tol)


def test_left_vectors_are_biorthogonal():
    a = matrix(30, 5)
    found = of(a)
    w, v, mu = (np.asarray(u) for u in (found.left_vectors, found.vectors, found.values))
    assert np.allclose(w.conj() @ v.T, np.eye(4), atol=1e-9)
    left = np.linalg.norm(w.conj() @ a - mu[:, None] * w.conj(), axis=1)
    assert np.all(left <= 1e-10 * abs(mu) * np.linalg.norm(w, axis=1))
    # ‖w‖ is the condition number of the eigenvalue.
    values, wl, vr = scipy.linalg.eig(a, left=True)
    condition = 1 / abs(np.sum(wl.conj() * vr, axis=0))
    nearest = np.argmin(abs(values[None] - mu[:, None]), axis=1)
    assert np.allclose(np.linalg.norm(w, axis=1), condition[nearest], rtol=1e-8)


def test_pytrees_of_vectors_and_a_bare_operator():
    a = matrix(12, 7)

    def mv(v):
        image = jnp.asarray(a) @ jnp.concatenate([v["a"], v["b"].ravel()])
        return {"a": image[:4], "b": image[4:].reshape(2, 4)}

    start = {"a": jnp.ones(4), "b": jnp.ones((2, 4))}
    found = krylov_schur(mv, start, k=2, which="LM", key=KEY)
    assert np.allclose(found.values, sorted_by(np.linalg.eigvals(a), abs, 2))
    assert found.vectors["b"].shape == (2, 2, 4) and jnp.iscomplexobj(found.vectors["b"])


# Where Krylov spaces end early


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_multiples_of_the_identity(value):
    found = of(value * np.eye(30))
    assert np.allclose(found.values, value, atol=1e-14) and np.all(found.converged)
    assert np.linalg.matrix_rank(np.asarray(found.vectors)) == 4 and int(found.products) < 100


def test_a_start_inside_an_invariant_subspace():
    d = -jnp.arange(30.0)
    for start in (jnp.zeros(30).at[7].set(1.0), jnp.zeros(30)):
        found = of(jnp.diag(d), left=False, start=start)
        assert np.allclose(found.values, d[:4], atol=1e-12) and np.all(found.converged)


def test_repeated_eigenvalues():
    pair = np.array([[-0.1, 1.0], [-1.0, -0.1]])
    q = scipy.linalg.qr(matrix(30, 6))[0]
    # Few distinct values: the Krylov space is exhausted, and every copy found.
    few = q @ np.kron(np.diag([1.0, 1, 2] + [30.0] * 12), pair) @ q.T
    found = of(few)
    assert np.allclose(found.values, np.array([-0.1 + 1j, -0.1 - 1j] * 2))
    # Many: the copies come one after another.
    many = q @ scipy.linalg.block_diag(pair, *[i * pair for i in range(1, 15)]) @ q.T
    for a in (few, many):
        found = of(a)
        assert_true_pairs(a, found, 1e-10)
        v, w = np.asarray(found.vectors), np.asarray(found.left_vectors)
        assert np.linalg.matrix_rank(v, tol=1e-6) == 4 and np.allclose(w.conj() @ v.T, np.eye(4))
        assert abs(found.values[0] - (-0.1 + 1j)) < 1e-12


def test_a_defective_eigenvalue_shows_in_its_condition():
    jordan = np.array([[1.0, 1.0], [0.0, 1.0]])
    assert not of(
        jordan, k=2, throw=False
    ).converged.any()  # exactly: there is no left vector to it
    turn = scipy.linalg.expm([[0, 0.3], [-0.3, 0]])
    split = of(
        turn @ jordan @ turn.T, k=2, throw=False
    )  # rounding splits it by about the root of eps
    assert np.allclose(split.values, 1, atol=1e-7) and np.all(split.residuals < 1e-12)
    assert np.all(np.linalg.norm(split.left_vectors, axis=1) > 1e6)


def test_spaces_smaller_than_ncv():
    a = matrix(6, 6)
    found = of(a, k=5, ncv=20, left=False)
    assert np.allclose(found.values, sorted_by(np.linalg.eigvals(a), lambda v: v.real, 5))
    assert_true_pairs(a, found, 1e-12)
    alone = of(np.array([[-3.0]]), k=1, left=False)
    assert alone.values[0] == -3 and alone.vectors[0, 0] == 1


def test_giving_up_keeps_what_there_is():
    field, z = brusselator(100)
    found = spectrum(field, z, k=2, ncv=6, max_restarts=3, key=KEY, throw=False)
    assert found.result == SpectrumResults.eigenpairs_not_converged and int(found.restarts) == 3
    assert not found.converged.any() and np.all(found.residuals > 1e-6)
    assert np.all(np.isfinite(found.values))
    with pytest.raises(RuntimeError, match="ncv"):
        spectrum(field, z, k=2, ncv=6, max_restarts=3, key=KEY)
