"""One loop for a whole batch: nothing is copied, nobody waits for stragglers who need not, and roots are differentiated."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix
import pytest
from scipy.optimize import brentq

from eqjax.relaxation import (
    GMRES,
    RESULTS,
    Anderson,
    Broyden,
    Fallback,
    NewtonKrylov,
    Picard,
    Quorum,
    Refine,
    equilibrium,
    relax,
    with_tolerance,
)

N, BATCH = 6, 4


def equations(jaxpr):
    """All of them, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def settled(solver):
    return lambda x: equilibrium(lambda t, z, x: x - z, x, x, solver=solver, throw=False).value


def product_solved(x):
    solver = GMRES(1e-8, restart=4)
    operator = lx.MatrixLinearOperator(jnp.diag(x))
    return solver.compute(solver.init(operator, {}), x, {})[0]


@pytest.mark.parametrize(
    ("solve", "rows"),
    [
        (settled(Anderson(1e-8, window=5)), 10),
        (settled(Broyden(1e-8, window=5)), 10),
        (product_solved, 5),
    ],
)
def test_a_batch_copies_no_history_and_asks_one_question(solve, rows):
    program = jax.make_jaxpr(jax.vmap(solve))(jnp.ones((BATCH, N)))
    history = (BATCH, rows, N)
    seen = list(equations(program.jaxpr))
    loops = [equation for equation in seen if equation.primitive.name == "while"]
    assert history in [var.aval.shape for loop in loops for var in loop.outvars]
    for equation in seen:
        if equation.primitive.name in ("select_n", "scatter"):
            assert all(var.aval.shape != history for var in equation.outvars)
    for loop in loops:
        assert loop.params["cond_jaxpr"].out_avals[0].shape == ()


@pytest.mark.parametrize(
    "solver", [Anderson(1e-10), NewtonKrylov(1e-10), Picard(1e-10, step_size=0.5)]
)
def test_each_sample_takes_the_steps_it_takes_alone(solver):
    settle = lambda x: equilibrium(
        lambda t, z, x: x - z - 0.3 * x * jnp.sin(3 * z),
        jnp.zeros(N),
        x,
        solver=solver,
        throw=False,
    )
    xs = jnp.linspace(0.1, 1.0, 3)[:, None] * jnp.ones((1, N))
    together = jax.vmap(settle)(xs)
    for i, x in enumerate(xs):
        alone = settle(x)
        assert jnp.allclose(together.value[i], alone.value, rtol=0, atol=1e-12)
        for name in ("field_evaluations", "num_steps"):
            assert together.stats[name][i] == alone.stats[name]


def test_a_quorum_leaves_stragglers_behind():
    rates = jnp.array([1.0, 0.8, 0.6, 0.01])
    field = lambda t, z, rate: rate * (1 - z)
    plain = Picard(1e-6, step_size=0.5)

    def settle(solver, rates):
        return jax.vmap(
            lambda rate: equilibrium(
                field, jnp.zeros(2), rate, solver=solver, max_steps=4000, throw=False
            )
        )(rates)

    all_of_them = settle(plain, rates)
    some = settle(Quorum(plain, 0.75), rates)
    assert (some.result == RESULTS.successful).tolist() == [True, True, True, False]
    assert jnp.array_equal(some.value[:3], all_of_them.value[:3])
    assert some.stats["num_steps"][3] == some.stats["num_steps"][2] < 100
    assert all_of_them.stats["num_steps"][3] > 1000
    alone = settle(Quorum(plain, 0.75), rates[3:])
    assert (alone.result == RESULTS.successful).all()


def test_a_quorum_passes_tolerances_on_and_refuses_misuse():
    tightened = with_tolerance(Quorum(Anderson(1e-3)), lambda rtol, atol: (0.1 * rtol, atol))
    assert jnp.isclose(tightened.rtol, 1e-4) and tightened.settled == 0.95
    for solver, settled in (
        (optimistix.FixedPointIteration(1e-3, 1e-3), 0.9),
        (Anderson(1e-3), 0.0),
        (Anderson(1e-3), 1.1),
    ):
        with pytest.raises(ValueError, match="`solver`|`settled`"):
            Quorum(solver, settled)


@pytest.mark.parametrize(
    ("solver", "throw"),
    [
        (Anderson(1e-12), False),
        (NewtonKrylov(1e-12), True),
        (Fallback(Picard(1e-12), NewtonKrylov(1e-12), 3), False),
    ],
)
def test_a_root_has_all_its_derivatives(solver, throw):
    """z³ = p at p = 2: z = p^⅓, and so dz/dp and d²z/dp², backwards and forwards."""

    def root(p):
        field = lambda t, z, x: p - z**3
        return equilibrium(field, jnp.asarray(1.0), solver=solver, throw=throw).value

    second = -2 / 9 * 2 ** (-5 / 3)
    assert jnp.isclose(jax.grad(root)(2.0), 2 ** (-2 / 3) / 3, rtol=1e-8)
    for derivative in (
        jax.grad(jax.grad(root)),
        jax.jacfwd(jax.jacfwd(root)),
    ):
        assert jnp.isclose(derivative(2.0), second, rtol=1e-8)


