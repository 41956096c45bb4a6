"""Feed-forward networks that settle, recurrent cells, masks and transformer layers, against NumPy and plain backprop."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import eqjax as ej
from eqjax.fields import FeedForward, feed_forward_model
from eqjax.language import (
    DecoderLayer,
    EncoderLayer,
    PostNorm,
    PreNorm,
    RecurrentLayer,
    SimpleRNNCell,
    look_ahead_mask,
    padding_mask,
    sinusoidal_positions,
)

WIDTH, HEADS = 6, 2
BITS = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
XOR = jnp.array([0.0, 1.0, 1.0, 0.0])


@eqx.filter_jit
def built(kind, *sizes, seed=0, **settings):
    """A module, all of whose arrays are drawn in one program."""
    return kind(*sizes, key=jax.random.key(seed), **settings)


def varied(module, seed=0):
    """The module with norms and biases other than those of the start."""
    rng = np.random.default_rng(seed)
    vary = lambda a: a + jnp.asarray(0.1 * rng.normal(size=a.shape)) if eqx.is_array(a) else a
    return jax.tree.map(vary, module)


# Feed-forward networks


def network(**settings):
    return varied(built(FeedForward, (3, 5, 4, 2), **settings))


@eqx.filter_jit
def settled(field, x):
    """After two steps of Picard's, after three, and after a long relaxation."""
    z0, once = field.initial(x), ej.Picard(step_size=1.0)
    tried = [
        ej.equilibrium(field, z0, x, solver=once, max_steps=n, throw=False).value for n in (2, 3)
    ]
    return *tried, ej.relax(field, z0, x, step=0.1, steps=600).value


def test_the_forward_pass_is_the_equilibrium():
    field, x = network(), jnp.array([0.3, -1.2, 0.7])
    h = np.asarray(x)
    for k, (w, b) in enumerate(zip(field.weights, field.biases, strict=True)):
        h = h @ np.asarray(w) + np.asarray(b)
        h = scipy.special.expit(h) if k < 2 else h
    passed = field.forward(x)
    chex.assert_trees_all_close(passed[-1], h, rtol=1e-13, atol=1e-12)
    assert [a.shape for a in passed] == [(5,), (4,), (2,)]
    assert max(jnp.max(jnp.abs(f)) for f in field(0.0, passed, x)) < 1e-15
    # Picard with ε = 1 is there after as many steps as there are layers, and no sooner.
    two, three, relaxed = settled(field, x)
    assert jnp.max(jnp.abs(two[-1] - passed[-1])) > 1e-3
    chex.assert_trees_all_close(three, passed, rtol=1e-14, atol=1e-12)
    chex.assert_trees_all_close(relaxed, passed, rtol=1e-9, atol=1e-12)
    # The Jacobian plus one is nilpotent: eigenvalues are all -1.
    flat, back = jax.flatten_util.ravel_pytree(passed)
    jacobian = jax.jacfwd(lambda z: jax.flatten_util.ravel_pytree(field(0.0, back(z), x))[0])(flat)
    shifted = np.asarray(jacobian) + np.eye(11)
    assert (
        np.abs(np.linalg.matrix_power(shifted, 3)).max() < 1e-14 < np.abs(shifted @ shifted).max()
    )


@pytest.mark.parametrize("activation", [jax.nn.sigmoid, jax.nn.relu])
def test_settling_gives_the_gradient_of_backpropagation(activation):
    field = network(activation=activation)
    model = built(feed_forward_model, (3, 5, 4, 2), activation=activation)
    model = eqx.tree_at(lambda m: m.field, model, field)
    keys = jax.random.split(jax.random.key(1))
    batch = jax.random.normal(keys[0], (6, 3)), jax.random.normal(keys[1], (6, 2))

    def backprop(field):
        return jnp.mean(jax.vmap(lambda x, y: ej.squared_error(field.forward(x)[-1], y))(*batch))

    loss, exact = eqx.filter_jit(eqx.filter_value_and_grad(backprop))(field)
    oracle = ej.OracleAdjoint(
        free=ej.Picard(1e-14, step_size=1.0), adjoint_solver=ej.GMRES(rtol=1e-13)
    )
    found = eqx.filter_jit(oracle)(model, ej.squared_error, batch)
    assert jnp.all(found.report.accepted)
    chex.assert_trees_all_close(found.loss, loss, rtol=1e-13, atol=1e-12)
    chex.assert_trees_all_close(found.grads.field, exact, rtol=1e-10, atol=1e-12)
    assert jnp.linalg.norm(exact.weights[0]) > 1e-3


