import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from scipy import special

from eqjax import analytic

VECTOR = jnp.linspace(-2.0, 2.5, 12).reshape(3, 4) ** 3
MASK = jnp.array([[True, True, False, True], [True, False, False, True], [True, True, True, True]])
WEIGHT = jnp.linspace(0.5, 1.5, 4)
FUNCTIONS = {
    "softmax": analytic.softmax,
    "masked softmax": lambda z: analytic.softmax(z, MASK),
    "softmax over rows": lambda z: analytic.softmax(z, axis=0),
    "logsumexp": analytic.logsumexp,
    "masked logsumexp": lambda z: analytic.logsumexp(z, MASK),
    "softplus": analytic.softplus,
    "gelu": analytic.gelu,
    "layer_norm": lambda z: analytic.layer_norm(z, WEIGHT, 0.1 * WEIGHT),
    "rms_norm": lambda z: analytic.rms_norm(z, WEIGHT),
    "matmul": lambda z: analytic.matmul(z, jnp.outer(WEIGHT, WEIGHT)),
    "attention": lambda z: analytic.attention(
        z[None], z[None] * z[None], z[None], analytic.causal_mask(3)
    ),
    "cross_entropy": lambda z: analytic.cross_entropy(z, jnp.array([0, 3, 1])),
    "squared_error": lambda z: analytic.squared_error(z, VECTOR[::-1]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_complex_step_derivative_equals_jvp(name):
    f, h = FUNCTIONS[name], 1e-30
    direction = jnp.cos(3.0 * VECTOR)
    _, tangent = jax.jvp(f, (VECTOR,), (direction,))
    stepped = f(jax.lax.complex(VECTOR, h * direction)).imag / h
    scale = jnp.max(jnp.abs(tangent))
    assert jnp.max(jnp.abs(stepped - tangent)) <= 1e-12 * scale


@pytest.mark.parametrize("name", FUNCTIONS)
def test_complex_input_on_the_real_axis_gives_the_real_value(name):
    f = FUNCTIONS[name]
    out = f(VECTOR.astype(complex))
    assert jnp.max(jnp.abs(out - f(VECTOR).astype(out.dtype))) < 1e-13


def test_a_large_masked_logit_changes_nothing():
    mask = jnp.array([True, True, False, True])
    logits = jnp.array([0.3, -1.0, 0.0, 2.0])
    spiked = logits.at[2].set(1e4)
    for f in (analytic.softmax, analytic.logsumexp):
        assert jnp.array_equal(f(logits, mask), f(spiked, mask))
        gradient = jax.grad(lambda z: jnp.sum(f(z, mask) ** 2))
        assert jnp.array_equal(gradient(logits), gradient(spiked))
    assert analytic.softmax(spiked, mask)[2] == 0


def test_a_slice_with_no_valid_entry_is_zero_with_zero_gradient():
    f = lambda z: jnp.sum(analytic.softmax(z, jnp.zeros(3, bool)))
    assert f(jnp.ones(3)) == 0
    assert jnp.array_equal(jax.grad(f)(jnp.ones(3)), jnp.zeros(3))


@given(hnp.arrays(float, (4, 5), elements=st.floats(-700, 700)))
def test_softmax_and_logsumexp_agree_with_scipy(z):
    assert np.allclose(analytic.softmax(jnp.array(z)), special.softmax(z, -1), atol=1e-15)
    assert np.allclose(analytic.logsumexp(jnp.array(z)), special.logsumexp(z, -1), rtol=1e-14)


@given(st.floats(-50, 50))
def test_gelu_is_the_tanh_form(z):
    expected = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    assert np.isclose(analytic.gelu(jnp.array(z)), expected, atol=1e-15)


def test_layer_norm_has_zero_mean_and_unit_variance():
    z = analytic.layer_norm(VECTOR, eps=0.0)
    assert jnp.max(jnp.abs(jnp.mean(z, -1))) < 1e-15
    assert jnp.max(jnp.abs(jnp.var(z, -1) - 1)) < 1e-13


def test_cross_entropy_is_the_token_mean_in_nats():
    targets = np.array([0, 3, 1])
    logs = special.log_softmax(np.array(VECTOR), -1)
    expected = -logs[np.arange(3), targets].mean()
    assert np.isclose(analytic.cross_entropy(VECTOR, jnp.array(targets)), expected)


def test_attention_is_causal_and_heads_round_trip():
    z = jax.random.normal(jax.random.key(0), (6, 8))
    assert jnp.array_equal(analytic.unheads(analytic.heads(z, 2)), z)
    q = analytic.heads(z, 2)
    out = analytic.attention(q, q, q, analytic.causal_mask(6))
    changed = q.at[:, 4:].add(1.0)
    after = analytic.attention(changed, changed, changed, analytic.causal_mask(6))
    assert jnp.array_equal(out[:, :4], after[:, :4])
    assert not jnp.allclose(out[:, 4:], after[:, 4:])


def test_float32_stays_float32():
    z = VECTOR.astype(jnp.float32)
    for name in ("softmax", "gelu", "softplus", "logsumexp"):
        assert FUNCTIONS[name](z).dtype == jnp.float32
    assert analytic.tree_cast({"a": VECTOR, "b": 3}, jnp.float32)["a"].dtype == jnp.float32
