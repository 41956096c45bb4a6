"""Nudged phases: the order of a stencil, complex nudges, probes, noise, devices that were made."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_problems import (
    AT_EQUILIBRIUM,
    BIASED,
    BIASED_BATCH,
    EXACT,
    ORACLE,
    TIGHT,
    Affine,
    Flat,
    along,
    biased_cost,
    equilibrium_loss,
    finite_difference,
    network,
    rms_error,
)

from eqjax import analytic, fields
from eqjax.analytic import squared_error
from eqjax.gradients import (
    Accept,
    AdjointCoordinates,
    AsymEP,
    Averaged,
    Central,
    EnergyEP,
    ForwardEligibility,
    HolomorphicEP,
    LockIn,
    Nudge,
    OneSided,
    ProbeCorrection,
    RandomDirections,
    RawStates,
    SharedAdjoint,
    VectorFieldEP,
    agreement,
)
from eqjax.relaxation import (
    Anderson,
    NewtonKrylov,
    equilibrium,
)

ORDERS = {
    "one-sided": (lambda b: AsymEP(nudged=Nudge(stencil=OneSided()), beta=b), 1, (3e-3, 3e-2)),
    "symmetric": (lambda b: AsymEP(beta=b), 2, (3e-3, 3e-2)),
    "shared": (lambda b: AsymEP(beta=b, nudged=Nudge(contrast=SharedAdjoint())), 2, (3e-3, 3e-2)),
    "shared, complex": (
        lambda b: HolomorphicEP(points=4, beta=b, nudged=Nudge(contrast=SharedAdjoint())),
        4,
        (2e-2, 1e-1),
    ),
    "raw states": (lambda b: AsymEP(beta=b, nudged=Nudge(contrast=RawStates())), 2, (3e-3, 3e-2)),
    "four real": (lambda b: AsymEP(nudged=Nudge(stencil=Central(2)), beta=b), 4, (1e-2, 6e-2)),
    "three complex": (lambda b: HolomorphicEP(points=3, beta=b), 3, (1e-2, 6e-2)),
    "four complex": (lambda b: HolomorphicEP(points=4, beta=b), 4, (2e-2, 1e-1)),
    "complex raw": (
        lambda b: HolomorphicEP(points=3, beta=b, nudged=Nudge(contrast=RawStates())),
        3,
        (1e-2, 6e-2),
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_error_falls_with_the_order_of_the_stencil(name):
    make, order, (low, high) = ORDERS[name]
    model, batch = network()
    batch = jax.tree.map(lambda a: a[:1], batch)
    oracle = ORACLE(model, squared_error, batch).grads
    betas = np.geomspace(low, high, 4)
    tight = lambda e: eqx.tree_at(
        lambda e: (e.free.rtol, e.nudged.solver),
        e,
        (1e-13, Anderson(1e-13, patience=40)),
        is_leaf=lambda leaf: leaf is None,
    )
    errors = [
        agreement(tight(make(jnp.asarray(b)))(model, squared_error, batch).grads, oracle)[1]
        for b in betas
    ]
    slope = np.polyfit(np.log(betas), np.log(np.array(errors)), 1)[0]
    assert abs(slope - order) < 0.1 * order, (slope, errors)


class ComplexLinear(fields.AbstractForceField):
    """The linear example of the reference, on complex states too."""

    def __call__(self, t, z, x):
        matrix = jnp.array([[-2.0, 1.0], [0.0, -1.0]])
        return analytic.shift(analytic.matmul(z[None], matrix.T)[0], x)


def complex_cost(outputs, y):
    z, theta = outputs
    return analytic.shift(analytic.squared_error(z, y), 0.1 * jnp.sum(theta**2))


@pytest.mark.parametrize(
    ("points", "error"), [(2, 1.66e-1), (4, 3.09e-2), (8, 1.77e-3), (16, 6.87e-6)]
)
def test_holomorphic_error_on_the_linear_example(points, error):
    model = eqx.tree_at(lambda m: m.field, BIASED, ComplexLinear())
    holomorphic = HolomorphicEP(free=TIGHT, nudged=Anderson(1e-13), beta=0.5, points=points)
    grads = holomorphic(model, complex_cost, BIASED_BATCH).grads.theta
    assert np.isclose(np.linalg.norm(grads - EXACT), error, rtol=5e-3)


def test_uncorrected_estimator_on_the_linear_example():
    grads = VectorFieldEP(free=TIGHT, nudged=Anderson(1e-13), beta=1e-4)(
        BIASED, biased_cost, BIASED_BATCH
    )
    assert np.allclose(grads.grads.theta, [-0.165, -0.940], atol=1e-6)
    # The nudged phases settled; what is wrong is the adjoint, and the report says so.
    assert grads.report.nudged_residual[0] < 1e-9 and grads.report.adjoint_residual[0] > 0.3


def test_on_a_conservative_field_all_three_agree():
    block = fields.EnergyBlock(8, 2, residual_scale=0.5, key=jax.random.key(0))
    readout = Flat(Affine(jax.random.normal(jax.random.key(1), (24, 2))))
    model = fields.EquilibriumModel(lambda u: u, block, readout)
    batch = (2 * jax.random.normal(jax.random.key(2), (1, 3, 8)), jnp.ones((1, 2)))
    settle = {"free": TIGHT, "nudged": Anderson(1e-12)}
    oracle = ORACLE(model, squared_error, batch).grads
    corrected = AsymEP(**settle)(model, squared_error, batch).grads
    plain = VectorFieldEP(**settle)(model, squared_error, batch).grads
    assert agreement(plain, corrected)[1] < 1e-10
    errors = [
        agreement(
            EnergyEP(**settle, beta=jnp.asarray(b))(model, squared_error, batch).grads, oracle
        )[1]
        for b in (0.02, 0.01)
    ]
    # The energy contrast is another O(β²) approximation of the same gradient.
    assert errors[0] > 1e-8 and 3.6 < errors[0] / errors[1] < 4.4
    with pytest.raises(ValueError, match="needs a field with an `energy"):
        EnergyEP()(network()[0], squared_error, network()[1])


def test_lock_in_follows_a_slow_nudge_with_an_error_of_second_order():
    model, batch = network()
    batch = jax.tree.map(lambda a: a[:1], batch)
    oracle = ORACLE(model, squared_error, batch).grads
    periods = np.array([160.0, 320.0, 640.0])
    errors = []
    for period in periods:
        lock = LockIn(period=float(period), step=0.2)
        estimate = HolomorphicEP(free=TIGHT, nudged=Nudge(contrast=lock))(
            model, squared_error, batch
        )
        errors.append(agreement(estimate.grads, oracle)[1])
    slope = np.polyfit(np.log(periods), np.log(np.array(errors)), 1)[0]
    assert errors[-1] < 2e-3 and abs(slope + 2) < 0.2
    with pytest.raises(ValueError, match="HolomorphicEP"):
        AsymEP(nudged=Nudge(contrast=LockIn()))(model, squared_error, batch)


def test_probes_estimate_the_correction_without_bias_and_exactly_when_complete():
    model, batch = network()
    batch = jax.tree.map(lambda a: a[:1], batch)
    key = jax.random.key(5)
    oracle = ORACLE(model, squared_error, batch).grads
    complete = AsymEP(free=TIGHT, nudged=Anderson(1e-10), correction=ProbeCorrection())
    assert agreement(complete(model, squared_error, batch, key=key).grads, oracle)[1] < 1e-7
    x = model.encode(batch[0][0])
    z = equilibrium(model.field, x, x, solver=NewtonKrylov(1e-12)).value
    j = jax.jacobian(lambda s: model.field(0.0, s, x))(z)

    class At:
        extent = jnp.linalg.norm(z)
        force = staticmethod(lambda s: model.field(0.0, s, x))

    At.z, probes, v = z, ProbeCorrection(2), jnp.cos(jnp.arange(6.0))
    act = jax.jit(jax.vmap(lambda k: probes.apply(probes.prepare(At, k), At, v)))
    estimates = np.asarray(act(jax.random.split(key, 4000)))
    error = estimates.std(0) / 4000**0.5
    assert np.all(np.abs(estimates.mean(0) - (j - j.T) @ v) < 4.5 * error)
    assert np.allclose(estimates @ v, 0, atol=1e-6)  # antisymmetric, draw by draw
    # The adjoint depends on it through an inverse: fewer probes, a wider spread.
    spread = {}
    for count in (3, 5):
        few = AsymEP(
            free=TIGHT,
            nudged=Anderson(1e-8),
            correction=ProbeCorrection(count),
            accept=Accept(adjoint_residual=1e3),
        )
        spread[count] = rms_error(few, oracle, model, batch, 64)[0]
    assert 0 < spread[5] < 0.75 * spread[3]


def test_averaging_tames_read_noise_and_larger_nudges_need_less_of_it():
    model, batch = network()
    batch = jax.tree.map(lambda a: a[:2], batch)
    oracle = ORACLE(model, squared_error, batch).grads
    settle = {"free": Anderson(1e-9), "nudged": Anderson(1e-8), "read_noise": 1e-3}
    open_gate = {"accept": Accept(1.0, 1e3)}
    small = AsymEP(**settle, **open_gate, radius=2e-3)
    once = rms_error(small, oracle, model, batch, 64)[0]
    averaged, stated = rms_error(Averaged(small, 16), oracle, model, batch, 16)
    assert 3 < once / averaged < 5.3 and 0.7 < stated / averaged < 1.4
    # The noise is divided by β, and six phases bear a β at which two are 1% off by curvature alone.
    wide = HolomorphicEP(**settle, **open_gate, points=6, radius=0.05)
    assert rms_error(wide, oracle, model, batch, 16)[0] < 0.1 * once
    for estimator in (small, Averaged(small), AsymEP(correction=ProbeCorrection())):
        with pytest.raises(ValueError, match="key=jax.random.key"):
            estimator(model, squared_error, batch)


def test_repeats_compile_once():
    traces = []

    def loss(outputs, targets):
        traces.append(1)
        return squared_error(outputs, targets)

    model, batch = network()
    averaged = Averaged(ForwardEligibility(steps=3, eligibility=RandomDirections()), 2)
    for seed in range(3):
        averaged(model, loss, batch, key=jax.random.key(seed))
        traces, first = [], len(traces)
        assert bool(first) == (seed == 0)


def test_a_mismatched_device_has_its_own_exact_gradient():
    model, batch = network()
    chip = fields.Mismatched(model.field, 0.1, key=jax.random.key(9))
    device = eqx.tree_at(lambda m: m.field, model, chip)
    grads = AT_EQUILIBRIUM["asymep"](device, squared_error, batch).grads
    assert grads.field.factors.weight is None
    want, direction = finite_difference(lambda m: equilibrium_loss(m, squared_error, batch), device)
    assert jnp.isclose(along(grads, direction), want, rtol=1e-6)
    nominal = AT_EQUILIBRIUM["asymep"](model, squared_error, batch).grads
    assert agreement(grads.field.field, nominal.field)[1] > 1e-3


@pytest.mark.parametrize("contrast", [AdjointCoordinates(), SharedAdjoint(), RawStates()])
@pytest.mark.parametrize("noise", [None, 1e-2])
def test_the_nudged_residual_is_that_of_the_noisy_phases(contrast, noise):
    """What a phase has settled under its own noise is measured under that noise."""
    model, batch = network()
    estimate = AsymEP(
        free=TIGHT,
        nudged=Nudge(Anderson(1e-11), contrast=contrast),
        beta=0.1,
        read_noise=noise,
        accept=Accept(1.0, 1e6),
    )(model, squared_error, batch, key=jax.random.key(0))
    assert jnp.max(estimate.report.nudged_residual) < 1e-9
