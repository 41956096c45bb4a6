"""How many field evaluations, and how long, until the demo block has settled.

`python benchmarks/settling.py`: Euler at .1, Euler at its best fixed ε, Anderson and Newton–Krylov, to force
residuals 1e-3 and 1e-5 (float32) and 1e-7 (float64), at initialisation and after training.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from common import Text, arguments, device, model, precision, table, timed, trained

from eqjax.analytic import tree_cast
from eqjax.relaxation import (
    Anderson,
    NewtonKrylov,
    Picard,
    equilibrium,
)

LENGTH, BATCH = 32, 16
STEPS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)


@eqx.filter_jit
def run(model, inputs, solver):
    def one(u):
        x = model.encode(u)
        found = equilibrium(
            model.field, model.initial(x), x, solver=solver, max_steps=1000, throw=False
        )
        return found.value, found.residual, found.stats["field_evaluations"]

    return jax.vmap(one)(inputs)


def settle(model, inputs, solver):
    (_, residual, evaluations), seconds, compile_seconds = timed(run, model, inputs, solver)
    settled = residual <= 1.001 * solver.rtol
    return {
        "evaluations": float(jnp.mean(evaluations)),
        "worst": int(jnp.max(evaluations)),
        "settled": float(jnp.mean(settled)),
        "seconds": seconds,
        "compile": compile_seconds,
    }


def main():
    options = arguments(__doc__).parse_args()
    text = Text(options.text)
    start = model(text, length=LENGTH)
    steps = 50 if options.quick else 400
    stages = {"initial": start, f"after {steps} steps": trained(start, text, steps, LENGTH)}
    inputs, _ = text.batch(BATCH, LENGTH, seed=12345)
    for dtype, tolerances in (("float32", (1e-3, 1e-5)), ("float64", (1e-7,))):
        for stage, net in stages.items():
            for tolerance in tolerances:
                rows = []
                with precision(dtype):
                    cast = tree_cast(net, dtype)
                    # An array, so that the sweep compiles once.
                    euler = {
                        e: settle(cast, inputs, Picard(tolerance, step_size=jnp.asarray(e, dtype)))
                        for e in STEPS
                    }
                    best = min(euler, key=lambda e: (-euler[e]["settled"], euler[e]["evaluations"]))
                    solvers = {
                        "Euler, ε = .1": euler[0.1],
                        f"Euler, best ε = {best}": euler[best],
                        "Anderson": settle(cast, inputs, Anderson(tolerance)),
                        "Newton–Krylov": settle(cast, inputs, NewtonKrylov(tolerance)),
                    }
                base = solvers["Euler, ε = .1"]
                euler[best]["compile"] = base["compile"]
                for name, row in solvers.items():
                    rows.append(
                        (
                            name,
                            f"{row['evaluations']:.1f}",
                            row["worst"],
                            f"{row['settled']:.0%}",
                            f"{1e3 * row['seconds']:.1f}",
                            f"{row['seconds'] / base['seconds']:.2f}",
                            f"{row['compile']:.1f}" if row["compile"] > 0.05 else "as above",
                        )
                    )
                table(
                    f"Settling to {tolerance:g}, {dtype}, {stage}; C=64 T={LENGTH} B={BATCH}, {device()}",
                    (
                        "solver",
                        "evaluations (mean)",
                        "worst sample",
                        "settled",
                        "ms",
                        "time against Euler .1",
                        "compile s",
                    ),
                    rows,
                    options.out,
                )


if __name__ == "__main__":
    main()
