"""What holds a field settled while it learns: each penalty against dense linear algebra, controllers against closed forms."""

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase

import eqjax as ej
from eqjax import homeostasis
from eqjax.homeostasis import _penalties as penalties

N = 9


class Tanh(ej.AbstractForceField):
    """A small field with a random, non-symmetric Jacobian."""

    weight: jax.Array
    leak: jax.Array = ej.fields.hyperparameter()

    def __call__(self, t, z, x):
        return self.weight @ jnp.tanh(z) - self.leak * z + x


@pytest.fixture
def case(key):
    a, b, c = jax.random.split(key, 3)
    field = Tanh(jax.random.normal(a, (N, N)) / 3, jnp.asarray(0.9))
    z, x = jax.random.normal(b, (N,)), jax.random.normal(c, (N,))
    return field, z, x


def dense(field, z, x):
    return np.asarray(jax.jacfwd(lambda s: field(0.0, s, x))(z))


def rightmost(J):
    values = np.linalg.eigvals(J)
    return values[np.argmax(values.real)]


def finite_difference(penalty, field, z, x, key, direction, h=1e-6):
    """The derivative of a penalty along a direction of the weights, z held."""
    moved = lambda s: eqx.tree_at(lambda f: f.weight, field, field.weight + s * direction)
    return (penalty(moved(h), z, x, key) - penalty(moved(-h), z, x, key)) / (2 * h)


def check_gradient(penalty, case, key, rtol=1e-6):
    field, z, x = case
    direction = jax.random.normal(jax.random.key(7), (N, N))
    grads = eqx.filter_grad(penalty)(field, z, x, key)
    expected = finite_difference(penalty, field, z, x, key, direction)
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(jnp.vdot(grads.weight, direction), expected, rtol=rtol)


def test_jacobian_penalty_is_the_mean_square_of_the_learned_part(case, key):
    field, z, x = case
    exact = np.sum(dense(field, z, x) ** 2) / N
    many = penalties.jacobian_penalty(field, z, x, key, probes=20000)
    np.testing.assert_allclose(many, exact, rtol=0.02)
    check_gradient(penalties.jacobian_penalty, case, key)


def test_jacobian_penalty_sees_only_the_learned_part_of_a_split_field_and_weighs_branches(key):
    block = ej.fields.ThickBlock(6, 2, key=key)
    z, x = jax.random.normal(key, (4, 6)), jnp.zeros((4, 6))
    learned = jax.jacfwd(lambda s: block.nonreciprocal(0.0, s, x))(z).reshape(24, 24)
    exact = jnp.sum(learned**2) / 24
    estimate = homeostasis.jacobian_penalty(block, z, x, key, probes=4000)
    np.testing.assert_allclose(estimate, exact, rtol=0.1)
    attention = jax.jacfwd(block.attended)(z).reshape(24, 24)
    branches = [(2.0, lambda f, z, x: f.attended(z)), (0.0, lambda f, z, x: f.transformed(z))]
    weighed = homeostasis.jacobian_penalty(block, z, x, key, probes=4000, branches=branches)
    np.testing.assert_allclose(weighed, 2 * jnp.sum(attention**2) / 24, rtol=0.1)


def test_antisymmetry_penalty_and_the_homeostasis_identity(case, key):
    field, z, x = case
    J = dense(field, z, x)
    exact = 0.5 * np.sum((J - J.T) ** 2)
    # E[‖Jv‖² - vᵀJ²v] = ½‖J - Jᵀ‖²: the trace form, exactly.
    np.testing.assert_allclose(np.sum(J**2) - np.trace(J @ J), exact)
    many = penalties.antisymmetry_penalty(field, z, x, key, probes=20000)
    np.testing.assert_allclose(many, exact / N, rtol=0.03)
    check_gradient(penalties.antisymmetry_penalty, case, key)


def test_antisymmetry_penalty_vanishes_for_a_gradient_field(key):
    block = ej.fields.EnergyBlock(6, 2, key=key)
    z, x = jax.random.normal(key, (4, 6)), jnp.zeros((4, 6))
    assert homeostasis.antisymmetry_penalty(block, z, x, key) < 1e-25
    thick = ej.fields.ThickBlock(6, 2, key=key)
    assert homeostasis.antisymmetry_penalty(thick, z, x, key) > 1e-2


