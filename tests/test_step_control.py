"""Step control: the step grows to what the field allows, and overshoot is told from transient growth."""

import diffrax
import jax
import jax.numpy as jnp
import pytest
from settling import rotating
from toys import Linear

from eqjax.relaxation import (
    RESULTS,
    Anderson,
    BackwardEuler,
    Fallback,
    NewtonKrylov,
    OvershootController,
    Picard,
    TimeStepping,
    equilibrium,
    force_residual,
)

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
    implicit = TimeStepping(
        TOLERANCE, solver=backward, controller=diffrax.ConstantStepSize(), step_size=1.0
    )
    for then in (Anderson(TOLERANCE), implicit):
        found = equilibrium(field, jnp.zeros(2), x, solver=Fallback(explicit, then))
        assert found.result == RESULTS.successful and found.stats["handed_over"]
        assert jnp.allclose(found.value, want, atol=1e-6)
    # With room below it settles by itself.
    fine = OvershootController(min_step=1e-6)
    small = TimeStepping(1e-2, controller=fine, step_size=1e-3, scale=1.0)
    patient = equilibrium(field, want * 1.1, x, solver=small, max_steps=100_000)
    assert patient.result == RESULTS.successful


def test_a_step_that_is_not_finite_is_taken_again():
    """Heun looks where its first stage leads; this field is not defined above 2."""
    field = lambda t, z, x: jnp.where(z < 2.0, x - z, jnp.nan)
    solver = TimeStepping(1e-6, solver=diffrax.Heun(), step_size=1.0)
    found = equilibrium(field, jnp.full(1, -2.5), jnp.ones(1), solver=solver)
    assert jnp.allclose(found.value, 1.0, atol=2e-6)
