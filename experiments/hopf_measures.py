"""What `hopf_or_artefact.py` measures on windows of text: long relaxations, their frequencies, spectra of the field's parts."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqjax as ej
from eqjax import stability
from eqjax.recipes._examine import settle

MARGINAL = 1e-3  # force residual after a long relaxation, above which a window has not settled
LONG, TAIL = 2000, 1024
KNOCKOUT = (1.0, 0.7, 0.4, 0.2, 0.0)
STEPS = (0.4, 0.2, 0.1, 0.05, 0.02)
HORIZON = 60.0


def with_gain(model, gain):
    where = lambda m: m.field.attention_gain
    return eqx.tree_at(where, model, jnp.asarray(gain, where(model).dtype))


@eqx.filter_jit
def long_relaxation(model, inputs, step, steps: int):
    """Euler from the initial state: cross-entropy at the end, the residual and one coordinate of the state along the way."""

    def one(inputs):
        x = model.encode(inputs)
        z0 = model.initial(x)
        direction = jax.random.normal(jax.random.key(0), z0.shape, z0.dtype)
        direction = direction / jnp.linalg.norm(direction)

        def body(z, _):
            force = model.field(0.0, z, x)
            return z + step * force, (
                jnp.linalg.norm(force) / jnp.linalg.norm(z),
                jnp.sum(direction * z),
            )

        z, (residual, coordinate) = jax.lax.scan(body, z0, length=steps)
        return z, residual, coordinate

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(inputs)


@eqx.filter_jit
def cross_entropies(model, states, targets):
    return jax.vmap(lambda z, y: ej.cross_entropy(model.decode(z), y))(states, targets)


def frequency(series: np.ndarray, step: float) -> float:
    """Angular frequency of the tallest line in the spectrum of a time series, by parabolic interpolation of its peak."""
    series = (series - series.mean()) * np.hanning(len(series))
    power = np.log(abs(np.fft.rfft(series)) + 1e-300)
    i = int(np.clip(np.argmax(power), 1, len(power) - 2))
    a, b, c = power[i - 1 : i + 2]
    shift = np.clip(0.5 * (a - c) / (a - 2 * b + c), -0.5, 0.5) if a - 2 * b + c else 0.0
    return float(2 * np.pi * (i + shift) / (len(series) * step))


def tails(model, inputs, step: float) -> dict[str, Any]:
    """(1) What a long relaxation ends in."""
    _, residual, coordinate = map(
        np.asarray, long_relaxation(model, inputs, jnp.asarray(step), LONG)
    )
    tail = residual[:, -TAIL:]
    return {
        "residual_median": np.median(tail, 1),
        "residual_least": tail.min(1),
        "residual_most": tail.max(1),
        "frequency": np.array([frequency(c[-TAIL:], step) for c in coordinate]),
    }


def parts(model, inputs) -> dict[str, Any]:
    """(5) The rightmost eigenvalue at the fixed point of the whole field, and of it without MLP or without attention."""
    field = model.field

    def one(inputs, key):
        x, settled = settle(model, inputs)
        clamp = lambda z: field.reciprocal(0.0, z, x)
        forces = {
            "whole": lambda t, z, x: field(t, z, x),
            "attention only": lambda t, z, x: clamp(z) + field.attended(z),
            "MLP only": lambda t, z, x: clamp(z) + field.transformed(z),
        }
        settings = {"k": 2, "tol": 1e-4, "max_restarts": 100, "throw": False, "key": key}
        return {
            name: stability.spectrum(force, settled.value, x, **settings).values[0]
            for name, force in forces.items()
        }

    found = eqx.filter_jit(jax.vmap(one))(inputs, jax.random.split(jax.random.key(0), len(inputs)))
    return {name: np.asarray(value) for name, value in found.items()}
