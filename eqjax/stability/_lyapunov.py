"""Lyapunov exponents: how fast neighbouring trajectories part."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_count, check_key, check_kind, check_positive, given
from ._jacobian import check_autonomous, real_dtype
from ._propagation import one_step, turn

# Means over blocks: single steps are correlated, and their spread would claim too much.
_BLOCKS = 10


class Lyapunov(eqx.Module):
    """What `lyapunov` returns. `exponents (k,)`: per unit of time, in the order in which the frame finds them, by and
    large falling. `errors (k,)`: their standard errors, from the means of ten blocks of the trajectory (blocks much
    longer than its memory make them honest). `state`: where the trajectory ended."""

    exponents: Float[Array, " k"]
    errors: Float[Array, " k"]
    state: PyTree[Array]

    def __str__(self) -> str:
        if isinstance(self.exponents, Tracer) or self.exponents.ndim > 1:
            return repr(self)
        pairs = zip(self.exponents, self.errors, strict=True)
        return "Lyapunov exponents " + ", ".join(f"{a:+.5g} ± {e:.1g}" for a, e in pairs)

    @property
    def dimension(self) -> Float[Array, ""]:
        """The Kaplan–Yorke dimension `j + Σ_{i≤j} λ_i / |λ_{j+1}|`, j the last with `Σ_{i≤j} λ_i ≥ 0`. If all k sums
        are positive it is k or more: ask for more exponents."""
        # The frame finds exponents in order only by and large; nearly equal ones may have changed places.
        falling = -jnp.sort(-self.exponents)
        sums = jnp.cumsum(falling)
        j = jnp.sum(sums >= 0)
        k = falling.size
        held = jnp.where(j > 0, sums[jnp.maximum(j - 1, 0)], 0)
        rest = held / jnp.abs(falling[jnp.minimum(j, k - 1)])
        return j.astype(rest.dtype) + jnp.where(j < k, rest, 0)


def lyapunov(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    step: ScalarLike,
    steps: int,
    transient: int = 0,
    every: int = 1,
    k: int | None = None,
    solver: dfx.AbstractSolver = dfx.Tsit5(scan_kind="lax"),
    key: PRNGKeyArray | None = None,
) -> Lyapunov:
    """The k largest Lyapunov exponents along a trajectory, for one sample (`jax.vmap` for a batch).

    A frame of k tangent vectors is carried along by Jacobian–vector products and orthonormalised by QR; the
    exponents are the mean logarithms of what it was stretched by (Benettin et al. 1980). The products differentiate
    the step of the solver itself, so that the exponents are exactly those of the map it makes. One `lax.scan`.

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt`, evaluated near t = 0: autonomous. A map g is the field `g(z) - z`
      with `solver=diffrax.Euler()` and `step=1`.
    - `z0`: initial state, real. `x`: clamped input.
    - `step`: of the solver, of fixed length. `steps`: how many are averaged over, `transient`: how many go before,
      in which the frame aligns itself. All in all a multiple of `every`, the steps between two QRs.
    - `k`: exponents; by default all.
    - `solver`: an explicit Diffrax solver. `key`: of the first frame; `jax.random.key(0)` by default.

    **Returns:** a `Lyapunov`; NaN where the trajectory left to infinity. **Raises:** `ValueError` on counts that
    make no sense, a complex state, or a field that depends on t.

    ```python
    found = ej.stability.lyapunov(network, origin, step=0.1, steps=20)
    assert jnp.allclose(found.exponents, -0.375, rtol=1e-4)
    ```
    """
    real, n = real_dtype(z0), optax.tree.size(z0)
    k = n if k is None else k
    check_count(0, k=k, steps=steps, transient=transient, every=every)
    check_key(**given(key=key))
    check_kind(dfx.AbstractSolver, "a Diffrax solver", solver=solver)
    if not 1 <= k <= n:
        raise ValueError(f"`k` must lie between 1 and the size of the state, {n}, got {k}.")
    check_positive(step=step)
    if every < 1 or transient < 0 or transient % every or steps < 1 or steps % (_BLOCKS * every):
        raise ValueError(
            f"`steps` must be a positive multiple of {_BLOCKS} times `every`, and `transient` a multiple of `every`, got "
            f"steps={steps}, transient={transient}, every={every}."
        )
    key = jax.random.key(0) if key is None else key
    step, cycles = jnp.asarray(step, real), steps // every
    return _lyapunov(field, z0, x, step, cycles, transient // every, every, k, solver, key)


# Why QR on the way. Free tangent vectors all turn into the fastest direction, and grow or vanish
# exponentially: after ln(1/eps) / (λ₁ - λ₂) only λ₁ is left in them. Of the orthonormalised frame the first j
# vectors span the volume that grows at λ₁ + … + λⱼ, and R's diagonal is by how much it did (Benettin et al.
# 1980; Shimada & Nagashima 1979).
@eqx.filter_jit
def _lyapunov(field, z0, x, step, cycles, transient, every, k, solver, key):
    check_autonomous(field, z0, x)
    flat, unravel = ravel_pytree(z0)

    def forward(z):
        return one_step(field, solver, unravel, z, x, step)

    def stretch(carry, _):
        z, frame = carry
        # Linearised once for all k vectors: the trajectory is not computed k times.
        z, product = jax.linearize(forward, z)
        return (z, jax.vmap(product)(frame)), None

    def cycle(carry, _):
        # A QR after each step is the safe choice; it costs n k², which may exceed a cheap field's step.
        (z, frame), _ = jax.lax.scan(stretch, carry, None, length=every)
        q, r = jnp.linalg.qr(frame.T)
        # The sign of a diagonal entry is LAPACK's choice.
        return (z, q.T), jnp.log(jnp.abs(jnp.diagonal(r)))

    noise = jax.random.normal(key, (flat.size, k), flat.dtype)
    # Random directions: none is orthogonal to what grows fastest but by chance.
    carry = flat, jnp.linalg.qr(noise)[0].T
    carry, _ = jax.lax.scan(cycle, carry, None, length=transient)

    def block(carry, _):
        carry, logs = jax.lax.scan(cycle, carry, None, length=cycles // _BLOCKS)
        return carry, jnp.mean(logs, axis=0) / (every * step)

    carry, means = jax.lax.scan(block, carry, None, length=_BLOCKS)
    return Lyapunov(
        exponents=jnp.mean(means, axis=0),
        errors=jnp.std(means, axis=0, ddof=1) / _BLOCKS**0.5,
        state=unravel(carry[0]),
    )


def finite_time_exponents(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    step: ScalarLike,
    steps: int,
    solver: dfx.AbstractSolver = dfx.Tsit5(scan_kind="lax"),
) -> Float[Array, " n"]:
    """`ln σ_i / T`, σ the singular values of the propagator `∂z(T)/∂z(0)`, T = steps · step; largest first.

    Unlike those of `lyapunov` they see transient growth: a stable but non-normal field has positive ones at first.
    The propagator is formed, n products: for small states and times, since its columns align beyond about
    `ln(1/eps) / (λ₁ - λ_n)`.

    **Arguments:** as for `lyapunov`. **Raises:** `ValueError` on a step or count that makes no sense.

    ```python
    found = ej.stability.finite_time_exponents(network, origin, step=0.1, steps=10)
    assert jnp.allclose(found, -0.375, rtol=1e-4)
    ```
    """
    real = real_dtype(z0)
    check_positive(step=step)
    check_count(steps=steps)
    return _finite_time(field, z0, x, jnp.asarray(step, real), steps, solver)


@eqx.filter_jit
def _finite_time(field, z0, x, step, steps, solver):
    check_autonomous(field, z0, x)
    flat, unravel = ravel_pytree(z0)

    # Singular values, not eigenvalues: what grows need not come back in its own direction.
    propagator = jax.jacfwd(lambda z: turn(field, solver, unravel, z, x, step, steps))(flat)
    return jnp.log(jnp.linalg.svd(propagator, compute_uv=False)) / (steps * step)
