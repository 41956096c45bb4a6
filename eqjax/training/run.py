"""A training run of the equilibrium language model: built from a configuration, or from its folder alone."""

import dataclasses
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ..analytic import cross_entropy
from ..fields import AbstractEquilibriumModel, EnergyBlock, MonotoneBlock, RealBlock, ThickBlock
from ..gradients import (
    BPTT,
    AbstractEstimator,
    Accept,
    AsymEP,
    DyadicEP,
    HolomorphicEP,
    OracleAdjoint,
    SharedAdjoint,
    TruncatedAdjoint,
    VectorFieldEP,
)
from ..gradients.compare import on_common_samples
from ..language import (
    CharTokenizer,
    batches,
    equilibrium_lm,
    generate,
    load_corpus,
    split,
    tiles,
)
from ..relaxation import GMRES, Anderson, Broyden, NewtonKrylov, Picard, PseudoTransient
from ..stability import (
    PI,
    Constant,
    Homeostat,
    Multiplicative,
    antisymmetry_penalty,
    growth_penalty,
    jacobian_penalty,
    lognorm_penalty,
    penalty_signal,
    rejected_signal,
    residual_penalty,
    spectral_penalty,
)
from .checkpoint import CheckpointError, Checkpoints
from .config import TrainConfig
from .metrics import Metrics
from .step import Step, TrainState, check_finite, make_step

BLOCKS = {
    "thick": ThickBlock,
    "real": RealBlock,
    "monotone": MonotoneBlock,
    "energy": EnergyBlock,
}


SOLVERS: dict[str, Any] = {
    "anderson": Anderson,
    "broyden": Broyden,
    "newton-krylov": NewtonKrylov,
    "pseudo-transient": PseudoTransient,
}


def build_model(config: TrainConfig, vocabulary: int, key) -> AbstractEquilibriumModel:
    """The untrained model that a configuration describes."""
    settings = {
        "leak": config.leak,
        "attention_gain": config.attention_gain,
        "residual_scale": config.residual_scale,
    }
    if config.block != "monotone":
        settings["qknorm"] = config.qknorm
    return equilibrium_lm(
        vocabulary,
        config.length,
        config.width,
        config.heads,
        block=BLOCKS[config.block],
        embedding_scale=config.embedding_scale,
        key=key,
        **settings,
    )


def build_solver(config: TrainConfig, rtol: float):
    """The free-phase solver that a configuration names, at tolerance `rtol`."""
    if config.solver == "picard":
        return Picard(rtol=rtol, step_size=config.step_size)
    return SOLVERS[config.solver](rtol=rtol)


def build_estimator(config: TrainConfig) -> AbstractEstimator:
    """The gradient estimator that a configuration names."""
    if config.estimator == "bptt":
        return BPTT(steps=config.bptt_steps, step=config.step_size)
    free = build_solver(config, config.free_rtol)
    shared = {"free": free, "free_steps": config.max_steps}
    gate = Accept(config.accept_free, config.accept_adjoint)
    # Biased by design: their adjoint residual is reported, not held against them.
    open_gate = Accept(config.accept_free, float("inf"))
    nudge = {
        "nudged": Anderson(rtol=config.nudged_rtol),
        "radius": config.radius,
        "nudged_steps": config.max_steps,
        "contrast": SharedAdjoint(),  # the fastest
    }
    match config.estimator:
        case "oracle":
            solver = GMRES(rtol=config.nudged_rtol)
            return OracleAdjoint(adjoint_solver=solver, accept=gate, **shared)
        case "holomorphic":
            return HolomorphicEP(accept=gate, **shared, **nudge)
        case "vector-field":
            return VectorFieldEP(accept=open_gate, **shared, **nudge)
        case "dyadic":
            return DyadicEP(radius=config.radius, accept=gate, **shared)
        case "truncated":
            return TruncatedAdjoint(terms=5, damping=0.5, accept=open_gate, **shared)
    return AsymEP(accept=gate, **shared, **nudge)


def reference_oracle(config: TrainConfig) -> OracleAdjoint:
    """The oracle that gradients are measured against: the same settling, a far tighter linear solve."""
    return OracleAdjoint(
        free=build_solver(config, config.free_rtol),
        adjoint_solver=GMRES(rtol=1e-6 if config.x64 else 1e-5),
        free_steps=config.max_steps,
        accept=Accept(config.accept_free, config.accept_adjoint),
    )


