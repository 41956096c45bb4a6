"""Spectra against closed forms, dense linear algebra and ARPACK."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from eqjax import fields
from eqjax.analytic import tree_cast
from eqjax.relaxation import Anderson, equilibrium
from eqjax.stability import (
    RESULTS,
    Estimate,
    Propagator,
    ShiftInvert,
    asymmetry,
    commutator,
    eigenvalue,
    henrici,
    krylov_schur,
    numerical_abscissa,
    pseudospectral_abscissa,
    spectrum,
)
from eqjax.stability._krylov_schur import decompose

KEY = jax.random.key(0)


class Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, z, x):
        return self.matrix @ z


class Brusselator(eqx.Module):
    """The Brusselator wave model, linearised about its uniform state; z = (u, v), each on n points."""

    length: jax.Array
    alpha: float = 2.0
    beta: float = 5.45
    diffusion: tuple[float, float] = (0.008, 0.004)

    def __call__(self, t, z, x):
        u, v = z
        scale = ((u.size + 1) / self.length) ** 2

        def laplacian(a):
            padded = jnp.pad(a, 1)
            return scale * (padded[2:] + padded[:-2] - 2 * a)

        a2 = self.alpha**2
        return (
            self.diffusion[0] * laplacian(u) + (self.beta - 1) * u + a2 * v,
            self.diffusion[1] * laplacian(v) - self.beta * u - a2 * v,
        )


def brusselator(n, length=0.51302, dtype="float64"):
    return Brusselator(jnp.asarray(length, dtype)), (jnp.zeros(n, dtype), jnp.zeros(n, dtype))


def brusselator_eigenvalues(n, length=0.51302):
    """Closed form: one 2×2 block for each sine mode; rightmost first, the upper of a pair first."""
    lam = 4 * np.sin(np.arange(1, n + 1) * np.pi / (2 * (n + 1))) ** 2 * ((n + 1) / length) ** 2
    trace = 4.45 - 0.008 * lam - 4 - 0.004 * lam
    det = (4.45 - 0.008 * lam) * (-4 - 0.004 * lam) + 4 * 5.45
    root = np.sqrt((trace**2 / 4 - det).astype(complex))
    values = np.concatenate([trace / 2 + root, trace / 2 - root])
    return values[np.lexsort((-values.imag, -values.real.round(12)))]


def matrix(n, seed, dtype="float64"):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n))
    return (a + 1j * rng.standard_normal((n, n)) if "complex" in dtype else a).astype(dtype)


def of(a, k=4, left=True, **kwargs):
    """The spectrum of a matrix; with these defaults and 30 rows all tests share one compilation."""
    a = jnp.asarray(a)
    return spectrum(Linear(a), jnp.zeros(len(a), a.dtype), k=k, left=left, key=KEY, **kwargs)


@eqx.filter_jit
def dense_jacobian(field, z, x):
    flat, unravel = ravel_pytree(z)
    return jax.jacfwd(lambda s: ravel_pytree(field(0.0, unravel(s), x))[0])(flat)


def sorted_by(values, rank, k):
    """The k of largest rank, the member above the axis first of each pair."""
    order = np.lexsort((-values.imag, -rank(values).round(10)))
    return values[order[:k]]


def assert_true_pairs(a, found, tol):
    """Everything that a spectrum says about its pairs, recomputed with NumPy."""
    v, mu = np.asarray(found.vectors), np.asarray(found.values)
    assert np.all(found.converged) and found.result == RESULTS.successful
    assert np.allclose(np.linalg.norm(v, axis=1), 1, rtol=100 * tol)
    top = v[np.arange(len(v)), np.argmax(abs(v), axis=1)]
    assert np.all(abs(top.imag) <= 100 * tol) and np.all(top.real > 0)
    residual = np.linalg.norm(v @ a.T - mu[:, None] * v, axis=1) / abs(mu)
    assert np.all(residual <= tol) and np.allclose(found.residuals, residual, atol=tol / 10)


# The method


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_the_krylov_decomposition_holds(dtype):
    a = jnp.asarray(matrix(30, 0, dtype))
    settings = {"k": 3, "which": "LR", "ncv": 9, "max_restarts": 12}

    @jax.jit
    def run(start, noise):
        def operator(v):
            return a @ v, jnp.asarray(1)

        return decompose(operator, start, noise, tol=jnp.asarray(0.0), **settings)

    found = run(jnp.ones(30, dtype), jnp.cos(jnp.arange(30.0)).astype(dtype))
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


# Where Krylov spaces end early


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5])
def test_multiples_of_the_identity(value):
    found = of(value * np.eye(30))
    assert np.allclose(found.values, value, atol=1e-14) and np.all(found.converged)
    assert np.linalg.matrix_rank(np.asarray(found.vectors)) == 4 and int(found.products) < 60


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
    # Many: a copy may be missed, but nothing false is said.
    many = q @ scipy.linalg.block_diag(pair, *[i * pair for i in range(1, 15)]) @ q.T
    for a in (few, many):
        found = of(a)
        assert_true_pairs(a, found, 1e-10)
        v, w = np.asarray(found.vectors), np.asarray(found.left_vectors)
        assert np.linalg.matrix_rank(v, tol=1e-6) == 4 and np.allclose(w.conj() @ v.T, np.eye(4))
        assert abs(found.values[0] - (-0.1 + 1j)) < 1e-12


def test_a_defective_eigenvalue_shows_in_its_condition():
    jordan = np.array([[1.0, 1.0], [0.0, 1.0]])
    split = of(jordan, k=2, throw=False)  # rounding splits it by about the root of eps
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
    assert found.result == RESULTS.eigenpairs_not_converged and int(found.restarts) == 3
    assert not found.converged.any() and np.all(found.residuals > 1e-6)
    assert np.all(np.isfinite(found.values))
    with pytest.raises(RuntimeError, match="ncv"):
        spectrum(field, z, k=2, ncv=6, max_restarts=3, key=KEY)


# Known answers


def arpack(field, z, k, ncv, tol, dtype):
    flat, unravel = ravel_pytree(z)
    product = jax.jit(lambda v: ravel_pytree(field(0.0, unravel(v), None))[0])
    count = []

    def counted(v):
        count.append(1)
        return np.asarray(product(jnp.asarray(v.ravel())))

    operator = scipy.sparse.linalg.LinearOperator((flat.size,) * 2, counted, dtype=dtype)
    start = np.asarray(jax.random.normal(jax.random.key(7), flat.shape, dtype))
    values = scipy.sparse.linalg.eigs(
        operator, k, which="LR", ncv=ncv, v0=start, tol=tol, return_eigenvectors=False
    )
    return sorted_by(values.astype(complex), lambda v: v.real, k), len(count), unravel(start)


@pytest.mark.parametrize(
    ("dtype", "tol", "close"), [("float64", 1e-10, 1e-9), ("float32", 1e-5, 1e-4)]
)
def test_brusselator_against_arpack(dtype, tol, close):
    field, z = brusselator(100, dtype=dtype)
    theirs, count, start = arpack(field, z, 6, 20, tol, dtype)
    found = spectrum(field, z, k=6, ncv=20, tol=tol, start=start, key=KEY)
    truth = brusselator_eigenvalues(100)[:6]
    assert np.allclose(found.values, truth, rtol=0, atol=close)
    assert np.allclose(theirs, truth, rtol=0, atol=10 * close)
    assert int(found.products) <= 1.2 * count
    if dtype == "float64":
        assert abs(found.values[0] - (1.819987678731e-5 + 2.139497522076j)) < 1e-10


def test_brusselator_hopf_points():
    start = (jnp.cos(jnp.arange(100.0)), jnp.sin(jnp.arange(100.0) ** 2))
    for mode, length in enumerate((0.5129992509120, 1.0258744209101, 1.5385014590922)):
        field, z = brusselator(100, length)
        found = spectrum(field, z, k=6, ncv=20, tol=1e-10, start=start, key=KEY)
        assert np.allclose(found.values, brusselator_eigenvalues(100, length)[:6], atol=1e-9)
        # Pair number `mode` is on the axis; those before it have crossed already.
        assert abs(found.values[2 * mode].real) < 1e-9
        assert int(jnp.sum(found.values.real > 1e-9)) == 2 * mode


def test_propagator_on_the_stiff_brusselator():
    field, z = brusselator(1000)
    truth = brusselator_eigenvalues(1000)
    found = spectrum(field, z, k=6, ncv=20, transform=Propagator(0.1), key=KEY)
    assert np.allclose(found.values, truth[:6], rtol=0, atol=1e-9)
    assert int(found.products) < 10_000  # ARPACK takes five times as many


@pytest.mark.parametrize(("point", "solver"), [(-2.0, lineax.LU()), (-3 + 2j, None)])
def test_shift_invert_finds_the_nearest(point, solver):
    for seed in (8, 9):
        a = matrix(30, seed) - 3 * np.eye(30)
        values = np.linalg.eigvals(a)
        found = of(a, left=solver is None, transform=ShiftInvert(point, solver))
        # To a real point both of a pair are near, the one above the axis first.
        nearest = sorted_by(values, lambda v: -abs(v - point), 4)
        assert np.allclose(found.values, nearest)
        assert solver is not None or np.all(found.left_residuals < 1e-9)
        assert_true_pairs(a, found, 1e-9)
        assert int(found.products) > 30


def test_a_propagator_that_misleads_is_caught():
    # A pair that decays fast but rings faster than the time can follow; the slow modes are real.
    a = scipy.linalg.block_diag([[-2.0, 40.0], [-40.0, -2.0]], -np.diag(np.linspace(1, 100, 28)))
    found = of(a, k=2, left=False, transform=Propagator(0.3), throw=False)
    assert np.allclose(found.values, [-2 + 40j, -2 - 40j]) and np.all(found.residuals < 1e-9)
    assert not found.converged.any() and found.result == RESULTS.eigenpairs_not_converged
    assert np.allclose(of(a).values[:3], [-1, -2 + 40j, -2 - 40j])


@eqx.filter_jit
def settle(block, z, x):
    """A fixed point, by the library's relaxation and for its derivative."""
    return equilibrium(block, z, x, solver=Anderson(1e-13), max_steps=200, throw=False).value


