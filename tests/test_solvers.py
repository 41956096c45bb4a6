"""The further solvers and step control, each against an independent account of what it should do."""

import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
import scipy.linalg
import scipy.optimize

from eqjax import fields
from eqjax.relaxation import (
    RESULTS,
    Anderson,
    BackwardEuler,
    Broyden,
    Fallback,
    IMEXEuler,
    NewtonKrylov,
    OvershootController,
    Picard,
    PseudoTransient,
    Refine,
    TimeStepping,
    equilibrium,
    force_residual,
    relax,
)

FIXED = diffrax.ConstantStepSize()
SOLVERS = {
    "type I": Anderson(1e-9, type=1),
    "broyden": Broyden(1e-9),
    "pseudo-transient": PseudoTransient(1e-9),
    "euler": TimeStepping(1e-9),
    "tsit5": TimeStepping(1e-9, solver=diffrax.Tsit5(), controller=FIXED, step_size=0.5),
    "backward euler": TimeStepping(
        1e-9, solver=BackwardEuler(NewtonKrylov(1e-9)), controller=FIXED, step_size=5.0
    ),
    "fallback": Fallback(Picard(1e-9), PseudoTransient(1e-9), first_steps=5),
}


class Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, z, x):
        return self.matrix @ z + x


class Counted(eqx.Module):
    """A field that counts, on the host, how often it is evaluated."""

    field: eqx.Module
    count: list = eqx.field(static=True)

    def __call__(self, t, z, x):
        jax.debug.callback(lambda: self.count.append(1))
        return self.field(t, z, x)


def rotating(ratio, a=-1.0):
    """J = [[a, -b], [b, a]] with b = ratio·|a|, and an input that puts the fixed point off the origin."""
    b = ratio * abs(a)
    return Linear(jnp.array([[a, -b], [b, a]])), jnp.array([1.0, 2.0])


@pytest.fixture
def network(key):
    field = fields.RecurrentField(12, strength=2.0, asymmetry=0.7, key=key)
    return field, jnp.cos(jnp.arange(12.0)), jnp.sin(jnp.arange(12.0))


def good_broyden(force, y, mixing, steps):
    """The textbook update of a dense Jacobian: the iterates."""
    jacobian, f, iterates = -np.eye(y.size) / mixing, force(y), []
    for _ in range(steps):
        s = np.linalg.solve(jacobian, -f)
        y, old = y + s, f
        f = force(y)
        jacobian += np.outer(f - old - jacobian @ s, s) / (s @ s)
        iterates.append(y)
    return np.array(iterates)


def multisecant(force, y, mixing, steps):
    """Type I of Fang & Saad by dense algebra, the whole history kept."""
    f, ys, fs, iterates = force(y), [], [], []
    for _ in range(steps):
        gamma_part = 0
        if ys:
            dy, df = np.array(ys).T, np.array(fs).T
            gamma_part = (dy + mixing * df) @ np.linalg.solve(dy.T @ df, dy.T @ f)
        new = y + mixing * f - gamma_part
        fresh = force(new)
        ys.append(new - y)
        fs.append(fresh - f)
        y, f = new, fresh
        iterates.append(y)
    return np.array(iterates)


@pytest.mark.parametrize(
    ("solver", "oracle"),
    [
        (Broyden(1e-12, mixing=0.3, ridge=0.0, growth=1e6), good_broyden),
        (Anderson(1e-12, mixing=0.3, ridge=0.0, growth=1e6, type=1), multisecant),
    ],
)
def test_the_iterates_are_those_of_the_dense_method(solver, oracle, network):
    field, x, z0 = network
    steps = 7  # within the windows, so nothing is forgotten
    want = oracle(lambda z: np.asarray(field(0.0, jnp.asarray(z), x)), np.asarray(z0), 0.3, steps)
    residuals = [float(force_residual(field, jnp.asarray(z), x)) for z in want[:-1]]
    found = equilibrium(field, z0, x, solver=solver, max_steps=steps, throw=False)
    assert np.allclose(found.value, want[np.argmin(residuals)], rtol=0, atol=1e-9)


