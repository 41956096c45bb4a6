"""`hopf_point`: where a fixed point starts to oscillate, as a differentiable function of everything else."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_arrays, check_count, check_key, check_positive, given
from ..analytic import tree_held
from ..relaxation import GMRES, residual_ratio
from ._decomposition import scattered
from ._eigenvalue import quotient
from ._host import unless_good
from ._jacobian import real_dtype
from ._krylov_schur import AbstractTransform
from ._linear_solver import solution_of, solver_of
from ._parameter import find_leaf, replaced
from ._sparse import SparseLU
from ._spectrum import spectrum
from ._transforms import Rightmost


class HopfPoint(eqx.Module):
    """What `hopf_point` returns; all but the last three is differentiable.

    - `parameter`: its value at the Hopf point; `frequency`: ω > 0; `state`: the fixed point there.
    - `eigenvalue`: μ, whose real part should be zero. `residual`: `‖F‖ / max(‖z‖, 1)`. `converged`.
    """

    parameter: Float[Array, ""]
    frequency: Float[Array, ""]
    state: PyTree[Array]
    eigenvalue: Complex[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]

    def __str__(self) -> str:
        if isinstance(self.parameter, Tracer) or self.parameter.ndim:
            return repr(self)
        word = "Hopf point" if self.converged else "no Hopf point: ended"
        return (
            f"{word} at parameter {float(self.parameter):.12g}, ω = {float(self.frequency):.8g}, "
            f"Re μ = {float(self.eigenvalue.real):.1e}, residual {float(self.residual):.1e}"
        )


def hopf_point(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    frequency: ScalarLike | None = None,
    k: int = 6,
    transform: AbstractTransform | None = None,
    ncv: int | None = None,
    linear_solver: Any = None,
    tol: ScalarLike | None = None,
    max_steps: int = 20,
    key: PRNGKeyArray | None = None,
    throw: bool = True,
) -> HopfPoint:
    """The Hopf point near `z0` and the present value of a parameter p, differentiable in all else.

    Newton's method on `F(z, p) = 0`, `Re μ(z, p) = 0`: the derivative of the eigenvalue is `wᴴ (dJ) v` with `wᴴ v = 1`
    (Magnus 1985), and the system is J with a row and a column more. At the solution y* the step `y* - A⁻¹ G(y*, θ)`, with A
    held and G = 0, is taken once more: it moves nothing and has the derivative `-A⁻¹ ∂G/∂θ` of the implicit function
    theorem, in forward and in reverse mode. No iteration is differentiated.

    **Arguments:**

    - `field`: an Equinox module `field(t, z, x) -> dz/dt`, evaluated at t = 0. `x`: clamped input.
    - `z0`: a real state near the fixed point there: a special point's `state`, with its parameter put into `field`.
    - `where`: which parameter p, as in `eqx.tree_at`: a scalar float leaf. What it holds is where the search begins, and
      receives no gradient.
    - `frequency`: about that of the pair meant; by default the complex pair nearest to the imaginary axis at the start.
    - `k`, `transform`, `ncv`: of the search for the pair, as for `spectrum`.
    - `linear_solver`: a Lineax solver for the steps and for the derivative. By default, beyond 100 numbers,
      `SparseLU` where each is coupled to a few others, as in a discretised partial differential equation; `lineax.LU()` up to
      400 otherwise, and then `GMRES`, and no matrix is formed. Where it fails there is no Hopf point, and in a derivative NaN.
    - `tol`: of the relative force residual, and of Re μ relative to |μ|; eps^¾ by default. `max_steps`: of Newton's method.
    - `key`: of the first Krylov vector, `jax.random.key(0)` by default.
    - `throw`: raise if it does not converge. With `throw=False` look at `converged`.

    **Returns:** a `HopfPoint`. Once differentiable only. **Raises:** `ValueError` on a complex state or a parameter that
    is no scalar float leaf.

    ```python
    find = lambda network: ej.stability.hopf_point(network, origin, where=gain, k=2)
    # `find(ej.fields.GainNetwork(gain=0.7)).parameter` is .8, and so is the frequency
    ```
    """
    check_arrays(z0=z0)
    z0 = jax.tree.map(jnp.asarray, z0)
    real = real_dtype(z0)
    check_count(max_steps=max_steps)
    check_positive(**given(tol=tol, frequency=frequency))
    check_key(**given(key=key))
    index, p = find_leaf(field, where)
    tol = jnp.asarray(float(jnp.finfo(real).eps) ** 0.75 if tol is None else tol, real)
    frequency = None if frequency is None else jnp.asarray(frequency, real)
    settings = {
        "k": min(k, optax.tree.size(z0)),
        "transform": transform,
        "ncv": ncv,
        "key": jax.random.key(0) if key is None else key,
    }
    p = jnp.asarray(p, real)
    with jax.default_matmul_precision("highest"):
        found = _hopf_point(
            field, z0, p, x, frequency, index, tol, max_steps, settings, linear_solver
        )
    if throw:
        message = (
            "No Hopf point found near `z0` and the parameter's present value. Either (a) start nearer, from a special "
            "point of `continuation`; (b) name the `frequency`, or search more modes (`k`, `ncv`, `transform`); (c) "
            "allow more `max_steps`, or a `tol` that this dtype can reach; (d) solve the steps otherwise: "
            "`linear_solver=SparseLU.of(field, z0, x)` where each number of the state is coupled to a few others, "
            "`lineax.LU()`, or a `GMRES` with a larger `restart`."
        )
        fail = lambda found: eqx.error_if(found, ~found.converged, message)
        found = unless_good(found.converged, found, fail)
    return found


# Why the eigenvalue itself and not an extended system: those of Kuznetsov (2004, ch. 10) and Govaerts (2000)
# add a complex vector, or border J² + ω²; here n + 1 unknowns do, because the pair comes from a Krylov search
# and its derivative from its two vectors. Within a step these are held, which is right to first order.
@eqx.filter_jit
def _hopf_point(field, z0, p0, x, frequency, index, tol, max_steps, settings, linear_solver):
    # What searches sees no derivative; only the last step does.
    held = tree_held((field, x))
    start = tree_held((z0, p0))
    eps = jnp.finfo(tol.dtype).eps
    # To rounding: the last step carries the derivative, and with it the error of its solve.
    krylov = GMRES(float(100 * eps), 0.0, restart=60, max_steps=240)
    linear_solver = solver_of(linear_solver, held[0], z0, held[1]) or krylov
    if settings["transform"] is None and isinstance(linear_solver, SparseLU):
        settings = settings | {"transform": Rightmost(linear_solver)}

    def force(problem, y):
        field, x = problem
        return replaced(field, index, y[1])(0.0, y[0], x)

    def pair(y, target):
        """The eigenvalue nearest to iω, with ω = `target`, or to the axis where that is NaN, and its vectors."""
        found = spectrum(
            lambda t, z, x: force(held, (z, y[1])), y[0], left=True, throw=False, **settings
        )
        # By frequency, once there is one: on the way another pair may come nearer to the axis.
        off = jnp.hypot(
            found.values.real, jnp.where(jnp.isnan(target), 0, found.values.imag - target)
        )
        i = jnp.argmin(jnp.where(found.values.imag > 0, off, jnp.inf))
        # NaN stops the loop where no pair is left; a real eigenvalue at 0 would be a fold.
        value = jnp.where(found.values[i].imag > 0, found.values[i], jnp.nan)
        v, w = (
            jax.tree.map(lambda leaf: leaf[i], vectors)
            for vectors in (found.vectors, found.left_vectors)
        )
        return value, v, w, found.converged[i]

    def rate(problem, y, v, w):
        """`wᴴ J v`, which is μ, and to first order remains so with the vectors held."""
        field, x = problem
        moved = replaced(field, index, y[1])
        return quotient(lambda z, x: moved(0.0, z, x), y[0], x, v, w)

    def stepped(problem, y, v, w):
        """One Newton step, whose matrix is that of the held problem."""
        _, A = jax.linearize(lambda y: (force(held, y), rate(held, y, v, w).real), tree_held(y))
        G = force(problem, y), rate(problem, y, v, w).real
        # J with one row and one column more: regular where the pair crosses at a non-zero rate.
        return jax.tree.map(jnp.subtract, y, solution_of(A, G, linear_solver))

    # The terms of F and of J v on a fine grid are large and cancel: below their rounding nothing falls.
    leaves, tree = jax.tree.flatten(start[0])
    probe = [scattered(leaf.shape, 0, leaf.dtype) for leaf in leaves]
    probe = jax.tree.unflatten(tree, probe)
    terms = jax.jvp(lambda z: force(held, (z, start[1])), start[:1], (probe,))[1]
    floor = 20 * eps * optx.two_norm(terms) / optx.two_norm(probe)

    def measured(y, value):
        residual = residual_ratio(force(held, y), y[0])
        # Relative to |μ|, since rates have units.
        still = jnp.abs(value.real) <= jnp.maximum(tol * jnp.abs(value), floor)
        return residual, (residual <= jnp.maximum(tol, floor)) & still

    def unfinished(carry):
        y, (value, _, _, fine), taken = carry
        return ~measured(y, value)[1] & fine & jnp.isfinite(value.real) & (taken < max_steps)

    def body(carry):
        y, (value, v, w, _), taken = carry
        y = stepped(held, y, v, w)
        return y, pair(y, value.imag), taken + 1

    target = jnp.full_like(tol, jnp.nan) if frequency is None else tree_held(frequency)
    carry = start, pair(start, target), jnp.asarray(0)
    y, (value, v, w, fine), _ = tree_held(jax.lax.while_loop(unfinished, body, carry))
    residual, done = measured(y, value)
    # Moves nothing, carries the derivative: see the docstring of `hopf_point`.
    z, p = stepped((field, x), y, v, w)
    return HopfPoint(
        parameter=p,
        # At the point that moves and of the field that is live: so it has the total derivative.
        frequency=rate((field, x), (z, p), v, w).imag,
        state=z,
        eigenvalue=value,
        residual=residual,
        converged=done & fine,
    )
