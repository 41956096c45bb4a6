"""Backward Euler, whole or of one part only, as Diffrax solvers that never form a Jacobian."""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import optimistix as optx

from ._gmres import adjoint_solver
from ._newton_krylov import NewtonKrylov


class BackwardEuler(dfx.AbstractImplicitSolver):
    """Backward Euler, `y₁ = y₀ + h F(y₁)`: stable at any step where the flow is.

    `diffrax.ImplicitEuler(root_finder=NewtonKrylov(…))` makes the same steps without forming a Jacobian, but
    forms it when differentiated (`n²` numbers); here the derivative, too, is a `GMRES` solve. No error estimate.

    **Arguments:**

    - `root_finder`: an Optimistix root finder for `y₀ + h F(y) - y = 0`, begun at y₀. A force below its
      tolerance over h counts as settled, so that is how far the state will settle. A `scale` of None is one for all steps:
      that of the start, or of the first step where that is more, at most 1.
    - `root_find_max_steps`: its most steps; a step that needs more fails, and the solve with it.

    ```python
    found = ej.relax(field, start, x, solver=ej.relaxation.BackwardEuler(), step=1.0, steps=8)
    assert found.residual < 0.1
    ```
    """

    root_finder: optx.AbstractRootFinder = NewtonKrylov(rtol=1e-5)
    root_find_max_steps: int = eqx.field(default=32, static=True)

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = dfx.LocalLinearInterpolation

    def order(self, terms):
        return 1

    def init(self, terms, t0, t1, y0, args) -> None:
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        control = terms.contr(t0, t1)
        y1, result = _implicit(
            self, lambda y, args: terms.vf_prod(t1, y, args, control), y0, y0, args
        )
        return y1, None, {"y0": y0, "y1": y1}, None, result

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


class IMEXEuler(dfx.AbstractImplicitSolver):
    """Implicit–explicit Euler (Ascher, Ruuth & Wetton 1995), `y₁ = y₀ + h (N(y₀) + R(y₁))`.

    For `diffrax.MultiTerm(ODETerm(N), ODETerm(R))`. `relax` makes these terms from an `AbstractSplitField`: its
    non-reciprocal part explicit, its reciprocal part, where the stiffness of an energy sits, implicit. One
    evaluation of N a step. No error estimate.

    **Arguments:** as `BackwardEuler`; the equation is `y₀ + h N(y₀) + h R(y) - y = 0`.

    ```python
    class Turned(ej.AbstractSplitField):
        def reciprocal(self, t, z, x):
            return x - z

        def nonreciprocal(self, t, z, x):
            return 0.5 * (jnp.roll(z, 1) - jnp.roll(z, -1))


    found = ej.relax(Turned(), start, x, solver=ej.relaxation.IMEXEuler(), step=1.0, steps=8)
    assert jnp.allclose(found.value, x, atol=0.01)
    ```
    """

    root_finder: optx.AbstractRootFinder = NewtonKrylov(rtol=1e-5)
    root_find_max_steps: int = eqx.field(default=32, static=True)

    term_structure: ClassVar = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    interpolation_cls: ClassVar = dfx.LocalLinearInterpolation

    def order(self, terms):
        return 1

    def init(self, terms, t0, t1, y0, args) -> None:
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump) -> Any:
        explicit, implicit = terms.contr(t0, t1)
        force, _ = terms.vf(t0, y0, args)  # the other part is compiled away
        moved = jax.tree.map(lambda a, f: a + explicit.astype(a.dtype) * f, y0, force)

        def increment(y, args):
            _, force = terms.vf(t1, y, args)
            return jax.tree.map(lambda f: implicit.astype(f.dtype) * f, force)

        y1, result = _implicit(self, increment, moved, y0, args)
        return y1, None, {"y0": y0, "y1": y1}, None, result

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


def _implicit(solver, increment, base, guess, args):
    """`y = base + increment(y)`, from `guess`."""

    def gap(y, inputs):
        base, args = inputs
        return jax.tree.map(lambda b, d, a: b + d - a, base, increment(y, args), y)

    solution = optx.root_find(
        gap,
        solver.root_finder,
        guess,
        (base, args),
        adjoint=optx.ImplicitAdjoint(adjoint_solver(guess)),
        max_steps=solver.root_find_max_steps,
        throw=False,
    )
    return solution.value, dfx.RESULTS.promote(solution.result)
