"""The further solvers, each against an independent account of what it should do."""

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from settling import SPLIT, rotating, scipy_root
from toys import Counted

from eqjax import fields
from eqjax.relaxation import (
    RESULTS,
    Anderson,
    AndersonTypeI,
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
    "type I": AndersonTypeI(1e-9),
    "broyden": Broyden(1e-9),
    "pseudo-transient": PseudoTransient(1e-9),
    "euler": TimeStepping(1e-9),
    "tsit5": TimeStepping(1e-9, solver=diffrax.Tsit5(), controller=FIXED, step_size=0.5),
    "backward euler": TimeStepping(
        1e-9, solver=BackwardEuler(NewtonKrylov(1e-9)), controller=FIXED, step_size=5.0
    ),
    "fallback": Fallback(Picard(1e-9), PseudoTransient(1e-9), first_steps=5),
}


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
        (AndersonTypeI(1e-12, mixing=0.3, ridge=0.0, growth=1e6), multisecant),
    ],
)
def test_the_iterates_are_those_of_the_dense_method(solver, oracle, network):
    field, x, z0 = network
    steps = 7  # within the windows, so nothing is forgotten
    want = oracle(lambda z: np.asarray(field(0.0, jnp.asarray(z), x)), np.asarray(z0), 0.3, steps)
    residuals = [float(force_residual(field, jnp.asarray(z), x)) for z in want[:-1]]
    found = equilibrium(field, z0, x, solver=solver, max_steps=steps, throw=False)
    assert np.allclose(found.value, want[np.argmin(residuals)], rtol=0, atol=1e-9)


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
    neighbours = (jax.tree.map(lambda leaf: leaf[::2], found.value) for found in (good, bad))
    chex.assert_trees_all_equal(*neighbours, strict=True)
    counts = [one.stats["field_evaluations"] for one in (good, bad)]
    assert counts[0][0] == counts[1][0] and counts[0][2] == counts[1][2]


@pytest.mark.filterwarnings("ignore:Complex support")
@pytest.mark.parametrize(
    "solver",
    [
        Anderson(1e-9),
        AndersonTypeI(1e-9),
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
    for solver in (Broyden(1e-8), AndersonTypeI(1e-8)):
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


@pytest.mark.parametrize(
    ("build", "message"),
    [
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
