"""What the tests of spectra share: fields, matrices, and dense linear algebra to hold them against."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from toys import BrusselatorWave, Linear

from eqjax.relaxation import Anderson, equilibrium
from eqjax.stability import SpectrumResults, spectrum

KEY = jax.random.key(0)


def brusselator(n, length=0.51302, dtype="float64"):
    return BrusselatorWave(jnp.asarray(length, dtype)), (jnp.zeros(n, dtype), jnp.zeros(n, dtype))


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
    assert np.all(found.converged) and found.result == SpectrumResults.successful
    assert np.allclose(np.linalg.norm(v, axis=1), 1, rtol=100 * tol)
    top = v[np.arange(len(v)), np.argmax(abs(v), axis=1)]
    assert np.all(abs(top.imag) <= 100 * tol) and np.all(top.real > 0)
    residual = np.linalg.norm(v @ a.T - mu[:, None] * v, axis=1) / abs(mu)
    assert np.all(residual <= tol) and np.allclose(found.residuals, residual, atol=tol / 10)


@eqx.filter_jit
def settle(block, z, x):
    """A fixed point, by the library's relaxation and for its derivative."""
    return equilibrium(block, z, x, solver=Anderson(1e-13), max_steps=200, throw=False).value
