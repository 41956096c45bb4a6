"""Gradients of one asymmetric network without backpropagation, beside the exact one: error, adjoint residual and cost."""

import equinox as eqx
import jax

import eqjax as ej

a, b, c, d = jax.random.split(jax.random.key(0), 4)
field = ej.fields.RecurrentField(8, strength=1.5, asymmetry=0.8, key=a)
model = ej.EquilibriumModel(eqx.nn.Linear(3, 8, key=b), field, eqx.nn.Linear(8, 2, key=c))
batch = jax.random.normal(d, (4, 3)), jax.random.normal(a, (4, 2))
free = {"free": ej.Anderson(1e-10)}
exact = ej.OracleAdjoint(**free, adjoint_solver=ej.GMRES(1e-10))
others = [ej.AsymEP(**free), ej.HolomorphicEP(**free), ej.VectorFieldEP(**free), ej.BPTT(steps=20)]
table = ej.compare(model, ej.squared_error, batch, [exact, *others])
print(table)
figure = ej.plots.comparison(table)
