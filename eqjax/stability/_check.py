"""`check`: whether a relaxation would stay at a fixed point that a solver found."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_count, check_key, check_positive, given
from ..analytic import scale
from ..relaxation import Equilibrium
from ._krylov_schur import AbstractTransform
from ._propagation import euler_map
from ._spectrum import Spectrum, SpectrumResults, block_spectrum, per_sample, spectrum
from ._token_spectrum import by_blocks


class Check(eqx.Module):
    """What `check` returns. It prints as a verdict over the table of the modes.

    - `holds`: the continuous relaxation stays: a fixed point, and `abscissa < 0`.
    - `holds_euler`: so does Euler with the given step: a fixed point, and every |λ| < 1; None without `step`.
    - `fixed_point`: whether the force residual is within the tolerance; `residual`: that residual.
    - `abscissa`: the largest Re μ. `multipliers (k,)`: λ = 1 + εμ, largest first, or None.
    - `spectrum`: the rightmost modes. `result`: a `SpectrumResults` value; where it is not successful nothing "holds".
    """

    holds: Bool[Array, "*b"]
    holds_euler: Bool[Array, "*b"] | None
    fixed_point: Bool[Array, "*b"]
    residual: Float[Array, "*b"]
    abscissa: Float[Array, "*b"]
    multipliers: Complex[Array, "*b k"] | None
    spectrum: Spectrum
    result: SpectrumResults

    def __str__(self) -> str:
        if isinstance(self.holds, Tracer):
            return repr(self)
        if self.holds.ndim:
            return per_sample(self)
        if not self.fixed_point:
            verdict = f"no fixed point: force residual {float(self.residual):.1e}"
        elif self.result != SpectrumResults.successful:
            verdict = "undecided: the eigenvalues did not converge"
        else:
            word = "stays" if self.holds else "leaves"
            verdict = f"the flow {word} (largest growth rate {float(self.abscissa):+.4g})"
            if self.holds_euler is not None and self.multipliers is not None:
                largest = float(jnp.abs(self.multipliers[0]))
                word = "stays" if self.holds_euler else "leaves"
                verdict += f"; Euler {word} (largest |multiplier| {largest:.6g})"
        return f"{verdict}\n{self.spectrum}"


def check(
    field: Callable[..., Any],
    state: Equilibrium | PyTree[Array],
    x: PyTree = None,
    *,
    step: ScalarLike | None = None,
    tol: ScalarLike = 1e-4,
    k: int = 6,
    transform: AbstractTransform | None = None,
    ncv: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Check:
    """Whether the continuous relaxation of `field`, and Euler with `step`, would stay at a fixed point.

    Quasi-Newton and Newton methods also find fixed points that repel the flow; the sign of the largest Re μ, the
    spectral abscissa of J, tells which. For one sample (`jax.vmap` for a batch).

    **Arguments:**

    - `field`, `x`: as for `equilibrium`. `state`: what it returned, or a state.
    - `step`: ε of the Euler relaxation z + εF; then also the largest |1 + εμ|, by a search of its own.
    - `tol`: the largest force residual `‖F‖ / max(‖z‖, 1)` of what counts as a fixed point.
    - `k`: modes searched, at most as many as the state has numbers. `transform`, `ncv`: as for `spectrum`.
    - `key`: of the first Krylov vectors, `jax.random.key(0)` by default.

    **Returns:** a `Check`. Nothing is raised for a state that is no fixed point: see `fixed_point` and `residual`.

    ```python
    found = ej.stability.check(network, origin, step=0.1, k=2)
    assert found.holds and found.holds_euler and jnp.isclose(found.abscissa, -0.375)
    ```
    """
    z = state.value if isinstance(state, Equilibrium) else state
    check_count(k=k)
    check_positive(tol=tol, **given(step=step))
    check_key(**given(key=key))
    key = jax.random.key(0) if key is None else key
    settings = {"transform": transform, "k": k, "ncv": ncv, "key": key}
    flow, multipliers, result = leading_modes(field, z, x, step, **settings)
    abscissa = jnp.max(flow.values.real)
    fixed = flow.force_residual <= jnp.asarray(tol, flow.force_residual.dtype)
    sure = fixed & (result == SpectrumResults.successful)
    return Check(
        holds=sure & (abscissa < 0),
        holds_euler=None if multipliers is None else sure & jnp.all(jnp.abs(multipliers) < 1),
        fixed_point=fixed,
        residual=flow.force_residual,
        abscissa=abscissa,
        multipliers=multipliers,
        spectrum=flow,
        result=result,
    )


def leading_modes(
    field: Callable[..., Any],
    z: PyTree[Array],
    x: PyTree,
    step: ScalarLike | None,
    *,
    transform: AbstractTransform | None,
    k: int,
    **settings: Any,
) -> tuple[Spectrum, Complex[Array, " k"] | None, SpectrumResults]:
    """The rightmost eigenvalues of J, those of `I + εJ` of largest magnitude, and whether all of them converged.

    The two searches differ: a fast mode far to the left is of no consequence to the flow and flips under Euler.
    """
    if by_blocks(field, z, transform, settings.get("ncv")):
        k = min(k, optax.tree.size(z))
        with jax.default_matmul_precision("highest"):
            flow, every = block_spectrum(field, z, x, k, settings["key"])
        if step is None:
            return flow, None, flow.result
        step = jnp.asarray(step, every.real.dtype)
        flow = eqx.tree_at(lambda s: s.step, flow, step, is_leaf=lambda leaf: leaf is None)
        multipliers = 1 + scale(every.ravel(), step)
        largest = jnp.argsort(-jnp.abs(multipliers))[:k]
        return flow, multipliers[largest], flow.result
    settings |= {"k": min(k, optax.tree.size(z)), "throw": False}
    flow = spectrum(field, z, x, transform=transform, step=step, **settings)
    if step is None:
        return flow, None, flow.result
    mapped = spectrum(euler_map(field, step), z, x, which="LM", **settings)
    result = SpectrumResults.where(
        flow.result == SpectrumResults.successful, mapped.result, flow.result
    )
    return flow, mapped.values, result  # pyright: ignore[reportReturnType]
