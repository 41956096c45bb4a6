"""Does AsymEP train a non-reciprocal network on real data as well as the exact gradient does, and EP without it not?

    python experiments/digits.py                      # about ten minutes on two cores; needs scikit-learn

scikit-learn's digits (8×8 pixels, every fifth image held out) clamp a recurrent field of tanh units through a fixed
random encoder; ten of its own units are the readout. The image reaches the input units only, and no wire joins these to
the readout: what is learned must pass through the hidden units, both ways. Only the recurrent weights learn. The
asymmetry of the coupling is held at r = ‖antisym(W)‖/‖W‖ by construction. A feed-forward network of as many hidden units,
trained by plain back-propagation on the same batches, is the yardstick (`--only backprop` for it alone).
"""

import argparse
import statistics

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import eqjax as ej
from eqjax.training import TrainState, make_step

CLASSES, INPUTS, GAIN = 10, 32, 6.0


class Encoder(eqx.Module):
    """A fixed random projection of the pixels onto the input units, the last of the state."""

    weight: jax.Array

    def __init__(self, units, key):
        weight = 1.5 * jax.random.normal(key, (64, units)) / 8
        self.weight = weight.at[:, :-INPUTS].set(0.0)

    def __call__(self, pixels):
        return pixels @ self.weight


class Layered(ej.AbstractForceField):
    """A recurrent field without wires between input and readout units, in either direction."""

    inner: ej.fields.RecurrentField

    def __call__(self, t, z, x):
        n = z.size
        kind = (np.arange(n) >= CLASSES).astype(int) + (np.arange(n) >= n - INPUTS)
        wired = jnp.asarray(np.abs(kind[:, None] - kind[None]) < 2, z.dtype)
        return x - z + jnp.tanh(z) @ (self.inner.coupling() * wired) + self.inner.bias


def readout(z):
    return GAIN * z[:CLASSES]


def build(seed, *, units, strength, asymmetry):
    keys = jax.random.split(jax.random.key(seed))
    field = ej.fields.RecurrentField(units, strength=strength, asymmetry=asymmetry, key=keys[0])
    return ej.EquilibriumModel(
        Encoder(units, keys[1]), Layered(field), readout, start=jnp.zeros_like
    )


def only_recurrent(model):
    """Mask of what trains: the recurrent weights, nothing else."""
    nothing = jax.tree.map(lambda _: False, model)
    return eqx.tree_at(lambda m: m.field.inner.weight, nothing, True)


def data():
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("This experiment needs scikit-learn: pip install scikit-learn") from None
    digits = load_digits()
    pixels, labels = jnp.asarray(digits.data / 8 - 1, jnp.float32), jnp.asarray(digits.target)
    held_out = np.arange(len(labels)) % 5 == 4
    return (pixels[~held_out], labels[~held_out]), (pixels[held_out], labels[held_out])


def accuracy(model, estimator, images):
    pixels, labels = images

    @eqx.filter_jit
    def classify(model, pixels):
        def one(u):
            x = model.encode(u)
            found = estimator.settle(model.field, model.initial(x), x)
            return jnp.argmax(model.decode(found.value)), found.residual

        return jax.vmap(one)(pixels)

    guesses, residual = classify(model, pixels)
    return float(jnp.mean(guesses == labels)), float(jnp.median(residual))


def train(model, estimator, images, *, steps, rate, seed, batch=64):
    """Adam with a cosine rate; the model, and the fraction of samples accepted on the way."""
    pixels, labels = images
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))
    step = make_step(estimator, optimiser)
    state = TrainState.create(model, optimiser, key=jax.random.key(seed), trains=only_recurrent)
    rng = np.random.default_rng(seed)
    accepted = []
    for _ in range(steps):
        chosen = rng.integers(0, len(labels), batch)
        state, metrics = step(state, (pixels[chosen], labels[chosen]))
        accepted.append(metrics["accepted"])
    return state.model, float(jnp.mean(jnp.stack(accepted)))


def backprop(images, held_out, seed, *, hidden, steps, rate, batch=64):
    """Held-out accuracy of an ordinary network, 64 pixels – tanh – 10, all of which learns by plain back-propagation."""
    pixels, labels = images
    model = ej.fields.FeedForward(
        (64, hidden, CLASSES), activation=jnp.tanh, key=jax.random.key(seed)
    )
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state = optimiser.init(eqx.filter(model, eqx.is_array))
    outputs = lambda model, pixels: jax.vmap(lambda x: model.forward(x)[-1])(pixels)

    @eqx.filter_jit
    def step(model, state, pixels, labels):
        loss = lambda model: ej.cross_entropy(outputs(model, pixels), labels)
        updates, state = optimiser.update(eqx.filter_grad(loss)(model), state)
        return eqx.apply_updates(model, updates), state

    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = rng.integers(0, len(labels), batch)
        model, state = step(model, state, pixels[chosen], labels[chosen])
    right = jnp.argmax(outputs(model, held_out[0]), axis=1) == held_out[1]
    return float(jnp.mean(right))


def estimators():
    settle = {"free": ej.Anderson(rtol=1e-5), "trains": only_recurrent}
    nudge = {"nudged": ej.Anderson(rtol=1e-3)}
    return {
        "oracle": ej.OracleAdjoint(**settle),
        "AsymEP": ej.AsymEP(**settle, **nudge),
        "uncorrected EP": ej.VectorFieldEP(**settle, **nudge),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--asymmetry", type=float, default=0.9)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--strength", type=float, default=16.0)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument(
        "--tried", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3, 1e-2], help="of uncorrected EP"
    )
    every = ["backprop", *estimators()]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    options = parser.parse_args()
    training, held_out = data()
    oracle = estimators()["oracle"]
    print(
        "| gradient | rate | held-out accuracy (mean ± sd over seeds) | accepted |\n"
        + "|---" * 4
        + "|"
    )
    units = CLASSES + options.hidden + INPUTS
    coupling = {"strength": options.strength, "asymmetry": options.asymmetry}
    fresh = lambda seed: build(seed, units=units, **coupling)
    frozen = [accuracy(fresh(seed), oracle, held_out)[0] for seed in range(options.seeds)]
    print(f"| frozen recurrence | – | {summary(frozen)} | – |", flush=True)
    if "backprop" in options.only:
        sizes = {"hidden": options.hidden, "steps": options.steps, "rate": options.rate}
        scores = [backprop(training, held_out, seed, **sizes) for seed in range(options.seeds)]
        print(f"| plain back-propagation | {options.rate:g} | {summary(scores)} | – |", flush=True)
    for name in (name for name in options.only if name != "backprop"):
        estimator = estimators()[name]
        for rate in options.tried if name == "uncorrected EP" else [options.rate]:
            scores, shares = [], []
            for seed in range(options.seeds):
                model, share = train(
                    fresh(seed), estimator, training, steps=options.steps, rate=rate, seed=seed
                )
                scores.append(accuracy(model, estimator, held_out)[0])
                shares.append(share)
            share = statistics.mean(shares)
            print(f"| {name} | {rate:g} | {summary(scores)} | {share:.1%} |", flush=True)


def summary(values):
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1%} ± {spread:.1%}"


if __name__ == "__main__":
    main()
