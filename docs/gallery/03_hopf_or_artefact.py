"""The steps of Euler oscillate long before the flow does: one branch tells the Hopf point from the artefact."""

import equinox as eqx
import jax
import jax.numpy as jnp

import eqjax as ej


class Pair(eqx.Module):
    gain: jax.Array

    def __call__(self, t, z, x):
        weight = jnp.array([[1.25, -1.0], [1.0, 1.25]])
        return -z + self.gain * (weight @ jnp.tanh(z)) + jnp.array([0.2, 0.0])


settings = {"where": lambda field: field.gain, "bounds": (0.1, 1.2), "step": 1.0}
branch = ej.stability.continuation(Pair(jnp.asarray(0.1)), jnp.zeros(2), **settings)
figure = ej.plots.branch(branch, labels=("gain", "‖z‖"))
