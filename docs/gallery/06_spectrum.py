"""Eigenvalues of a settled transformer block, beside the line where its flow loses them and the circle where Euler does."""

import jax

import eqjax as ej

block = ej.fields.ThickBlock(width=16, heads=2, attention_gain=4.0, key=jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (8, 16))
settled = ej.equilibrium(block, x, x, solver=ej.Anderson(1e-10), throw=False)
modes = ej.stability.spectrum(block, settled.value, x, k=24, step=0.5, key=jax.random.key(2))
figure = ej.plots.spectrum(modes)
