"""The adjoint, cut short."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from .._checks import check_count, check_positive
from ..fields import trainable
from ..relaxation import Anderson, Solver
from ._estimate import Accept
from ._response import AbstractAdjointEstimator, Adjoint, Response


class TruncatedAdjoint(AbstractAdjointEstimator):
    """The first terms of the adjoint's Neumann series: `a = ε Σ_{i<k} (I + εJᵀ)^i ∂L/∂z`.

    *Objective: equilibrium*, approximately: the error left is `(I + εJᵀ)^k` times the adjoint. One term at
    ε = 1 is Jacobian-free backpropagation (Fung et al. 2022), k terms at ε = 1 the Neumann-k gradient, and k terms
    at a smaller ε the phantom gradient (Geng et al. 2021, Neumann form with damping ε). It is biased by design, so by
    default a sample is refused only where the series ran away: for an adjoint residual, which the report states, of more
    than 10 (that of no adjoint at all is 1).

    **Arguments:** `terms`: k ≥ 1, products with Jᵀ being k - 1; `damping`: ε; `free`, `free_steps`, `accept`, `trains`: as
    for `AsymEP`.

    ```python
    estimate = ej.TruncatedAdjoint(terms=40, damping=0.5)(model, ej.squared_error, batch)
    assert jnp.allclose(estimate.grads.field.weight, exact, rtol=1e-2, atol=1e-3)
    ```
    """

    free: Solver = Anderson(rtol=1e-5)
    terms: int = eqx.field(default=1, static=True)
    damping: ScalarLike = 1.0
    free_steps: int = 256
    accept: Accept = Accept(adjoint_residual=10.0)
    trains: Callable = trainable

    def __check_init__(self):
        check_count(terms=self.terms)
        check_positive(damping=self.damping)

    def adjoint(self, response: Response) -> Adjoint:
        eps = jnp.asarray(self.damping, response.extent.dtype)
        first = jax.tree.map(lambda p: eps * p, response.pull)

        def term(_, a):
            return jax.tree.map(
                lambda v, jtv, p: v + eps * (jtv + p), a, response.vjp(a), response.pull
            )

        a = jax.lax.fori_loop(1, self.terms, term, first)
        return Adjoint(a, jnp.asarray(self.terms - 1))
