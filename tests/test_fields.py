import diffrax
import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from hypothesis import given

from eqjax import fields
from eqjax.fields._monotone import GELU_LIPSCHITZ, floored_norm, spectral_bound
from eqjax.relaxation import relax

T, C, H = 6, 8, 2
BLOCKS = {
    "thick": fields.ThickBlock,
    "energy": fields.EnergyBlock,
    "real": fields.RealBlock,
    "monotone": fields.MonotoneBlock,
}


def build(name, key, **settings):
    """A block away from its tidy initial values: gains, biases and leak are all in play."""
    block = BLOCKS[name](C, H, leak=0.7, attention_gain=1.3, key=key, **settings)
    leaves, tree = jax.tree.flatten(block)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        a + 0.1 * jax.random.normal(k, a.shape) if a.ndim else a
        for a, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def state(key, scale=1.0):
    return scale * jax.random.normal(key, (T, C))


def jacobian(field, z, x):
    return jax.jacobian(lambda flat: field(0.0, flat.reshape(T, C), x).ravel())(z.ravel())


def numpy_thick(block, z, x):
    """The formula, transcribed token by token with loops."""
    p = jax.tree.map(np.asarray, block)
    z, x = np.asarray(z), np.asarray(x)

    def norm(layer):
        mean, var = z.mean(-1, keepdims=True), z.var(-1, keepdims=True)
        return (z - mean) / np.sqrt(var + 1e-5) * layer.weight + layer.bias

    g, d = norm(p.norm1), C // H
    q, k, v = g @ p.attention.query, g @ p.attention.key, g @ p.attention.value
    attended = np.zeros((T, C))
    for h in range(H):
        part = slice(h * d, (h + 1) * d)
        for t in range(T):
            qt = q[t, part]
            keys = k[: t + 1, part]
            if p.attention.qknorm:
                qt = qt / np.sqrt(np.mean(qt**2) + 1e-5)
                keys = keys / np.sqrt(np.mean(keys**2, -1, keepdims=True) + 1e-5)
            score = np.exp(keys @ qt / np.sqrt(d))
            attended[t, part] = score / score.sum() @ v[: t + 1, part]
    hidden = norm(p.norm2) @ p.mlp.up + p.mlp.up_bias
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    mlp = hidden @ p.mlp.down + p.mlp.down_bias
    return x - (1 + p.leak) * z + p.attention_gain * attended @ p.attention.output + mlp


@pytest.mark.parametrize("qknorm", [False, True])
def test_thick_block_equals_a_numpy_transcription(key, qknorm):
    block, z, x = build("thick", key, qknorm=qknorm), state(key), state(jax.random.key(1))
    assert np.allclose(block(0.0, z, x), numpy_thick(block, z, x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["thick", "real", "monotone"])
def test_outputs_do_not_depend_on_later_tokens(name, key):
    block, z, x = build(name, key), state(key), state(jax.random.key(1))
    later = jnp.zeros((T, C)).at[4:].set(state(jax.random.key(3), 3.0)[4:])
    force, changed = block(0.0, z, x), block(0.0, z + later, x + later)
    assert jnp.array_equal(force[:4], changed[:4])
    assert type(block).causal
    settled = [relax(block, x + d, x + d, steps=30).value for d in (0 * later, later)]
    assert jnp.array_equal(settled[0][:4], settled[1][:4])
    # ... and they do depend on earlier ones.
    earlier = jnp.zeros((T, C)).at[0].set(state(jax.random.key(2))[0])
    assert jnp.max(jnp.abs(block(0.0, z + earlier, x) - force)[1:]) > 1e-4


def test_energy_block_is_conservative_and_not_causal(key):
    block, z, x = build("energy", key), state(key), state(jax.random.key(1))
    j = jacobian(block, z, x)
    assert jnp.max(jnp.abs(j - j.T)) <= 1e-10
    numeric = jax.grad(block.energy)(z, x)
    assert jnp.allclose(block(0.0, z, x), -numeric)
    assert not type(block).causal
    later = block(0.0, z.at[4:].add(state(jax.random.key(2))[4:]), x)
    assert not jnp.allclose(later[:4], block(0.0, z, x)[:4])


@given(st.integers(0, 1000), st.floats(0.1, 3.0))
def test_energy_never_rises_while_relaxing(seed, size):
    key = jax.random.key(seed)
    block, x = build("energy", key), state(jax.random.key(seed + 1), size)
    saved = relax(
        block,
        state(key, size),
        x,
        solver=diffrax.Tsit5(),
        controller=diffrax.PIDController(rtol=1e-7, atol=1e-9),
        t1=2.0,
        saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, 2.0, 41)),
    )
    energies = jax.vmap(lambda z: block.energy(z, x))(saved.trajectory)
    assert jnp.all(jnp.diff(energies) <= 1e-6) and energies[-1] < energies[0] - 1e-3


