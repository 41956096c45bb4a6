"""Whole diagrams, deflation and homoclinic loops on textbook systems: how long, and how near to the known answers.

`python benchmarks/diagrams.py`: Himmelblau's function from one start, a Hopfield network of four cells from thirty, the
diagram of Lorenz-63 with its cycles, and the loop near a Bogdanov–Takens point for three sizes of the unfolding.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from common import arguments, device, table

from eqjax import stability

jax.config.update("jax_enable_x64", True)


class Himmelblau(eqx.Module):
    def __call__(self, t, z, x):
        return -jax.grad(lambda z: (z[0] ** 2 + z[1] - 11) ** 2 + (z[0] + z[1] ** 2 - 7) ** 2)(z)


class Cells(eqx.Module):
    weight: jax.Array

    def __call__(self, t, z, x):
        return -z + self.weight @ jnp.tanh(z)


class Lorenz(eqx.Module):
    r: jax.Array

    def __call__(self, t, z, _):
        x, y, w = z
        return jnp.stack([10 * (y - x), x * (self.r - w) - y, x * y - 8 / 3 * w])


class Unfolded(eqx.Module):
    a: jax.Array
    b: jax.Array

    def __call__(self, t, z, x):
        p, q = z
        return jnp.stack([q, self.a + self.b * q + p * p + p * q])


def timed(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - start


def deflation():
    weight = 2.5 * jnp.eye(4) + 0.3 * jax.random.normal(jax.random.key(3), (4, 4))
    starts = 2 * jax.random.normal(jax.random.key(0), (30, 4))
    for name, field, begin, count in (
        ("Himmelblau, one start", Himmelblau(), jnp.zeros((1, 2)), 20),
        ("four cells, one start", Cells(weight), starts[:1], 100),
        ("four cells, 30 starts", Cells(weight), starts, 100),
    ):
        call = lambda field=field, begin=begin, count=count: stability.equilibria(
            field, begin, count=count
        )
        _, first = timed(call)
        found, again = timed(call)
        worst = float(np.nanmax(np.asarray(found.residuals)))
        yield name, int(found.found.sum()), f"{first:.2f}", f"{again:.4f}", f"{worst:.0e}"


def lorenz():
    where = lambda f: f.r
    field = Lorenz(jnp.asarray(0.5))
    cycles = {"path": stability.PseudoArclength(most=0.2)}
    found, seconds = timed(
        lambda: stability.diagram(
            field, jnp.zeros(3), where=where, bounds=(0.5, 30.0), cycles=cycles
        )
    )
    special = [p.parameter for b in found.branches for p in b.special_points]
    hopf = max(special)
    yield "branches, branches of cycles", f"{len(found.branches)}, {len(found.cycles)}", "2, 2"
    yield "pitchfork", f"{min(special):.12g}", "1"
    yield "Hopf point", f"{hopf:.12g}", f"{470 / 19:.12g}"
    loop = stability.homoclinic(field, found.cycles[0], where=where)
    yield "homoclinic loop", f"{loop.parameter:.9g} ± {loop.error:.0e}", "13.926557"
    exact = (-11 + np.sqrt(121 + 40 * (loop.parameter - 1))) / 2 - 8 / 3
    yield "saddle quantity", f"{loop.saddle_quantity:.8g}", f"{exact:.8g}"
    yield "seconds, compilation included", f"{seconds:.0f}", ""


def loops():
    where = lambda f: f.a
    for b in (0.2, 0.1, 0.05):
        field = Unfolded(jnp.asarray(-b * b), jnp.asarray(b))
        settings = {"where": where, "bounds": (-3 * b * b, 0.5 * b * b)}
        branch = stability.continuation(field, jnp.array([-b, 0.0]), **settings)
        (hopf,) = (p for p in branch.special_points if p.flow == "Hopf")
        born = stability.switch(field, branch, hopf, where=where)
        path = stability.PseudoArclength(most=0.3)
        cycles = stability.cycle_continuation(
            *born, **settings, backwards=True, path=path, max_points=40
        )
        loop = stability.homoclinic(field, cycles, where=where)
        ratio = f"{loop.parameter / b**2:.6f}"
        yield b, f"{loop.parameter:.10g} ± {loop.error:.0e}", ratio, f"{loop.saddle_quantity:.6g}"


if __name__ == "__main__":
    out = arguments(__doc__).parse_args().out
    header = ("system", "fixed points", "first call s", "second s", "worst residual")
    table(f"Deflation; {device()}", header, list(deflation()), out)
    table("Lorenz-63", ("what", "found", "known"), list(lorenz()), out)
    header = ("b", "a of the loop", "a / b²", "saddle quantity")
    table("`u̇ = v, v̇ = a + bv + u² + uv`: a / b² → -49/25", header, list(loops()), out)