PENALTIES: dict[str, Callable] = {
    "growth": growth_penalty,
    "spectral": spectral_penalty,
    "lognorm": lognorm_penalty,
    "jacobian": jacobian_penalty,
    "antisymmetry": antisymmetry_penalty,
    "residual": residual_penalty,
}


def build_homeostat(config: TrainConfig) -> Homeostat | None:
    """The homeostat that a configuration names."""
    name, weight, target = (
        config.homeostat,
        config.homeostat_weight,
        config.homeostat_target,
    )
    if name == "none":
        return None
    # A hinge says by itself how far the margin is violated; the others never reach zero, and are needed as far as
    # samples are lost.
    hinged = name in ("growth", "spectral", "lognorm")
    penalty = PENALTIES[name]
    limits = {"floor": 1e-2 * weight, "ceiling": 1e2 * weight}
    match config.homeostat_controller:
        case "constant":
            controller = Constant(weight)
        case "multiplicative":
            controller = Multiplicative(weight, target, **limits)
        case "pi":
            controller = PI(weight, target, **limits)
    return Homeostat(
        eqx.Partial(penalty, margin=config.homeostat_margin) if hinged else penalty,
        controller,
        signal=penalty_signal if hinged else rejected_signal,
        gate=config.homeostat_gate,
        relative=name == "residual",
        samples=config.homeostat_samples,
    )


def build_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping."""
    warmup = min(config.warmup, config.steps - 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.learning_rate,
        config.learning_rate,
        warmup,
        config.steps,
        0.1 * config.learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, weight_decay=config.weight_decay),
    )


@dataclasses.dataclass
class Run:
    """A run in memory: everything that `train`, `evaluate` and sampling need."""

    config: TrainConfig
    source: str
    tokenizer: CharTokenizer
    train_ids: np.ndarray
    validation_ids: np.ndarray
    estimator: AbstractEstimator
    step: Step
    state: TrainState
    data: Any
    text_sha256: str

    @property
    def model(self) -> AbstractEquilibriumModel:
        return self.state.model

    def about(self) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "config": self.config.to_dict(),
            "characters": self.tokenizer.characters,
            "text_sha256": self.text_sha256,
            "source": self.source,
            "data": self.data.get_state(),
        }


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"--out {folder}: cannot write there ({error.strerror}). Choose another folder."
        ) from None


def _checkpoints(config: TrainConfig) -> Path:
    return Path(config.out) / "checkpoints"


def holds_run(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a run that can be opened: one with a complete checkpoint."""
    checkpoints = Path(folder) / "checkpoints"
    if not checkpoints.is_dir():
        return False
    with Checkpoints(checkpoints) as found:
        return found.latest() is not None


def _text(folder: str | os.PathLike) -> Path:
    return Path(folder) / "text.txt"


