"""Hopf points as functions, against closed forms and algebra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from eqjax import fields
from eqjax.stability import (
    hopf_point,
)


def brusselator(a, b=2.5):
    field = eqx.tree_at(lambda f: (f.a, f.b), fields.Brusselator(), (a, jnp.asarray(b)))
    return hopf_point(field, jnp.array([1.3, 1.6]), where=lambda f: f.b)


def test_the_hopf_point_of_the_brusselator_and_its_derivatives():
    a = jnp.asarray(1.3)
    point = brusselator(a)
    assert abs(point.parameter - (1 + a**2)) < 1e-11 and abs(point.frequency - a) < 1e-11
    assert jnp.allclose(point.state, jnp.stack([a, (1 + a**2) / a]), atol=1e-11)
    assert point.converged and "Hopf point at parameter 2.69, ω = 1.3" in str(point)

    def outcome(a):
        found = brusselator(a)
        return jnp.stack([found.parameter, found.frequency, *found.state])

    want = jnp.stack([2 * a, jnp.ones(()), jnp.ones(()), 1 - 1 / a**2])
    assert jnp.allclose(jax.jacfwd(outcome)(a), want, atol=1e-10)
    assert jnp.allclose(jax.jacrev(outcome)(a), want, atol=1e-10)


def test_hopf_points_map_over_a_batch_and_one_that_fails_spoils_no_other():
    a = jnp.array([0.9, 1.2, jnp.nan])

    def both(a):
        field = eqx.tree_at(lambda f: (f.a, f.b), fields.Brusselator(), (a, jnp.asarray(2.0)))
        found = hopf_point(field, jnp.array([1.0, 2.0]), where=lambda f: f.b, throw=False)
        return found.parameter, found.converged

    (value, converged), slope = jax.vmap(both)(a), jax.vmap(jax.grad(lambda a: both(a)[0]))(a)
    assert converged.tolist() == [True, True, False]
    assert jnp.allclose(value[:2], 1 + a[:2] ** 2, atol=1e-10)
    assert jnp.allclose(slope[:2], 2 * a[:2], atol=1e-9)


@pytest.mark.parametrize("current", [0.3, 1.4])
def test_fitzhugh_nagumo_moves_its_hopf_points_as_algebra_says(current):
    def algebra(a, b, rate):
        """The trace `1 - v² - φb` vanishes; w and I follow."""
        v = np.sqrt(1 - rate * b) * (-1 if current < 1 else 1)
        return (v + a) / b - v + v**3 / 3

    def search(field):
        v = -1.0 if current < 1 else 1.0
        start = jnp.stack([jnp.asarray(v), (v + 0.7) / 0.8])
        return hopf_point(field, start, where=lambda f: f.current)

    field = fields.FitzHughNagumo(current=jnp.asarray(current))
    point = search(field)
    known = (0.7, 0.8, 0.08)
    assert abs(point.parameter - algebra(*known)) < 1e-11
    assert abs(point.frequency - 0.275506805723561) < 1e-11
    slopes = eqx.filter_grad(lambda f: search(f).parameter)(field)
    want = scipy.optimize.approx_fprime(known, lambda p: algebra(*p), 1e-7)
    got = [slopes.a, slopes.b, slopes.rate]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert slopes.current == 0
    # and to more digits, against the search itself
    h = 1e-5
    for name, slope in zip(("a", "b", "rate"), got, strict=True):

        def where(f, name=name):
            return getattr(f, name)

        value = where(field)
        up, down = (search(eqx.tree_at(where, field, value + s)).parameter for s in (h, -h))
        assert abs((up - down) / (2 * h) - slope) < 1e-8


def test_a_hopf_point_that_is_not_there_is_told():
    class Decay(eqx.Module):
        rate: jax.Array

        def __call__(self, t, z, x):
            return -self.rate * z

    field = Decay(jnp.asarray(1.0))
    found = hopf_point(field, jnp.ones(2), where=lambda f: f.rate, throw=False)
    assert not found.converged and "no Hopf point" in str(found)
    with pytest.raises(Exception, match="No Hopf point found"):
        hopf_point(field, jnp.ones(2), where=lambda f: f.rate)
    with pytest.raises(ValueError, match="Realified"):
        hopf_point(field, jnp.ones(2, complex), where=lambda f: f.rate)
    with pytest.raises(ValueError, match="picks no leaf"):
        hopf_point(field, jnp.ones(2), where=lambda f: f.nothing)
