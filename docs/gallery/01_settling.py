"""A recurrent network settles: how many evaluations of its force each solver takes, from tolerance to tolerance."""

import jax
import jax.numpy as jnp

import eqjax as ej

field = ej.fields.RecurrentField(64, strength=4.0, asymmetry=0.5, key=jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (64,))
solvers = {
    "Picard, step 0.5": lambda rtol: ej.Picard(rtol, step_size=0.5),
    "Anderson": ej.Anderson,
    "Broyden": ej.relaxation.Broyden,
}
curves = {}
for name, solver in solvers.items():
    settle = lambda rtol, solver=solver: ej.equilibrium(field, x, x, solver=solver(rtol))
    found = jax.vmap(settle)(10.0 ** -jnp.arange(1.0, 12.0))
    curves[name] = found.stats["field_evaluations"], found.residual
figure = ej.plots.residuals(curves)
