"""Every estimator against finite differences of the objective it names, on fields drawn at random."""

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from test_gradients import (
    BIASED,
    BIASED_BATCH,
    EXACT,
    TIGHT,
    along,
    equilibrium_loss,
    finite_difference,
    network,
)

from eqjax import analytic, fields
from eqjax.analytic import squared_error
from eqjax.gradients import (
    BPTT,
    Accept,
    AsymEP,
    Averaged,
    Central,
    DyadicEP,
    EnergyEP,
    ForwardEligibility,
    HolomorphicEP,
    LockIn,
    LowRank,
    Nudge,
    OneSided,
    OracleAdjoint,
    ProbeCorrection,
    RandomDirections,
    RawStates,
    Reversible,
    SharedAdjoint,
    TruncatedAdjoint,
    VectorFieldEP,
    agreement,
    check_holomorphic,
)
from eqjax.relaxation import (
    GMRES,
    Anderson,
    Fallback,
    NewtonKrylov,
    Picard,
    equilibrium,
)

ORACLE = OracleAdjoint(free=TIGHT, adjoint_solver=GMRES(1e-12))
AT_EQUILIBRIUM = {
    "oracle": ORACLE,
    "asymep": AsymEP(free=TIGHT, nudged=Anderson(1e-10)),
    "shared": HolomorphicEP(
        free=TIGHT, nudged=Nudge(Anderson(1e-10), contrast=SharedAdjoint()), points=3
    ),
    "dyadic": DyadicEP(free=TIGHT),
}
HORIZON = {
    "bptt": BPTT(steps=9, step=0.2),
    "eligibility": ForwardEligibility(steps=9, step=0.2),
}


class LinearField(fields.AbstractForceField):
    matrix: jax.Array

    def __call__(self, t, z, x):
        return analytic.shift(analytic.matmul(z, self.matrix), x)


class Affine(eqx.Module):
    """A map that takes complex states."""

    weight: jax.Array

    def __call__(self, z):
        return analytic.matmul(z.reshape(1, -1), self.weight)[0]


def linear(n, key, normal):
    weight = jax.random.normal(key, (n, n)) / (2 * n**0.5)
    weight = weight - weight.T if normal else weight + jnp.triu(jnp.ones((n, n)), 1) / n
    return LinearField(weight - 1.2 * jnp.eye(n)), jnp.zeros_like, (n,)


def memory(n, key):
    field = fields.AssociativeMemory(
        0.7 * jax.random.normal(key, (3, n)),
        visible=fields.LogCosh(),
        hidden=fields.Softmax(1.5),
        hidden_time=0.5,
    )
    return field, lambda x: (x, jnp.zeros(3)), (n,)


class Flat(eqx.Module):
    """Reads the first array of the state (of a memory, the visible neurons: its energy does not fix the rest)."""

    inner: Affine

    def __call__(self, z):
        return self.inner(jax.tree.leaves(z)[0].ravel())


def drawn(kind, n, seed):
    keys = jax.random.split(jax.random.key(seed), 5)
    if kind in ("normal", "non-normal"):
        field, start, shape = linear(n, keys[0], kind == "normal")
    elif kind == "tanh":
        field = fields.RecurrentField(n, strength=1.3, asymmetry=0.7, key=keys[0])
        start, shape = jnp.zeros_like, (n,)
    elif kind == "thick":
        field, start = fields.ThickBlock(2 * n, 2, residual_scale=0.7, key=keys[0]), lambda x: x
        shape = (3, 2 * n)
    else:
        field, start, shape = memory(n, keys[0])
    width = int(np.prod(shape))
    weight = 0.8 * jax.random.normal(keys[1], (3, width))
    if kind == "thick":
        weight = 4 * weight  # the norms divide by the state's scale
    encoder = Encoder(weight, shape)
    model = fields.EquilibriumModel(
        encoder, field, Flat(Affine(jax.random.normal(keys[2], (width, 2)))), start=start
    )
    return model, (jax.random.normal(keys[3], (2, 3)), jax.random.normal(keys[4], (2, 2)))


class Encoder(eqx.Module):
    weight: jax.Array
    shape: tuple = eqx.field(static=True)

    def __call__(self, u):
        return (u @ self.weight).reshape(self.shape)