def test_residual_penalty_is_the_squared_force_residual(case, key):
    field, z, x = case
    expected = ej.force_residual(field, z, x) ** 2
    np.testing.assert_allclose(homeostasis.residual_penalty(field, z, x), expected)
    check_gradient(penalties.residual_penalty, case, key)


@pytest.mark.parametrize("step", [None, 0.3])
def test_spectral_penalty_is_the_hinge_on_the_eigenvalue_with_its_exact_gradient(case, key, step):
    field, z, x = case
    J = dense(field, z, x)
    if step is None:
        rate = rightmost(J).real
    else:
        rate = np.log(np.max(np.abs(np.linalg.eigvals(np.eye(N) + step * J)))) / step
    margin = 0.5 - rate  # half a unit violated
    penalty = eqx.Partial(penalties.spectral_penalty, margin=margin, step=step, tol=1e-10)
    np.testing.assert_allclose(penalty(field, z, x, key), 0.25, rtol=1e-8)
    check_gradient(penalty, case, key)
    satisfied = eqx.Partial(penalties.spectral_penalty, margin=-rate - 0.1, step=step)
    assert satisfied(field, z, x, key) == 0


def test_spectral_penalty_without_converged_vectors_is_zero_and_has_no_gradient(case, key):
    field, z, x = case
    penalty = eqx.Partial(penalties.spectral_penalty, margin=9.0, ncv=3, max_restarts=1, tol=1e-14)
    value, grads = eqx.filter_value_and_grad(penalty)(field, z, x, key)
    assert value == 0
    assert all(jnp.all(g == 0) for g in jax.tree.leaves(grads))


def test_lognorm_penalty_is_the_hinge_on_the_symmetric_part(case, key):
    field, z, x = case
    J = dense(field, z, x)
    omega = np.linalg.eigvalsh((J + J.T) / 2)[-1]
    assert omega > rightmost(J).real  # a non-normal field: more than stability asks for
    penalty = eqx.Partial(penalties.lognorm_penalty, margin=0.5 - omega, ncv=N, tol=1e-10)
    np.testing.assert_allclose(penalty(field, z, x, key), 0.25, rtol=1e-7)
    check_gradient(penalty, case, key, rtol=1e-5)


def test_growth_rate_is_that_of_the_linear_relaxation(case, key):
    field, z, x = case
    step = 0.1
    euler = np.eye(N) + step * dense(field, z, x)
    v = np.asarray(field(0.0, z, x))
    for _ in range(20):
        v = euler @ v
        v /= np.linalg.norm(v)
    expected = np.log(np.linalg.norm(np.linalg.matrix_power(euler, 6) @ v)) / (6 * step)
    rate = homeostasis.growth_rate(field, z, x, key, step=step, noise=0.0)
    np.testing.assert_allclose(rate, expected, rtol=1e-10)
    # Long enough, it is the rate of the leading mode.
    long = homeostasis.growth_rate(field, z, x, key, step=step, warmup=3000, steps=4000)
    leading = np.log(np.max(np.abs(np.linalg.eigvals(euler)))) / step
    np.testing.assert_allclose(long, leading, atol=2e-3)


def test_growth_penalty_differentiates_the_last_steps_only(case, key):
    """v₀ is held: finite differences hold it, too."""
    field, z, x = case
    J = dense(field, z, x)
    v = np.asarray(field(0.0, z, x))
    for _ in range(20):
        v = v + 0.1 * J @ v
        v /= np.linalg.norm(v)
    margin = 2.0

    def held(weight):
        D = np.asarray(weight) * (1 - np.tanh(np.asarray(z)) ** 2)[None] - 0.9 * np.eye(N)
        rate = np.log(np.linalg.norm(np.linalg.matrix_power(np.eye(N) + 0.1 * D, 6) @ v)) / 0.6
        return max(rate + margin, 0) ** 2

    direction = np.asarray(jax.random.normal(jax.random.key(7), (N, N)))
    h = 1e-6
    expected = (held(field.weight + h * direction) - held(field.weight - h * direction)) / (2 * h)
    penalty = eqx.Partial(homeostasis.growth_penalty, margin=margin, noise=0.0)
    value, grads = eqx.filter_value_and_grad(penalty)(field, z, x, key)
    np.testing.assert_allclose(value, held(field.weight), rtol=1e-10)
    np.testing.assert_allclose(jnp.vdot(grads.weight, direction), expected, rtol=1e-6)


