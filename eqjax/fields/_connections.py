"""Which neurons a spike reaches: a full matrix of weights, or the few targets of each neuron."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ._kuramoto import check_coupling


class SparseWeight(eqx.Module):
    """Weights of a network in which a neuron reaches k others: n k numbers in place of n².

    **Arguments:**

    - `targets (n, k)`: whom neuron j reaches, `targets[j]`; n stands for nobody, where a neuron has fewer than k.
    - `values (n, k)`: what a spike of j does to them, mV.

    **Raises:** `ValueError` on shapes that differ or a target that does not exist.
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


def of_one(weight: Weight, n: int) -> Callable[[Int[Array, ""]], Float[Array, " n"]]:
    """A function of j: what a spike of neuron j brings to each of n neurons."""
    if isinstance(weight, SparseWeight):
        nothing = jnp.zeros(n, weight.values.dtype)
        return lambda j: nothing.at[weight.targets[j]].add(weight.values[j], mode="drop")
    return lambda j: weight[:, j]


def of_several(weight: Weight, n: int) -> Callable[[Bool[Array, " n"]], Float[Array, " n"]]:
    """A function of who spikes: what their spikes bring to each of n neurons.

    Few do at a time, and a product with the matrix would read all of it. A CPU adds the rows of just those who do; for
    other devices a loop of unknown length is slow, and there is room for a fixed number, beyond which the whole is taken.
    """
    if isinstance(weight, SparseWeight):
        targets, rows = weight.targets, weight.values
        nothing = jnp.zeros(n, rows.dtype)
        add = lambda total, j: total.at[targets[j]].add(rows[j], mode="drop")

        def gathered(js):
            there = targets.at[js].get(mode="fill", fill_value=n)
            return nothing.at[there].add(rows.at[js].get(mode="fill", fill_value=0), mode="drop")

        whole = lambda spiking: nothing.at[targets].add(
            jnp.where(spiking[:, None], rows, jnp.zeros_like(rows)), mode="drop"
        )
    else:
        rows = weight.T
        nothing = jnp.zeros(n, rows.dtype)
        add = lambda total, j: total + lax.dynamic_index_in_dim(rows, j, keepdims=False)
        gathered = lambda js: jnp.sum(rows.at[js].get(mode="fill", fill_value=0), axis=0)
        whole = lambda spiking: spiking.astype(rows.dtype) @ rows
    few = n // 100 + 4

    def one_by_one(spiking):
        order = jnp.where(spiking, jnp.cumsum(spiking) - 1, n)
        who = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n), mode="drop")
        return lax.fori_loop(0, jnp.sum(spiking), lambda i, total: add(total, who[i]), nothing)

    def at_once(spiking):
        who = jnp.nonzero(spiking, size=few, fill_value=n)[0]
        return lax.cond(jnp.sum(spiking) <= few, lambda: gathered(who), lambda: whole(spiking))

    return lambda spiking: lax.platform_dependent(spiking, cpu=one_by_one, default=at_once)
