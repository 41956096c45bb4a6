"""What a training run of the equilibrium language model is made of."""

import dataclasses
from pathlib import Path
from typing import Literal

from ..training import Settings

EstimatorName = Literal[
    "asymep", "oracle", "bptt", "holomorphic", "dyadic", "truncated", "vector-field"
]

HomeostatName = Literal[
    "none", "growth", "spectral", "lognorm", "jacobian", "antisymmetry", "residual"
]

ControllerName = Literal["constant", "multiplicative", "pi"]

SolverName = Literal["anderson", "broyden", "picard", "newton-krylov", "pseudo-transient"]


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of a training run of the equilibrium language model."""

    out: Path = Path("runs/train")
    """Folder of the run: configuration, metrics and checkpoints."""
    text: Path | None = None
    """A UTF-8 text file to learn from. Tiny Shakespeare if not given."""

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
    solver: SolverName = "anderson"
    """How the free phase settles (all but bptt)."""
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
    bptt_steps: int = 60
    """Relaxation steps of BPTT, the horizon T."""
    step_size: float = 0.1
    """ε of BPTT's relaxation and of the picard solver."""

    homeostat: HomeostatName = "none"
    """Penalty that keeps the field settled while it learns."""
    homeostat_weight: float = 10.0
    """Weight of the penalty, or where its controller starts. Of residual: relative to the task's gradient."""
    homeostat_margin: float = 0.3
    """Rate of decay that growth and spectral ask for, and lognorm."""
    homeostat_controller: ControllerName = "constant"
    """What moves the weight: nothing, or a controller that holds the penalty (with jacobian, antisymmetry and residual: the
    fraction of samples that are not accepted) at the target."""
    homeostat_target: float = 0.01
    """Target of the controller."""
    homeostat_samples: int | None = None
    """Samples of a batch on which the penalty is taken. All of them if not given."""
    homeostat_gate: float = 0.0
    """A batch of which a smaller fraction is accepted moves the weights by the penalty only."""

    steps: int = 1200
    """Updates."""
    batch: int = 16
    """Windows in a batch."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW: linear warm-up, then a cosine down to a tenth."""
    warmup: int = 20
    """Updates of warm-up."""
    weight_decay: float = 0.01
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
        _check(self)


def _check(config: TrainConfig) -> None:
    config.check_above_zero(
        "width heads length free_rtol nudged_rtol max_steps accept_free accept_adjoint bptt_steps step_size "
        "steps batch learning_rate clip log_every evaluate_every evaluate_windows save_every embedding_scale "
        "homeostat_weight homeostat_target"
    )
    config.check_not_negative(
        "leak warmup weight_decay probe_every keep residual_scale seed homeostat_margin homeostat_gate"
    )
    if config.radius is not None and not config.radius > 0:
        raise ValueError(f"--radius must be above 0, got {config.radius}.")
    if config.estimator != "bptt":
        for asked, accepted in (("free_rtol", "accept_free"), ("nudged_rtol", "accept_adjoint")):
            if getattr(config, asked) > getattr(config, accepted):
                raise ValueError(
                    f"--{asked.replace('_', '-')} {getattr(config, asked)} is looser than "
                    f"--{accepted.replace('_', '-')} {getattr(config, accepted)}: a sample that has settled would not be "
                    "accepted, and nothing would be learned. Tighten the first or raise the second."
                )
    if config.width % config.heads:
        raise ValueError(
            f"--width {config.width} is not divisible by --heads {config.heads}. "
            f"Take --width {config.heads * max(1, round(config.width / config.heads))}, say."
        )
    if config.block == "energy":
        raise ValueError(
            "--block energy cannot learn to predict the next token: its symmetric attention lets a token feel the "
            "ones after it, so it would be looking at the answer. Take thick, real or monotone."
        )
