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
    resolved,
    save_gpt2,
    split,
    tiles,
    train_bpe,
)
from ..memory import MemoryGPT2, memory_parameters
from ..training import (
    Outcome,
    Settings,
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
from ._equilibrium_build import warmup_cosine


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
    """Dropout rate, of a GPT-2 without memory."""
    memory: Literal["none", "recurrence", "slots", "both"] = "none"
    """Memory between windows: of what just happened (recurrence), of what was long ago (slots), or both."""
    slots: int = 64
    """Slots of the memory."""
    segments: int = 4
    """Windows that are read one after the other, with gradients through the memory (1 without memory)."""

    lora_rank: int = 0
    """Train adapters of this rank, and leave the GPT-2's weights alone; 0 for none."""
    freeze: bool = False
    """Leave the GPT-2's weights alone: only its memory learns, and adapters."""
    bfloat16: bool = False
    """Forward and backward passes in bfloat16; weights stay in float32."""
    gradient_checkpointing: bool = False
    """Compute every layer anew in the backward pass, for less memory (segments of a memory always are)."""

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
            "vocabulary layers heads width length slots segments steps batch learning_rate clip log_every "
            "evaluate_every evaluate_windows save_every"
        )
        self.check_not_negative("lora_rank warmup weight_decay seed keep dropout")
        if self.dropout >= 1:
            raise ValueError(f"--dropout must be below 1, got {self.dropout}.")
        if (self.lora_rank or self.freeze) and not self.start:
            raise ValueError(
                "--lora-rank and --freeze leave the weights of a pretrained model alone: name one with --start."
            )
        if self.freeze and not self.lora_rank and self.memory == "none":
            raise ValueError("--freeze leaves nothing to learn: add --memory or --lora-rank.")
        if self.dropout and self.memory != "none":
            raise ValueError("--dropout is for a GPT-2 without memory. Leave it out.")
        if self.gradient_checkpointing and self.memory != "none":
            raise ValueError(
                "--gradient-checkpointing is for a GPT-2 without memory: with one, every segment is computed anew in "
                "the backward pass as it is. Leave it out."
            )

    @property
    def window(self) -> int:
        """Tokens that one sample reads."""
        return self.length * (1 if self.memory == "none" else self.segments)


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
    def model(self) -> GPT2 | MemoryGPT2:
        return self.state.model

    def about(self) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "command": "gpt2 train",
            "config": self.config.to_dict(),
            "model": _core(self.model).config.to_dict(),
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


def pretrained(source: str, *, dtype: Any = None) -> tuple[GPT2, BPETokenizer]:
    """A saved GPT-2 and its tokenizer, from a folder or by name; `ValueError` if they do not fit one another."""
    folder = resolved(source)
    model, tokenizer = load_gpt2(folder, dtype=dtype), BPETokenizer.load(folder)
    tokenizer.check(model)
    return model, tokenizer


def start_gpt2(config: GPT2Settings, *, fallback: bool = True) -> GPT2Run:
    """A fresh run: reads the text and the pretrained model, writes `config.yaml` and a copy of the text."""
    claim(config.out, "gpt2 train")
    if config.start:
        model, tokenizer = pretrained(config.start, dtype=jnp.float32)
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
        model = dataclasses.replace(model, config=dataclasses.replace(model.config, **rates))
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
            bos_token_id=getattr(tokenizer, "end", None),
            eos_token_id=getattr(tokenizer, "end", None),
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


def _core(model: GPT2 | MemoryGPT2) -> GPT2:
    return model.gpt2 if isinstance(model, MemoryGPT2) else model


