"""AEON: bounded recurrence, attention that feels it, AdamW when it is still, and one closed loop."""

import chex
import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqjax.analytic import tree_cast
from eqjax.fields import trainable
from eqjax.language import GPT2, GPT2Config, Heads, lora
from eqjax.language._attend import weights
from eqjax.resonance import (
    AeonBackprop,
    AeonGate,
    AeonGPT2,
    Biased,
    Coupling,
    LossController,
    resonant_adamw,
)
from eqjax.training import Checkpoints, TrainState, make_step

CONFIG = GPT2Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3)
ACTIVE = LossController(rate=0.3, momentum_gain=0.05, noise=1e-3, noise_gain=0.5, coupling=0.3)


@pytest.fixture(scope="module")
def aeon():
    return AeonGPT2(GPT2.init(CONFIG, jax.random.key(1)), key=jax.random.key(2))


@pytest.fixture(scope="module")
def coupled(aeon):
    """One whose couplings have left zero."""
    where = lambda m: jax.tree.leaves((m.recurrence, m.resonance))
    draws = jax.random.normal(jax.random.key(3), (4, 2, 3, 4))
    return eqx.tree_at(where, aeon, list(draws))


def window(seed, *shape):
    tokens = jax.random.randint(jax.random.key(seed), (*shape[:-1], shape[-1] + 1), 0, 11)
    return tokens[..., :-1], tokens[..., 1:]


read = eqx.filter_jit(lambda model, batch, state: model.losses(*batch, state))
logits = eqx.filter_jit(lambda model, tokens, state=None: model(tokens, state))


def heads(key):
    q, k, v = jax.random.normal(key, (3, 8, 3, 4))
    return Heads(q, k, v, None, jnp.zeros((8, 12)))


class Shares(eqx.Module):
    """An attention that gives the weights themselves, `(t, H, s)`."""

    def __call__(self, heads, extra):
        return jnp.swapaxes(weights(heads), 0, 1), None


def test_one_vector_for_all_keys_leaves_softmax_as_it_was_and_one_for_each_does_not(key):
    plain = heads(key)
    coupling = Coupling(jnp.ones((3, 4)), jnp.zeros((3, 4)))
    r = jax.random.normal(jax.random.key(1), (8, 3, 4))
    before = Shares()(plain, None)[0]

    def after(signal):
        return Biased(Shares())(plain, ((coupling, signal),))[0]

    same = jnp.broadcast_to(r[:1], r.shape)
    assert jnp.max(jnp.abs(after(same) - before)) < 1e-14
    assert jnp.max(jnp.abs(after(r) - before)) > 0.05
    scalar = jax.random.normal(jax.random.key(2), (8, 1, 1))
    assert jnp.max(jnp.abs(after(jnp.ones((8, 1, 1))) - before)) < 1e-14
    assert jnp.max(jnp.abs(after(scalar) - before)) > 0.05


def test_a_fresh_model_is_its_gpt2_in_any_state_and_a_coupled_one_is_not(aeon, coupled):
    batch = window(0, 8)
    plain = aeon.gpt2(batch[0])
    state = aeon.initial()
    for _ in range(2):
        assert jnp.allclose(logits(aeon, batch[0], state), plain, rtol=0, atol=1e-14)
        _, state = read(aeon, batch, state)
    # At first r and m are 0, so coupling does nothing either.
    assert jnp.allclose(logits(coupled, batch[0]), plain, rtol=0, atol=1e-14)
    both = logits(coupled, batch[0], state)
    for other in ("recurrence", "resonance"):
        without = eqx.tree_at(lambda m, n=other: getattr(m, n), coupled, None)
        assert jnp.max(jnp.abs(logits(without, batch[0], state) - both)) > 1e-3
        assert jnp.max(jnp.abs(logits(without, batch[0], state) - plain)) > 1e-3


def test_attention_stays_causal(coupled):
    tokens, state = window(0, 8)[0], coupled.initial()
    _, state = read(coupled, window(1, 8), state)
    changed = tokens.at[5].set((tokens[5] + 1) % 11)
    a, b = (logits(coupled, t, state) for t in (tokens, changed))
    assert jnp.array_equal(a[:5], b[:5]) and not jnp.allclose(a[5:], b[5:])


