"""The commands for equilibrium models: `eqjax demo | train | evaluate | sample | compare | spectrum | continue | run`."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated

import tyro

from ..recipes import EstimatorName, TrainConfig
from ..showcase import (
    HH,
    LIF,
    Hamming,
    Hopfield,
    Kuramoto,
    Parity,
    Xor,
)
from ._checks import check_prompt, check_resume, encoded


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train an equilibrium transformer on text by AsymEP, by its exact oracle and by BPTT, and compare.

    Takes 2 to 5 minutes on two CPU cores. Prints a table and a sample of each model; writes
    comparison.json, metrics.jsonl, curves.png and a checkpoint per estimator.
    """

    text: Path | None = None
    """A UTF-8 text file to learn from. Tiny Shakespeare if not given."""
    out: Path = Path("runs/demo")
    """Folder for the results. What an earlier demo left there is replaced."""
    steps: int = 400
    """Updates of each model."""
    seed: int = 0
    """Seed of weights and batches."""
    width: int = 64
    """Channels."""
    heads: int = 4
    """Attention heads."""
    length: int = 32
    """Tokens in a window."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one model; every setting is a flag, or a line of a YAML file.

    The run's folder gets config.yaml (which --config accepts back), metrics.jsonl and checkpoints. A run that
    was stopped, by whatever means, goes on with --resume FOLDER, to the same parameters bit for bit.
    """

    settings: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(
        default_factory=TrainConfig
    )
    config: Path | None = None
    """A YAML file of settings; flags given beside it win."""
    resume: Path | None = None
    """Go on with the run in this folder, by its own settings: no other flag goes with it."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Cross-entropy of a trained model on validation text, settled as it was in training."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    attention_gain: float | None = None
    """Replace the attention gain α (0 switches the attention off)."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Let a trained model write: every character is decoded by settling."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    prompt: str = "\n"
    """Text to go on from."""
    count: int = 200
    """Characters to write."""
    temperature: float = 0.8
    """Of the sampling; 0 takes the likeliest character."""
    seed: int = 0
    """Random seed."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Lay gradient estimators side by side on a checkpoint: cosine, error, residuals, cost.

    Prints a table, and writes it as compare.json and compare.png to the run's folder. Lists are given with commas.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    estimators: str = "asymep,oracle,bptt"
    """Which: asymep, oracle, bptt, holomorphic, dyadic, truncated, vector-field."""
    nudged_steps: str = ""
    """Run the nudged phases for just so many Euler steps (10,40,160, say) instead of to their tolerance."""
    beta: str = ""
    """Nudge by these β (0.04,0.2,0.8, say) instead of by a radius."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    batch: int = 16
    """Windows in the batch."""


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """How stable are a trained model's fixed points? Their leading eigenvalues, for the flow and for Euler.

    Prints a verdict and a table for the window nearest to instability, and the spread over all; writes spectrum.zip (read by
    eqjax.stability.load) and spectrum.png to the run's folder.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    windows: int = 4
    """Validation windows to look at."""
    k: int = 6
    """Eigenvalues of each."""
    step_size: float | None = None
    """ε of the Euler relaxation; the run's own if not given."""
    x64: bool = False
    """Look in float64."""


@dataclasses.dataclass(frozen=True)
class Continue:
    """Follow a trained model's fixed point through a parameter, and say how it loses its stability, if it does.

    Every special point is labelled twice, for the flow and for Euler with the step of the relaxation. Prints a table and a
    verdict; writes branch.zip (read by eqjax.stability.load) and branch.png to the run's folder.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    parameter: str = "attention_gain"
    """A scalar parameter of the field: attention_gain, leak."""
    bounds: tuple[float, float] = (0.0, 1.5)
    """Where the branch ends."""
    start: float | None = None
    """Where it begins; if not given, the lowest of five values up to the trained one where flow and Euler are stable."""
    window: int = 0
    """Which validation window, of 64 spread over the text."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    k: int = 6
    """Eigenvalues followed."""
    step_size: float | None = None
    """ε of the Euler relaxation; the run's own if not given."""
    x64: bool = False
    """Follow it in float64."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Show a known result: prints the measured figures beside the known ones and saves the pictures. Seconds each."""

    show: (
        Annotated[Hopfield, tyro.conf.subcommand("hopfield")]
        | Annotated[Xor, tyro.conf.subcommand("xor")]
        | Annotated[Hamming, tyro.conf.subcommand("hamming")]
        | Annotated[Parity, tyro.conf.subcommand("parity")]
        | Annotated[HH, tyro.conf.subcommand("hh")]
        | Annotated[LIF, tyro.conf.subcommand("lif")]
        | Annotated[Kuramoto, tyro.conf.subcommand("kuramoto")]
    )
    """Which."""