def _assemble(config, gpt2, tokenizer, text, source) -> GPT2Run:
    limit = gpt2.config.n_positions
    if config.length > limit:
        raise ValueError(
            f"--length {config.length} is longer than the context of the pretrained model, {limit} tokens."
        )
    train_ids, validation_ids = split(tokenizer.encode(text), config.window)
    key, adapter_key, memory_key = jax.random.split(jax.random.key(config.seed + 1), 3)
    model, rank = gpt2, config.lora_rank
    if rank:
        model = lora(model, rank=rank, alpha=2 * rank, key=adapter_key)
    if config.memory != "none":
        recurrent = eqx.nn.GRUCell if config.memory in ("recurrence", "both") else None
        capacity = config.slots if config.memory in ("slots", "both") else 0
        model = MemoryGPT2(
            model, early=recurrent, late=recurrent, capacity=capacity, key=memory_key
        )
    trains = eqx.Partial(_trained, config)
    optimiser = build_optimiser(config)
    estimator = Backprop(
        call=eqx.Partial(_read, config.length, config.gradient_checkpointing),
        trains=trains,
        dtype=jnp.bfloat16 if config.bfloat16 else None,
    )
    return GPT2Run(
        config=config,
        source=source,
        tokenizer=tokenizer,
        train_ids=train_ids,
        validation_ids=validation_ids,
        step=make_step(estimator, optimiser),
        state=TrainState.create(model, optimiser, key=key, trains=trains),
        data=batches(train_ids, length=config.window, batch=config.batch, seed=config.seed),
        text_sha256=digest(text),
    )


def _trained(config: GPT2Settings, model: GPT2 | MemoryGPT2) -> Any:
    """Which leaves learn."""
    if not (config.freeze or config.lora_rank):
        return trainable(model)
    marks = [adapters(model)] if config.lora_rank else []
    marks += [memory_parameters(model)] if isinstance(model, MemoryGPT2) else []
    return jax.tree.map(lambda *mark: any(mark), *marks)


def _read(length: int, checkpointing: bool, model: GPT2 | MemoryGPT2, tokens, key):
    """The logits after every token; with memory, read segment by segment."""
    if isinstance(model, GPT2):
        rates = (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop)
        key = key if any(rates) else None
        return model(tokens, key=key, gradient_checkpointing=checkpointing)

    @jax.checkpoint
    def segment(memory, tokens):
        logits, memory = model(tokens, memory)
        return memory, logits

    _, logits = jax.lax.scan(segment, model.memory(), tokens.reshape(-1, length))
    return logits.reshape(tokens.size, -1)


def build_optimiser(config: GPT2Settings) -> optax.GradientTransformation:
    """AdamW as nanoGPT has it: β₂ = .99, decay of matrices only, warm-up, cosine to a tenth, clipping."""

    def matrices(params):
        # By name: in a stack of blocks a vector has two axes, too.
        vector = lambda path: re.search(r"bias|ln_|gate|recall", jax.tree_util.keystr(path))
        return jax.tree_util.tree_map_with_path(lambda path, _: not vector(path), params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            warmup_cosine(config), b2=0.99, weight_decay=config.weight_decay, mask=matrices
        ),
    )


@eqx.filter_jit
def _losses(model, length, inputs, targets):
    return jax.vmap(lambda u, y: cross_entropy(_read(length, False, model, u, None), y))(
        inputs, targets
    )


def evaluate_gpt2(run: GPT2Run, ids: np.ndarray) -> float:
    """Cross-entropy in nats per token on windows of `ids`."""
    config, chunk = run.config, max(1, 64 * run.config.length // run.config.window)
    windows = tiles(ids, length=config.window, count=config.evaluate_windows)
    compute = lambda inputs, targets: _losses(run.model, config.length, inputs, targets)
    return float(in_chunks(compute, windows, chunk).mean())


def train_gpt2(
    run: GPT2Run, *, on_step: Callable[[int, dict[str, float]], None] | None = None
) -> Outcome:
    """Train until `config.steps`; then write the model to `model/` in the run's folder, adapters merged (not one that learned
    with a memory: it stays in the checkpoints, since no other program would know what to do with the memory, and
    without it the rest is not what learned).

    A run that is killed at any moment goes on by `open_gpt2` and `train_gpt2`, to bit-identical parameters.
    """
    config = run.config

    def diagnose(step: int) -> dict[str, float]:
        if step and (step % config.evaluate_every == 0 or step == config.steps):
            return {"validation": evaluate_gpt2(run, run.validation_ids)}
        return {}

    outcome = fit(run, diagnose, on_step=on_step)
    if isinstance(run.model, GPT2):
        folder = config.out / "model"
        save_gpt2(merge(run.model), folder)
        if isinstance(run.tokenizer, BPETokenizer):
            run.tokenizer.save(folder)
    return outcome