def test_complex_states_single_precision_and_misuse():
    field, x = network(activation=jnp.tanh), jnp.array([0.3, -1.2, 0.7])
    direction = jnp.array([1.0, 0.5, -0.2])
    _, derivative = jax.jvp(lambda x: field.forward(x)[-1], (x,), (direction,))
    stepped = field.forward(jax.lax.complex(x, 1e-30 * direction))[-1].imag / 1e-30
    np.testing.assert_allclose(stepped, derivative, rtol=1e-12)
    single = ej.tree_cast(field, jnp.float32)
    states = jax.jit(jax.vmap(single.forward))(jnp.ones((4, 3), "float32"))
    assert all(h.dtype == jnp.float32 and h.shape[0] == 4 for h in states)
    for sizes in ((3,), (2, 0, 1)):
        with pytest.raises(ValueError, match="`sizes` must name the input and at least one layer"):
            FeedForward(sizes, key=jax.random.key(0))


@pytest.mark.parametrize("seed", range(3))
def test_plain_backpropagation_learns_xor(seed):
    field = built(FeedForward, (2, 4, 1), seed=seed)
    optimiser = optax.adam(0.1)

    def loss(field):
        logits = jax.vmap(lambda x: field.forward(x)[-1][0])(BITS)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, XOR)), logits

    @eqx.filter_jit
    def learn(field):
        def step(carry, _):
            field, state = carry
            grads, _ = eqx.filter_grad(loss, has_aux=True)(field)
            updates, state = optimiser.update(grads, state)
            return (eqx.apply_updates(field, updates), state), None

        start = field, optimiser.init(eqx.filter(field, eqx.is_array))
        return jax.lax.scan(step, start, length=400)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # which Optax asks for
        before, after = loss(field)[0], loss(learn(field))
    assert after[0] < 0.05 < before and jnp.all((after[1] > 0) == (XOR == 1))


def test_settling_learns_what_backpropagation_learns():
    """Rings are not linearly separable; the estimator's training step learns them from settled states."""
    rng = np.random.default_rng(0)
    radius, angle = np.repeat([0.5, 1.5], 40), rng.uniform(0, 2 * np.pi, 80)
    points = radius * np.stack([np.cos(angle), np.sin(angle)]) + 0.1 * rng.normal(size=(2, 80))
    points, labels = jnp.asarray(points.T), jnp.asarray(np.repeat([0, 1], 40))
    model = built(feed_forward_model, (2, 8, 2), activation=jnp.tanh)
    optimiser = optax.adam(0.03)
    oracle = ej.OracleAdjoint(free=ej.Picard(1e-9, step_size=1.0))
    step = ej.training.make_step(oracle, optimiser)
    state = ej.training.TrainState.create(model, optimiser, key=jax.random.key(1))
    for _ in range(150):
        state, metrics = step(state, (points, labels))
    assert metrics["accepted"] == 1
    outputs = jax.vmap(lambda x: state.model.field.forward(x)[-1])(points)
    assert jnp.mean((jnp.argmax(outputs, axis=1) == labels).astype(float)) == 1


# Recurrent networks


def gates(cell, x, h):
    """Affine parts of input and state, with the input's bias."""
    bias = 0 if cell.bias is None else np.asarray(cell.bias)
    return np.asarray(cell.weight_ih) @ x + bias, np.asarray(cell.weight_hh) @ h


def rnn(cell, x, h):
    return np.tanh(sum(gates(cell, x, h)))


def gru(cell, x, h):
    """Cho et al. 2014, with the reset gate after the product."""
    (ir, iz, inew), (hr, hz, hnew) = (np.split(a, 3) for a in gates(cell, x, h))
    r, z = scipy.special.expit(ir + hr), scipy.special.expit(iz + hz)
    new = np.tanh(inew + r * (hnew + np.asarray(cell.bias_n)))
    return (1 - z) * new + z * h