def test_a_settled_state_still_has_a_direction(key):
    field = Tanh(jnp.zeros((N, N)), jnp.asarray(0.5))
    z = x = jnp.zeros(N)
    rate = homeostasis.growth_rate(field, z, x, key)
    np.testing.assert_allclose(rate, np.log(1 - 0.05) / 0.1, rtol=1e-9)
    assert homeostasis.growth_penalty(field, z, x, key, margin=0.4) == 0


# Controllers


def run(controller, signals):
    def body(state, signal):
        weight, state = controller(state, signal)
        return state, weight

    return jax.lax.scan(body, controller.init(), jnp.asarray(signals, float))[1]


def test_multiplicative_goes_up_above_the_target_and_down_below_it():
    control = homeostasis.Multiplicative(weight=0.1, target=1.0, up=1.5, down=0.5, floor=0.05)
    np.testing.assert_allclose(
        run(control, [2.0, 3.0, 0.5, 0.5, 0.5]), [0.15, 0.225, 0.1125, 0.05625, 0.05]
    )


def test_pi_follows_its_equation():
    control = homeostasis.PI(
        weight=1.0, target=1.0, proportional=0.5, integral=0.1, smoothing=0.0, floor=1e-3
    )
    e = np.log([2.0, 4.0, 1.0])
    changes = [0.1 * e[0], 0.5 * (e[1] - e[0]) + 0.1 * e[1], 0.5 * (e[2] - e[1]) + 0.1 * e[2]]
    np.testing.assert_allclose(run(control, [2.0, 4.0, 1.0]), np.exp(np.cumsum(changes)))


def test_pi_overshoots_less_than_multiplicative_on_a_slow_plant():
    """The signal falls slowly as the weight rises: log s' = log s + .05 (1 - w)."""

    def peak(control):
        def body(carry, _):
            state, log_signal = carry
            weight, state = control(state, jnp.exp(log_signal))
            return (state, log_signal + 0.05 * (1 - weight)), weight

        start = (control.init(), jnp.asarray(1.0))
        (_, last), weights = jax.lax.scan(body, start, length=2000)
        return float(jnp.max(weights)), abs(float(last))

    pi, left = peak(homeostasis.PI(weight=0.5, target=1.0, integral=0.01, smoothing=0.0))
    other, _ = peak(homeostasis.Multiplicative(weight=0.5, target=1.0, up=1.03, down=0.99))
    assert left < 0.05
    assert pi < 0.75 * other


@hypothesis.given(
    signals=st.lists(
        st.one_of(st.floats(0, 1e30), st.just(float("nan")), st.just(float("inf"))),
        min_size=1,
        max_size=12,
    )
)
@hypothesis.settings(phases=[Phase.generate])
def test_weights_stay_between_floor_and_ceiling_whatever_the_signal(signals):
    padded = signals + [signals[-1]] * (12 - len(signals))
    for control in (
        homeostasis.PI(weight=1.0, floor=0.5, ceiling=3.0, integral=1.0),
        homeostasis.Multiplicative(weight=1.0, floor=0.5, ceiling=3.0, up=2.0),
    ):
        weights = run(control, padded)
        assert jnp.all((weights >= 0.5 - 1e-12) & (weights <= 3 + 1e-12))


