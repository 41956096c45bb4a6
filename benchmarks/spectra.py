"""Krylov–Schur against SciPy's ARPACK on the same operator: products, time, and agreement.

`python benchmarks/spectra.py`: the rightmost six eigenvalues of the Brusselator wave model (n = 100 and 1000 points,
2n unknowns) and of the equilibrium block (width 256, 128 tokens, float32), from the same start vector, with the same
`ncv` and tolerance; then with the transforms, which ARPACK is not given. Errors are against the closed form, and for
the block against ARPACK.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import scipy.sparse.linalg
from common import arguments, device, precision, table, timed
from jax.flatten_util import ravel_pytree

from eqjax.fields import ThickBlock
from eqjax.relaxation import Anderson, equilibrium
from eqjax.stability import Propagator, ShiftInvert, spectrum

K = 6
HEADER = ("method", "ncv", "tol", "products", "seconds", "compile s", "worst residual", "error")


class Brusselator(eqx.Module):
    """The Brusselator wave model at α = 2, β = 5.45, δ = (.008, .004), L = .51302, about its uniform state."""

    def __call__(self, t, z, x):
        u, v = z
        scale = ((u.size + 1) / 0.51302) ** 2

        def laplacian(a):
            padded = jnp.pad(a, 1)
            return scale * (padded[2:] + padded[:-2] - 2 * a)

        return 0.008 * laplacian(u) + 4.45 * u + 4 * v, 0.004 * laplacian(v) - 5.45 * u - 4 * v


def rightmost(values):
    """Rightmost first, the upper of a pair first."""
    return values[np.lexsort((-values.imag, -values.real.round(9)))][:K]


def brusselator_eigenvalues(n):
    lam = 4 * (np.sin(np.arange(1, n + 1) * np.pi / (2 * (n + 1))) * (n + 1) / 0.51302) ** 2
    a, d = 4.45 - 0.008 * lam, -4 - 0.004 * lam
    root = np.sqrt(((a + d) ** 2 / 4 - a * d - 4 * 5.45).astype(complex))
    return rightmost(np.concatenate([(a + d) / 2 + root, (a + d) / 2 - root]))


def error(values, truth):
    """Of the worst value; a pair that k cuts may be represented by either member."""
    ours, theirs = (v.real + 1j * abs(v.imag) for v in (np.asarray(values), truth))
    return f"{np.max(np.min(abs(ours[:, None] - theirs[None]), axis=1)):.1e}"


def arpack(field, z, x, ncv, tol, start):
    flat, unravel = ravel_pytree(z)

    @jax.jit
    def product(v):
        with jax.default_matmul_precision("highest"):
            return ravel_pytree(jax.jvp(lambda s: field(0.0, s, x), (z,), (unravel(v),))[1])[0]

    count = []

    def counted(v):
        count.append(1)
        return np.asarray(product(jnp.asarray(v.ravel())))

    counted(np.zeros(flat.size, flat.dtype))  # compile
    count.clear()
    operator = scipy.sparse.linalg.LinearOperator((flat.size,) * 2, counted, dtype=flat.dtype)
    begin = time.perf_counter()
    values = scipy.sparse.linalg.eigs(
        operator,
        K,
        which="LR",
        ncv=ncv,
        v0=np.asarray(ravel_pytree(start)[0]),
        tol=tol,
        maxiter=10_000,
        return_eigenvectors=False,
    )
    return values, len(count), time.perf_counter() - begin


def ours(field, z, x, ncv, tol, start, transform=None):
    return timed(
        lambda: spectrum(
            field,
            z,
            x,
            k=K,
            ncv=ncv,
            tol=tol,
            start=start,
            transform=transform,
            key=jax.random.key(0),
            max_restarts=10_000,
            throw=False,
        ),
        repeats=3,
    )


def compare(title, field, z, x, cases, transforms, truth, out):
    noise = jax.random.normal(
        jax.random.key(1), ravel_pytree(z)[0].shape, jax.tree.leaves(z)[0].dtype
    )
    start = ravel_pytree(z)[1](noise)
    rows = []
    for ncv, tol in cases:
        values, products, seconds = arpack(field, z, x, ncv, tol, start)
        reference = rightmost(values) if truth is None else truth
        cells = ("ARPACK", ncv, tol, products, f"{seconds:.3f}", "", "")
        rows.append((*cells, error(values, reference)))
        runs = [("Krylov–Schur", None), *(transforms if (ncv, tol) == cases[0] else ())]
        for name, transform in runs:
            found, seconds, compiling = ours(field, z, x, ncv, tol, start, transform)
            worst = f"{float(jnp.max(found.residuals)):.1e}"
            worst += "" if bool(jnp.all(found.converged)) else " (not converged)"
            cells = (
                name,
                ncv,
                tol,
                int(found.products),
                f"{seconds:.3f}",
                f"{compiling:.1f}",
                worst,
            )
            rows.append((*cells, error(found.values, reference)))
    table(f"{title}; k={K}, {device()}", HEADER, rows, out)


def main():
    options = arguments(__doc__).parse_args()
    for n in (100,) if options.quick else (100, 1000):
        for dtype, tol in (("float64", 1e-10), ("float32", 1e-5)):
            if n == 1000 and dtype == "float32":
                continue  # the rounding of a product is then as large as the eigenvalue
            with precision(dtype):
                z = (jnp.zeros(n, dtype), jnp.zeros(n, dtype))
                transforms = [
                    ("Propagator(.1)", Propagator(0.1)),
                    ("ShiftInvert(1, LU)", ShiftInvert(1.0, lineax.LU())),
                ]
                compare(
                    f"Brusselator n={n}, {dtype}",
                    Brusselator(),
                    z,
                    None,
                    ((20, tol), (60, tol)),
                    transforms,
                    brusselator_eigenvalues(n),
                    options.out,
                )
    width, tokens = (64, 32) if options.quick else (256, 128)
    with precision("float32"):
        block = ThickBlock(width, 8, key=jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (tokens, width))
        settled = equilibrium(block, x, x, solver=Anderson(1e-5), throw=False)
        print(f"block settled to a force residual of {float(settled.residual):.1e}\n")
        compare(
            f"Equilibrium block, width {width}, {tokens} tokens, float32",
            block,
            settled.value,
            x,
            ((20, 1e-4), (40, 1e-4)),
            [],
            None,
            options.out,
        )


if __name__ == "__main__":
    main()
