"""May a batch end before its slowest samples? What `Quorum` does to learning, and to the time of an update.

    python experiments/stragglers.py

An equilibrium block is trained by the oracle on the same batches, its free phase ended when a fraction of the batch has
settled: the samples left behind weigh nothing in the update. The whole window settles at once, under a growth homeostat.
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqjax.analytic import cross_entropy
from eqjax.gradients import Accept, OracleAdjoint
from eqjax.homeostasis import growth_homeostat
from eqjax.language import CharTokenizer, equilibrium_lm, load_corpus, tiles
from eqjax.relaxation import GMRES, Anderson, Quorum, equilibrium
from eqjax.training import TrainState, make_step

WIDTH, LENGTH, HEADS, BATCH = 64, 32, 4, 32
FREE = Anderson(rtol=5e-5)


def estimator(fraction: float) -> OracleAdjoint:
    return OracleAdjoint(
        free=FREE if fraction == 1 else Quorum(FREE, settled=fraction),  # pyright: ignore[reportCallIssue]
        adjoint_solver=GMRES(rtol=3e-3),
        accept=Accept(free_residual=1e-4, adjoint_residual=1e-2),
    )


@eqx.filter_jit
def validated(model, inputs, targets):
    """Cross-entropy of all windows, and the fraction that settles; each to its end."""

    def one(tokens, target):
        x = model.encode(tokens)
        found = equilibrium(model.field, model.initial(x), x, solver=FREE, throw=False)
        return cross_entropy(model.decode(found.value), target), found.residual <= 1e-4

    losses, settled = jax.vmap(one)(inputs, targets)
    return jnp.mean(losses), jnp.mean(settled.astype(losses.dtype))


def run(text: str, fraction: float, seed: int, steps: int) -> dict[str, float]:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    cut = int(0.9 * len(ids))
    key = jax.random.key(seed)
    model = equilibrium_lm(tokenizer.size, LENGTH, WIDTH, HEADS, qknorm=True, key=key)
    rate = optax.cosine_decay_schedule(3e-3, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    homeostat = growth_homeostat()
    step = make_step(estimator(fraction), optimiser, homeostat)
    state = TrainState.create(model, optimiser, key=key, homeostat=homeostat)
    rng = np.random.default_rng(seed)
    accepted, seconds = [], []
    for _ in range(steps):
        starts = rng.integers(0, cut - LENGTH - 1, BATCH)
        windows = np.stack([ids[s : s + LENGTH + 1] for s in starts])
        begun = time.perf_counter()
        state, metrics = step(state, (jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:])))
        accepted.append(float(metrics["accepted"]))
        seconds.append(time.perf_counter() - begun)
    late = seconds[steps // 2 :]
    inputs, targets = map(jnp.asarray, tiles(ids[cut:], length=LENGTH, count=256))
    loss, settled = validated(state.model, inputs, targets)
    return {
        "validation": float(loss),
        "settled": float(settled),
        "accepted": float(np.mean(accepted)),
        "median": 1e3 * float(np.median(late)),
        "most": 1e3 * max(late),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="a text file; tiny Shakespeare if not given")
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.9, 0.75])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    text = str(load_corpus(options.text).text)
    print(
        "| ends when settled | seed | validation CE | windows that settle | accepted | ms an update: median, most |"
    )
    print("|---" * 6 + "|")
    for seed in options.seeds:
        for fraction in options.fractions:
            found = run(text, fraction, seed, options.steps)
            print(
                f"| {fraction:.0%} | {seed} | {found['validation']:.3f} | {found['settled']:.1%} "
                f"| {found['accepted']:.1%} | {found['median']:.0f}, {found['most']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
