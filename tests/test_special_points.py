"""Where branches lose their stability, against closed forms and published values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spectra import brusselator
from toys import Map, Polynomial, folding, forked, p_of

from eqjax import fields
from eqjax.stability import (
    Natural,
    PseudoArclength,
    classify,
    continuation,
    switch,
)


def test_a_fold_is_passed_and_classified():
    branch = continuation(
        folding(-1.0),
        jnp.array([-1.0]),
        where=p_of,
        bounds=(-2.0, 1.0),
        step=0.1,
    )
    (fold,) = branch.special_points
    assert abs(fold.parameter) < 1e-12 and (fold.flow, fold.euler) == ("fold", "fold")
    assert fold.change == fold.change_euler == 1 and fold.frequency == 0
    assert branch.states[-1] > 0 and abs(branch.parameters[-1] + 2) < 1e-12
    np.testing.assert_allclose(branch.parameters, -(branch.states[:, 0] ** 2), atol=1e-11)
    assert classify(branch).outcome == "fold"
    # Where there is no fixed point any more, it is the fold that took it.
    assert classify(branch, 0.5).outcome == "fold"
    natural = continuation(
        folding(-1.0),
        jnp.array([-1.0]),
        where=p_of,
        bounds=(-2.0, 1.0),
        path=Natural(),
        step=0.1,
    )
    assert natural.parameters[-1] < 1e-6 and "no shorter step" in natural.ended


@pytest.mark.parametrize("kind", ["pitchfork", "transcritical"])
def test_a_branch_point_is_found_on_a_branch_that_moves(kind):
    field = forked(-0.4, c=1)
    if kind == "transcritical":
        field = Polynomial(-0.4, a=(0, 0, -1, 0), b=(0, 1, 0, 0), c=1)
    start = jnp.sin(jnp.array([-0.4]))
    branch = continuation(field, start, where=p_of, bounds=(-0.5, 0.5), step=0.1)
    (point,) = branch.special_points
    assert abs(point.parameter) < 1e-9 and point.flow == "branch point" and point.change == 1
    np.testing.assert_allclose(branch.states[:, 0], np.sin(branch.parameters), atol=1e-10)
    assert classify(branch).outcome == "branch point"


def test_the_other_branch_is_found_from_a_branch_point():
    """Lorenz: the origin gives way at ρ = 1 to `x = y = ±√(β (ρ - 1))`, z = ρ - 1."""
    settings = {"where": lambda f: f.rho, "bounds": (0.0, 30.0)}
    field = fields.Lorenz(rho=0.5)
    origin = continuation(field, jnp.zeros(3), **settings)
    (point,) = origin.special_points
    assert abs(point.parameter - 1) < 1e-8 and point.flow == "branch point"
    _, mirrored = switch(field, origin, point, size=-0.02, where=lambda f: f.rho)
    onto, z = switch(field, origin, point, where=lambda f: f.rho)
    assert z[0] * mirrored[0] < 0
    other = continuation(onto, z, **settings)
    rho = np.asarray(other.parameters)
    amplitude = np.sqrt(8 / 3 * (rho - 1)) * np.sign(z[0])
    exact = np.stack([amplitude, amplitude, rho - 1], axis=1)
    np.testing.assert_allclose(other.states, exact, rtol=1e-8, atol=1e-8)
    assert [p.flow for p in other.special_points] == ["Hopf"]
    born, cycle = switch(field, other, other.special_points[0], where=lambda f: f.rho)
    assert born.rho < 470 / 19 and cycle.converged and not cycle.stable
    turning = folding(-0.1)
    branch = continuation(turning, jnp.array([-(0.1**0.5)]), where=p_of, bounds=(-0.2, 0.1))
    with pytest.raises(ValueError, match="no branches cross"):
        switch(turning, branch, branch.special_points[0], where=p_of)


def test_the_hopf_point_of_a_stiff_wave_model():
    branch = continuation(
        *brusselator(100, 0.505),
        where=lambda f: f.length,
        bounds=(0.5, 0.53),
        k=2,
        ncv=40,
        path=PseudoArclength(first=0.3, most=0.3),
    )
    (hopf,) = branch.special_points
    assert abs(hopf.parameter - 0.5129992509120) < 1e-10 and hopf.flow == "Hopf"


def test_a_real_multiplier_at_minus_one_flips():
    field = Polynomial(0.5, b=(0, -1, 0, 0.3))
    branch = continuation(field, jnp.array([0.0]), where=p_of, bounds=(0.1, 5.0), step=0.5)
    (flip,) = branch.special_points
    assert abs(flip.parameter - 4) < 1e-9 and (flip.flow, flip.euler) == ("–", "flip")
    assert abs(flip.frequency - 2 * np.pi) < 1e-9  # period two, of steps 0.5
    assert classify(branch).outcome == "flip"


def henon(z, a):
    return jnp.stack([1 - a * z[0] ** 2 + z[1], 0.3 * z[0]])


def test_henon_folds_and_flips():
    settings = {"where": p_of, "step": 1.0}
    start = jnp.array([0.8, 0.24])
    up = continuation(Map(jnp.asarray(0.2), henon), start, bounds=(0.0, 0.5), **settings)
    (flip,) = up.special_points
    assert abs(flip.parameter - 0.3675) < 1e-9 and flip.type == "flip"
    down = continuation(
        Map(jnp.asarray(0.2), henon),
        start,
        bounds=(-0.2, 0.5),
        backwards=True,
        callback=lambda p, z, spectrum: bool(z[0] > 4),
        **settings,
    )
    (fold,) = down.special_points
    assert abs(fold.parameter + 0.1225) < 1e-10 and fold.type == "fold"
    assert down.ended == "stopped by the callback" and float(down.states[-1, 0]) > 4


def delayed_logistic(z, r):
    return jnp.stack([r * z[0] * (1 - z[1]), z[0]])


def test_the_delayed_logistic_map_has_its_neimark_sacker_point():
    branch = continuation(
        Map(jnp.asarray(1.5), delayed_logistic),
        jnp.array([1 / 3, 1 / 3]),
        where=p_of,
        bounds=(1.2, 2.2),
        step=1.0,
    )
    point = branch.special_points[0]
    assert abs(point.parameter - 2) < 1e-9 and point.type == "Neimark–Sacker"
    assert abs(point.frequency - np.pi / 3) < 1e-9
    assert abs(1 + point.value - np.exp(1j * np.pi / 3 * np.sign(point.value.imag))) < 1e-8


class Bratu(eqx.Module):
    """`u'' + λ exp(u) = 0` on [0, 1], at Chebyshev points and multiplied by the inverse of the second derivative."""

    load: jax.Array
    inverse: jax.Array

    def __init__(self, load, n=16):
        nodes = np.cos(np.pi * np.arange(n + 2) / (n + 1))
        c = np.r_[2, np.ones(n), 2] * (-1) ** np.arange(n + 2)
        gaps = nodes[:, None] - nodes + np.eye(n + 2)
        derivative = np.outer(c, 1 / c) / gaps
        derivative -= np.diag(derivative.sum(axis=1))
        second = 4 * (derivative @ derivative)[1:-1, 1:-1]
        self.load, self.inverse = jnp.asarray(load), jnp.asarray(-np.linalg.inv(second))

    def __call__(self, t, u, x):
        return self.load * (self.inverse @ jnp.exp(u)) - u


def test_bratu_folds_where_it_is_known_to():
    branch = continuation(
        Bratu(3.0), jnp.full(16, 0.5), where=lambda f: f.load, bounds=(2.5, 4.0), k=3
    )
    (fold,) = branch.special_points
    assert abs(fold.parameter - 3.5138307191251612) < 1e-9
    assert fold.type == "fold" and fold.change == 1 and fold.status == "converged"
    assert branch.states[-1].max() > 1.5 and abs(branch.parameters[-1] - 2.5) < 1e-10


def test_brusselator_lorenz_and_fitzhugh_nagumo():
    brusselator = continuation(
        fields.Brusselator(a=1.2, b=2.0),
        jnp.array([1.2, 2 / 1.2]),
        where=lambda f: f.b,
        bounds=(1, 3),
    )
    (hopf,) = brusselator.special_points
    assert abs(hopf.parameter - 2.44) < 1e-9 and abs(hopf.frequency - 1.2) < 1e-9
    lorenz = continuation(
        fields.Lorenz(rho=20.0), jnp.array([7.0, 7.0, 19.0]), where=lambda f: f.rho, bounds=(15, 30)
    )
    np.testing.assert_allclose(
        lorenz.spectra.values[0, 0], -0.154791771062622 + 8.70866846317245j, rtol=1e-12
    )
    np.testing.assert_allclose(lorenz.spectra.critical_step[0, 0], 0.00408072346002, rtol=1e-11)
    (hopf,) = lorenz.special_points
    assert hopf.flow == "Hopf" and abs(hopf.parameter - 470 / 19) < 2e-9
    nagumo = continuation(
        fields.FitzHughNagumo(),
        jnp.array([-1.2, -0.6]),
        where=lambda f: f.current,
        bounds=(-0.1, 2.0),
    )
    first, second = nagumo.special_points
    assert abs(first.parameter - 0.331281337454746) < 1e-9 and first.change == 2
    assert abs(second.parameter - 1.41871866254525) < 1e-9 and second.change == -2
    assert abs(first.frequency - 0.275506805723561) < 1e-9
