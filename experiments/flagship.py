"""Does an equilibrium transformer, trained by AsymEP, learn to the end, and as well as a transformer does?

    python experiments/flagship.py                                    # small, CPU: hours; `--rows transformer` for a look
    python experiments/flagship.py --size full --gpus 4               # width 256, 128 characters, on four GPUs

Every row trains on the same batches for each seed, in a folder of its own; a run that was cut off goes on from its last
checkpoint, one that is finished is not run again. The table is printed at the end, or of what there is by `--table`.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from homeostats import spread, train_transformer

from eqjax.language import tiles
from eqjax.plots import save
from eqjax.plots._figure import look, panels
from eqjax.recipes import TrainConfig
from eqjax.relaxation import AndersonTypeI, Picard, TokenOrder, equilibrium
from eqjax.stability import token_spectrum
from eqjax.training import Run, holds_run, read_metrics

SIZES: dict[str, dict[str, Any]] = {
    "small": {"width": 128, "heads": 4, "length": 64, "batch": 16, "steps": 2500},
    "full": {"width": 256, "heads": 8, "length": 128, "batch": 32, "steps": 4000},
    "pairs": {
        "width": 512,
        "heads": 16,
        "length": 256,
        "batch": 32,
        "steps": 4000,
        "tokens": "bpe",
        "vocabulary": 4096,
    },
}
COMMON = {"evaluate_every": 250, "save_every": 250, "keep": 0}
ROWS: dict[str, dict[str, Any]] = {
    "AsymEP": {"weight_decay": 0.01},
    "AsymEP, decay .1": {},
    "oracle": {"estimator": "oracle"},
    "AsymEP + growth": {"homeostat": "growth"},
    "AsymEP + token growth": {"homeostat": "token-growth"},
    "AsymEP + chain": {"homeostat": "chain"},
    "AsymEP, prefix": {"accept_prefix": True},
    "BPTT": {"estimator": "bptt"},
    "BPTT + growth": {"estimator": "bptt", "homeostat": "growth"},
    "transformer": {"weight_decay": 0.01},
}


def configuration(options: argparse.Namespace, row: str, seed: int) -> TrainConfig:
    name = row.replace(" ", "").replace(",", "-")
    settings = SIZES[options.size] | COMMON | ROWS[row]
    settings |= {"out": str(options.out / options.size / f"{name}-{seed}"), "seed": seed}
    if options.text:
        settings["text"] = str(options.text)
    if options.steps:
        settings["steps"] = options.steps
    return TrainConfig.from_dict(settings)


def run_row(config: TrainConfig, row: str) -> None:
    if row == "transformer":
        if (config.out / "transformer.json").exists():
            return
        result = train_transformer(config)
        (config.out / "transformer.json").write_text(json.dumps(result))
        return
    run = Run.open(config.out, [TrainConfig]) if holds_run(config.out) else Run.start(config)
    run.train(on_step=told(config, row))


def told(config: TrainConfig, row: str):
    def tell(step: int, metrics: dict[str, float]) -> None:
        if "validation" in metrics:
            seen = " ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            print(f"{row}, seed {config.seed}, step {step}: {seen}", flush=True)

    return tell


def curve(folder: Path) -> dict[str, Any] | None:
    """Validation cross-entropies of a run, and what they took."""
    yardstick, metrics = folder / "transformer.json", folder / "metrics.jsonl"
    if yardstick.exists():
        found = json.loads(yardstick.read_text())
        return {"points": found["validation"], "seconds": [found["seconds"]]}
    if not metrics.exists():
        return None
    lines = [line for line in read_metrics(metrics) if "loss" in line]
    at = [line for line in lines if "validation" in line]
    return {
        "points": [(line["step"], line["validation"]) for line in at],
        "unsettled": [line["validation_unsettled"] for line in at],
        "loss": [line["loss"] for line in lines[-20:]],
        "accepted": [line["accepted"] for line in lines],
        "updated": [line["updated"] for line in lines],
        "seconds": [line["seconds"] for line in lines],
    }


def told_of(runs: list[dict[str, Any]]) -> str:
    """The cells of a row: means and standard deviations over its seeds."""

    def over(key, of, form=".3f"):
        return spread([of(run[key]) for run in runs if run.get(key)], form)

    best = [min(run["points"], key=lambda point: point[1]) for run in runs]
    seconds = [1e3 * x for run in runs for x in run["seconds"]]
    cells = [
        ", ".join(str(run["points"][-1][0]) for run in runs),
        spread([point[1] for point in best]),
        ", ".join(str(point[0]) for point in best),
        over("points", lambda points: points[-1][1]),
        over("loss", np.mean),
        over("accepted", np.mean, ".2%"),
        str(sum(1 - x for run in runs for x in run.get("updated", []))),
        over("unsettled", lambda shares: shares[-1], ".3%"),
        f"{np.median(seconds):.0f}, {max(seconds):.0f}",
    ]
    return " | ".join(cells)


def table(options: argparse.Namespace) -> str:
    lines = [
        "| row | seeds | updates | best validation CE | at update | last | training loss | accepted | updates left out "
        "| tokens unsettled at the end | ms an update (median, worst of those logged) |",
        "|---" * 11 + "|",
    ]
    for row in options.rows:
        folders = [configuration(options, row, seed).out for seed in options.seeds]
        runs = [found for folder in folders if (found := curve(folder)) and found["points"]]
        if not runs:
            lines.append(f"| {row} | 0 |" + " – |" * 9)
            continue
        lines.append(f"| {row} | {len(runs)} | {told_of(runs)} |")
    return "\n".join(lines)


def picture(options: argparse.Namespace) -> None:
    """Validation cross-entropy of every run against updates, and against seconds of training."""
    figure, (left, right) = panels(None, 9, 3.6, 1, 2, sharey=True)
    for k, row in enumerate(options.rows):
        for i, seed in enumerate(options.seeds):
            found = curve(configuration(options, row, seed).out)
            if not found or not found["points"]:
                continue
            steps, values = np.array(found["points"]).T
            # Of those logged, one in so many: the time between them is that many of its kind.
            spent = np.cumsum(found["seconds"]) if len(found["seconds"]) > 1 else found["seconds"]
            every = steps[-1] / len(spent)
            at = np.clip(np.round(steps / every).astype(int) - 1, 0, len(spent) - 1)
            seconds = steps * spent[0] if len(spent) == 1 else spent[at] * every
            named = look(k) | {"markersize": 3, "label": row if i == 0 else None}
            left.plot(steps, values, **named)
            right.plot(seconds, values, **named)
    left.set(xlabel="update", ylabel="validation cross-entropy (nats)", ylim=(1.45, 2.3))
    right.set(xlabel="seconds of training", xscale="log")
    left.legend()
    save(figure, options.out / options.size / "flagship.png")


@eqx.filter_jit
def settled(model, inputs, solver, max_steps):
    def one(tokens):
        x = model.encode(tokens)
        found = equilibrium(
            model.field, model.initial(x), x, solver=solver, max_steps=max_steps, throw=False
        )
        each = TokenOrder(AndersonTypeI(1e-5), flow=None)
        each = each.scaled(model.field(0.0, x, x), x)
        return x, found.value, each.residuals(model.field(0.0, found.value, x), found.value)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(inputs)


def examine(folder: Path, count: int, horizon: int = 3000) -> None:
    """What a trained field is like: its margins by token, and how far a plain relaxation comes, as hardware would run it."""
    run = Run.open(folder, [TrainConfig])
    inputs = jnp.asarray(tiles(run.validation_ids, length=run.recipe.length, count=count)[0])
    x, z, left = settled(run.model, inputs, run.estimator.free, run.recipe.max_steps)
    print(f"in token order: {np.mean(left <= 1e-4):.3%} of {left.size} tokens settled", flush=True)
    spectra = [token_spectrum(run.model.field, *at) for at in zip(z, x, strict=True)]
    edge = np.array([s.abscissas for s in spectra])[np.asarray(left <= 1e-4)]
    print(
        f"largest Re of a token's own block: median {np.median(edge):.2f}, 99% below "
        f"{np.quantile(edge, 0.99):.2f}, worst {edge.max():.2f}; {np.mean(edge > 0):.3%} above 0",
        flush=True,
    )
    for epsilon in (0.1, 0.05):
        steps = round(horizon * 0.1 / epsilon)
        _, _, left = settled(run.model, inputs, Picard(1e-5, step_size=epsilon), steps)
        good = left <= 1e-4
        print(
            f"Euler, ε = {epsilon}, to t = {steps * epsilon:g}: {np.mean(good):.2%} of the tokens, "
            f"{np.mean(np.all(good, axis=1)):.1%} of the windows",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=["AsymEP", "oracle", "transformer"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="updates, if not those of the size")
    parser.add_argument("--text", type=Path, help="a text file; tiny Shakespeare if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/flagship"))
    parser.add_argument("--gpus", type=int, default=0, help="one run on each at a time")
    parser.add_argument(
        "--examine", type=Path, metavar="RUN", help="look at a finished run instead"
    )
    parser.add_argument("--windows", type=int, default=8, help="that are examined")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if options.examine:
        examine(options.examine, options.windows)
        return
    jobs = [(row, seed) for seed in options.seeds for row in options.rows]
    if options.table:
        picture(options)
        print(table(options))
        return
    if len(jobs) == 1:
        run_row(configuration(options, *jobs[0]), jobs[0][0])
        return
    cards: queue.Queue[int] = queue.Queue()
    for card in range(max(1, options.gpus)):
        cards.put(card)

    def alone(job):
        card = cards.get()
        place = {"CUDA_VISIBLE_DEVICES": str(card)} if options.gpus else {}
        same = [
            f"--{name}={value}"
            for name in ("size", "text", "out", "steps")
            if (value := getattr(options, name))
        ]
        command = [sys.executable, __file__, *same, "--rows", job[0], "--seeds", str(job[1])]
        subprocess.run(command, env=os.environ | place, check=False)
        cards.put(card)

    with ThreadPoolExecutor(max(1, options.gpus)) as pool:
        list(pool.map(alone, jobs))
    picture(options)
    print(table(options))


if __name__ == "__main__":
    main()
