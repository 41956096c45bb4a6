"""Where on the nudge axis the phases settle, and how they are averaged."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ScalarLike

from .._checks import check_count


class AbstractStencil(eqx.Module):
    """Phases settle at nudges `β sₖ`; with `aₖ = (z* - zₖ)/(β sₖ)` the contrast is `Σₖ wₖ aₖ`, in error O(β^order)."""

    @property
    @abc.abstractmethod
    def order(self) -> int:
        """The power of β in the error."""

    @abc.abstractmethod
    def nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes `s` (of modulus at most 1) and weights `w` (which sum to 1), each `(phases,)`."""


class OneSided(AbstractStencil):
    """One nudged phase, at β: half the cost of two, error O(β).

    ```python
    estimator = ej.AsymEP(nudged=ej.Nudge(stencil=ej.gradients.OneSided()))
    assert estimator.nudged.stencil == ej.gradients.OneSided()
    ```
    """

    @property
    def order(self):
        return 1

    def nodes(self):
        return np.ones(1), np.ones(1)


class Central(AbstractStencil):
    """`2·pairs` real phases at `±β j/pairs`, error O(β^(2·pairs)) by Richardson extrapolation; one pair is the
    symmetric contrast `(z₋ - z₊)/(2β)`.

    ```python
    estimator = ej.AsymEP(nudged=ej.Nudge(stencil=ej.gradients.Central(pairs=2)))  # four phases
    assert estimator.nudged.stencil.pairs == 2
    ```
    """

    pairs: int = eqx.field(default=1, static=True)

    def __check_init__(self):
        check_count(pairs=self.pairs)

    @property
    def order(self):
        return 2 * self.pairs

    def nodes(self):
        positive = np.arange(1, self.pairs + 1) / self.pairs
        # Even powers of s below the order must vanish: Σ w s^(2i) = [i = 0].
        powers = positive ** (2 * np.arange(self.pairs)[:, None])
        weights = np.linalg.solve(powers, np.eye(self.pairs)[0])
        return np.concatenate([positive, -positive]), np.tile(weights / 2, 2)


class RootsOfUnity(AbstractStencil):
    """`points` complex phases at `β e^(2πik/N)`: Cauchy's integral by the trapezoidal rule, error O(β^N) inside the
    radius of analyticity (Laborieux & Zenke 2022). Two points are the symmetric contrast.

    ```python
    assert ej.gradients.RootsOfUnity(points=4).points == 4
    ```
    """

    points: int = eqx.field(default=4, static=True)

    def __check_init__(self):
        check_count(0, points=self.points)
        if self.points < 2:
            raise ValueError(
                f"`points` must be at least 2, got {self.points}. For one phase take `AsymEP(nudged=Nudge(stencil=OneSided()))`."
            )

    @property
    def order(self):
        return self.points

    def nodes(self):
        nodes = np.exp(2j * np.pi * np.arange(self.points) / self.points)
        return nodes, np.full(self.points, 1 / self.points)


def relative_radius(radius: ScalarLike | None, order: int, dtype: DTypeLike) -> Array:
    """How far a nudge displaces the state, relative to its norm: `radius`, or by default a fifth of where rounding,
    ∝ 1/β, meets a stencil's own error, ∝ β^order."""
    default = 0.2 * float(jnp.finfo(dtype).eps) ** (1 / (order + 1))
    return jnp.asarray(default if radius is None else radius, dtype)