@pytest.fixture(scope="module")
def settled_block():
    block = fields.ThickBlock(8, 2, key=jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (5, 8))
    return block, settle(block, x, x), x


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_equilibrium_block(settled_block, dtype):
    block, z, x = settled_block
    dense = dense_jacobian(block, z, x)
    block, z, x = tree_cast((block, z, x), dtype)
    found = spectrum(block, z, x, k=6, step=0.5, key=KEY)
    truth = sorted_by(np.linalg.eigvals(dense), lambda v: v.real, 6)
    tol = 1e-9 if dtype == "float64" else 1e-4
    assert np.allclose(found.values, truth, rtol=tol)
    assert found.vectors.shape == (6, 5, 8) and found.force_residual < max(tol, 1e-6)
    assert np.allclose(found.multipliers, 1 + 0.5 * truth, rtol=tol)


def test_lorenz():
    def field(t, z, x):
        u, v, w = z["u"], z["v"], z["w"]
        return {"u": 10 * (v - u), "v": u * (20 - w) - v, "w": u * v - 8 / 3 * w}

    c = jnp.sqrt(jnp.asarray(19 * 8 / 3))
    found = spectrum(field, {"u": c, "v": c, "w": jnp.asarray(19.0)}, k=3, key=KEY)
    assert abs(found.values[0] - (-0.154791771062622 + 8.70866846317245j)) < 1e-12
    assert abs(found.critical_step[0] - 0.00408072346002) < 1e-13
    assert abs(jnp.sum(found.values) + 41 / 3) < 1e-12
    assert found.force_residual < 1e-15 and set(found.vectors) == {"u", "v", "w"}


