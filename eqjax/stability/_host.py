"""Small dense problems, solved by LAPACK on the host from within compiled functions.

JAX has a nonsymmetric eigenvalue solver on the CPU only, and an ordered Schur form nowhere.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def on_host(function, shapes, *arrays):
    """`function(*arrays)` by NumPy, one sample at a time under `vmap`; `shapes` are those of its results.

    Everything travels as 32-bit words: the thread that serves a callback knows nothing of a `jax.enable_x64` that
    is a context, and would turn float64 into float32.
    """
    likes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]

    def called(*words):
        arguments = (
            np.asarray(w).view(like.dtype).reshape(like.shape)
            for w, like in zip(words, likes, strict=True)
        )
        results = function(*arguments)
        return jax.tree.map(
            lambda a, like: np.asarray(a, like.dtype).ravel().view(np.uint32), results, shapes
        )

    packed = jax.tree.map(lambda like: jax.eval_shape(_words, like), shapes)
    # Sequential: LAPACK has no batch, and every sample may need its own number of swaps.
    words = jax.pure_callback(called, packed, *map(_words, arrays), vmap_method="sequential")
    return jax.tree.map(_from_words, words, shapes)


def unless_good(good, found, fail):
    """`found`, or where it is not seen to be all `good`, what `fail` makes of it: a check that is no program."""
    return found if not isinstance(good, Tracer) and np.asarray(good).all() else fail(found)


def _words(a):
    a = jnp.stack([a.real, a.imag], axis=-1) if jnp.iscomplexobj(a) else a
    return jax.lax.bitcast_convert_type(a, jnp.uint32).ravel()


def _from_words(words, like):
    if not jnp.issubdtype(like.dtype, jnp.inexact):
        return jax.lax.bitcast_convert_type(words, like.dtype).reshape(like.shape)
    real = jnp.finfo(like.dtype).dtype
    parts = jax.lax.bitcast_convert_type(words.reshape(-1, real.itemsize // 4), real)
    # Two words make one float64 and their axis is gone; of one word the axis stays.
    parts = parts.reshape(-1) if real.itemsize == 8 else parts
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        parts = parts.reshape(*like.shape, 2)
        return jax.lax.complex(parts[..., 0], parts[..., 1])
    return parts.reshape(like.shape)


@on_host.defjvp
def _(function, shapes, primals, tangents):
    raise ValueError(
        "Spectra are not differentiated through their iteration. Use `eqjax.stability.eigenvalue`, whose derivative "
        "comes from left and right eigenvectors, or cut the gradient with `jax.lax.stop_gradient`."
    )


# Why here, and in float64: the projected problem is tiny beside the products, and its rounding should not
# limit a float32 run. Residuals come free: ‖A x - θ x‖ = |bᴴ w| for the Ritz vector of a unit w.
def truncate(projection, tol, last, locked, *, k, rank, eps, again):
    """The projected problem of one restart, solved by LAPACK: how to rotate and how much to keep.

    `locked` are the ranks of those that had converged when a search was begun anew, NaN in the first one; `again`: whether
    others follow.

    Returns the rotation (m, m), zero beyond the vectors kept; the projection after it; the number kept; the size of the
    wanted subspace; `locked`; 1 if all is over, and 2 if no copy is missing; whether to go on from a new vector.
    """
    m = projection.shape[1]
    if not np.all(np.isfinite(projection)):
        nothing = np.full_like(projection, np.nan)
        return nothing[:m], nothing, 0, min(k, m), locked, 1, 0
    wide = projection.astype(np.result_type(projection, np.float64))
    schur, rotation = ordered_schur(wide[:m], rank)
    coupling = wide[m] @ rotation
    whole = np.append(np.diagonal(schur, -1) == 0, True)  # a cut after row i leaves pairs whole
    # Half a conjugate pair spans no real subspace.
    wanted = k if whole[k - 1] else k + 1

    values, error = _ritz(schur, coupling, wanted)
    # Half the tolerance, since true residuals are measured at the end and must pass the whole; and never
    # below what rounding leaves of the projection.
    floor = eps * np.linalg.norm(wide[:m], 2)
    allowed = np.maximum(0.5 * float(tol) * abs(values), floor)
    settled = int(np.sum(error <= allowed))
    ranks = np.sort(rank(values))[::-1][:k]
    # A copy that comes late takes the place of what was last.
    same = np.all(abs(ranks - locked) <= 20 * np.max(allowed))  # false for NaN
    complete = settled == wanted and (
        not again or bool(same and _left_behind(schur, coupling, wanted, rank, tol, eps, floor))
    )
    done = complete or bool(last)
    anew = settled == wanted and not same and not done
    # A thick restart: half of the vectors stay, which takes far fewer products than keeping k.
    # More as pairs converge, which else would fill the room of the search; at least one vector is new.
    keep = wanted if done or anew else min(max((m + settled) // 2, wanted), m - 1)
    if not whole[keep - 1]:
        keep += 1 if keep < m - 1 else -1

    rotation[:, keep:] = 0
    after = np.zeros_like(wide)
    after[:keep, :keep] = schur[:keep, :keep]
    # Locked: what is left of the coupling is below the tolerance.
    after[keep, :keep] = 0 if anew else coupling[:keep]
    locked = ranks if anew else locked
    return rotation, after, keep, wanted, locked, int(done) + int(complete), int(anew)


def leading(matrix, *, k, rank):
    """Orthonormal rows that span the k most wanted eigenvectors, or k + 1 where that would cut a pair, and how many."""
    size = min(k + 1, len(matrix))
    if not np.all(np.isfinite(matrix)):
        return np.full_like(matrix[:size], np.nan), k
    schur, rotation = ordered_schur(matrix.astype(np.result_type(matrix, np.float64)), rank)
    cut = k < size and schur[k, k - 1] != 0
    rotation[:, k + cut :] = 0
    return rotation.T[:size], k + cut


def _ritz(schur, coupling, size):
    """Eigenvalues of the leading block and how far they are from converged."""
    values, weights = np.linalg.eig(schur[:size, :size])
    return values, abs(coupling[:size] @ weights)


def _left_behind(schur, coupling, wanted, rank, tol, eps, floor):
    """Whether the best of the values that are not wanted is known well enough to be sure that it is not."""
    pair = wanted + 1 < len(schur) and schur[wanted + 1, wanted] != 0
    values, error = _ritz(schur, coupling, wanted + 1 + pair)
    order = np.argsort(-rank(values), kind="stable")
    last, following = order[wanted - 1], order[wanted]
    gap = rank(values[last]) - rank(values[following])
    # As good as that if they are equal, and a tenth of what parts them otherwise.
    equal = np.sqrt(max(float(tol), eps ** (2 / 3))) * abs(values[following])
    return error[following] <= max(0.1 * gap, equal, floor)


# Why swaps: `scipy.linalg.schur(sort=…)` parts wanted from unwanted once, but the cut may fall anywhere.
def ordered_schur(matrix, rank):
    """The (real, if `matrix` is real) Schur form with the largest `rank` first: `matrix = Q T Qᴴ`."""
    import scipy.linalg  # here, since it takes long to import

    t, q = scipy.linalg.schur(matrix)[:2]
    (exchange,) = scipy.linalg.get_lapack_funcs(("trexc",), (t,))
    top = 0
    while top < len(t):
        # Anew each time: a swap moves the eigenvalues by rounding, and may split a 2×2 block.
        values = diagonal_values(t)
        best = top + int(
            np.argmax(rank(values[top:]))
        )  # the first of equals: never the tail of a pair
        if best > top:
            t, q, failed = exchange(t, q, best + 1, top + 1)
            if failed:  # two blocks too close to be told apart: either order will do
                break
        top += 1 if top + 1 == len(t) or t[top + 1, top] == 0 else 2
    return t, q


def diagonal_values(t):
    """Eigenvalues of a Schur form in the order of its diagonal; its 2×2 blocks as LAPACK leaves them, standardised."""
    values = np.diagonal(t).astype(complex)
    if np.iscomplexobj(t):
        return values
    below, above = np.diagonal(t, -1), np.diagonal(t, 1)
    pairs = np.flatnonzero(below)
    # Of a standardised block [[a, b], [c, a]], bc < 0; two roots, for b and c may differ by many orders.
    imaginary = np.sqrt(abs(below[pairs])) * np.sqrt(abs(above[pairs]))
    values[pairs] += 1j * imaginary
    values[pairs + 1] -= 1j * imaginary
    return values


def eigen(matrix, size):
    """Eigenvalues and unit eigenvectors (columns) of the leading block; the rest is padded with zeros and units."""
    values, vectors = np.zeros(len(matrix), complex), np.eye(len(matrix), dtype=complex)
    if not np.all(np.isfinite(matrix)):
        return np.full_like(values, np.nan), np.full_like(vectors, np.nan)
    wide = matrix[:size, :size].astype(np.result_type(matrix, np.float64))
    values[:size], vectors[:size, :size] = np.linalg.eig(wide)
    return values, vectors


def largest(matrix):
    """The largest |eigenvalue|."""
    return np.max(abs(np.linalg.eigvals(matrix))) if np.all(np.isfinite(matrix)) else np.nan


# Why criss-cross, and not a grid: σ_min(J - z) on a grid costs a decomposition a point and finds the edge to
# the mesh width. Where a line meets the boundary is an eigenvalue problem (a Hamiltonian matrix has an
# imaginary eigenvalue just where epsilon is a singular value of J - z), and alternating vertical and
# horizontal lines finds the global maximum, as a rule at a quadratic rate.
def criss_cross(matrix, epsilon):
    """The pseudospectral abscissa (Burke, Lewis & Overton 2003)."""
    matrix, epsilon = matrix.astype(complex), float(epsilon)
    if not np.all(np.isfinite(matrix)):
        return np.nan
    n = len(matrix)
    scale = np.linalg.norm(matrix, 2) + epsilon
    unit, close = np.eye(n), 1e-8 * scale

    def crossings(block):
        """Imaginary parts of the eigenvalues on the imaginary axis of the Hamiltonian matrix of `block`."""
        hamiltonian = np.block([[block, -epsilon * unit], [epsilon * unit, -block.conj().T]])
        values = np.linalg.eigvals(hamiltonian)
        return np.sort(values.imag[abs(values.real) <= close])

    def rightmost(y):
        """The rightmost point of the pseudospectrum at height y."""
        found = crossings(
            1j * (matrix - 1j * y * unit)
        )  # i(J - iy): its imaginary crossings are the x
        return np.max(found, initial=-np.inf)

    # Begun at the rightmost eigenvalue's height, so inside the pseudospectrum and never left of the abscissa.
    values = np.linalg.eigvals(matrix)
    abscissa = rightmost(values[np.argmax(values.real)].imag)
    for _ in range(50):
        heights = crossings(matrix - abscissa * unit)
        # Between two crossings the line runs inside or outside; the midpoints inside lead further right.
        middles = (heights[1:] + heights[:-1]) / 2
        reached = max((rightmost(y) for y in middles), default=-np.inf)
        if not reached > abscissa + 1e-12 * scale:
            break
        abscissa = reached
    return abscissa


def sum_of_squares(matrix):
    """`Σ|μ|²` over the eigenvalues of a matrix."""
    if not np.all(np.isfinite(matrix)):
        return np.nan
    wide = matrix.astype(np.result_type(matrix.dtype, np.float64))
    return np.sum(abs(np.linalg.eigvals(wide)) ** 2)
