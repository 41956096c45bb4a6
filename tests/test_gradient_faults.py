"""What estimators said nothing about: complex states, auxiliary outputs, nothing to train, defaults that did not fit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_problems import BIASED, BIASED_BATCH, EXACT, TIGHT, biased_cost, network

from eqjax import fields
from eqjax.analytic import squared_error
from eqjax.gradients import (
    BPTT,
    Accept,
    AsymEP,
    Averaged,
    Backprop,
    DyadicEP,
    EnergyEP,
    ForwardEligibility,
    HolomorphicEP,
    LowRank,
    Nudge,
    OracleAdjoint,
    ProbeCorrection,
    RandomDirections,
    RawStates,
    Reversible,
    SharedAdjoint,
    TruncatedAdjoint,
)
from eqjax.relaxation import GMRES, Anderson, Picard

ORACLE = OracleAdjoint(free=TIGHT, adjoint_solver=GMRES(1e-12))
NUDGED = AsymEP(free=TIGHT, nudged=Anderson(1e-10))

# Complex states


class Ringing(fields.AbstractForceField):
    """`F = (w - 1) z - z̄/4 + x`, holomorphic nowhere."""

    w: jax.Array

    def __call__(self, t, z, x):
        return (self.w - 1) * z - 0.25 * z.conj() + x


def ringing():
    return fields.EquilibriumModel(
        encoder=lambda u: jax.lax.complex(u, jnp.ones_like(u)),
        field=Ringing(jnp.array([0.3 + 0.7j, -0.2 + 1.1j])),
        decoder=lambda z: jnp.stack([z.real, z.imag]),
    )


RINGING_BATCH = (jnp.array([[0.5, -1.0], [0.2, 0.3]]), jnp.cos(jnp.arange(8.0)).reshape(2, 2, 2))


def exact_ringing(model):
    """The gradient by dense algebra: the field is linear in the parts of z."""

    def loss(w, u, y):
        a, b = jnp.diag(w.real - 1.25), jnp.diag(w.real - 0.75)
        turn = jnp.diag(w.imag)
        system = jnp.block([[a, -turn], [turn, b]])
        z = -jnp.linalg.solve(system, jnp.concatenate([u, jnp.ones_like(u)])).reshape(2, -1)
        return squared_error(z, y)

    return jax.grad(lambda w: jnp.mean(jax.vmap(loss, (None, 0, 0))(w, *RINGING_BATCH)))(
        model.field.w
    )


COMPLEX = {
    "oracle": ORACLE,
    "asymep": NUDGED,
    "shared": AsymEP(free=TIGHT, nudged=Nudge(Anderson(1e-10), contrast=SharedAdjoint())),
    "dyadic": DyadicEP(free=TIGHT),
    "bptt": BPTT(steps=400),
    "eligibility": ForwardEligibility(steps=400),
}


@pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_states_have_their_gradient(name):
    model = ringing()
    found = COMPLEX[name](model, squared_error, RINGING_BATCH)
    assert np.allclose(found.grads.field.w, exact_ringing(model), atol=1e-7)
    assert np.all(found.report.accepted) and jnp.iscomplexobj(found.states)


@pytest.mark.parametrize("estimator", [HolomorphicEP(), EnergyEP()])
def test_complex_states_are_refused_where_they_have_no_meaning(estimator):
    model = eqx.tree_at(lambda m: m.field, ringing(), Energetic())
    with pytest.raises(ValueError, match="Realified"):
        estimator(model, squared_error, RINGING_BATCH)


class Energetic(fields.AbstractForceField):
    def energy(self, z, x):
        return jnp.sum(jnp.abs(z - x) ** 2)

    def __call__(self, t, z, x):
        return x - z


# What a loss returns


@pytest.mark.parametrize("returned", [lambda v: (v, {"accuracy": v}), lambda v: v[None]])
@pytest.mark.parametrize(
    "estimator", [ORACLE, NUDGED, HolomorphicEP(), BPTT(steps=2), ForwardEligibility(steps=2)]
)
def test_a_loss_that_is_not_one_number_is_refused(estimator, returned):
    loss = lambda outputs, y: returned(biased_cost(outputs, y))
    with pytest.raises(ValueError, match="must return one"):
        estimator(BIASED, loss, BIASED_BATCH)


def test_the_loss_of_an_output_too():
    with pytest.raises(ValueError, match="auxiliary"):
        Backprop()(lambda u: u, lambda o, y: (squared_error(o, y), o), (jnp.ones((2, 3)),) * 2)


# Nothing to train


@pytest.mark.parametrize(
    "estimator",
    [
        ForwardEligibility(steps=3),
        ForwardEligibility(steps=3, eligibility=RandomDirections(2)),
        ForwardEligibility(steps=3, eligibility=LowRank(2)),
        Averaged(AsymEP(correction=ProbeCorrection()), repeats=2),
        ORACLE,
        BPTT(steps=3),
    ],
)
def test_a_field_without_parameters_has_a_loss_and_no_gradient(estimator, key):
    start = lambda u: jnp.asarray(u, jnp.float32)
    model = fields.EquilibriumModel(start, Energetic(), start)
    batch = (jnp.ones((2, 3), jnp.float32), jnp.zeros((2, 3), jnp.float32))
    found = estimator(model, squared_error, batch, key=key)
    assert jnp.isclose(found.loss, 1.5) and not jax.tree.leaves(found.grads)
    assert found.variance is None or found.variance == 0


# Nudges


def test_noise_of_what_is_read_has_the_spread_that_it_must_have(key):
    """`a` errs by σ √(z₊² + z₋²) / 2β in each number, and the gradient in θ likewise."""
    spread, beta, count = 1e-3, 0.05, 400
    estimator = AsymEP(free=TIGHT, nudged=Anderson(1e-10), beta=beta, state_noise=spread)
    run = lambda k: estimator(BIASED, biased_cost, BIASED_BATCH, key=k).grads.theta
    drawn = jax.lax.map(run, jax.random.split(key, count))
    z = np.linalg.solve([[-2.0, 1.0], [0.0, -1.0]], -np.asarray(BIASED.theta))
    expected = spread * abs(z) / (np.sqrt(2) * beta)
    assert np.allclose(np.std(drawn, axis=0), expected, rtol=0.15)
    assert np.all(abs(np.mean(drawn, axis=0) - EXACT) < 4 * expected / np.sqrt(count) + 2e-3)
    with pytest.raises(ValueError, match="state_noise"):
        estimator(BIASED, biased_cost, BIASED_BATCH)


@pytest.mark.parametrize("kind", [AsymEP, DyadicEP])
def test_a_nudge_of_each_sample(kind):
    model, batch = network()
    radii = jnp.array([1e-3, 1e-1, 1e-2, 1e-3, 3e-1])
    one = kind(free=TIGHT, radius=radii)(model, squared_error, batch)
    assert np.allclose(one.report.displacement, radii, rtol=1e-6)
    assert one.report.adjoint_residual[4] > 10 * one.report.adjoint_residual[0]
    with pytest.raises(ValueError, match="each of the 5 samples"):
        kind(free=TIGHT, radius=radii[:3])(model, squared_error, batch)


# The reversible pair


class Draining(fields.AbstractForceField):
    """`F = x - rate z` in two parts, of which a loss may read one."""

    rate: jax.Array

    def __call__(self, t, z, x):
        return x - self.rate * z[0], -z[1]


def draining(rate):
    return fields.EquilibriumModel(
        lambda u: u, Draining(jnp.asarray(rate)), lambda z: z[0], lambda x: (x, x)
    )


@pytest.mark.parametrize(
    ("dtype", "rate", "least"), [("float64", 2.0, 0.7647), ("float32", 1.0, 0.8)]
)
def test_the_reversible_pair_follows_the_field_by_default(dtype, rate, least):
    """A loss that reads one leaf of the state; λ = 1 - 2εk, or what keeps four digits."""
    steps = 100 if dtype == "float64" else 30
    batch = jnp.ones((1, 2), dtype), jnp.zeros((1, 2), dtype)
    model = draining(jnp.asarray(rate, dtype))
    found = BPTT(steps=steps, solver=Reversible())(model, squared_error, batch)

    def loss(rate):
        y = w = 1.0
        for _ in range(steps):
            y = least * y + (1 - least) * w + 0.1 * (1 - rate * w)
            w = w + 0.1 * (1 - rate * y)
        return y**2

    want = (loss(rate + 1e-5) - loss(rate - 1e-5)) / 2e-5
    assert np.all(found.report.accepted) and abs(want + 2 / rate**3) < 0.1 * abs(want)
    assert np.allclose(found.grads.field.rate, want, rtol=1e-2)


def test_a_reversible_pair_that_does_not_follow_is_left_out_or_refused():
    batch = jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.zeros((2, 2))
    found = BPTT(solver=Reversible(0.9))(draining(2.0), squared_error, batch)
    assert np.array_equal(found.report.accepted, [False, True])
    with pytest.raises(ValueError, match="no digits on the way back"):
        BPTT(solver=Reversible(0.6))(draining(2.0), squared_error, batch)


# Defaults that fit one another


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_raw_states_settle_as_far_as_is_asked_of_them(dtype):
    """At their defaults: relative to the state they would not have moved at all."""
    model, batch = jax.tree.map(
        lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, network()
    )
    report = AsymEP(nudged=Nudge(contrast=RawStates()))(model, squared_error, batch).report
    assert np.all(report.accepted) and np.all(report.adjoint_residual < 0.02)


@pytest.mark.parametrize(
    ("solver", "most"),
    [
        (Anderson(1e-5), 1e-3),
        (Anderson(1e-2), 3e-2),
        (Anderson(1e-15), 1e3 * 2.0**-52),
        (Picard(0.0), 3e-2),
    ],
)
def test_what_is_accepted_follows_what_was_asked(solver, most):
    for factor, fine in ((0.99, True), (1.01, False), (np.nan, False)):
        assert bool(Accept().settled(jnp.asarray(factor * most), solver)) == fine
        assert Accept(0.5).settled(jnp.asarray(0.4), solver)


def test_a_series_that_ran_away_is_not_accepted():
    """Terms at ε = 1 of a field with rate 10 grow as 9^k."""
    model, batch = draining(10.0), (jnp.ones((1, 2)), jnp.zeros((1, 2)))
    found = TruncatedAdjoint(free=TIGHT, terms=10)(model, squared_error, batch)
    assert found.report.adjoint_residual > 1e9 and not found.report.accepted
    short = TruncatedAdjoint(free=TIGHT, terms=10, damping=0.1)(model, squared_error, batch)
    assert np.all(short.report.accepted)
