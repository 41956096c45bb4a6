"""Nothing compiles twice: a second call, with another field of the same structure, traces nothing."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import eqjax as ej
from eqjax import fields, gradients, relaxation, stability

CALLS = []


class Counted(ej.AbstractForceField):
    """`-k z + x`, with a note of every time that Python walks through it: once for each trace."""

    k: jax.Array

    def __call__(self, t, z, x):
        CALLS.append(1)
        return x - self.k * z


class Oscillator(fields.AbstractForceField):
    mu: jax.Array

    def __call__(self, t, z, x):
        CALLS.append(1)
        r = self.mu - jnp.sum(z * z)
        return r * z + jnp.stack([-z[1], z[0]])


class Pitchfork(fields.AbstractForceField):
    a: jax.Array
    b: jax.Array

    def __call__(self, t, z, x):
        CALLS.append(1)
        return self.a + self.b * z - z**3


ONES = jnp.ones(3)
COUNTED = [Counted(k * ONES) for k in (1.0, 1.5, 2.0)]
OSCILLATORS = [Oscillator(jnp.asarray(mu)) for mu in (1.0, 1.2, 1.4)]
PITCHFORKS = [Pitchfork(jnp.asarray(a), jnp.asarray(-1.0)) for a in (0.0, 0.1, 0.2)]
BATCH = (jnp.ones((2, 3)), 2 * jnp.ones((2, 3)))
MODEL = ej.EquilibriumModel(eqx.nn.Identity(), COUNTED[0], eqx.nn.Identity())


def gradient(estimator):
    return lambda field: estimator(
        eqx.tree_at(lambda m: m.field, MODEL, field), ej.squared_error, BATCH, key=jax.random.key(0)
    )


def settled(**settings):
    return lambda field: ej.equilibrium(field, ONES, ONES, **settings)


def differentiated(field):
    def loss(field):
        return jnp.sum(ej.equilibrium(field, ONES, ONES, throw=False).value)

    return eqx.filter_grad(loss)(field)


def orbit(field):
    return stability.periodic_orbit(field, jnp.array([1.0, 0.1]), period=6.0)


def exponents(field):
    return stability.lyapunov(field, jnp.array([1.0, 0.1]), k=2, steps=10, step=0.1)


def branch(field):
    return stability.continuation(field, jnp.array([0.1]), where=lambda f: f.b, bounds=(-1.1, -0.9))


def several(field):
    return stability.equilibria(field, jnp.array([[0.1]]), count=4)


def form(field):
    field = eqx.tree_at(lambda f: (f.a, f.b), field, (0 * field.a, 0 * field.b))
    point = stability.SpecialPoint(
        parameter=0.0,
        interval=(0.0, 0.0),
        state=jnp.zeros(1),
        flow="branch point",
        euler="–",
        change=1,
        change_euler=0,
        status="converged",
        value=0j,
        frequency=0.0,
        index=0,
    )
    return stability.normal_form(field, point, where=lambda f: f.b)


VERBS = {
    "relax": (lambda field: ej.relax(field, ONES, ONES, step=0.1, steps=5), COUNTED),
    "equilibrium": (settled(), COUNTED),
    "equilibrium, no throw": (settled(throw=False), COUNTED),
    "equilibrium, Newton": (settled(solver=ej.NewtonKrylov(1e-8)), COUNTED),
    "equilibrium, refined": (settled(precision=relaxation.Refine()), COUNTED),
    "equilibrium, differentiated": (differentiated, COUNTED),
    "time stepping": (settled(solver=ej.TimeStepping(1e-6, solver=dfx.Heun())), COUNTED),
    "spectrum": (lambda f: stability.spectrum(f, ONES, ONES, k=1, key=jax.random.key(0)), COUNTED),
    "lyapunov": (exponents, OSCILLATORS),
    "periodic orbit": (orbit, OSCILLATORS),
    "continuation": (branch, PITCHFORKS),
    "equilibria": (several, PITCHFORKS),
    "normal form": (form, PITCHFORKS),
} | {
    type(estimator).__name__: (gradient(estimator), COUNTED)
    for estimator in (
        ej.AsymEP(),
        ej.OracleAdjoint(),
        ej.BPTT(steps=5),
        ej.HolomorphicEP(),
        ej.DyadicEP(),
        ej.VectorFieldEP(),
        ej.TruncatedAdjoint(),
        ej.ForwardEligibility(steps=5),
        gradients.Averaged(ej.AsymEP(read_noise=1e-3), 2),
    )
}


@pytest.mark.parametrize("name", VERBS)
def test_a_second_call_traces_nothing(name):
    verb, (first, second, third) = VERBS[name]
    verb(first)
    verb(second)
    CALLS.clear()
    verb(third)
    assert not CALLS, f"{name} traced the field {len(CALLS)} times again"


@pytest.mark.parametrize("scheme", [relaxation.EventDriven(), relaxation.FixedStep(0.5)])
def test_firing_compiles_once(scheme, caplog):
    """Fields of neurons are no place to count: the compiler's own log is."""
    compiled = []
    for drive in (20.0, 21.0, 22.0):
        network = fields.SpikingNetwork(
            fields.LeakyIntegrateAndFire(current=jnp.asarray(drive)),
            jnp.zeros((2, 2)),
            fields.DeltaSynapse(),
        )
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
            relaxation.fire(network, jnp.zeros(2), t1=5.0, capacity=8, scheme=scheme)
        compiled.append([r for r in caplog.records if "Compiling" in r.getMessage()])
    assert compiled[0] and not compiled[2]


def test_a_training_loop_compiles_once():
    optimiser = optax.adam(1e-2)
    step = ej.training.make_step(ej.AsymEP(), optimiser, loss=ej.squared_error)
    state = ej.training.TrainState.create(MODEL, optimiser, key=jax.random.key(0))
    state, _ = step(state, BATCH)
    CALLS.clear()
    for _ in range(3):
        state, _ = step(state, BATCH)
    assert not CALLS
