"""Gradient estimators against finite differences, dense algebra and the closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
from gradient_problems import (
    BIASED,
    BIASED_BATCH,
    EXACT,
    TIGHT,
    along,
    biased_cost,
    equilibrium_loss,
    finite_difference,
    network,
)

from eqjax import analytic, fields
from eqjax.analytic import cross_entropy, squared_error, tree_cast
from eqjax.gradients import (
    BPTT,
    Accept,
    AsymEP,
    Nudge,
    OracleAdjoint,
    RawStates,
    agreement,
    compare,
)
from eqjax.relaxation import (
    GMRES,
    Anderson,
    NewtonKrylov,
    Picard,
    equilibrium,
    relax,
)

EQUILIBRIUM = {
    "oracle gmres": OracleAdjoint(free=TIGHT, adjoint_solver=GMRES(1e-11)),
    "oracle anderson": OracleAdjoint(free=TIGHT, adjoint_solver=Anderson(1e-11)),
    "oracle dense": OracleAdjoint(free=TIGHT, adjoint_solver=lineax.LU()),
    "oracle newton": OracleAdjoint(free=NewtonKrylov(1e-12), adjoint_solver=GMRES(1e-11)),
    "asymep": AsymEP(free=TIGHT, nudged=Anderson(1e-10)),
    "asymep picard": AsymEP(free=TIGHT, nudged=Nudge(Picard(1e-10, step_size=0.3), steps=2000)),
    "asymep raw states": AsymEP(
        free=TIGHT, nudged=Nudge(Anderson(1e-13), contrast=RawStates()), beta=0.0001
    ),
}


def test_oracle_on_the_linear_example_is_exact():
    grads = OracleAdjoint(free=TIGHT, adjoint_solver=GMRES(1e-12))(
        BIASED, biased_cost, BIASED_BATCH
    )
    assert np.allclose(grads.grads.theta, EXACT, atol=1e-10)


@pytest.mark.parametrize(("beta", "error"), [(0.1, 5.14e-3), (0.01, 5.09e-5), (0.001, 5.09e-7)])
@pytest.mark.parametrize("raw", [False, True])
def test_asymep_error_on_the_linear_example(beta, error, raw):
    options = {"contrast": RawStates()} if raw else {}
    asymep = AsymEP(free=TIGHT, nudged=Nudge(Anderson(1e-13), **options), beta=beta)
    grads = asymep(BIASED, biased_cost, BIASED_BATCH).grads.theta
    assert np.isclose(np.linalg.norm(grads - EXACT), error, rtol=1e-3)


def test_uncorrected_contrast_is_wrong_on_the_linear_example():
    """What the correction is for: without it the nudged states give (-.165, -.940)."""
    z = jnp.array([0.05, -0.2])

    def nudged(beta):
        field = lambda t, s, x: BIASED.field(t, s, x) - beta * (s - BIASED_BATCH[1][0])
        return equilibrium(field, z, BIASED.theta, solver=NewtonKrylov(1e-14)).value

    contrast = (nudged(-1e-4) - nudged(1e-4)) / 2e-4
    assert np.allclose(contrast + 0.2 * BIASED.theta, [-0.165, -0.940], atol=1e-6)


@pytest.mark.parametrize("name", EQUILIBRIUM)
def test_scalar_equilibrium_model(name):
    """`x = a x + b` at a = .5, b = 1, loss x²: gradients 16 and 8."""

    class Affine(fields.AbstractForceField):
        a: jax.Array
        b: jax.Array

        def __call__(self, t, z, x):
            return self.a * z + self.b - z

    model = fields.EquilibriumModel(
        lambda u: u, Affine(jnp.asarray(0.5), jnp.asarray(1.0)), lambda z: z
    )
    loss = lambda z, y: z[0] ** 2
    estimate = EQUILIBRIUM[name](model, loss, (jnp.zeros((1, 1)), jnp.zeros(1)))
    assert jnp.isclose(estimate.grads.field.a, 16.0, rtol=1e-6)
    assert jnp.isclose(estimate.grads.field.b, 8.0, rtol=1e-6)
    assert jnp.isclose(estimate.loss, 4.0)


@pytest.mark.parametrize("name", EQUILIBRIUM)
def test_equilibrium_estimators_equal_finite_differences(name):
    model, batch = network()
    estimate = EQUILIBRIUM[name](model, squared_error, batch)
    difference, direction = finite_difference(
        lambda m: equilibrium_loss(m, squared_error, batch), model
    )
    assert jnp.isclose(along(estimate.grads, direction), difference, rtol=1e-6)
    assert bool(jnp.all(estimate.report.accepted))
    assert jnp.isclose(estimate.loss, equilibrium_loss(model, squared_error, batch))


@pytest.mark.parametrize("block", [fields.ThickBlock, fields.RealBlock, fields.MonotoneBlock])
def test_blocks_train_by_the_same_gradient_as_finite_differences(block):
    from eqjax.language import equilibrium_lm

    model = equilibrium_lm(7, 5, 8, 2, block=block, residual_scale=0.7, key=jax.random.key(3))
    tokens = jax.random.randint(jax.random.key(4), (3, 6), 0, 7)
    batch = (tokens[:, :-1], tokens[:, 1:])
    difference, direction = finite_difference(
        lambda m: equilibrium_loss(m, cross_entropy, batch), model
    )
    for name in ("oracle gmres", "asymep"):
        estimate = EQUILIBRIUM[name](model, cross_entropy, batch)
        assert jnp.isclose(along(estimate.grads, direction), difference, rtol=1e-6), name


def test_bptt_is_the_gradient_of_the_finite_horizon():
    model, batch = network()
    bptt = BPTT(steps=7, step=0.2)

    def horizon(model):
        def one(u, y):
            x = model.encode(u)
            z = model.initial(x)
            for _ in range(7):
                z = z + 0.2 * model.field(0.0, z, x)
            return squared_error(model.decode(z), y)

        return jnp.mean(jax.vmap(one)(*batch))

    estimate = bptt(model, squared_error, batch)
    trained, held = eqx.partition(model, fields.trainable(model))
    unrolled = jax.grad(lambda t: horizon(eqx.combine(t, held)))(trained)
    cosine, error = agreement(estimate.grads, unrolled)
    assert error < 1e-13 and cosine > 1 - 1e-13
    # ... which is another objective than the equilibrium, until it has settled.
    oracle = EQUILIBRIUM["oracle gmres"](model, squared_error, batch).grads
    assert agreement(estimate.grads, oracle)[1] > 1e-2
    settled = BPTT(steps=400, step=0.2)(model, squared_error, batch)
    assert agreement(settled.grads, oracle)[1] < 1e-9


def test_only_bptt_sees_the_speed_of_settling():
    """A parameter k that changes only how fast `k (x - z)` settles: zero at equilibrium, ∝ T(1-εk)^(T-1) in time."""

    class Speed(fields.AbstractForceField):
        k: jax.Array

        def __call__(self, t, z, x):
            return self.k * (x - z)

    model = fields.EquilibriumModel(
        lambda u: u, Speed(jnp.asarray(1.0)), lambda z: z, start=jnp.zeros_like
    )
    batch, loss = (jnp.ones((1, 1)), jnp.zeros(1)), lambda z, y: z[0]
    assert jnp.abs(EQUILIBRIUM["oracle gmres"](model, loss, batch).grads.field.k) < 1e-10
    steps, eps = 20, 0.1
    want = steps * eps * (1 - eps) ** (steps - 1)
    assert jnp.isclose(BPTT(steps=steps, step=eps)(model, loss, batch).grads.field.k, want)


def test_halving_beta_divides_the_error_by_four():
    model, batch = network()
    oracle = EQUILIBRIUM["oracle gmres"](model, squared_error, batch).grads

    def error(beta):
        asymep = AsymEP(free=TIGHT, nudged=Anderson(1e-12), beta=beta)
        return agreement(asymep(model, squared_error, batch).grads, oracle)[1]

    assert jnp.isclose(error(0.008) / error(0.004), 4.0, rtol=0.04)


def test_error_of_an_unconverged_nudged_phase_is_a_power_law_flat_in_beta():
    """After T2 Euler steps the adjoint error is `(I + εJᵀ)^T2` times the first one, whatever β is."""
    model, batch = network()
    batch = jax.tree.map(lambda a: a[:1], batch)
    x = model.encode(batch[0][0])
    z = equilibrium(model.field, x, x, solver=NewtonKrylov(1e-13)).value
    j = jax.jacobian(lambda s: model.field(0.0, s, x))(z)
    pull = jax.grad(lambda s: squared_error(model.decode(s), batch[1][0]))(z)
    oracle = EQUILIBRIUM["oracle gmres"](model, squared_error, batch).grads
    cosines = {}
    for steps in (10, 40, 160):
        transition = np.linalg.matrix_power(np.eye(6) + 0.05 * np.asarray(j.T), steps)
        adjoint = -np.linalg.solve(j.T, pull)
        left = -transition @ adjoint  # error of a_T2, started at 0
        residual = np.linalg.norm(j.T @ left) / np.linalg.norm(pull)
        for beta in (1e-3, 1e-5):
            asymep = AsymEP(
                free=TIGHT,
                nudged=Nudge(Picard(step_size=0.05), steps=steps),
                beta=beta,
                accept=Accept(adjoint_residual=10.0),
            )
            estimate = asymep(model, squared_error, batch)
            assert np.isclose(estimate.report.adjoint_residual[0], residual, rtol=2e-3, atol=1e-6)
            cosines[steps, beta] = agreement(estimate.grads, oracle)[0]
        assert abs(cosines[steps, 1e-3] - cosines[steps, 1e-5]) < 1e-4
    assert cosines[10, 1e-5] < cosines[40, 1e-5] < cosines[160, 1e-5]
    assert cosines[10, 1e-5] < 0.999 and cosines[160, 1e-5] > 0.999999


def test_raw_states_look_settled_before_they_have_moved():
    """Trap 11: relative to ‖z‖ the nudged phase starts below a tolerance that is loose for the adjoint."""
    model, batch = network()
    accept = Accept(adjoint_residual=10.0)
    raw = AsymEP(
        free=TIGHT, nudged=Nudge(Anderson(0.001), contrast=RawStates()), beta=0.0001, accept=accept
    )
    report = raw(model, squared_error, batch).report
    assert jnp.all(report.nudged_residual < 1e-3) and jnp.all(report.adjoint_residual > 0.5)
    cured = AsymEP(free=TIGHT, nudged=Anderson(1e-3), beta=1e-4, accept=accept)
    assert jnp.all(cured(model, squared_error, batch).report.adjoint_residual <= 2e-3)


def test_report_is_true():
    model, batch = network()
    asymep = AsymEP(free=TIGHT, nudged=Anderson(1e-9), radius=1e-3)
    report = asymep(model, squared_error, batch).report
    assert jnp.allclose(report.displacement, 1e-3, rtol=0.05)
    assert jnp.all(report.free_residual <= 1e-12)
    assert jnp.all(report.field_evaluations > 20)
    # The adjoint residual is that of the contrast itself: it shows the O(radius²) bias, not the solver's 1e-9.
    assert jnp.all((report.adjoint_residual > 1e-9) & (report.adjoint_residual < 1e-4))
    failed = OracleAdjoint(free=TIGHT, adjoint_solver=GMRES(1e-12, restart=1, max_steps=1))
    report = failed(model, squared_error, batch).report
    assert jnp.all(report.adjoint_residual > 1e-3)
    strict = OracleAdjoint(
        free=TIGHT, adjoint_solver=failed.adjoint_solver, accept=Accept(adjoint_residual=1e-3)
    )
    assert not jnp.any(strict(model, squared_error, batch).report.accepted)


@pytest.mark.parametrize("estimator", [OracleAdjoint, AsymEP])
def test_a_sample_that_did_not_settle_asks_for_no_adjoint(estimator):
    """Under `vmap` it would be the slowest of its batch."""
    model, batch = network()
    loose = Anderson(1e-3)
    x = jax.vmap(model.encode)(batch[0])
    settle = estimator(free=loose).settle
    z = jax.vmap(lambda x: settle(model.field, model.initial(x), x))(x)
    closed = estimator(free=loose, accept=Accept(free_residual=1e-30))
    estimate = closed(model, squared_error, batch)
    assert not jnp.any(estimate.report.accepted)
    assert jnp.allclose(estimate.report.adjoint_residual, 1, rtol=1e-12)  # that of a = 0
    spent = estimate.report.field_evaluations - z.stats["field_evaluations"]
    assert jnp.all(spent <= 20), spent  # what one look at each phase costs
    open_gate = estimator(free=loose)(model, squared_error, batch)
    assert jnp.all(open_gate.report.field_evaluations >= estimate.report.field_evaluations + 3)
    assert jnp.array_equal(estimate.states, open_gate.states)


@pytest.mark.parametrize(
    "estimator",
    [
        OracleAdjoint(free=Anderson(1e-9), adjoint_solver=GMRES(1e-9)),
        AsymEP(free=Anderson(1e-9), nudged=Anderson(1e-8)),
        BPTT(steps=30),
    ],
)
@pytest.mark.parametrize("spoilt", ["inputs", "targets"])
def test_a_bad_sample_leaves_its_neighbours_bitwise_alone(estimator, spoilt):
    model, (u, y) = network()
    good = estimator(model, squared_error, (u, y))
    bad_batch = (u.at[2].set(jnp.nan), y) if spoilt == "inputs" else (u, y.at[2].set(jnp.inf))
    bad = estimator(model, squared_error, bad_batch)
    assert good.report.accepted.all()
    assert bad.report.accepted.tolist() == [True, True, False, True, True]
    without = jnp.array([True, True, False, True, True])
    want = estimator(model, squared_error, (u, y), subset=without)
    assert jnp.array_equal(bad.loss, want.loss)
    assert bool(eqx.tree_equal(bad.grads, want.grads))
    # ... and agree with a batch that never held it.
    four = estimator(model, squared_error, (u[without], y[without]))
    assert agreement(bad.grads, four.grads)[1] < 1e-12
    nothing = estimator(model, squared_error, (u * jnp.nan, y))
    assert all(not leaf.any() for leaf in jax.tree.leaves(nothing.grads))
    assert jnp.isnan(nothing.loss) and not nothing.report.accepted.any()


def test_a_sample_without_equilibrium_is_rejected_by_the_thresholds():
    class Sometimes(fields.AbstractForceField):
        weight: jax.Array

        def __call__(self, t, z, x):
            # Past x = 1 the field drives every state away to infinity.
            return self.weight * jnp.tanh(z) + jnp.where(x > 1, 1.0 + z**2, x - 2 * z)

    model = fields.EquilibriumModel(lambda u: u, Sometimes(jnp.asarray(0.3)), lambda z: z)
    batch = (jnp.array([[0.5], [2.0], [0.1]]), jnp.zeros((3, 1)))
    for estimator in (AsymEP(), OracleAdjoint()):
        assert estimator(model, squared_error, batch).report.accepted.tolist() == [
            True,
            False,
            True,
        ]


def test_estimators_work_in_float32_on_pytrees_and_leave_hyperparameters_alone(language_batch):
    model, batch = language_batch
    want = EQUILIBRIUM["oracle gmres"](model, cross_entropy, batch).grads
    small = tree_cast(model, jnp.float32)
    for estimator in (AsymEP(nudged=Anderson(1e-4)), OracleAdjoint(), BPTT(steps=100)):
        estimate = estimator(small, cross_entropy, batch)
        assert estimate.grads.field.leak is None and estimate.grads.field.attention_gain is None
        assert {a.dtype for a in jax.tree.leaves(estimate.grads)} == {jnp.dtype("float32")}
        assert estimate.loss.dtype == jnp.float32
        assert agreement(tree_cast(estimate.grads, float), want)[1] < 2e-3

    class Pair(fields.AbstractForceField):
        inner: fields.RecurrentField

        def __call__(self, t, z, x):
            force = self.inner(t, jnp.concatenate([z["a"], z["b"]]), x)
            return {"a": force[:2], "b": force[2:]}

    flat, batch = network()
    paired = fields.EquilibriumModel(
        flat.encoder,
        Pair(flat.field),
        lambda z: flat.decoder(jnp.concatenate([z["a"], z["b"]])),
        start=lambda x: {"a": x[:2], "b": x[2:]},
    )
    for name in ("oracle gmres", "asymep", "asymep raw states"):
        one, two = (EQUILIBRIUM[name](m, squared_error, batch).grads for m in (flat, paired))
        assert jnp.allclose(one.field.weight, two.field.inner.weight, rtol=1e-6), name


def test_a_hyperparameter_trains_when_asked():
    model, batch = network()
    mask = eqx.tree_at(lambda m: m.field.strength, fields.trainable(model), True)
    grads = OracleAdjoint(free=TIGHT, adjoint_solver=GMRES(1e-11), trains=lambda m: mask)(
        model, squared_error, batch
    ).grads

    def loss(strength):
        varied = eqx.tree_at(lambda m: m.field.strength, model, strength)
        return equilibrium_loss(varied, squared_error, batch)

    difference = (loss(jnp.asarray(1.5 + 1e-5)) - loss(jnp.asarray(1.5 - 1e-5))) / 2e-5
    assert jnp.isclose(grads.field.strength, difference, rtol=1e-6)


def test_estimators_compile_once():
    traces = []

    def loss(outputs, targets):
        traces.append(1)
        return squared_error(outputs, targets)

    model, batch = network()
    for make in (
        lambda r: AsymEP(radius=jnp.asarray(r)),
        lambda r: BPTT(steps=5, step=jnp.asarray(r)),
        lambda r: OracleAdjoint(accept=Accept(free_residual=jnp.asarray(r))),
    ):
        make(1e-2)(model, loss, batch)
        first = len(traces)
        for value in (2e-2, 3e-2):
            moved = jax.tree.map(lambda a: a + 0.01 if eqx.is_inexact_array(a) else a, model)
            make(value)(moved, loss, batch)
        assert len(traces) == first
        traces.clear()


def test_evaluation_settles_as_the_estimator_does():
    model, batch = network()
    x = model.encode(batch[0][0])
    settled = BPTT(steps=9, step=0.2).settle(model.field, model.initial(x), x)
    assert jnp.array_equal(settled.value, relax(model.field, x, x, step=0.2, steps=9).value)
    settled = AsymEP(free=Anderson(1e-6)).settle(model.field, model.initial(x), x)
    assert settled.residual <= 1e-6


def test_compare_prints_a_table_and_measures_over_common_samples():
    model, (u, y) = network()
    u = u.at[1].set(jnp.nan)
    estimators = [
        AsymEP(nudged=Anderson(1e-6)),
        OracleAdjoint(adjoint_solver=GMRES(1e-8)),
        BPTT(steps=4, step=0.05),
        BPTT(steps=300),
    ]
    table = compare(model, squared_error, (u, y), estimators)
    text = str(table)
    assert table.reference == "OracleAdjoint" and "BPTT #2" in text and repr(table) == text
    assert "† of the finite horizon" in text and text.count("\n") == 6
    # 1 - cosine has digits where the cosine has none left; 100 columns suffice for long names and random estimates, too.
    assert table["OracleAdjoint"].cosine_distance == 0 < table["AsymEP"].cosine_distance < 1e-8
    short = table["BPTT #1"]
    assert short.cosine_distance == pytest.approx(1 - short.cosine, rel=1e-9)
    long = type(short)(**vars(short) | {"estimator": 140 * "n", "spread": 1e-9})
    text = str(type(table)((*table.rows, long), "OracleAdjoint"))
    assert "1 - cos" in text and max(map(len, text.split("\n"))) <= 100 and 97 * "n" in text
    assert max(table["AsymEP"].relative_error, table["BPTT #2"].relative_error) < 1e-4
    assert short.relative_error > 1e-2 and short.adjoint_residual != short.adjoint_residual
    assert table["AsymEP"].accepted == pytest.approx(0.8)
    alone = compare(model, squared_error, (u, y), [BPTT(steps=3)])
    assert alone.reference == "BPTT" and alone.rows[0].relative_error == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AsymEP(radius=1e-3, beta=1e-3), "not both"),
        (lambda: AsymEP(beta=0.0), "`beta` must be above 0"),
        (lambda: AsymEP(nudged=NewtonKrylov(1e-3)), "oracle by another name"),
        (lambda: AsymEP(free_steps=0), "`free_steps` must be at least 1"),
        (lambda: BPTT(steps=0), "`steps` must be at least 1"),
        (lambda: BPTT(step=-1.0), "`step` must be above 0"),
        (
            lambda: OracleAdjoint(adjoint_solver=NewtonKrylov(1e-3)),
            "must be a Lineax linear solver",
        ),
        (lambda: Accept(free_residual=-1.0), "must be above 0"),
        (lambda: compare(network()[0], squared_error, network()[1], []), "empty"),
        (
            lambda: AsymEP()(network()[0], squared_error, (jnp.ones((3, 3)), jnp.ones((2, 2)))),
            "leading batch axis",
        ),
        (lambda: AsymEP()(network()[0], squared_error, jnp.ones(3)), "pair"),
    ],
)
def test_misuse_is_refused_with_the_cure(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_cross_entropy_pull_is_small_and_the_radius_does_not_care(language_batch):
    """β multiplies the loss as given; a radius is relative to the state, so a scaled loss gives a scaled gradient."""
    model, batch = language_batch
    asymep = AsymEP(free=TIGHT, nudged=Anderson(1e-9))
    one = asymep(model, cross_entropy, batch)
    tiny = asymep(model, lambda logits, t: 1e-6 * analytic.cross_entropy(logits, t), batch)
    assert agreement(tiny.grads, jax.tree.map(lambda g: 1e-6 * g, one.grads))[1] < 1e-7
    assert jnp.allclose(one.report.displacement, tiny.report.displacement, rtol=1e-3)
