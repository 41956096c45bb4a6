"""Hopfield networks: binary neurons with three ways to learn, and neurons of graded response."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Inexact, Int, PRNGKeyArray

from .. import analytic
from .._checks import check_array, check_arrays, check_count, check_key, check_positive, given
from ._associative import LogCosh
from ._base import AbstractForceField, hyperparameter, scalar


def hebb(patterns: Float[Array, "p n"]) -> Float[Array, "n n"]:
    """Hebb's rule, `W = Ξᵀ Ξ / n` without its diagonal (Hopfield 1982).

    Random patterns are recalled up to a load p/n of about .138, and correlated ones hardly at all.

    **Arguments:** `patterns` `(p, n)`, each entry -1 or +1, else `ValueError`. **Returns:** the weight `(n, n)`.

    ```python
    assert ej.fields.hebb(stored).shape == (4, 4)
    ```
    """
    patterns = _checked_patterns(patterns)
    return _hollow(patterns.T @ patterns) / patterns.shape[1]


def storkey(patterns: Float[Array, "p n"]) -> Float[Array, "n n"]:
    """Storkey's rule: local and incremental like Hebb's, with a larger capacity (Storkey 1997),

    `ΔW_ij = (ξ_i ξ_j - ξ_i h_ji - h_ij ξ_j) / n`, `h_ij = Σ_{k ≠ i, j} W_ik ξ_k`, for one pattern after the other.

    **Arguments, returns:** as `hebb`.

    ```python
    assert ej.fields.storkey(stored).shape == (4, 4)
    ```
    """
    patterns = _checked_patterns(patterns)
    n = patterns.shape[1]

    def learn(weight, pattern):
        h = (weight @ pattern)[:, None] - weight * pattern[None]  # the diagonal is zero
        cross = h * pattern[None]
        outer = pattern[:, None] * pattern[None]
        return weight + _hollow(outer - cross - cross.T) / n, None

    return lax.scan(learn, jnp.zeros((n, n), patterns.dtype), patterns)[0]


def pseudo_inverse(patterns: Float[Array, "p n"]) -> Float[Array, "n n"]:
    """The projection rule `W = Ξ⁺ Ξ` without its diagonal (Personnaz, Guyon & Dreyfus 1986).

    Every pattern, correlated or not, is a fixed point up to p = n - 1, though its basin shrinks on the way.

    **Arguments, returns:** as `hebb`.

    ```python
    assert jnp.all(jnp.diagonal(ej.fields.pseudo_inverse(stored)) == 0)
    ```
    """
    patterns = _checked_patterns(patterns)
    projection = jnp.linalg.pinv(patterns) @ patterns
    return _hollow(0.5 * (projection + projection.T))


class BinaryHopfield(eqx.Module):
    """Neurons s_i = ±1 that follow the sign of their field `W s - θ`, and stay as they are where it is zero.

    Its energy `-½ sᵀ W s + θᵀ s` never rises when one neuron at a time is updated (Hopfield 1982).

    **Arguments:** `weight (n, n)`: symmetric, with no negative diagonal entry; `threshold (n,)`: θ, zero by default.

    **Raises:** `ValueError` if the weight is not square, not symmetric, or has a negative diagonal entry.

    ```python
    network = ej.fields.BinaryHopfield(ej.fields.hebb(stored))
    assert ej.fields.recall(network, stored[0], key=key).state.tolist() == stored[0].tolist()
    ```
    """

    weight: Float[Array, "_ _"]
    threshold: Float[Array, " n"]

    def __init__(self, weight: Float[Array, "_ _"], threshold: Float[Array, " n"] | None = None):
        _check_symmetric(weight)
        if not isinstance(weight, Tracer) and np.any(np.diagonal(weight) < 0):
            raise ValueError(
                "`weight` has negative self-couplings, with which the energy can rise. Set its diagonal to zero."
            )
        self.weight = weight
        self.threshold = _bias("threshold", threshold, weight)

    def local_field(self, s: Float[Array, " n"]) -> Float[Array, " n"]:
        """`W s - θ`."""
        return self.weight @ s - self.threshold

    def energy(self, s: Float[Array, " n"]) -> Float[Array, ""]:
        """`-½ sᵀ W s + θᵀ s`."""
        return -0.5 * s @ (self.weight @ s) + self.threshold @ s


class AbstractOrder(eqx.Module):
    """In which order the neurons of a `BinaryHopfield` are updated."""

    random: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def sweep(self, network: BinaryHopfield, s: Array, key: Any) -> Array:
        """The state after every neuron has been updated once."""


class Asynchronous(AbstractOrder):
    """One neuron at a time, in a new random order in every sweep: the energy never rises.

    ```python
    order = ej.fields.Asynchronous()
    assert ej.fields.recall(network, stored[0], order=order, key=key).fixed
    ```
    """

    random: ClassVar[bool] = True

    def sweep(self, network, s, key):
        def update(carry, i):
            s, field = carry
            new = _follow(field[i], s[i])
            return (s.at[i].set(new), field + (new - s[i]) * network.weight[i]), None

        order = jax.random.permutation(key, s.size)
        return lax.scan(update, (s, network.local_field(s)), order)[0][0]


class Synchronous(AbstractOrder):
    """All neurons at once, which may end in a cycle of two states.

    ```python
    order = ej.fields.Synchronous()
    assert ej.fields.recall(network, stored[0], order=order).fixed
    ```
    """

    random: ClassVar[bool] = False

    def sweep(self, network, s, key):
        return _follow(network.local_field(s), s)


class Recall(eqx.Module):
    """What `recall` returns: the last `state (n,)`, whether it is a fixed point, and how many `sweeps` were made."""

    state: Float[Array, " n"]
    fixed: Bool[Array, ""]
    sweeps: Int[Array, ""]


def recall(
    network: BinaryHopfield,
    cue: Float[Array, " n"],
    *,
    order: AbstractOrder = Asynchronous(),
    max_sweeps: int = 100,
    key: PRNGKeyArray | None = None,
) -> Recall:
    """Update the neurons until nothing changes, for one cue (`jax.vmap` for a batch).

    **Arguments:**

    - `network`: a `BinaryHopfield`. `cue (n,)`: the first state, each entry -1 or +1.
    - `order`: `Asynchronous()` (needs `key`) or `Synchronous()`.
    - `max_sweeps`: at most so many updates of every neuron.

    **Returns:** a `Recall`; a synchronous cycle ends with `fixed` false.

    **Raises:** `ValueError` on other entries, on a missing key, and on `max_sweeps` below 1.

    ```python
    cue = stored[0].at[0].multiply(-1.0)
    found = ej.fields.recall(network, cue, key=key)
    assert found.fixed
    ```
    """
    if order.random and key is None:
        raise ValueError(
            f"`{type(order).__name__}` draws random orders: give `key=jax.random.key(...)`."
        )
    check_count(max_sweeps=max_sweeps)
    check_key(**given(key=key))
    check_array(np.floating, 1, "a state of every neuron, (n,)", cue=cue)
    if cue.shape != network.threshold.shape:
        raise ValueError(
            f"`cue` must have one entry for each of the {network.threshold.size} neurons, got the shape {cue.shape}."
        )
    cue = _checked_signs("cue", cue)

    def body(carry):
        s, _, sweeps = carry
        new = order.sweep(network, s, None if key is None else jax.random.fold_in(key, sweeps))
        return new, jnp.all(new == s), sweeps + 1

    start = (cue, jnp.asarray(False), jnp.asarray(0))
    return Recall(*lax.while_loop(lambda carry: ~carry[1] & (carry[2] < max_sweeps), body, start))


class ContinuousHopfield(AbstractForceField):
    """Neurons of graded response (Hopfield 1984): `τ u̇ = W g(u) + b + x - u`, with `g = ∂L/∂u`, and the energy

    `Σ g (u - b - x) - L - ½ gᵀ W g`, which never rises while L is convex.

    Only the symmetric part of the weight acts, so training keeps the energy. As in `AssociativeMemory`, the Jacobian
    is symmetric only where g is linear: `EnergyEP` or `AsymEP` gives the gradient.

    **Arguments:** `weight`: W `(n, n)`, symmetric; `bias`: b `(n,)`, zero by default; `lagrangian`: L, a callable
    `(n,) -> ()`, by default that of tanh (its `beta` is the gain); `time`: τ > 0. The input x is a current: an array
    (n,) or a scalar.

    **Raises:** `ValueError` if the weight is not square or not symmetric, or τ is not above 0.

    ```python
    network = ej.fields.ContinuousHopfield(ej.fields.hebb(stored))
    assert network.energy(start, 0.0) == 0
    ```
    """

    weight: Float[Array, "_ _"]
    bias: Float[Array, " n"]
    lagrangian: Callable[[Any], Any]
    time: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        weight: Float[Array, "_ _"],
        bias: Float[Array, " n"] | None = None,
        *,
        lagrangian: Callable[[Any], Any] | None = None,
        time: float = 1.0,
    ):
        _check_symmetric(weight)
        check_positive(time=time)
        self.weight, self.bias = weight, _bias("bias", bias, weight)
        self.lagrangian = LogCosh() if lagrangian is None else lagrangian
        self.time = scalar(time)

    def coupling(self) -> Float[Array, "n n"]:
        """The part of the weight that acts."""
        return 0.5 * (self.weight + self.weight.T)

    def activation(self, u: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        """`g(u)`, the outputs of the neurons."""
        return jax.grad(self.lagrangian, holomorphic=jnp.iscomplexobj(u))(u)

    def __call__(self, t: Any, z: Inexact[Array, " n"], x: Any) -> Inexact[Array, " n"]:
        driven = analytic.matmul(self.activation(z), self.coupling()) - z
        return analytic.scale(analytic.shift(driven, self.bias + x), 1 / self.time)

    def energy(self, z: Inexact[Array, " n"], x: Any) -> Inexact[Array, ""]:
        """The energy of a state under input x."""
        g = self.activation(z)
        held = analytic.shift(z - 0.5 * analytic.matmul(g, self.coupling()), -(self.bias + x))
        return jnp.sum(g * held) - self.lagrangian(z)


def _follow(field: Array, s: Array) -> Array:
    return jnp.where(field == 0, s, jnp.sign(field))


def _hollow(matrix: Array) -> Array:
    return jnp.where(jnp.eye(matrix.shape[0], dtype=bool), jnp.zeros_like(matrix), matrix)


def _bias(name: str, value: Array | None, weight: Array) -> Array:
    if value is None:
        return jnp.zeros(weight.shape[0], weight.dtype)
    if value.shape != weight.shape[:1]:
        raise ValueError(
            f"`{name}` must have the shape {weight.shape[:1]}, one value a neuron, got {value.shape}."
        )
    return value


def _checked_patterns(patterns: Any) -> Array:
    check_array(np.floating, 2, "one pattern a row, (p, n)", patterns=patterns)
    return _checked_signs("patterns", patterns)


def _checked_signs(name: str, value: Array) -> Array:
    check_arrays(**{name: value})
    message = f"`{name}` must hold only -1 and +1. Turn bits {{0, 1}} into `2 * bits - 1`."
    if isinstance(value, Tracer):
        return eqx.error_if(value, jnp.any(jnp.abs(value) != 1), message)
    strange = np.asarray(value)[np.abs(value) != 1]
    if strange.size:
        raise ValueError(f"{message} Got {strange[0]}, for one.")
    return value


def _check_symmetric(weight: Array) -> None:
    check_array(np.floating, 2, "a square matrix, (n, n)", weight=weight)
    if weight.shape[0] != weight.shape[1]:
        raise ValueError(f"`weight` must be square, (n, n), got the shape {weight.shape}.")
    if isinstance(weight, Tracer):
        return
    known = np.asarray(weight)
    gap = np.max(np.abs(known - known.T), initial=0.0)
    if not gap <= 100 * np.finfo(known.dtype).eps * np.max(np.abs(known), initial=0.0):
        raise ValueError(
            f"`weight` must be symmetric, or there is no energy; it differs from its transpose by {gap:.3g}. Give "
            "`(W + W.T) / 2`, or use a `RecurrentField`."
        )
