"""What the tests of `plots.explorer` make pages of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from textbook import special

from eqjax import fields
from eqjax.stability import Branch, Spectrum, SpectrumResults


class Folded(eqx.Module):
    """`ż = p + z - z³/3`, and a second number that follows the first."""

    p: jax.Array

    def __call__(self, t, z, x):
        return jnp.stack([self.p + z[0] - z[0] ** 3 / 3, z[0] - z[1]])


def folded():
    """The branch of that field, by hand: `p = z³/3 - z`, folds at z = ∓1."""
    z = np.linspace(-2.1, 2.1, 22)
    states = np.stack([z, z], axis=1)
    values = np.stack([1 - z**2, -np.ones_like(z)], axis=1)
    values = -np.sort(-values, axis=1) + 0j
    done = np.ones(values.shape, bool)
    spectra = Spectrum(
        *(
            jnp.asarray(values),
            jnp.asarray(states),
            None,
            jnp.zeros(values.shape),
            None,
            jnp.asarray(done),
        ),
        *(jnp.ones(22, int), jnp.ones(22, int), jnp.zeros(22), None, SpectrumResults.successful),
    )
    points = [(2 / 3, -1.0), (-2 / 3, 1.0)]
    found = [special("fold", p, [u, u], euler="fold") for p, u in points]
    indices = [int(np.searchsorted(z, u)) - 1 for _, u in points]
    found = tuple(type(s)(**(vars(s) | {"index": i})) for s, i in zip(found, indices, strict=True))
    return Branch(
        parameters=jnp.asarray(z**3 / 3 - z),
        states=jnp.asarray(states),
        residuals=jnp.zeros(22),
        spectra=spectra,
        multipliers=None,
        unstable=np.asarray(values.real > 0).sum(axis=1),
        unstable_euler=None,
        reliable=jnp.asarray(done.all(axis=1)),
        special_points=found,
        step=None,
        ended="left the bounds",
    )


def tiny_block():
    key = jax.random.key(3)
    return fields.ThickBlock(8, 2, qknorm=True, key=key), jax.random.normal(key, (6, 8))
