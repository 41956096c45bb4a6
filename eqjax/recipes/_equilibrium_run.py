"""A training run of the equilibrium language model: built from a configuration, or from its folder alone."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..analytic import cross_entropy
from ..fields import AbstractEquilibriumModel
from ..gradients import AbstractEstimator, on_common_samples
from ..language import (
    CharTokenizer,
    batches,
    generate,
    load_corpus,
    split,
    tiles,
)
from ..training import (
    Outcome,
    Step,
    TrainState,
    about_run,
    check_finite,
    claim,
    digest,
    fit,
    in_chunks,
    keep_text,
    kept_text,
    make_step,
    restored,
)
from ._equilibrium_build import (
    build_estimator,
    build_homeostat,
    build_model,
    build_optimiser,
    reference_oracle,
)
from ._equilibrium_settings import TrainConfig


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
        text_sha256=digest(text),
    )


def start_run(config: TrainConfig, *, fallback: bool = True) -> Run:
    """A fresh run: reads the text, builds everything, writes `config.yaml` and a copy of the text.

    Refuses a folder that holds a run. Sets `jax_enable_x64` to what the configuration says.
    """
    jax.config.update("jax_enable_x64", config.x64)
    claim(config.out, "train")
    corpus = load_corpus(config.text, fallback=fallback)
    run = _assemble(config, corpus.text, corpus.source, CharTokenizer.from_text(corpus.text))
    keep_text(config.out, corpus.text)
    config.save(config.out / "config.yaml")
    return run


def open_run(folder: str | os.PathLike, *, step: int | None = None) -> Run:
    """Rebuild a run from its folder: model, optimiser, step, random key and position in the data.

    Needs nothing but the folder, which may have been moved. Sets `jax_enable_x64` to what its configuration says.
    `CheckpointError` if there is no checkpoint, or it or the text beside it is damaged.
    """
    path = Path(folder)
    about = about_run(path, "train", step)
    config = dataclasses.replace(TrainConfig.from_dict(about["config"], str(path)), out=path)
    jax.config.update("jax_enable_x64", config.x64)
    text, tokenizer = kept_text(path, about), CharTokenizer(about["characters"])
    run = _assemble(config, text, about["source"], tokenizer)
    run.state = restored(path, run.state, step)
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
    compute = lambda inputs, targets: _window_losses(model, run.estimator.settle, inputs, targets)
    loss, residual = in_chunks(compute, (inputs, targets), chunk)
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
    config, probes = run.config, probe_batch(run)

    def diagnose(step: int) -> dict[str, float]:
        values, last = {}, step == config.steps
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

    return fit(run, diagnose, on_step=on_step, cadences=(config.probe_every,))
