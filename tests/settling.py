"""What the tests of settling share: fields, and their roots and gradients had another way."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from toys import Linear

from eqjax import fields


def rotating(ratio, a=-1.0):
    """J = [[a, -b], [b, a]] with b = ratio·|a|, and an input that puts the fixed point off the origin."""
    b = ratio * abs(a)
    return Linear(jnp.array([[a, -b], [b, a]])), jnp.array([1.0, 2.0])


class Split(fields.AbstractSplitField):
    """A stiff symmetric part and a rotation."""

    stiff: jax.Array
    turn: jax.Array

    def reciprocal(self, t, z, x):
        return -self.stiff * z

    def nonreciprocal(self, t, z, x):
        return self.turn @ z + x


SPLIT = Split(jnp.array([200.0, 3.0]), jnp.array([[0.0, 1.0], [-1.0, 0.0]]))


def scipy_root(field, x, z0):
    out = scipy.optimize.root(lambda z: np.asarray(field(0.0, jnp.asarray(z), x)), z0, tol=1e-13)
    assert out.success
    return out.x


def implicit_gradient(field, z, x):
    """Of Σ z² with respect to x, by dense algebra."""
    by_z, by_x = jax.jacobian(lambda z, x: field(0.0, z, x), argnums=(0, 1))(z, x)
    return -by_x.T @ jnp.linalg.solve(by_z.T, 2 * z)
