"""Branches of discretised partial differential equations, each from a fresh process to its special points.

`python benchmarks/large_states.py`: Bratu's equation on a line and in a square, through its fold, and a Brusselator with a
boundary that is not uniform, through its Hopf points. Seconds are of the whole process: imports, compilation, pattern,
branch, six modes a point; CPU seconds are those of all cores, and do not suffer where others compute beside. JaxCont, if it is installed, is given the same field, the same starts and bounds; it forms dense
matrices, and is stopped after `--limit` CPU seconds.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

HEADER = (
    "problem",
    "numbers",
    "by",
    "seconds",
    "CPU seconds",
    "points",
    "found",
    "error of the fold",
)
# Those of the differential equations.
FOLDS = {1: 3.5138307191251612, 2: 6.808124423}


class Bratu(eqx.Module):
    """`Δu + λ exp(u) = 0`, 0 on the boundary of the unit interval or square, by second-order differences."""

    load: jax.Array

    def __call__(self, t, u, x):
        n, total = u.shape[0], self.load * jnp.exp(u)
        p = jnp.pad(u, 1)
        if u.ndim == 1:
            return total + (n + 1) ** 2 * (p[2:] + p[:-2] - 2 * u)
        around = p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2]
        return total + (n + 1) ** 2 * (around - 4 * u)


class Brusselator(eqx.Module):
    """`u_t = .008 u_xx / L² + A - (B + 1) u + u² v`, `v_t = .004 v_xx / L² + B u - u² v`, at rest at (A, B/A) on the right
    and 30 % away from that on the left."""

    length: jax.Array
    a: float = 2.0
    b: float = 5.45

    def __call__(self, t, z, x):
        u, v = z
        rest = self.a, self.b / self.a
        scale = ((u.size + 1) / self.length) ** 2

        def diffused(w, rate, left, right):
            p = jnp.concatenate([jnp.full(1, left), w, jnp.full(1, right)])
            return rate * scale * (p[2:] + p[:-2] - 2 * w)

        made = u * u * v
        return (
            diffused(u, 0.008, 1.3 * rest[0], rest[0]) + self.a - (self.b + 1) * u + made,
            diffused(v, 0.004, 0.7 * rest[1], rest[1]) + self.b * u - made,
        )


def problem(name, n):
    """The field, a start, its parameter, bounds, and when to stop."""
    if name == "Brusselator":
        start = jnp.full(n, 2.0), jnp.full(n, 5.45 / 2)
        return Brusselator(jnp.asarray(0.3)), start, lambda f: f.length, (0.2, 2.0), None
    start = jnp.zeros((n,) * (1 + (name == "Bratu 2-D")))
    past = lambda load, z, found: jnp.max(z) > 2.0
    return Bratu(jnp.asarray(0.1)), start, lambda f: f.load, (0.05, 10.0), past


def ours(name, n):
    from eqjax.stability import continuation

    field, start, where, bounds, stop = problem(name, n)
    branch = continuation(field, start, where=where, bounds=bounds, callback=stop)
    return branch.parameters.size, [(p.flow, p.parameter) for p in branch.special_points]


def jaxcont(name, n):
    import jaxcont as jc
    from jax.flatten_util import ravel_pytree

    field, start, where, bounds, _ = problem(name, n)
    flat, unravel = ravel_pytree(start)

    def force(z, p, args):
        return ravel_pytree(eqx.tree_at(where, field, p)(0.0, unravel(z), None))[0]

    event = jc.Hopf() if name == "Brusselator" else jc.Fold()
    # Folds need no eigenvalues: it is spared them.
    settings = jc.ContinuationPar(
        max_steps=150, ds=0.05, ds_max=1.0, compute_stability=name == "Brusselator"
    )
    task = jc.bif_problem(force, flat, float(where(field)))
    found = jc.continuation(
        task, p_span=(float(where(field)), bounds[1]), settings=settings, events=[event]
    )
    points = [(hit.kind, float(hit.p)) for hit in found.events]
    return found.branch.n_valid, points


def capped(seconds):
    """So many CPU seconds for this process."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def used():
    """CPU seconds of the processes that ended."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def row(name, n, by, limit):
    """One line of the table, from a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(n), by]
    size = n * n if name == "Bratu 2-D" else 2 * n if name == "Brusselator" else n
    begun, before = time.perf_counter(), used()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, preexec_fn=lambda: capped(limit)
        )
    except subprocess.CalledProcessError as error:
        if error.returncode < 0:  # ended by the system
            return name, size, by, "", f"> {limit}", "", "", ""
        return name, size, by, "", "", "", error.stderr.strip().splitlines()[-1][:80], ""
    seconds = time.perf_counter() - begun
    points, *found = done.stdout.strip().splitlines()[-1].split(";")
    known = FOLDS.get({"Bratu 1-D": 1, "Bratu 2-D": 2}.get(name, 0))
    folds = [float(text.split()[-1]) for text in found if text]
    error = f"{min(abs(f - known) for f in folds):.1e}" if known and folds else ""
    return (
        name,
        size,
        by,
        f"{seconds:.1f}",
        f"{used() - before:.1f}",
        points,
        ", ".join(found),
        error,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("PROBLEM", "N", "BY"), help="in this process")
    parser.add_argument("--limit", type=int, default=120, help="CPU seconds for JaxCont")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look")
    parser.add_argument("--out", type=Path, help="also append the table to this file")
    options = parser.parse_args()
    if options.one:
        jax.config.update("jax_enable_x64", True)
        name, n, by = options.one
        count, points = {"eqjax": ours, "JaxCont": jaxcont}[by](name, int(n))
        print(";".join([str(int(np.asarray(count))), *(f"{t} {p:.9g}" for t, p in points)]))
        return
    from common import device, table

    sizes = [("Bratu 1-D", 120)]
    if not options.quick:
        sizes += [("Bratu 1-D", 1000), ("Bratu 1-D", 10_000), ("Bratu 2-D", 100)]
        sizes += [("Brusselator", 1000)]
    rows = []
    # A dense matrix of 10,000 rows and more is not asked for.
    runs = [(name, n, "eqjax", 600) for name, n in sizes]
    runs += [
        (*size, "JaxCont", options.limit)
        for size in sizes
        if size not in (("Bratu 1-D", 10_000), ("Bratu 2-D", 100))
    ]
    for run in runs:
        rows.append(row(*run))
        print(*rows[-1], flush=True)
    table(f"Cold, each in a fresh process; {device()}", HEADER, rows, options.out)


if __name__ == "__main__":
    main()
