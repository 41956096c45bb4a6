"""Spectra against closed forms and ARPACK, what their values mean, and how they are asked for."""

import chex
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from spectra import (
    KEY,
    assert_true_pairs,
    brusselator,
    brusselator_eigenvalues,
    dense_jacobian,
    matrix,
    of,
    sorted_by,
)

from eqjax.analytic import tree_cast
from eqjax.stability import (
    Estimate,
    Propagator,
    ShiftInvert,
    SpectrumResults,
    spectrum,
)

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
    assert int(found.products) < 11_000  # ARPACK takes five times as many


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
    assert not found.converged.any() and found.result == SpectrumResults.eigenpairs_not_converged
    assert np.allclose(of(a).values[:3], [-1, -2 + 40j, -2 - 40j])


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
        ours, alone = ((f.values, f.vectors, f.left_vectors) for f in (batch, one))
        ours = jax.tree.map(lambda leaf: leaf[i], ours)
        chex.assert_trees_all_close(alone, ours, rtol=1e-5, atol=1e-9)
    assert np.all(batch.converged[np.array([0, 2])]) and not np.any(batch.converged[1])
    assert int(batch.restarts[0]) != int(batch.restarts[2])
    bad = jax.tree.map(lambda leaf: leaf[1], batch.result)
    assert bad == SpectrumResults.jacobian_not_finite and np.all(np.isnan(batch.values[1]))
    assert str(batch).count("eigenvalue") == 3


def test_another_step_or_tolerance_does_not_compile_again():
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def field(t, z, x):
        return -z * x

    x = jnp.arange(1.0, 31)
    for step, tol in ((0.1, 1e-8), (0.2, 1e-6), (0.3, 1e-9)):
        spectrum(field, jnp.ones(30), x, step=step, tol=tol, key=KEY)
        x = 2 * x


def test_it_prints_as_a_table():
    text = str(of(np.array([[-0.1, -1.0], [1.0, -0.1]]), k=2, left=False, step=0.1))
    header, _, first, second, foot = text.splitlines()
    assert header.split()[0] == "eigenvalue" and "critical step" in header and "|mult" in header
    assert "-0.1 +1i" in first and "0.198" in first and "yes" in second
    assert "force residual" in foot and "products" in foot and "step 0.1" in foot
    assert "multiplier" not in str(of(np.eye(2), k=2, left=False))
    assert "±" in str(Estimate(jnp.asarray(1.0), jnp.asarray(0.1)))


def test_float64_asked_for_by_a_context():
    """Callbacks are served by a thread that does not see the context."""
    jax.config.update("jax_enable_x64", False)
    with jax.enable_x64(True):
        a = matrix(30, 1)
        assert_true_pairs(a, of(a), 1e-10)


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
    with pytest.raises(RuntimeError, match="not finite"):
        of(np.full((30, 30), np.nan))
