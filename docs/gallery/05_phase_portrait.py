"""A neuron of two variables that fires: nullclines, the cycle, and the resting state that it leaves."""

import diffrax
import jax.numpy as jnp

import eqjax as ej

field = ej.fields.FitzHughNagumo(current=jnp.asarray(0.5))
rest = ej.equilibrium(field, jnp.zeros(2), solver=ej.NewtonKrylov(1e-12)).value
settings = {"solver": diffrax.Tsit5(), "step": 0.1}
on_cycle = ej.relax(field, rest + 0.1, steps=2000, **settings).value
every = diffrax.SaveAt(t0=True, steps=True)
cycle = ej.relax(field, on_cycle, steps=420, saveat=every, **settings).trajectory
curves = {"cycle": cycle, "at rest, unstable": rest}
figure = ej.plots.phase_portrait(field, ((-2.5, 2.5), (-1.0, 2.0)), curves=curves)
