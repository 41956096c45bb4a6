"""Systems of textbooks whose special points are published, written from their equations."""

import equinox as eqx
import jax
import jax.numpy as jnp

from eqjax import fields
from eqjax.stability import SpecialPoint


class Lorenz84(eqx.Module):
    """The extended Lorenz-84 model (Kuznetsov, Meijer & van Veen 2004), z = (X, Y, Z, U)."""

    f: jax.Array = fields.hyperparameter(default=1.6)
    t: jax.Array = fields.hyperparameter(default=0.04)

    def __call__(self, t, z, x):
        a, b, g, d, c = 0.25, 1.0, 0.25, 1.04, 0.987
        x, y, z, u = z
        return jnp.stack(
            [
                -(y**2) - z**2 - a * x + a * self.f - c * u**2,
                x * y - b * x * z - y + g,
                b * x * y + x * z - z,
                -d * u + c * u * x + self.t,
            ]
        )


class TsodyksMarkram(eqx.Module):
    """Synapses that tire and are facilitated (Tsodyks & Markram 1997), z = (E, x, u)."""

    e0: jax.Array = fields.hyperparameter(default=-1.9)
    j: jax.Array = fields.hyperparameter(default=3.07)

    def __call__(self, t, z, _):
        e, x, u = z
        drive = self.j * u * x * e + self.e0
        rate = 1.5 * jnp.log1p(jnp.exp(drive / 1.5))
        return jnp.stack(
            [
                (rate - e) / 0.013,
                (1 - x) / 0.2 - u * x * e,
                (0.3 - u) / 1.5 + 0.3 * (1 - u) * e,
            ]
        )


def special(kind, parameter, state, frequency=0.0, euler="–"):
    """A special point whose place is known."""
    return SpecialPoint(
        parameter=parameter,
        interval=(parameter, parameter),
        state=jnp.array(state),
        flow=kind,
        euler=euler,
        change=0,
        change_euler=0,
        status="converged",
        value=1j * frequency,
        frequency=frequency,
        index=0,
    )
