"""Special points of textbook systems, each within the error that is told of it."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from textbook import Lorenz84, TsodyksMarkram

from eqjax import fields
from eqjax.stability import continuation


def morris_lecar(low, high):
    """The current at which the trace of J vanishes between two potentials, by algebra and a scalar root."""

    def at(v):
        m, w = 0.5 * (1 + np.tanh((v + 1.2) / 18)), 0.5 * (1 + np.tanh((v - 2) / 30))
        slope = 0.5 / 18 / np.cosh((v + 1.2) / 18) ** 2
        trace = -(2 + 4.4 * (m + slope * (v - 120)) + 8 * w) / 20 - 0.04 * np.cosh((v - 2) / 60)
        return trace, 2 * (v + 60) + 4.4 * m * (v - 120) + 8 * w * (v + 84)

    return at(scipy.optimize.brentq(lambda v: at(v)[0], low, high, xtol=1e-14))[1]


# Of the first two by 40-digit arithmetic, from F = 0, J v = 0 and |v| = 1.
@pytest.mark.parametrize(
    ("field", "start", "where", "bounds", "backwards", "expected"),
    [
        (
            Lorenz84(),
            [1.48, -0.05, 0.16, -0.09],
            lambda f: f.f,
            (1.5, 1.65),
            True,
            [("fold", 1.54664837259812754), ("Hopf", None)],
        ),
        (
            TsodyksMarkram(),
            [0.5686, 0.952, 0.4426],
            lambda f: f.e0,
            (-2.0, -1.4),
            False,
            [
                ("fold", -1.46302732554269359),
                ("Hopf", None),
                ("fold", -1.86522391033904664),
            ],
        ),
        (
            fields.MorrisLecar(current=jnp.asarray(90.0)),
            [-27.0, 0.13],
            lambda f: f.current,
            (85.0, 100.0),
            False,
            [("Hopf", morris_lecar(-30, -20))],
        ),
    ],
)
def test_special_points_are_within_their_error(field, start, where, bounds, backwards, expected):
    start = jnp.array(start)
    branch = continuation(field, start, where=where, bounds=bounds, backwards=backwards)
    assert [point.flow for point in branch.special_points] == [kind for kind, _ in expected]
    for point, (_, exact) in zip(branch.special_points, expected, strict=True):
        low, high = point.interval
        assert point.status == "converged" and high - low < 3e-12
        assert exact is None or low <= exact <= high
