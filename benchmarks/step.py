"""Seconds and memory of one gradient: BPTT over 150 steps, the oracle, AsymEP, at equal free residual.

`python benchmarks/step.py [--widths 64 128 256 512]`. The equilibrium estimators settle to the residual that
150 Euler steps of .1 reach (but not below what float32 allows); adjoint residual 1e-3.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from common import Text, arguments, compiled, device, model, table, timed, trained

from eqjax.analytic import cross_entropy
from eqjax.gradients import (
    BPTT,
    Accept,
    AsymEP,
    Nudge,
    OracleAdjoint,
    SharedAdjoint,
    agreement,
)
from eqjax.relaxation import GMRES, Anderson

STEPS = 150


def plain_bptt(model, batch):
    """Backpropagation with every intermediate kept: what a loop in an ordinary framework does."""

    def objective(model):
        def one(inputs, targets):
            x = model.encode(inputs)

            def euler(z, _):
                return z + 0.1 * model.field(0.0, z, x), None

            z, _ = jax.lax.scan(euler, model.initial(x), length=STEPS)
            return cross_entropy(model.decode(z), targets)

        return jnp.mean(jax.vmap(one)(*batch))

    with jax.default_matmul_precision("highest"):
        return eqx.filter_grad(objective)(model)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--train", type=int, default=0, help="updates before measuring")
    options = parser.parse_args()
    text = Text(options.text)
    for width in options.widths[:1] if options.quick else options.widths:
        net = model(text, width=width, length=options.length)
        if options.train:
            net = trained(net, text, options.train, options.length, options.batch)
        batch = text.batch(options.batch, options.length, seed=999)
        bptt = BPTT(steps=STEPS)
        reached = bptt(net, cross_entropy, batch).report.summary()["free_residual"]
        rtol = max(float(reached), 2e-6)
        free, accept = Anderson(rtol=rtol), Accept(10 * rtol, 1e-1)
        reference = OracleAdjoint(
            free=Anderson(rtol=2e-6), adjoint_solver=GMRES(1e-5), accept=Accept(1e-3, 1e-1)
        )
        estimators = {
            "BPTT(150), checkpointed": bptt,
            "OracleAdjoint": OracleAdjoint(free=free, adjoint_solver=GMRES(1e-3), accept=accept),
            "AsymEP": AsymEP(free=free, nudged=Anderson(1e-3), accept=accept),
            "AsymEP, shared adjoint": AsymEP(
                free=free, nudged=Nudge(Anderson(0.001), contrast=SharedAdjoint()), accept=accept
            ),
        }
        truth = reference(net, cross_entropy, batch)
        measured = {}
        program, compile_seconds, memory = compiled(plain_bptt, net, batch)
        _, seconds, _ = timed(program, net, batch)
        nothing = ("–", "–", f"{float(reached):.1e}", "–")
        measured["BPTT(150), every state kept"] = (seconds, compile_seconds, memory, nothing)
        for name, estimator in estimators.items():

            def gradient(net, batch, estimator=estimator):
                return estimator(net, cross_entropy, batch)

            program, compile_seconds, memory = compiled(gradient, net, batch)
            estimate, seconds, _ = timed(program, net, batch)
            summary = estimate.report.summary()
            same = bool(jnp.all(estimate.report.accepted & truth.report.accepted))
            cosine = float(agreement(estimate.grads, truth.grads)[0])
            figures = (
                f"{cosine:.6f}" if same else "– (other samples accepted)",
                f"{float(summary['field_evaluations']):.0f}",
                f"{float(summary['free_residual']):.1e}",
                f"{float(summary['accepted']):.0%}",
            )
            measured[name] = (seconds, compile_seconds, memory, figures)
        base = measured["BPTT(150), checkpointed"][0]
        plain_memory = measured["BPTT(150), every state kept"][2]
        rows = [
            (
                name,
                f"{1e3 * seconds:.1f}",
                f"{seconds / base:.2f}",
                f"{memory:.0f}",
                f"{memory / plain_memory:.3f}",
                f"{compile_seconds:.1f}",
                *figures,
            )
            for name, (seconds, compile_seconds, memory, figures) in measured.items()
        ]
        stage = f"after {options.train} updates" if options.train else "initial weights"
        table(
            f"One gradient, C={width} T={options.length} B={options.batch} float32, {stage}, {device()}",
            (
                "estimator",
                "ms",
                "time against BPTT",
                "MiB",
                "memory against every state kept",
                "compile s",
                "cosine with oracle",
                "evaluations",
                "worst free residual",
                "accepted",
            ),
            rows,
            options.out,
        )


if __name__ == "__main__":
    main()
