"""How much noise do 1, 2 and N nudged phases bear?

    python experiments/read_noise.py [--figure docs/images/read_noise.png]

A small non-reciprocal network, float64. Every settle sees its own realisation of the parameters (relative standard
deviation σ), shared by force, JVP and VJP; on top of it a fixed device mismatch of 10%, which the oracle shares.
Prints 1 - cosine with the device's oracle, median over repeats, at each estimator's best of five nudge radii.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import eqjax as ej
from eqjax.gradients import agreement
from eqjax.plots._figure import look

RADII = (1e-3, 3e-3, 1e-2, 3e-2, 6e-2)


def network(seed, n=12):
    keys = jax.random.split(jax.random.key(seed), 5)
    field = ej.fields.RecurrentField(n, strength=1.5, asymmetry=0.8, key=keys[1])
    model = ej.EquilibriumModel(
        eqx.nn.Linear(3, n, key=keys[0]),
        ej.fields.Mismatched(field, 0.1, key=keys[4]),
        eqx.nn.Linear(n, 2, key=keys[2]),
    )
    return model, (jax.random.normal(keys[3], (4, 3)), jnp.cos(jnp.arange(8.0)).reshape(4, 2))


def estimators(sigma, radius):
    shared = {
        "free": ej.Anderson(1e-9),
        "nudged": ej.Anderson(1e-8),
        "accept": ej.Accept(1.0, 1e6),
        "read_noise": sigma,
        "radius": radius,
    }
    nudge = lambda stencil: {"nudged": ej.Nudge(shared["nudged"], stencil=stencil)}
    two = ej.AsymEP(**shared)
    return {
        "1 phase": ej.AsymEP(**shared | nudge(ej.gradients.OneSided())),
        "2 phases": two,
        "4 real phases": ej.AsymEP(**shared | nudge(ej.gradients.Central(2))),
        "6 complex phases": ej.HolomorphicEP(**shared, points=6),
        "2 phases, 16 repeats": ej.gradients.Averaged(two, 16),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--noise", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2, 1e-1])
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model, batch = network(0)
    oracle = ej.OracleAdjoint(free=ej.Anderson(1e-12), adjoint_solver=ej.GMRES(1e-11))
    truth = oracle(model, ej.squared_error, batch).grads
    keys = jax.random.split(jax.random.key(1), options.repeats)

    @eqx.filter_jit
    def cosine(estimator):
        def one(key):
            return agreement(estimator(model, ej.squared_error, batch, key=key).grads, truth)[0]

        return jnp.median(jax.lax.map(one, keys))

    names = list(estimators(1e-3, 1e-2))
    print("| σ | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
    curves = {name: [] for name in names}
    for sigma in options.noise:
        cells = []
        for name in names:
            tried = {
                r: float(cosine(estimators(jnp.asarray(sigma), jnp.asarray(r))[name]))
                for r in RADII
            }
            best = max(tried, key=lambda r: tried[r] if tried[r] == tried[r] else -2)
            curves[name].append(tried[best])
            cells.append(f"{1 - tried[best]:.0e} ({best:g})")
        print(f"| {sigma:g} | " + " | ".join(cells) + " |", flush=True)
    if options.figure:
        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, values) in enumerate(curves.items()):
            axes.loglog(options.noise, 1 - jnp.asarray(values), **look(i), label=name)
        axes.set(
            xlabel="read noise σ (relative, every parameter)", ylabel="1 - cosine with the oracle"
        )
        axes.grid(alpha=0.3)
        axes.legend()
        ej.plots.save(figure, options.figure)


if __name__ == "__main__":
    main()
