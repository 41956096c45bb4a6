"""Fuzzy ART, its continuous form, and the adaptive-resonance learning law."""

import hashlib

import chex
import diffrax as dfx
import equinox as eqx
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from scipy.stats import rankdata
from sklearn.datasets import load_digits, load_iris, make_blobs

import eqjax as ej
from eqjax.language import GPT2, GPT2Config
from eqjax.resonance import (
    ARLL,
    AdaptiveResonance,
    FuzzyART,
    HeadTap,
    LayerTap,
    SimpleARTMAP,
    complement_code,
    nearest_distance,
    squash,
    stacked,
)
from eqjax.training import TrainState, make_step

learn = jax.jit(FuzzyART.learn)
BLOBS = make_blobs(150, centers=3, cluster_std=0.5, random_state=0, shuffle=False)[0]
CONFIG = GPT2Config(vocab_size=13, n_positions=16, n_embd=12, n_layer=2, n_head=3)


def coded(x):
    low, high = x.min(axis=0), x.max(axis=0)
    return complement_code(jnp.asarray((x - low) / (high - low)))


def plain_art(inputs, vigilance, choice=1e-3, rate=1.0, capacity=10**9):
    """Fuzzy ART by its definition: try categories in the order of their choice, one after the other."""
    size = lambda v: np.abs(v).sum()
    weight, labels = [], []
    for x in inputs:
        choices = [size(np.minimum(x, w)) / max(choice + size(w), 1e-300) for w in weight]
        order = np.argsort([-c for c in choices], kind="stable")
        for k in order:
            if size(np.minimum(x, weight[k])) / size(x) >= vigilance:
                weight[k] = rate * np.minimum(x, weight[k]) + (1 - rate) * weight[k]
                break
        else:
            k = order[0] if len(weight) == capacity else len(weight)
            if k == len(weight):
                weight.append(x)
        labels.append(k)
    return np.array(weight), np.array(labels)


@pytest.mark.parametrize(
    "data, settings, count, total, sha",
    [
        ("blobs", {"vigilance": 0.5, "choice": 0.0}, 3, 3.6983139010, "734737f111629912"),
        ("iris", {"vigilance": 0.5}, 3, 6.4705743879, "f3b43812cad1cfbb"),
        ("iris", {"vigilance": 0.7, "rate": 0.5}, 7, 21.3640139018, "97680d75fcfe0996"),
    ],
)
def test_labels_are_those_of_artlib(data, settings, count, total, sha):
    inputs = coded(BLOBS if data == "blobs" else load_iris().data)
    art, labels = learn(FuzzyART.empty(inputs.shape[1], 20, **settings), inputs)
    assert art.count == count and art.overflow == 0
    assert abs(jnp.sum(art.weight[:count]) - total) < 1e-9
    assert jnp.all(art.weight[count:] == 1)
    assert hashlib.sha256(np.asarray(labels, np.int64).tobytes()).hexdigest()[:16] == sha


@given(
    hnp.arrays(np.float64, (12, 3), elements=st.floats(0, 1, width=16)),
    st.floats(0, 1),
    st.sampled_from([0.0, 1e-3, 1.0]),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([3, 12]),
)
def test_it_is_fuzzy_art_by_definition_and_boxes_stay_bounded(x, vigilance, choice, rate, capacity):
    inputs = complement_code(jnp.asarray(x))
    empty = FuzzyART.empty(6, capacity, vigilance=vigilance, choice=choice, rate=rate)
    art, labels = learn(empty, inputs)
    count, labels = int(art.count), np.asarray(labels)
    used = np.asarray(art.weight)[:count]
    assert np.all(used.sum(axis=1) >= 3 * vigilance - 1e-12)
    assert count + art.overflow <= 12 and labels.max() < count
    weight, expected = plain_art(np.asarray(inputs), vigilance, choice, rate, capacity)
    if np.array_equal(labels, expected):
        np.testing.assert_allclose(used, weight, atol=1e-12)
    else:  # only where two choices, or a match and ρ, agree to rounding: either answer is right
        k = int(np.argmax(labels != expected))
        before = plain_art(np.asarray(inputs[:k]), vigilance, choice, rate, capacity)[0]
        overlap = np.minimum(np.asarray(inputs[k]), before).sum(axis=1)
        choices = np.append(overlap / np.maximum(choice + before.sum(axis=1), 1e-300), -1)
        tied = abs(choices[labels[k]] - choices[expected[k]]) < 1e-12
        assert tied or np.min(abs(overlap / 3 - vigilance)) < 1e-12


