"""Feigenbaum's ratio: from one cycle of the Rössler system through period doubling after period doubling.

`python benchmarks/feigenbaum.py [--doublings 6]`: each doubled branch is followed to its own doubling, and left there. The
first ones are checked by SciPy, which knows of no collocation: a turn of the variational equations by DOP853, and Newton's
method on its closing together with `det(M + 1) = 0`.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from common import arguments, device, table

from eqjax import stability

jax.config.update("jax_enable_x64", True)
RATIO = 4.669201609


class Rossler(eqx.Module):
    """`ẋ = -y - w, ẏ = x + y/5, ẇ = 1/5 + w (x - c)`"""

    c: jax.Array

    def __call__(self, t, z, _):
        x, y, w = z
        return jnp.stack([-y - w, x + 0.2 * y, 0.2 + w * (x - self.c)])


def doublings(count):
    """The special points, and the seconds that each took."""
    where = lambda f: f.c
    start = time.perf_counter()
    field = Rossler(jnp.asarray(2.6))
    orbit = stability.periodic_orbit(field, jnp.array([-3.9, 0.0, 0.03]), period=5.75, intervals=20)
    for i in range(count):
        branch = stability.cycle_continuation(
            field,
            orbit,
            where=where,
            bounds=(float(field.c), 4.3),
            callback=lambda c, orbit: not orbit.stable,
        )
        point = next(p for p in branch.special_points if p.type == "period doubling")
        yield point, time.perf_counter() - start
        start = time.perf_counter()
        if i + 1 < count:
            field, orbit = stability.switch(field, branch, point, where=where)


def turn(start, period, c):
    """A turn of the flow, and the monodromy matrix M, by SciPy."""

    def rhs(t, u):
        x, y, w = u[:3]
        J = np.array([[0, -1, -1], [1, 0.2, 0], [w, 0, x - c]])
        force = [-y - w, x + 0.2 * y, 0.2 + w * (x - c)]
        return np.r_[force, (J @ u[3:].reshape(3, 3)).ravel()]

    settings = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
    start = np.r_[start, np.eye(3).ravel()]
    end = scipy.integrate.solve_ivp(rhs, (0, period), start, **settings).y[:, -1]
    return end[:3], end[3:].reshape(3, 3)


def by_scipy(point):
    """The parameter of a doubling near `point`, by Newton's method with differences."""
    state, period = np.asarray(point.state), point.period
    normal = np.asarray(Rossler(jnp.asarray(point.parameter))(0.0, jnp.asarray(state), None))
    # Off the answer, so that SciPy has to find it.
    unknowns = np.r_[state * (1 + 1e-4), period, point.parameter + 1e-4]

    def gap(u):
        end, monodromy = turn(u[:3], u[3], u[4])
        return np.r_[end - u[:3], normal @ (u[:3] - state), np.linalg.det(monodromy + np.eye(3))]

    for _ in range(6):
        steps = 1e-6 * np.maximum(abs(unknowns), 1e-2)
        columns = [
            (gap(unknowns + h * e) - gap(unknowns - h * e)) / (2 * h)
            for h, e in zip(steps, np.eye(5), strict=True)
        ]
        unknowns = unknowns - np.linalg.solve(np.stack(columns, axis=1), gap(unknowns))
    return unknowns[4]


def main():
    parser = arguments(__doc__)
    parser.add_argument("--doublings", type=int, default=6)
    parser.add_argument("--checked", type=int, default=2, help="by SciPy")
    options = parser.parse_args()
    rows, found = [], []
    point: Any
    for i, (point, seconds) in enumerate(doublings(options.doublings)):
        found.append(point.parameter)
        gaps = np.diff(found)
        ratio = f"{gaps[-2] / gaps[-1]:.5f}" if len(gaps) > 1 else ""
        off = f"{point.parameter - by_scipy(point):.0e}" if i < options.checked else ""
        mesh = point.profile.widths.size
        period = f"{point.period:.9g}"
        rows.append([f"{point.parameter:.12g}", period, mesh, ratio, off, f"{seconds:.0f}"])
    header = ["c", "period", "intervals", "ratio", "off SciPy's", "seconds"]
    table(f"Period doublings of Rössler's cycle → {RATIO}; {device()}", header, rows, options.out)


if __name__ == "__main__":
    main()
