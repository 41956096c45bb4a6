"""Which neurons a spike reaches: a full matrix of weights, or the few targets of each neuron."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ..analytic import for_marked
from ._kuramoto import check_coupling


class SparseWeight(eqx.Module):
    """Weights of a network in which a neuron reaches k others: n k numbers in place of n².

    **Arguments:**

    - `targets (n, k)`: whom neuron j reaches, `targets[j]`; n stands for nobody, where a neuron has fewer than k.
    - `values (n, k)`: what a spike of j does to them, mV.

    **Raises:** `ValueError` on shapes that differ or a target that does not exist.

    ```python
    weight = ej.fields.SparseWeight(targets=jnp.array([[1], [2]]), values=jnp.ones((2, 1)))  # 0 reaches 1, and 1 nobody
    network = ej.fields.SpikingNetwork(ej.fields.LeakyIntegrateAndFire(), weight)
    ```
    """

    targets: Int[Array, "n k"]
    values: Float[Array, "_ _"]

    def __check_init__(self):
        if self.targets.shape != self.values.shape:
            raise ValueError(
                f"`targets` and `values` must have one shape (n, k), got {self.targets.shape} and {self.values.shape}."
            )
        if not isinstance(self.targets, Tracer):
            low, high = np.min(self.targets, initial=0), np.max(self.targets, initial=0)
            if low < 0 or high > len(self.targets):
                raise ValueError(
                    f"`targets` must lie between 0 and n = {len(self.targets)} (which stands for nobody), got {low} to {high}."
                )

    @classmethod
    def from_dense(cls, weight: Float[Array | np.ndarray, "n n"]) -> "SparseWeight":
        """The entries of `weight[i, j]` (from j to i) that are not zero."""
        matrix = np.asarray(weight).T
        check_coupling(matrix, len(matrix))
        k = max(1, int(np.count_nonzero(matrix, axis=1).max(initial=0)))
        order = np.argsort(matrix == 0, axis=1, kind="stable")[:, :k]
        values = np.take_along_axis(matrix, order, axis=1)
        return cls(jnp.asarray(np.where(values == 0, len(matrix), order)), jnp.asarray(values))


Weight = Float[Array, "_ _"] | SparseWeight


def check_weight(weight: Weight, n: int) -> None:
    """`ValueError` for weights that are not between n neurons."""
    if isinstance(weight, SparseWeight):
        if len(weight.targets) != n:
            raise ValueError(f"`weight` has targets for {len(weight.targets)} neurons of {n}.")
    else:
        check_coupling(weight, n)


class Arrivals(eqx.Module):
    """What spikes bring to each of n neurons: `rows[j]`, of j's, to all, or to its `targets[j]`."""

    rows: Float[Array, "n k"]
    targets: Int[Array, "n k"] | None

    def added(self, total: Float[Array, " n"], j: Int[Array, ""]) -> Float[Array, " n"]:
        """`total` with what a spike of neuron j brings."""
        if self.targets is None:
            return total + lax.dynamic_index_in_dim(self.rows, j, keepdims=False)
        return total.at[self.targets[j]].add(self.rows[j], mode="drop")

    def nothing(self) -> Float[Array, " n"]:
        return jnp.zeros(len(self.rows), self.rows.dtype)

    def of_several(self, spiking: Bool[Array, " n"]) -> Float[Array, " n"]:
        """What all spikes bring together.

        Few neurons spike at a time, and a product with the matrix would read all of it. A CPU adds the rows of just those
        who do; for other devices a loop of unknown length is slow, and there is room for a fixed number, beyond which the
        whole is taken.
        """
        one_by_one = lambda who: for_marked(who, lambda j, to: self.added(to, j), self.nothing())
        at_once = lambda who: self._at_once(who)
        return lax.platform_dependent(spiking, cpu=one_by_one, default=at_once)

    def _at_once(self, spiking):
        few = len(self.rows) // 100 + 4
        who = jnp.nonzero(spiking, size=few, fill_value=len(self.rows))[0]
        whole = lambda: self._whole(spiking)
        return lax.cond(jnp.sum(spiking) <= few, lambda: self._gathered(who), whole)

    def _gathered(self, who):
        rows = self.rows.at[who].get(mode="fill", fill_value=0)
        if self.targets is None:
            return jnp.sum(rows, axis=0)
        there = self.targets.at[who].get(mode="fill", fill_value=len(self.rows))
        return self.nothing().at[there].add(rows, mode="drop")

    def _whole(self, spiking):
        if self.targets is None:
            return spiking.astype(self.rows.dtype) @ self.rows
        rows = jnp.where(spiking[:, None], self.rows, jnp.zeros_like(self.rows))
        return self.nothing().at[self.targets].add(rows, mode="drop")


def arrivals(weight: Weight | None) -> Arrivals | None:
    """What the spikes of a network with these weights bring.

    ```python
    arrivals = ej.fields.arrivals(jnp.ones((2, 2)))
    assert ej.fields.arrivals(None) is None
    ```
    """
    if weight is None:
        return None
    if isinstance(weight, SparseWeight):
        return Arrivals(weight.values, weight.targets)
    return Arrivals(weight.T, None)
