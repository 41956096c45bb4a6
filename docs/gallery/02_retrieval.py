"""A Hopfield network completes what it is shown, and its energy falls at every step."""

import jax
import jax.numpy as jnp

import eqjax as ej

n, keys = 400, jax.random.split(jax.random.key(0), 3)
patterns = jax.random.rademacher(keys[0], (24, n), float)
network = ej.fields.BinaryHopfield(ej.fields.hebb(patterns))
wrong = jax.random.bernoulli(keys[1], 0.25, (5, n))
path = [jnp.where(wrong, -patterns[:5], patterns[:5])]
for key in jax.random.split(keys[2], 4):
    sweep = jax.vmap(ej.fields.Asynchronous().sweep, in_axes=(None, 0, 0))
    path.append(sweep(network, path[-1], jax.random.split(key, 5)))
energies = jax.vmap(jax.vmap(network.energy))(jnp.stack(path, axis=1)) / n
rows = {"stored": patterns[:5], "cue": path[0], "recalled": path[-1]}
figure = ej.plots.recall({name: s.reshape(5, 20, 20) for name, s in rows.items()}, energies)
