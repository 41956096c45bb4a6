"""`continuation`: a fixed point followed through a parameter, with all that befalls it on the way."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_arrays, check_count, check_key, check_positive, given
from ..analytic import is_complex
from ..fields import Realified
from ..relaxation import NewtonKrylov, explained, residual_ratio
from ._bifurcation import BranchSample, SpecialPoint, special_points, special_table
from ._check import leading_modes
from ._defining import Defining, polish
from ._jacobian import state_dtype
from ._krylov_schur import AbstractTransform
from ._linear_solver import solver_of
from ._parameter import Line
from ._path import (
    AbstractPath,
    AbstractProblem,
    PseudoArclength,
    corrector,
    first_point,
    follow_path,
    newton,
    product_at,
    sparse_newton,
)
from ._sparse import SparseLU
from ._spectrum import Spectrum, SpectrumResults
from ._transforms import Rightmost


class Branch(eqx.Module):
    """A branch of fixed points, as `continuation` returns it. It prints as a table of its special points.

    - `parameters (m,)`, `states` (leading axis m), `residuals (m,)`: the points in order, and their force residuals.
    - `spectra`: a `Spectrum` with leading axis m, the rightmost modes at each.
    - `multipliers (m, k)`: the largest λ = 1 + εμ at each, or None without `step`.
    - `unstable (m,)`, `unstable_euler (m,)`: how many modes grow under the flow, and under Euler; at most k.
    - `reliable (m,)`: whether all the eigenvalues asked for converged there. Where not, counts may be wrong.
    - `special_points`: `SpecialPoint`s, in order.
    - `step`: ε or None. `ended`: in words, why the branch ends where it does.
    """

    parameters: Float[Array, " m"]
    states: PyTree[Array]
    residuals: Float[Array, " m"]
    spectra: Spectrum
    multipliers: Complex[Array, "m k"] | None
    unstable: Int[np.ndarray, " m"]
    unstable_euler: Int[np.ndarray, " m"] | None
    reliable: Bool[Array, " m"]
    special_points: tuple[SpecialPoint, ...]
    step: Float[Array, ""] | None
    ended: str = eqx.field(static=True)

    def __str__(self) -> str:
        first, last = float(self.parameters[0]), float(self.parameters[-1])
        step = "" if self.step is None else f", Euler step {float(self.step):.4g}"
        doubtful = int(jnp.sum(~self.reliable))
        doubt = f"; EIGENVALUES NOT CONVERGED at {doubtful} points" if doubtful else ""
        head = (
            f"{self.parameters.size} points from {first:.6g} to {last:.6g}{step}; {self.ended}; "
            f"largest force residual {float(jnp.max(self.residuals)):.1e}{doubt}"
        )
        return f"{head}\n{special_table(self.special_points)}"


class Problem(AbstractProblem):
    """A fixed point, F = 0."""

    line: Line
    x: PyTree
    solver: NewtonKrylov | None
    key: PRNGKeyArray
    max_steps: int = eqx.field(static=True)
    k: int = eqx.field(static=True)
    ncv: int | None = eqx.field(default=None, static=True)
    step: Float[Array, ""] | None = None
    transform: AbstractTransform | None = None
    linear_solver: Any = None

    def force(self, z, q):
        """F at q of the line."""
        return self.line.at(q)(0.0, z, self.x)

    def correct(self, predicted, base, normal):
        force = lambda y: self.force(*y)
        rest = self.max_steps, predicted, normal
        if self.solver is None and isinstance(self.linear_solver, SparseLU):
            return sparse_newton(force, self.inner(base[0]), self.linear_solver, *rest)
        solver = self.solver or corrector(base[0], linear_solver=self.linear_solver)
        return newton(force, self.inner(base[0]), solver, *rest)

    def inner(self, base):
        return product_at(base)

    def findings(self, state, q, base):
        transform = self.transform
        if transform is None and isinstance(self.linear_solver, SparseLU):
            transform = Rightmost(self.linear_solver)
        settings = {"transform": transform, "k": self.k, "ncv": self.ncv, "key": self.key}
        field = self.line.at(q)  # itself, so that a causal one is taken by its own blocks
        flow, multipliers, result = leading_modes(field, state, self.x, self.step, **settings)
        residual = residual_ratio(self.force(state, q), state)
        modes = Modes(flow, multipliers, result == SpectrumResults.successful)
        return residual, jnp.asarray(True), modes

    def settled(self, point):
        return point


class Modes(NamedTuple):
    """What is told of a fixed point: `Spectrum`, the largest multipliers or None, and whether all converged."""

    flow: Spectrum
    multipliers: Array | None
    reliable: Array


def continuation(
    field: Callable[..., Any],
    z0: PyTree[Array],
    x: PyTree = None,
    *,
    where: Callable[[Any], Any],
    bounds: tuple[Any, Any],
    backwards: bool = False,
    path: AbstractPath = PseudoArclength(),
    step: ScalarLike | None = None,
    k: int = 6,
    transform: AbstractTransform | None = None,
    ncv: int | None = None,
    solver: NewtonKrylov | None = None,
    linear_solver: Any = None,
    max_points: int = 400,
    max_steps: int = 12,
    tol: float | None = None,
    callback: Callable[[float, PyTree[Array], Spectrum], Any] | None = None,
    key: PRNGKeyArray | None = None,
) -> Branch:
    """Follow a fixed point of `field` through one of its parameters, and find where its stability changes and how.

    Newton's method on the bordered system (Keller 1977), by which folds are passed. Corrector, tangent
    and spectra of a point are one function, compiled once for the branch. Between two points whose counts of unstable
    modes differ, or whose tangents point opposite ways in the parameter, the special point is bracketed by Brent's
    method on the eigenvalue that crosses (or on the tangent), and then solved for to rounding by its bordered defining
    system (Griewank & Reddien 1984; Govaerts 2000). The loop over points is Python: not under `jit` or `vmap`.

    **Arguments:**

    - `field`: an Equinox module `field(t, z, x) -> dz/dt`, evaluated at t = 0. `x`: clamped input.
    - `z0`: a state from which Newton's method settles at the parameter's present value, where the branch begins. For a
      complex state the field is taken as a real one, of real and imaginary parts, and so are eigenvectors.
    - `where`: which parameter, as in `eqx.tree_at`: `lambda f: f.attention_gain`; a scalar float leaf.
    - `bounds`: `(low, high)`; the branch ends where it leaves them. It sets out upwards, or `backwards`.
    - `path`: `PseudoArclength` or `Natural`, with the lengths of steps.
    - `step`: ε of the Euler map z + εF, whose multipliers λ = 1 + εμ are then followed as well. A map g is the field
      `g(z) - z` with ε = 1.
    - `k`, `transform`, `ncv`: modes followed and how they are searched, as for `spectrum`; `k` at least one more than
      ever are unstable. The multipliers are searched without the transform.
    - `linear_solver`: a Lineax solver for all systems with J, those of special points included. By default, beyond
      100 numbers, `SparseLU` where each is coupled to a few others, as in a discretised partial differential equation, and
      then spectra are found by `Rightmost`; `lineax.LU()` up to 400 otherwise, and then `GMRES`, and no matrix is formed.
    - `solver`: by default `NewtonKrylov` to eps^¾, with that linear solver; with `SparseLU` Newton's method with
      corrections by one matrix, that is factored anew where they shrink too little (Deuflhard 2004). `max_steps`: of it
      for each point.
    - `max_points`: after which the branch ends. `callback(parameter, state, spectrum)`: called at every point; the
      branch ends when it returns True.
    - `tol`: to which special points are located, in units of the path, where their equations have no regular root (modes
      that cross together, for one); eps^⅔ by default, 4e-11 in float64.
    - `key`: of the first Krylov vectors, `jax.random.key(0)` by default.

    **Returns:** a `Branch`. A change and its reversal between two neighbouring points are not seen: lower `most`.

    **Raises:** `ValueError` if the parameter is no scalar float leaf, the bounds are reversed or do not hold it, the
    field is not finite at `z0`, or `z0` does not settle.

    ```python
    branch = ej.stability.continuation(network, origin, where=gain, bounds=(0.0, 1.0), step=1.0, k=2)
    artefact, hopf = branch.special_points
    assert abs(hopf.parameter - 0.8) < 1e-9 and artefact.euler == "Neimark–Sacker"
    ```
    """
    check_arrays(z0=z0)
    # Of a weak type, as `jnp.full` makes it, the first points would be compiled for themselves.
    z0 = jax.tree.map(lambda a: jnp.asarray(a).astype(jnp.asarray(a).dtype), z0)
    real = jnp.finfo(state_dtype(z0)).dtype
    line, q = Line.of(field, where, bounds, real)
    shown = lambda z: z
    if is_complex(z0):
        z0, shown = Realified.split(z0), Realified.join
        line = dataclasses.replace(line, field=Realified(line.field))
    check_positive(**given(step=step, tol=tol))
    check_count(k=k, max_steps=max_steps, max_points=max_points)
    check_key(**given(key=key))
    asked = solver.linear_solver if linear_solver is None and solver is not None else linear_solver
    linear_solver = solver_of(asked, line.field, z0, x)
    if solver is not None and asked is not None:
        solver = dataclasses.replace(solver, linear_solver=linear_solver)
    problem = Problem(
        line=line,
        x=x,
        solver=solver,
        linear_solver=linear_solver,
        key=jax.random.key(0) if key is None else key,
        max_steps=max_steps,
        k=k,
        ncv=ncv,
        step=None if step is None else jnp.asarray(step, real),
        transform=transform,
    )
    with explained(line.field, z0, x):
        force = jax.tree.leaves(_force(problem, z0, q))
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in force):
        raise ValueError(
            "`field` is not finite at `z0`: look for a NaN in `z0`, in `x` or in the parameters, or start elsewhere."
        )
    start = first_point(problem, z0, q, backwards)
    if not start.converged:
        raise ValueError(
            f"`z0` does not settle: Newton's method ended at force residual {float(start.residual):.1e}. Either (a) "
            "settle it first, by `equilibrium` or `relax`; (b) give more `max_steps`, or a `solver` with a tolerance this "
            "dtype can reach; (c) solve its linear systems otherwise: `linear_solver=SparseLU()` where each number of the "
            "state is coupled to a few others, `lineax.LU()`, or a `GMRES` with a larger `restart`; or (d) the field has no "
            "fixed point near."
        )
    epsilon = None if problem.step is None else float(problem.step)

    def polished(kind, sample, value):
        """The special point of a kind near a sample: parameter, state, error and eigenvalue; None if there is none."""
        flat, unravel = ravel_pytree(sample.state)
        system = Defining(problem.line, x, problem.step, unravel, kind, linear_solver)
        near = line.place(sample.parameter)
        found = polish(system, flat, near, system.extra(value, flat.dtype))
        if not found.converged:
            return None
        error = float(found.error) * float(line.span)
        return line.number(found.q), unravel(found.z), error, complex(found.shift)

    def stop(point, seen):
        return callback and callback(seen.parameter, shown(point.y[0]), point.found.flow)

    stacked, samples, special, ended = follow_path(
        problem,
        path,
        start,
        sample=lambda point: BranchSample.of(line.number(point.y[1]), point),
        examine=lambda stretch: (special_points(stretch, epsilon, polished), ""),
        stop=stop,
        max_points=max_points,
        tol=tol,
    )
    counts = np.asarray([(s.unstable, s.unstable_euler) for s in samples])
    return Branch(
        parameters=jax.device_put(np.asarray(line.number(stacked.y[1]), real)),
        states=shown(stacked.y[0]),
        residuals=stacked.residual,
        spectra=eqx.combine(stacked.found.flow, start.found.flow),
        multipliers=stacked.found.multipliers,
        unstable=counts[:, 0],
        unstable_euler=None if step is None else counts[:, 1],
        reliable=stacked.found.reliable,
        special_points=tuple(eqx.tree_at(lambda s: s.state, s, shown(s.state)) for s in special),
        step=problem.step,
        ended=ended,
    )


@eqx.filter_jit
def _force(problem, z, q):
    return problem.force(z, q)