def scipy_root(field, x, z0):
    out = scipy.optimize.root(lambda z: np.asarray(field(0.0, jnp.asarray(z), x)), z0, tol=1e-13)
    assert out.success
    return out.x


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_scipys_root_and_counts(name, network):
    field, x, z0 = network
    count = []
    found = equilibrium(Counted(field, count), z0, x, solver=SOLVERS[name], max_steps=400)
    jax.effects_barrier()
    assert found.result == RESULTS.successful and found.residual <= 1e-9
    assert np.allclose(found.value, scipy_root(field, x, z0), atol=1e-8)
    evaluations, steps = int(found.stats["field_evaluations"]), int(found.stats["num_steps"])
    if name == "backward euler":
        assert evaluations == -1
    elif name in ("pseudo-transient", "fallback"):
        # Products with the Jacobian run no callback, but a linearisation does.
        assert len(count) <= evaluations + steps
    else:
        assert len(count) == evaluations


@pytest.mark.parametrize("name", SOLVERS)
def test_a_bad_sample_leaves_its_neighbours_alone(name, network):
    """In float32, on a pytree, under jit and vmap; to the bit."""
    field, x, z0 = jax.tree.map(lambda a: a.astype(jnp.float32), network)

    def tree_field(t, z, x):
        force = field(t, jnp.concatenate([z["a"].ravel(), z["b"]]), x)
        return {"a": force[:6].reshape(2, 3), "b": force[6:]}

    start = {"a": z0[:6].reshape(2, 3), "b": z0[6:]}
    loose = jax.tree.map(lambda leaf: 1e-5 if leaf == 1e-9 else leaf, SOLVERS[name])
    settle = jax.jit(
        jax.vmap(
            lambda x: equilibrium(tree_field, start, x, solver=loose, max_steps=200, throw=False)
        )
    )
    xs = jnp.stack([x, 2 * x, 3 * x])
    good, bad = settle(xs), settle(xs.at[1].set(jnp.nan))
    assert bool(jnp.all(good.result == RESULTS.successful))
    assert good.residual.dtype == good.value["a"].dtype == jnp.float32
    assert (bad.result == RESULTS.successful).tolist() == [True, False, True]
    for a, b in zip(jax.tree.leaves(good.value), jax.tree.leaves(bad.value), strict=True):
        assert jnp.array_equal(a[0], b[0]) and jnp.array_equal(a[2], b[2])
    counts = [one.stats["field_evaluations"] for one in (good, bad)]
    assert counts[0][0] == counts[1][0] and counts[0][2] == counts[1][2]


@pytest.mark.filterwarnings("ignore:Complex support")
@pytest.mark.parametrize(
    "solver",
    [
        Anderson(1e-9),
        Anderson(1e-9, type=1),
        Broyden(1e-9),
        PseudoTransient(1e-9),
        TimeStepping(1e-9),
    ],
)
def test_complex_states_settle_as_they_are(solver, key):
    """Given to Optimistix directly: `equilibrium` would split them into real and imaginary parts."""
    n = 5
    parts = jax.random.normal(key, (2, n, n)) / n**0.5
    matrix = 0.4 * jax.lax.complex(*parts) - jnp.eye(n, dtype=complex)
    x = jnp.arange(1.0, n + 1).astype(complex) * (1 - 0.5j)
    if isinstance(solver, optimistix.AbstractRootFinder):
        solve = lambda z: optimistix.root_find(lambda z, x: matrix @ z + x, solver, z, x)
    else:
        solve = lambda z: optimistix.fixed_point(lambda z, x: z + matrix @ z + x, solver, z, x)
    assert jnp.allclose(solve(jnp.zeros(n, complex)).value, -jnp.linalg.solve(matrix, x), atol=1e-7)


def test_broyden_and_type_one_settle_where_picard_diverges():
    field, x = rotating(30.0, a=-0.1)
    want = -jnp.linalg.solve(field.matrix, x)
    picard = equilibrium(field, jnp.ones(2), x, solver=Picard(1e-8, step_size=0.5), throw=False)
    assert picard.result != RESULTS.successful
    for solver in (Broyden(1e-8), Anderson(1e-8, type=1)):
        assert jnp.allclose(
            equilibrium(field, jnp.ones(2), x, solver=solver).value, want, atol=1e-6
        )


def abscissa(field, z, x=None):
    return jnp.linalg.eigvals(jax.jacobian(lambda z: field(0.0, z, x))(z)).real.max()


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_pseudo_transient_follows_the_flow_to_a_stable_point(seed):
    """From one start Newton's method lands on an unstable fixed point, pseudo-transient where the flow goes."""
    field = fields.RecurrentField(12, strength=4.0, asymmetry=0.3, key=jax.random.key(seed))
    z0 = 0.2 * jax.random.normal(jax.random.key(seed + 100), (12,))
    x = jnp.full(12, 0.02)
    newton = equilibrium(field, z0, x, solver=NewtonKrylov(1e-9))
    assert abscissa(field, newton.value, x) > 0.4
    found = equilibrium(field, z0, x, solver=PseudoTransient(1e-9))
    assert abscissa(field, found.value, x) < -0.1
    flow = relax(field, z0, x, solver=diffrax.Tsit5(), step=0.1, steps=1500)
    assert jnp.allclose(found.value, flow.value, atol=1e-5)