def _demo(command: Demo) -> None:
    from ..demo import demo

    demo(
        TrainConfig(
            out=command.out,
            text=command.text,
            steps=command.steps,
            seed=command.seed,
            width=command.width,
            heads=command.heads,
            length=command.length,
            embedding_scale=3.0,  # learns faster than the default, and settles as long as a demo lasts
            probe_every=max(1, command.steps // 8),
            evaluate_every=max(1, command.steps // 4),
            save_every=max(1, command.steps // 4),
            evaluate_windows=512,
        )
    )


def _train(command: Train) -> None:
    from rich.console import Console

    from ..demo import progress_bar, train_with_bar
    from ..recipes import open_run, start_run

    check_resume(command.resume, command.settings)
    run = open_run(command.resume) if command.resume else start_run(command.settings)
    console = Console()
    console.print(f"Text: {run.source}; writing to {run.config.out}.")
    with progress_bar(console) as progress:
        outcome = train_with_bar(run, progress, run.config.estimator)
    _report(run, outcome)


def _report(run, outcome) -> None:
    from ..language import bigram_cross_entropy, unigram_entropy
    from ..recipes import evaluate

    result = evaluate(run, run.validation_ids)
    bigram = bigram_cross_entropy(run.train_ids, run.validation_ids, run.tokenizer.size)
    print(
        f"validation cross-entropy {result.cross_entropy:.4f} nats/char over {result.tokens} characters "
        f"(bigram {bigram:.3f}, unigram entropy {unigram_entropy(run.validation_ids):.3f}); "
        f"median force residual {result.residual:.1e}"
        + (
            ""
            if result.unsettled != result.unsettled
            else f", unsettled windows {result.unsettled:.1%}"
        )
    )
    if outcome is not None and outcome.memory_bytes:
        print(f"{outcome.seconds_per_step:.3f} s/step, {outcome.memory_bytes / 2**20:.0f} MiB/step")
        if outcome.skipped:
            print(f"{outcome.skipped} updates were left out: no sample of their batch was accepted")


def _evaluate(command: Evaluate) -> None:
    import equinox as eqx
    import jax.numpy as jnp

    from ..recipes import open_run

    run = open_run(command.run, step=command.step)
    if command.attention_gain is not None:
        gain = run.model.field.attention_gain  # pyright: ignore[reportAttributeAccessIssue]
        new = jnp.asarray(command.attention_gain, gain.dtype)
        run.state = eqx.tree_at(lambda s: s.model.field.attention_gain, run.state, new)
    _report(run, None)


def _sample(command: Sample) -> None:
    from ..recipes import open_run, sample

    check_prompt(command.prompt)
    if not command.temperature >= 0:
        raise ValueError(f"--temperature must be at least 0, got {command.temperature}.")
    run = open_run(command.run)
    prompt = encoded(run.tokenizer, command.prompt)
    text = sample(run, prompt, command.count, temperature=command.temperature, seed=command.seed)
    print(command.prompt + text)


def _compare(command: Compare) -> None:
    import json

    from ..analytic import cross_entropy
    from ..gradients import compare
    from ..plots import comparison, save
    from ..recipes import open_run, probe_batch, reference_oracle

    names = [name.strip() for name in command.estimators.split(",")]
    known = typing.get_args(EstimatorName)
    for name in names:
        if name not in known:
            raise ValueError(f"--estimators: unknown `{name}`. Known: {', '.join(known)}.")
    steps = [int(n) for n in _numbers("--nudged-steps", command.nudged_steps)]
    betas = _numbers("--beta", command.beta)
    run = open_run(command.run, step=command.step)
    config = dataclasses.replace(run.config, batch=command.batch)
    run.config = config
    table = compare(
        run.model,
        cross_entropy,
        probe_batch(run),
        _variants(config, names, steps, betas),
        reference=reference_oracle(config),
        repeats=3,
    )
    print(table)
    (command.run / "compare.json").write_text(json.dumps(table.to_dict(), indent=1), "utf-8")
    save(comparison(table), command.run / "compare.png")
    print(f"Written to {command.run}: compare.json, compare.png.")


def _spectrum(command: Spectrum) -> None:
    import jax
    import jax.numpy as jnp

    from .. import plots
    from ..recipes import check_windows, windows
    from ..stability import save

    run, model, step = _opened(command)
    found = check_windows(model, windows(run, command.windows), step=step, k=command.k)
    worst = int(jnp.argmax(found.abscissa))
    print(f"Window {worst} of {command.windows}, Euler step {step:g}:")
    print(jax.tree.map(lambda leaf: leaf[worst], found))
    fixed, flow, euler = (
        f"{int(jnp.sum(held))} of {command.windows}"
        for held in (found.fixed_point, found.holds, jnp.asarray(found.holds_euler))
    )
    low, high = float(found.abscissa.min()), float(found.abscissa.max())
    print(
        f"Fixed points found: {fixed} windows; the flow stays at {flow}, Euler at {euler}. "
        f"Largest growth rate {low:+.4g} to {high:+.4g}."
    )
    save(command.run / "spectrum.zip", found.spectrum)
    plots.save(plots.spectrum(found.spectrum, step=step), command.run / "spectrum.png")
    print(f"Written to {command.run}: spectrum.zip, spectrum.png.")


def _continue(command: Continue) -> None:
    from rich.console import Console

    from .. import plots
    from ..recipes import follow, parameter, windows
    from ..stability import classify, save

    run, model, step = _opened(command)
    if not 0 <= command.window < 64:
        raise ValueError(f"--window must lie between 0 and 63, got {command.window}.")
    trained = parameter(model.field, command.parameter)
    inputs = windows(run, 64)
    with Console(stderr=True).status("") as status:

        def told(value, state, spectrum):
            rate = float(spectrum.values.real.max())
            status.update(f"{command.parameter} {value:.4f}: largest growth rate {rate:+.3f}")

        branch = follow(
            model,
            inputs[command.window % len(inputs)],
            path=command.parameter,
            bounds=command.bounds,
            start=command.start,
            step=step,
            k=command.k,
            callback=told,
        )
    print(branch)
    begun = branch.unstable[0] or (branch.unstable_euler is not None and branch.unstable_euler[0])
    if begun:
        print(
            "It begins unstable: --start it where the model settles to learn how stability is lost."
        )
    else:
        first = classify(branch)
        lost = f"First loss of stability: {first}." if first.point else "It is stable all along."
        print(lost)
        if first.point and command.bounds[0] <= trained <= command.bounds[1]:
            print(f"At the trained value {trained:g}: {classify(branch, at=trained)}.")
    save(command.run / "branch.zip", branch)
    figure = plots.branch(branch, labels=(command.parameter, "‖z‖"))
    plots.save(figure, command.run / "branch.png")
    print(f"Written to {command.run}: branch.zip, branch.png.")


def _run(command: Run) -> None:
    from ..showcase import present

    present(command.show)


def _opened(command: Spectrum | Continue):
    """The run, its model in the precision asked for, and the Euler step."""
    from ..recipes import in_double, open_run

    run = open_run(command.run, step=command.step)
    step = run.config.step_size if command.step_size is None else command.step_size
    if not step > 0:
        raise ValueError(f"--step-size must be above 0, got {step}.")
    return run, in_double(run) if command.x64 else run.model, step


def _numbers(flag: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{flag} takes numbers with commas between them, got {text!r}.") from None
    if not all(value > 0 for value in values):
        raise ValueError(f"{flag} takes numbers above 0, got {text!r}.")
    return values


def _variants(config: TrainConfig, names: list[str], steps: list[int], betas: list[float]):
    """The named estimators; those with nudged phases once for every step count and β that was asked for."""
    import equinox as eqx
    import jax.numpy as jnp

    from ..gradients import AbstractNudgedEstimator
    from ..recipes import build_estimator
    from ..relaxation import Picard

    variants = {}
    for name in names:
        estimator = build_estimator(dataclasses.replace(config, estimator=name))
        if not isinstance(estimator, AbstractNudgedEstimator) or not (steps or betas):
            variants[name] = estimator
            continue
        for count in steps or [None]:
            for beta in betas or [None]:
                label, changed = name, estimator
                if count is not None:
                    label += f" T2={count}"
                    euler = Picard(step_size=config.step_size)
                    changed = dataclasses.replace(changed, nudged=euler, nudged_steps=count)
                if beta is not None:
                    label += f" β={beta:g}"
                    changed = dataclasses.replace(changed, radius=None, beta=jnp.asarray(beta))
                # A sweep is there to see what goes wrong: nothing is left out for its adjoint.
                variants[label] = eqx.tree_at(
                    lambda e: e.accept.adjoint_residual, changed, float("inf")
                )
    return variants


COMMANDS = {
    Demo: _demo,
    Train: _train,
    Evaluate: _evaluate,
    Sample: _sample,
    Compare: _compare,
    Spectrum: _spectrum,
    Continue: _continue,
    Run: _run,
}