def test_at_full_capacity_the_nearest_category_answers_and_nothing_grows():
    inputs = coded(load_iris().data)
    small, labels = learn(FuzzyART.empty(8, 3, vigilance=0.7, rate=0.5), inputs)
    weight, expected = plain_art(np.asarray(inputs), 0.7, rate=0.5, capacity=3)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(small.weight, weight)
    assert small.count == 3 and small.overflow > 0
    stranger = complement_code(jnp.array([1.0, 0, 1, 0]))
    assert jnp.max(small.match(stranger)) < 0.7
    again, label = small.step(stranger)
    assert again.overflow == small.overflow + 1 and label == small.predict(stranger)
    assert jnp.array_equal(again.weight, small.weight)


def test_novelty_prediction_and_the_empty_value(key):
    empty = FuzzyART.empty(8, 5)
    x = complement_code(jax.random.uniform(key, (4,)))
    assert empty.predict(x) == -1 and empty.novelty(x) == 1
    one, _ = learn(empty, x[None])
    assert one.predict(x) == 0 and one.novelty(x) == 0
    other = complement_code(jax.random.uniform(jax.random.key(1), (4,)))
    # the match with a point is 1 - the mean distance
    assert jnp.allclose(one.novelty(other), jnp.mean(jnp.abs(other - x)[:4]))


def test_learning_goes_on_where_it_stopped_and_in_float32_and_vmap():
    inputs = coded(load_iris().data)
    empty = FuzzyART.empty(8, 12, vigilance=0.7)
    whole, labels = learn(empty, inputs)
    half, first = learn(empty, inputs[:75])
    both, second = learn(half, inputs[75:])
    assert jnp.array_equal(jnp.concatenate([first, second]), labels)
    assert jnp.array_equal(both.weight, whole.weight)
    several, many = jax.vmap(FuzzyART.learn)(stacked(empty, 2), jnp.stack([inputs, inputs[::-1]]))
    assert jnp.array_equal(several.weight[0], whole.weight) and several.count.shape == (2,)
    assert not jnp.array_equal(many[0], many[1])
    single, _ = learn(FuzzyART.empty(8, 12, vigilance=0.7, dtype=jnp.float32), inputs.astype("f4"))
    assert single.weight.dtype == jnp.float32 and single.count == whole.count


def test_misuse_is_named():
    for settings, word in (
        ({"vigilance": 1.2}, "vigilance"),
        ({"choice": -1}, "choice"),
        ({"rate": 0}, "rate"),
    ):
        with pytest.raises(ValueError, match=f"`{word}` must"):
            FuzzyART.empty(4, 2, **settings)
    with pytest.raises(ValueError, match="`capacity`"):
        FuzzyART.empty(4, 0)
    with pytest.raises(ValueError, match="complement"):
        FuzzyART.empty(4, 2).predict(jnp.ones(2))
    with pytest.raises(Exception, match="outside"):
        learn(FuzzyART.empty(2, 2), -jnp.ones((1, 2)))
    for wrong, word in (({"tau": 0.0}, "tau"), ({"pull": -1.0}, "pull")):
        with pytest.raises(ValueError, match=word):
            AdaptiveResonance(**wrong)
    with pytest.raises(ValueError, match="strength"):
        ARLL(strength=-1.0)
    law = ARLL(stride=20)
    model = GPT2.init(CONFIG, jax.random.key(0))
    tokens = jnp.zeros((1, 8), jnp.int32)
    with pytest.raises(ValueError, match="stride"):
        law(model, ej.cross_entropy, (tokens, tokens), carry=law.start(model))
    with pytest.raises(ValueError, match="carry"):
        law(model, ej.cross_entropy, (tokens, tokens))


