"""Oscillators of many frequencies fall into step as their coupling grows, as the theory of Kuramoto tells."""

import diffrax
import jax
import jax.numpy as jnp

import eqjax as ej

frequencies = jnp.tan(
    jnp.pi * ((jnp.arange(500) + 0.5) / 500 - 0.5)
)  # a Lorentzian of half-width 1
phases = jax.random.uniform(jax.random.key(0), (500,), maxval=6.28)
order = lambda t, z, x: jnp.abs(ej.fields.order_parameter(z))
late = diffrax.SaveAt(subs=diffrax.SubSaveAt(ts=jnp.linspace(40, 60, 100), fn=order))
settings = {"solver": diffrax.Heun(), "step": 0.1, "steps": 600, "saveat": late}
run = lambda k: ej.relax(ej.fields.Kuramoto(frequencies, k), phases, **settings).trajectory.mean()
couplings, k = jnp.linspace(0.5, 6, 12), jnp.linspace(2, 6, 200)
theory = {"theory, √(1 - 2/K)": (k, jnp.sqrt(1 - 2 / k))}
figure = ej.plots.order_parameter({"500": (couplings, jax.vmap(run)(couplings))}, theory=theory)
