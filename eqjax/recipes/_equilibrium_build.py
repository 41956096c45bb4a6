"""Model, estimator and homeostat of the equilibrium language model, from a `TrainConfig`."""

from typing import Any

import equinox as eqx
import jax

from .. import fields, gradients, homeostasis, relaxation
from ..language import equilibrium_lm

BLOCKS = {
    "thick": fields.ThickBlock,
    "real": fields.RealBlock,
    "monotone": fields.MonotoneBlock,
    "energy": fields.EnergyBlock,
}

SOLVERS: dict[str, Any] = {
    "anderson": relaxation.Anderson,
    "picard": relaxation.Picard,
    "type-one": relaxation.AndersonTypeI,
    "broyden": relaxation.Broyden,
    "newton-krylov": relaxation.NewtonKrylov,
    "pseudo-transient": relaxation.PseudoTransient,
}

# On a block of 256 channels after 1000 updates, where a smaller mixing loses no token of an adjoint (.5: one window in 48).
TYPE_ONE = {"mixing": 0.3, "window": 6}

HINGED = ("growth", "token-growth", "spectral", "lognorm")  # penalties that ask for a margin


def build_model(config: Any, vocabulary: int, key) -> fields.AbstractEquilibriumModel:
    """The untrained model that a configuration describes."""
    qknorm = {} if config.block == "monotone" else {"qknorm": config.qknorm}
    return equilibrium_lm(
        vocabulary,
        config.length,
        config.width,
        config.heads,
        block=BLOCKS[config.block],
        embedding_scale=config.embedding_scale,
        leak=config.leak,
        attention_gain=config.attention_gain,
        residual_scale=config.residual_scale,
        key=key,
        **qknorm,
    )


def build_solver(config: Any, rtol: float):
    """The free-phase solver that a configuration names, at tolerance `rtol`."""
    name = config.solver or ("type-one" if config.in_order else "anderson")
    settings = {"picard": {"step_size": config.step_size}, "type-one": TYPE_ONE}.get(name, {})
    solver = SOLVERS[name](rtol=rtol, **settings)
    return _in_order(config, solver) if config.in_order else solver


def _in_order(config: Any, solver: Any) -> Any:
    one_by_one = config.solver not in (None, "anderson", "type-one", "broyden")
    chunk = 1 if one_by_one else config.chunk or (4 if jax.default_backend() == "cpu" else 16)
    return relaxation.TokenOrder(solver, chunk=chunk)  # pyright: ignore[reportCallIssue]


def build_estimator(config: Any) -> gradients.AbstractEstimator:
    """The gradient estimator that a configuration names.

    ```python
    assert isinstance(ej.recipes.build_estimator(ej.recipes.TrainConfig()), ej.AsymEP)
    ```
    """
    if config.estimator == "bptt":
        return gradients.BPTT(steps=config.bptt_steps, step=config.step_size)
    shared = {"free": build_solver(config, config.free_rtol), "free_steps": config.max_steps}
    prefix = {"prefix": config.accept_prefix}
    gate = gradients.Accept(config.accept_free, config.accept_adjoint, **prefix)
    # Biased by design: their adjoint residual is reported, not held against them.
    open_gate = gradients.Accept(config.accept_free, float("inf"), **prefix)
    back = relaxation.AndersonTypeI(rtol=config.nudged_rtol, **TYPE_ONE)
    in_order = _in_order(config, back) if config.in_order else None
    sweeps = in_order is not None and config.estimator == "asymep"
    nudged = gradients.Nudge(
        in_order if sweeps else relaxation.Anderson(rtol=config.nudged_rtol),
        steps=config.max_steps,
        radius=config.radius,
        contrast=gradients.SharedAdjoint(),  # the fastest
    )
    match config.estimator:
        case "oracle":
            solver = in_order or relaxation.GMRES(rtol=config.nudged_rtol)
            return gradients.OracleAdjoint(
                adjoint_solver=solver, adjoint_steps=config.max_steps, accept=gate, **shared
            )
        case "holomorphic":
            return gradients.HolomorphicEP(accept=gate, nudged=nudged, **shared)
        case "vector-field":
            return gradients.VectorFieldEP(accept=open_gate, nudged=nudged, **shared)
        case "dyadic":
            return gradients.DyadicEP(radius=config.radius, accept=gate, **shared)
        case "truncated":
            return gradients.TruncatedAdjoint(terms=5, damping=0.5, accept=open_gate, **shared)
    return gradients.AsymEP(accept=gate, nudged=nudged, **shared)


def reference_oracle(config: Any) -> gradients.OracleAdjoint:
    """The oracle that gradients are measured against: the same settling, a far tighter linear solve.

    ```python
    assert ej.recipes.reference_oracle(recipe).accept
    ```
    """
    rtol = 1e-6 if config.x64 else 1e-5
    adjoint = relaxation.GMRES(rtol=rtol)
    if config.order == "tokens":
        adjoint = _in_order(config, relaxation.AndersonTypeI(rtol=rtol))
    return gradients.OracleAdjoint(
        free=build_solver(config, config.free_rtol),
        adjoint_solver=adjoint,
        free_steps=config.max_steps,
        accept=gradients.Accept(config.accept_free, config.accept_adjoint),
    )


def build_homeostat(config: Any) -> homeostasis.Homeostat | None:
    """The homeostat that a configuration names."""
    name, weight, target = config.homeostat, config.homeostat_weight, config.homeostat_target
    if name == "none":
        return None
    # A hinge says by itself how far the margin is violated; the others never reach zero, and are needed as far as
    # samples are lost.
    hinged = name in HINGED
    penalty = getattr(homeostasis, f"{name.replace('-', '_')}_penalty")
    limits = {"floor": 1e-2 * weight, "ceiling": 1e2 * weight}
    moving = {"multiplicative": homeostasis.Multiplicative, "pi": homeostasis.PI}
    kind = moving.get(config.homeostat_controller)
    controller = kind(weight, target, **limits) if kind else homeostasis.Constant(weight)
    return homeostasis.Homeostat(
        eqx.Partial(penalty, margin=config.homeostat_margin) if hinged else penalty,
        controller,
        signal=homeostasis.penalty_signal if hinged else homeostasis.rejected_signal,
        gate=config.homeostat_gate,
        relative=name == "residual",
        samples=config.homeostat_samples,
    )
