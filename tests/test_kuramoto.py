"""Phase oscillators: their sums and the order parameter of the theory."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

import eqjax as ej
from eqjax.fields import Kuramoto, KuramotoNetwork, order_parameter


def test_all_to_all_is_the_full_matrix():
    rng = np.random.default_rng(2)
    frequencies, phases = (jnp.asarray(rng.normal(size=50)) for _ in range(2))
    fast = Kuramoto(frequencies, coupling=1.7)(0.0, phases)
    slow = KuramotoNetwork(frequencies, jnp.full((50, 50), 1.7 / 50))(0.0, phases)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-14)
    weight = rng.normal(size=(50, 50))
    difference = np.asarray(phases)[None, :] - np.asarray(phases)[:, None]
    direct = frequencies + np.sum(weight * np.sin(difference), axis=1)
    found = KuramotoNetwork(frequencies, jnp.asarray(weight))(0.0, phases)
    np.testing.assert_allclose(found, direct, atol=1e-13)
    np.testing.assert_allclose(
        order_parameter(phases), np.mean(np.exp(1j * np.asarray(phases))), atol=1e-15
    )
    assert order_parameter(jnp.zeros((2, 5), "float32")).dtype == jnp.complex64
    # Holomorphic: a complex step gives the derivative.
    stepped = Kuramoto(frequencies)(0.0, jax.lax.complex(phases, 1e-30 * frequencies)).imag / 1e-30
    _, derivative = jax.jvp(lambda z: Kuramoto(frequencies)(0.0, z), (phases,), (frequencies,))
    np.testing.assert_allclose(stepped, derivative, rtol=1e-11, atol=1e-13)


def coherence(frequencies, coupling, key, step=0.1, duration=150.0):
    """Mean of r over the last third of a run from phases at random."""
    phases = jax.random.uniform(key, frequencies.shape, maxval=2 * jnp.pi)
    ts = jnp.linspace(2 * duration / 3, duration, 200)
    found = ej.relax(
        Kuramoto(frequencies, coupling),
        phases,
        solver=dfx.Heun(),
        step=step,
        steps=round(duration / step),
        saveat=dfx.SaveAt(ts=ts),
    )
    return float(jnp.mean(jnp.abs(order_parameter(found.trajectory))))


def test_the_order_parameter_is_that_of_the_theory(key):
    n = 2000
    quantiles = (np.arange(n) + 0.5) / n
    lorentz = jnp.asarray(np.tan(np.pi * (quantiles - 0.5)))
    gauss = jnp.asarray(scipy.stats.norm.ppf(quantiles))
    assert abs(coherence(lorentz, 4.0, key) - np.sqrt(0.5)) < n**-0.5
    assert abs(coherence(gauss, 2.0, key) - 0.715173956683183) < n**-0.5
    # K_c = 1.5958: below it nothing but fluctuations, above it the root of Kuramoto's equation.
    assert coherence(gauss, 1.4, key) < 5 * n**-0.5

    def excess(r, K=1.75):
        pull = lambda a: np.cos(a) ** 2 * scipy.stats.norm.pdf(K * r * np.sin(a))
        return 1 - K * scipy.integrate.quad(pull, -np.pi / 2, np.pi / 2)[0]

    expected = scipy.optimize.brentq(excess, 0.05, 1)
    assert 0.4 < expected < 0.6 and abs(coherence(gauss, 1.75, key) - expected) < 2 * n**-0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: KuramotoNetwork(jnp.zeros(3), jnp.zeros((3, 2))), "`weight`"),
        (lambda: KuramotoNetwork(jnp.zeros(3), jnp.zeros((2, 2))), "`weight`"),
        (lambda: Kuramoto(jnp.zeros(3))(0.0, jnp.zeros(2)), "one phase each"),
    ],
)
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