def test_losses_are_the_cross_entropies_and_m_the_mean_errors_per_token(coupled):
    tokens, targets = jnp.array([3, 1, 3, 5, 5]), jnp.array([1, 3, 5, 5, 2])
    losses, state = read(coupled, (tokens, targets), coupled.initial())
    p = np.asarray(jax.nn.softmax(logits(coupled, tokens)))[np.arange(5), np.asarray(targets)]
    assert np.allclose(losses, -np.log(p), rtol=1e-12)
    expected = np.zeros(11)
    for token in (1, 3, 5):
        expected[token] = 0.1 * np.mean((1 - p)[np.asarray(tokens) == token])
    assert np.allclose(state.memory, expected, rtol=1e-10)
    assert state.seen.tolist() == [True] * 5 + [False] * 3
    # Tokens that do not come up keep theirs.
    _, later = read(coupled, (jnp.array([3]), jnp.array([0])), state)
    assert jnp.array_equal(later.memory[4:], state.memory[4:])
    # r moves where something was read, and nowhere else.
    assert jnp.all(later.recurrence[:, 5:] == 0) and jnp.all(later.recurrence[:, :5] != 0)


@eqx.filter_jit
def driven(recurrent, hidden, errors, seen, scale):
    recurrent = jax.tree.map(lambda w: scale * w, recurrent)
    r = jnp.zeros((2, 8, 3, 4))
    keep = lambda r, _: (recurrent(r, hidden, errors, seen),) * 2
    return recurrent.transition(), jax.lax.scan(keep, r, None, length=30)[1]


@hypothesis.given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=6, max_size=6),
    st.sampled_from([0.0, 0.1, 1.0, 1e3, 1e6, -1e3]),
    st.integers(0, 99),
)
def test_r_stays_within_one_and_its_transition_within_the_bound(aeon, odd, scale, seed):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(2, 8, 12)) * 10.0 ** rng.integers(-3, 9, (2, 8, 1))
    hidden[:, :3, 0] = np.reshape(odd, (2, 3))
    recurrent = eqx.tree_at(lambda g: g.mixing, aeon.recurrent, rng.normal(size=(2, 3, 4, 4)))
    errors, seen = rng.uniform(size=8), np.arange(8) < 7
    transition, r = map(np.asarray, driven(recurrent, hidden, errors, seen, np.array(scale)))
    assert np.all(np.abs(r) <= 1) and np.all(r[:, :, 7] == 0)
    radius = np.max(np.abs(np.linalg.eigvals(transition)))
    assert radius <= aeon.recurrent.bound + 1e-12


def test_r_is_what_its_equations_say(aeon):
    g = aeon.recurrent
    leaves, tree = jax.tree.flatten(g)
    rng = np.random.default_rng(0)
    g = tree.unflatten([jnp.asarray(rng.normal(size=a.shape)) for a in leaves])
    r, hidden = rng.uniform(size=(2, 8, 3, 4)), rng.normal(size=(2, 8, 12))
    errors = np.linspace(0, 1, 8)
    ours = np.asarray(eqx.filter_jit(g)(r, hidden, errors, np.ones(8, bool)))
    g = jax.tree.map(np.asarray, g)
    layer, place, head = 1, 3, 2
    h, e = hidden[layer, place], errors[place]
    x = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
    s = g.mixing[layer, head]
    a = 0.95 * s / np.maximum(np.abs(s).sum(1, keepdims=True), 1)
    gate = x @ g.gate[layer, :, head] + e * g.gate_error[layer, head] + g.gate_bias[layer, head]
    gate = 1 / (1 + np.exp(-gate))
    told = np.tanh(x @ g.weight[layer, :, head] + e * g.error[layer, head])
    expected = (1 - gate) * (a @ r[layer, place, head]) + gate * told
    assert np.allclose(ours[layer, place, head], expected, rtol=1e-12)


