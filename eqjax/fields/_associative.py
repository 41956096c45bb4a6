"""Associative memories in the Lagrangian form (Krotov & Hopfield 2021)."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from .. import analytic
from .._checks import check_array, check_count, check_positive
from ._base import AbstractForceField, hyperparameter, scalar


class Quadratic(eqx.Module):
    """`½ Σ z²`: linear neurons.

    ```python
    assert ej.fields.Quadratic()(x) == 2
    ```
    """

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        return 0.5 * jnp.sum(z * z)


class Softmax(eqx.Module):
    """`(1/β) log Σ exp(β z)`: the activation is `softmax(β z)`.

    ```python
    assert jnp.isclose(ej.fields.Softmax()(start), jnp.log(4.0))
    ```
    """

    beta: Float[Array, ""] = hyperparameter(default=1.0)

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        return analytic.scale(analytic.logsumexp(analytic.scale(z, self.beta)), 1 / self.beta)


class Polynomial(eqx.Module):
    """`Σ relu(z)^n / n`, n ≥ 2: the activation is `relu(z)^(n-1)`; n = 2 is the rectified linear unit.

    ```python
    assert ej.fields.Polynomial(2)(-x) == 0 < ej.fields.Polynomial(2)(x)
    ```
    """

    power: int = eqx.field(default=2, static=True)

    def __check_init__(self):
        check_count(2, power=self.power)

    def __call__(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.sum(jax.nn.relu(z) ** self.power) / self.power


class Spherical(eqx.Module):
    """`√n · √(Σ (z - mean)² + n ε)`: the activation is a layer norm without gain.

    ```python
    assert jnp.isclose(ej.fields.Spherical()(x), 4 * 1e-5**0.5)  # nothing is left but ε
    ```
    """

    eps: float = eqx.field(default=1e-5, static=True)

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        centred = z - jnp.mean(z)
        return z.size**0.5 * jnp.sqrt(jnp.sum(centred * centred) + z.size * self.eps)


class LogCosh(eqx.Module):
    """`(1/β) Σ log cosh β z`: the activation is tanh(β z).

    ```python
    assert ej.fields.LogCosh()(start) == 0
    ```
    """

    beta: Float[Array, ""] = hyperparameter(default=1.0)

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        z = analytic.scale(z, self.beta)
        smooth = jnp.sum(analytic.softplus(2 * z) - z - math.log(2))
        return analytic.scale(smooth, 1 / self.beta)


class AssociativeMemory(AbstractForceField):
    """Visible neurons v and memory neurons h, each kind with a Lagrangian, coupled by patterns ξ:

    `τ_v v̇ = ξᵀ f + a + x - v`, `τ_h ḣ = ξ g + b - h`, with `g = ∂L_v/∂v` and `f = ∂L_h/∂h`,

    and the energy `Σ g (v - a - x) - L_v + Σ f (h - b) - L_h - fᵀ ξ g`, which never rises while the Lagrangians are
    convex. The state is the pair (v, h), the input x a current into v (an array (n,) or a scalar).

    The force is `-M(z) ∂E/∂z`, M of the Lagrangians' inverse Hessians: there is an energy but the Jacobian is not
    symmetric, so `EnergyEP` or `AsymEP` gives the gradient and `VectorFieldEP` does not.

    **Arguments:** `patterns`: ξ `(m, n)`; `visible`, `hidden`: Lagrangians, callables `(n,) -> ()`, by default
    `Quadratic()` and `Softmax()`; `visible_bias`: a,
    `hidden_bias`: b, zero by default; `visible_time`, `hidden_time`: τ > 0, in units of the field's time, which training
    leaves alone.

    ```python
    memory = ej.fields.AssociativeMemory(patterns, hidden=ej.fields.Softmax(jnp.asarray(10.0)))
    v, h = memory(0.0, (two, two), 0.0)
    assert v.shape == (2,) and h.shape == (2,)
    ```
    """

    visible: Callable[[Any], Any]
    hidden: Callable[[Any], Any]
    patterns: Float[Array, "m n"]
    visible_bias: Float[Array, " n"]
    hidden_bias: Float[Array, " m"]
    visible_time: Float[Array, ""] = hyperparameter()
    hidden_time: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        patterns: Float[Array, "m n"],
        *,
        visible: Callable[[Any], Any] | None = None,
        hidden: Callable[[Any], Any] | None = None,
        visible_bias: Float[Array, " n"] | None = None,
        hidden_bias: Float[Array, " m"] | None = None,
        visible_time: float = 1.0,
        hidden_time: float = 1.0,
    ):
        check_positive(visible_time=visible_time, hidden_time=hidden_time)
        check_array(np.floating, 2, "one memory a row, (m, n)", patterns=patterns)
        m, n = patterns.shape
        self.patterns = patterns
        self.visible = Quadratic() if visible is None else visible
        self.hidden = Softmax() if hidden is None else hidden
        zeros = lambda size: jnp.zeros(size, patterns.dtype)
        self.visible_bias = zeros(n) if visible_bias is None else visible_bias
        self.hidden_bias = zeros(m) if hidden_bias is None else hidden_bias
        self.visible_time, self.hidden_time = scalar(visible_time), scalar(hidden_time)

    def activations(self, z: PyTree[Array]) -> tuple[Array, Array]:
        """`(g, f)`, the gradients of the Lagrangians."""
        return tuple(
            jax.grad(lagrangian, holomorphic=jnp.iscomplexobj(part))(part)
            for lagrangian, part in zip((self.visible, self.hidden), z, strict=True)
        )

    def __call__(self, t: Any, z: PyTree[Array], x: PyTree) -> PyTree[Array]:
        v, h = z
        g, f = self.activations(z)
        force_v = analytic.shift(analytic.matmul(f, self.patterns) - v, self.visible_bias + x)
        force_h = analytic.shift(analytic.matmul(g, self.patterns.T) - h, self.hidden_bias)
        return (
            analytic.scale(force_v, 1 / self.visible_time),
            analytic.scale(force_h, 1 / self.hidden_time),
        )

    def energy(self, z: PyTree[Array], x: PyTree) -> Inexact[Array, ""]:
        """The energy of a state under input x, by Legendre transform of the Lagrangians."""
        v, h = z
        g, f = self.activations(z)
        at_v = jnp.sum(g * analytic.shift(v, -(self.visible_bias + x))) - self.visible(v)
        at_h = jnp.sum(f * analytic.shift(h, -self.hidden_bias)) - self.hidden(h)
        return at_v + at_h - jnp.sum(f * analytic.matmul(g, self.patterns.T))

    def adiabatic(self) -> "AdiabaticMemory":
        """The dynamics of the visible neurons alone, in the limit τ_h → 0."""
        return AdiabaticMemory(self)


class AdiabaticMemory(AbstractForceField):
    """An `AssociativeMemory` whose hidden neurons follow at once, `h = ξ g + b`:

    `τ_v v̇ = ξᵀ f(ξ g + b) + a + x - v`, with the energy `Σ g (v - a - x) - L_v - L_h(ξ g + b)`.

    The state is v alone. With linear visible neurons, a softmax and `b = -½ Σ_i ξ²` this is gradient descent on
    `-(1/β) log Σ_μ exp(-(β/2) Σ_i (ξ_μi - v_i)²)`.

    **Arguments:** `memory`: the network; its `hidden_time` is ignored.

    ```python
    memory = ej.fields.AdiabaticMemory(ej.fields.pattern_memory(patterns))
    assert jnp.linalg.norm(memory(0.0, patterns[0], 0.0)) < 1e-2  # it rests at what it stores
    ```
    """

    memory: AssociativeMemory

    def complete(self, v: Inexact[Array, " n"]) -> tuple[Array, Array]:
        """`(v, h)`: the state of the whole network."""
        memory = self.memory
        g = jax.grad(memory.visible, holomorphic=jnp.iscomplexobj(v))(v)
        return v, analytic.shift(analytic.matmul(g, memory.patterns.T), memory.hidden_bias)

    def __call__(self, t: Any, z: Inexact[Array, " n"], x: PyTree) -> Inexact[Array, " n"]:
        return self.memory(t, self.complete(z), x)[0]

    def energy(self, z: Inexact[Array, " n"], x: PyTree) -> Inexact[Array, ""]:
        """The energy of a state under input x."""
        return self.memory.energy(self.complete(z), x)


class ClampedMemory(AbstractForceField):
    """An `AssociativeMemory` some of whose visible neurons are held: `x` is what they are held at.

    The state is `(v, h)` with v the free visible neurons only, so that it has proper equilibria and gradients.

    **Arguments:** `memory`: the network; `clamped`: indices of the held visible neurons, each once.

    **Raises:** `ValueError` if an index is out of range or given twice, or none is left free.

    ```python
    memory = ej.fields.ClampedMemory(ej.fields.pattern_memory(patterns), clamped=(0,))
    assert memory.free == (1,)
    ```
    """

    memory: AssociativeMemory
    clamped: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        n = self.memory.patterns.shape[1]
        proper = all(0 <= i < n for i in self.clamped)
        if not proper or len(set(self.clamped)) != len(self.clamped) or len(self.clamped) == n:
            raise ValueError(
                f"`clamped` must name visible neurons among 0 … {n - 1}, each once and not all, got {self.clamped}."
            )

    @property
    def free(self) -> tuple[int, ...]:
        """Indices of the free visible neurons."""
        return tuple(i for i in range(self.memory.patterns.shape[1]) if i not in self.clamped)

    def complete(self, z: PyTree[Array], x: Inexact[Array, " k"]) -> tuple[Array, Array]:
        """`(v, h)` of the whole network."""
        v, h = z
        both = jnp.zeros(v.size + len(self.clamped), v.dtype).at[jnp.array(self.free)].set(v)
        return both.at[jnp.array(self.clamped, int)].set(x.astype(v.dtype)), h

    def __call__(self, t: Any, z: PyTree[Array], x: Inexact[Array, " k"]) -> PyTree[Array]:
        force_v, force_h = self.memory(t, self.complete(z, x), 0.0)
        return force_v[jnp.array(self.free)], force_h

    def energy(self, z: PyTree[Array], x: Inexact[Array, " k"]) -> Inexact[Array, ""]:
        """The energy of a state with the clamped neurons at x."""
        return self.memory.energy(self.complete(z, x), 0.0)


def pattern_memory(
    patterns: Float[Array, "m n"],
    *,
    beta: float = 10.0,
    visible_time: float = 1.0,
    hidden_time: float = 0.1,
) -> AssociativeMemory:
    """The memory that goes to the nearest pattern: linear visible neurons, a softmax of sharpness β over the patterns,
    and the bias `b = -½ Σ_i ξ²`, with which the softmax compares distances.

    **Arguments:** `patterns`: ξ `(m, n)`; `beta`: β > 0; the times as in `AssociativeMemory`.

    ```python
    memory = ej.fields.pattern_memory(patterns, beta=10.0)
    assert jnp.all(memory.hidden_bias == -0.5)
    ```
    """
    check_positive(beta=beta)
    return AssociativeMemory(
        patterns,
        hidden=Softmax(scalar(beta)),
        hidden_bias=-0.5 * jnp.sum(patterns * patterns, axis=1),
        visible_time=visible_time,
        hidden_time=hidden_time,
    )


def xor_memory(*, beta: float = 10.0, hidden_time: float = 0.1) -> ClampedMemory:
    """XOR as recall: the four rows (a, b, a xor b) of its truth table are the patterns, and the bits a and b are
    clamped: `x = jnp.array([a, b])`. Start from v = .5 and h = 0; v settles at the answer if β ≥ .5 (read it by
    rounding), the nearer to 0 or 1 the larger β is. τ_v = 1.

    ```python
    memory = ej.fields.xor_memory(beta=10.0)
    assert memory.clamped == (0, 1) and memory.memory.patterns.shape == (4, 3)
    ```
    """
    table = jnp.array([[a, b, a ^ b] for a in (0, 1) for b in (0, 1)], jnp.result_type(float))
    memory = pattern_memory(table, beta=beta, hidden_time=hidden_time)
    return ClampedMemory(memory, (0, 1))


def hamming_memory(*, beta: float = 10.0, hidden_time: float = 0.1) -> AssociativeMemory:
    """The Hamming (7,4) code as recall: its 16 codewords (four data bits, then three parities) are the patterns.

    Start from v = the received word in {0, 1}, with h = 0, and no input (x = 0): v settles at the codeword if no more
    than one bit is wrong and β ≥ 3. τ_v = 1.

    ```python
    assert ej.fields.hamming_memory().patterns.shape == (16, 7)
    ```
    """
    data = (jnp.arange(16)[:, None] >> jnp.arange(3, -1, -1)[None]) & 1
    parity = (data @ jnp.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]])) % 2
    words = jnp.concatenate([data, parity], axis=1).astype(jnp.result_type(float))
    return pattern_memory(words, beta=beta, hidden_time=hidden_time)
