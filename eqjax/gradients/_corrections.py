"""How AsymEP comes by its correction: the action of J - Jᵀ on a displacement."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray, PyTree, ScalarLike

from .._checks import check_count, check_positive, given
from ..analytic import matmul
from ._estimate import needed_key
from ._response import Response


class AbstractCorrection(eqx.Module):
    """Gives, for one sample, the displacement `(J - Jᵀ) v` of any displacement v."""

    @abc.abstractmethod
    def prepare(self, response: Response, key: Any) -> PyTree:
        """What is measured once, at the free state, before the nudged phases."""

    @abc.abstractmethod
    def apply(self, measured: PyTree, response: Response, v: PyTree[Array]) -> PyTree[Array]:
        """`(J - Jᵀ) v`."""

    @abc.abstractmethod
    def cost(self, size: int) -> tuple[int, int]:
        """Evaluations of F and products that `prepare` and `apply` take, for a state of that size."""

    def check(self, key: PRNGKeyArray | None) -> None:
        """Refuse a missing key."""


class ExactCorrection(AbstractCorrection):
    """One product with J and one with Jᵀ: exact, and as non-local as automatic differentiation.

    ```python
    estimator = ej.AsymEP(correction=ej.gradients.ExactCorrection())  # the default
    ```
    """

    def prepare(self, response, key):
        return None

    def apply(self, measured, response, v):
        return jax.tree.map(jnp.subtract, response.jvp(v), response.vjp(v))

    def cost(self, size):
        return 0, 2


class NoCorrection(AbstractCorrection):
    """None: vector-field equilibrium propagation, right only where J is symmetric.

    ```python
    estimator = ej.AsymEP(correction=ej.gradients.NoCorrection())  # `VectorFieldEP`, in other words
    ```
    """

    def prepare(self, response, key):
        return None

    def apply(self, measured, response, v):
        return jax.tree.map(jnp.zeros_like, v)

    def cost(self, size):
        return 0, 0


class ProbeCorrection(AbstractCorrection):
    """From forward perturbations only, which is what hardware can measure.

    Push the free state by ±h along random orthonormal directions qₖ and read the forces:
    `rₖ = (F(z* + h qₖ) - F(z* - h qₖ))/2h ≈ J qₖ`. Then `(n/K) Σₖ (rₖ qₖᵀ - qₖ rₖᵀ)` is an unbiased estimate of
    J - Jᵀ up to O(h²), exactly antisymmetric, and exact with `K = n` probes. Being antisymmetric it never
    changes the symmetric part of the nudged Jacobian: what contracted still contracts. The settled adjoint
    depends on it through an inverse, so fewer probes give a spread and, at second order, a bias.

    **Arguments:** `probes`: K, at most the state's size n (None: all n); `radius`: h relative to `max(‖z*‖, 1)`,
    by default the cube root of the rounding unit.

    ```python
    estimator = ej.AsymEP(correction=ej.gradients.ProbeCorrection(probes=4))  # called with a `key`
    ```
    """

    probes: int | None = eqx.field(default=None, static=True)
    radius: ScalarLike | None = None

    def __check_init__(self):
        check_count(**given(probes=self.probes))
        check_positive(**given(radius=self.radius))

    def check(self, key):
        needed_key(key, "`ProbeCorrection`")

    def _count(self, size):
        count = size if self.probes is None else self.probes
        if count > size:
            raise ValueError(
                f"`probes` is {count}, but the state has only {size} dimensions: at most that many are of use."
            )
        return count

    def prepare(self, response, key):
        z, unravel = ravel_pytree(response.z)
        count = self._count(z.size)
        relative = float(jnp.finfo(z.dtype).eps) ** (1 / 3) if self.radius is None else self.radius
        h = jnp.asarray(relative, z.dtype) * response.extent
        frame, _ = jnp.linalg.qr(jax.random.normal(key, (z.size, count), z.dtype))

        def forces(step):
            return jax.vmap(lambda q: ravel_pytree(response.force(unravel(z + step * q)))[0])(
                frame.T
            )

        return frame, (forces(h) - forces(-h)) / (2 * h)

    def apply(self, measured, response, v):
        frame, images = measured
        flat, unravel = ravel_pytree(v)
        along, across = matmul(flat[None], frame), matmul(flat[None], images.T)
        gain = flat.size / frame.shape[1]
        return unravel(gain * (matmul(along, images) - matmul(across, frame.T))[0])

    def cost(self, size):
        return 2 * self._count(size), 0
