"""GPT-2: from nothing, or on from a pretrained folder; whole, or by adapters; with memory, or without."""

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from .. import language, training
from .._checks import check_memory, check_number
from .._files import TextFile
from ..analytic import FactoredLogits, cross_entropy
from ..fields import trainable
from ..gradients import Backprop
from ..language import GPT2, BPETokenizer, CharTokenizer, GPT2Config, RingAttention
from ..memory import MemoryGPT2, memory_parameters
from ..training import (
    AbstractRecipe,
    Evaluation,
    Material,
    Parts,
    Run,
    TrainState,
    by_tokens,
    check_pieces,
    make_step,
    with_context,
)
from ._schedule import build_optimiser
from ._tokens import TokensName, check_vocabulary, kept, learned, recalled, tokenised


@dataclasses.dataclass(frozen=True)
class AbstractGPT2Recipe(AbstractRecipe):
    """What all recipes around a GPT-2 share. The defaults are nanoGPT's for a CPU."""

    text: Path | None = None
    """A UTF-8 text file to learn from, or datasets:OWNER/NAME, a data set of Hugging Face's. Tiny Shakespeare if not given."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads; must divide the width."""
    width: int = 128
    """Channels."""
    length: int = 64
    """Tokens in a window, and longest context of a new model."""

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
        super().__post_init__()
        self.check_above_zero(
            "layers heads width length steps batch learning_rate clip log_every evaluate_every evaluate_windows save_every"
        )
        self.check_not_negative("warmup weight_decay seed keep")
        if self.width % self.heads:
            raise ValueError(f"`width` {self.width} is not divisible by `heads` {self.heads}.")

    def check_start(self) -> None:
        super().check_start()
        told = (
            f"`batch` {self.batch}, `length` {self.length}, `width` {self.width}: the activations"
        )
        check_memory(told, 16.0 * self.batch * self.window * self.layers * self.width)

    def gather(self, *, fallback: bool) -> Material:
        corpus = language.load_corpus(self.text, fallback=fallback)
        tokenizer = self.learned(corpus.text)
        end, sizes = getattr(tokenizer, "end", None), (self.width, self.layers, self.heads)
        config = GPT2Config(
            tokenizer.size, self.length, *sizes, bos_token_id=end, eos_token_id=end, **self.rates()
        )
        return made_of(corpus, tokenizer, GPT2.init(config, jax.random.key(self.seed)))

    def recall(self, text: str | TextFile, source: str, about: dict[str, Any]) -> Material:
        tokenizer = recalled(about)
        config, key = GPT2Config.from_dict(about["model"]), jax.random.key(0)
        shapes = jax.tree.leaves(eqx.filter_eval_shape(GPT2.init, config, key))
        check_memory("the GPT-2 that is told of", sum(4.0 * leaf.size for leaf in shapes))
        model = GPT2.init(config, key)
        return made_of(language.Corpus(text, source), tokenizer, model)

    @property
    def window(self) -> int:
        """Tokens that one sample reads."""
        return self.length

    def _attends(self: Any) -> RingAttention | None:
        """How tokens meet that several devices share out."""
        shared = getattr(self, "context_devices", None) not in (None, 1)
        return RingAttention() if shared else None

    def evaluate(self, run: Run, model: Any, ids: np.ndarray) -> Evaluation:
        """Cross-entropy on windows spread over `ids`."""
        windows = language.tiles(ids, length=self.window, count=self.evaluate_windows)
        how = self.length, self._attends(), run.mesh
        compute = lambda model, *windows: _losses(model, *how, *windows)
        # As many at a time as keep their activations small.
        chunk = max(1, min(64 * self.length // self.window, 2**16 // self.window))
        losses = training.in_chunks(compute, model, windows, chunk, run.mesh)
        return Evaluation(float(losses.mean()), windows[1].size)

    def finish(self, run: Run) -> None:
        """The model as Hugging Face reads it, adapters merged, in `model/`. Not one that learned with a memory: no other program
        would know what to do with the memory, and without it the rest is not what learned."""
        if isinstance(run.model, GPT2):
            folder = self.out / "model"
            language.save_gpt2(language.merge(run.model), folder)
            if isinstance(run.tokenizer, BPETokenizer):
                run.tokenizer.save(folder)

    def learned(self, text: str | TextFile) -> CharTokenizer | BPETokenizer:
        """The tokenizer of a model that starts from nothing."""
        return learned("characters", 0, text)

    def rates(self) -> dict[str, Any]:
        """Of dropout."""
        return dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


@dataclasses.dataclass(frozen=True)
class GPT2Settings(AbstractGPT2Recipe):
    """Settings of `eqjax gpt2 train`."""

    command: ClassVar[str] = "gpt2 train"
    out: Path = Path("runs/gpt2")
    """Folder of the run: configuration, metrics, checkpoints, and at the end the model as Hugging Face reads it."""
    start: str | None = None
    """Go on from this pretrained GPT-2: a folder, or a name such as gpt2. Its sizes and tokens are taken."""
    tokens: TokensName = "characters"
    """Characters of the text, or byte pairs learned from it."""
    vocabulary: int = 1024
    """Byte pairs to learn, in all."""

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
    context_devices: int | None = None
    """Devices that share the tokens of every window out, for long windows; --devices counts groups of so many."""

    def __post_init__(self):
        super().__post_init__()
        self.check_above_zero("vocabulary slots segments")
        self.check_not_negative("lora_rank dropout")
        check_vocabulary(self.tokens, self.vocabulary)
        check_number("be below 1", lambda v: v < 1, dropout=self.dropout)
        if (self.lora_rank or self.freeze) and not self.start:
            raise ValueError(
                "`lora_rank` and `freeze` leave the weights of a pretrained model alone: name one with `start`."
            )
        if self.freeze and not self.lora_rank and self.memory == "none":
            raise ValueError("`freeze` leaves nothing to learn: add `memory` or `lora_rank`.")
        if self.dropout and self.memory != "none":
            raise ValueError("`dropout` is for a GPT-2 without memory. Leave it out.")
        if self.gradient_checkpointing and self.memory != "none":
            raise ValueError(
                "`gradient_checkpointing` is for a GPT-2 without memory: with one, every segment is computed anew in "
                "the backward pass as it is. Leave it out."
            )
        if self.context_devices not in (None, 1) and (self.dropout or self.memory != "none"):
            raise ValueError(
                "`context_devices` share the tokens of a GPT-2 without memory and dropout. Leave those out."
            )

    def mesh(self) -> Mesh | None:
        found = with_context("context_devices", super().mesh(), self.context_devices)
        check_pieces(found, self.length, "length", "context_devices")
        return found

    def check_start(self) -> None:
        if self.start:
            self.check_unused(
                "layers heads width tokens vocabulary", "`start` names a model that has its own"
            )
        if self.tokens != "bpe":
            self.check_unused("vocabulary", "that of `tokens` characters is their number")
        if self.memory not in ("slots", "both"):
            self.check_unused("slots", "this `memory` has none")
        if self.memory == "none":
            self.check_unused("segments", "there is no `memory`")
        check_memory(f"`slots` {self.slots}: the memory", 8.0 * self.slots * self.width)
        super().check_start()

    @property
    def window(self) -> int:
        return self.length * (1 if self.memory == "none" else self.segments)

    def learned(self, text: str | TextFile) -> CharTokenizer | BPETokenizer:
        return learned(self.tokens, self.vocabulary, text)

    def rates(self) -> dict[str, Any]:
        return dict.fromkeys(super().rates(), self.dropout)

    def gather(self, *, fallback: bool) -> Material:
        if not self.start:
            return super().gather(fallback=fallback)
        model, tokenizer = pretrained(self.start, dtype=jnp.float32)
        config = dataclasses.replace(model.config, **self.rates())
        corpus = language.load_corpus(self.text, fallback=fallback)
        return made_of(corpus, tokenizer, dataclasses.replace(model, config=config))

    def build(self, material: Material) -> Parts:
        model: Any = material.model
        limit = model.config.n_positions
        if self.length > limit:
            raise ValueError(
                f"`length` {self.length} is longer than the context of the pretrained model, {limit} tokens."
            )
        train_ids, validation_ids = language.split(tokenised(material, self.out), self.window)
        key, *keys = jax.random.split(jax.random.key(self.seed + 1), 3)
        model = self.completed(model, *keys)
        trains, optimiser = eqx.Partial(_trained, self), gpt2_optimiser(self)
        estimator = Backprop(
            call=eqx.Partial(_read, self.length, self.gradient_checkpointing, self._attends()),
            trains=trains,
            dtype=jnp.bfloat16 if self.bfloat16 else None,
            context=None if self._attends() is None else "sequence",
        )
        return Parts(
            make_step(estimator, optimiser),
            TrainState.create(model, optimiser, key=key, trains=trains),
            language.batches(train_ids, length=self.window, batch=self.batch, seed=self.seed),
            train_ids,
            validation_ids,
        )

    def completed(self, model: Any, adapter_key: Any, memory_key: Any) -> Any:
        """A GPT-2 with the adapters and the memory that the settings ask for."""
        if self.lora_rank:
            alpha = 2 * self.lora_rank
            model = language.lora(model, rank=self.lora_rank, alpha=alpha, key=adapter_key)
        if self.memory != "none":
            recurrent = eqx.nn.GRUCell if self.memory in ("recurrence", "both") else None
            capacity = self.slots if self.memory in ("slots", "both") else 0
            model = MemoryGPT2(
                model, early=recurrent, late=recurrent, capacity=capacity, key=memory_key
            )
        return model


def made_of(corpus: language.Corpus, tokenizer: Any, model: GPT2) -> Material:
    """What `AbstractGPT2Recipe.recall` makes again."""
    about = {"model": model.config.to_dict(), **kept(tokenizer)}
    return Material(corpus.text, corpus.source, tokenizer, about, model)


def pretrained(source: str, *, dtype: DTypeLike | None = None) -> tuple[GPT2, BPETokenizer]:
    """A saved GPT-2 and its tokenizer, from a folder or by name; `ValueError` if they do not fit one another.

    ```python
    load = lambda: ej.recipes.pretrained("gpt2")  # model and tokenizer, from the hub or a folder
    ```
    """
    folder = language.resolved(source)
    model, tokenizer = language.load_gpt2(folder, dtype=dtype), BPETokenizer.load(folder)
    tokenizer.check(model)
    return model, tokenizer


def _trained(config: GPT2Settings, model: GPT2 | MemoryGPT2) -> Any:
    """Which leaves learn."""
    if not (config.freeze or config.lora_rank):
        return trainable(model)
    marks = [language.adapters(model)] if config.lora_rank else []
    marks += [memory_parameters(model)] if isinstance(model, MemoryGPT2) else []
    return jax.tree.map(lambda *mark: any(mark), *marks)


def _read(length: int, checkpointing: bool, attend, model: GPT2 | MemoryGPT2, tokens, key):
    """The logits after every token, in factors; with memory, read segment by segment."""
    if isinstance(model, GPT2):
        rates = (model.config.resid_pdrop, model.config.embd_pdrop, model.config.attn_pdrop)
        key = key if any(rates) else None
        how = {"key": key, "gradient_checkpointing": checkpointing, "attend": attend}
        return model.factored(tokens, **how)

    @jax.checkpoint
    def segment(memory, tokens):
        logits, memory = model.factored(tokens, memory)
        return memory, logits.hidden

    _, hidden = jax.lax.scan(segment, model.memory(), tokens.reshape(-1, length))
    return FactoredLogits(hidden.reshape(tokens.size, -1), model.gpt2.head)


def matrices(params: Any) -> Any:
    """Which parameters are decayed: no biases, norms and gates."""
    # By name: in a stack of blocks a vector has two axes, too.
    vector = lambda path: re.search(r"bias|ln_|gate|recall", jax.tree_util.keystr(path))
    return jax.tree_util.tree_map_with_path(lambda path, _: not vector(path), params)


def gpt2_optimiser(config: AbstractGPT2Recipe) -> optax.GradientTransformation:
    """AdamW as nanoGPT has it: β₂ = .99, decay of matrices only, warm-up, cosine to a tenth, clipping."""
    return build_optimiser(config, b2=0.99, mask=matrices)


@eqx.filter_jit
def _losses(model, length, attend, mesh, inputs, targets):
    def compute(model, inputs, targets):
        one = lambda u, y: cross_entropy(_read(length, False, attend, model, u, None), y)
        return jax.vmap(one)(inputs, targets)

    return by_tokens(mesh, compute, model, inputs, targets)
