"""Settling a trained causal field by each solver: the whole window, and token after token.

`python benchmarks/order.py RUN [RUN …]`: RUN is a folder of `eqjax train`. On windows of the run's validation text: tokens
and windows of which every token has a force residual of at most 1e-4 (measured with full products), field evaluations in
windows (the mean, and the slowest), solver steps one after another, and milliseconds for the batch.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from common import arguments, device, table, timed

from eqjax.language import tiles
from eqjax.recipes import TrainConfig
from eqjax.relaxation import (
    Anderson,
    AndersonTypeI,
    Broyden,
    Fallback,
    NewtonKrylov,
    Picard,
    TokenOrder,
    equilibrium,
)
from eqjax.training import Run

ASKED, COUNTED = 5e-5, 1e-4
ONE = AndersonTypeI(ASKED, window=6, mixing=0.3)
SOLVERS = {
    "window, Anderson": (Anderson(ASKED), 150),
    "window, Anderson, patience 300": (Anderson(ASKED, patience=300), 600),
    "window, Anderson type I": (AndersonTypeI(ASKED, patience=300), 600),
    "window, Broyden": (Broyden(ASKED), 150),
    "window, Newton–Krylov": (NewtonKrylov(ASKED), 60),
    "window, Euler .1": (Picard(ASKED, step_size=0.1), 3000),
    "tokens, Anderson": (TokenOrder(Anderson(ASKED)), 150),
    "tokens, type I": (TokenOrder(ONE), 150),
    "tokens, type I, then Newton": (TokenOrder(Fallback(ONE, NewtonKrylov(ASKED), 60, 30)), 90),
    **{f"{n} side by side, type I": (TokenOrder(ONE, chunk=n), 150) for n in (4, 8, 16, 32)},
}


@eqx.filter_jit
def settle(model, inputs, solver, max_steps):
    def one(tokens):
        x = model.encode(tokens)
        start = model.initial(x)
        found = equilibrium(model.field, start, x, solver=solver, max_steps=max_steps, throw=False)
        with jax.default_matmul_precision("highest"):
            each = TokenOrder(ONE).scaled(model.field(0.0, start, x), start)
            left = each.residuals(model.field(0.0, found.value, x), found.value)
        return left, found.stats["field_evaluations"], found.stats["num_steps"]

    return jax.vmap(one)(inputs)


def main():
    parser = arguments(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    for folder in options.runs:
        run = Run.open(folder, [TrainConfig])
        inputs, _ = tiles(run.validation_ids, length=run.recipe.length, count=options.batch)
        rows = []
        for name, (solver, steps) in SOLVERS.items():
            out, seconds, _ = timed(
                settle, run.model, jnp.asarray(inputs), solver, steps, repeats=3
            )
            left, evaluations, taken = out
            good = left <= COUNTED
            rows.append(
                (
                    name,
                    f"{jnp.mean(good):.2%}",
                    f"{jnp.mean(jnp.all(good, axis=1)):.1%}",
                    f"{jnp.mean(evaluations):.1f}",
                    f"{jnp.max(evaluations)}",
                    f"{jnp.max(taken)}",
                    f"{1e3 * seconds:.1f}",
                )
            )
            print(*rows[-1], sep=", ", flush=True)
        header = "solver,tokens settled,windows,evaluations,most,steps,ms".split(",")
        recipe = run.recipe
        size = f"C={recipe.width} T={recipe.length} B={options.batch}"
        title = f"After {int(run.state.step)} updates, {size}, {jnp.asarray(0.0).dtype}, {device()}"
        table(title, header, rows, options.out)


if __name__ == "__main__":
    main()
