"""A training run of a GPT-2: from nothing, or on from a pretrained folder; whole, or by adapters."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..analytic import cross_entropy
from ..fields import trainable
from ..gradients import Backprop
from ..language import (
    GPT2,
    BPETokenizer,
    CharTokenizer,
    GPT2Config,
    adapters,
    batches,
    load_corpus,
    load_gpt2,
    lora,
    merge,
    save_gpt2,
    split,
    tiles,
    train_bpe,
)
from .folder import about_run, claim, digest, keep_text, kept_text, restored
from .loop import Outcome, fit
from .settings import Settings
from .step import Step, TrainState, check_finite, make_step


@dataclasses.dataclass(frozen=True)
class GPT2Settings(Settings):
    """Settings of `eqjax gpt2 train`. The defaults are nanoGPT's for a CPU."""

    out: Path = Path("runs/gpt2")
    """Folder of the run: configuration, metrics, checkpoints, and at the end the model as Hugging Face reads it."""
    text: Path | None = None
    """A UTF-8 text file to learn from. Tiny Shakespeare if not given."""
    start: str | None = None
    """Go on from this pretrained GPT-2: a folder, or a name such as gpt2. Its sizes and tokens are taken."""
    tokens: Literal["characters", "bpe"] = "characters"
    """Characters of the text, or byte pairs learned from it."""
    vocabulary: int = 1024
    """Byte pairs to learn, in all."""

    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads; must divide the width."""
    width: int = 128
    """Channels."""
    length: int = 64
    """Tokens in a window, and longest context of a new model."""
    dropout: float = 0.0
    """Dropout rate."""
    lora_rank: int = 0
    """Train adapters of this rank, and leave the weights alone; 0 trains the weights."""
    bfloat16: bool = False
    """Forward and backward passes in bfloat16; weights stay in float32."""

    steps: int = 2000
    """Updates."""
    batch: int = 12
    """Windows in a batch."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW: linear warm-up, then a cosine down to a tenth."""
    warmup: int = 100
    """Updates of warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay, of matrices only."""
    clip: float = 1.0
    """Largest global norm of a gradient."""
    seed: int = 0
    """Seed of the initial weights and of the order of the batches."""

    log_every: int = 20
    """Updates between two lines of metrics."""
    evaluate_every: int = 250
    """Updates between two evaluations on validation text."""
    evaluate_windows: int = 512
    """Validation windows of an evaluation (spread evenly; all of them if there are fewer)."""
    save_every: int = 250
    """Updates between two checkpoints."""
    keep: int = 2
    """How many checkpoints to keep, the newest; 0: all."""

    def __post_init__(self):
        self.check_above_zero(
            "vocabulary layers heads width length steps batch learning_rate clip log_every evaluate_every "
            "evaluate_windows save_every"
        )
        self.check_not_negative("lora_rank warmup weight_decay seed keep dropout")
        if self.dropout >= 1:
            raise ValueError(f"--dropout must be below 1, got {self.dropout}.")
        if self.lora_rank and not self.start:
            raise ValueError(
                "--lora-rank adapts a pretrained model: name one with --start, or leave it out."
            )


@dataclasses.dataclass
class GPT2Run:
    """A run in memory. `tokenizer` and `model` are what generation needs."""

    config: GPT2Settings
    source: str
    tokenizer: CharTokenizer | BPETokenizer
    train_ids: np.ndarray
    validation_ids: np.ndarray
    step: Step
    state: TrainState
    data: Any
    text_sha256: str

    @property
    def model(self) -> GPT2:
        return self.state.model

    def about(self) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "command": "gpt2 train",
            "config": self.config.to_dict(),
            "model": self.model.config.to_dict(),
            **described(self.tokenizer),
            "text_sha256": self.text_sha256,
            "source": self.source,
            "data": self.data.get_state(),
        }


def described(tokenizer: CharTokenizer | BPETokenizer) -> dict[str, str]:
    """A tokenizer as JSON; `tokenizer_from` reads it."""
    if isinstance(tokenizer, CharTokenizer):
        return {"characters": tokenizer.characters}
    return {"byte_pairs": tokenizer.text}


def tokenizer_from(about: dict[str, Any]) -> CharTokenizer | BPETokenizer:
    if "characters" in about:
        return CharTokenizer(about["characters"])
    return BPETokenizer(about["byte_pairs"])


def start_gpt2(config: GPT2Settings, *, fallback: bool = True) -> GPT2Run:
    """A fresh run: reads the text and the pretrained model, writes `config.yaml` and a copy of the text."""
    claim(config.out, "gpt2 train")
    if config.start:
        model = load_gpt2(config.start, dtype=jnp.float32)
        tokenizer = BPETokenizer.load(config.start)
        tokenizer.check(model)
        corpus = load_corpus(config.text, fallback=fallback)
    else:
        corpus = load_corpus(config.text, fallback=fallback)
        if config.tokens == "characters":
            tokenizer = CharTokenizer.from_text(corpus.text)
        else:
            tokenizer = train_bpe([corpus.text], config.vocabulary)
        shape = GPT2Config(
            vocab_size=tokenizer.size,
            n_positions=config.length,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
        )
        model = GPT2.init(shape, jax.random.key(config.seed))
    run = _assemble(config, model, tokenizer, corpus.text, corpus.source)
    keep_text(config.out, corpus.text)
    config.save(config.out / "config.yaml")
    return run


