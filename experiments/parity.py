"""Does an energy transformer learn the parity of eight bits, and is the answer there to stay?

    python experiments/parity.py                             # BPTT; the published form
    python experiments/parity.py --form rails                # bounded visible neurons
    python experiments/parity.py --form rails --gradient oracle --rate 1e-3 --epochs 3000    # the fixed point; or energy
    python experiments/parity.py --seeds 64                  # all seeds in one program, as on a GPU

The eight bits are the context of `EnergyTransformer` (D = M = 16, β = .1, τ_v = .1, τ_h = .01), the next token is their
parity. Embeddings and patterns are squares, so that they could be conductances. Of the 256 strings 52 are held out,
always the same; 00000000 and 11111111 are trained on. Three questions, one table:

(a) held-out accuracy at the horizon T = 1 on which BPTT trains;
(b) for how many of the 256 strings the state stays bounded when the horizon is left behind (to 100 T);
(c) how many of the 256 are right there, and settled.

Fixed points do not depend on τ_h, so the oracle and the energy contrast train the adiabatic reduction, 16 neurons that
settle in tens of steps; what is reported is always the network of two time scales.

`--step 1e-3` is the published one; five times that is five times faster and stable still (τ_h is twice as long). The
start matters most: where β x·v is not small, attention takes one winner and the count of ones is lost on it. Only the
biases of the attention neurons tell one place from another; while they are equal, the 256 strings are nine counts.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqjax as ej
from eqjax.fields import (
    AbstractEquilibriumModel,
    EnergyTransformer,
    LogCosh,
    Quadratic,
    hyperparameter,
)
from eqjax.training import TrainState, make_step

BITS, WIDTH, MEMORIES = 8, 16, 16
STRINGS = (np.arange(256)[:, None] >> np.arange(BITS - 1, -1, -1)) & 1
PARITY = STRINGS.sum(axis=1) % 2
HELD_OUT = np.array(
    [
        int(n)
        for n in (
            "1 6 7 14 18 26 37 40 42 55 66 69 72 75 76 84 90 92 94 95 101 103 112 123 125 127 "
            "132 139 148 152 153 158 161 179 182 193 198 202 204 216 220 227 228 229 230 233 240 242 244 245 247 252"
        ).split()
    ]
)
TRAINING = np.setdiff1d(np.arange(256), HELD_OUT)
WEIGHTS = Path(__file__).with_name("parity_weights.npz")
TRAINED = (
    "roots.patterns",
    "roots.visible_bias",
    "roots.attention_bias",
    "roots.memory_bias",
    "embedding",
    "readout",
)


class Parity(AbstractEquilibriumModel):
    """Bits to logits of the next token; what trains are the square roots of embeddings and patterns."""

    roots: EnergyTransformer
    embedding: jax.Array
    readout: jax.Array
    contrast: jax.Array = hyperparameter()

    @property
    def field(self):
        return eqx.tree_at(lambda f: f.patterns, self.roots, self.roots.patterns**2)

    def encode(self, inputs):
        return (self.embedding**2)[inputs]

    def initial(self, x):
        return self.roots.initial(x)

    def decode(self, z):
        return self.contrast * (jax.grad(self.roots.visible)(z[0]) @ self.readout)


class Adiabatic(AbstractEquilibriumModel):
    """The model with hidden neurons that follow at once: the same fixed points."""

    model: Parity

    @property
    def field(self):
        return self.model.field.adiabatic()

    def encode(self, inputs):
        return self.model.encode(inputs)

    def initial(self, x):
        return self.model.initial(x)[0]

    def decode(self, z):
        return self.model.decode((z, None))


class Form(NamedTuple):
    """`coupling`: of memory m to visible neuron m at the start; `one`: the embedding of a 1; `contrast`: of the logits."""

    visible: Any
    coupling: float
    one: float
    contrast: float


FORMS = {
    "published": Form(Quadratic(), 0.8, 0.4, 30.0),
    "rails": Form(LogCosh(20.0), 0.0, 0.36, 10.0),
}


def build(key, form="published"):
    """A model whose neurons begin to fire at equally spaced counts of ones: with rails, where each has a bounded
    activation, its visible neurons, otherwise its memories.
    """
    form = FORMS[form]
    a, b, c = jax.random.split(key, 3)
    field = EnergyTransformer(WIDTH, MEMORIES, BITS, visible=form.visible, key=a)
    roots = 0.1 * jnp.abs(jax.random.normal(a, (MEMORIES, WIDTH)))
    roots = roots + form.coupling**0.5 * jnp.eye(MEMORIES, WIDTH)
    root = jnp.sqrt(jnp.array([[0.01], [form.one]]))
    embedding = root * (1 + 0.1 * jax.random.normal(b, (2, WIDTH)))
    onset = lambda none, all_ones: none + (all_ones - none) * jnp.arange(0.5, WIDTH) / WIDTH
    if form.coupling:
        bias = -onset(*(embedding**2 @ (roots**2).T))
        field = eqx.tree_at(lambda f: f.memory_bias, field, bias)
    else:
        field = eqx.tree_at(lambda f: f.visible_bias, field, -onset(*embedding**2))
    field = eqx.tree_at(lambda f: f.patterns, field, roots)
    readout = 0.3 * jax.random.normal(c, (WIDTH, 2))
    return Parity(field, embedding, readout, form.contrast)


def _attribute(model, name):
    for part in name.split("."):
        model = getattr(model, part)
    return model


def save(file, **models):
    """Keep what models of the named forms learned; they may be stacked over seeds."""
    arrays = {f"{k}/{n}": _attribute(m, n) for k, m in models.items() for n in TRAINED}
    np.savez_compressed(file, **arrays)


def load(form, file=WEIGHTS, index=...):
    """A model of the form with the weights that are kept; `index`: which of those stacked over seeds."""
    real = jnp.result_type(float)
    with np.load(file) as kept:
        arrays = [jnp.asarray(kept[f"{form}/{name}"][index], real) for name in TRAINED]
    where = lambda model: [_attribute(model, name) for name in TRAINED]
    return eqx.tree_at(where, build(jax.random.key(0), form), arrays)


def estimator(name, step):
    """BPTT over T = 1, or a gradient of the fixed point."""
    if name == "bptt":
        steps = round(1 / step)
        keep_all = dfx.RecursiveCheckpointAdjoint(checkpoints=steps)
        return ej.BPTT(steps=steps, step=step, adjoint=keep_all)
    free = ej.TimeStepping(rtol=1e-5, step_size=0.05)
    if name == "oracle":
        return ej.OracleAdjoint(free=free)
    return ej.EnergyEP(free=free, nudged=ej.Anderson(rtol=1e-3, mixing=0.05))


@eqx.filter_jit
def examine(model, step, horizons):
    """For every string: whether the answer is right and the residual, at t = 1 and after `horizons` times that."""

    def one(bits, parity):
        x = model.encode(bits)

        def at(z):
            z = ej.relax(model.field, z, x, step=step, steps=round(1 / step), throw=False).value
            return z, None

        z, _ = at(model.initial(x))
        right = jnp.argmax(model.decode(z)) == parity
        z, _ = jax.lax.scan(lambda z, _: at(z), z, length=horizons - 1)
        force = ej.relax(model.field, z, x, step=step, steps=1, throw=False).residual
        size = jnp.max(jnp.abs(z[0]))
        return right, jnp.argmax(model.decode(z)) == parity, size, force

    return jax.vmap(one)(jnp.asarray(STRINGS), jnp.asarray(PARITY))


def report(model, step, horizons=100):
    """The three answers for one model."""
    return answers(*examine(model, step, horizons))


def answers(*outcome):
    right, later, size, force = (np.asarray(a) for a in outcome)
    bounded = np.isfinite(size) & (size < 1e3)
    settled = bounded & (force < 1e-2)
    return {
        "training": right[TRAINING].mean(),
        "held out": right[HELD_OUT].mean(),
        "bounded": int(bounded.sum()),
        "settled": int(settled.sum()),
        "right and settled": int((later & settled).sum()),
    }


def train(models, gradient, *, epochs, rate=3e-3, every=500, tell=print):
    """Full-batch AdamW, cosine to 30%, clipped at norm 1, of models stacked over seeds.

    `tell(epoch, models, loss, accepted, seconds)` is called every so many epochs.
    """
    schedule = optax.cosine_decay_schedule(rate, epochs, alpha=0.3)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    step = make_step(gradient, optimiser)
    batch = jnp.asarray(STRINGS[TRAINING]), jnp.asarray(PARITY[TRAINING])
    states = eqx.filter_vmap(
        lambda model: TrainState.create(model, optimiser, key=jax.random.key(0))
    )(models)

    @eqx.filter_jit
    def several(states):
        def epoch(states, _):
            states, metrics = eqx.filter_vmap(lambda state: step(state, batch))(states)
            return states, (metrics["loss"], metrics["accepted"])

        return jax.lax.scan(epoch, states, length=every)

    seconds = 0.0
    for epoch in range(every, epochs + 1, every):
        begun = time.perf_counter()
        states, (loss, accepted) = jax.block_until_ready(several(states))
        seconds += time.perf_counter() - begun
        tell(epoch, states.model, loss[-1], accepted.mean(axis=0), seconds)
    return states.model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=FORMS, default="published")
    parser.add_argument("--gradient", choices=["bptt", "oracle", "energy"], default="bptt")
    parser.add_argument("--epochs", type=int, default=30_000)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--step", type=float, default=5e-3)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--save", type=Path, help="an .npz file for the weights of all seeds")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.seeds)
    fixed_point = options.gradient != "bptt"
    models = [build(jax.random.key(seed), options.form) for seed in seeds]
    models = [Adiabatic(model) if fixed_point else model for model in models]

    def tell(epoch, models, loss, accepted, seconds):
        models = models.model if fixed_point else models
        if options.save:
            save(options.save, **{options.form: models})
        outcomes = eqx.filter_vmap(lambda model: examine(model, options.step, 100))(models)
        for i, seed in enumerate(seeds):
            found = answers(*(part[i] for part in outcomes))
            cells = [epoch, seed, f"{float(loss[i]):.4f}", f"{float(accepted[i]):.1%}"]
            cells += [f"{found.pop('training'):.1%}", f"{found.pop('held out'):.1%}"]
            cells += [*found.values(), f"{seconds:.0f}"]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)

    heads = (
        "epoch, seed, loss, accepted, training, held out, bounded, settled, right and settled, s"
    )
    print("| " + heads.replace(", ", " | ") + " |\n" + "|---" * 10 + "|")
    train(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *models),
        estimator(options.gradient, options.step),
        epochs=options.epochs,
        rate=options.rate,
        every=options.every,
        tell=tell,
    )


if __name__ == "__main__":
    main()
