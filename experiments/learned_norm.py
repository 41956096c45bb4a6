"""How strong is the learned part of an untrained equilibrium block, by its width?

    python experiments/learned_norm.py                                 # under a minute on two cores
    python experiments/learned_norm.py --heads 8 --length 128          # as in the full size of hopf_or_artefact.py

Prints ‖N′‖₂ and ‖N′‖_F / √n of the block's attention and MLP at its fixed point.
"""

import argparse

import jax
import jax.numpy as jnp

import eqjax as ej
from eqjax import homeostasis, stability
from eqjax.recipes._examine import settle

WIDTHS = (64, 128, 256, 512)


def learned_norm(width: int, heads: int, length: int, scale: float) -> tuple[float, float]:
    """‖N′‖₂ and ‖N′‖_F / √n of the untrained block at its fixed point."""
    a, b, c = jax.random.split(jax.random.key(0), 3)
    model = ej.language.equilibrium_lm(
        65, length, width, heads, qknorm=True, embedding_scale=scale, key=a
    )
    x, settled = settle(model, jax.random.randint(b, (length,), 0, 65))
    learned = lambda z: model.field.nonreciprocal(0.0, z, x)
    product = jax.linearize(learned, settled.value)[1]
    transpose = jax.linear_transpose(product, settled.value)
    gram = lambda v: transpose(product(v))[0]
    start = jax.random.normal(c, settled.value.shape, settled.value.dtype)
    top = stability.krylov_schur(gram, start, k=1, which="LM", tol=1e-3, key=c).values[0]
    mean = homeostasis.jacobian_penalty(model.field, settled.value, x, c, probes=32)
    return float(jnp.sqrt(top.real)), float(jnp.sqrt(mean))


def by_width(widths, heads: int, length: int, scale: float) -> list[tuple[int, float, float]]:
    return [(width, *learned_norm(width, heads, length, scale)) for width in widths]


def table(rows: list[tuple[int, float, float]]) -> str:
    lines = ["| width | ‖N′‖₂, untrained | ‖N′‖_F / √n |", "|---|---|---|"]
    return "\n".join(lines + [f"| {width} | {top:.2f} | {mean:.3f} |" for width, top, mean in rows])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=32, help="of the window, in characters")
    parser.add_argument("--scale", type=float, default=1.0, help="of the embeddings")
    options = parser.parse_args()
    print(table(by_width(options.widths, options.heads, options.length, options.scale)))


if __name__ == "__main__":
    main()
