"""How much of the machine one field evaluation, one product with its Jacobian and one whole update use.

`python benchmarks/roofline.py [--widths 256 512 1024]`: TFLOP/s against a large matrix product, bytes per second against
a large copy, both measured here first. Arithmetic is counted from the shapes, `(8 C² + 16 C²) + 4 T C` multiply-adds of two
a token; bytes are the least there could be: weights, and every activation of the block written and read once.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common import arguments, device, table, timed

from eqjax.analytic import cross_entropy
from eqjax.fields import ThickBlock
from eqjax.gradients import AsymEP, Nudge, SharedAdjoint
from eqjax.language import equilibrium_lm
from eqjax.relaxation import Anderson
from eqjax.training import TrainState, make_step

CHAIN = 50  # evaluations in a row, so that the launch of a program does not count


def flops_of_force(width, length, batch):
    products = 2 * (4 + 8) * width**2
    attention = 2 * 2 * length * width
    return batch * length * (products + attention)


def bytes_of_force(width, length, batch, size):
    weights = 12 * width**2
    # q, k, v, mixed, out, two norms, x, z, the force: C each; the hidden layer 4 C, twice.
    activations = batch * length * width * (10 + 8)
    scores = batch * (width // 32) * length**2
    return size * (weights + 2 * activations + 2 * scores)


def ceilings(n, copied):
    """FLOP/s of a product of n × n matrices in either type, and bytes/s of a copy of `copied` floats."""
    found = {}
    for name, dtype in (("bfloat16", jnp.bfloat16), ("float32", jnp.float32)):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        precision = "highest" if name == "float32" else None
        product = jax.jit(lambda a, precision=precision: jnp.matmul(a, a, precision=precision))
        _, seconds, _ = timed(product, a, repeats=9)
        found[name] = 2 * n**3 / seconds
    a = jax.random.normal(jax.random.key(1), (copied,), jnp.float32)
    _, seconds, _ = timed(jax.jit(lambda a: -a), a, repeats=9)
    return found, 2 * 4 * a.size / seconds


def chained(call):
    """`call` again and again, each on what the last one gave."""
    return jax.jit(lambda z: jax.lax.fori_loop(0, CHAIN, lambda _, z: z + 0.01 * call(z), z))


def line(name, seconds, flops, moved, ceiling, bandwidth):
    floor = max(flops / ceiling, moved / bandwidth)
    return (
        name,
        f"{1e3 * seconds:.3f}",
        f"{flops / seconds / 1e12:.3g}",
        f"{flops / seconds / ceiling:.0%}",
        f"{moved / seconds / 1e9:.0f}",
        f"{moved / seconds / bandwidth:.0%}",
        f"{1e3 * floor:.3f}",
        f"{seconds / floor:.1f}",
    )


def field_rows(width, length, batch, name, dtype, ceiling, bandwidth):
    cast = lambda tree: jax.tree.map(
        lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree
    )
    field = cast(ThickBlock(width, width // 32, qknorm=True, key=jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (batch, length, width)).astype(dtype)
    force = jax.vmap(lambda z, x: field(0.0, z, x))
    flops = flops_of_force(width, length, batch)
    moved = bytes_of_force(width, length, batch, dtype.dtype.itemsize)
    with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        calls = {"field": (lambda z: force(z, x), 1, 1)}
        # Linearised outside of the chain, as a Krylov method has it; what that keeps is read besides.
        product = jax.linearize(lambda z: force(z, x), x)[1]
        calls["Jacobian product"] = (product, 1, 2)
        for what, (call, arithmetic, bytes_) in calls.items():
            _, seconds, _ = timed(chained(call), x, repeats=7)
            size = (arithmetic * flops, bytes_ * moved, ceiling, bandwidth)
            yield line(f"{what}, {name}", seconds / CHAIN, *size)


def update_row(width, length, batch, ceiling, bandwidth):
    model = equilibrium_lm(
        64, length, width, width // 32, qknorm=True, embedding_scale=6.0, key=jax.random.key(0)
    )
    free, nudged = Anderson(5e-5), Anderson(3e-3)
    estimator = AsymEP(free=free, nudged=Nudge(nudged, contrast=SharedAdjoint()))
    optimiser = optax.adamw(3e-3)
    step = make_step(estimator, optimiser)
    state = TrainState.create(model, optimiser, key=jax.random.key(1))
    tokens = jax.random.randint(jax.random.key(2), (batch, length + 1), 0, 64)
    pair = tokens[:, :-1], tokens[:, 1:]
    estimate = eqx.filter_jit(estimator)(model, cross_entropy, pair)
    # All samples run until the slowest has settled; and a surrogate's forward and backward pass of three.
    calls = int(jnp.max(estimate.report.field_evaluations)) + 3
    program = eqx.filter_jit(lambda state: step(state, pair))
    _, seconds, _ = timed(program, state, repeats=7)
    force = flops_of_force(width, length, batch), bytes_of_force(width, length, batch, 4)
    size = (calls * force[0], calls * force[1], ceiling, bandwidth)
    return line(f"AsymEP update, float32 ({calls} evaluations)", seconds, *size)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    widths, large = ([64], 512) if options.quick else (options.widths, 8192)
    if options.quick:
        options.length, options.batch = 32, 4
    products, bandwidth = ceilings(large, large**2)
    said = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in products.items())
    print(f"{device()}: a large product {said}; a large copy {bandwidth / 1e9:.0f} GB/s\n")
    header = "what,ms,TFLOP/s,of the large product,GB/s,of the large copy,floor ms,times the floor"
    for width in widths:
        shape = width, options.length, options.batch
        rows = []
        for name, dtype in (("bfloat16", jnp.bfloat16), ("float32", jnp.float32)):
            rows += field_rows(*shape, name, dtype, products[name], bandwidth)
        rows.append(update_row(*shape, products["float32"], bandwidth))
        title = f"C={width} T={options.length} B={options.batch}, {device()}; large product {said}"
        table(f"{title}; copy {bandwidth / 1e9:.0f} GB/s", header.split(","), rows, options.out)


if __name__ == "__main__":
    main()
