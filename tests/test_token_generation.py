"""Text written token by token is the text of a window that settles anew for every token."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqjax as ej
from eqjax.fields import EnergyBlock, EquilibriumModel
from eqjax.language import equilibrium_lm, generate
from eqjax.relaxation import AndersonTypeI, TokenOrder

ORDER = TokenOrder(AndersonTypeI(1e-9, window=6))


@eqx.filter_jit
def built():
    return equilibrium_lm(9, 10, 8, 2, qknorm=True, embedding_scale=3.0, key=jax.random.key(0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_that_of_settling_the_window_anew(temperature):
    model, prompt = built(), jnp.array([1, 5, 2])
    again = lambda field, z0, x: ej.equilibrium(field, z0, x, solver=ORDER, throw=False)
    # 7 tokens fill the window, and 3 more make it slide.
    settings = {"length": 10, "key": jax.random.key(3), "temperature": temperature}
    one = generate(model, prompt, 10, settle=ORDER, **settings)
    whole = generate(model, prompt, 10, settle=again, warm=False, **settings)
    np.testing.assert_array_equal(one.tokens, whole.tokens)
    assert one.residual.shape == (10,) and one.residual.max() < 1.1e-9


def test_a_field_that_is_not_causal_is_refused():
    model = built()
    other = EquilibriumModel(model.encoder, EnergyBlock(8, 2, key=jax.random.key(0)), model.decoder)
    with pytest.raises(ValueError, match="AbstractCausalField"):
        generate(other, jnp.array([1]), 2, length=4, key=jax.random.key(0), settle=ORDER)