def test_raw_signed_activations_are_vacuous_and_squashed_ones_are_not():
    raw = np.random.default_rng(0).normal(size=(2000, 768))
    assert len(plain_art(raw, 0.9)[0]) == 1
    inputs = complement_code(squash(jnp.asarray(raw[:60])))
    match = jax.vmap(learn(FuzzyART.empty(1536, 1), inputs[:1])[0].match)(inputs[1:])
    assert abs(jnp.mean(match) - 0.760) < 0.003 and jnp.max(jnp.abs(match - 0.76)) < 0.02
    for vigilance, count in ((0.9, 60), (0.7, 30)):  # below .76 any two share a category
        art, _ = learn(FuzzyART.empty(1536, 60, vigilance=vigilance), inputs)
        assert art.count == count


def auroc(score, positive):
    ranks, n = rankdata(score)[positive], positive.sum()
    return (ranks.sum() - n * (n + 1) / 2) / (n * (len(score) - n))


def test_digits_one_after_the_other_and_novel_ones():
    digits = load_digits()
    x = complement_code(jnp.asarray(digits.data / 16))
    y, held_out = digits.target, np.arange(len(digits.target)) % 5 == 0
    map_ = SimpleARTMAP.empty(FuzzyART.empty(128, 256, vigilance=0.7))
    right = np.zeros((5, 5))
    fit, predict = jax.jit(SimpleARTMAP.learn), jax.jit(jax.vmap(SimpleARTMAP.predict, (None, 0)))
    assert map_.predict(x[0]) == -1
    for task in range(5):
        now = ~held_out & (y // 2 == task)
        map_ = fit(map_, x[now], jnp.asarray(y[now]))
        guess = np.asarray(predict(map_, x))
        for k in range(5):
            of = held_out & (y // 2 == k)
            right[task, k] = np.mean(guess[of] == y[of])
    assert map_.art.overflow == 0
    assert abs(right[-1].mean() - 0.9789) < 1e-4
    assert abs(np.mean(right[-1, :4] - np.diag(right)[:4]) + 0.0111) < 1e-4

    known = ~held_out & (y < 8)
    art, _ = learn(FuzzyART.empty(128, 400, vigilance=0.8), x[known])
    novel, raw = y[held_out] >= 8, digits.data
    means = np.stack([raw[known & (y == c)].mean(axis=0) for c in range(8)])

    def distance(to):
        gaps = raw[held_out][:, None] - to[None]
        return np.linalg.norm(gaps, axis=-1).min(axis=1)

    novelty = jax.jit(jax.vmap(art.novelty))(x[held_out])
    for score, expected in (
        (novelty, 0.885),
        (distance(means), 0.848),
        (distance(raw[known]), 0.987),
    ):
        assert abs(auroc(np.asarray(score), novel) - expected) < 5e-4


def test_match_tracking_separates_what_vigilance_would_join():
    x = complement_code(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.6], [0.9, 0.1]]))
    map_ = SimpleARTMAP.empty(FuzzyART.empty(4, 6, vigilance=0.0))
    map_ = map_.learn(x, jnp.array([3, 7, 7, 3]))
    # The second input is the first with another class: it takes ρ = 1 to tell them apart, and a category of its own.
    # The third fits both of these equally, so that ρ, raised past the first, leaves out the second as well.
    np.testing.assert_array_equal(map_.label, [3, 7, 7, -1, -1, -1])
    np.testing.assert_allclose(map_.art.weight[2], x[2])
    np.testing.assert_allclose(map_.art.weight[0], [0.5, 0.1, 0.1, 0.5])  # the fourth joined it
    assert map_.predict(x[2]) == 7 and map_.predict(x[3]) == 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_euler_step_with_the_state_clamped_is_the_discrete_rule(dtype, key):
    rate, tau = 0.25, 2.0
    w, h = jax.random.uniform(key, (2, 10), dtype)
    field = AdaptiveResonance(tau=tau, pull=0.0)
    settled = ej.relax(field, (w, h), step=rate * tau, steps=1)
    art = FuzzyART.empty(10, 1, vigilance=0.0, rate=rate, dtype=dtype)
    art = eqx.tree_at(lambda a: (a.weight, a.count), art, (w[None], jnp.ones((), jnp.int32)))
    after, _ = art.step(h)
    assert settled.value[0].dtype == dtype
    eps = jnp.finfo(dtype).eps
    assert jnp.max(jnp.abs(settled.value[0] - after.weight[0])) <= eps
    assert jnp.array_equal(settled.value[1], h)


