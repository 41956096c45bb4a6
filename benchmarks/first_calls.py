"""CPU seconds of first and second calls of the stability laboratory on a system of four unknowns, with nothing cached.

`python benchmarks/first_calls.py`. Each verb is first called in a process of its own.
"""

import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
from common import arguments, device, table

from eqjax import stability

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_enable_compilation_cache", False)


class Cells(eqx.Module):
    weight: jax.Array
    gain: jax.Array

    def __call__(self, t, z, x):
        return -z + self.gain * self.weight @ jnp.tanh(z)


class Oscillator(eqx.Module):
    p: jax.Array

    def __call__(self, t, z, x):
        u = (self.p - jnp.sum(z[:2] ** 2)) * z[:2] + jnp.stack([-z[1], z[0]])
        return jnp.concatenate([u, jnp.stack([-z[2] + z[0] * z[3], -2 * z[3] + z[1] ** 2])])


def cells(gain):
    rows = [[0.9, -1.2, 0, 0.1], [1.1, 0.9, 0.1, 0], [0, 0.2, 0.5, -0.3], [0.1, 0, 0.4, 0.6]]
    return Cells(jnp.array(rows), jnp.asarray(gain))


GAIN = {"where": lambda f: f.gain}
VERBS = {
    "spectrum": lambda: stability.spectrum(cells(0.5), jnp.zeros(4), k=4),
    "continuation": lambda: stability.continuation(
        cells(0.5), jnp.zeros(4), bounds=(0.5, 2.0), **GAIN
    ),
    "hopf_point": lambda: stability.hopf_point(cells(1.05), jnp.zeros(4), **GAIN),
    "periodic_orbit": lambda: stability.periodic_orbit(
        Oscillator(jnp.asarray(1.0)), jnp.array([1.0, 0.1, 0, 0]), period=6.0
    ),
}


def seconds(verb):
    start = time.process_time()
    jax.block_until_ready(verb())
    return time.process_time() - start


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=VERBS)
    options = parser.parse_args()
    if options.only:
        jax.block_until_ready(jnp.zeros(4) + 1)
        print(*(f"{seconds(VERBS[options.only]):.2f}" for _ in range(2)))
        return
    rows = []
    for name in VERBS:
        command = [sys.executable, __file__, "--only", name]
        rows.append([name, *subprocess.check_output(command, text=True).split()])
    table(f"First calls, four unknowns; {device()}", ["verb", "first", "second"], rows, options.out)


if __name__ == "__main__":
    main()
