"""Which entries of a Jacobian are not zero, and in how many products all of them are seen."""

import functools
import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

# What moves, adds and scales numbers, and so may couple a few of them only.
LOCAL = frozenset(
    "add add_any broadcast_in_dim complex concatenate conv_general_dilated convert_element_type copy copy_p div "
    "dynamic_slice dynamic_update_slice expand_dims gather imag iota mul neg pad real reduce_precision reduce_sum reshape "
    "rev select_n slice squeeze sub transpose and or not lt le gt ge eq ne min max rem floor sign clamp "
    "stop_gradient optimization_barrier scatter scatter-add split".split()
)
CALLS = frozenset("jit pjit closed_call core_call custom_jvp_call remat checkpoint".split())
# As many numbers at once as a few MiB hold.
CHUNK = 2**21
# A state beyond that would be probed for minutes.
MOST = 40_000


class Pattern:
    """Rows and columns of what may differ from zero in a square matrix, its transpose's and the diagonal with them.

    `colours (n,)`: columns alike share no row, so that the product with the sum of them shows them all; `count` of these.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray, size: int):
        here = np.arange(size)
        rows, cols = np.concatenate([rows, cols, here]), np.concatenate([cols, rows, here])
        flat = np.unique(cols.astype(np.int64) * size + rows)
        self.size, self.rows, self.cols = size, flat % size, flat // size
        self.digest = hashlib.blake2b(flat.tobytes() + str(size).encode()).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Pattern) and self.digest == other.digest

    def __repr__(self) -> str:
        return f"Pattern({self.size} x {self.size}, {self.rows.size} entries, {self.count} colours)"

    @property
    def count(self) -> int:
        return int(self.colours.max()) + 1

    # Curtis, Powell & Reid (1974), in natural order: three for a band of three, five or so for a five-point stencil.
    @functools.cached_property
    def colours(self) -> np.ndarray:
        colours = np.full(self.size, -1)
        starts = np.searchsorted(self.cols, np.arange(self.size + 1))
        columns = [self.rows[a:b] for a, b in itertools.pairwise(starts)]
        # Symmetric: the rows of a column are the columns of that row.
        for j, rows in enumerate(columns):
            taken = set()
            for i in rows:
                taken.update(colours[columns[i]].tolist())
            colours[j] = next(c for c in range(len(taken) + 1) if c not in taken)
        return colours

    @functools.cached_property
    def mirror(self) -> np.ndarray:
        """Where the transpose's entries stand among these."""
        flat = self.cols * self.size + self.rows
        return np.searchsorted(flat, self.rows * self.size + self.cols)

    @functools.cached_property
    def order(self) -> np.ndarray:
        """The place of each number in an elimination that fills little, found once for all matrices of this pattern."""
        import scipy.sparse  # here, since it takes long to import
        import scipy.sparse.linalg

        least = np.where(self.rows == self.cols, float(self.size), 1.0)
        matrix = scipy.sparse.csc_matrix((least, (self.rows, self.cols)), (self.size, self.size))
        return scipy.sparse.linalg.splu(matrix, permc_spec="MMD_AT_PLUS_A").perm_c

    def bordered(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns with so many full columns and, after them, full rows: all of them one by one."""
        n, whole = self.size, self.size + count
        edge = np.repeat(np.arange(n, whole), whole), np.tile(np.arange(whole), count)
        low = np.repeat(np.arange(n, whole), n), np.tile(np.arange(n), count)
        return (
            np.concatenate([self.rows, edge[1], low[0]]),
            np.concatenate([self.cols, edge[0], low[1]]),
        )


# Why NaN: it is kept by every product, also with a coefficient that happens to be zero at this state, so that what comes
# out depends on the program alone; and the state may be unknown, as it is while a function is compiled.
def pattern_of(product: Callable[[Array], Array], like: Any) -> Pattern | None:
    """The pattern of a linear map of flat vectors `like`; None if it depends on integers that are not known yet."""
    program = jax.make_jaxpr(product)(jnp.zeros(like.shape, like.dtype))
    # Of a branch that is not known yet both sides count.
    branches = (True, False) if any(c.dtype == bool for c in program.consts) else (True,)
    found = [part for branch in branches if (part := _probed(program, like, branch)) is not None]
    if len(found) < len(branches):
        return None
    rows, cols = (np.concatenate([part[i] for part in found]) for i in (0, 1))
    return Pattern(rows, cols, like.size)


def local_pattern(product: Callable[[Array], Array], like: Any) -> Pattern | None:
    """The same where the program shows that it couples neighbours only; None otherwise, and without much work."""
    if like.size > MOST:
        return None
    program = jax.make_jaxpr(product)(jnp.zeros(like.shape, like.dtype))
    if not _local(program.jaxpr):
        return None
    pattern = pattern_of(product, like)
    if pattern is None or pattern.rows.size > 100 * like.size:
        return None
    return pattern if pattern.count < min(100, like.size / 8) else None


def _probed(program, like, choice):
    """Rows and columns, where all that is not known and chooses chooses alike."""
    known = []
    for const in program.consts:
        kind = np.dtype(const.dtype).kind
        if kind == "b":
            const = np.full(const.shape, choice)
        elif kind in "fcV":
            const = np.ones(const.shape, const.dtype)
        elif isinstance(const, Tracer):
            return None
        known.append(const)
    width = max(1, min(like.size, CHUNK // like.size))
    rows, cols = [], []
    # At once, also while something else is compiled.
    with jax.ensure_compile_time_eval():
        run = jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(program.jaxpr, known))
        nan = jnp.asarray(jnp.nan, like.dtype)

        @jax.jit
        def touched(columns):
            probe = jnp.arange(like.size)[None, :] == columns[:, None]
            probes = jnp.where(probe, nan, jnp.zeros((), like.dtype))
            return jax.vmap(lambda v: jnp.isnan(run(v)[0]))(probes)

        for start in range(0, like.size, width):
            hits = np.asarray(touched(jnp.arange(start, start + width)))
            column, row = np.nonzero(hits[: like.size - start])
            rows.append(row)
            cols.append(column + start)
    return np.concatenate(rows), np.concatenate(cols)


def _local(program) -> bool:
    for equation in program.eqns:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and inner is not None:
            if not _local(getattr(inner, "jaxpr", inner)):
                return False
        elif equation.primitive.name not in LOCAL:
            return False
    return True