def test_the_continuous_form_settles_where_its_closed_form_says(key):
    tau, pull, t = 0.7, 0.4, 1.3
    w, h = jax.random.uniform(key, (2, 6))
    gap = w - h
    field = AdaptiveResonance(tau=tau, pull=pull)
    precise = dict(
        solver=dfx.Tsit5(), controller=dfx.PIDController(rtol=1e-9, atol=1e-11), step=0.01
    )
    times = dfx.SaveAt(ts=jnp.append(jnp.linspace(0, t, 20), jnp.linspace(2, 40, 30)))
    far = ej.relax(field, (w, h), t1=40.0, saveat=times, **precise)
    ws, hs = far.trajectory
    left = gap * jnp.exp(-(jnp.where(gap > 0, 1 + pull, pull)) * t / tau)
    np.testing.assert_allclose((ws - hs)[19], left, atol=1e-7)
    end = jnp.where(gap > 0, w - gap / (1 + pull), w)
    for part in far.value:
        np.testing.assert_allclose(part, end, atol=1e-8)
    lyapunov = 0.5 * jnp.sum((ws - hs) ** 2, axis=1)
    assert jnp.all(jnp.diff(lyapunov) <= 1e-15) and jnp.all(jnp.diff(ws, axis=0) <= 1e-8)
    assert far.residual < 1e-8
    # -∇V · F = (|relu(w - h)|² + λ |w - h|²) / τ
    force = field(0.0, (w, h))
    rate = jnp.sum(gap * (force[0] - force[1]))
    expected = -(jnp.sum(jax.nn.relu(gap) ** 2) + pull * jnp.sum(gap**2)) / tau
    np.testing.assert_allclose(rate, expected)


OPTIMISER = optax.adamw(1e-2)
LAW = ARLL(stride=2)


def law_of(strength):
    return eqx.tree_at(lambda law: law.strength, LAW, jnp.asarray(strength, float))


@eqx.filter_jit
@chex.assert_max_traces(n=2)  # one for each tap
def train(law, state, batch):
    """A step that donates nothing."""
    return make_step(law, OPTIMISER)(state, batch)


def begin(law, model):
    carry = law.start(model, capacity=6, vigilance=0.9)
    return TrainState.create(model, OPTIMISER, key=jax.random.key(0), carry=carry)


@pytest.fixture(scope="module")
def model():
    return GPT2.init(CONFIG, jax.random.key(3))


@pytest.fixture(scope="module")
def batch():
    tokens = jax.random.randint(jax.random.key(4), (3, 9), 0, 13, jnp.int32)
    return tokens[:, :-1], tokens[:, 1:]


def test_the_taps_read_the_states_of_the_model(model, batch):
    tokens = batch[0][0]
    logits, states = LayerTap()(model, tokens)
    np.testing.assert_allclose(logits, model(tokens), atol=1e-12)
    np.testing.assert_allclose(states, model.hidden(tokens)[1:], atol=1e-12)
    logits, heads = HeadTap()(model, tokens)
    np.testing.assert_allclose(logits, model(tokens), atol=1e-12)
    assert heads.shape == (6, 8, 4) and HeadTap().shape(CONFIG) == (6, 4)
    # the first token attends to itself: what its heads mix is its value
    attn = jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, model.blocks)
    value = attn.attn.project(attn.ln_1(model.embed(tokens)))[2]
    np.testing.assert_allclose(heads[:3, 0], value[0], atol=1e-12)


def test_without_strength_the_weights_are_those_of_adamw(model, batch):
    state = begin(LAW, model)
    plain, opt_state = model, OPTIMISER.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, opt_state):
        def loss(model):
            return ej.cross_entropy(jax.vmap(model)(batch[0]), batch[1])

        grads = eqx.filter_grad(loss)(model)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = OPTIMISER.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state

    for _ in range(4):
        state, metrics = train(LAW, state, batch)
        plain, opt_state = step(plain, opt_state)
    for a, b in zip(jax.tree.leaves(state.model), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0)
    assert metrics["updated"] and jnp.all(metrics["categories"] > 0) and metrics["distance"] > 0
    assert metrics["loss"] == metrics["cross_entropy"]
    assert not np.allclose(model.wte, plain.wte, atol=1e-3)