def horizon_loss(model, batch):
    def one(u, y):
        x = model.encode(u)
        step = lambda z, _: (
            jax.tree.map(lambda a, f: a + 0.2 * f, z, model.field(0.0, z, x)),
            None,
        )
        z, _ = jax.lax.scan(step, model.initial(x), length=9)
        return squared_error(model.decode(z), y)

    return jnp.mean(jax.vmap(one)(*batch))


# Without a phase that shrinks: it would compile for minutes.
@pytest.mark.parametrize("kind", ["normal", "non-normal", "tanh"])
@settings(max_examples=2, phases=[Phase.generate])
@given(n=st.integers(2, 5), seed=st.integers(0, 2**16))
def test_every_unbiased_estimator_is_the_derivative_of_its_objective(kind, n, seed):
    check_all(kind, n, seed)


@pytest.mark.parametrize("kind", ["thick", "memory"])
@settings(max_examples=1, phases=[Phase.generate])
@given(n=st.integers(2, 3), seed=st.integers(0, 2**16))
def test_the_same_on_larger_fields(kind, n, seed):
    check_all(kind, n, seed)


def check_all(kind, n, seed):
    model, batch = drawn(kind, n, seed)
    for estimators, loss in (
        (AT_EQUILIBRIUM, eqx.filter_jit(lambda m: equilibrium_loss(m, squared_error, batch))),
        (HORIZON, eqx.filter_jit(lambda m: horizon_loss(m, batch))),
    ):
        want, direction = finite_difference(loss, model)
        for name, estimator in estimators.items():
            estimate = estimator(model, squared_error, batch)
            got = along(estimate.grads, direction)
            assert bool(jnp.all(estimate.report.accepted)), name
            assert jnp.isclose(got, want, rtol=1e-6), (name, got, want)
        if estimators is AT_EQUILIBRIUM and kind == "memory":
            estimate = EnergyEP(free=TIGHT, nudged=Anderson(1e-10))(model, squared_error, batch)
            assert jnp.isclose(along(estimate.grads, direction), want, rtol=1e-6)
            # An energy is not enough for the uncorrected contrast: its Jacobian is not symmetric.
            naive = VectorFieldEP(free=TIGHT, nudged=Anderson(1e-10))(model, squared_error, batch)
            assert agreement(naive.grads, estimate.grads)[1] > 0.05


def test_eligibility_equals_backpropagation_to_rounding():
    model, batch = network()
    batch = jax.tree.map(lambda a: a[:2], batch)
    want = BPTT(steps=30, step=0.2)(model, squared_error, batch)
    got = ForwardEligibility(steps=30, step=0.2)(model, squared_error, batch)
    assert agreement(got.grads, want.grads)[1] < 1e-12
    assert jnp.isclose(got.loss, want.loss, rtol=1e-13) and got.variance is None
    # The encoder is reached through z₀ and through the clamped input, and through neither alone.
    assert jnp.linalg.norm(got.grads.encoder.weight) > 1e-3


def rms_error(estimator, truth, model, batch, seeds):
    def error(key):
        estimate = estimator(model, squared_error, batch, key=key)
        gaps = jax.tree.map(lambda g, t: jnp.sum((g - t) ** 2), estimate.grads, truth)
        variance = estimate.variance
        return sum(jax.tree.leaves(gaps)), jnp.nan if variance is None else variance

    squares, variances = jax.lax.map(error, jax.random.split(jax.random.key(7), seeds))
    return float(jnp.mean(squares)) ** 0.5, float(jnp.mean(variances)) ** 0.5


