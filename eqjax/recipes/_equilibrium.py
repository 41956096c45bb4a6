"""The equilibrium language model: what a training run of it is made of."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from .. import training
from .._checks import check_between, check_count, check_memory, given
from .._files import TextFile
from ..analytic import cross_entropy
from ..gradients import on_common_samples
from ..language import batches, generate, load_corpus, split, tiles
from ..relaxation import TokenOrder
from ..training import (
    AbstractRecipe,
    Evaluation,
    Material,
    Parts,
    Run,
    TrainState,
    make_step,
    with_context,
)
from ._equilibrium_build import (
    HINGED,
    build_estimator,
    build_homeostat,
    build_model,
    reference_oracle,
)
from ._schedule import build_optimiser
from ._tokens import TokensName, check_vocabulary, kept, learned, recalled, tokenised

EstimatorName = Literal[
    "asymep", "oracle", "bptt", "holomorphic", "dyadic", "truncated", "vector-field"
]
HomeostatName = Literal[
    "none",
    "growth",
    "token-growth",
    "chain",
    "spectral",
    "lognorm",
    "jacobian",
    "antisymmetry",
    "residual",
]
ControllerName = Literal["constant", "multiplicative", "pi"]
SolverName = Literal[
    "anderson", "type-one", "broyden", "picard", "newton-krylov", "pseudo-transient"
]


@dataclasses.dataclass(frozen=True)
class TrainConfig(AbstractRecipe):
    """Settings of a training run of the equilibrium language model."""

    command: ClassVar[str] = "train"
    text: Path | None = None
    """A UTF-8 text file to learn from, or datasets:OWNER/NAME, a data set of Hugging Face's. Tiny Shakespeare if not given."""
    tokens: TokensName = "characters"
    """Read it by characters, or by byte pairs learned from it."""
    vocabulary: int = 1024
    """Byte pairs to learn, if tokens are bpe."""

    block: Literal["thick", "real", "monotone", "energy"] = "thick"
    """Mode of the equilibrium block."""
    width: int = 64
    """Channels C."""
    heads: int = 4
    """Attention heads; must divide the width."""
    length: int = 64
    """Tokens in a window, T."""
    leak: float = 1.0
    """The leak c of the force."""
    attention_gain: float = 1.0
    """α, which scales the attention's output."""
    qknorm: bool = True
    """RMS-normalise queries and keys."""
    residual_scale: float = 1.0
    """Factor on the initial output weights of attention and MLP."""
    embedding_scale: float = 6.0
    """Standard deviation of the initial token embeddings."""

    estimator: EstimatorName = "asymep"
    """How the gradient is found."""
    order: Literal["tokens", "window"] = "tokens"
    """What settles: token after token, and the adjoint back, or the whole window at once (all but bptt). The nudged phases
    go in order with asymep alone, and dyadic settles the window."""
    chunk: int | None = None
    """Tokens that take their steps side by side, in token order: more work in fewer steps. If not given 4, and 16 on a GPU;
    1 for a solver that settles one by one."""
    solver: SolverName | None = None
    """How the free phase settles (all but bptt). If not given type-one in token order, and anderson for a window."""
    free_rtol: float = 5e-5
    """Force residual at which the free phase stops."""
    nudged_rtol: float = 3e-3
    """Adjoint residual at which AsymEP's nudged phases, or the oracle's linear solve, stop."""
    max_steps: int = 150
    """Solver steps of a phase at the most."""
    radius: float | None = None
    """Settled displacement of the nudged phases relative to the state. Chosen by the dtype if not given."""
    accept_free: float = 1e-4
    """A sample with a larger free residual does not contribute (all but bptt)."""
    accept_adjoint: float = 1e-2
    """A sample with a larger adjoint residual does not contribute (the unbiased ones)."""
    accept_prefix: bool = False
    """In token order, take of a window with a lost token those before it, instead of leaving it out."""
    bptt_steps: int = 60
    """Relaxation steps of BPTT, the horizon T."""
    step_size: float = 0.1
    """ε of BPTT's relaxation and of the picard solver."""

    homeostat: HomeostatName = "none"
    """Penalty that keeps the field settled while it learns."""
    homeostat_weight: float = 10.0
    """Weight of the penalty, or where its controller starts. Of residual: relative to the task's gradient."""
    homeostat_margin: float = 0.3
    """Rate of decay that growth, token-growth (of every token by itself) and spectral ask for, and lognorm."""
    homeostat_controller: ControllerName = "constant"
    """What moves the weight: nothing, or a controller that holds the penalty (of jacobian, antisymmetry, residual: the fraction of lost samples) at the target."""
    homeostat_target: float = 0.01
    """Target of the controller."""
    homeostat_samples: int | None = None
    """Samples of a batch on which the penalty is taken. All of them if not given."""
    homeostat_gate: float = 0.0
    """A batch of which a smaller fraction is accepted moves the weights by the penalty only."""

    tensor_devices: int | None = None
    """Devices that share heads and hidden units of the block out, for great widths; --devices counts groups of so many."""

    steps: int = 1200
    """Updates."""
    batch: int = 16
    """Windows in a batch."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW: linear warm-up, then a cosine down to a tenth."""
    warmup: int = 20
    """Updates of warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest global norm of a gradient."""
    seed: int = 0
    """Seed of the initial weights and of the order of the batches."""
    x64: bool = False
    """Train in float64."""

    log_every: int = 10
    """Updates between two lines of metrics."""
    probe_every: int = 0
    """Updates between two comparisons of the gradient with the oracle; 0: never."""
    evaluate_every: int = 200
    """Updates between two evaluations on validation text."""
    evaluate_windows: int = 512
    """Validation windows of an evaluation (spread evenly; all of them if there are fewer)."""
    save_every: int = 100
    """Updates between two checkpoints."""
    keep: int = 2
    """How many checkpoints to keep, the newest; 0: all."""

    def __post_init__(self):
        super().__post_init__()
        self.check_above_zero(
            "width heads length vocabulary free_rtol nudged_rtol max_steps accept_free accept_adjoint bptt_steps step_size "
            "steps batch learning_rate clip log_every evaluate_every evaluate_windows save_every embedding_scale "
            "homeostat_weight homeostat_target radius"
        )
        check_vocabulary(self.tokens, self.vocabulary)
        check_count(**given(chunk=self.chunk))
        together = (self.chunk or 1) > 1 and self.order == "tokens" and self.estimator != "bptt"
        if together and self.solver not in (None, "anderson", "type-one", "broyden"):
            raise ValueError(
                f"`solver` {self.solver} settles tokens one by one, and `chunk` is {self.chunk}. Set `chunk` to 1, or take "
                "type-one, anderson or broyden."
            )
        self.check_not_negative(
            "leak warmup weight_decay probe_every keep residual_scale seed homeostat_margin homeostat_gate"
        )
        check_between(0, 1, homeostat_gate=self.homeostat_gate)
        check_count(**given(homeostat_samples=self.homeostat_samples))
        if self.estimator != "bptt":
            limits = [("free_rtol", "accept_free")]
            if self.estimator in ("asymep", "oracle", "holomorphic"):
                limits.append(("nudged_rtol", "accept_adjoint"))
            for asked, accepted in limits:
                if getattr(self, asked) > getattr(self, accepted):
                    raise ValueError(
                        f"`{asked}` {getattr(self, asked)} is looser than `{accepted}` {getattr(self, accepted)}: a sample that has settled would not be "
                        "accepted, and nothing would be learned. Tighten the first or raise the second."
                    )
        if self.width % self.heads:
            raise ValueError(
                f"`width` {self.width} is not divisible by `heads` {self.heads}. "
                f"Take `width` {self.heads * max(1, round(self.width / self.heads))}, say."
            )
        if self.block == "energy":
            raise ValueError(
                "`block` energy cannot learn to predict the next token: its symmetric attention lets a token feel the "
                "ones after it, so it would be looking at the answer. Take thick, real or monotone."
            )

    def check_start(self) -> None:
        super().check_start()
        if self.tokens != "bpe":
            self.check_unused("vocabulary", "that of `tokens` characters is their number")
        every = "weight margin controller target samples gate"
        names = " ".join(f"homeostat_{name}" for name in every.split())
        if self.homeostat == "none":
            self.check_unused(names, "there is no `homeostat`")
        if self.homeostat not in HINGED:
            self.check_unused("homeostat_margin", "this `homeostat` has none")
        if self.homeostat_controller == "constant":
            self.check_unused("homeostat_target", "the `homeostat_controller` is constant")
        if self.block == "monotone":
            self.check_unused("qknorm", "the monotone `block` has none")
        if self.homeostat_samples is not None:
            check_count(1, self.batch, homeostat_samples=self.homeostat_samples)
        if not self.in_order or self.estimator == "bptt":
            self.check_unused("chunk accept_prefix", "the window settles at once")
        if self.estimator == "bptt":
            self.check_unused("order solver", "bptt relaxes")
        self.check_fits()

    def mesh(self) -> Mesh | None:
        name, parts = "tensor_devices", self.tensor_devices or 1
        if self.heads % parts:
            raise ValueError(
                f"`heads` {self.heads} is not divisible by `{name}` {parts}, of which each takes as many. Take {parts} heads, say."
            )
        if parts > 1 and self.shard_parameters:
            raise ValueError(
                f"`{name}` cuts wide layers, and `shard_parameters` all: take one of the two."
            )
        return with_context(name, super().mesh(), self.tensor_devices, "tensor")

    @property
    def in_order(self) -> bool:
        """Whether what settles does so token after token: dyads settle both of their states at once, which is no causal field."""
        return self.order == "tokens" and self.estimator != "dyadic"

    def check_fits(self) -> None:
        """`ValueError` for sizes that no memory of this machine holds: those of a solver's history alone."""
        told = f"`batch` {self.batch}, `length` {self.length}, `width` {self.width}: settling"
        check_memory(told, 64.0 * self.batch * self.length * self.width)

    def gather(self, *, fallback: bool) -> Material:
        corpus = load_corpus(self.text, fallback=fallback)
        tokenizer = learned(self.tokens, self.vocabulary, corpus.text)
        return Material(corpus.text, corpus.source, tokenizer, kept(tokenizer))

    def recall(self, text: str | TextFile, source: str, about: dict[str, Any]) -> Material:
        tokenizer = recalled(about)
        return Material(text, source, tokenizer, kept(tokenizer))

    def build(self, material: Material) -> Parts:
        """Sets `jax_enable_x64` to what the settings say."""
        jax.config.update("jax_enable_x64", self.x64)
        train_ids, validation_ids = split(tokenised(material, self.out), self.length)
        estimator, homeostat = build_estimator(self), build_homeostat(self)
        optimiser = build_optimiser(self)
        model_key, run_key = jax.random.split(jax.random.key(self.seed))
        model = build_model(self, material.tokenizer.size, model_key)
        return Parts(
            make_step(estimator, optimiser, homeostat),
            TrainState.create(
                model, optimiser, key=run_key, trains=estimator.trains, homeostat=homeostat
            ),
            batches(train_ids, length=self.length, batch=self.batch, seed=self.seed),
            train_ids,
            validation_ids,
        )

    def evaluate(self, run: Run, model: Any, ids: np.ndarray) -> Evaluation:
        inputs, targets = tiles(ids, length=self.length, count=self.evaluate_windows)
        compute = lambda settled, *windows: _window_losses(*settled, *windows)
        loss, residual = training.in_chunks(
            compute, (model, run.estimator.settle), (inputs, targets), 64, run.mesh
        )
        unsettled = np.nan if self.estimator == "bptt" else np.mean(~(residual <= self.accept_free))
        entropy, middle = float(loss.mean()), float(np.median(residual))
        return Evaluation(entropy, int(targets.size), middle, float(unsettled))

    def diagnose(self, run: Run, step: int) -> dict[str, float]:
        due = self.probe_every and (step % self.probe_every == 0 or step == self.steps)
        return (_probe(run) if due else {}) | super().diagnose(run, step)

    def cadences(self) -> tuple[int, ...]:
        return *super().cadences(), self.probe_every