def test_what_the_values_mean():
    stuart_landau = of(np.array([[-0.1, -1.0], [1.0, -0.1]]), k=2, left=False, step=0.1)
    assert np.allclose(stuart_landau.critical_step, 0.198019801980198, rtol=1e-14)
    assert np.allclose(stuart_landau.damping_ratio, 0.1 / np.sqrt(1.01))
    assert np.allclose(stuart_landau.frequency, 1) and np.allclose(
        stuart_landau.settling_time, np.log(50) / 0.1
    )
    at_the_edge = 1 + 0.198019801980198 * np.asarray(stuart_landau.values)
    assert np.allclose(abs(at_the_edge), 1, atol=1e-14)
    assert np.allclose(abs(stuart_landau.multipliers), abs(1 + 0.1 * (-0.1 + 1j)))
    # The gain toy: ẋ = -x + αW tanh x at α = .6; and a mode that grows, and one at the origin.
    w = np.array([[1.25, -1.0], [1.0, 1.25]])
    toy = of(-np.eye(2) + 0.6 * w, k=2, left=False)
    assert np.allclose(toy.critical_step, 1.183431952662722, rtol=1e-13)
    grown = of(np.diag([1.0, 0.0]), k=2, left=False)
    assert np.all(grown.critical_step == 0) and np.all(grown.settling_time == np.inf)
    with pytest.raises(ValueError, match="step"):
        _ = toy.multipliers