def test_gradient_reaches_the_recurrence_through_one_update_only(coupled):
    first, second, third = (window(seed, 8) for seed in range(3))

    @eqx.filter_jit
    def grads(state):
        def loss(parts):
            recurrent, state = parts
            model = eqx.tree_at(lambda m: m.recurrent, coupled, recurrent)
            return jnp.sum(model.losses(*third, model.losses(*second, state)[1])[0])

        return eqx.filter_grad(loss)((coupled.recurrent, state))

    _, state = read(coupled, first, coupled.initial())
    through, older = grads(state)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(through))
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(older))


def quadratic(key, dtype):
    k1, k2 = jax.random.split(key)
    params = {"a": jax.random.normal(k1, (7, 5), dtype), "b": [jnp.zeros(5, dtype), None]}
    x = jax.random.normal(k2, (9, 7), dtype)

    def loss(p):
        return jnp.mean(jnp.tanh(x @ p["a"] + p["b"][0][None]) ** 2) + jnp.sum(p["b"][0] ** 3)

    return params, loss


def descend(optimiser, params, loss, steps):
    optimiser = optax.with_extra_args_support(optimiser)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(
                grads, state, params, value=value, recurrence=params["a"]
            )
        return optax.apply_updates(params, updates), state, value

    state, values = optimiser.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        values.append(float(value))
    return params, state, values


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("rate", ["constant", "cosine"])
def test_without_gains_it_is_adamw_to_the_last_bit(key, dtype, rate):
    params, loss = quadratic(key, dtype)
    alpha = 3e-3 if rate == "constant" else optax.warmup_cosine_decay_schedule(0, 1e-2, 5, 30)
    mask = {"a": True, "b": [False, None]}
    settings = {"b2": 0.99, "weight_decay": 0.1, "mask": mask}
    ours, state, _ = descend(resonant_adamw(alpha, **settings), params, loss, 40)
    theirs, _, _ = descend(optax.adamw(alpha, b1=0.9, **settings), params, loss, 40)
    assert not jnp.array_equal(ours["a"], params["a"])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # The controller listens all the same.
    assert state.control.mean > 0 and state.control.rate == 0 and state.control.momentum == 0


def test_moving_momentum_is_corrected_for_exactly(key):
    """A constant gradient: whatever the momenta were, the corrected mean of it is that gradient."""
    controller = LossController(momentum_gain=0.3, limits=(0.0, 0.99), smoothing=0.5)
    optimiser = resonant_adamw(1.0, controller, eps=0.0, weight_decay=0.0)
    params = jnp.ones(3)
    grads, state, seen = jnp.array([1.0, -2.0, 3.0]), optimiser.init(params), set()
    update = jax.jit(lambda state, loss: optimiser.update(grads, state, params, value=loss))
    for loss in jax.random.normal(key, (40,)):
        updates, state = update(state, loss)
        seen.add(round(float(state.control.momentum), 3))
        assert jnp.allclose(updates, -jnp.sign(grads), rtol=1e-10)
    assert len(seen) > 8


@eqx.filter_jit
def follow(controller, losses, recurrence=None):
    step = lambda state, loss: (controller(state, loss, recurrence),) * 2
    return jax.lax.scan(step, controller.init(), losses)[1]


@hypothesis.given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=30, max_size=30),
    st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_everything_that_is_adapted_stays_within_its_limits(losses, coupling):
    controller = LossController(
        rate=2.0, momentum_gain=5.0, noise=0.1, noise_gain=9.0, coupling=coupling
    )
    path = follow(controller, np.array(losses), np.array([0.5, np.inf, np.nan]))
    assert jnp.all(jnp.abs(path.rate) <= jnp.log(4) + 1e-12)
    assert jnp.all((path.momentum >= 0.5 - 0.9 - 1e-12) & (path.momentum <= 0.98 - 0.9 + 1e-12))
    assert jnp.all((path.noise >= 0) & (path.noise <= 0.2))
    assert jnp.all((path.success >= 0) & (path.success <= 1) & (jnp.abs(path.trend) <= 3))


