"""The monotone mode of the equilibrium block: contracting by construction."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, PRNGKeyArray, PyTree

from .. import analytic
from .._checks import check_finite_number, check_key
from ._base import AbstractSplitField, hyperparameter, scalar
from ._causal import AbstractCausalField
from ._parts import MLP, Attention

_State = Inexact[Array, "t c"]
GELU_LIPSCHITZ = 1.13  # sup |gelu'| of the tanh form is 1.1290 (at z ≈ 1.42)


def spectral_bound(weight: Float[Array, "n m"]) -> Float[Array, ""]:
    """An upper bound on the spectral norm, within a factor `min(n, m)^(1/32)`, without an SVD.

    For symmetric positive A, `‖A‖₂ ≤ ‖A^p‖_F^(1/p)`; here `A = WᵀW` and p = 16, by repeated squaring with
    rescaling, so that no weight scale over- or underflows. Differentiable, also at W = 0.
    """
    peak = jnp.max(jnp.abs(weight))
    safe = jnp.where(peak > 0, peak, jnp.ones_like(peak))
    unit = jnp.where(peak > 0, weight, jnp.ones_like(weight)) / safe
    gram = unit.T @ unit if weight.shape[0] > weight.shape[1] else unit @ unit.T
    log_norm = jnp.zeros_like(peak)
    for power in (1, 2, 4, 8, 16):
        size = jnp.linalg.norm(gram)
        log_norm = log_norm + jnp.log(size) / power
        gram = gram / size
        gram = gram @ gram
    return jnp.where(peak > 0, safe * jnp.exp(0.5 * log_norm), jnp.zeros_like(peak))


def floored_norm(z: Inexact[Array, "t c"]) -> Inexact[Array, "t c"]:
    """Centre each token, then divide by `sqrt(mean(z²) + 1)`: 1-Lipschitz, output norm below `sqrt(C)`.

    With `u` the centred token and `r = sqrt(|u|²/C + 1) ≥ 1` the Jacobian on centred vectors is
    `(1/r)(I - uuᵀ/(C r²))`, symmetric with eigenvalues `1/r` and `1/r³`; centring is a projection.
    """
    return analytic.layer_norm(z, eps=1.0)


class MonotoneBlock(AbstractSplitField, AbstractCausalField):
    """A causal attention + MLP block whose Jacobian has logarithmic 2-norm at most `-margin`, always:

    `F(z) = x - (1 + c) z + ρ_a α Attn(ν z) + ρ_m MLP(ν z)`, with ν the 1-Lipschitz `floored_norm`.

    The gains `ρ = min(1, (1 + c - m)/(2 L))` depend on the weights (and T), never on the state, where L is a
    Lipschitz bound of the branch. Then the nonlinear part is (1 + c - m)-Lipschitz, and
    `μ₂(J) ≤ -(1 + c) + (1 + c - m) = -m` at every state and for all weights: one equilibrium, reached
    exponentially from anywhere.

    *Proof of the bounds* (Frobenius norm over tokens). MLP: `L = ‖W_down‖ · 1.13 · ‖W_up‖`. Attention, one
    head, tokens `n_j = ν(z)_j` with |n_j|² ≤ C, weights `p_ij`, scores `s_ij = β (Q n_i)·(K n_j)`:
    the differential of `Σ_j p_ij V n_j` has three parts.
    (1) value: `Σ_j p_ij V dn_j`. Rows of p sum to 1 and its columns to at most T, so
    `Σ_i |Σ_j p_ij dn_j|² ≤ Σ_ij p_ij |dn_j|² ≤ T |dn|²`: norm at most `‖V‖ √T`.
    (2) query: `β V Cov_{p_i}(n) KᵀQ dn_i`, and `‖Cov‖ ≤ C`: at most `‖V‖ s` with `s = β C ‖Q‖ ‖K‖`.
    (3) key: `β V Σ_j p_ij (n_j - n̄_i) (Kᵀ... Q n_i)·dn_j`; by Cauchy–Schwarz over j and (1) at most
    `‖V‖ s √T`.
    So `L_h = ‖V_h‖ (√T + (1 + √T) s_h)` and over heads `L = |α| ‖O‖ sqrt(Σ_h L_h²)`. The block uses
    β = 1/C, so that s_h = ‖Q_h‖ ‖K_h‖ does not grow with width.

    **Arguments:** as `ThickBlock` (without `qknorm`), and `margin`: m > 0, below 1 + leak.

    ```python
    block = ej.fields.MonotoneBlock(width=4, heads=2, margin=0.2, key=key)
    assert block.causal
    ```
    """

    causal: ClassVar[bool] = True
    attention: Attention
    mlp: MLP
    leak: Float[Array, ""] = hyperparameter()
    attention_gain: Float[Array, ""] = hyperparameter()
    margin: Float[Array, ""] = hyperparameter()

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        leak: float = 1.0,
        attention_gain: float = 1.0,
        margin: float = 0.2,
        residual_scale: float = 1.0,
        expansion: int = 4,
        key: PRNGKeyArray,
    ):
        check_finite_number(leak=leak, margin=margin)
        check_key(key=key)
        if not 0 < margin < 1 + leak:
            raise ValueError(
                f"`margin` must lie between 0 and 1 + leak = {1 + leak}, got {margin}: "
                "the leak is all that contracts. Raise `leak` or lower `margin`."
            )
        k1, k2 = jax.random.split(key)
        self.attention = Attention(width, heads, residual_scale=residual_scale, key=k1)
        self.mlp = MLP(width, expansion=expansion, residual_scale=residual_scale, key=k2)
        self.leak, self.attention_gain = scalar(leak), scalar(attention_gain)
        self.margin = scalar(margin)

    def lipschitz_bounds(self, length: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Proved Lipschitz constants of the unscaled attention and MLP branches for `length` tokens."""
        a = self.attention
        per_head = jax.vmap(spectral_bound, in_axes=1)
        q, k, v = (per_head(w.reshape(w.shape[0], a.heads, -1)) for w in (a.query, a.key, a.value))
        root = length**0.5
        per_head_bound = v * (root + (1 + root) * q * k)
        total = jnp.sqrt(jnp.sum(per_head_bound**2) + jnp.finfo(v.dtype).tiny)
        attention = jnp.abs(self.attention_gain) * spectral_bound(a.output) * total
        mlp = spectral_bound(self.mlp.up) * GELU_LIPSCHITZ * spectral_bound(self.mlp.down)
        return attention, mlp

    def reciprocal(self, t: Any, z: _State, x: _State) -> _State:
        return analytic.shift(analytic.scale(z, -(1 + self.leak)), x)

    def nonreciprocal(
        self,
        t: Any,
        z: _State,
        x: _State,
        memory: PyTree[Array] = None,
        seen: Bool[Array, "t m"] | None = None,
    ) -> _State:
        g = floored_norm(z)
        share = 0.5 * (1 + self.leak - self.margin)
        length = z.shape[0] if seen is None else seen.shape[1]
        rho_a, rho_m = (share / jnp.maximum(share, b) for b in self.lipschitz_bounds(length))
        attended = self.attention(g, memory, seen, 1 / z.shape[1])
        transformed = analytic.scale(self.mlp(g), rho_m)
        return analytic.scale(attended, rho_a * self.attention_gain) + transformed

    def attends(self, z: _State) -> Inexact[Array, "h t t"]:
        """How much every token attends to itself and each before it, `(heads, T, T)`: rows that sum to 1."""
        return self.attention.weights(floored_norm(z), 1 / z.shape[1])

    def remember(self, z: _State) -> tuple[Array, Array]:
        return self.attention.remember(floored_norm(z))

    def alone(self, t: Any, z: _State, x: _State, past: PyTree[Array]) -> _State:
        # The gains depend on the length, so that nothing may be added to the memory.
        own = lambda u, x, place: self.after(t, u[None], x[None], past, place)[0]
        return jax.vmap(own)(z, x, jnp.arange(z.shape[0]))

    def given(
        self, t: Any, z: _State, x: _State, memory: PyTree[Array], seen: Bool[Array, "t m"]
    ) -> _State:
        return self.reciprocal(t, z, x) + self.nonreciprocal(t, z, x, memory, seen)
