"""Causal fields: one token at a time is the whole, and the whole is block lower triangular."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.fields import EnergyBlock, MonotoneBlock, RealBlock, ThickBlock
from eqjax.stability import token_spectrum

T, C = 5, 4
BLOCKS = {
    "thick": (ThickBlock, {"qknorm": True}),
    "real": (RealBlock, {"nonreciprocity": 0.7}),
    "monotone": (MonotoneBlock, {}),
}


@eqx.filter_jit
def built(kind, settings):
    return kind(C, 2, key=jax.random.key(0), **settings)


@pytest.fixture(params=BLOCKS)
def field(request):
    return built(*BLOCKS[request.param])


def state(seed=1):
    z, x = jax.random.normal(jax.random.key(seed), (2, T, C))
    return z, x


@pytest.mark.parametrize("kind", [float, complex])
def test_a_token_after_the_others_feels_what_it_feels_in_the_whole(field, kind):
    z, x = state()
    z = z.astype(kind) * (1 if kind is float else 1 + 0.3j)

    @eqx.filter_jit
    def compared(field, z, x):
        memory, whole = field.remember(z), field(0.0, z, x)
        ones = [field.after(0.0, z[t : t + 1], x[t : t + 1], memory, t) for t in range(T)]
        # What is not yet known of later tokens does not matter, however wrong.
        blank = jax.tree.map(lambda leaf: leaf.at[2:].set(1e3), memory)
        return whole, jnp.concatenate(ones), field.after(0.0, z[2:4], x[2:4], blank, 2)

    whole, ones, two = compared(field, z, x)
    np.testing.assert_allclose(ones, whole, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(two, whole[2:4], rtol=1e-12, atol=1e-13)


def test_the_jacobian_is_block_lower_triangular_and_has_the_eigenvalues_of_its_own_blocks(field):
    z, x = state()
    dense = np.asarray(eqx.filter_jit(jax.jacfwd(lambda z: field(0.0, z, x)))(z))
    blocks = dense.transpose(0, 2, 1, 3)  # token, token, channel, channel
    assert all(not blocks[t, s].any() for t in range(T) for s in range(t + 1, T))

    expected = np.linalg.eigvals(dense.reshape(T * C, T * C))
    found = token_spectrum(field, z, x)
    distance = np.abs(expected[:, None] - np.asarray(found.values).ravel()[None]).min(axis=1)
    assert (
        distance.max() < 1e-6
    )  # of a matrix that is far from normal, eigenvalues are known no better
    own = [np.linalg.eigvals(blocks[t, t]).real.max() for t in range(T)]
    np.testing.assert_allclose(found.abscissas, own, rtol=1e-10)
    assert found.token == np.argmax(own)


def test_other_fields_have_no_token_spectrum():
    block = EnergyBlock(C, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="AbstractCausalField"):
        token_spectrum(block, *state())
