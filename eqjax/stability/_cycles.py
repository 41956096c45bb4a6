"""`periodic_orbit`: a cycle, its period, and its Floquet multipliers."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_count, check_key, check_kind, check_positive, given
from ._cycle_search import collocated
from ._forced import Forced, check_drive
from ._host import unless_good
from ._jacobian import real_dtype
from ._profile import Profile
from ._shooting import shot


class PeriodicOrbit(eqx.Module):
    """What `periodic_orbit` returns.

    - `state`: a point of the cycle; `period`: T. Both are differentiable, once, where the cycle was collocated.
    - `log_multipliers (k,)`: logarithms of the largest eigenvalues of the monodromy matrix `∂z(T)/∂z(0)`, largest first; a
      Floquet exponent is one of them divided by T. One is 0, along the cycle, unless the field is driven. `multipliers
      (k,)`: the eigenvalues.
    - `residual`: what is left of the equations, relative to `max(‖z‖, 1)`.
    - `period_error`: about what the discretisation adds to the period: the change by halving it. NaN on a branch.
    - `drift`: by how much the multiplier along the cycle, which is 1, misses it: the error of the integration.
    - `converged`: whether Newton's method and the multipliers did, and `drift` is small.
    - `profile`: the whole cycle as collocated, where `cycle_continuation` sets out; None by single shooting.
    """

    state: PyTree[Array]
    period: Float[Array, ""]
    log_multipliers: Complex[Array, " k"]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    period_error: Float[Array, ""]
    drift: Float[Array, ""]
    profile: Profile | None = None

    @classmethod
    def at(cls, point: Any, unravel: Callable[[Array], PyTree]) -> "PeriodicOrbit":
        """The orbit of a point of a branch of cycles."""
        turn, profile, logs = point.found, point.y[0], point.found.logs
        if not (isinstance(profile, Profile) and profile.closing):
            logs = jnp.append(logs, jnp.zeros(1, logs.dtype))
        return cls(
            state=unravel(turn.state),
            period=turn.period,
            log_multipliers=logs[jnp.argsort(-logs.real, stable=True)],
            residual=point.residual,
            converged=point.converged & turn.reliable,
            period_error=jnp.full_like(turn.period, jnp.nan),
            drift=turn.drift,
            profile=profile if isinstance(profile, Profile) else None,
        )

    @property
    def multipliers(self) -> Complex[Array, " k"]:
        """The multipliers themselves; 0 or infinite where they leave the range of the dtype."""
        return jnp.exp(self.log_multipliers)

    @property
    def transverse(self) -> Complex[Array, " m"]:
        """The multipliers without the one along the cycle, the nearest to 1; of a driven field, all."""
        if self.profile is not None and self.profile.closing is not None:
            return self.multipliers
        # By value, not by rank: on an unstable cycle it is not the largest.
        along = jnp.argmin(jnp.abs(self.log_multipliers))
        order = jnp.arange(self.log_multipliers.size - 1)
        return self.multipliers[jnp.where(order < along, order, order + 1)]

    @property
    def stable(self) -> Bool[Array, ""]:
        """Whether every transverse multiplier found lies inside the unit circle."""
        return self.converged & jnp.all(jnp.abs(self.transverse) < 1)

    def __str__(self) -> str:
        if isinstance(self.period, Tracer) or self.period.ndim:
            return repr(self)
        word = "stable" if self.stable else "unstable" if self.converged else "not converged:"
        sizes = ", ".join(_told(complex(value)) for value in self.log_multipliers)
        return (
            f"{word} cycle of period {float(self.period):.12g} ± {float(self.period_error):.0e}, multipliers "
            f"{sizes}, residual {float(self.residual):.1e}, drift {float(self.drift):.1e}"
        )


def _told(value: complex) -> str:
    """A multiplier in words, by its logarithm."""
    if not np.isfinite(value.real) or abs(value.real) < 200:
        return f"{np.exp(value):.6g}"
    sign = "-" if abs(abs(value.imag) - np.pi) < 1e-6 else ""
    return f"{sign}exp({value.real:.6g})"


# A larger field has its blocks of Jacobians formed no more.
COLLOCATED = 32


def periodic_orbit(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    period: ScalarLike,
    intervals: int | None = None,
    steps: int | None = None,
    k: int = 6,
    ncv: int | None = None,
    tol: ScalarLike | None = None,
    max_steps: int = 30,
    # Diffrax' default for the stages has no forward mode, and every product here is a JVP.
    solver: dfx.AbstractSolver = dfx.Tsit5(scan_kind="lax"),
    key: PRNGKeyArray | None = None,
    throw: bool = True,
) -> PeriodicOrbit:
    """A periodic orbit of an autonomous field, or of a `Forced` one, stable or not, stiff or not.

    By orthogonal collocation: on a mesh that adapts to the cycle, polynomials of degree 6 satisfy the equations at Gauss
    points (de Boor & Swartz 1973; Doedel, Keller & Kernevez 1991); Newton's method on state and period together. The
    Floquet multipliers come from the transfer matrices of all intervals, by orthogonal iteration around the cycle and as
    logarithms, so that sizes from e⁻²⁰⁰ to e²⁰⁰ are right beside one another. A state of more than 32 numbers, or
    `steps`, asks for single shooting instead: Newton–Krylov on `z(T; z) - z = 0`, with multipliers by Krylov–Schur; their
    absolute error is about that of the orbit, relative to the largest.

    **Arguments:**

    - `field`: callable `field(t, z, x) -> dz/dt`, evaluated near t = 0: autonomous, or `Forced`. `x`: clamped input.
    - `z0`, `period`: a real state near the cycle, and a guess of T, right to a third: what a simulation shows. Of a
      driven field: the state at t = 0, and T to the nearest multiple of the drive's, which it then is.
    - `intervals`: of the mesh, an even number; by default 80, and up to 320 if these do not do (80 under `jit`).
    - `steps`: single shooting, with so many steps of `solver`, an explicit Diffrax solver, of fixed length T/steps; its
      order sets the error. By default 1000 where it is used.
    - `k`: multipliers, at most as many as the state has numbers. `ncv`: as for `spectrum`, in single shooting.
    - `tol`: of the residual; eps^¾ by default. `max_steps`: of Newton's method.
    - `key`: of the first Krylov vector, `jax.random.key(0)` by default.
    - `throw`: raise if it does not converge. With `throw=False` look at `converged`.

    **Returns:** a `PeriodicOrbit` of the least period: from near 2T, 3T or 5T it comes back to T. Where Newton's method
    falls on a fixed point, which is a cycle of any period, it counts as not converged, and so does a cycle whose
    multiplier along itself is not found near 1. Multipliers have no derivative.

    **Raises:** `ValueError` on a complex state, one of a single number, a period or count that is not positive, a field
    that depends on t, or a `Forced` one that is not periodic or is to be shot.

    ```python
    orbit = ej.stability.periodic_orbit(turning, jnp.array([1.0, 0.0]), period=6.0, intervals=4)
    assert jnp.isclose(orbit.period, 2 * jnp.pi, rtol=1e-3)
    ```
    """
    check_count(k=k, max_steps=max_steps, **given(steps=steps, intervals=intervals))
    check_positive(period=period, **given(tol=tol))
    check_key(**given(key=key))
    check_kind(dfx.AbstractSolver, "a Diffrax solver", solver=solver)
    dtype, size = real_dtype(z0), optax.tree.size(z0)
    z0 = jax.tree.map(jnp.asarray, z0)
    k = min(k, size)
    period = jnp.asarray(period, dtype)
    # Well above eps, for the rounding of all the steps of a turn enters z(T) - z(0).
    tol = jnp.asarray(float(jnp.finfo(dtype).eps) ** 0.75 if tol is None else tol, dtype)
    if isinstance(field, Forced):
        if steps is not None or size >= COLLOCATED:
            raise ValueError(
                f"Cycles of a `Forced` field are collocated: no `steps`, and a state of less than {COLLOCATED} numbers. "
                f"Got {size} numbers and `steps` {steps}."
            )
        check_drive(field, z0, x)
    if steps is not None or size > COLLOCATED:
        key = jax.random.key(0) if key is None else key
        steps = 1000 if steps is None else steps
        found = PeriodicOrbit(
            **shot(field, z0, x, period, steps, k, ncv, tol, max_steps, solver, key)
        )
        remedy = "more `steps` of the integration, or none, for collocation"
    else:
        if size < 2 and not isinstance(field, Forced):
            raise ValueError("`z0` is of one number: on a line nothing returns.")
        found: Any = None
        counts = (80, 160, 320) if intervals is None else (intervals + intervals % 2,)
        for count in counts:
            found = PeriodicOrbit(**collocated(field, z0, x, period, count, k, tol, max_steps))
            if isinstance(found.converged, Tracer) or found.converged or not found.drift > 0:
                break
        remedy = "more `intervals` of the mesh"
    if throw:
        message = (
            "No cycle found near `z0` and `period`. Either (a) start nearer, from a state and period that a simulation "
            f"shows; (b) allow more `max_steps`, or {remedy}; or (c) it fell on a fixed point."
        )
        fail = lambda found: eqx.error_if(found, ~found.converged, message)
        found = unless_good(found.converged, found, fail)
    return found