def test_a_solver_may_find_an_unstable_point_and_relaxing_shows_it():
    """z - z³ and a damped rotation: the origin is a fixed point, unstable in its first component."""
    field = lambda t, z, x: jnp.array([z[0] - z[0] ** 3, -z[1] - 2 * z[2], 2 * z[1] - z[2]])
    for solver in (Anderson(1e-9), NewtonKrylov(1e-9)):
        found = equilibrium(field, jnp.array([0.1, 0.3, -0.2]), solver=solver)
        assert jnp.linalg.norm(found.value) < 1e-8 and abscissa(field, found.value) > 0.9
        moved = relax(field, found.value + 1e-6, step=0.1, steps=300).value
        assert jnp.allclose(jnp.abs(moved), jnp.array([1.0, 0.0, 0.0]), atol=1e-6)
    stable = equilibrium(field, jnp.array([0.9, 0.3, -0.2]), solver=NewtonKrylov(1e-9)).value
    moved = relax(field, stable + 1e-3, step=0.1, steps=300).value
    assert jnp.allclose(moved, stable, atol=1e-8)


# Implicit steps


@pytest.mark.parametrize(
    ("solver", "dtype"),
    [
        (BackwardEuler, jnp.float32),
        (BackwardEuler, jnp.float64),
        (diffrax.ImplicitEuler, jnp.float64),
    ],
)
def test_backward_euler_is_its_closed_form(solver, dtype):
    matrix = np.array([[-2.0, 30.0], [-30.0, -1.0]])
    x, eps = jnp.array([1.0, 2.0], dtype), jnp.finfo(dtype).eps
    want = np.zeros(2)
    for _ in range(7):
        want = np.linalg.solve(np.eye(2) - 0.1 * matrix, want + 0.1 * np.asarray(x))
    settle = lambda x: relax(
        Linear(jnp.asarray(matrix, dtype)),
        jnp.zeros(2, dtype),
        x,
        solver=solver(root_finder=NewtonKrylov(10 * eps)),
        step=0.1,
        steps=7,
    )
    value = jax.jit(jax.vmap(settle))(jnp.stack([x, 2 * x])).value
    assert value.dtype == dtype
    assert np.allclose(value, np.stack([want, 2 * want]), atol=100 * eps)


def test_backward_euler_and_its_gradient_form_no_jacobian():
    """10⁵ numbers would have a Jacobian of 37 GiB. The sum of the fixed point is twice that of x."""
    n = 100_000
    field = lambda t, z, x: x - z + 0.5 * jnp.roll(z, 1)
    x = jnp.cos(jnp.arange(n, dtype=jnp.float32))
    last = lambda x: jnp.sum(relax(field, x, x, solver=BackwardEuler(), step=50.0, steps=4).value)
    program = jax.jit(jax.grad(last)).lower(x).compile()
    assert program.memory_analysis().temp_size_in_bytes < 200 * x.nbytes
    assert jnp.allclose(program(x), 2.0, atol=1e-3)


class Split(fields.AbstractSplitField):
    """A stiff symmetric part and a rotation."""

    stiff: jax.Array
    turn: jax.Array

    def reciprocal(self, t, z, x):
        return -self.stiff * z

    def nonreciprocal(self, t, z, x):
        return self.turn @ z + x


SPLIT = Split(jnp.array([200.0, 3.0]), jnp.array([[0.0, 1.0], [-1.0, 0.0]]))


def test_imex_euler_is_its_closed_form_and_settles_where_euler_diverges():
    x, h, steps = jnp.array([1.0, 2.0]), 0.5, 40
    stiff, turn, want = np.diag(SPLIT.stiff), np.asarray(SPLIT.turn), np.zeros(2)
    for _ in range(steps):
        want = np.linalg.solve(np.eye(2) + h * stiff, want + h * (turn @ want + np.asarray(x)))

    def last(x):
        solver = IMEXEuler(NewtonKrylov(1e-12))
        found = relax(SPLIT, jnp.zeros(2), x, solver=solver, step=h, steps=steps)
        return jnp.sum(found.value), found

    gradient, found = jax.grad(last, has_aux=True)(x)
    assert np.allclose(found.value, want, atol=1e-11) and found.residual < 1e-6
    assert not relax(SPLIT, jnp.zeros(2), x, step=h, steps=steps, throw=False).residual < 1
    assert np.allclose(gradient, np.linalg.solve((stiff - turn).T, np.ones(2)), atol=1e-6)


