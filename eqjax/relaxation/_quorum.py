"""A batch that does not wait for its slowest samples, as an Optimistix fixed-point solver."""

from collections.abc import Callable
from typing import Any

import optimistix as optx
from equinox import AbstractVar
from jaxtyping import Array, PyTree, ScalarLike

from .._checks import check_number
from ._residual import MeasuresForce


class AbstractAround(optx.AbstractFixedPointSolver):
    """A solver around another, whose tolerance is its own."""

    solver: AbstractVar[Any]

    @property
    def rtol(self) -> ScalarLike:
        return self.solver.rtol

    @property
    def atol(self) -> ScalarLike:
        return self.solver.atol

    @property
    def norm(self) -> Callable[[PyTree], Array]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.norm

    @property
    def scale(self) -> ScalarLike | None:
        return self.solver.scale  # pyright: ignore[reportAttributeAccessIssue]


class Quorum(AbstractAround):
    """`solver`, whose batch (`jax.vmap`) ends when a fraction of it has settled, or given up: stragglers are left behind.

    One hard sample can cost a batch many times its median. The samples left behind return what they have, with
    `RESULTS.nonlinear_max_steps_reached`: an estimator does not accept them, and they weigh nothing in its gradient.
    Whether that is sound is for the training to show, since it is the hard samples that are left out. Which they are
    depends on the batch. Alone, a sample goes to its end.

    **Arguments:** `solver`: an `Anderson`, `Broyden`, `Picard` or `TimeStepping`; `settled`: the fraction, in (0, 1].

    **Raises:** `ValueError` for another solver or fraction.

    ```python
    solver = ej.relaxation.Quorum(ej.Anderson(rtol=1e-5), settled=0.9)
    settle = lambda z: ej.equilibrium(field, z, x, solver=solver, throw=False).residual
    assert jax.vmap(settle)(jnp.zeros((2, 4))).shape == (2,)
    ```
    """

    solver: optx.AbstractFixedPointSolver
    settled: ScalarLike = 0.95

    def __check_init__(self):
        fixed_point = isinstance(self.solver, optx.AbstractFixedPointSolver)
        if not (fixed_point and isinstance(self.solver, MeasuresForce)):
            raise ValueError(
                f"`solver` must be a fixed-point solver that measures the force, such as `Anderson`, got {self.solver!r}."
            )
        check_number("lie in (0, 1]", lambda v: 0 < v <= 1, settled=self.settled)

    def init(self, *args, **kwargs):
        return self.solver.init(*args, **kwargs)

    def step(self, *args, **kwargs):
        return self.solver.step(*args, **kwargs)

    def terminate(self, *args, **kwargs):
        return self.solver.terminate(*args, **kwargs)

    def postprocess(self, *args, **kwargs):
        return self.solver.postprocess(*args, **kwargs)