@pytest.mark.parametrize("eligibility", [RandomDirections, LowRank])
def test_forward_sketches_are_unbiased_and_say_how_far_they_are_off(eligibility):
    model, batch = network(3)
    batch = jax.tree.map(lambda a: a[:1], batch)
    make = lambda draws: ForwardEligibility(steps=6, step=0.2, eligibility=eligibility(draws))
    truth = BPTT(steps=6, step=0.2)(model, squared_error, batch).grads
    draws = np.array([2, 8, 32, 128])
    found = [rms_error(make(int(k)), truth, model, batch, 6400 // int(k)) for k in draws]
    errors, stated = np.array(found).T
    slope = np.polyfit(np.log(draws), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.05
    assert np.allclose(stated, errors, rtol=0.2)
    many = make(20000)(model, squared_error, batch, key=jax.random.key(3))
    gaps = jax.tree.map(lambda g, t: jnp.sum((g - t) ** 2), many.grads, truth)
    assert sum(jax.tree.leaves(gaps)) < 9 * many.variance


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
        lambda e: (e.free.rtol, e.nudged.solver.rtol, e.nudged.solver.patience),
        e,
        (1e-13, 1e-13, 40),
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
    from test_gradients import biased_cost

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


def test_a_nudged_phase_may_fall_back_from_one_solver_to_another():
    model, batch = network()
    hopeless = Picard(1e-10, step_size=2.0)
    settle = Fallback(hopeless, Anderson(1e-10), first_steps=20)
    estimate = AsymEP(free=TIGHT, nudged=settle)(model, squared_error, batch)
    oracle = ORACLE(model, squared_error, batch).grads
    assert agreement(estimate.grads, oracle)[1] < 1e-8


def test_truncated_adjoint_is_the_neumann_series():
    model, batch = network()
    batch = jax.tree.map(lambda a: a[:1], batch)
    x = model.encode(batch[0][0])
    z = equilibrium(model.field, x, x, solver=NewtonKrylov(1e-13)).value
    j = np.asarray(jax.jacobian(lambda s: model.field(0.0, s, x))(z))
    pull = np.asarray(jax.grad(lambda s: squared_error(model.decode(s), batch[1][0]))(z))
    for terms, eps in ((1, 1.0), (3, 1.0), (5, 0.3)):
        powers = [np.linalg.matrix_power(np.eye(6) + eps * j.T, i) for i in range(terms)]
        a = eps * sum(powers) @ pull
        truncated = TruncatedAdjoint(free=TIGHT, terms=terms, damping=eps)
        estimate = truncated(model, squared_error, batch)
        residual = np.linalg.norm(j.T @ a + pull) / np.linalg.norm(pull)
        assert np.isclose(estimate.report.adjoint_residual[0], residual, rtol=1e-8)
        bias = jax.grad(
            lambda b: jnp.vdot(a, eqx.tree_at(lambda f: f.bias, model.field, b)(0.0, z, x))
        )
        assert np.allclose(estimate.grads.field.bias, bias(model.field.bias), atol=1e-10)
    oracle = ORACLE(model, squared_error, batch).grads
    long = TruncatedAdjoint(free=TIGHT, terms=200, damping=0.5)(model, squared_error, batch)
    assert agreement(long.grads, oracle)[1] < 1e-9


def test_truncated_backpropagation_holds_the_past_fixed():
    model, batch = network()
    got = BPTT(steps=9, step=0.2, truncate=3)(model, squared_error, batch)

    def tail(model, frozen):
        def one(u, y):
            x, held = model.encode(u), frozen.encode(u)
            z = frozen.initial(held)
            for _ in range(6):
                z = z + 0.2 * frozen.field(0.0, z, held)
            for _ in range(3):
                z = z + 0.2 * model.field(0.0, z, x)
            return squared_error(model.decode(z), y)

        return jnp.mean(jax.vmap(one)(*batch))

    want, direction = finite_difference(lambda m: tail(m, model), model)
    assert jnp.isclose(along(got.grads, direction), want, rtol=1e-7)
    full = BPTT(steps=9, step=0.2)(model, squared_error, batch)
    assert jnp.isclose(got.loss, full.loss) and agreement(got.grads, full.grads)[1] > 1e-2


def test_reversible_backpropagation_reconstructs_what_it_forgot():
    model, batch = network()
    reversible = BPTT(steps=8, step=0.05, solver=Reversible(0.9))
    estimate = reversible(model, squared_error, batch)

    def unrolled(model):
        def one(u, y):
            x = model.encode(u)
            a = b = model.initial(x)
            for _ in range(8):
                a = 0.9 * a + 0.1 * b + 0.05 * model.field(0.0, b, x)
                b = b + 0.05 * model.field(0.0, a, x)
            return squared_error(model.decode(a), y)

        return jnp.mean(jax.vmap(one)(*batch))

    trained, held = eqx.partition(model, fields.trainable(model))
    loss, want = eqx.filter_jit(jax.value_and_grad(lambda t: unrolled(eqx.combine(t, held))))(
        trained
    )
    assert jnp.isclose(estimate.loss, loss) and agreement(estimate.grads, want)[1] < 1e-10

    def memory(steps, solver):
        bptt = BPTT(steps=steps, step=0.05, solver=solver)
        program = eqx.filter_jit(lambda m: bptt(m, squared_error, batch).grads)
        return program.lower(model).compile().compiled.memory_analysis().temp_size_in_bytes

    # One state, whatever the horizon.
    assert memory(4000, Reversible()) < 1.1 * memory(40, Reversible())


NOT_HOLOMORPHIC = {
    "abs": lambda z: z * jnp.abs(z).astype(z.dtype),
    "conj": jnp.conj,
    "real": lambda z: z.real.astype(z.dtype),
    "max": jax.nn.relu,
    "sort": jnp.sort,
    "select_n": lambda z: jnp.where(z.real > 0, z, 0.5 * z),
    "stop_gradient": lambda z: z * jax.lax.stop_gradient(jnp.sum(z * z)),
    "complex states": jax.scipy.special.erf,
}


@pytest.mark.parametrize("operation", NOT_HOLOMORPHIC)
def test_a_field_that_is_not_holomorphic_is_refused_by_name(operation):
    function = NOT_HOLOMORPHIC[operation]

    class Field(fields.AbstractForceField):
        weight: jax.Array

        def __call__(self, t, z, x):
            return analytic.scale(analytic.softmax(z) - z + 0.1 * function(z), self.weight)

    model = fields.EquilibriumModel(lambda u: u, Field(jnp.asarray(1.0)), lambda z: z)
    batch = (jnp.ones((1, 3)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=operation):
        HolomorphicEP()(model, squared_error, batch)
    with pytest.raises(ValueError, match=operation):  # under jit as well
        jax.jit(lambda b: HolomorphicEP()(model, squared_error, b).loss)(batch)


def test_what_is_holomorphic_passes():
    keys = jax.random.split(jax.random.key(0))
    for block in (fields.ThickBlock, fields.MonotoneBlock):
        field = block(4, 2, key=keys[0])
        check_holomorphic(
            lambda z, x, f=field: f(0.0, z, x), jnp.ones((2, 4)), jnp.ones((2, 4)), name="field"
        )
    model, batch = network()
    arrays, rest = eqx.partition(model, eqx.is_array)
    traced = jax.jit(lambda a: HolomorphicEP()(eqx.combine(a, rest), squared_error, batch).loss)
    assert jnp.isfinite(traced(arrays))
    with pytest.raises(ValueError, match=r"loss of the decoded state .*`abs`"):
        HolomorphicEP()(model, lambda z, y: jnp.sum(jnp.abs(z - y.astype(z.dtype))), batch)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Central(0), "`pairs` must be at least 1"),
        (lambda: HolomorphicEP(points=1).stencil, "`points` must be at least 2"),
        (lambda: TruncatedAdjoint(terms=0), "`terms` must be at least 1"),
        (lambda: Reversible(1.0), "`coupling` must lie between"),
        (lambda: BPTT(steps=3, truncate=4), "`truncate` must lie between"),
        (lambda: Averaged(BPTT(), 1), "`repeats` must be at least 2"),
        (
            lambda: fields.Mismatched(
                fields.RecurrentField(2, key=jax.random.key(0)), -1.0, key=jax.random.key(0)
            ),
            "`spread`",
        ),
        (lambda: AsymEP(read_noise=-0.1), "`read_noise` must be above 0"),
        (
            lambda: AsymEP(correction=ProbeCorrection(7))(
                network()[0], squared_error, network()[1], key=jax.random.key(0)
            ),
            "only 6 dimensions",
        ),
        (
            lambda: ForwardEligibility()(
                fields.EquilibriumModel(
                    lambda u: u, LinearField(jnp.zeros((600, 600))), lambda z: z
                ),
                squared_error,
                (jnp.ones((2, 600)), jnp.ones((2, 600))),
            ),
            "RandomDirections",
        ),
    ],
)
def test_misuse_is_refused_with_the_cure(build, message):
    with pytest.raises(ValueError, match=message):
        build()
