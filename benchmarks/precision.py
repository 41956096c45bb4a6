"""Force residuals that each precision of matrix products reaches, and what iterative refinement saves.

`python benchmarks/precision.py`: an untrained thick block with a given input, float32, T=64, B=8. The floor is the
residual, measured at "highest", of the best state that Anderson finds with products in that precision. CPUs ignore
the request for a lower precision, and do not have most of the products that are put together of shorter ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from common import arguments, device, table, timed

from eqjax.fields import ThickBlock
from eqjax.relaxation import Anderson, Refine, equilibrium

TARGET = 1e-5
PRECISIONS = (
    "highest",
    "bfloat16",
    "tensorfloat32",
    "BF16_BF16_F32_X3",
    "BF16_BF16_F32_X6",
    "BF16_BF16_F32_X9",
    "TF32_TF32_F32_X3",
)


@eqx.filter_jit
def settle(field, x, solver, precision):
    def one(x):
        start = jnp.zeros_like(x)
        return equilibrium(field, start, x, solver=solver, precision=precision, throw=False)

    found = jax.vmap(one)(x)
    stats = found.stats
    coarse = stats.get("coarse_evaluations", jnp.zeros_like(stats["field_evaluations"]))
    return found.residual, stats["field_evaluations"], coarse


def main():
    parser = arguments(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    if options.quick:
        options.widths, options.length, options.batch = [64], 32, 4
    for width in options.widths:
        build, draw = jax.random.split(jax.random.key(0))
        field = ThickBlock(width, width // 32, qknorm=True, key=build)
        x = jax.random.normal(draw, (options.batch, options.length, width), jnp.float32)
        size = f"C={width} T={options.length} B={options.batch}, float32, {device()}"

        rows, floors, base = [], {}, None
        for precision in PRECISIONS:
            try:
                # A tolerance below every floor: the solver stops when it finds nothing better.
                out, seconds, _ = timed(settle, field, x, Anderson(1e-9), precision)
            except Exception as error:  # not every machine has every product
                print(f"{precision}: left out, {str(error).strip().splitlines()[0][:120]}\n")
                continue
            residual, evaluations, _ = out
            floors[precision] = float(jnp.max(residual))
            each = seconds / float(jnp.max(evaluations))
            base = each if base is None else base
            median = f"{jnp.median(residual):.1e}"
            rows.append(
                (
                    precision,
                    median,
                    f"{floors[precision]:.1e}",
                    f"{1e6 * each:.0f}",
                    f"{each / base:.2f}",
                )
            )
        header = (
            "products",
            "floor (median sample)",
            "floor (worst)",
            "µs an evaluation",
            "against highest",
        )
        table(f"Residual floors; {size}", header, rows, options.out)

        runs = {name: name for name in floors if floors[name] < TARGET}
        for coarse in ("bfloat16", "tensorfloat32"):
            # The coarse phase stops where its products stop being of use.
            runs[f"Refine({coarse})"] = Refine(coarse, rtol=max(2 * floors[coarse], TARGET))
        rows, base = [], None
        for name, precision in runs.items():
            out, seconds, _ = timed(settle, field, x, Anderson(TARGET), precision, repeats=11)
            residual, evaluations, coarse = out
            base = seconds if base is None else base
            rows.append(
                (
                    name,
                    f"{precision.rtol:.1e}" if isinstance(precision, Refine) else "-",
                    f"{jnp.mean(evaluations):.1f}",
                    f"{jnp.mean(coarse):.1f}",
                    f"{1e3 * seconds:.2f}",
                    f"{seconds / base:.2f}",
                    f"{jnp.max(residual):.1e}",
                )
            )
        header = (
            "precision",
            "coarse rtol",
            "evaluations",
            "of them coarse",
            "ms",
            "against highest",
            "residual",
        )
        table(f"Settling to {TARGET:g}; {size}", header, rows, options.out)


if __name__ == "__main__":
    main()
