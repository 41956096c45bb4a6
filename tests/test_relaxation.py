"""Settling: its roots, its counts, its gradients, and relaxing in time, against SciPy and closed forms."""

import diffrax
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
import pytest
import scipy.linalg
from hypothesis import given
from settling import scipy_root
from toys import Counted, Linear

from eqjax.relaxation import (
    GMRES,
    RESULTS,
    Anderson,
    NewtonKrylov,
    Picard,
    equilibrium,
    force_residual,
    relax,
)

SOLVERS = {
    "anderson": Anderson(rtol=1e-9),
    "newton": NewtonKrylov(rtol=1e-9),
    "picard": Picard(rtol=1e-9, step_size=0.3),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_scipys_root(name, network):
    field, x, z0 = network
    found = equilibrium(field, z0, x, solver=SOLVERS[name])
    assert found.result == RESULTS.successful and found.residual <= 1e-9
    assert np.allclose(found.value, scipy_root(field, x, z0), atol=1e-8)
    assert np.isclose(found.residual, force_residual(field, found.value, x), rtol=1e-6, atol=0)


def test_anderson_on_a_linear_map_is_a_krylov_method(key):
    n = 6
    matrix = -jnp.eye(n) + 0.8 * jax.random.normal(key, (n, n)) / n**0.5
    found = equilibrium(
        Linear(matrix), jnp.zeros(n), jnp.ones(n), solver=Anderson(1e-10, window=n), max_steps=40
    )
    # Anderson with a full window ends, like GMRES, after n + 1 evaluations (and one that confirms).
    assert found.stats["field_evaluations"] <= n + 4
    assert jnp.allclose(found.value, -jnp.linalg.solve(matrix, jnp.ones(n)), atol=1e-8)


def test_anderson_settles_where_picard_diverges():
    spin = jnp.array([[-0.1, -3.0], [3.0, -0.1]])
    x = jnp.array([1.0, 2.0])
    euler = equilibrium(
        Linear(spin), jnp.ones(2), x, solver=Picard(1e-8, step_size=0.5), throw=False
    )
    assert euler.result != RESULTS.successful
    found = equilibrium(Linear(spin), jnp.ones(2), x, solver=Anderson(1e-8))
    assert jnp.allclose(found.value, -jnp.linalg.solve(spin, x), atol=1e-7)


def test_solvers_work_on_pytrees_and_on_float32(network):
    field, x, z0 = network

    def tree_field(t, z, x):
        force = field(t, jnp.concatenate([z["a"].ravel(), z["b"]]), x)
        return {"a": force[:6].reshape(2, 3), "b": force[6:]}

    start = {"a": z0[:6].reshape(2, 3), "b": z0[6:]}
    want = equilibrium(field, z0, x, solver=Anderson(1e-9)).value
    for solver in SOLVERS.values():
        got = equilibrium(tree_field, start, x, solver=solver).value
        assert jnp.allclose(got["a"].ravel(), want[:6], atol=1e-7)
    small = jax.tree.map(lambda a: a.astype(jnp.float32), (field, x, z0))
    for solver in (Anderson(1e-5), NewtonKrylov(1e-5), Picard(1e-5, step_size=0.3)):
        found = equilibrium(small[0], small[2], small[1], solver=solver)
        assert found.value.dtype == found.residual.dtype == jnp.float32
        assert jnp.allclose(found.value.astype(float), want, atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_counted_truly(name, network):
    field, x, z0 = network
    count = []
    counted = Counted(field, count)
    found = equilibrium(counted, z0, x, solver=SOLVERS[name])
    jax.effects_barrier()
    if name == "newton":  # its products with the Jacobian run no callback: forces are a lower bound
        assert 3 <= len(count) <= int(found.stats["field_evaluations"]) + found.stats["num_steps"]
    else:
        assert len(count) == int(found.stats["field_evaluations"])


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.Heun(), diffrax.Tsit5()])
@pytest.mark.parametrize("steps", [1, 7])
def test_relax_counts_truly(solver, steps, network):
    field, x, z0 = network
    count = []
    found = relax(Counted(field, count), z0, x, solver=solver, steps=steps)
    jax.effects_barrier()
    assert len(count) == int(found.stats["field_evaluations"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("steps", [1, 3, 10, 60, 150, 333])
def test_relax_makes_exactly_the_euler_steps(dtype, steps, network):
    field, x, z0 = jax.tree.map(lambda a: a.astype(dtype), network)
    want = jax.lax.fori_loop(0, steps, lambda _, z: z + 0.1 * field(0.0, z, x), z0)
    found = relax(field, z0, x, step=0.1, steps=steps)
    assert found.value.dtype == dtype and int(found.stats["num_steps"]) == steps
    assert jnp.allclose(found.value, want, rtol=0, atol=20 * jnp.finfo(dtype).eps)
    picard = equilibrium(field, z0, x, solver=Picard(step_size=0.1), max_steps=steps, throw=False)
    assert jnp.allclose(picard.value, want, rtol=0, atol=20 * jnp.finfo(dtype).eps)


def test_relax_with_a_controller_follows_the_exact_flow():
    matrix = jnp.array([[-1.0, 2.0], [-2.0, -1.0]])
    found = relax(
        Linear(matrix),
        jnp.ones(2),
        jnp.zeros(2),
        solver=diffrax.Tsit5(),
        controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
        t1=1.7,
    )
    want = scipy.linalg.expm(1.7 * np.asarray(matrix)) @ np.ones(2)
    assert np.allclose(found.value, want, atol=1e-7)


def test_langevin_noise_samples_the_boltzmann_distribution(key):
    # dz = -k z dt + √(2T) dW has variance T/k.
    field = lambda t, z, x: -x * z
    settle = lambda k: (
        relax(
            field, jnp.zeros(50), jnp.asarray(2.0), step=0.05, steps=100, temperature=0.5, key=k
        ).value
    )
    sample = jax.jit(jax.vmap(settle))(jax.random.split(key, 100))
    exact = 0.5 / 2.0 / (1 - 0.05 * 2.0 / 2)  # of the Euler–Maruyama chain
    assert abs(jnp.var(sample) / exact - 1) < 4 * (2 / 5000) ** 0.5


def test_gradients_pass_straight_through(network):
    """Implicitly through `equilibrium`, by backpropagation through `relax`: both equal finite differences."""
    field, x, z0 = network

    def implicit(x, throw=True):
        return jnp.sum(equilibrium(field, z0, x, solver=Anderson(1e-11), throw=throw).value ** 2)

    def unrolled(x):
        return jnp.sum(relax(field, z0, x, step=0.2, steps=40).value ** 2)

    for f in (implicit, unrolled, lambda x: implicit(x, throw=False)):
        g, v, h = jax.grad(f)(x), jnp.cos(3 * x), 1e-5
        difference = (f(x + h * v) - f(x - h * v)) / (2 * h)
        assert jnp.isclose(jnp.vdot(g, v), difference, rtol=1e-7)
    # A field that closes over what is differentiated.
    for throw in (True, False):
        closed = lambda x, throw=throw: jnp.sum(
            equilibrium(
                lambda t, z, _: field(t, z, x), z0, solver=Anderson(1e-11), throw=throw
            ).value
            ** 2
        )
        assert jnp.allclose(jax.grad(closed)(x), jax.grad(implicit)(x), atol=1e-9)
    through_newton = jax.grad(
        lambda x: jnp.sum(equilibrium(field, z0, x, solver=NewtonKrylov(1e-11)).value ** 2)
    )(x)
    assert jnp.allclose(through_newton, jax.grad(implicit)(x), atol=1e-8)


def test_gradients_pass_through_stiff_fields_in_float32():
    """Conditioned 1000: a backward solve asked for more than float32 has would fail."""
    matrix = -jnp.diag(jnp.logspace(0, 3, 64, dtype=jnp.float32))
    for throw in (True, False):
        gradient = jax.grad(
            lambda x, throw=throw: jnp.sum(
                equilibrium(
                    Linear(matrix), x / 500, x, solver=NewtonKrylov(1e-4), throw=throw, max_steps=20
                ).value
            )
        )(jnp.ones(64, jnp.float32))
        assert jnp.allclose(gradient, -1 / jnp.diagonal(matrix), rtol=5e-2, atol=1e-3)


def test_warm_start_needs_fewer_evaluations(network):
    field, x, z0 = network
    cold = equilibrium(field, z0, x, solver=Anderson(1e-9))
    warm = equilibrium(field, cold.value, x + 1e-4, solver=Anderson(1e-9))
    assert warm.stats["field_evaluations"] < cold.stats["field_evaluations"]


def test_a_sample_that_does_not_settle_is_flagged_and_its_neighbours_untouched(network):
    field, x, z0 = network
    settle = jax.jit(
        jax.vmap(lambda z, x: equilibrium(field, z, x, solver=Anderson(1e-8), throw=False))
    )
    xs = jnp.stack([x, 2 * x, 3 * x])
    zs = jnp.stack([z0, z0, z0])
    good, bad = settle(zs, xs), settle(zs, xs.at[1].set(jnp.nan))
    assert bool(jnp.all(good.result == RESULTS.successful))
    flags = bad.result == RESULTS.successful
    assert flags.tolist() == [True, False, True]
    assert (bad.result == RESULTS.nonfinite).tolist() == [False, True, False]
    for i in (0, 2):
        assert jnp.array_equal(good.value[i], bad.value[i])
        assert good.residual[i] == bad.residual[i]
        assert good.stats["field_evaluations"][i] == bad.stats["field_evaluations"][i]


def test_no_fixed_point_is_a_result_and_raises_when_asked():
    away = lambda t, z, x: jnp.ones_like(z)
    for solver in (Anderson(1e-6), NewtonKrylov(1e-6), Picard(1e-6)):
        found = equilibrium(away, jnp.zeros(3), solver=solver, max_steps=30, throw=False)
        assert found.result != RESULTS.successful
    with pytest.raises(Exception, match="diverged|maximum number of steps|did not settle"):
        equilibrium(away, jnp.zeros(3), solver=Anderson(1e-6), max_steps=30)
    explosive = relax(lambda t, z, x: z**3, 3 * jnp.ones(2), steps=80, throw=False)
    assert explosive.result == RESULTS.nonfinite  # Diffrax says "max_steps_reached"


def test_a_lax_foreign_solver_is_overridden():
    """Optimistix' iteration looks at each component by itself; the force residual is that of the whole state."""
    drift = lambda t, z, x: jnp.full_like(z, 9e-5)
    lax = optimistix.FixedPointIteration(rtol=1e-4, atol=1e-4)
    found = equilibrium(drift, jnp.zeros(10_000), solver=lax, throw=False)
    assert found.result == RESULTS.residual_above_tolerance
    assert jnp.isclose(found.residual, 9e-3)


def test_residual_is_defined_at_the_origin_and_its_norm_is_replaceable():
    field = lambda t, z, x: x - z
    assert force_residual(field, jnp.zeros(2), jnp.array([3.0, 4.0])) == 5.0
    assert force_residual(field, jnp.zeros(2), jnp.array([3.0, 4.0]), scale=10.0) == 0.5
    assert (
        force_residual(field, jnp.zeros(2), jnp.array([3.0, 4.0]), norm=optimistix.max_norm) == 4.0
    )


@given(st.integers(0, 500), st.integers(1, 25), st.sampled_from([3, 10, 40]))
def test_gmres_meets_its_tolerance_and_counts(seed, n, restart):
    a = jnp.eye(n) + 0.5 * jax.random.normal(jax.random.key(seed), (n, n)) / n**0.5
    b = jax.random.normal(jax.random.key(seed + 1), (n,))
    count = []

    def product(v):
        jax.debug.callback(lambda: count.append(1))
        return a @ v

    operator = lineax.FunctionLinearOperator(product, jax.eval_shape(lambda: b))
    out = lineax.linear_solve(operator, b, GMRES(1e-9, restart=restart), throw=False)
    jax.effects_barrier()
    if out.result == lineax.RESULTS.successful:
        assert jnp.linalg.norm(a @ out.value - b) <= 1e-9 * jnp.linalg.norm(b) * (1 + 1e-6)
    else:
        assert out.stats["residual"] > 1e-9
    if restart >= n:
        assert out.result == lineax.RESULTS.successful
        assert out.stats["num_steps"] <= n + 1
        assert jnp.allclose(out.value, jnp.linalg.solve(a, b), atol=1e-6)


def test_gmres_stops_inside_its_cycle_and_handles_breakdown_and_complex():
    n = 30
    a = jnp.eye(n) + 0.3 * jax.random.normal(jax.random.key(0), (n, n)) / n**0.5
    operator = lineax.MatrixLinearOperator(a)
    used = [
        int(lineax.linear_solve(operator, jnp.ones(n), GMRES(tol)).stats["num_steps"])
        for tol in (1e-1, 1e-4, 1e-10)
    ]
    assert used[0] < used[1] < used[2] < 31
    # A Krylov space of dimension 1: the first product already spans the solution.
    out = lineax.linear_solve(
        lineax.MatrixLinearOperator(2.0 * jnp.eye(5)), jnp.ones(5), GMRES(1e-12)
    )
    assert jnp.allclose(out.value, 0.5) and out.stats["num_steps"] == 2
    zero = lineax.linear_solve(operator, jnp.zeros(n), GMRES(1e-8))
    assert not zero.value.any() and zero.stats["num_steps"] == 0
    c = jax.lax.complex(a, jnp.diag(jnp.linspace(0, 1, n)))
    z = lineax.linear_solve(
        lineax.MatrixLinearOperator(c), jnp.ones(n, complex), GMRES(1e-10)
    ).value
    assert jnp.allclose(c @ z, 1.0, atol=1e-8)


def test_gmres_failure_surfaces():
    operator = lineax.MatrixLinearOperator(jnp.diag(jnp.array([1.0, 0.0])))
    out = lineax.linear_solve(operator, jnp.ones(2), GMRES(1e-6), throw=False)
    assert out.result == lineax.RESULTS.stagnation
    assert jnp.isclose(out.stats["residual"], 0.5**0.5)
    with pytest.raises(Exception, match="stagnation"):
        lineax.linear_solve(operator, jnp.ones(2), GMRES(1e-6))


def test_a_failed_adjoint_is_nan_in_its_own_sample_and_raises_when_asked():
    """At x = 0 the state 0 is an equilibrium whose Jacobian is singular in its second component."""
    field = lambda t, z, x: jnp.stack([x - z[0], z[1] ** 2 * 0.0 + 0.0 * x - x * z[1]])
    answer = lambda x, throw: jnp.sum(
        equilibrium(field, jnp.zeros(2), x, solver=Anderson(1e-8), throw=throw).value
    )
    gradients = jax.vmap(jax.grad(lambda x: answer(x, False)))(jnp.array([1.0, 0.0, 2.0]))
    assert jnp.allclose(gradients[jnp.array([0, 2])], 1.0) and jnp.isnan(gradients[1])
    with pytest.raises(Exception, match="its linear system was not solved"):
        jax.grad(lambda x: answer(x, True))(0.0)


def test_newton_with_a_loose_forcing_term_spends_fewer_products_than_scipys_krylov(network):
    field, x, z0 = network
    found = equilibrium(field, z0, x, solver=NewtonKrylov(1e-9))
    assert found.stats["num_steps"] <= 12 and found.stats["field_evaluations"] <= 90


def test_nothing_dense_is_materialised():
    """A state of 2²⁰ numbers has a Jacobian of 8 TiB: forward, implicit gradient and Newton all fit."""
    n = 2**20
    field = lambda t, z, x: x - z + 0.5 * jnp.roll(jnp.tanh(z), 1)
    x = jnp.cos(jnp.arange(n, dtype=jnp.float32))
    value = jax.grad(lambda x: jnp.sum(equilibrium(field, x, x, solver=NewtonKrylov(1e-5)).value))(
        x
    )
    assert jnp.all(jnp.isfinite(value))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Anderson(rtol=-1.0), "`rtol` must be at least 0, got -1.0"),
        (lambda: Anderson(rtol=0.0), "both 0"),
        (lambda: Anderson(rtol=float("nan")), "`rtol`"),
        (lambda: Anderson(rtol=1e-3, window=0), "`window`"),
        (lambda: Anderson(rtol=1e-3, mixing=0.0), "`mixing`"),
        (lambda: NewtonKrylov(rtol=1e-3, forcing=1.5), "`forcing`"),
        (lambda: Picard(step_size=0.0), "`step_size`"),
        (lambda: GMRES(restart=0), "`restart`"),
        (lambda: relax(lambda t, z, x: z, jnp.ones(2)), "exactly one of `steps` and `t1`"),
        (lambda: relax(lambda t, z, x: z, jnp.ones(2), steps=0), "`steps` must be at least 1"),
        (
            lambda: relax(lambda t, z, x: z, jnp.ones(2), steps=3, step=-0.1),
            "`step` must be above 0",
        ),
        (lambda: relax(lambda t, z, x: z, jnp.ones(2), steps=3, temperature=1.0), "go together"),
        (lambda: equilibrium(lambda t, z, x: z[:1], jnp.ones(2)), "same shape and dtype"),
        (lambda: equilibrium(lambda t, z, x: z, jnp.ones(2), max_steps=0), "`max_steps`"),
        (
            lambda: equilibrium(lambda t, z, x: z.astype(jnp.float32), jnp.ones(2)),
            "same shape and dtype",
        ),
    ],
)
def test_misuse_is_refused_with_the_cure(build, message):
    with pytest.raises(ValueError, match=message):
        build()