def lstm(cell, x, state):
    """Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    h, c = state
    i, f, g, o = np.split(sum(gates(cell, x, h)), 4)
    c = scipy.special.expit(f) * c + scipy.special.expit(i) * np.tanh(g)
    return scipy.special.expit(o) * np.tanh(c), c


CELLS = {"rnn": (SimpleRNNCell, rnn), "gru": (eqx.nn.GRUCell, gru), "lstm": (eqx.nn.LSTMCell, lstm)}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_runs_along_a_sequence(name):
    kind, formula = CELLS[name]
    net, run = RecurrentLayer(built(kind, 3, 4)), eqx.filter_jit(RecurrentLayer.__call__)
    rng = np.random.default_rng(1)
    inputs, direction = (jnp.asarray(rng.normal(size=(7, 3))) for _ in range(2))
    last, states = run(net, inputs)
    state = jax.tree.map(np.zeros_like, net.initial())
    for t in range(7):
        state = formula(net.cell, np.asarray(inputs[t]), state)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, t=t: a[t], states), state, rtol=1e-12, atol=1e-12
        )
    chex.assert_trees_all_close(last, state, rtol=1e-12, atol=1e-12)
    # Two segments are one pass.
    middle, first = run(net, inputs[:3])
    end, second = run(net, inputs[3:], middle)
    chex.assert_trees_all_close(end, last, rtol=1e-14, atol=1e-12)
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    chex.assert_trees_all_close(joined, states, rtol=1e-14, atol=1e-12)

    # The gradient through time is that of finite differences.
    @eqx.filter_jit
    def loss(net, inputs):
        return sum(jnp.sum(a * a) for a in jax.tree.leaves(net(inputs)[0]))

    ahead, behind = (loss(net, inputs + s * direction) for s in (1e-5, -1e-5))
    slope = jnp.sum(eqx.filter_jit(jax.grad(lambda u: loss(net, u)))(inputs) * direction)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-7)


def test_a_cell_of_ones_own_and_misuse():
    leaky = RecurrentLayer(lambda u, s: {"v": 0.5 * s["v"] + u})
    last, states = leaky(jnp.array([1.0, 2.0]), {"v": jnp.zeros(())})
    assert last["v"] == 2.5 and states["v"].shape == (2,)
    with pytest.raises(ValueError, match="has no `hidden_size`.*give `state`"):
        leaky(jnp.ones(2))
    with pytest.raises(ValueError, match="`hidden_size` must be at least 1, got 0"):
        SimpleRNNCell(2, 0, key=jax.random.key(0))
    cell = SimpleRNNCell(2, 3, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"`input` must have the shape \(2,\), got \(3,\)"):
        RecurrentLayer(cell)(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"`hidden` must have the shape \(3,\)"):
        RecurrentLayer(cell)(jnp.ones((4, 2)), jnp.ones(2))
    single = RecurrentLayer(ej.tree_cast(eqx.nn.LSTMCell(2, 3, key=jax.random.key(0)), jnp.float32))
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(single(jnp.ones((4, 2), "float32"))))


# Positions and masks


def test_positions_and_masks():
    positions = sinusoidal_positions(5, WIDTH)
    for t in range(5):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / WIDTH)
            np.testing.assert_allclose(positions[t, 2 * i], np.sin(angle), atol=1e-15)
            np.testing.assert_allclose(positions[t, 2 * i + 1], np.cos(angle), atol=1e-15)
    # A shift is a rotation, the same at every position.
    inner = positions @ positions.T
    for shift in range(5):
        np.testing.assert_allclose(np.ptp(np.diag(inner, shift)), 0, atol=1e-14)
    for length, width in ((5, 3), (0, 4), (5, 0)):
        with pytest.raises(ValueError, match="`length` must be at least 1 and `width` even"):
            sinusoidal_positions(length, width)
    rows, columns = np.indices((4, 4))
    np.testing.assert_array_equal(look_ahead_mask(4), columns <= rows)
    tokens = jnp.array([3, 1, 0, 0])
    np.testing.assert_array_equal(padding_mask(tokens), columns < 2)
    np.testing.assert_array_equal(padding_mask(tokens, padding=1, queries=2), columns[:2] != 1)


# Transformer layers


def norm(z, layer):
    centred = z - z.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + layer.eps)
    return scaled * np.asarray(layer.weight) + np.asarray(layer.bias)


def attend(layer, queries, keys, mask):
    """Vaswani et al. 2017, equation 1, head by head."""
    q, k, v = (
        np.asarray(z @ np.asarray(p.weight).T).reshape(len(z), HEADS, -1)
        for z, p in (
            (queries, layer.query_proj),
            (keys, layer.key_proj),
            (keys, layer.value_proj),
        )
    )
    mixed = []
    for h in range(HEADS):
        scores = q[:, h] @ k[:, h].T / np.sqrt(WIDTH / HEADS)
        mixed.append(scipy.special.softmax(np.where(mask, scores, -np.inf), axis=1) @ v[:, h])
    return np.concatenate(mixed, axis=1) @ np.asarray(layer.output_proj.weight).T


def perceive(mlp, z):
    (up, down) = mlp.layers
    hidden = np.maximum(z @ np.asarray(up.weight).T + np.asarray(up.bias), 0)
    return hidden @ np.asarray(down.weight).T + np.asarray(down.bias)


def connect(kind, residual, z, sublayer):
    if kind is PostNorm:
        return norm(z + sublayer(z), residual.norm)
    return z + sublayer(norm(z, residual.norm))


def pair(residual, **settings):
    """An encoder and a decoder layer."""
    layers = EncoderLayer, DecoderLayer
    return (varied(built(k, WIDTH, HEADS, residual=residual, **settings)) for k in layers)


def sequences(*lengths, seed=3):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=(n, WIDTH))) for n in lengths)


@pytest.mark.parametrize("kind", [PostNorm, PreNorm])
def test_layers_are_the_published_formulas(kind):
    encoder, decoder = pair(kind, hidden=9)
    source, target = map(np.asarray, sequences(5, 4))
    tokens = jnp.array([4, 2, 9, 0, 0])
    seen = np.asarray(padding_mask(tokens))
    z = connect(kind, encoder.residuals[0], source, lambda z: attend(encoder.attention, z, z, seen))
    z = connect(kind, encoder.residuals[1], z, lambda z: perceive(encoder.perceptron, z))
    memory = eqx.filter_jit(encoder)(jnp.asarray(source), padding_mask(tokens))
    chex.assert_trees_all_close(memory, z, rtol=1e-11, atol=1e-12)
    assert encoder.perceptron.layers[0].weight.shape == (9, WIDTH)
    plain = eqx.filter_eval_shape(EncoderLayer, WIDTH, HEADS, key=jax.random.key(0))
    assert plain.perceptron.layers[0].weight.shape == (4 * WIDTH, WIDTH)

    earlier = np.tril(np.ones((4, 4), bool))
    first, second, third = decoder.residuals
    z = connect(kind, first, target, lambda z: attend(decoder.attention, z, z, earlier))
    cross = lambda z: attend(decoder.cross_attention, z, np.asarray(memory), seen[:4])
    z = connect(kind, second, z, cross)
    z = connect(kind, third, z, lambda z: perceive(decoder.perceptron, z))
    mask = padding_mask(tokens, queries=4)
    found = eqx.filter_jit(decoder)(jnp.asarray(target), memory, memory_mask=mask)
    chex.assert_trees_all_close(found, z, rtol=1e-11, atol=1e-12)


def test_no_output_sees_the_future_or_the_padding():
    encoder, decoder = pair(PostNorm)
    source, target = sequences(5, 4)
    tokens = jnp.array([4, 2, 9, 0, 0])

    @eqx.filter_jit
    def run(source, target):
        memory = encoder(source, padding_mask(tokens))
        return memory, decoder(target, memory, memory_mask=padding_mask(tokens, queries=4))

    memory, outputs = run(source, target)
    later = run(source, target.at[2].add(1.0))[1]
    np.testing.assert_array_equal(later[:2], outputs[:2])
    assert jnp.all(jnp.any(later[2:] != outputs[2:], axis=1))
    padded = run(source.at[3:].add(1.0), target)
    np.testing.assert_array_equal(padded[0][:3], memory[:3])
    np.testing.assert_array_equal(padded[1], outputs)
    assert jnp.any(run(source.at[0].add(1.0), target)[1] != outputs)
    # An encoder sees both ways where nothing masks it, and both masks join.
    joined = padding_mask(tokens) & look_ahead_mask(5)
    encode = eqx.filter_jit(encoder)
    causal = encode(source.at[2].add(1.0), joined)[:2]
    np.testing.assert_array_equal(causal, encode(source, joined)[:2])
    assert jnp.any(encode(source.at[2].add(1.0))[:2] != encode(source)[:2])


@pytest.mark.parametrize("kind", [PostNorm, PreNorm])
def test_gradients_of_layers(kind):
    layers = tuple(pair(kind, activation=jnp.tanh))
    source, target = sequences(4, 3)

    def loss(layers):
        encoder, decoder = layers
        return jnp.sum(jnp.sin(decoder(target, encoder(source))))

    arrays, rest = eqx.partition(layers, eqx.is_inexact_array)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), arrays)

    @jax.jit
    def along(shift):
        moved = jax.tree.map(lambda a, d: a + shift * d, arrays, direction)
        return loss(eqx.combine(moved, rest))

    slope = jax.jit(jax.grad(along))(0.0)
    np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-6)
    decoder, batch = layers[1], (jnp.stack([target, -target]), jnp.stack([source, source]))
    both, alone = eqx.filter_jit(lambda b: (jax.vmap(decoder)(*b), decoder(b[0][1], b[1][1])))(
        batch
    )
    np.testing.assert_allclose(both[1], alone, rtol=1e-12)
    with pytest.raises(ValueError, match="`width` must be a positive multiple of `heads`"):
        EncoderLayer(5, 2, key=jax.random.key(0))