def changed(losses, where, value):
    losses = losses.copy()
    losses[where] = value
    return losses


def test_it_speeds_up_on_a_falling_loss_and_brakes_on_a_rising_one_a_shock_and_a_large_r():
    controller = LossController(rate=0.1, momentum_gain=0.05, noise=0.1, noise_gain=0.5)
    fall = np.linspace(3, 2, 60)
    falling, rising = (follow(controller, losses) for losses in (fall, fall[::-1]))
    assert falling.rate[-1] > 0.2 and falling.momentum[-1] < 0 and falling.noise[-1] < 0.1
    assert rising.rate[-1] < -0.2 and rising.momentum[-1] > 0 and rising.noise[-1] > 0.1
    shock = follow(controller, changed(fall, slice(40, 43), 50.0))
    assert shock.rate[42] < shock.rate[39] - 0.05
    # The running mean hardly notices, and the rate comes back.
    assert shock.mean[45] < 4 and shock.rate[-1] > shock.rate[42]
    lost = follow(controller, changed(fall, 40, np.nan))
    assert jnp.all(jnp.isfinite(lost.rate)) and lost.mean[40] == lost.mean[39]
    swing = 3 + np.cos(np.arange(60))
    coupled = follow(LossController(rate=0.1, coupling=0.5), swing, np.full(4, 0.8))
    # Less by K_r R in every drive, here 0.4, summed by the persistence to ten times the gain.
    lower = follow(LossController(rate=0.1), swing).rate[-1] - coupled.rate[-1]
    assert 0.3 < lower <= 0.4


def test_noise_falls_in_proportion_to_the_parameters(key):
    controller = LossController(noise=0.5)
    optimiser = resonant_adamw(0.1, controller, eps=1.0, weight_decay=0.0, key=key)
    params = {"large": jnp.full(4000, 2.0), "small": jnp.full(4000, 0.01), "zero": jnp.zeros(9)}
    still = optax.tree.zeros_like(params)
    update = jax.jit(lambda state: optimiser.update(still, state, params, value=jnp.ones(())))
    first, state = update(optimiser.init(params))
    second, _ = update(state)
    assert jnp.abs(jnp.std(first["large"]) / (0.1 * 0.5 * 2.0) - 1) < 0.05
    assert jnp.abs(jnp.std(first["small"]) / (0.1 * 0.5 * 0.01) - 1) < 0.05
    assert jnp.all(first["zero"] == 0)
    assert jnp.abs(jnp.corrcoef(first["large"], second["large"])[0, 1]) < 0.1
    assert jnp.abs(jnp.corrcoef(first["large"], first["small"])[0, 1]) < 0.1


def begin(model, optimiser):
    """The closed loop of AEON for three sequences: its step, which donates nothing here, and its first state."""
    estimator = AeonBackprop()
    step = make_step(estimator, optimiser)
    carry = estimator.start(model, 3)
    state = TrainState.create(model, optimiser, key=jax.random.key(8), carry=carry)
    return eqx.filter_jit(chex.assert_max_traces(lambda s, b: step(s, b), n=1)), state


def test_the_loop_learns_in_one_program_and_resumes_to_the_bit(aeon, tmp_path):
    aeon = tree_cast(aeon, jnp.float32)
    schedule = optax.cosine_decay_schedule(1e-2, 50)
    optimiser = resonant_adamw(schedule, ACTIVE, key=jax.random.key(5))
    step, first = begin(aeon, optax.chain(optax.clip_by_global_norm(1.0), optimiser))
    inputs, targets = window(7, 3, 8)
    state, losses, kept = first, [], None
    for number in range(24):
        state, metrics = step(state, (inputs, targets))
        losses.append(float(metrics["loss"]))
        assert bool(metrics["updated"])
        if number == 11:
            kept = state
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.3
    assert 0 < metrics["recurrence"] <= 1 and jnp.any(state.model.recurrence.key != 0)
    control = optax.tree.get(state.opt_state, "control")
    assert control.rate != 0 and control.momentum != 0 and control.noise > 0
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(12, kept, {})
        resumed = checkpoints.restore(first)
    for _ in range(12):
        resumed, _ = step(resumed, (inputs, targets))
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(state), strict=True):
        if not eqx.is_array(a):
            continue
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # A loss that is no number changes neither model nor optimiser, and r stays a number.
    broken = eqx.tree_at(
        lambda s: s.model.gpt2.ln_f.bias, state, jnp.full(12, jnp.nan, jnp.float32)
    )
    after, metrics = step(broken, (inputs, targets))
    assert not bool(metrics["updated"]) and jnp.isnan(metrics["loss"])
    assert jnp.array_equal(after.model.gpt2.wte, state.model.gpt2.wte)
    assert jnp.all(jnp.isfinite(after.carry.recurrence))
    assert jnp.all(after.carry.memory <= 1) and jnp.all(after.carry.errors == 1)


