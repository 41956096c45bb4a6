"""Force residuals that each precision of matrix products reaches, and what iterative refinement saves.

`python benchmarks/precision.py`: an untrained thick block with a given input, float32, T=64, B=8. The floor is the
residual, measured at "highest", of the best state that Anderson finds with products in that precision. CPUs ignore
the request for a lower precision.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from common import arguments, device, table, timed

from eqjax.fields import ThickBlock
from eqjax.relaxation import Anderson, Refine, equilibrium

LENGTH, BATCH, TARGET = 64, 8, 1e-5
PRECISIONS = ("bfloat16", "tensorfloat32", "float32", "highest")


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
    options = arguments(__doc__).parse_args()
    for width in (64,) if options.quick else (128, 256):
        build, draw = jax.random.split(jax.random.key(0))
        field = ThickBlock(width, width // 32, qknorm=True, key=build)
        x = jax.random.normal(draw, (BATCH, LENGTH, width), jnp.float32)
        size = f"C={width} T={LENGTH} B={BATCH}, float32, {device()}"

        rows, floors = [], {}
        for precision in PRECISIONS:
            # A tolerance below every floor: the solver stops when it finds nothing better.
            residual, evaluations, _ = settle(field, x, Anderson(1e-9), precision)
            floors[precision] = float(jnp.max(residual))
            rows.append(
                (
                    precision,
                    f"{jnp.median(residual):.1e}",
                    f"{floors[precision]:.1e}",
                    f"{jnp.mean(evaluations):.0f}",
                )
            )
        header = (
            "products",
            "floor (median sample)",
            "floor (worst)",
            "evaluations until it gave up",
        )
        table(f"Residual floors; {size}", header, rows, options.out)

        runs = {"highest": "highest"}
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
