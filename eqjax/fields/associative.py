"""Associative memories in the Lagrangian form (Krotov & Hopfield 2021)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from .. import analytic
from .base import AbstractForceField, hyperparameter, scalar


class Quadratic(eqx.Module):
    """`½ Σ z²`: linear neurons."""

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        return 0.5 * jnp.sum(z * z)


class Softmax(eqx.Module):
    """`(1/β) log Σ exp(β z)`: the activation is `softmax(β z)`."""

    beta: Float[Array, ""] = hyperparameter(default=1.0)

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        return analytic.scale(analytic.logsumexp(analytic.scale(z, self.beta)), 1 / self.beta)


class Polynomial(eqx.Module):
    """`Σ relu(z)^n / n`, n ≥ 2: the activation is `relu(z)^(n-1)`; n = 2 is the rectified linear unit."""

    power: int = eqx.field(default=2, static=True)

    def __check_init__(self):
        if self.power < 2:
            raise ValueError(f"`power` must be at least 2, got {self.power}.")

    def __call__(self, z: Float[Array, " n"]) -> Float[Array, ""]:
        return jnp.sum(jax.nn.relu(z) ** self.power) / self.power


class Spherical(eqx.Module):
    """`√n · √(Σ (z - mean)² + n ε)`: the activation is a layer norm without gain."""

    eps: float = eqx.field(default=1e-5, static=True)

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        centred = z - jnp.mean(z)
        return z.size**0.5 * jnp.sqrt(jnp.sum(centred * centred) + z.size * self.eps)


class LogCosh(eqx.Module):
    """`Σ log cosh z`: the activation is tanh."""

    def __call__(self, z: Inexact[Array, " n"]) -> Inexact[Array, ""]:
        return jnp.sum(analytic.softplus(2 * z) - z - jnp.log(2.0).astype(z.real.dtype))


class AssociativeMemory(AbstractForceField):
    """Visible neurons v and memory neurons h, each kind with a Lagrangian, coupled by patterns ξ:

    `τ_v v̇ = ξᵀ f + a + x - v`, `τ_h ḣ = ξ g + b - h`, with `g = ∂L_v/∂v` and `f = ∂L_h/∂h`,

    and the energy `Σ g (v - a - x) - L_v + Σ f (h - b) - L_h - fᵀ ξ g`, which never rises while the Lagrangians are
    convex. The state is the pair (v, h), the input x a current into v (an array (n,) or a scalar).

    The force is `-M(z) ∂E/∂z`, M of the Lagrangians' inverse Hessians: there is an energy but the Jacobian is not
    symmetric, so `EnergyEP` or `AsymEP` gives the gradient and `VectorFieldEP` does not.

    **Arguments:** `patterns`: ξ `(m, n)`; `visible`, `hidden`: Lagrangians, callables `(n,) -> ()`; `visible_bias`: a,
    `hidden_bias`: b, zero by default; `visible_time`, `hidden_time`: τ > 0, in units of the field's time, which training
    leaves alone.
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
        visible: Callable[[Any], Any] = Quadratic(),
        hidden: Callable[[Any], Any] = Softmax(),
        visible_bias: Float[Array, " n"] | None = None,
        hidden_bias: Float[Array, " m"] | None = None,
        visible_time: float = 1.0,
        hidden_time: float = 1.0,
    ):
        for name, value in (("visible_time", visible_time), ("hidden_time", hidden_time)):
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        m, n = patterns.shape
        self.patterns, self.visible, self.hidden = patterns, visible, hidden
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
