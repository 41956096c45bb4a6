"""The commands for equilibrium models: `eqjax demo | train | evaluate | sample | compare | spectrum | continue | explore | run`."""

import dataclasses
import math
import typing
from pathlib import Path
from typing import Annotated

import tyro

from .. import showcase
from .._checks import check_count, check_finite_number, check_positive, given
from .._files import write_text
from ..recipes import EstimatorName, TrainConfig
from ._common import TrackerName, check_sampling, encoded, print_entropy, trained
from ._explore import ExploreCommand, explore
from ._working import talk, working


@dataclasses.dataclass(frozen=True)
class DemoCommand:
    """Train an equilibrium transformer on text by AsymEP, by its exact oracle and by BPTT, and compare.

    Takes 3½ to 6 minutes on two CPU cores. Prints a table and a sample of each model; writes
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
class TrainCommand:
    """Train one model; every setting is a flag, or a line of a YAML file.

    The run's folder gets config.yaml (which --config accepts back), metrics.jsonl and checkpoints. A run that
    was stopped, by whatever means, goes on with --resume FOLDER, to the same parameters bit for bit.
    """

    settings: TrainConfig = TrainConfig()
    config: Path | None = None
    """A YAML file of settings; flags given beside it win."""
    resume: Path | None = None
    """Go on with the run in this folder, by its own settings: of the other flags only --devices and --log go with it."""
    log: tuple[TrackerName, ...] = ()
    """Where metrics go beside metrics.jsonl; a run that goes on goes on there. Each is an extra of eqjax."""


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Cross-entropy of a trained model on validation text, settled as it was in training; of a GPT-2's run, too."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    attention_gain: float | None = None
    """Replace the attention gain α of an equilibrium model (0 switches the attention off)."""


@dataclasses.dataclass(frozen=True)
class SampleCommand:
    """Let a trained model write: every character is decoded by settling."""

    run: tyro.conf.Positional[str]
    """The run's folder, or a model of `eqjax push`: a folder, or hf://owner/name."""
    prompt: str = "\n"
    """Text to go on from."""
    count: int = 200
    """Characters to write."""
    temperature: float = 0.8
    """Of the sampling; 0 takes the likeliest character."""
    seed: int = 0
    """Random seed."""


@dataclasses.dataclass(frozen=True)
class CompareCommand:
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
class SpectrumCommand:
    """How stable are a trained model's fixed points? Their leading eigenvalues, for the flow and for Euler.

    Prints a verdict and a table for the window nearest to instability, and the spread over all; writes spectrum.zip (read by
    eqjax.stability.load) and spectrum.png to the run's folder.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; the newest if not given."""
    windows: int = 4
    """Validation windows to look at; all of them if there are fewer."""
    k: int = 6
    """Eigenvalues of each."""
    step_size: float | None = None
    """ε of the Euler relaxation; the run's own if not given."""
    x64: bool = False
    """Look in float64."""


@dataclasses.dataclass(frozen=True)
class ContinueCommand:
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
class RunCommand:
    """Show a known result: prints the measured figures beside the known ones and saves the pictures. Seconds each."""

    show: (
        Annotated[showcase.HopfieldShow, tyro.conf.subcommand("hopfield")]
        | Annotated[showcase.XorShow, tyro.conf.subcommand("xor")]
        | Annotated[showcase.HammingShow, tyro.conf.subcommand("hamming")]
        | Annotated[showcase.ParityShow, tyro.conf.subcommand("parity")]
        | Annotated[showcase.HHShow, tyro.conf.subcommand("hh")]
        | Annotated[showcase.LIFShow, tyro.conf.subcommand("lif")]
        | Annotated[showcase.KuramotoShow, tyro.conf.subcommand("kuramoto")]
    )
    """Which."""