def test_without_its_parts_the_loop_is_plain_training_of_the_gpt2(aeon):
    gpt2 = aeon.gpt2
    plain = AeonGPT2(gpt2, recurrence=False, resonance=False, key=jax.random.key(0))
    step, state = begin(plain, optax.adamw(1e-2))
    batch = window(7, 3, 8)
    state, metrics = step(state, batch)

    @eqx.filter_jit
    def expected(gpt2):
        def loss(gpt2):
            out = jax.vmap(gpt2)(batch[0])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, batch[1]))

        value, grads = eqx.filter_value_and_grad(loss)(gpt2)
        weights, adamw = eqx.filter(gpt2, eqx.is_inexact_array), optax.adamw(1e-2)
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = adamw.update(grads, adamw.init(weights), weights)
        return value, grads, eqx.apply_updates(gpt2, updates)

    value, *expected = expected(gpt2)
    assert np.allclose(metrics["loss"], value, rtol=1e-12) and metrics["recurrence"] == 0
    # Adam's first step is the sign of the gradient: where that is rounding, so is the step.
    leaves = map(jax.tree.leaves, (state.model.gpt2, *expected))
    for ours, g, theirs in zip(*leaves, strict=True):
        ours, g, theirs = map(np.asarray, (ours, g, theirs))
        assert np.allclose(ours[np.abs(g) > 1e-9], theirs[np.abs(g) > 1e-9], rtol=0, atol=1e-7)


def test_the_loop_leaves_alone_what_is_frozen(aeon):
    gpt2 = lora(aeon.gpt2, rank=1, alpha=1, key=jax.random.key(0))
    model = AeonGPT2(gpt2, recurrence=False, resonance=False, key=jax.random.key(0))
    step, state = begin(model, optax.adamw(1e-2, weight_decay=0.1))
    state, _ = step(state, window(7, 3, 8))
    marks = jax.tree.leaves(trainable(gpt2))
    leaves = zip(*map(jax.tree.leaves, (state.model.gpt2, gpt2)), marks, strict=True)
    moved = [(bool(jnp.any(a != b)), mark) for a, b, mark in leaves]
    assert (False, False) in moved and (True, False) not in moved
    assert jnp.any(state.model.gpt2.blocks.attn.c_attn.b != 0)


def test_misuse_is_refused_with_its_name(aeon):
    with pytest.raises(ValueError, match="`bound` must lie"):
        AeonGate.init(aeon.gpt2, bound=1.0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="`decay`"):
        AeonGPT2(aeon.gpt2, decay=1.0, key=jax.random.key(0))
    for name, bad in (
        ("rate", -1.0),
        ("noise", float("nan")),
        ("smoothing", 1.0),
        ("coupling", 1.5),
        ("span", 0.5),
        ("momentum", 0.99),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            LossController(**{name: bad})
    with pytest.raises(ValueError, match="`key`"):
        resonant_adamw(1e-3, LossController(noise=0.1))
    optimiser, params = resonant_adamw(1e-3), jnp.ones(2)
    with pytest.raises(ValueError, match="`value` is missing"):
        optimiser.update(params, optimiser.init(params), params)
    with pytest.raises(ValueError, match="`params` is missing"):
        optimiser.update(params, optimiser.init(params), value=jnp.ones(()))
