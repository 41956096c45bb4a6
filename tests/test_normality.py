"""How far a Jacobian is from symmetric and from normal, and what that makes possible, by dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spectra import KEY, matrix
from toys import Linear

from eqjax.stability import (
    asymmetry,
    commutator,
    henrici,
    numerical_abscissa,
    pseudospectral_abscissa,
)


def test_asymmetry_and_the_commutator():
    for seed, weight in ((0, 0.0), (1, 1.0), (2, 0.2)):
        g = matrix(30, seed)
        a = (g + g.T) / 2 + weight * (g - g.T) / 2
        field, z = Linear(jnp.asarray(a)), jnp.zeros(30)
        norm = np.linalg.norm(a)
        ours = asymmetry(field, z, probes=100, key=KEY)
        truth = np.linalg.norm(a - a.T) / 2 / norm
        assert abs(ours.value - truth) <= max(4 * ours.error, 1e-12) and ours.error < 0.05
        bent = commutator(field, z, probes=100, key=KEY)
        truth = np.linalg.norm(a.T @ a - a @ a.T) ** 0.5 / norm
        assert abs(bent.value - truth) <= max(4 * bent.error, 1e-7) and bent.error < 0.05
        # The bounds that the docstring promises.
        departure = np.sqrt(max(norm**2 - np.sum(abs(np.linalg.eigvals(a)) ** 2), 0)) / norm
        assert abs(henrici(field, z) - departure) < 1e-7
        assert truth**2 / 6**0.5 <= departure + 1e-7
        assert departure <= ((30**3 - 30) / 12) ** 0.25 * truth + 1e-6


def test_the_error_bars_cover():
    a = matrix(30, 3)
    truth = np.linalg.norm(a - a.T) / 2 / np.linalg.norm(a)
    runs = jax.vmap(
        lambda key: asymmetry(Linear(jnp.asarray(a)), jnp.zeros(30), probes=32, key=key)
    )(jax.random.split(KEY, 200))
    scores = (np.asarray(runs.value) - truth) / np.asarray(runs.error)
    assert 0.8 < np.std(scores) < 1.3 and abs(np.mean(scores)) < 0.3


def test_numerical_abscissa_is_the_largest_not_the_largest_in_magnitude():
    a = matrix(40, 4) - 9 * np.eye(40)
    symmetric = np.linalg.eigvalsh((a + a.T) / 2)
    assert -symmetric[0] > abs(symmetric[-1])  # where a power iteration would go
    ours = numerical_abscissa(Linear(jnp.asarray(a)), jnp.zeros(40), key=KEY)
    assert abs(ours.value - symmetric[-1]) <= ours.error + 1e-13 < 1e-8
    assert ours.value > np.linalg.eigvals(a).real.max()


def test_pseudospectral_abscissa():
    eps = 0.1
    nilpotent = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    ours = pseudospectral_abscissa(Linear(nilpotent), jnp.zeros(2), epsilon=eps)
    assert abs(ours - np.sqrt(eps + eps**2)) < 1e-12
    normal = jnp.array([[-1.0, 2.0], [-2.0, -1.0]])
    ours = pseudospectral_abscissa(Linear(normal), jnp.zeros(2), epsilon=eps)
    assert abs(ours - (eps - 1)) < 1e-12
    # Its defining property, on a grid: inside, the least singular value is at most eps.
    a = matrix(12, 5)
    ours = float(pseudospectral_abscissa(Linear(jnp.asarray(a)), jnp.zeros(12), epsilon=eps))

    def least(x):
        return min(
            np.linalg.svd(a - (x + 1j * y) * np.eye(12), compute_uv=False)[-1]
            for y in np.linspace(-6, 6, 1201)
        )

    assert least(ours + 1e-3) > eps and least(ours - 1e-3) < eps


def test_the_identity_of_jacobian_homeostasis():
    """E[‖Jv‖² - vᵀJ²v] = ½ ‖J - Jᵀ‖_F², exactly, summed over the unit vectors."""
    a = matrix(9, 6)
    total = sum(np.sum((a @ v) ** 2) - v @ a @ a @ v for v in np.eye(9))
    assert np.isclose(total, 0.5 * np.linalg.norm(a - a.T) ** 2)


def test_misuse_says_what_to_do():
    with pytest.raises(ValueError, match="`probes`"):
        asymmetry(lambda t, z, x: z, jnp.ones(3), probes=1, key=KEY)
    with pytest.raises(ValueError, match="`epsilon`"):
        pseudospectral_abscissa(lambda t, z, x: z, jnp.ones(3), epsilon=0.0)