def test_parts_of_split_fields_add_up_and_the_reciprocal_one_is_symmetric(key):
    z, x = state(key), state(jax.random.key(1))
    for name in ("thick", "real", "monotone"):
        block = build(name, key)
        both = block.reciprocal(0.0, z, x) + block.nonreciprocal(0.0, z, x)
        assert jnp.array_equal(block(0.0, z, x), both)
        j = jax.jacobian(lambda flat: block.reciprocal(0.0, flat.reshape(T, C), x).ravel())(
            z.ravel()
        )
        assert jnp.max(jnp.abs(j - j.T)) <= 1e-12


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.01, 1.0, 100.0]),
    st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 30.0]),
    st.floats(0.05, 1.5),
)
def test_monotone_block_contracts_at_every_state_and_weight(seed, weight, size, margin):
    key = jax.random.key(seed)
    block = build("monotone", key, margin=margin)
    block = jax.tree.map(lambda a: weight * a if a.ndim == 2 else a, block)
    j = jacobian(block, state(key, size), state(jax.random.key(seed + 1)))
    assert jnp.linalg.eigvalsh(0.5 * (j + j.T))[-1] <= -margin + 1e-9


def test_monotone_attention_still_depends_on_the_state(key):
    block, x = build("monotone", key), state(key)
    silent = eqx.tree_at(lambda b: b.attention_gain, block, jnp.asarray(0.0))
    j, k = jacobian(block, x, x), jacobian(silent, x, x)
    assert jnp.linalg.norm(j - k) > 1e-4
    bound, _ = block.lipschitz_bounds(T)
    assert jnp.linalg.norm(j - k, 2) <= bound


@given(
    st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1e-8, 1.0, 1e8])
)
def test_spectral_bound_is_a_tight_upper_bound(seed, n, m, scale):
    weight = scale * jax.random.normal(jax.random.key(seed), (n, m))
    exact = jnp.linalg.norm(weight, 2)
    assert exact <= spectral_bound(weight) * (1 + 1e-12)
    assert spectral_bound(weight) <= min(n, m) ** (1 / 16) * exact * (1 + 1e-9)


def test_spectral_bound_of_zero_is_zero_with_finite_gradient():
    assert spectral_bound(jnp.zeros((3, 4))) == 0
    assert jnp.all(jnp.isfinite(jax.grad(spectral_bound)(jnp.zeros((3, 4)))))


def test_the_constants_of_the_monotone_proof(key):
    grid = jnp.linspace(-6, 6, 100_001)
    from eqjax.analytic import gelu

    assert jnp.max(jnp.abs(jax.vmap(jax.grad(gelu))(grid))) <= GELU_LIPSCHITZ
    for size in (1e-6, 1e-2, 1.0, 100.0):
        j = jax.jacobian(lambda z: floored_norm(z.reshape(1, C)).ravel())(state(key, size)[0])
        assert jnp.linalg.norm(j, 2) <= 1 + 1e-12


