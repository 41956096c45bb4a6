"""`SparseLU`: linear systems of a field that couples neighbours only, factored."""

import collections
import functools
import threading
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ._host import on_host
from ._jacobian import jacobian
from ._pattern import Pattern, pattern_of

# More borders than any system of the library has; beyond that the pattern is that of another field.
_MOST_BORDERS = 8


class _Entries(eqx.Module):
    """A sparse matrix: what it has at `pattern`, then in its `borders`, full columns and rows; perhaps transposed.

    `product` is that with the matrix itself, which the solution is held against."""

    values: Array
    product: Any
    pattern: Pattern = eqx.field(static=True)
    borders: int = eqx.field(static=True)
    transposed: bool = eqx.field(default=False, static=True)

    def solve(self, right: Array) -> tuple[Array, Array]:
        """The solution, not refined, and the size of `|A| |x| + |b|`."""
        real = jnp.finfo(right.dtype).dtype
        shapes = jax.ShapeDtypeStruct(right.shape, right.dtype), jax.ShapeDtypeStruct((), real)
        solve = functools.partial(_solve, self.pattern, self.borders, self.transposed)
        return on_host(solve, shapes, self.values, right)

    def shifted(self, shift: Array) -> "_Entries":
        """Of `A - shift`, A without borders."""
        diagonal = jnp.asarray(self.pattern.rows == self.pattern.cols)
        values = self.values - jnp.where(diagonal, shift, 0).astype(self.values.dtype)
        apply = lambda v: self.product.mv(v) - shift.astype(v.dtype) * v
        product = lx.FunctionLinearOperator(apply, self.product.in_structure())
        return eqx.tree_at(lambda s: (s.values, s.product), self, (values, product))

    def bounds(self) -> tuple[Array, Array]:
        """Above the real parts of all eigenvalues, and above their imaginary parts: those of the Hermitian and the
        skew part (Bendixson 1902), by Gershgorin's discs."""
        rows, cols = self.pattern.rows, self.pattern.cols
        adjoint = self.values[self.pattern.mirror].conj()
        even, odd = 0.5 * (self.values + adjoint), 0.5 * (self.values - adjoint)
        reach = jnp.where(rows == cols, even.real, jnp.abs(even))
        by_row = lambda a: jnp.max(jnp.zeros(self.pattern.size, a.dtype).at[rows].add(a))
        return by_row(reach), by_row(jnp.abs(odd))


# Why on the host: SuperLU orders any pattern so that little fills up, and pivots, where a band or a grid would each want a
# loop of its own. Why the bordered matrix as a whole, and not by elimination: at a fold, where J is singular, it is regular,
# and its full rows and columns, ordered last, cost no more than the further solves that elimination takes.
class SparseLU(lx.AbstractLinearSolver):
    """A Lineax solver for `J` of a field that couples each number of its state with a few others, such as a discretised
    partial differential equation: all of J from a few products, factored by SuperLU on the host.

    Columns that share no row are seen in one product (Curtis, Powell & Reid 1974): three for `u_xx` on a line, five to nine
    for a Laplacian in the plane, whatever the size. It also solves `J - σ` and systems with a few full rows and columns
    beyond those of J, as continuation has them. Solutions are refined once, with a product of the operator itself; where
    that shows another matrix the result is `RESULTS.stagnation`, and `RESULTS.singular` where there is no solution.
    A factorisation is kept for further right-hand sides. In float64 within, also for float32.

    **Arguments:** `pattern`: of J, as `SparseLU.of(field, z, x)` has found it. If None it is looked for in each operator,
    which is to have no borders, as often as something is compiled, by as many products as the state has numbers.

    ```python
    solver = ej.stability.SparseLU()  # `spectrum(..., transform=Rightmost(solver))`, `continuation(..., linear_solver=solver)`
    assert solver.pattern is None
    ```
    """

    pattern: Pattern | None = eqx.field(default=None, static=True)

    @classmethod
    def of(cls, field: Callable[..., Any], z: PyTree[Array], x: PyTree = None) -> "SparseLU":
        """The solver for `J = ∂F/∂z` of a field: its pattern is found here, once, and depends on no value of z.

        **Raises:** `ValueError` if it depends on integers that are not known while a function is compiled.
        """
        J = jacobian(field, z, x)
        return cls(_known(pattern_of(J.mv, J.force)))

    def init(self, operator, options):
        like = jax.eval_shape(lambda s: ravel_pytree(s)[0], operator.in_structure())
        unravel = _unraveller(operator.in_structure())
        apply = lambda v: ravel_pytree(operator.mv(unravel(v)))[0]
        pattern = _known(pattern_of(apply, like)) if self.pattern is None else self.pattern
        n, borders = pattern.size, like.size - pattern.size
        if not 0 <= borders <= _MOST_BORDERS:
            raise ValueError(
                f"`pattern` is of {n} numbers, but the system has {like.size}: make the solver by "
                "`SparseLU.of(field, z, x)` for the field and the state that it is used with."
            )
        # The sum of the columns of each colour, then the full columns.
        colours = jnp.arange(pattern.count)[:, None] == jnp.asarray(pattern.colours)[None, :]
        seeds = jnp.pad(colours.astype(like.dtype), ((0, borders), (0, borders)))
        edge = jnp.eye(borders, like.size, n, like.dtype)
        seeds = seeds.at[pattern.count :].set(edge)
        images = jax.vmap(apply)(seeds)
        values = [images[pattern.colours[pattern.cols], pattern.rows]]
        if borders:
            values.append(images[pattern.count :].ravel())
            transpose = jax.linear_transpose(apply, like)
            values.append(jax.vmap(lambda v: transpose(v)[0][:n])(edge).ravel())
        return _Entries(jnp.concatenate(values), operator, pattern, borders)

    def compute(self, state, vector: PyTree[Array], options: dict[str, Any]):
        right, unravel = ravel_pytree(vector)
        apply = lambda v: ravel_pytree(state.product.mv(unravel(v)))[0]
        value, size = state.solve(right)
        left = right - apply(value)
        correction, _ = state.solve(left)
        # Of a matrix that is another one all of b is left.
        wrong = ~(jnp.linalg.norm(left) <= jnp.finfo(right.dtype).eps ** 0.5 * size)
        value = value + correction
        result = lx.RESULTS.where(
            jnp.all(jnp.isfinite(value)),
            lx.RESULTS.where(wrong, lx.RESULTS.stagnation, lx.RESULTS.successful),
            lx.RESULTS.singular,
        )
        return unravel(value), result, {"num_steps": jnp.asarray(1)}

    def transpose(self, state, options):
        other = _Entries(
            state.values,
            state.product.transpose(),
            state.pattern,
            state.borders,
            not state.transposed,
        )
        return other, {}

    def conj(self, state, options):
        return eqx.tree_at(
            lambda s: (s.values, s.product), state, (state.values.conj(), lx.conj(state.product))
        ), {}

    def assume_full_rank(self):
        return True


