"""A hundred integrate-and-fire neurons, a fifth of them inhibiting, and the rates at which they fire."""

import jax
import jax.numpy as jnp

import eqjax as ej
from eqjax import fields

a, b = jax.random.split(jax.random.key(0))
strength = jnp.where(jnp.arange(100) < 80, 3.0, -15.0)
weight = jnp.where(jax.random.bernoulli(a, 0.1, (100, 100)), strength, 0.0)
neurons = fields.LeakyIntegrateAndFire(current=jnp.asarray(12.0))
network = fields.SpikingNetwork(neurons, weight, fields.ExponentialSynapse())
start, scheme = 10 * jax.random.uniform(b, (100,)), ej.relaxation.FixedStep(0.1)
train = ej.relaxation.fire(network, start, t1=300.0, capacity=5000, scheme=scheme)
groups = {"exciting": 80, "inhibiting": 20}
figure = ej.plots.raster(train, duration=300.0, groups=groups)
