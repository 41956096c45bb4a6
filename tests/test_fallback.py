"""One solver after another, and one precision after another."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from settling import implicit_gradient, rotating, scipy_root

from eqjax.relaxation import (
    RESULTS,
    Anderson,
    Broyden,
    Fallback,
    NewtonKrylov,
    Picard,
    Refine,
    TimeStepping,
    equilibrium,
)

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
