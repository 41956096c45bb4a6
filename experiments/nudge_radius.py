"""How far may a nudge move the state in float32, and can one sample own the gradient of its batch?

    python experiments/nudge_radius.py --seeds 0 1 2        # some three minutes a seed on two cores

Trains the demo's block at embedding scale 1 (windows of 32, AsymEP), where it comes near to losing its fixed points.
The first table has, for every radius, the adjoint residual of the settled contrast (measured exactly, over 64 samples) and
the cosine with the oracle at the checkpoint `--at`; the nudged tolerance is 1e-4. The second has, every 50 updates, the
cosine of AsymEP's gradient, over the samples that it accepts, with that of an oracle that accepts every sample,
over 16 batches of 16.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import eqjax as ej
from eqjax.language import batches
from eqjax.recipes import TrainConfig, open_run
from eqjax.training import Run

SETTINGS = {"order": "window", "embedding_scale": 1.0, "length": 32, "save_every": 50, "keep": 0}
RADII = (2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
FREE = ej.Anderson(rtol=5e-5)
SETTLED = ej.Accept(free_residual=1e-4, adjoint_residual=float("inf"))
CONTRASTS = {"adjoint": ej.gradients.AdjointCoordinates(), "shared": ej.gradients.SharedAdjoint()}


def oracle(accept):
    return ej.OracleAdjoint(free=FREE, adjoint_solver=ej.GMRES(1e-5), accept=accept)


def radii(model, batch, seed):
    truth = oracle(SETTLED)(model, ej.cross_entropy, batch)
    for name, contrast in CONTRASTS.items():
        for radius in RADII:
            nudge = ej.Nudge(ej.Anderson(1e-4), radius=jnp.asarray(radius), contrast=contrast)
            asymep = ej.AsymEP(free=FREE, nudged=nudge, accept=SETTLED)
            found = asymep(model, ej.cross_entropy, batch)
            cosine = ej.gradients.agreement(found.grads, truth.grads)[0]
            left = np.asarray(found.report.adjoint_residual)[np.asarray(found.report.accepted)]
            print(
                f"| {seed} | {name} | {radius:g} | {np.median(left):.1e} | {np.quantile(left, 0.9):.1e} "
                f"| {left.max():.1e} | {float(cosine):.4f} | {left.size} of {len(batch[0])} |",
                flush=True,
            )


def owned(model, stream, gate, seed, step):
    cosines, worst, accepted = [], [], []
    asymep = ej.AsymEP(free=FREE, nudged=ej.Anderson(1e-3), accept=gate)
    every = oracle(ej.Accept(float("inf"), float("inf")))
    for batch in stream:
        ours, all_in = (e(model, ej.cross_entropy, batch) for e in (asymep, every))
        cosines.append(float(ej.gradients.agreement(ours.grads, all_in.grads)[0]))
        worst.append(float(jnp.max(all_in.report.free_residual)))
        accepted.append(float(jnp.mean(ours.report.accepted)))
    print(
        f"| {seed} | {step} | {np.min(cosines):.3f} | {np.median(cosines):.4f} "
        f"| {np.mean(np.array(cosines) < 0.95):.0%} | {np.max(worst):.1e} | {np.mean(accepted):.1%} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--at", type=int, default=150, help="checkpoint of the first table")
    parser.add_argument("--out", type=Path, default=Path("runs/nudge_radius"))
    options = parser.parse_args()
    for seed in options.seeds:
        folder = options.out / str(seed)
        recipe = TrainConfig(out=folder, steps=options.steps, seed=seed, **SETTINGS)
        run = Run.start(recipe)
        run.train()
        draws = batches(run.train_ids, length=32, batch=16, seed=seed + 1)
        stream = [tuple(map(jnp.asarray, next(draws))) for _ in range(16)]
        print("\n| seed | contrast | radius | median | ninth decile | worst | cosine | settled |")
        print("|---" * 8 + "|")
        batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stream[:4])
        radii(open_run(folder, TrainConfig, step=options.at).model, batch, seed)
        print("\n| seed | step | least cosine | median | below .95 | worst residual | accepted |")
        print("|---" * 7 + "|")
        gate = ej.Accept(recipe.accept_free, recipe.accept_adjoint)
        for step in range(50, options.steps + 1, 50):
            model = open_run(folder, TrainConfig, step=step).model
            owned(model, stream, gate, seed, step)


if __name__ == "__main__":
    main()
