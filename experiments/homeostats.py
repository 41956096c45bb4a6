"""Which homeostat holds the equilibrium block settled at the least cost in cross-entropy?

    python experiments/homeostats.py                                   # short, CPU, about 20 minutes on two cores
    python experiments/homeostats.py --size full --gpus 2 --workers 8  # width 256, 128 characters

Every row trains on the same batches from the same weights, for each seed. Along the way the leading spectrum of the settled
field is taken on validation windows. Rows that are finished are not run again; the table is printed at the end.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqjax as ej
from eqjax.fields._parts import MLP, Attention, LayerNorm
from eqjax.language import Embedding, Readout, tiles
from eqjax.recipes import TrainConfig
from eqjax.recipes._examine import settle, windows
from eqjax.recipes._schedule import build_optimiser
from eqjax.stability._propagation import euler_map
from eqjax.training import Run, plain, read_metrics

SIZES = {
    "short": {
        "width": 64,
        "heads": 4,
        "length": 32,
        "batch": 16,
        "steps": 400,
        "learning_rate": 3e-3,
    },
    "full": {
        "width": 256,
        "heads": 8,
        "length": 128,
        "batch": 16,
        "steps": 250,
        "learning_rate": 3e-3,
    },
}
# A small scale of the embeddings, so that the block does lose its fixed points (see embedding_scale.py).
COMMON = {
    "estimator": "oracle",
    "embedding_scale": 1.0,
    "max_steps": 120,
    "save_every": 10**9,
    "evaluate_windows": 256,
}
PI = {"homeostat_controller": "pi"}
ROWS: dict[str, dict[str, Any]] = {
    "none": {},
    "growth": {"homeostat": "growth"},
    "growth, PI": {"homeostat": "growth", "homeostat_target": 2e-3, **PI},
    "spectral": {"homeostat": "spectral", "homeostat_samples": 2},
    "lognorm": {
        "homeostat": "lognorm",
        "homeostat_weight": 0.1,
        "homeostat_margin": 0.0,
        "homeostat_samples": 2,
    },
    "jacobian, PI": {"homeostat": "jacobian", "homeostat_weight": 0.1, **PI},
    "antisymmetry, PI": {"homeostat": "antisymmetry", "homeostat_weight": 0.1, **PI},
    "residual, PI": {"homeostat": "residual", "homeostat_weight": 0.3, **PI},
    "AsymEP + growth": {"estimator": "asymep", "homeostat": "growth"},
    "AsymEP, none": {"estimator": "asymep"},
    "BPTT, none": {"estimator": "bptt"},
    "BPTT + growth": {"estimator": "bptt", "homeostat": "growth"},
    "pre-LN transformer": {},
}
WINDOWS = 4  # on which spectra are taken


class Transformer(eqx.Module):
    """The yardstick: one pre-LN block of the same parts, applied once, and a final norm."""

    embed: Embedding
    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    mlp: MLP
    norm3: LayerNorm
    readout: Readout

    def __init__(self, config, vocabulary, key):
        a, b, c, d = jax.random.split(key, 4)
        self.embed = Embedding(
            vocabulary, config.length, config.width, scale=config.embedding_scale, key=a
        )
        self.norm1, self.norm2, self.norm3 = (LayerNorm(config.width) for _ in range(3))
        self.attention = Attention(config.width, config.heads, qknorm=config.qknorm, key=b)
        self.mlp = MLP(config.width, key=c)
        self.readout = Readout(config.width, vocabulary, key=d)

    def hidden(self, tokens):
        z = self.embed(tokens)
        z = z + self.attention(self.norm1(z))
        return self.norm3(z + self.mlp(self.norm2(z)))

    def __call__(self, tokens):
        return self.readout(self.hidden(tokens))


def train_transformer(config: TrainConfig) -> dict[str, Any]:
    """Backpropagation on the batches that the equilibrium models see."""
    run = Run.start(config)
    optimiser = build_optimiser(config)
    model = Transformer(config, run.tokenizer.size, jax.random.key(config.seed))
    state = optimiser.init(eqx.filter(model, eqx.is_array))

    def loss(model, inputs, targets):
        return jnp.mean(jax.vmap(ej.cross_entropy)(jax.vmap(model)(inputs), targets))

    @eqx.filter_jit(donate="all")
    def update(model, state, batch):
        value, grads = eqx.filter_value_and_grad(loss)(model, *batch)
        updates, state = optimiser.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, value

    inputs, targets = tiles(run.validation_ids, length=config.length, count=config.evaluate_windows)
    validate = eqx.filter_jit(loss)
    validation, seconds = [], []
    for step in range(1, config.steps + 1):
        start = time.perf_counter()
        model, state, _ = jax.block_until_ready(
            update(model, state, tuple(map(jnp.asarray, next(run.data))))
        )
        seconds.append(time.perf_counter() - start)
        if step % config.evaluate_every == 0 or step == config.steps:
            validation.append(
                (step, float(validate(model, jnp.asarray(inputs), jnp.asarray(targets))))
            )
    return {"validation": validation, "seconds": statistics.median(seconds)}


@eqx.filter_jit
def leading(model, step_size, inputs, key):
    """Of each window: the force residual, the rightmost eigenvalue of J and the largest |1 + εμ|."""

    def one(inputs, key):
        x, z = settle(model, inputs)
        # A bounded search, where `stability.check` would go on for as long as it takes.
        settings = {"k": 2, "tol": 1e-3, "max_restarts": 30, "throw": False, "key": key}
        euler = euler_map(model.field, step_size)
        found = ej.stability.spectrum(model.field, z.value, x, **settings)
        mapped = ej.stability.spectrum(euler, z.value, x, which="LM", **settings)
        return z.residual, found.values[0], found.residuals[0], jnp.abs(mapped.values[0])

    return jax.vmap(one)(inputs, jax.random.split(key, inputs.shape[0]))


def run_row(config: TrainConfig, row: str) -> dict[str, Any]:
    if row == "pre-LN transformer":
        return train_transformer(config)
    run = Run.start(config)
    inputs = windows(run, WINDOWS)
    spectra = []

    def look(step: int, metrics: dict[str, float]) -> None:
        if "validation" not in metrics:
            return
        residual, value, error, multiplier = map(
            np.asarray,
            leading(run.model, jnp.asarray(config.step_size), inputs, jax.random.key(0)),
        )
        spectra.append(
            {
                "step": step,
                "residual": residual.tolist(),
                "real": value.real.tolist(),
                "imag": value.imag.tolist(),
                "eigenpair_residual": error.tolist(),
                "multiplier": multiplier.tolist(),
            }
        )
        told = f"CE {metrics['validation']:.3f}, accepted {metrics.get('accepted', 1):.0%}"
        print(
            f"{row}, seed {config.seed}, step {step}: {told}, max Re μ {value.real.max():+.3f}",
            flush=True,
        )

    outcome = run.train(on_step=look)
    lines = [line for line in read_metrics(config.out / "metrics.jsonl") if "loss" in line]
    return {
        "validation": [(x["step"], x["validation"]) for x in lines if "validation" in x],
        "unsettled": [(x["step"], x["validation_unsettled"]) for x in lines if "validation" in x],
        "accepted": statistics.mean(x["accepted"] for x in lines),
        "skipped": outcome.skipped,
        "gated": statistics.mean(x.get("gated", 0.0) for x in lines),
        "penalty_weight": [(x["step"], x.get("penalty_weight")) for x in lines[::10]],
        "seconds": outcome.seconds_per_step,
        "spectra": spectra,
    }


def configuration(options: argparse.Namespace, row: str, seed: int) -> TrainConfig:
    settings = chosen(options, ROWS[row])
    folder = options.out / options.size / f"{row.replace(' ', '').replace(',', '-')}-{seed}"
    settings |= {
        "order": "window",
        "out": folder,
        "seed": seed,
        "evaluate_every": max(1, settings["steps"] // 5),
    }
    return TrainConfig.from_dict(
        {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    )


def spread(values: list[float], form: str = ".3f") -> str:
    finite = [v for v in values if v is not None and np.isfinite(v)]
    if not finite:
        return "–"
    around = f" ± {statistics.stdev(finite):{form}}" if len(finite) > 1 else ""
    return f"{statistics.mean(finite):{form}}{around}"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Best validation CE (mean and standard deviation over seeds), smallest margin over windows and checkpoints, and what
    it took. A run diverged if its last CE is .2 above its best, or not finite."""
    lines = [
        "| homeostat | best validation CE | last CE | smallest margin, flow | ... Euler | samples accepted | gated steps "
        "| updates left out | unsettled at the end | diverged | s/step | seeds |",
        "|---" * 12 + "|",
    ]
    for row, runs in results.items():
        best = [
            min((v for _, v in r["validation"] if v is not None), default=float("nan"))
            for r in runs
        ]
        last = [r["validation"][-1][1] for r in runs]
        lost = sum(
            b is None or not np.isfinite(b) or b > a + 0.2 for a, b in zip(best, last, strict=True)
        )
        cells = [row, spread(best), spread(last)]
        if "spectra" in runs[0]:
            margin = [-max(max(s["real"]) for s in r["spectra"]) for r in runs]
            euler = [1 - max(max(s["multiplier"]) for s in r["spectra"]) for r in runs]
            cells += [
                spread(margin, ".2f"),
                spread(euler),
                f"{statistics.mean(r['accepted'] for r in runs):.1%}",
            ]
            cells += [f"{statistics.mean(r['gated'] for r in runs):.1%}"]
            cells += [spread([float(r["skipped"]) for r in runs], ".0f")]
            unsettled = [r["unsettled"][-1][1] for r in runs]
            cells += ["–" if None in unsettled else f"{statistics.mean(unsettled):.1%}"]
        else:
            cells += ["–"] * 6
        cells += [
            f"{lost} of {len(runs)}",
            f"{statistics.median(r['seconds'] for r in runs):.3f}",
            str(len(runs)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    kinds = {f.name: f.type for f in dataclasses.fields(TrainConfig)}
    if name not in kinds:
        raise argparse.ArgumentTypeError(f"unknown setting {name!r}; known: {', '.join(kinds)}")
    return name, int(value) if value.isdigit() else value


def training_options(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows what to train: size, updates, and any setting."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="short")
    parser.add_argument("--steps", type=int, default=0, help="updates, instead of the size's own")
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any training setting",
    )
    return parser


def chosen(options: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """The settings of a row, as they were asked for."""
    settings = SIZES[options.size] | COMMON | row
    if options.steps:
        settings["steps"] = options.steps
    return settings | dict(options.set)


def main():
    parser = training_options(__doc__)
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        default=list(ROWS),
        metavar="ROW",
        help=", ".join(ROWS),
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--gpus", type=int, default=0, help="to spread them over")
    parser.add_argument("--out", type=Path, default=Path("runs/homeostats"))
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.single:
        (row,), (seed,) = options.rows, options.seeds
        config = configuration(options, row, seed)
        result = run_row(config, row)
        temporary = config.out / "result.tmp"
        temporary.write_text(json.dumps(plain(result)), "utf-8")
        temporary.replace(config.out / "result.json")
        return

    def launch(job: tuple[int, tuple[int, str]]) -> None:
        number, (seed, row) = job
        config = configuration(options, row, seed)
        if (config.out / "result.json").exists():
            return
        environment = dict(os.environ)
        if options.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % options.gpus)
        command = [
            sys.executable,
            __file__,
            "--single",
            "--size",
            options.size,
            "--out",
            str(options.out),
        ]
        command += ["--rows", row, "--seeds", str(seed), "--steps", str(options.steps)]
        command += [part for name, value in options.set for part in ("--set", f"{name}={value}")]
        config.out.mkdir(parents=True, exist_ok=True)
        with (config.out / "log.txt").open("w") as log:
            failed = subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT
            ).returncode
        print(
            f"{row}, seed {seed}: {'FAILED, see ' + str(log.name) if failed else 'done'}",
            flush=True,
        )

    jobs = enumerate(itertools.product(options.seeds, options.rows))
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(launch, jobs))
    results: dict[str, list[dict[str, Any]]] = {}
    for row, seed in itertools.product(options.rows, options.seeds):
        path = configuration(options, row, seed).out / "result.json"
        if path.exists():
            results.setdefault(row, []).append(json.loads(path.read_text("utf-8")))
    print(table(results))


if __name__ == "__main__":
    main()