@pytest.mark.parametrize("solver", [diffrax.KenCarp3, diffrax.Sil3])
def test_diffrax_split_solvers_take_a_split_field(solver):
    x = jnp.array([1.0, 2.0])
    found = relax(
        SPLIT,
        jnp.zeros(2),
        x,
        solver=solver(root_finder=NewtonKrylov(1e-9)),
        controller=diffrax.PIDController(rtol=1e-5, atol=1e-7),
        step=0.01,
        t1=0.5,
    )
    matrix = np.asarray(SPLIT.turn) - np.diag(SPLIT.stiff)
    rest = -np.linalg.solve(matrix, np.asarray(x))
    assert np.allclose(found.value, rest - scipy.linalg.expm(0.5 * matrix) @ rest, atol=1e-5)


# Step control

TOLERANCE = 1e-6


@pytest.mark.parametrize("ratio", [1.0, 3.0, 10.0])
def test_overshoot_control_settles_near_the_best_fixed_step(ratio):
    """Whatever the first step, among them ones that halve to just below the critical step."""
    field, x = rotating(ratio)
    best = 1 / (1 + ratio**2)
    solvers = {
        "best": Picard(TOLERANCE, step_size=best),
        "too large": Picard(TOLERANCE, step_size=3 * best),
        "controlled": TimeStepping(TOLERANCE),
    }
    found = {
        name: equilibrium(field, jnp.zeros(2), x, solver=solver, max_steps=10_000, throw=False)
        for name, solver in solvers.items()
    }
    assert found["too large"].result != RESULTS.successful
    for name in ("best", "controlled"):
        assert found[name].result == RESULTS.successful
        assert jnp.allclose(found[name].value, -jnp.linalg.solve(field.matrix, x), atol=2e-6)
    settle = lambda step: equilibrium(
        field,
        jnp.zeros(2),
        x,
        solver=TimeStepping(TOLERANCE, step_size=step),
        max_steps=10_000,
        throw=False,
    )
    spent = jax.vmap(settle)(best * jnp.array([0.3, 1.0, 1.95, 3.9, 15.6])).stats
    allowed = 3 * int(found["best"].stats["field_evaluations"])
    assert int(found["controlled"].stats["field_evaluations"]) <= allowed
    assert jnp.all(spent["field_evaluations"] <= allowed)