@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0, 1), st.floats(0, 20))
def test_recurrent_coupling_has_exactly_its_strength_and_asymmetry(seed, n, r, gamma):
    field = fields.RecurrentField(n, strength=gamma, asymmetry=r, key=jax.random.key(seed))
    w = field.coupling()
    assert jnp.isclose(jnp.linalg.norm(w), gamma, rtol=1e-12, atol=1e-12)
    assert jnp.isclose(jnp.linalg.norm(0.5 * (w - w.T)), r * gamma, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*BLOCKS, "recurrent"])
def test_fields_are_diffrax_and_optimistix_functions_and_holomorphic(name, key):
    if name == "recurrent":
        field, z, x = fields.RecurrentField(5, key=key), jnp.ones(5), jnp.linspace(-1, 1, 5)
    else:
        field, z, x = build(name, key), state(key), state(jax.random.key(1))
        field = jax.tree.map(lambda a: 0.3 * a if a.ndim == 2 else a, field)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        0.0,
        9.0,
        0.05,
        z,
        args=x,
        stepsize_controller=diffrax.PIDController(1e-6, 1e-6),
    )
    root = optimistix.root_find(
        lambda z, x: field(0.0, z, x), optimistix.Newton(1e-9, 1e-9), solution.ys[0], x
    )
    assert jnp.max(jnp.abs(field(0.0, root.value, x))) < 1e-8
    # The same object on complex states: complex-step derivative against JVP.
    v = jnp.cos(jnp.arange(z.size, dtype=float).reshape(z.shape))
    _, tangent = jax.jvp(lambda s: field(0.0, s, x), (z,), (v,))
    stepped = field(0.0, jax.lax.complex(z, 1e-30 * v), x).imag / 1e-30
    assert jnp.max(jnp.abs(stepped - tangent)) <= 1e-12 * jnp.max(jnp.abs(tangent))


def test_hyperparameters_are_arrays_that_do_not_train(key):
    model = fields.EquilibriumModel(jnp.tanh, build("real", key), eqx.nn.Linear(2, 3, key=key))
    mask = fields.trainable(model)
    assert not mask.field.leak and not mask.field.attention_gain and not mask.field.nonreciprocity
    assert mask.field.memory.patterns and mask.field.norm1.bias and mask.decoder.weight
    trained, _ = eqx.partition(model, mask)
    assert trained.field.leak is None
    varied = eqx.tree_at(lambda m: m.field.attention_gain, model, jnp.asarray(0.0))
    assert varied.field.attention_gain == 0


def test_convenience_model_starts_at_the_clamp(key):
    model = fields.EquilibriumModel(lambda u: 2 * u, build("thick", key), jnp.sum)
    x = model.encode(jnp.ones((T, C)))
    assert jnp.array_equal(model.initial(x), x) and model.decode(x) == 2 * T * C
    zero = fields.EquilibriumModel(lambda u: u, build("thick", key), jnp.sum, start=jnp.zeros_like)
    assert not zero.initial(x).any()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_width_that_heads_do_not_divide_is_refused(name, key):
    with pytest.raises(ValueError, match="multiple of `heads`, got width=10 and heads=4"):
        BLOCKS[name](10, 4, key=key)


def test_bad_field_arguments_are_refused(key):
    with pytest.raises(ValueError, match=r"`margin` must lie between 0 and 1 \+ leak"):
        fields.MonotoneBlock(C, H, margin=2.5, key=key)
    with pytest.raises(ValueError, match="`asymmetry` .* got 1.5"):
        fields.RecurrentField(4, asymmetry=1.5, key=key)
    with pytest.raises(ValueError, match="`size` must be at least 2"):
        fields.RecurrentField(1, key=key)
    with pytest.raises(ValueError, match="`strength`"):
        fields.RecurrentField(3, strength=-1.0, key=key)
