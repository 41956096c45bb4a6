"""A field whose cycles are known, and branches of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqjax.stability import CyclePoint, cycle_continuation, periodic_orbit


class Ring(eqx.Module):
    """`ṙ = p r + r³ - r⁵`, `θ̇ = 1 + c r²`: cycles where `p = r⁴ - r²`, of period `2π / (1 + c r²)`, fold at p = -1/4."""

    p: jax.Array
    shear: jax.Array

    def __call__(self, t, z, x):
        square = jnp.sum(z * z)
        growth = self.p + square - square**2
        return growth * z + (1 + self.shear * square) * jnp.stack([-z[1], z[0]])


def ring_orbit(p, steps):
    square = (1 + np.sqrt(1 + 4 * p)) / 2
    field = Ring(jnp.asarray(p), jnp.asarray(0.2))
    guess = jnp.array([np.sqrt(square), 0.0])
    period = 2 * np.pi / (1 + 0.2 * square)
    return field, periodic_orbit(field, guess, period=period, steps=steps)


def ring_branch():
    """From a stable cycle through a fold to the Hopf point."""
    return cycle_continuation(
        *ring_orbit(0.5, 300),
        where=lambda f: f.p,
        bounds=(-0.5, 0.6),
        backwards=True,
        steps=300,
    )


def special(kind, profile, parameter=0.0, frequency=0.0, size=None):
    """A known cycle as a special point of a branch by collocation; `size`: of its states, without a phase."""
    return CyclePoint(
        parameter=parameter,
        interval=(parameter, parameter),
        state=profile.nodes[0, :size],
        period=float(profile.period),
        amplitude=1.0,
        type=kind,
        change=1,
        status="converged",
        multiplier=complex(np.exp(2j * np.pi * frequency)),
        frequency=frequency,
        index=0,
        profile=profile,
    )
