"""The demo: one equilibrium transformer learns real text by three gradients, laid side by side."""

import dataclasses
import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import plots
from ._files import write_text
from .analytic import cross_entropy, tree_cast
from .gradients import Accept, AsymEP, OracleAdjoint, on_common_samples
from .language import bigram_cross_entropy, unigram_entropy, without_attention
from .recipes import TrainConfig, probe_batch, sample
from .relaxation import GMRES, Anderson
from .training import Run, Tracker, plain, read_metrics

ESTIMATORS = {"asymep": "AsymEP", "oracle": "OracleAdjoint", "bptt": "BPTT"}
# A checkpoint counts as settled if this fraction of its samples meets both residuals.
SAMPLES, FREE, ADJOINT = 0.9, 1e-4, 1e-2


def progress_bar(
    console: Console, told: str = "loss {task.fields[loss]} residual {task.fields[residual]}"
) -> Progress:
    """A bar that shows what is `told` (fields of the task) and the time left."""
    return Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn(told),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def train_with_bar(run: Run, progress: Progress, name: str, log: Sequence[Tracker] = ()) -> Any:
    """`train`, drawn on a progress bar."""
    steps, done = run.recipe.steps, int(run.state.step)
    task = progress.add_task(name, total=steps, completed=done, loss="compiling…", residual="–")
    said = time.monotonic()

    def on_step(step: int, values: dict[str, float]) -> None:
        nonlocal said
        if "loss" in values:
            if not progress.console.is_terminal and time.monotonic() - said >= 10:
                said = time.monotonic()  # no bar is drawn there
                progress.console.print(f"{name}: step {step} of {steps}, loss {values['loss']:.3f}")
            residual = f"{values.get('free_residual', float('nan')):.0e}"
            loss = f"{values['loss']:.3f}"
            progress.update(task, completed=step, loss=loss, residual=residual)

    told = lambda memory: progress.console.print(f"{name}: {memory}.")
    return run.train(on_step=on_step, on_memory=told, log=log)


def float64_probe(run: Run) -> dict[str, float]:
    """AsymEP's gradient against the oracle in float64 at the run's present parameters."""
    with jax.enable_x64(True):
        model = tree_cast(run.model, jnp.float64)
        shared = {"free": Anderson(rtol=1e-9), "accept": Accept(1e-6, 1e-3)}
        asymep = AsymEP(nudged=Anderson(rtol=1e-7), **shared)
        oracle = OracleAdjoint(adjoint_solver=GMRES(rtol=1e-9), **shared)
        batch = probe_batch(run)
        estimate, cosine, error = on_common_samples(model, cross_entropy, batch, asymep, oracle)
        accepted = estimate.report.summary()["accepted"]
        told = {"cosine": cosine, "relative_error": error, "accepted": accepted}
        return {name: float(value) for name, value in told.items()}


def measure(run: Run, outcome: Any) -> dict[str, Any]:
    """One estimator's line of the table."""
    lines = read_metrics(Path(run.recipe.out) / "metrics.jsonl")
    probes = [line for line in lines if "probe_cosine" in line]
    first, last = probes[0], probes[-1]
    logged = [line for line in lines if "loss" in line]
    validation = run.evaluate(run.validation_ids)
    blind = run.evaluate(run.validation_ids, model=without_attention(run.model))
    mean = lambda name: sum(line[name] for line in logged) / len(logged)
    arrays = [x for x in jax.tree.leaves(run.model) if isinstance(x, jax.Array) and x.ndim]
    row = {
        "objective": run.estimator.objective,
        "train": run.evaluate(run.train_ids).cross_entropy,
        "validation": validation.cross_entropy,
        "validation_alpha0": blind.cross_entropy,
        "validation_tokens": validation.tokens,
        "settled": None if math.isnan(validation.unsettled) else 1 - validation.unsettled,
        "free_residual": last["probe_free_residual"],
        "adjoint_residual": last["probe_adjoint_residual"],
        "cosine_first": first["probe_cosine"],
        "cosine_last": last["probe_cosine"],
        "relative_error_first": first["probe_relative_error"],
        "relative_error_last": last["probe_relative_error"],
        "field_evaluations": mean("field_evaluations"),
        "accepted": mean("accepted"),
        "seconds_per_step": outcome.seconds_per_step,
        "compile_seconds": outcome.compile_seconds,
        "memory_mib": outcome.memory_bytes / 2**20,
        "parameters": sum(x.size for x in arrays),
    }
    if run.recipe.estimator != "bptt":
        settled = lambda p: (
            p["probe_accepted"] >= SAMPLES
            and p["probe_free_residual"] <= FREE
            and p["probe_adjoint_residual"] <= ADJOINT
        )
        qualifying = list(filter(settled, probes))
        row["checkpoints"] = len(probes)
        row["probe_accepted_lowest"] = min(p["probe_accepted"] for p in probes)
        row["checkpoints_qualifying"] = len(qualifying)
        row["cosine_lowest_qualifying"] = min((p["probe_cosine"] for p in qualifying), default=None)
    return row


def environment(seed: int) -> dict[str, Any]:
    """Versions, device and revision: what a figure needs to be repeated."""
    packages = ("eqjax", "jax", "equinox", "diffrax", "optimistix", "lineax", "optax")
    versions = {name: importlib.metadata.version(name) for name in packages}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        revision = done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {
        "versions": versions | {"python": platform.python_version()},
        "device": str(jax.devices()[0].device_kind),
        "platform": platform.platform(),
        "seed": seed,
        "git_revision": revision,
    }