# Batches, compilation, printing


def test_a_batch_is_its_samples_and_one_bad_sample_stays_alone():
    a = jnp.stack([jnp.asarray(matrix(30, s)) for s in range(3)]).at[1].set(jnp.nan)

    def run(a):
        return of(a, throw=False)

    a = a.at[2].set(jnp.diag(-(jnp.arange(30.0) ** 3)))  # another pace
    batch = jax.vmap(run)(a)
    for i in (0, 2):
        one = run(a[i])
        assert int(one.products) == int(batch.products[i])
        assert int(one.restarts) == int(batch.restarts[i])
        for name in ("values", "vectors", "left_vectors"):
            assert np.allclose(getattr(one, name), getattr(batch, name)[i], atol=1e-9)
    assert np.all(batch.converged[np.array([0, 2])]) and not np.any(batch.converged[1])
    assert int(batch.restarts[0]) != int(batch.restarts[2])
    bad = jax.tree.map(lambda leaf: leaf[1], batch.result)
    assert bad == RESULTS.jacobian_not_finite and np.all(np.isnan(batch.values[1]))
    assert str(batch).count("eigenvalue") == 3


def test_another_step_or_tolerance_does_not_compile_again():
    count = []

    def field(t, z, x):
        count.append(1)
        return -z * x

    x = jnp.arange(1.0, 31)
    spectrum(field, jnp.ones(30), x, step=0.1, tol=1e-8, key=KEY)
    traces = len(count)
    assert traces > 0
    for step, tol in ((0.2, 1e-6), (0.3, 1e-9)):
        spectrum(field, jnp.ones(30), 2 * x, step=step, tol=tol, key=KEY)
    assert len(count) == traces


def test_it_prints_as_a_table():
    text = str(of(np.array([[-0.1, -1.0], [1.0, -0.1]]), k=2, left=False, step=0.1))
    header, _, first, second, foot = text.splitlines()
    assert header.split()[0] == "eigenvalue" and "critical step" in header and "|mult" in header
    assert "-0.1 +1i" in first and "0.198" in first and "yes" in second
    assert "force residual" in foot and "products" in foot and "step 0.1" in foot
    assert "multiplier" not in str(of(np.eye(2), k=2, left=False))
    assert "±" in str(Estimate(jnp.asarray(1.0), jnp.asarray(0.1)))


# The derivative of an eigenvalue


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


# Symmetry and normality


def test_asymmetry_and_the_commutator():
    for seed, weight in ((0, 0.0), (1, 1.0), (2, 0.2)):
        g = matrix(30, seed)
        a = (g + g.T) / 2 + weight * (g - g.T) / 2
        field, z = Linear(jnp.asarray(a)), jnp.zeros(30)
        norm = np.linalg.norm(a)
        ours = asymmetry(field, z, probes=100, key=KEY)
        truth = np.linalg.norm(a - a.T) / 2 / norm
        assert abs(ours.value - truth) <= max(4 * ours.error, 1e-12) and ours.error < 0.05
        bent = commutator(field, z, probes=100, key=KEY)
        truth = np.linalg.norm(a.T @ a - a @ a.T) ** 0.5 / norm
        assert abs(bent.value - truth) <= max(4 * bent.error, 1e-7) and bent.error < 0.05
        # The bounds that the docstring promises.
        departure = np.sqrt(max(norm**2 - np.sum(abs(np.linalg.eigvals(a)) ** 2), 0)) / norm
        assert abs(henrici(field, z) - departure) < 1e-7
        assert truth**2 / 6**0.5 <= departure + 1e-7
        assert departure <= ((30**3 - 30) / 12) ** 0.25 * truth + 1e-6


def test_the_error_bars_cover():
    a = matrix(30, 3)
    truth = np.linalg.norm(a - a.T) / 2 / np.linalg.norm(a)
    runs = jax.vmap(
        lambda key: asymmetry(Linear(jnp.asarray(a)), jnp.zeros(30), probes=32, key=key)
    )(jax.random.split(KEY, 200))
    scores = (np.asarray(runs.value) - truth) / np.asarray(runs.error)
    assert 0.8 < np.std(scores) < 1.3 and abs(np.mean(scores)) < 0.3