def open_gpt2(folder: str | os.PathLike, *, step: int | None = None) -> GPT2Run:
    """Rebuild a run from its folder alone; `CheckpointError` if it, or the text in it, is damaged."""
    path = Path(folder)
    about = about_run(path, "gpt2 train", step)
    config = dataclasses.replace(GPT2Settings.from_dict(about["config"], str(path)), out=path)
    model = GPT2.init(GPT2Config.from_dict(about["model"]), jax.random.key(0))
    run = _assemble(config, model, tokenizer_from(about), kept_text(path, about), about["source"])
    run.state = restored(path, run.state, step)
    run.data.set_state(about["data"])
    check_finite(run.state.model)
    return run


def _assemble(config, model, tokenizer, text, source) -> GPT2Run:
    length = model.config.n_positions
    if config.length > length:
        raise ValueError(
            f"--length {config.length} is longer than the context of the pretrained model, {length} tokens."
        )
    train_ids, validation_ids = split(tokenizer.encode(text), config.length)
    trains = trainable
    if config.lora_rank:
        key = jax.random.key(config.seed)
        model = lora(model, rank=config.lora_rank, alpha=2 * config.lora_rank, key=key)
        trains = adapters
    rates = (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop)
    estimator = Backprop(
        call=_dropped if any(rates) else _plain,
        trains=trains,
        dtype=jnp.bfloat16 if config.bfloat16 else None,
    )
    optimiser = build_optimiser(config)
    return GPT2Run(
        config=config,
        source=source,
        tokenizer=tokenizer,
        train_ids=train_ids,
        validation_ids=validation_ids,
        step=make_step(estimator, optimiser),
        state=TrainState.create(
            model, optimiser, key=jax.random.key(config.seed + 1), trains=trains
        ),
        data=batches(train_ids, length=config.length, batch=config.batch, seed=config.seed),
        text_sha256=digest(text),
    )


def _plain(model, tokens, key):
    return model(tokens)


def _dropped(model, tokens, key):
    return model(tokens, key=key)


def build_optimiser(config: GPT2Settings) -> optax.GradientTransformation:
    """AdamW as nanoGPT has it: β₂ = .99, decay of matrices only, warm-up, cosine to a tenth, clipping."""
    warmup = min(config.warmup, config.steps - 1)
    rate = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else config.learning_rate,
        config.learning_rate,
        warmup,
        config.steps,
        0.1 * config.learning_rate,
    )

    def matrices(params):
        # By name: in a stack of blocks a vector has two axes, too.
        vector = lambda path: re.search(r"bias|ln_", jax.tree_util.keystr(path))
        return jax.tree_util.tree_map_with_path(lambda path, _: not vector(path), params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=matrices),
    )


@eqx.filter_jit
def _losses(model, inputs, targets):
    return jax.vmap(lambda u, y: cross_entropy(model(u), y))(inputs, targets)


def evaluate_gpt2(run: GPT2Run, ids: np.ndarray, *, chunk: int = 64) -> float:
    """Cross-entropy in nats per token on windows of `ids`."""
    inputs, targets = tiles(ids, length=run.config.length, count=run.config.evaluate_windows)
    losses = []
    for first in range(0, len(inputs), chunk):
        window = [part[first : first + chunk] for part in (inputs, targets)]
        size = len(window[0])
        # The last chunk is filled up, so that one compiled shape serves all.
        window = [np.concatenate([part, np.repeat(part[:1], chunk - size, 0)]) for part in window]
        losses.append(np.asarray(_losses(run.model, *map(jnp.asarray, window)))[:size])
    return float(np.concatenate(losses).mean())


def train_gpt2(
    run: GPT2Run, *, on_step: Callable[[int, dict[str, float]], None] | None = None
) -> Outcome:
    """Train until `config.steps`; then write the model to `model/` in the run's folder (adapters merged).

    A run that is killed at any moment goes on by `open_gpt2` and `train_gpt2`, to bit-identical parameters.
    """
    config = run.config

    def diagnose(step: int) -> dict[str, float]:
        if step and (step % config.evaluate_every == 0 or step == config.steps):
            return {"validation": evaluate_gpt2(run, run.validation_ids)}
        return {}

    outcome = fit(run, diagnose, on_step=on_step)
    folder = config.out / "model"
    save_gpt2(merge(run.model), folder)
    if isinstance(run.tokenizer, BPETokenizer):
        run.tokenizer.save(folder)
    return outcome