def _assemble(config: TrainConfig, text: str, source: str, tokenizer: CharTokenizer) -> Run:
    train_ids, validation_ids = split(tokenizer.encode(text), config.length)
    estimator, optimiser = build_estimator(config), build_optimiser(config)
    homeostat = build_homeostat(config)
    model_key, run_key = jax.random.split(jax.random.key(config.seed))
    model = build_model(config, tokenizer.size, model_key)
    return Run(
        config=config,
        source=source,
        tokenizer=tokenizer,
        train_ids=train_ids,
        validation_ids=validation_ids,
        estimator=estimator,
        step=make_step(estimator, optimiser, homeostat),
        state=TrainState.create(
            model, optimiser, key=run_key, trains=estimator.trains, homeostat=homeostat
        ),
        data=batches(train_ids, length=config.length, batch=config.batch, seed=config.seed),
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def start_run(config: TrainConfig, *, fallback: bool = True) -> Run:
    """A fresh run: reads the text, builds everything, writes `config.yaml` and a copy of the text.

    Refuses a folder that holds a run. Sets `jax_enable_x64` to what the configuration says.
    """
    jax.config.update("jax_enable_x64", config.x64)
    _writable(Path(config.out))
    if holds_run(config.out):
        raise ValueError(
            f"--out {config.out} already holds a run. Go on with it by `eqjax train --resume {config.out}`, "
            "or choose another folder."
        )
    corpus = load_corpus(config.text, fallback=fallback)
    run = _assemble(config, corpus.text, corpus.source, CharTokenizer.from_text(corpus.text))
    _text(config.out).write_bytes(corpus.text.encode("utf-8"))
    config.save(Path(config.out) / "config.yaml")
    return run


def open_run(folder: str | os.PathLike, *, step: int | None = None) -> Run:
    """Rebuild a run from its folder: model, optimiser, step, random key and position in the data.

    Needs nothing but the folder, which may have been moved. Sets `jax_enable_x64` to what its configuration says.
    `CheckpointError` if there is no checkpoint, or it or the text beside it is damaged.
    """
    path = Path(folder)
    if not holds_run(path):
        raise CheckpointError(
            f"{path}: no run here (no complete checkpoint). Name the folder that `eqjax train --out` wrote."
        )
    with Checkpoints(path / "checkpoints") as checkpoints:
        about = checkpoints.about(step)
        config = dataclasses.replace(TrainConfig.from_dict(about["config"], str(path)), out=path)
        jax.config.update("jax_enable_x64", config.x64)
        # The text stays with the run: a moved folder, or a corpus that is out of reach today, does no harm.
        data = _text(path).read_bytes() if _text(path).exists() else b""
        if hashlib.sha256(data).hexdigest() != about["text_sha256"]:
            raise CheckpointError(
                f"{_text(path)}: missing, or not the text that this run was trained on ({about['source']}). "
                "Put a copy of that back in its place."
            )
        tokenizer = CharTokenizer(about["characters"])
        run = _assemble(config, data.decode("utf-8"), about["source"], tokenizer)
        run.state = checkpoints.restore(run.state, step)
        run.data.set_state(about["data"])
    check_finite(run.state.model)
    return run


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`cross_entropy` in nats per token over `tokens` tokens; `residual`: median force residual of the settled
    windows; `unsettled`: fraction of windows whose residual exceeds the acceptance threshold (NaN for BPTT,
    which answers after a finite horizon, settled or not)."""

    cross_entropy: float
    residual: float
    unsettled: float
    tokens: int


@eqx.filter_jit
def _window_losses(model, settle, inputs, targets):
    def one(inputs, targets):
        x = model.encode(inputs)
        settled = settle(model.field, model.initial(x), x)
        return cross_entropy(model.decode(settled.value), targets), settled.residual

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(inputs, targets)


def evaluate(run: Run, ids: np.ndarray, *, model: Any = None, chunk: int = 64) -> Evaluation:
    """Cross-entropy of the run's model (or another `model`) on `ids`, settled as in training.

    Windows that did not settle count like the others: the model answers with the state it has.
    """
    model = run.model if model is None else model
    check_finite(model)
    inputs, targets = tiles(ids, length=run.config.length, count=run.config.evaluate_windows)
    losses, residuals = [], []
    for first in range(0, len(inputs), chunk):
        window = [part[first : first + chunk] for part in (inputs, targets)]
        size = len(window[0])
        # The last chunk is filled up, so that one compiled shape serves all.
        window = [np.concatenate([part, np.repeat(part[:1], chunk - size, 0)]) for part in window]
        loss, residual = _window_losses(model, run.estimator.settle, *map(jnp.asarray, window))
        losses.append(np.asarray(loss)[:size])
        residuals.append(np.asarray(residual)[:size])
    loss, residual = np.concatenate(losses), np.concatenate(residuals)
    return Evaluation(
        cross_entropy=float(loss.mean()),
        residual=float(np.median(residual)),
        unsettled=float(np.mean(~(residual <= run.config.accept_free)))
        if run.estimator.objective == "equilibrium"
        else float("nan"),
        tokens=int(targets.size),
    )


def sample(run: Run, prompt: Any, count: int, *, temperature: float, seed: int) -> str:
    """The text with which the run's model continues the token ids `prompt`, settled as in training."""
    written = generate(
        run.model,
        jnp.asarray(prompt),
        count,
        length=run.config.length,
        key=jax.random.key(seed),
        temperature=jnp.asarray(temperature),
        settle=run.estimator.settle,
        warm=run.estimator.objective == "equilibrium",
    )
    return run.tokenizer.decode(written.tokens)


@dataclasses.dataclass
class Outcome:
    """What `train` measured: median `seconds_per_step` (after compilation), `compile_seconds`,
    `memory_bytes`, the buffers that the compiled step needs beyond its arguments, and how many of its updates
    were `skipped` because no sample was accepted."""

    seconds_per_step: float
    compile_seconds: float
    memory_bytes: int
    skipped: int = 0


def _probe(run: Run, batch: tuple[Array, Array]) -> dict[str, float]:
    estimate, cosine, error = on_common_samples(
        run.model, cross_entropy, batch, run.estimator, reference_oracle(run.config)
    )
    summary = estimate.report.summary()
    return {
        "probe_cosine": float(cosine),
        "probe_relative_error": float(error),
        "probe_free_residual": float(summary["free_residual"]),
        "probe_adjoint_residual": float(summary["adjoint_residual"]),
        "probe_accepted": float(summary["accepted"]),
        "probe_field_evaluations": float(summary["field_evaluations"]),
    }


def probe_batch(run: Run) -> tuple[Array, Array]:
    """The fixed batch on which gradients are compared along a run."""
    config = run.config
    stream = batches(run.train_ids, length=config.length, batch=config.batch, seed=config.seed + 1)
    inputs, targets = next(stream)
    return jnp.asarray(inputs), jnp.asarray(targets)


def train(run: Run, *, on_step: Callable[[int, dict[str, float]], None] | None = None) -> Outcome:
    """Train until `config.steps`, writing metrics and checkpoints into the run's folder.

    A run that is killed at any moment goes on by `open_run` and `train`, to bit-identical parameters.

    **Arguments:** `on_step(step, metrics)` is called after every logged step (for a progress bar).
    """
    config = run.config
    check_finite(run.model)
    first = int(run.state.step)
    with Checkpoints(_checkpoints(config)) as checkpoints:
        latest = checkpoints.latest()
    if latest is not None and latest != first:
        raise ValueError(
            f"{config.out}: the run is at step {first}, but its newest checkpoint is {latest}. Open the newest, or "
            "copy the folder and delete the later checkpoints there."
        )
    metrics = Metrics(Path(config.out) / "metrics.jsonl", after=first)
    probes = probe_batch(run)
    outcome = Outcome(float("nan"), float("nan"), 0)

    def diagnose(step: int, values: dict[str, float]) -> dict[str, float]:
        last = step == config.steps
        if config.probe_every and (step % config.probe_every == 0 or last):
            values |= _probe(run, probes)
        if (step % config.evaluate_every == 0 and step) or last:
            result = evaluate(run, run.validation_ids)
            values |= {
                "validation": result.cross_entropy,
                "validation_residual": result.residual,
                "validation_unsettled": result.unsettled,
            }
        return values

    def report(step: int, values: dict[str, float]) -> None:
        metrics.write(step, **values)
        if on_step is not None:
            on_step(step, values)

    with Checkpoints(_checkpoints(config), keep=config.keep) as checkpoints:
        if checkpoints.latest() is None:
            checkpoints.save(0, run.state, run.about())
        if first == 0 and config.probe_every:
            report(0, diagnose(0, {}))
        durations, compiled = [], None
        for step, batch in _numbered(run.data, first, config.steps):
            if compiled is None:
                start = time.perf_counter()
                compiled = run.step.compile(run.state, batch)
                outcome.compile_seconds = time.perf_counter() - start
                outcome.memory_bytes = compiled.memory_bytes
            start = time.perf_counter()
            run.state, values = jax.block_until_ready(compiled(run.state, batch))
            durations.append(time.perf_counter() - start)
            outcome.skipped += not bool(values["updated"])
            cadences = (config.log_every, config.evaluate_every, config.probe_every)
            if step == config.steps or any(n and step % n == 0 for n in cadences):
                values = {k: float(v) for k, v in values.items()} | {"seconds": durations[-1]}
                report(step, diagnose(step, values))
            if step % config.save_every == 0 or step == config.steps:
                checkpoints.save(step, run.state, run.about())
    if durations:
        outcome.seconds_per_step = statistics.median(durations)
    return outcome


def _numbered(data: Iterator, first: int, last: int) -> Iterator[tuple[int, tuple[Array, Array]]]:
    for step in range(first + 1, last + 1):
        inputs, targets = next(data)
        yield step, (jnp.asarray(inputs), jnp.asarray(targets))