@eqx.filter_jit
def _window_losses(model, settle, inputs, targets):
    def one(inputs, targets):
        x = model.encode(inputs)
        settled = settle(model.field, model.initial(x), x)
        told = settled.stats.get("token_residuals", settled.residual[None])
        return cross_entropy(model.decode(settled.value), targets), told

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(inputs, targets)


def probe_batch(run: Run) -> tuple[Array, Array]:
    """The fixed batch on which gradients are compared along a run.

    ```python
    inputs, targets = ej.recipes.probe_batch(run)
    assert inputs.shape == (2, 4)
    ```
    """
    recipe = run.recipe
    stream = batches(run.train_ids, length=recipe.length, batch=recipe.batch, seed=recipe.seed + 1)
    inputs, targets = next(stream)
    return jnp.asarray(inputs), jnp.asarray(targets)


def _probe(run: Run) -> dict[str, float]:
    """The run's gradient beside the oracle's, at its present parameters."""
    pair = run.estimator, reference_oracle(run.recipe)
    estimate, cosine, error = on_common_samples(run.model, cross_entropy, probe_batch(run), *pair)
    told = {"cosine": cosine, "relative_error": error, **estimate.report.summary()}
    names = "cosine relative_error free_residual adjoint_residual accepted field_evaluations"
    return {f"probe_{name}": float(told[name]) for name in names.split()}


def sample(run: Any, prompt: Any, count: int, *, temperature: float, seed: int) -> str:
    """The text with which the model of a `Run`, or a `Published` one, continues the token ids `prompt`, settled as in training.

    ```python
    written = ej.recipes.sample(run, run.tokenizer.encode("settle"), 3, temperature=0.0, seed=0)
    assert len(written) == 3
    ```
    """
    order = getattr(run.estimator, "free", None)
    written = generate(
        run.model,
        jnp.asarray(prompt),
        count,
        length=run.recipe.length,
        key=jax.random.key(seed),
        temperature=jnp.asarray(temperature),
        settle=order if isinstance(order, TokenOrder) else run.estimator.settle,
        warm=run.estimator.objective == "equilibrium",
    )
    return run.tokenizer.decode(written.tokens)