def _known(pattern: Pattern | None) -> Pattern:
    if pattern is None:
        raise ValueError(
            "`SparseLU` cannot find which numbers a field couples while it is compiled with indices that are arrays: find "
            "them before, by `SparseLU.of(field, z, x)`."
        )
    return pattern


def _unraveller(structure):
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), structure)
    return ravel_pytree(zeros)[1]


class _Factors:
    """The last factorisations, found again by their numbers: a search asks the same one for product after product."""

    def __init__(self, most: int):
        self.lock = threading.Lock()
        self.kept: collections.deque[tuple] = collections.deque(maxlen=most)

    def of(self, pattern: Pattern, borders: int, values: np.ndarray):
        """LU and |A| of a matrix, None where it is singular or not finite."""
        with self.lock:
            kept = list(self.kept)
        # Number by number, the newest first, which takes less than to digest them.
        for shape, known, factors in reversed(kept):
            same = shape == (pattern, borders) and known.dtype == values.dtype
            if same and np.array_equal(known, values):
                return factors
        factors = _factored(pattern, borders, values)
        with self.lock:
            self.kept.append(((pattern, borders), values.copy(), factors))
        return factors


_FACTORS = _Factors(4)


def _places(pattern, borders):
    """Where each number stands when it is eliminated, those of borders last."""
    return np.append(pattern.order, np.arange(pattern.size, pattern.size + borders))


def _factored(pattern, borders, values):
    import scipy.sparse  # here, since it takes long to import
    import scipy.sparse.linalg

    if not np.all(np.isfinite(values)):
        return None
    whole, place = pattern.size + borders, _places(pattern, borders)
    rows, cols = pattern.bordered(borders)
    wide = values.astype(np.result_type(values, np.float64))
    matrix = scipy.sparse.csc_matrix((wide, (place[rows], place[cols])), (whole, whole))
    try:
        # Ordered already; the diagonal where it is large enough, which keeps the order.
        factors = scipy.sparse.linalg.splu(
            matrix,
            permc_spec="NATURAL",
            diag_pivot_thresh=0.1,
            options={"SymmetricMode": True},
        )
    except RuntimeError:  # exactly singular
        return None
    return factors, abs(matrix).tocsr()


def _solve(pattern, borders, transposed, values, right):
    found = _FACTORS.of(pattern, borders, np.ascontiguousarray(values))
    if found is None or not np.all(np.isfinite(right)):
        return np.full_like(right, np.nan), np.nan
    factors, size = found
    place = _places(pattern, borders)
    ordered = np.empty_like(right)
    ordered[place] = right
    complex_only = np.iscomplexobj(right) and not np.iscomplexobj(values)
    wide = ordered.astype(np.result_type(values, np.float64) if not complex_only else np.complex128)
    solve = lambda b: factors.solve(b, trans="T" if transposed else "N")
    value = solve(wide.real) + 1j * solve(wide.imag) if complex_only else solve(wide)
    reach = (size.T if transposed else size) @ abs(value)
    return value[place], np.linalg.norm(reach) + np.linalg.norm(wide)