@pytest.mark.parametrize("tap", [LayerTap(), HeadTap()])
def test_prototypes_pull_the_states_and_grow_by_vigilance(tap, model, batch):
    law = eqx.tree_at(lambda law: law.tap, law_of(1.0), tap)
    state = begin(law, model)
    state, first = train(law, state, batch)
    groups, width = tap.shape(CONFIG)
    assert state.carry.weight.shape == (groups, 6, 2 * width)
    assert first["distance"] == 0 and jnp.all(first["novelty"] == 1)  # nothing was known
    states = complement_code(squash(jax.vmap(lambda t: tap(model, t)[1])(batch[0])))
    for g in range(groups):
        inputs = np.asarray(states[:, g, 1::2]).reshape(-1, 2 * width)
        weight, _ = plain_art(inputs, 0.9, capacity=6)
        assert state.carry.count[g] == len(weight)
        np.testing.assert_allclose(state.carry.weight[g, : len(weight)], weight, atol=1e-12)
    frozen = state.carry
    before = jnp.mean(law.loss(state.model, frozen, batch, ej.cross_entropy)[1])
    for _ in range(8):
        state, last = train(law, eqx.tree_at(lambda s: s.carry, state, frozen), batch)
    after = jnp.mean(law.loss(state.model, frozen, batch, ej.cross_entropy)[1])
    assert 0 < after < before
    assert jnp.all(last["novelty"] < 1)


def test_the_distance_is_the_least_one_and_moves_only_the_inputs(key):
    inputs = complement_code(jax.random.uniform(key, (20, 5)))
    art, _ = learn(FuzzyART.empty(10, 8, vigilance=0.8), inputs)
    others = complement_code(jax.random.uniform(jax.random.key(9), (6, 5)))
    used = np.asarray(art.weight[: int(art.count)])
    gaps = np.asarray(others)[:, None] - used[None]
    np.testing.assert_allclose(nearest_distance(art, others), (gaps**2).sum(-1).min(1), atol=1e-12)
    held, moved = jax.grad(lambda a: jnp.sum(nearest_distance(*a)), allow_int=True)((art, others))
    assert jnp.all(held.weight == 0)
    best = (gaps**2).sum(-1).argmin(1)
    np.testing.assert_allclose(moved, 2 * gaps[np.arange(6), best], atol=1e-12)
    assert jnp.all(nearest_distance(FuzzyART.empty(10, 2), others) == 0)


def test_a_bad_batch_changes_nothing(model, batch):
    law = law_of(0.1)
    state, _ = train(law, begin(law, model), batch)
    tokens = batch[0].at[0, 0].set(99)  # no such token: NaN
    after, metrics = train(law, state, (tokens, batch[1]))
    assert not metrics["updated"]
    told = lambda s: (s.model, s.opt_state, s.carry)
    for a, b in zip(jax.tree.leaves(told(after)), jax.tree.leaves(told(state)), strict=True):
        assert jnp.array_equal(a, b)


def test_novelty_is_one_minus_the_best_match_and_a_sweep_does_not_recompile(model, batch):
    state = begin(LAW, model)
    state, _ = train(LAW, state, batch)
    for strength in (0.1, 0.2):
        train(law_of(strength), state, batch)
    art = stacked(FuzzyART.empty(24, 64, vigilance=0.95), 2)
    seen = complement_code(squash(jax.vmap(lambda t: LayerTap()(model, t)[1])(batch[0])))
    known, _ = jax.vmap(FuzzyART.learn)(art, jnp.swapaxes(seen, 0, 1).reshape(2, -1, 24))
    other = (batch[0] + 5) % 13
    states = complement_code(squash(jax.vmap(lambda t: LayerTap()(model, t)[1])(other)))
    expected = []
    for sequence in np.asarray(states):
        best = []
        for g, x in enumerate(sequence):
            used = np.asarray(known.weight[g])[: int(known.count[g])]
            overlap = np.minimum(x[:, None], used[None]).sum(-1) / x.sum(-1, keepdims=True)
            best.append(1 - overlap.max(1))
        expected.append(np.mean(best))
    np.testing.assert_allclose(LAW.novelty(model, known, other), expected, atol=1e-12)
    assert jnp.max(LAW.novelty(model, known, batch[0])) < min(expected)
