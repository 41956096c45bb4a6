"""A cycle is born at the Hopf point of the Brusselator, and grows: amplitude, period and multipliers along its branch."""

import jax.numpy as jnp

import eqjax as ej
from eqjax import stability

field, b = ej.fields.Brusselator(b=jnp.asarray(1.5)), lambda field: field.b
branch = stability.continuation(field, jnp.array([1.0, 1.5]), where=b, bounds=(1.5, 2.5))
(hopf,) = branch.special_points  # at B = 1 + A²
born = stability.switch(field, branch, hopf, where=b)
cycles = stability.cycle_continuation(*born, where=b, bounds=(1.9, 3.0))
figure = ej.plots.cycles(cycles, label="B")
