"""Model, estimator, homeostat and optimiser of the equilibrium language model, from a `TrainConfig`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import optax

from ..fields import AbstractEquilibriumModel, EnergyBlock, MonotoneBlock, RealBlock, ThickBlock
from ..gradients import (
    BPTT,
    AbstractEstimator,
    Accept,
    AsymEP,
    DyadicEP,
    HolomorphicEP,
    Nudge,
    OracleAdjoint,
    SharedAdjoint,
    TruncatedAdjoint,
    VectorFieldEP,
)
from ..homeostasis import (
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
from ..language import equilibrium_lm
from ..relaxation import GMRES, Anderson, Broyden, NewtonKrylov, Picard, PseudoTransient
from ._schedule import warmup_cosine

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


def build_model(config: Any, vocabulary: int, key) -> AbstractEquilibriumModel:
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


def build_solver(config: Any, rtol: float):
    """The free-phase solver that a configuration names, at tolerance `rtol`."""
    if config.solver == "picard":
        return Picard(rtol=rtol, step_size=config.step_size)
    return SOLVERS[config.solver](rtol=rtol)


def build_estimator(config: Any) -> AbstractEstimator:
    """The gradient estimator that a configuration names."""
    if config.estimator == "bptt":
        return BPTT(steps=config.bptt_steps, step=config.step_size)
    free = build_solver(config, config.free_rtol)
    shared = {"free": free, "free_steps": config.max_steps}
    gate = Accept(config.accept_free, config.accept_adjoint)
    # Biased by design: their adjoint residual is reported, not held against them.
    open_gate = Accept(config.accept_free, float("inf"))
    nudged = Nudge(
        Anderson(rtol=config.nudged_rtol),
        steps=config.max_steps,
        radius=config.radius,
        contrast=SharedAdjoint(),  # the fastest
    )
    match config.estimator:
        case "oracle":
            solver = GMRES(rtol=config.nudged_rtol)
            return OracleAdjoint(adjoint_solver=solver, accept=gate, **shared)
        case "holomorphic":
            return HolomorphicEP(accept=gate, nudged=nudged, **shared)
        case "vector-field":
            return VectorFieldEP(accept=open_gate, nudged=nudged, **shared)
        case "dyadic":
            return DyadicEP(radius=config.radius, accept=gate, **shared)
        case "truncated":
            return TruncatedAdjoint(terms=5, damping=0.5, accept=open_gate, **shared)
    return AsymEP(accept=gate, nudged=nudged, **shared)


def reference_oracle(config: Any) -> OracleAdjoint:
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


def build_homeostat(config: Any) -> Homeostat | None:
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
        case _:
            controller = PI(weight, target, **limits)
    return Homeostat(
        eqx.Partial(penalty, margin=config.homeostat_margin) if hinged else penalty,
        controller,
        signal=penalty_signal if hinged else rejected_signal,
        gate=config.homeostat_gate,
        relative=name == "residual",
        samples=config.homeostat_samples,
    )


def build_optimiser(config: Any) -> optax.GradientTransformation:
    """AdamW with warm-up, cosine decay and clipping."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(warmup_cosine(config), weight_decay=config.weight_decay),
    )
