"""`Preconditioned`: GMRES with an approximate inverse of J, by a callable."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from .._checks import check_callable, check_kind
from ..fields import on_complex_vectors
from ..relaxation import GMRES


class _Product(eqx.Module):
    """The operator, behind the approximate inverse."""

    mv: Any


class _Held(eqx.Module):
    operator: Any
    transposed: bool = eqx.field(default=False, static=True)


# Why from the right: the residual that GMRES minimises and judges is then that of the system itself.
class Preconditioned(lx.AbstractLinearSolver):
    """A Lineax solver: `GMRES` on `A M`, with M about the inverse of a Jacobian J (incomplete LU, a multigrid cycle, J at
    another state), for systems with J, with `J - σ`, and with a few rows and columns more, which M leaves as they are.

    **Arguments:**

    - `inverse`: `r -> about J⁻¹ r` on real vectors, flat, `(n,)`; linear, and traceable by JAX (wrap what is not in
      `jax.pure_callback`). One that JAX can transpose serves adjoint systems, too, which else are solved without.
    - `size`: n. `solver`: the `GMRES`; by default to rounding in 240 products.

    ```python
    inverse = lambda r: r / -2  # about that of the Jacobian
    solver = ej.stability.Preconditioned(inverse, 2)  # `continuation(..., linear_solver=solver)`
    ```
    """

    inverse: Callable[[Array], Array]
    size: int = eqx.field(static=True)
    solver: GMRES = GMRES(1e-12, restart=60, max_steps=240)

    def __check_init__(self):
        check_callable("inverse(r)", inverse=self.inverse)
        check_kind(GMRES, "a `GMRES`", solver=self.solver)

    def init(self, operator, options):
        return _Held(self.solver.init(operator, options))

    def compute(self, state, vector, options):
        flat, unravel = ravel_pytree(vector)
        if flat.size < self.size:
            raise ValueError(
                f"`size` is {self.size}, but the system has {flat.size} unknowns only: it is the size of the state."
            )
        approach = on_complex_vectors(self._inverse(state.transposed, flat))
        apply = lambda v: jnp.concatenate([approach(v[: self.size]), v[self.size :]])
        image = lambda v: ravel_pytree(state.operator.mv(unravel(apply(v))))[0]
        value, result, stats = self.solver.compute(_Product(image), flat, {})
        return unravel(apply(value)), result, stats

    def _inverse(self, transposed, like):
        if not transposed:
            return self.inverse
        shape = jax.ShapeDtypeStruct((self.size,), jnp.finfo(like.dtype).dtype)
        try:
            back = jax.linear_transpose(self.inverse, shape)
            jax.eval_shape(back, shape)
        except Exception:  # a callback, say, of which JAX knows no transpose
            return lambda r: r
        return lambda r: back(r)[0]

    def transpose(self, state, options):
        other, options = self.solver.transpose(state.operator, options)
        return _Held(other, not state.transposed), options

    def conj(self, state, options):
        other, options = self.solver.conj(state.operator, options)
        return _Held(other, state.transposed), options

    def assume_full_rank(self):
        return True