def test_a_penalty_on_a_derivative_is_differentiated():
    """A force that closes over what is differentiated, and a Python number as input."""

    def penalty(p):
        field = lambda t, z, x: p * x - z**3 - z
        state = lambda x: (
            equilibrium(field, jnp.asarray(1.0), x, solver=NewtonKrylov(1e-12), throw=False).value
        )
        return jax.grad(state)(1.3) ** 2

    def by_hand(p):
        z = brentq(lambda z: p * 1.3 - z**3 - z, -5, 5, xtol=1e-15)
        return (p / (3 * z * z + 1)) ** 2

    want = (by_hand(1.7 + 1e-5) - by_hand(1.7 - 1e-5)) / 2e-5
    assert jnp.isclose(jax.grad(penalty)(1.7), want, rtol=1e-7)


def test_where_an_adjoint_fails_its_sample_alone_is_nan():
    """In both modes: J = 0 at z = 0, where the second sample settles."""

    def settled(p, start):
        field = lambda t, z, x: p * (start - z) * jnp.where(start == 0, z, 1)
        return equilibrium(field, start, solver=Picard(1e-8), throw=False).value

    starts, p = jnp.array([1.0, 0.0]), jnp.ones(2)
    for one in (jax.grad(settled), jax.jacfwd(settled)):
        found = jax.vmap(one)(p, starts)
        assert found[0] == 0 and jnp.isfinite(found[0])


def test_a_system_that_is_solved_waits_for_none():
    """GMRES on a batch: every sample is charged its own products."""
    matrices = jnp.stack([jnp.eye(N), jnp.eye(N) + 0.4 * jnp.tri(N, dtype=float)])
    solver = GMRES(1e-10)

    def solve(matrix):
        found = lx.linear_solve(lx.MatrixLinearOperator(matrix), jnp.ones(N), solver, throw=False)
        return found.value, found.stats["num_steps"]

    values, products = jax.vmap(solve)(matrices)
    assert jnp.allclose(jax.vmap(jnp.matmul)(matrices, values), 1, atol=1e-9)
    assert products[0] < products[1]
    assert [int(solve(matrix)[1]) for matrix in matrices] == products.tolist()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("solver", [Anderson(1e-2), Broyden(1e-2), NewtonKrylov(1e-2)])
def test_short_dtypes_settle(dtype, solver):
    x = jnp.linspace(0.5, 1.0, 3).astype(dtype)
    found = equilibrium(lambda t, z, x: x - 2 * z, jnp.zeros(3, dtype), x, solver=solver)
    assert found.value.dtype == dtype
    assert jnp.allclose(found.value.astype(float), 0.5 * x.astype(float), rtol=0.02)


def test_a_state_of_integers_is_refused():
    with pytest.raises(ValueError, match="`z0` has a leaf of dtype int"):
        equilibrium(lambda t, z, x: 1 - z, jnp.zeros(3, int))


def test_it_compiles_under_filter_jit_with_a_closure():
    """As a user writes it, twice differentiated within a program."""

    @eqx.filter_jit
    def curvature(p):
        root = lambda p: equilibrium(lambda t, z, x: p - z**3, jnp.asarray(1.0)).value
        return jax.hessian(root)(p)

    assert jnp.isclose(curvature(jnp.asarray(2.0)), -2 / 9 * 2 ** (-5 / 3), rtol=1e-3)


def test_a_singular_equilibrium_is_named():
    """z₀ + z₁ is conserved: where it settles depends on where it began."""

    def first(x, throw):
        field = lambda t, z, x: jnp.stack([z[1] - x * z[0], x * z[0] - z[1]])
        start = jnp.array([2.0, 0.0])
        return equilibrium(field, start, x, solver=NewtonKrylov(1e-10), throw=throw).value[0]

    assert jnp.isnan(jax.grad(first)(3.0, False))
    with pytest.raises(Exception, match="conserved quantity"):
        jax.grad(first)(3.0, True)


@pytest.mark.parametrize("precision", ["highest", Refine(rtol=1e-2)])
def test_where_it_began_is_told_or_matters_not(precision):
    """z* = (2 + ...)/(1 + x) of the sum of the start: not 0. Regular, it is 0, and a direction that conserves too."""

    def settled(start, leak):
        field = lambda t, z, x: jnp.stack([z[1] - 3 * z[0], 3 * z[0] - z[1]]) - leak * z
        solver = NewtonKrylov(1e-10)
        return equilibrium(field, start, solver=solver, throw=False, precision=precision).value

    start, first = jnp.array([2.0, 0.0]), lambda *a: settled(*a)[0]
    assert jnp.isnan(jax.grad(first)(start, 0.0)).all()
    if precision == "highest":
        push = jax.jit(lambda v, leak: jax.jvp(lambda z: settled(z, leak), (start,), (v,))[1])
        assert jnp.isnan(push(start, 0.0)).all()
        assert not push(jnp.array([1.0, -1.0]), 0.0).any() and not push(start, 1.0).any()


def test_relax_twice_in_reverse_says_what_to_do():
    def end(p):
        field = lambda t, z, x: p - z**3
        return jnp.sum(jax.vmap(lambda z: relax(field, z, steps=2).value)(jnp.ones(2)))

    with pytest.raises(ValueError, match="DirectAdjoint"):
        jax.eval_shape(jax.grad(jax.grad(end)), 1.3)
    # Forwards over reverse there is nothing to refuse.
    jax.eval_shape(jax.jacfwd(jax.grad(end)), 1.3)
