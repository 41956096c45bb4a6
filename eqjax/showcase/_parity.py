"""An energy transformer learns the parity of a few bits."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int
from matplotlib.figure import Figure
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..fields import EnergyTransformer, EnergyTransformerLM, LogCosh
from ..gradients import OracleAdjoint
from ..relaxation import GMRES, Anderson, equilibrium
from ..training import TrainState, make_step
from ._show import AbstractShow, Shown

SETTLE, GAIN, CONTRAST = Anderson(rtol=1e-4), 20.0, 10.0


def parity_model(bits: int, width: int = 16, *, key: Array) -> EnergyTransformerLM:
    """Bits `(L,)` to the logits `(2,)` of their parity, the token that follows, from a start of its own: each visible neuron
    begins to fire at a count of ones of its own. Larger embeddings would make the attention take one winner, and lose the
    count.

    **Arguments:** `bits`: L. `width`: visible neurons, and memories. `key`: random key of the weights.
    """
    a, b, c = jax.random.split(key, 3)
    visible = LogCosh(jnp.asarray(GAIN))
    # Fixed points do not depend on the times; equal ones settle soonest.
    field = EnergyTransformer(
        width, width, bits, visible=visible, visible_time=1.0, hidden_time=1.0, key=a
    )
    least, most = jnp.array([[0.01], [0.36]]) * (1 + 0.2 * jax.random.normal(b, (2, width)))
    onset = least + (most - least) * jnp.linspace(0.5 / width, 1 - 0.5 / width, width)
    where = lambda m: (m.field.patterns, m.field.visible_bias, m.embedding, m.readout)
    readout = CONTRAST * 0.3 * jax.random.normal(c, (width, 2))
    start = 0.08 * field.patterns, -onset, jnp.stack([least, most]), readout
    return eqx.tree_at(where, EnergyTransformerLM(field, 2, key=c), start)


@eqx.filter_jit
def answered(model: EnergyTransformerLM, strings: Int[Array, "n l"]):
    """The parity that the settled state answers, for every string, and whether it has settled."""

    def one(bits):
        x = model.encode(bits)
        found = equilibrium(model.field, model.initial(x), x, solver=SETTLE, throw=False)
        return jnp.argmax(model.decode(found.value)), found.residual < 1e-3

    return jax.vmap(one)(strings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityShow(AbstractShow):
    """An energy transformer learns the parity of a few bits by its exact equilibrium gradient, a fifth of the strings held out.

    It stops once all strings it is trained on are right, by a margin. Eight bits are the subject of experiments/parity.py.
    """

    bits: int = 4
    """Bits of a string."""
    steps: int = 400
    """Updates at most, each on all training strings."""
    seed: int = 0
    """Of the weights and of which strings are held out."""

    def __call__(self) -> Shown:
        if not 3 <= self.bits <= 6:
            raise ValueError(f"`bits` must lie between 3 and 6, got {self.bits}.")
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {self.steps}.")
        count = 2**self.bits
        strings = (np.arange(count)[:, None] >> np.arange(self.bits)) & 1
        parity = strings.sum(axis=1) % 2
        shuffled = np.random.default_rng(self.seed).permutation(count)
        held, known = np.split(shuffled, [round(0.2 * count)])
        estimator = OracleAdjoint(free=SETTLE, adjoint_solver=GMRES(1e-3))
        rate = optax.cosine_decay_schedule(3e-3, self.steps, alpha=0.1)
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
        step = make_step(estimator, optimiser)
        model = parity_model(self.bits, key=jax.random.key(self.seed))
        state = TrainState.create(model, optimiser, key=jax.random.key(self.seed))
        batch = jnp.asarray(strings[known]), jnp.asarray(parity[known])
        everything, losses, scores = jnp.asarray(strings), [], []
        bar = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*bar, transient=True) as progress:
            task = progress.add_task("compiling", total=self.steps)
            while True:
                guess, settled = map(np.asarray, answered(state.model, everything))
                right = (guess == parity) & settled
                scores.append((len(losses), right[known].mean(), right[held].mean()))
                learned = right[known].all() and min(losses, default=1.0) < 0.02
                if learned or len(losses) == self.steps:
                    break
                for _ in range(min(10, self.steps - len(losses))):
                    state, metrics = step(state, batch)
                    losses.append(float(metrics["loss"]))
                told = f"loss {losses[-1]:.3f}, {right[known].mean():.0%} right"
                progress.update(task, completed=len(losses), description=told)
        found = lambda part: f"{right[part].sum()} of {len(part)}"
        rows = (
            ("updates", str(len(losses)), "–"),
            ("training strings right at the fixed point", found(known), "all"),
            ("held-out strings right at the fixed point", found(held), "all"),
            ("strings that settle", f"{settled.sum()} of {count}", "all"),
        )
        return Shown(rows, {"parity.png": _curves(losses, scores)})


def _curves(losses, scores) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(np.arange(1, len(losses) + 1), losses)
    left.set(xlabel="update", ylabel="cross-entropy (nats)", title="loss")
    steps, known, held = zip(*scores, strict=True)
    right.plot(steps, known, "o-", label="training strings")
    right.plot(steps, held, "s--", label="held out")
    right.set(xlabel="update", ylabel="right and settled", ylim=(-0.03, 1.03))
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
