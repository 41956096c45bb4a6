"""How far may a nudge move the state in float32, and can one sample own the gradient of its batch?

    python experiments/nudge_radius.py --seeds 0 1 2        # some three minutes a seed on two cores

Trains the demo's block at embedding scale 1 (windows of 32 characters, AsymEP, 400 updates), where it comes near
to losing its fixed points, and keeps a checkpoint every 50 updates. The first table is of the checkpoint `--at`: the adjoint
residual of the settled contrast, measured exactly, and the cosine with the oracle, for every radius; the nudged tolerance
is 1e-4. Only samples whose free phase has settled count. The second table is of every checkpoint: the cosine of
AsymEP's gradient, over the samples that it accepts, with that of an oracle that accepts every sample, for each
of `--batches` batches of 16.
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


def owned(model, stream, count, gate, seed, step):
    cosines, worst, accepted, median = [], [], [], []
    asymep = ej.AsymEP(free=FREE, nudged=ej.Anderson(1e-3), accept=gate)
    every = oracle(ej.Accept(float("inf"), float("inf")))
    for batch in stream[:count]:
        ours, all_in = (e(model, ej.cross_entropy, batch) for e in (asymep, every))
        cosines.append(float(ej.gradients.agreement(ours.grads, all_in.grads)[0]))
        worst.append(float(jnp.max(all_in.report.free_residual)))
        accepted.append(float(jnp.mean(ours.report.accepted)))
        median.append(float(jnp.median(ours.report.adjoint_residual)))
    print(
        f"| {seed} | {step} | {np.min(cosines):.3f} | {np.median(cosines):.4f} "
        f"| {np.mean(np.array(cosines) < 0.95):.0%} | {np.max(worst):.1e} | {np.median(median):.1e} "
        f"| {np.mean(accepted):.1%} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--at", type=int, default=150, help="checkpoint of the first table")
    parser.add_argument("--batches", type=int, default=16, help="batches of the second table")
    parser.add_argument("--text", type=Path, help="a text file; tiny Shakespeare if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/nudge_radius"))
    options = parser.parse_args()
    for seed in options.seeds:
        recipe = TrainConfig(
            out=options.out / str(seed),
            text=options.text,
            embedding_scale=1.0,
            length=32,
            steps=options.steps,
            seed=seed,
            save_every=50,
            keep=0,
        )
        run = Run.start(recipe)
        run.train()
        draws = batches(run.train_ids, length=32, batch=16, seed=seed + 1)
        stream = [tuple(map(jnp.asarray, next(draws))) for _ in range(max(4, options.batches))]
        print("\n| seed | contrast | radius | median | ninth decile | worst | cosine | settled |")
        print("|---" * 8 + "|")
        batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), *stream[:4])
        radii(open_run(recipe.out, TrainConfig, step=options.at).model, batch, seed)
        print(
            "\n| seed | step | least cosine | median | below .95 | worst free residual | adjoint | accepted |"
        )
        print("|---" * 8 + "|")
        gate = ej.Accept(recipe.accept_free, recipe.accept_adjoint)
        for step in range(50, options.steps + 1, 50):
            model = open_run(recipe.out, TrainConfig, step=step).model
            owned(model, stream, options.batches, gate, seed, step)


if __name__ == "__main__":
    main()
