"""Every estimator against finite differences of the objective it names, on fields drawn at random."""

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_problems import (
    AT_EQUILIBRIUM,
    ORACLE,
    TIGHT,
    Affine,
    Flat,
    along,
    equilibrium_loss,
    finite_difference,
    network,
    rms_error,
)
from hypothesis import Phase, given, settings

from eqjax import analytic, fields
from eqjax.analytic import squared_error
from eqjax.gradients import (
    BPTT,
    AsymEP,
    Averaged,
    Central,
    EnergyEP,
    ForwardEligibility,
    HolomorphicEP,
    LowRank,
    ProbeCorrection,
    RandomDirections,
    Reversible,
    TruncatedAdjoint,
    VectorFieldEP,
    agreement,
    check_holomorphic,
)
from eqjax.relaxation import (
    Anderson,
    Fallback,
    NewtonKrylov,
    Picard,
    equilibrium,
)

HORIZON = {
    "bptt": BPTT(steps=9, step=0.2),
    "eligibility": ForwardEligibility(steps=9, step=0.2),
}


class LinearField(fields.AbstractForceField):
    matrix: jax.Array

    def __call__(self, t, z, x):
        return analytic.shift(analytic.matmul(z, self.matrix), x)


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
@settings(max_examples=1, phases=[Phase.generate])
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