_COLUMNS = (
    ("train CE", "train", ".3f"),
    ("val. CE", "validation", ".3f"),
    ("val. CE, α=0", "validation_alpha0", ".3f"),
    ("free residual", "free_residual", ".1e"),
    ("adjoint residual", "adjoint_residual", ".1e"),
    ("cosine first", "cosine_first", ".6f"),
    ("cosine last", "cosine_last", ".6f"),
    ("rel. error first", "relative_error_first", ".1e"),
    ("rel. error last", "relative_error_last", ".1e"),
    ("evaluations/step", "field_evaluations", ".0f"),
    ("samples accepted", "accepted", ".1%"),
    ("tokens settled, val.", "settled", ".2%"),
    ("seconds/step", "seconds_per_step", ".3f"),
    ("step memory, MiB", "memory_mib", ".0f"),
)


def comparison_table(rows: dict[str, dict[str, Any]]) -> Table:
    """Estimators across, quantities down: it fits a terminal of 80 columns."""
    table = Table(title="One model, one seed, the same batches, three gradients")
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for label, key, form in _COLUMNS:
        cells = ("–" if row[key] is None else format(row[key], form) for row in rows.values())
        table.add_row(label, *cells)
    return table


def verdict(rows: dict[str, dict[str, Any]], baselines: dict[str, float]) -> str:
    """One sentence that says what the table shows, whatever it shows."""
    asymep = rows["AsymEP"]
    lowest = asymep["cosine_lowest_qualifying"]
    agreed = (
        f"AsymEP's gradient agreed with the exact oracle (lowest cosine {lowest:.5f} over the "
        f"{asymep['checkpoints_qualifying']} of {asymep['checkpoints']} checkpoints at which at least "
        f"{SAMPLES:.0%} of the samples had settled)"
        if lowest is not None
        else "AsymEP's phases settled at no checkpoint, so its gradient cannot be trusted"
    )
    ends = [row["validation"] for row in rows.values()]
    context = min(row["validation_alpha0"] - row["validation"] for row in rows.values())
    return (
        f"{agreed}; the three models end at {min(ends):.3f} to {max(ends):.3f} nats/char on validation text, "
        f"against {baselines['unigram']:.3f} for the unigram entropy and {baselines['bigram']:.3f} for a bigram, and "
        f"attention accounts for {context:.2f} nats or more of that."
    )


def demo(
    config: TrainConfig, *, console: Console | None = None, talk: Console | None = None
) -> dict[str, Any]:
    """Train by each estimator, compare, sample, and write everything into `config.out`.

    **Arguments:** `config`; `console` for the results; `talk` for the bar on the way to them, by default the same.

    **Returns:** the contents of `comparison.json`.
    """
    console = console or Console()
    out = Path(config.out)
    marker = out / ".eqjax-demo"
    if marker.exists():  # what an earlier demo left, and nothing else
        for name in ESTIMATORS:
            shutil.rmtree(out / name, ignore_errors=True)
    elif any((out / name).exists() for name in ESTIMATORS):
        raise ValueError(f"--out {out} holds runs that are not this demo's. Choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text("The demo replaces the folders beside this file.\n", "utf-8")
    rows, samples, runs = {}, {}, {}
    with progress_bar(talk or console) as progress:
        for name, title in ESTIMATORS.items():
            run = Run.start(dataclasses.replace(config, out=out / name, estimator=name))
            if not runs:
                letters = run.tokenizer.characters
                progress.console.print(
                    f"Text: {run.material.source}; {len(letters)} different characters."
                )
            rows[title], runs[title] = measure(run, train_with_bar(run, progress, title)), run
            prompt = run.tokenizer.encode("\n") if "\n" in run.tokenizer.characters else [0]
            samples[title] = sample(run, prompt, 200, temperature=0.8, seed=config.seed)
        run = runs["AsymEP"]
        probe = float64_probe(run)
    bigram = bigram_cross_entropy(run.train_ids, run.validation_ids, run.tokenizer.size)
    baselines = {"unigram": unigram_entropy(run.validation_ids), "bigram": bigram}
    result = {
        "table": rows,
        "baselines": baselines,
        "float64_probe": probe,
        "text": run.material.source,
        "config": config.to_dict(),
        "samples": samples,
        "says": verdict(rows, baselines),
        **environment(config.seed),
    }
    metrics = "metrics.jsonl"
    lines = {title: read_metrics(out / name / metrics) for name, title in ESTIMATORS.items()}
    told = [{"estimator": title} | e for title, entries in lines.items() for e in entries]
    write_text(out / metrics, "".join(json.dumps(line) + "\n" for line in told))
    text = json.dumps(plain(result), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out / "comparison.json", text)
    plots.save(plots.training(lines, baselines=baselines), out / "curves.png")

    console.print(comparison_table(rows))
    console.print(
        f"Validation text: unigram entropy {baselines['unigram']:.3f} (no context-free model can pass it), "
        f"bigram cross-entropy {bigram:.3f} nats/char."
    )
    console.print(
        f"The last AsymEP checkpoint in float64: cosine {probe['cosine']:.9f}, relative error "
        f"{probe['relative_error']:.1e} against the oracle."
    )
    console.print(result["says"])
    for title, text in samples.items():
        console.print(f"\n[bold]{title}[/bold] writes:")
        console.print(text, markup=False, highlight=False)
    console.print(f"\nWritten to {out}: comparison.json, metrics.jsonl, curves.png, checkpoints.")
    return result