def _demo(command: DemoCommand) -> None:
    from ..demo import demo

    quarter = max(1, command.steps // 4)
    demo(
        TrainConfig(
            **vars(command),
            embedding_scale=3.0,  # learns faster than the default, and settles as long as a demo lasts
            probe_every=max(1, command.steps // 8),
            evaluate_every=quarter,
            save_every=quarter,
        ),
        talk=talk(),
    )


def _report(run, outcome=None) -> None:
    from ..language import bigram_cross_entropy, unigram_entropy

    result = run.evaluate(run.validation_ids)
    of = "tokens" if run.recipe.in_order else "windows"
    one, unit = ("char", "characters") if run.recipe.tokens == "characters" else ("token", "tokens")
    bigram = bigram_cross_entropy(run.train_ids, run.validation_ids, run.tokenizer.size)
    print(
        f"validation cross-entropy {result.cross_entropy:.4f} nats/{one} over {result.tokens} {unit} "
        f"(bigram {bigram:.3f}, unigram entropy {unigram_entropy(run.validation_ids):.3f}); "
        f"median force residual {result.residual:.1e}"
        + ("" if math.isnan(result.unsettled) else f", unsettled {of} {result.unsettled:.2%}")
    )
    if outcome and outcome.memory_bytes:
        print(f"{outcome.seconds_per_step:.3f} s/step, {outcome.memory_bytes / 2**20:.0f} MiB/step")
        if outcome.skipped:
            print(f"{outcome.skipped} updates were left out: no sample of their batch was accepted")


def _evaluate(command: EvaluateCommand) -> None:
    import equinox as eqx
    import jax.numpy as jnp

    from ..recipes import open_run

    check_finite_number(**given(attention_gain=command.attention_gain))
    run = open_run(command.run, step=command.step)
    if not isinstance(run.recipe, TrainConfig):
        if command.attention_gain is not None:
            raise ValueError(f"--attention-gain: {command.run} is no equilibrium model's run.")
        with working("evaluating"):
            return print_entropy(run)
    if command.attention_gain is not None:
        gain = run.model.field.attention_gain  # pyright: ignore[reportAttributeAccessIssue]
        new = jnp.asarray(command.attention_gain, gain.dtype)
        run.state = eqx.tree_at(lambda s: s.model.field.attention_gain, run.state, new)
    _report(run)


def _sample(command: SampleCommand) -> None:
    from ..recipes import open_run, published, pull, sample

    check_sampling(command)
    run = pull(command.run) if published(command.run) else open_run(command.run, TrainConfig)
    if not isinstance(run.recipe, TrainConfig):
        raise ValueError(f"{command.run} is a GPT-2. Let it write by `eqjax gpt2 generate`.")
    prompt = encoded(run.tokenizer, command.prompt)
    how = {"temperature": command.temperature, "seed": command.seed}
    with working(f"writing {command.count} characters"):
        text = sample(run, prompt, command.count, **how)
    print(command.prompt + text)


def _compare(command: CompareCommand) -> None:
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
    steps = [_whole(n) for n in _numbers("--nudged-steps", command.nudged_steps)]
    betas = _numbers("--beta", command.beta)
    check_count(batch=command.batch)
    run = open_run(command.run, TrainConfig, step=command.step)
    run.recipe = config = dataclasses.replace(run.recipe, batch=command.batch)
    config.check_fits()
    variants, oracle = _variants(config, names, steps, betas), reference_oracle(config)
    batch = probe_batch(run)
    how = {"reference": oracle, "repeats": 3}
    with working("comparing") as tell:
        table = compare(run.model, cross_entropy, batch, variants, callback=tell, **how)
    print(table)
    write_text(command.run / "compare.json", json.dumps(table.to_dict(), indent=1))
    save(comparison(table), command.run / "compare.png")
    print(f"Written to {command.run}: compare.json, compare.png.")


def _spectrum(command: SpectrumCommand) -> None:
    import jax
    import jax.numpy as jnp

    from .. import plots
    from ..recipes import check_windows, windows
    from ..stability import save

    check_count(windows=command.windows)
    run, model, step = _opened(command)
    inputs = windows(run, command.windows)
    count = len(inputs)
    with working(f"spectra of {count} windows"):
        found = jax.block_until_ready(check_windows(model, inputs, step=step, k=command.k))
    worst = int(jnp.argmax(found.abscissa))
    print(f"Window {worst} of {count}, Euler step {step:g}:")
    print(jax.tree.map(lambda leaf: leaf[worst], found))
    share = lambda held: f"{int(jnp.sum(jnp.asarray(held)))} of {count}"
    print(
        f"Fixed points found: {share(found.fixed_point)} windows; the flow stays at {share(found.holds)}, "
        f"Euler at {share(found.holds_euler)}. "
        f"Largest growth rate {float(found.abscissa.min()):+.4g} to {float(found.abscissa.max()):+.4g}."
    )
    save(command.run / "spectrum.zip", found.spectrum)
    plots.save(plots.spectrum(found.spectrum, step=step), command.run / "spectrum.png")
    print(f"Written to {command.run}: spectrum.zip, spectrum.png.")


def _continue(command: ContinueCommand) -> None:
    from .. import plots
    from ..recipes import follow, scalar_parameter, windows
    from ..stability import classify, save

    run, model, step = _opened(command)
    if not 0 <= command.window < 64:
        raise ValueError(f"--window must lie between 0 and 63, got {command.window}.")
    trained = scalar_parameter(model.field, command.parameter)
    inputs = windows(run, 64)
    with working("finding a start") as tell:

        def told(value, state, spectrum):
            rate = float(spectrum.values.real.max())
            tell(f"{command.parameter} {value:.4f}: largest growth rate {rate:+.3f}")

        branch = follow(
            model,
            inputs[command.window % len(inputs)],
            parameter=command.parameter,
            bounds=command.bounds,
            start=command.start,
            step=step,
            k=command.k,
            callback=told,
        )
    print(branch)
    cure = "It begins unstable: --start it where the model settles to learn how stability is lost."
    if branch.unstable[0] or (branch.unstable_euler is not None and branch.unstable_euler[0]):
        print(cure)
    else:
        first = classify(branch)
        print(f"First loss of stability: {first}." if first.point else "It is stable all along.")
        if first.point and command.bounds[0] <= trained <= command.bounds[1]:
            print(f"At the trained value {trained:g}: {classify(branch, at=trained)}.")
    save(command.run / "branch.zip", branch)
    plots.save(plots.branch(branch, labels=(command.parameter, "‖z‖")), command.run / "branch.png")
    print(f"Written to {command.run}: branch.zip, branch.png.")


def _opened(command: SpectrumCommand | ContinueCommand):
    """The run, its model in the precision asked for, and the Euler step."""
    from ..recipes import in_double, open_run

    check_positive(**given(step_size=command.step_size))
    run = open_run(command.run, TrainConfig, step=command.step)
    step = run.recipe.step_size if command.step_size is None else command.step_size
    check_count(1, run.recipe.length * run.recipe.width, k=command.k)  # of so many modes
    return run, in_double(run) if command.x64 else run.model, step


def _numbers(flag: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{flag} takes numbers with commas between them, got {text!r}.") from None
    if not all(0 < value < math.inf for value in values):
        raise ValueError(f"{flag} takes finite numbers above 0, got {text!r}.")
    return values


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError(f"--nudged-steps takes whole numbers, got {value:g}.")
    return int(value)


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
                label, nudge = name, estimator.nudged
                if count is not None:
                    label += f" T2={count}"
                    euler = Picard(step_size=config.step_size)
                    nudge = dataclasses.replace(nudge, solver=euler, steps=count)
                if beta is not None:
                    label += f" β={beta:g}"
                    nudge = dataclasses.replace(nudge, radius=None, beta=jnp.asarray(beta))
                # A sweep is there to see what goes wrong: nothing is left out for its adjoint.
                where = lambda e: (e.nudged, e.accept.adjoint_residual)
                variants[label] = eqx.tree_at(where, estimator, (nudge, float("inf")))
    if (steps or betas) and set(variants) <= set(names):
        raise ValueError(
            "--nudged-steps and --beta have no effect: none of --estimators has nudged phases to be made by them. "
            "Add asymep, say."
        )
    return variants


COMMANDS = {
    DemoCommand: _demo,
    TrainCommand: lambda command: _report(*trained(command)),
    EvaluateCommand: _evaluate,
    SampleCommand: _sample,
    CompareCommand: _compare,
    SpectrumCommand: _spectrum,
    ContinueCommand: _continue,
    ExploreCommand: explore,
    RunCommand: lambda command: showcase.present(command.show),
}
