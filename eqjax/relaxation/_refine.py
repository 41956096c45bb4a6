"""Iterative refinement: settle coarsely, then finely."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ScalarLike

from .._checks import check_kind, check_precision, check_tolerance
from ._fallback import with_tolerance
from ._residual import Solver


class Refine(eqx.Module):
    """Mixed precision for `equilibrium(..., precision=Refine(...))`, in the manner of iterative refinement.

    The field first settles with matrix products in a coarse, fast precision to the residual `rtol`, then, from
    there, at "highest" to the tolerance of the solver. A fixed point of the coarse field is off by about the
    floor of its precision, so the coarse phase should end there and not below: a solver that may ask for less
    than the floor spends its patience. Where the coarse phase fails, the fine one starts at its best state, or
    at `z0` if that is not finite.

    **Arguments:**

    - `coarse`: a precision of `jax.default_matmul_precision`, such as "bfloat16" or "tensorfloat32".
    - `rtol`: force residual at which the coarse phase ends; never below the `rtol` of the solver.

    Worth it only where the coarse products are faster. CPUs ignore the request (measured: the same products to
    the last bit for "bfloat16", "tensorfloat32" and "highest"), so there it costs a few evaluations and gains
    nothing. `benchmarks/precision.py` measures floors and times of a device.

    ```python
    found = ej.equilibrium(field, start, x, precision=ej.relaxation.Refine(rtol=1e-2))
    assert found.stats["coarse_evaluations"] < found.stats["field_evaluations"]
    ```
    """

    coarse: str = eqx.field(default="bfloat16", static=True)
    rtol: ScalarLike = 1e-2

    def __check_init__(self):
        check_kind(str, "the name of a precision, such as 'bfloat16'", coarse=self.coarse)
        check_precision(coarse=self.coarse)
        check_tolerance(self.rtol, 0.0)


def loosened(solver: Solver, rtol: ScalarLike) -> Solver:
    """`solver` with its relative tolerance raised to `rtol`."""

    def larger(own, atol):
        numbers = isinstance(rtol, (int, float)) and isinstance(own, (int, float))
        return (max(rtol, own) if numbers else jnp.maximum(rtol, own)), atol  # pyright: ignore

    return with_tolerance(solver, larger)
