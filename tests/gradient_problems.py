"""Small problems whose gradients are known, for every test of estimators."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqjax import analytic, fields
from eqjax.analytic import squared_error
from eqjax.gradients import AsymEP, DyadicEP, HolomorphicEP, Nudge, OracleAdjoint, SharedAdjoint
from eqjax.relaxation import (
    GMRES,
    Anderson,
    NewtonKrylov,
    equilibrium,
)

TIGHT = Anderson(rtol=1e-12)


class Linear(fields.AbstractForceField):
    """`F = A z + x`, the non-normal example of the reference: `A = [[-2, 1], [0, -1]]`."""

    def __call__(self, t, z, x):
        return jnp.array([[-2.0, 1.0], [0.0, -1.0]]) @ z + x


class Biased(fields.AbstractEquilibriumModel):
    """θ drives the field *and* enters the cost: `½‖s - y‖² + 0.1 ‖θ‖²`."""

    field: Linear
    theta: jax.Array

    def encode(self, inputs):
        return self.theta + 0.0 * inputs

    def initial(self, x):
        return jnp.zeros_like(x)

    def decode(self, z):
        return z, self.theta


def biased_cost(outputs, y):
    z, theta = outputs
    return 0.5 * jnp.sum((z - y) ** 2) + 0.1 * jnp.sum(theta**2)


BIASED = Biased(Linear(), jnp.array([0.3, -0.2]))
BIASED_BATCH = (jnp.zeros((1, 2)), jnp.array([[-0.4, 0.7]]))
EXACT = np.array([0.285, -0.715])


def network(n=6, seed=0, **settings):
    keys = jax.random.split(jax.random.key(seed), 4)
    return fields.EquilibriumModel(
        encoder=eqx.nn.Linear(3, n, key=keys[0]),
        field=fields.RecurrentField(n, strength=1.5, asymmetry=0.8, key=keys[1], **settings),
        decoder=eqx.nn.Linear(n, 2, key=keys[2]),
    ), (jax.random.normal(keys[3], (5, 3)), jnp.cos(jnp.arange(10.0)).reshape(5, 2))


def finite_difference(f, model, h=1e-5):
    """Directional derivative of `f(model)` along a fixed direction of everything that trains."""
    trained, held = eqx.partition(model, fields.trainable(model))
    leaves, tree = jax.tree.flatten(trained)
    direction = [
        jnp.cos(jnp.arange(a.size, dtype=a.dtype) + i).reshape(a.shape)
        for i, a in enumerate(leaves)
    ]

    def at(s):
        moved = [a + s * d for a, d in zip(leaves, direction, strict=True)]
        return f(eqx.combine(jax.tree.unflatten(tree, moved), held))

    return (at(h) - at(-h)) / (2 * h), direction


def along(grads, direction):
    return sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grads), direction, strict=True))


def equilibrium_loss(model, loss, batch):
    def one(u, y):
        x = model.encode(u)
        z = equilibrium(model.field, model.initial(x), x, solver=NewtonKrylov(1e-13), throw=False)
        return loss(model.decode(z.value), y)

    return jnp.mean(jax.vmap(one)(*batch))


ORACLE = OracleAdjoint(free=TIGHT, adjoint_solver=GMRES(1e-12))
AT_EQUILIBRIUM = {
    "oracle": ORACLE,
    "asymep": AsymEP(free=TIGHT, nudged=Anderson(1e-10)),
    "shared": HolomorphicEP(
        free=TIGHT, nudged=Nudge(Anderson(1e-10), contrast=SharedAdjoint()), points=3
    ),
    "dyadic": DyadicEP(free=TIGHT),
}


class Affine(eqx.Module):
    """A map that takes complex states."""

    weight: jax.Array

    def __call__(self, z):
        return analytic.matmul(z.reshape(1, -1), self.weight)[0]


class Flat(eqx.Module):
    """Reads the first array of the state (of a memory, the visible neurons: its energy does not fix the rest)."""

    inner: Affine

    def __call__(self, z):
        return self.inner(jax.tree.leaves(z)[0].ravel())


def rms_error(estimator, truth, model, batch, seeds):
    def error(key):
        estimate = estimator(model, squared_error, batch, key=key)
        gaps = jax.tree.map(lambda g, t: jnp.sum((g - t) ** 2), estimate.grads, truth)
        variance = estimate.variance
        return sum(jax.tree.leaves(gaps)), jnp.nan if variance is None else variance

    squares, variances = jax.lax.map(error, jax.random.split(jax.random.key(7), seeds))
    return float(jnp.mean(squares)) ** 0.5, float(jnp.mean(variances)) ** 0.5