def test_numerical_abscissa_is_the_largest_not_the_largest_in_magnitude():
    a = matrix(40, 4) - 9 * np.eye(40)
    symmetric = np.linalg.eigvalsh((a + a.T) / 2)
    assert -symmetric[0] > abs(symmetric[-1])  # where a power iteration would go
    ours = numerical_abscissa(Linear(jnp.asarray(a)), jnp.zeros(40), key=KEY)
    assert abs(ours.value - symmetric[-1]) <= ours.error + 1e-13 < 1e-8
    assert ours.value > np.linalg.eigvals(a).real.max()


def test_pseudospectral_abscissa():
    eps = 0.1
    nilpotent = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    ours = pseudospectral_abscissa(Linear(nilpotent), jnp.zeros(2), epsilon=eps)
    assert abs(ours - np.sqrt(eps + eps**2)) < 1e-12
    normal = jnp.array([[-1.0, 2.0], [-2.0, -1.0]])
    ours = pseudospectral_abscissa(Linear(normal), jnp.zeros(2), epsilon=eps)
    assert abs(ours - (eps - 1)) < 1e-12
    # Its defining property, on a grid: inside, the least singular value is at most eps.
    a = matrix(12, 5)
    ours = float(pseudospectral_abscissa(Linear(jnp.asarray(a)), jnp.zeros(12), epsilon=eps))

    def least(x):
        return min(
            np.linalg.svd(a - (x + 1j * y) * np.eye(12), compute_uv=False)[-1]
            for y in np.linspace(-6, 6, 1201)
        )

    assert least(ours + 1e-3) > eps and least(ours - 1e-3) < eps


def test_the_identity_of_jacobian_homeostasis():
    """E[‖Jv‖² - vᵀJ²v] = ½ ‖J - Jᵀ‖_F², exactly, summed over the unit vectors."""
    a = matrix(9, 6)
    total = sum(np.sum((a @ v) ** 2) - v @ a @ a @ v for v in np.eye(9))
    assert np.isclose(total, 0.5 * np.linalg.norm(a - a.T) ** 2)


# Misuse


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"k": 0}, "`k`"),
        ({"k": 11}, "between 1 and the size of the state, 10"),
        ({"which": "SM"}, "ShiftInvert"),
        ({"k": 3, "ncv": 4}, "`ncv`"),
        ({"step": 0.0}, "`step`"),
        ({"max_restarts": 0}, "`max_restarts`"),
        ({"which": "LR", "transform": Propagator(1.0)}, "leave out"),
        ({"start": jnp.ones(3)}, "`start`"),
    ],
)
def test_misuse_says_what_to_do(kwargs, words):
    with pytest.raises(ValueError, match=words):
        of(np.eye(10), **{"k": 2, **kwargs})


def test_more_misuse():
    with pytest.raises(ValueError, match="dtype"):
        spectrum(lambda t, z, x: z, jnp.arange(9), key=KEY)
    with pytest.raises(ValueError, match="same shape"):
        spectrum(lambda t, z, x: z[:2], jnp.ones(3), k=1, key=KEY)
    with pytest.raises(ValueError, match="`time`"):
        Propagator(-1.0)
    with pytest.raises(ValueError, match="`probes`"):
        asymmetry(lambda t, z, x: z, jnp.ones(3), probes=1, key=KEY)
    with pytest.raises(ValueError, match="`epsilon`"):
        pseudospectral_abscissa(lambda t, z, x: z, jnp.ones(3), epsilon=0.0)
    with pytest.raises(RuntimeError, match="not finite"):
        of(np.full((30, 30), np.nan))


def test_pytrees_of_vectors_and_a_bare_operator():
    a = matrix(12, 7)

    def mv(v):
        image = jnp.asarray(a) @ jnp.concatenate([v["a"], v["b"].ravel()])
        return {"a": image[:4], "b": image[4:].reshape(2, 4)}

    start = {"a": jnp.ones(4), "b": jnp.ones((2, 4))}
    found = krylov_schur(mv, start, k=2, which="LM", key=KEY)
    assert np.allclose(found.values, sorted_by(np.linalg.eigvals(a), abs, 2))
    assert found.vectors["b"].shape == (2, 2, 4) and jnp.iscomplexobj(found.vectors["b"])


def test_float64_asked_for_by_a_context():
    """Callbacks are served by a thread that does not see the context."""
    jax.config.update("jax_enable_x64", False)
    with jax.enable_x64(True):
        a = matrix(30, 1)
        assert_true_pairs(a, of(a), 1e-10)
