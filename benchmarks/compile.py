"""Seconds to compile a training step, and how often the field is traced for it, for every estimator.

`python benchmarks/compile.py [--width 64] [--length 32]`. Without a persistent cache. Compiling does not depend on the
sizes, but for how XLA tunes its products.
"""

import time

import equinox as eqx
import jax
import optax
from common import arguments, device, table

import eqjax as ej
from eqjax import gradients, homeostasis, relaxation
from eqjax.fields import AbstractForceField, ThickBlock
from eqjax.language import equilibrium_lm

TRACES = []
SETTLE = relaxation.Anderson(5e-5)
NUDGE = gradients.Nudge(relaxation.Anderson(3e-3))
SHARED = gradients.Nudge(relaxation.Anderson(3e-3), contrast=gradients.SharedAdjoint())
ESTIMATORS = {
    "OracleAdjoint": gradients.OracleAdjoint(free=SETTLE),
    "AsymEP": gradients.AsymEP(free=SETTLE, nudged=NUDGE),
    "AsymEP, shared adjoint": gradients.AsymEP(free=SETTLE, nudged=SHARED),
    "HolomorphicEP": gradients.HolomorphicEP(free=SETTLE, nudged=NUDGE),
    "DyadicEP": gradients.DyadicEP(free=SETTLE),
    "VectorFieldEP": gradients.VectorFieldEP(free=SETTLE, nudged=NUDGE),
    "TruncatedAdjoint": gradients.TruncatedAdjoint(free=SETTLE),
    "BPTT": gradients.BPTT(steps=50, step=0.1),
    "ForwardEligibility": gradients.ForwardEligibility(steps=50, step=0.1),
}


class Counted(AbstractForceField):
    """A field that notes every time that Python walks through it."""

    field: AbstractForceField

    def __call__(self, t, z, x):
        TRACES.append(1)
        return self.field(t, z, x)


def measured(estimator, homeostat, width, length, batch):
    jax.clear_caches()
    TRACES.clear()
    model = equilibrium_lm(
        60, length, width, 4, block=ThickBlock, qknorm=True, key=jax.random.key(0)
    )
    model = eqx.tree_at(lambda m: m.field, model, Counted(model.field))
    optimiser = optax.adamw(3e-3)
    step = ej.training.make_step(estimator, optimiser, homeostat)
    state = ej.training.TrainState.create(
        model, optimiser, key=jax.random.key(2), trains=estimator.trains, homeostat=homeostat
    )
    tokens = jax.random.randint(jax.random.key(1), (batch, length + 1), 0, 60)
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, (tokens[:, :-1], tokens[:, 1:])))
    first = time.perf_counter() - start
    traces = len(TRACES)
    start = time.perf_counter()
    jax.block_until_ready(step(state, (tokens[:, :-1], tokens[:, 1:])))
    assert len(TRACES) == traces, "the second step was traced again"
    return first - (time.perf_counter() - start), traces


def main():
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    sizes = options.width, options.length, options.batch
    rows = []
    for name, estimator in ESTIMATORS.items():
        for label, homeostat in (
            ("none", None),
            ("growth", homeostasis.growth_homeostat(margin=0.3)),
        ):
            try:
                seconds, traces = measured(estimator, homeostat, *sizes)
                rows.append([name, label, f"{seconds:.1f}", traces])
            except (TypeError, ValueError) as error:
                rows.append([name, label, "–", str(error)[:60]])
    header = ["estimator", "homeostat", "compile, s", "traces of the field"]
    table(f"Compiling a training step, {device()}", header, rows, options.out)


if __name__ == "__main__":
    main()
