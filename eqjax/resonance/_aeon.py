"""AEON: a GPT-2 with internal recurrence attention, whose keys and values feel how earlier texts were read.

Two signals go from one read to the next as a value, `Resonance`, and bias the keys and values of every layer:

- the *recurrence* `r_s`, one vector for every layer, head and position s, which the gated update
  `r ← G_r(r, h, ℓ)` makes of the hidden states h and the losses ℓ of the read before (`AeonGate`);
- the *resonance memory* `m_v`, one number for every token v: a running mean, with decay ρ, of the prediction errors
  made right after v.

A vector that is the same at every position would add the same number to all scores of a query, and softmax would not
notice. So r has a position, and m enters at a position through the token that stands there.

The idea is the published AEON proposal: internal recurrence attention, a resonance memory of errors, and a controller of
learning rate, momentum and noise (here `eqjax.resonance.resonant_adamw`). The equations of gate and controller are eqjax's own.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .. import analytic
from ..fields import trainable
from ..gradients import AbstractEstimator, GradientEstimate, Report, check_call
from ..language import GPT2, Attend, DotProduct, Heads


class Resonance(eqx.Module):
    """What reading leaves behind for the next read of ONE sequence (a leading axis for a batch). At first all zero.

    - `recurrence (L, P, H, d)`: r before the last read was taken in. `|r| ≤ 1`.
    - `hidden (L, P, C)`, `errors (P,)`, `seen (P,)`: what was read last, yet to be taken in by the next read: hidden states
      that entered each layer, errors `1 - e^{-ℓ}` in [0, 1], and which positions were read.
    - `memory (V,)`: m, in [0, 1].
    """

    recurrence: Float[Array, "*b l p h d"]
    hidden: Float[Array, "*b l p c"]
    errors: Float[Array, "*b p"]
    seen: Bool[Array, "*b p"]
    memory: Float[Array, "*b v"]


class AeonGate(eqx.Module):
    """The gated update G_r of every layer and head, with x = layer_norm(h) and the error e = 1 - e^{-ℓ}:

        r ← (1 - g) A r + g tanh(W x + w e),    g = sigmoid(U x + u e + b),

    where `A = bound · S / max(1, Σ_j |S_ij|)`. Every row of |A| sums to at most `bound` < 1, so that its spectral
    radius is at most `bound`, too, and as r⁺ lies between A r and a tanh, `|r| ≤ 1` for any input. Positions that were not
    read, or whose hidden state is not finite, keep their r.

    - `mixing (L, H, d, d)`: S. `weight (L, C, H, d)`: W. `error (L, H, d)`: w.
    - `gate (L, C, H)`: U. `gate_error`, `gate_bias (L, H)`: u, b. `bound`: in (0, 1).
    """

    mixing: Float[Array, "l h d d"]
    weight: Float[Array, "l c h d"]
    error: Float[Array, "l h d"]
    gate: Float[Array, "l c h"]
    gate_error: Float[Array, "l h"]
    gate_bias: Float[Array, "l h"]
    bound: float = eqx.field(static=True)

    @staticmethod
    def init(gpt2: GPT2, *, bound: float = 0.95, key: PRNGKeyArray) -> "AeonGate":
        """A fresh one for the shapes of a GPT-2: `A = bound · 1`, and errors open the gate."""
        if not 0 < bound < 1:
            raise ValueError(
                f"`bound` must lie in (0, 1), got {bound}: from 1 on the recurrence need not forget."
            )
        layers, heads, width, dtype = _shape(gpt2)
        c = heads * width
        k1, k2 = jax.random.split(key)
        return AeonGate(
            mixing=jnp.tile(jnp.eye(width, dtype=dtype), (layers, heads, 1, 1)),
            weight=jax.random.normal(k1, (layers, c, heads, width), dtype) * c**-0.5,
            error=jnp.zeros((layers, heads, width), dtype),
            gate=jax.random.normal(k2, (layers, c, heads), dtype) * c**-0.5,
            gate_error=jnp.ones((layers, heads), dtype),
            gate_bias=jnp.zeros((layers, heads), dtype),
            bound=bound,
        )

    def transition(self) -> Float[Array, "l h d d"]:
        """A."""
        rows = jnp.sum(jnp.abs(self.mixing), axis=-1, keepdims=True)
        return self.bound * self.mixing / jnp.maximum(rows, 1)

    def __call__(
        self,
        r: Float[Array, "l p h d"],
        hidden: Float[Array, "l p c"],
        errors: Float[Array, " p"],
        seen: Bool[Array, " p"],
    ) -> Float[Array, "l p h d"]:
        """r after one more read."""
        x = analytic.layer_norm(hidden)
        # Also of finite hidden states, if so large that their squares overflow.
        taken = seen[None] & jnp.all(jnp.isfinite(x), axis=-1)
        x = jnp.where(taken[..., None], x, 0)
        e = errors[None, :, None]
        opened = jnp.einsum("lpc,lch->lph", x, self.gate) + e * self.gate_error[:, None]
        g = jax.nn.sigmoid(opened + self.gate_bias[:, None])[..., None]
        told = jnp.einsum("lpc,lchd->lphd", x, self.weight) + e[..., None] * self.error[:, None]
        kept = jnp.einsum("lhij,lphj->lphi", self.transition(), r)
        return jnp.where(taken[..., None, None], (1 - g) * kept + g * jnp.tanh(told), r)


class Coupling(eqx.Module):
    """How strongly a signal biases keys and values, for every channel of every head: zero at first.

    `key`, `value (H, d)`, with a leading axis of layers in a stack.

    ```python
    coupling = ej.resonance.Coupling(key=jnp.zeros((2, 3)), value=jnp.zeros((2, 3)))
    ```
    """

    key: Float[Array, "*l h d"]
    value: Float[Array, "*l h d"]


class Biased(eqx.Module):
    """Attention whose keys and values are biased by signals, and left to `inner`:

        k_s ← k_s + Σ κ ⊙ signal_s,    v_s ← v_s + Σ ν ⊙ signal_s.

    `extra` is a tuple of pairs `(Coupling(κ, ν), signal)`, each signal of shape `(s, H, d)` or `(s, 1, 1)`; `out` is the
    hidden states that entered the layer.

    ```python
    attend = ej.resonance.Biased(ej.language.DotProduct())
    ```
    """

    inner: Attend = DotProduct()

    def __call__(
        self, heads: Heads, extra: tuple[tuple[Coupling, Float[Array, "s _ _"]], ...]
    ) -> tuple[Float[Array, "t h d"], Float[Array, "t c"]]:
        key, value = heads.key, heads.value
        for coupling, signal in extra:
            key = key + coupling.key[None] * signal
            value = value + coupling.value[None] * signal
        mixed, _ = self.inner(heads._replace(key=key, value=value), None)
        return mixed, heads.hidden


class AeonGPT2(eqx.Module):
    """A GPT-2 with internal recurrence attention, for ONE sequence (`jax.vmap` for a batch).

    `losses, state = model.losses(tokens, targets, state)` reads a window and passes on what it was like;
    `model(tokens, state)` gives logits. All couplings start at 0: a fresh model has the logits of its GPT-2. Within a
    read the signals are constants made of earlier reads, so attention stays causal. Dropout is off.

    What was read goes into r at the *start* of the next read: the same r as if it had gone in at the end, but with the
    parameters of G_r in reach of the gradient, which goes back through one update; the state itself comes back held
    fixed.

    **Arguments:**

    - `gpt2`: a `GPT2`.
    - `recurrence`, `resonance`: whether r and m bias keys and values; without both it is the GPT-2.
    - `bound`: of the recurrence, as in `AeonGate`, in (0, 1). `decay`: ρ of the resonance memory, in [0, 1).
    - `key`: of the new weights.

    ```python
    aeon = ej.resonance.AeonGPT2(gpt2, key=key)
    assert jax.eval_shape(aeon, jnp.arange(4)).shape == (4, 8)
    ```
    """

    gpt2: GPT2
    recurrent: AeonGate | None
    recurrence: Coupling | None
    resonance: Coupling | None
    attend: Biased
    decay: float = eqx.field(static=True)

    def __init__(
        self,
        gpt2: GPT2,
        *,
        recurrence: bool = True,
        resonance: bool = True,
        bound: float = 0.95,
        decay: float = 0.9,
        key: PRNGKeyArray,
    ):
        if not 0 <= decay < 1:
            raise ValueError(
                f"`decay`, ρ of the resonance memory, must lie in [0, 1), got {decay}."
            )
        layers, heads, width, dtype = _shape(gpt2)
        nothing = jnp.zeros((layers, heads, width), dtype)
        self.gpt2 = gpt2
        self.recurrent = AeonGate.init(gpt2, bound=bound, key=key) if recurrence else None
        self.recurrence = Coupling(nothing, nothing) if recurrence else None
        self.resonance = Coupling(nothing, nothing) if resonance else None
        self.attend = Biased()
        self.decay = decay

    def initial(self) -> Resonance:
        """The state before the first read."""
        layers, heads, width, dtype = _shape(self.gpt2)
        tokens, positions = self.gpt2.config.vocab_size, self.gpt2.config.n_positions
        return Resonance(
            jnp.zeros((layers, positions, heads, width), dtype),
            jnp.zeros((layers, positions, heads * width), dtype),
            jnp.zeros(positions, dtype),
            jnp.zeros(positions, bool),
            jnp.zeros(tokens, dtype),
        )

    def __call__(
        self, tokens: Int[Array, " t"], state: Resonance | None = None
    ) -> Float[Array, "t v"]:
        """Logits `(t, V)` of `tokens (t,)`, t ≤ n_positions, read in a state (the initial one by default)."""
        state = self.initial() if state is None else state
        return self._read(tokens, state, self.recurred(state))[0]

    def losses(
        self, tokens: Int[Array, " t"], targets: Int[Array, " t"], state: Resonance
    ) -> tuple[Float[Array, " t"], Resonance]:
        """The cross-entropies ℓ of `read` in nats, `(t,)`, and the state for the next read."""
        logits, state = self.read(tokens, targets, state)
        return jax.vmap(analytic.cross_entropy)(logits, targets), state

    def read(
        self, tokens: Int[Array, " t"], targets: Int[Array, " t"], state: Resonance
    ) -> tuple[Float[Array, "t v"], Resonance]:
        """Read `tokens` and be told what came next.

        **Arguments:** `tokens`, `targets (t,)`; `state`: of the read before.

        **Returns:** logits `(t, V)`, and the state for the next read.
        """
        r = self.recurred(state)
        logits, hidden = self._read(tokens, state, r)
        losses = jax.vmap(analytic.cross_entropy)(logits, targets)
        return logits, lax.stop_gradient(self._after(state, r, tokens, hidden, losses))

    def recurred(self, state: Resonance) -> Float[Array, "l p h d"]:
        """r with the last read taken in."""
        if self.recurrent is None:
            return state.recurrence
        return self.recurrent(state.recurrence, state.hidden, state.errors, state.seen)

    def _read(self, tokens, state, r):
        h = self.gpt2.embed(tokens)
        extra = []
        if self.recurrence is not None:
            extra.append((self.recurrence, r[:, : tokens.size]))
        if self.resonance is not None:
            # Every token is a position's own: m differs from key to key.
            m = state.memory.at[tokens].get(mode="fill", fill_value=0)
            extra.append((self.resonance, jnp.tile(m[None, :, None, None], (r.shape[0], 1, 1, 1))))
        h, hidden = self.gpt2.run(h, self.attend, tuple(extra))
        return self.gpt2.unembed(h), hidden

    def _after(self, state, r, tokens, hidden, losses):
        # A loss that is no number counts as the worst.
        errors = jnp.where(jnp.isnan(losses), 1, -jnp.expm1(-losses)).astype(state.errors.dtype)
        added = lambda a: jnp.zeros_like(state.memory).at[tokens].add(a, mode="drop")
        count, total = added(jnp.ones_like(errors)), added(errors)
        moved = self.decay * state.memory + (1 - self.decay) * total / jnp.maximum(count, 1)
        return Resonance(
            recurrence=r,
            hidden=jnp.zeros_like(state.hidden).at[:, : tokens.size].set(hidden),
            errors=jnp.zeros_like(state.errors).at[: tokens.size].set(errors),
            seen=jnp.arange(state.seen.size) < tokens.size,
            memory=jnp.where(count > 0, moved, state.memory),
        )


class AeonBackprop(AbstractEstimator):
    """The gradient of an `AeonGPT2` over batches of consecutive windows. *Objective: output.*

    Row b of each batch continues sequence b, whose r and m it finds in the `carry`. With `resonant_adamw` the closed loop of AEON
    is a step like any other:

    ```python
    model, aeon = ej.resonance.AeonGPT2(gpt2, key=key), ej.resonance.AeonBackprop()
    optimiser = ej.resonance.resonant_adamw(1e-3, ej.resonance.LossController(rate=0.1), key=key)
    step = ej.training.make_step(aeon, optimiser)
    state = ej.training.TrainState.create(model, optimiser, key=key, carry=aeon.start(model, 16))
    ```

    forward with r and m → losses and errors → schedule α → control a, μ, σ → update θ → recur r and m. A gradient that is
    not finite changes neither model nor optimiser; r and m, which follow the cross-entropies whatever the loss, stay bounded. `signals`: `recurrence`, the root mean
    square of r. Several estimates without the carry read every window in the initial state.

    **Arguments:** `trains`: function from models to a mask of the trained arrays.
    """

    objective: ClassVar[str] = "output"
    carries_rows: ClassVar[bool] = True
    trains: Callable = trainable

    def start(self, model: AeonGPT2, batch: int) -> Resonance:
        """The carry at step 0, for batches of `batch` sequences."""
        return jax.tree.map(lambda a: jnp.zeros((batch, *a.shape), a.dtype), model.initial())

    def settle(self, field: Any, z0: PyTree, x: PyTree) -> Any:
        """**Raises:** `ValueError`: there is nothing to settle."""
        raise ValueError("An `AeonGPT2` computes its output at once; call it.")

    @eqx.filter_jit
    def __call__(
        self,
        model: AeonGPT2,
        loss: Callable,
        batch: tuple[Int[Array, "b t"], Int[Array, "b t"]],
        *,
        key: PRNGKeyArray | None = None,
        subset: Bool[Array, " b"] | None = None,
        carry: Resonance | None = None,
    ) -> GradientEstimate:
        batch = check_call(model, loss, batch, key, subset, settles=False)
        carry = self.start(model, batch[0].shape[0]) if carry is None else carry
        weights, rest = eqx.partition(model, self.trains(model))
        taken = jnp.ones(batch[0].shape[0], bool) if subset is None else subset

        def mean_loss(weights):
            logits, after = jax.vmap(eqx.combine(weights, rest).read)(*batch, carry)
            losses = jax.vmap(loss)(logits, batch[1])
            return jnp.mean(losses, where=taken), (losses, after)

        (total, (losses, after)), grads = jax.value_and_grad(mean_loss, has_aux=True)(weights)
        signals = {"recurrence": jnp.sqrt(jnp.mean(after.recurrence * after.recurrence))}
        report = Report.computed(losses, taken & jnp.isfinite(losses))
        return GradientEstimate(total, grads, report, states=None, carry=after, signals=signals)


def _shape(gpt2):
    """Layers, heads, width of a head, dtype."""
    config = gpt2.config
    return config.n_layer, config.n_head, config.n_embd // config.n_head, gpt2.wte.dtype
