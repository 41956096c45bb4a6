"""Are the special points of textbook systems found at first try, with the defaults?

`python benchmarks/textbook.py`: fifteen problems, each by one call of `continuation` from a fixed point that is easy to name.
Known values are closed forms, published numbers, or roots of `F = 0` and `det J = 0` (folds) or `Π (λᵢ + λⱼ) = 0` (Hopf
points) by SciPy, from their first digits.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from common import arguments, device, table

from eqjax import fields, stability

jax.config.update("jax_enable_x64", True)


class Plain(eqx.Module):
    """A field from components that NumPy can compute as well."""

    p: jax.Array
    force: Callable = eqx.field(static=True)

    def __call__(self, t, z, x):
        return jnp.stack(self.force(z, self.p))


def oxidation(z, p):
    x, y, s = z
    free = 1 - x - y - s
    first = 5 * free**2 - 2 * x**2 - 10 * x * y
    return [first, p * free - 0.1 * y - 10 * x * y, 0.0675 * (free - 0.4 * s)]


def lorenz84(z, p):
    x, y, w, u = z
    return [
        -(y**2) - w**2 - 0.25 * x + 0.25 * p - 0.987 * u**2,
        x * y - x * w - y + 0.25,
        x * y + x * w - w,
        -1.04 * u + 0.987 * u * x + 0.04,
    ]


def bazykin(z, p):
    prey, predator = z
    eaten = prey * predator / (1 + 0.3 * prey)
    return [prey - eaten - 0.01 * prey**2, -predator + eaten - p * predator**2]


def rosenzweig(z, p):
    prey, predator = z
    eaten = prey * predator / (1 + prey)
    return [prey * (1 - prey / p) - eaten, 0.5 * eaten - 0.2 * predator]


def roessler(z, p):
    x, y, w = z
    return [-y - w, x + 0.2 * y, 0.2 + w * (x - p)]


def van_der_pol(z, p):
    return [z[1], p * (1 - z[0] ** 2) * z[1] - z[0]]


def langford(z, p):
    x, y, w = z
    square = x * x + y * y
    grown = p + 0.95 * w - w**3 / 3 - square * (1 + 0.25 * w)
    return [(w - 0.7) * x - 3.5 * y, 3.5 * x + (w - 0.7) * y, grown]


def adaptive(z, p):
    x, y, w = z
    return [y, w, -p * w - y - x + x * x]


class Case(NamedTuple):
    """A system, where it begins, the bounds, and what is known: kind and value, or as a string its first digits."""

    name: str
    field: Any
    where: Any
    start: Any
    bounds: tuple[float, float]
    known: list[tuple[str, Any]]
    backwards: bool = False


def plain(name, force, p, start, bounds, known, **rest):
    field = Plain(jnp.asarray(float(p)), force)
    return Case(name, field, lambda f: f.p, jnp.array(start), bounds, known, **rest)


def cases():
    vertex = (2 / 3) * 0.95**1.5
    current, rho = lambda f: f.current, lambda f: f.rho
    hodgkin = fields.HodgkinHuxley()
    yield Case(
        "Brusselator, A = 1.2",
        fields.Brusselator(jnp.asarray(1.2), jnp.asarray(2.0)),
        lambda f: f.b,
        jnp.array([1.2, 2 / 1.2]),
        (1.0, 3.0),
        [("Hopf", 2.44)],
    )
    yield Case(
        "FitzHugh–Nagumo",
        fields.FitzHughNagumo(),
        current,
        jnp.array([-1.2, -0.6]),
        (0.0, 2.0),
        [("Hopf", 0.331281337454746), ("Hopf", 1.41871866254525)],
    )
    yield Case(
        "Morris–Lecar",
        fields.MorrisLecar(current=jnp.asarray(0.0)),
        current,
        jnp.array([-60.0, 0.0]),
        (0.0, 300.0),
        [("Hopf", "93.858"), ("Hopf", "212.02")],
    )
    yield Case(
        "Hodgkin–Huxley",
        hodgkin,
        current,
        hodgkin.clamped(-65.0),
        (0.0, 200.0),
        [("Hopf", 9.775437995393), ("Hopf", 154.522433665808)],
    )
    yield Case(
        "Lorenz-63, origin",
        fields.Lorenz(rho=jnp.asarray(0.5)),
        rho,
        jnp.zeros(3),
        (0.0, 30.0),
        [("branch point", 1.0)],
    )
    yield Case(
        "Lorenz-63",
        fields.Lorenz(rho=jnp.asarray(10.0)),
        rho,
        jnp.array([24**0.5, 24**0.5, 9.0]),
        (5.0, 40.0),
        [("Hopf", 470 / 19)],
    )
    yield plain(
        "Lorenz-84",
        lorenz84,
        1.6,
        [1.48, -0.05, 0.16, -0.09],
        (1.4, 1.7),
        [("fold", 1.54664837259812754), ("Hopf", "1.6197")],
        backwards=True,
    )
    prey = 1 / 0.7
    yield plain(
        "Bazykin, in the predators' crowding",
        bazykin,
        0.0,
        [prey, (1 - 0.01 * prey) * (1 + 0.3 * prey)],
        (0.0, 1.0),
        [("Hopf", "0.2285"), ("fold", "0.4365"), ("fold", "0.2637")],
    )
    yield plain(
        "Rosenzweig–MacArthur, in K",
        rosenzweig,
        0.5,
        [0.5, 0.0],
        (0.1, 5.0),
        [("branch point", 2 / 3)],
    )
    yield plain(
        "... with predators", rosenzweig, 1.0, [2 / 3, 5 / 9], (0.7, 5.0), [("Hopf", 7 / 3)]
    )
    yield plain(
        "CO oxidation, κ = .4",
        oxidation,
        2.0,
        [0.0013, 0.833, 0.118],
        (0.5, 2.0),
        [("Hopf", "1.0516"), ("fold", "1.0420"), ("fold", "1.0522"), ("Hopf", "1.0410")],
        backwards=True,
    )
    yield plain(
        "Rössler, a = b = .2, in c",
        roessler,
        2.0,
        [0.02, -0.1, 0.1],
        (0.1, 3.0),
        [("fold", 0.4), ("Hopf", 0.4)],
        backwards=True,
    )
    yield plain("van der Pol, in μ", van_der_pol, -1.0, [0.0, 0.0], (-1.0, 1.0), [("Hopf", 0.0)])
    yield plain(
        "Langford, in the load",
        langford,
        -2.0,
        [0.0, 0.0, -2.2],
        (-2.0, 2.0),
        [("fold", vertex), ("Hopf", 0.343 / 3 - 0.95 * 0.7), ("fold", -vertex)],
    )
    yield plain(
        "adaptive control, β = 1",
        adaptive,
        2.0,
        [0.0] * 3,
        (0.1, 2.5),
        [("Hopf", 1.0)],
        backwards=True,
    )


def defects(case, kind, unknown):
    """F and what makes it critical, by complex steps and eigenvalues."""
    z, p = unknown[:-1], unknown[-1]
    field = eqx.tree_at(case.where, case.field, jnp.asarray(p))
    force = lambda z: np.asarray(field(0.0, jnp.asarray(z), None))
    columns = [np.imag(force(z + 1e-20j * unit)) / 1e-20 for unit in np.eye(len(z))]
    matrix = np.array(columns).T
    if kind == "Hopf":
        values = np.linalg.eigvals(matrix)
        last = np.prod([a + b for a, b in itertools.combinations(values, 2)]).real
    else:
        last = np.linalg.det(matrix)
    return [*force(z), last]


def reference(case, point):
    """The known value nearest to a point; published digits are made more by SciPy."""
    values = [value for kind, value in case.known if kind == point.flow]
    nearest = min(values, key=lambda v: abs(float(v) - point.parameter), default=np.nan)
    if not isinstance(nearest, str):
        return nearest
    start = np.append(np.asarray(point.state), float(nearest))
    return scipy.optimize.fsolve(lambda u: defects(case, point.flow, u), start, xtol=1e-12)[-1]


def run(case):
    begin = time.perf_counter(), time.process_time()
    branch = stability.continuation(
        case.field, case.start, where=case.where, bounds=case.bounds, backwards=case.backwards
    )
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    print(case.name, branch, flush=True)
    told: tuple[str, ...] = (case.name, f"{wall:.1f}", f"{cpu:.1f}")
    for point in branch.special_points:
        known = reference(case, point)
        half = (point.interval[1] - point.interval[0]) / 2
        numbers = f"{known:.12g}", f"{point.parameter:.12g}", f"{half:.0e}"
        yield told[0], point.flow, *numbers, f"{abs(point.parameter - known):.0e}", *told[1:]
        told = "", "", ""
    missed = len(case.known) - len(branch.special_points)
    if missed > 0:
        yield told[0], f"{missed} MISSED", "", "", "", "", *told[1:]


if __name__ == "__main__":
    out = arguments(__doc__).parse_args().out
    rows = [row for case in cases() for row in run(case)]
    header = ("system", "point", "known", "found", "±", "distance", "s", "CPU s")
    table(f"Textbook systems; {device()}", header, rows, out)
