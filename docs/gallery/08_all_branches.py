"""Two cells that excite one another: all branches of their fixed points, from one call."""

import equinox as eqx
import jax
import jax.numpy as jnp

import eqjax as ej


class Cells(eqx.Module):
    gain: jax.Array

    def __call__(self, t, z, x):
        return -z + self.gain * jnp.tanh(z) + 0.3 * jnp.tanh(z[::-1])


settings = {"where": lambda field: field.gain, "bounds": (0.5, 1.8), "depth": 2}
found = ej.stability.diagram(Cells(jnp.asarray(0.5)), jnp.zeros(2), **settings)
figure = ej.plots.diagram(found, value=lambda z: z[0], labels=("gain", "first cell"))