def controlled(field, x, controller, t1, dt0=0.1):
    """A plain Diffrax solve, with the final state of the controller."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Euler(),
        jnp.zeros((), x.dtype),
        jnp.asarray(t1, x.dtype),
        jnp.asarray(dt0, x.dtype),
        jnp.zeros_like(x),
        x,
        stepsize_controller=controller,
        saveat=diffrax.SaveAt(t1=True, controller_state=True),
        throw=False,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_on_a_smooth_field_the_step_ends_at_its_largest(dtype):
    """And stays there at the floor of rounding, where the force no longer falls."""
    field = Linear(-jnp.diag(jnp.linspace(0.2, 1.0, 8, dtype=dtype)))
    out = controlled(field, jnp.ones(8, dtype), OvershootController(), t1=300.0)
    assert out.result == diffrax.RESULTS.successful
    assert jnp.isclose(out.controller_state.step, 1.0)
    assert force_residual(field, out.ys[0], jnp.ones(8, dtype)) < 20 * jnp.finfo(dtype).eps


def test_transient_growth_is_no_overshoot():
    """‖F‖ rises 8-fold on its way to zero, under any step: shrinking would be of no use."""
    field, x = Linear(jnp.array([[-1.0, 20.0], [0.0, -0.5]])), jnp.array([0.0, 1.0])
    found = equilibrium(field, jnp.zeros(2), x, solver=TimeStepping(TOLERANCE))
    assert found.stats["num_steps"] <= 100
    assert controlled(field, x, OvershootController(), t1=40.0).controller_state.step == 1.0


def test_overshoot_at_the_smallest_step_is_reported_and_falls_back():
    """b/a = 100: the critical step is 2e-4."""
    field, x = rotating(100.0)
    want = -jnp.linalg.solve(field.matrix, x)
    out = controlled(field, x, OvershootController(), t1=10.0)
    assert out.result == diffrax.RESULTS.dt_min_reached
    explicit = TimeStepping(TOLERANCE)
    alone = equilibrium(field, jnp.zeros(2), x, solver=explicit, throw=False)
    assert alone.result == RESULTS.dt_min_reached and alone.stats["num_steps"] < 60
    with pytest.raises(Exception, match="minimum step size"):
        equilibrium(field, jnp.zeros(2), x, solver=explicit)
    backward = BackwardEuler(NewtonKrylov(0.1 * TOLERANCE))
    implicit = TimeStepping(TOLERANCE, solver=backward, controller=FIXED, step_size=1.0)
    for then in (Anderson(TOLERANCE), implicit):
        found = equilibrium(field, jnp.zeros(2), x, solver=Fallback(explicit, then))
        assert found.result == RESULTS.successful and found.stats["handed_over"]
        assert jnp.allclose(found.value, want, atol=1e-6)
    # With room below it settles by itself.
    small = TimeStepping(1e-2, controller=OvershootController(min_step=1e-6), step_size=1e-3)
    patient = equilibrium(field, want * 1.1, x, solver=small, max_steps=100_000)
    assert patient.result == RESULTS.successful


def test_a_step_that_is_not_finite_is_taken_again():
    """Heun looks where its first stage leads; this field is not defined above 2."""
    field = lambda t, z, x: jnp.where(z < 2.0, x - z, jnp.nan)
    solver = TimeStepping(1e-6, solver=diffrax.Heun(), step_size=1.0)
    found = equilibrium(field, jnp.full(1, -2.5), jnp.ones(1), solver=solver)
    assert jnp.allclose(found.value, 1.0, atol=2e-6)


# One solver after another


def test_fallback_hands_over_only_what_did_not_settle(network):
    """Samples that met the first solver keep its answer to the bit."""
    field, x, z0 = network
    first = Anderson(1e-8)
    xs = jnp.stack([x, 2 * x, 3 * x])
    steps = 16

    def settle(solver, max_steps=256):
        return jax.jit(
            jax.vmap(
                lambda x: equilibrium(field, z0, x, solver=solver, max_steps=max_steps, throw=False)
            )
        )(xs)

    alone = settle(first, steps)
    met = alone.result == RESULTS.successful
    assert met.any() and not met.all()
    both = settle(Fallback(first, NewtonKrylov(1e-8), first_steps=steps))
    assert jnp.all(both.result == RESULTS.successful)
    assert jnp.array_equal(both.stats["handed_over"], ~met)
    assert jnp.array_equal(both.value[met], alone.value[met])
    evaluations = alone.stats["field_evaluations"]
    # One more for the residual between the two.
    assert jnp.array_equal(both.stats["field_evaluations"][met], evaluations[met] + 1)
    assert jnp.all(both.stats["field_evaluations"][~met] > evaluations[~met] + 1)


def test_fallback_starts_over_when_the_first_solver_made_it_worse():
    spin, x = rotating(30.0)
    diverging = Picard(1e-8, step_size=1.0)
    found = equilibrium(
        spin, jnp.ones(2), x, solver=Fallback(diverging, Anderson(1e-8), first_steps=500)
    )
    alone = equilibrium(spin, jnp.ones(2), x, solver=Anderson(1e-8))
    assert jnp.array_equal(found.value, alone.value)


def implicit_gradient(field, z, x):
    """Of Σ z² with respect to x, by dense algebra."""
    by_z, by_x = jax.jacobian(lambda z, x: field(0.0, z, x), argnums=(0, 1))(z, x)
    return -by_x.T @ jnp.linalg.solve(by_z.T, 2 * z)


def test_fallback_nests_takes_foreign_solvers_and_differentiates(network):
    field, x, z0 = network
    foreign = optimistix.FixedPointIteration(1e-12, 1e-12)
    solver = Fallback(
        foreign, Fallback(Broyden(1e-11), NewtonKrylov(1e-11), first_steps=3), first_steps=4
    )

    def loss(x):
        found = equilibrium(field, z0, x, solver=solver)
        return jnp.sum(found.value**2), found

    gradient, found = jax.grad(loss, has_aux=True)(x)
    assert np.allclose(found.value, scipy_root(field, x, z0), atol=1e-9)
    assert found.stats["field_evaluations"] > 10
    assert jnp.allclose(gradient, implicit_gradient(field, found.value, x), atol=1e-8)
    chord = Fallback(optimistix.Newton(1e-12, 1e-12), Anderson(1e-9), first_steps=20)
    assert equilibrium(field, z0, x, solver=chord).stats["field_evaluations"] == -1
    failing = Fallback(Picard(1e-9), TimeStepping(1e-9), first_steps=3, then_steps=3)
    assert equilibrium(field, z0, x, solver=failing, throw=False).result != RESULTS.successful


# Mixed precision


class Coarse(eqx.Module):
    """A field whose products lose bits under "bfloat16", as on an accelerator; CPUs ignore the request."""

    field: eqx.Module

    def __call__(self, t, z, x):
        if jax.config.jax_default_matmul_precision == "bfloat16":
            z = z.astype(jnp.bfloat16).astype(z.dtype)
        return self.field(t, z, x)


def test_refinement_settles_coarsely_then_finely(network):
    field, x, z0 = network
    coarse = Coarse(field)
    solver = Anderson(1e-9)
    settle = lambda precision, x=x: equilibrium(
        coarse, z0, x, solver=solver, precision=precision, throw=False
    )
    floor = settle("bfloat16")
    assert floor.result != RESULTS.successful and 1e-5 < floor.residual < 1e-1
    plain, refined = settle("highest"), settle(Refine("bfloat16", rtol=3e-2))
    assert refined.result == RESULTS.successful
    assert jnp.allclose(refined.value, plain.value, atol=1e-8)
    stats = refined.stats
    fine = stats["field_evaluations"] - stats["coarse_evaluations"]
    assert stats["coarse_evaluations"] > 0 and fine < plain.stats["field_evaluations"]
    gradient = jax.grad(lambda x: jnp.sum(settle(Refine(rtol=3e-2), x).value ** 2))(x)
    assert jnp.allclose(gradient, implicit_gradient(field, plain.value, x), atol=1e-7)
    chain = Fallback(Picard(1e-9, step_size=0.3), NewtonKrylov(1e-9), first_steps=4)
    found = equilibrium(coarse, z0, x, solver=chain, precision=Refine(rtol=3e-2))
    assert jnp.allclose(found.value, plain.value, atol=1e-8)


@pytest.mark.parametrize("throw", [True, False])
def test_every_product_of_a_settling_and_its_gradient_is_at_the_asked_precision(throw):
    weight, z = jnp.eye(4), jnp.ones((4, 4))
    for solver in (Anderson(1e-3), NewtonKrylov(1e-3)):
        loss = lambda w, solver=solver: jnp.sum(
            equilibrium(lambda t, z, x: jnp.tanh(z @ x) - z, z, w, solver=solver, throw=throw).value
        )
        program = str(jax.make_jaxpr(jax.grad(loss))(weight))
        products = re.findall(r"dot_general\[(.*?)\] ", program, re.S)
        assert products and all("HIGHEST" in product for product in products)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Anderson(1e-3, type=3), "`type`"),
        (lambda: Broyden(rtol=1e-3, window=0), "`window`"),
        (lambda: PseudoTransient(rtol=1e-3, forcing=2.0), "`forcing`"),
        (lambda: PseudoTransient(rtol=1e-3, step_size=1e-9), "`min_step`"),
        (lambda: TimeStepping(rtol=1e-3, step_size=0.0), "`step_size`"),
        (lambda: TimeStepping(1e-3, solver=IMEXEuler()), "one ODE term"),
        (lambda: OvershootController(growth=0.9), "`growth`"),
        (lambda: OvershootController(shrink=1.5), "`shrink`"),
        (lambda: OvershootController(smoothing=1.0), "`smoothing`"),
        (lambda: OvershootController(min_step=2.0), "`min_step`"),
        (lambda: OvershootController(patience=0), "`patience`"),
        (lambda: Fallback(Picard(1e-3), Picard(1e-3), first_steps=0), "`first_steps`"),
        (lambda: Refine(rtol=0.0), "both 0"),
        (
            lambda: relax(lambda t, z, x: -z, jnp.ones(2), solver=IMEXEuler(), steps=3),
            "AbstractSplitField",
        ),
        (
            lambda: relax(
                SPLIT,
                jnp.ones(2),
                solver=IMEXEuler(),
                steps=3,
                temperature=1.0,
                key=jax.random.key(0),
            ),
            "`temperature`",
        ),
    ],
)
def test_misuse_is_refused_with_the_cure(build, message):
    with pytest.raises(ValueError, match=message):
        build()