def test_limits_do_not_wind_up():
    control = homeostasis.PI(weight=1.0, target=1.0, integral=0.5, ceiling=2.0, smoothing=0.0)
    weights = run(control, [100.0] * 50 + [0.01] * 3)
    assert weights[49] == pytest.approx(2.0) and weights[50] < 1.0  # at once, not after fifty


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: homeostasis.PI(weight=1e9), "floor"),
        (lambda: homeostasis.PI(target=0.0), "target"),
        (lambda: homeostasis.PI(smoothing=1.0), "smoothing"),
        (lambda: homeostasis.PI(integral=-1.0), "integral"),
        (lambda: homeostasis.Multiplicative(up=0.9), "up"),
        (lambda: homeostasis.Constant(-1.0), "weight"),
        (lambda: homeostasis.growth_homeostat(margin=-0.1), "margin"),
        (lambda: homeostasis.growth_homeostat(gate=2.0), "gate"),
        (lambda: homeostasis.growth_homeostat(samples=0), "samples"),
        (lambda: homeostasis.cap_norms(0.0), "factor"),
        (lambda: homeostasis.rails(1.0, 0.0, where=lambda m: m), "low"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


# In the training step

SETTLE = ej.Anderson(rtol=1e-8)
ORACLE = ej.OracleAdjoint(free=SETTLE)
SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def problem():
    a, b, c = jax.random.split(jax.random.key(1), 3)
    field = Tanh(jax.random.normal(a, (N, N)) / 4, jnp.asarray(0.9))
    model = ej.EquilibriumModel(lambda u: u, field, eqx.nn.Linear(N, 2, key=b))
    return model, (jax.random.normal(c, (3, N)), jnp.ones((3, 2)))


def one_update(problem, homeostat, optimiser=SGD, estimator=ORACLE):
    model, batch = problem
    step = ej.training.make_step(estimator, optimiser, homeostat, loss=ej.squared_error)
    state = ej.training.TrainState.create(
        model, optimiser, key=jax.random.key(3), homeostat=homeostat
    )
    return step(state, batch)


def weights(tree):
    return eqx.filter(tree, ej.trainable(tree))


def test_the_update_is_task_plus_weighted_penalty(problem, assert_close):
    model, batch = problem
    homeostat = homeostasis.Homeostat(penalties.residual_penalty, homeostasis.Constant(3.0))
    # A loose state, so that the residual penalty has a gradient.
    loose = ej.BPTT(steps=3)
    after, metrics = one_update(problem, homeostat, estimator=loose)
    estimate = loose(model, ej.squared_error, batch)

    def mean(model):
        one = lambda z, inputs: penalties.residual_penalty(model.field, z, model.encode(inputs))
        return jnp.mean(jax.vmap(one)(estimate.states, batch[0]))

    value, grads = eqx.filter_value_and_grad(mean)(model)
    grads = eqx.filter(grads, ej.trainable(model))
    expected = jax.tree.map(
        lambda p, g, r: p - 0.1 * (g + 3 * r), weights(model), estimate.grads, grads
    )
    assert_close(weights(after.model), expected)
    assert_close(metrics["penalty"], value)
    assert_close(metrics["penalty_gradient_norm"], optax.tree.norm(grads))
    assert_close(metrics["gradient_norm"], optax.tree.norm(estimate.grads))


def test_a_relative_weight_is_a_ratio_of_norms(problem):
    homeostat = homeostasis.Homeostat(
        penalties.residual_penalty, homeostasis.Constant(0.5), relative=True
    )
    loose = ej.BPTT(steps=3)
    plain, _ = one_update(problem, None, estimator=loose)
    held, metrics = one_update(problem, homeostat, estimator=loose)
    extra = optax.tree.norm(jax.tree.map(jnp.subtract, weights(held.model), weights(plain.model)))
    np.testing.assert_allclose(extra, 0.1 * 0.5 * metrics["gradient_norm"], rtol=1e-9)


def test_a_gated_batch_leaves_the_penalty_alone_in_charge(problem):
    strict = ej.OracleAdjoint(free=SETTLE, accept=ej.Accept(1e-30, 1e-30))
    model, _ = problem
    held, metrics = one_update(problem, homeostasis.growth_homeostat(margin=5.0), estimator=strict)
    assert metrics["gated"] and metrics["accepted"] == 0 and metrics["updated"]
    moved = jax.tree.map(jnp.subtract, weights(held.model), weights(model))
    assert optax.tree.norm(moved.field) > 0
    assert jnp.all(moved.decoder.weight == 0)
    _, metrics = one_update(problem, None, estimator=strict)
    assert not metrics["updated"]


def test_only_the_first_samples_are_penalised_when_asked(problem):
    model, batch = problem
    penalty = eqx.Partial(homeostasis.growth_penalty, margin=5.0, noise=0.0)
    _, one = one_update(problem, homeostasis.Homeostat(penalty, samples=1))
    estimate = ORACLE(model, ej.squared_error, batch)
    x = model.encode(batch[0][0])
    expected = penalty(model.field, estimate.states[0], x, jax.random.key(0))
    np.testing.assert_allclose(one["penalty"], expected, rtol=1e-5)


class Brittle(ej.AbstractForceField):
    """Settles at x, unless x is negative: then nothing is finite."""

    pull: jax.Array

    def __call__(self, t, z, x):
        return self.pull * (x - z) + jnp.where(x < 0, jnp.nan, 0.0)


def test_a_sample_that_is_not_finite_does_not_spoil_the_penalty():
    model = ej.EquilibriumModel(lambda u: u, Brittle(jnp.ones(2)), lambda z: z)
    homeostat = homeostasis.growth_homeostat(margin=3.0)

    def gradients(inputs):
        estimate = ORACLE(model, ej.squared_error, (inputs, jnp.zeros_like(inputs)))
        state = homeostat.init(model)
        return homeostat(state, model, inputs, estimate, jax.random.key(0))

    good = jnp.asarray([[1.0, 2.0], [3.0, 1.0]])
    bad = good.at[0].set(-1.0)
    grads, _, metrics = gradients(bad)
    assert jnp.isfinite(metrics["penalty"]) and metrics["penalty"] > 0
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads))
    alone = homeostat.penalty(model.field, good[1], good[1], jax.random.split(jax.random.key(0))[1])
    np.testing.assert_allclose(metrics["penalty"], alone, rtol=1e-6)


def test_a_homeostat_brings_a_loose_field_back(key):
    """Its penalty alone, by gradient descent, restores the margin that it asks for."""
    field = Tanh(2.2 * jnp.eye(N) + 0.3 * jax.random.normal(key, (N, N)), jnp.asarray(1.0))
    z, x = jnp.zeros(N), jnp.zeros(N)
    penalty = eqx.Partial(homeostasis.growth_penalty, margin=0.3)

    def body(weight, key):
        at = lambda w: penalty(eqx.tree_at(lambda f: f.weight, field, w), z, x, key)
        return weight - 0.05 * jax.grad(at)(weight), None

    weight, _ = jax.lax.scan(body, field.weight, jax.random.split(key, 600))
    before, after = (rightmost(np.asarray(w) - np.eye(N)).real for w in (field.weight, weight))
    assert before > 1 and after < -0.25


def test_step_and_state_must_agree_on_the_homeostat(problem):
    model, batch = problem
    step = ej.training.make_step(ORACLE, SGD, homeostasis.growth_homeostat())
    state = ej.training.TrainState.create(model, SGD, key=jax.random.key(0))
    with pytest.raises(ValueError, match="homeostat"):
        step(state, batch)


# Rails


def test_caps_hold_every_matrix_and_leave_vectors_alone(problem):
    model, _ = problem
    optimiser = optax.chain(optax.sgd(1.0), homeostasis.cap_norms(1.01))
    after, _ = one_update(problem, None, optimiser)
    free, _ = one_update(problem, None, optax.sgd(1.0))
    old, new, wild = (jax.tree.leaves(weights(m)) for m in (model, after.model, free.model))
    norms = [
        tuple(float(jnp.linalg.norm(m)) for m in trio)
        for trio in zip(old, new, wild, strict=True)
        if trio[0].ndim >= 2
    ]
    assert any(w > 1.02 * o for o, _, w in norms)  # without caps it does go beyond
    for o, n, w in norms:
        np.testing.assert_allclose(n, min(w, 1.01 * o), rtol=1e-9)
    for m, n, w in zip(old, new, wild, strict=True):
        if m.ndim < 2:
            assert jnp.array_equal(n, w)


def test_rails_hold_a_trained_hyperparameter(problem):
    model, batch = problem
    leak = lambda m: m.field.leak
    trains = lambda m: eqx.tree_at(leak, ej.trainable(m), True)
    estimator = ej.OracleAdjoint(free=SETTLE, trains=trains)
    optimiser = optax.chain(optax.sgd(50.0), homeostasis.rails(0.85, 1.05, where=leak))
    step = ej.training.make_step(estimator, optimiser, loss=ej.squared_error)
    create, key = ej.training.TrainState.create, jax.random.key(0)
    after, _ = step(create(model, optimiser, key=key, trains=trains), batch)
    assert float(leak(after.model)) in (pytest.approx(0.85), pytest.approx(1.05))
    with pytest.raises(ValueError, match="trained"):
        create(model, optimiser, key=key)
