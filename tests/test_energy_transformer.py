"""The energy transformer that writes: appended tokens, sliding windows, generation, fast hidden neurons, parity."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax.analytic import squared_error
from eqjax.fields import Context, EnergyTransformer, EnergyTransformerLM, EquilibriumModel, LogCosh
from eqjax.fields._energy_transformer import Attending
from eqjax.gradients import EnergyEP, OracleAdjoint
from eqjax.language import Sampler, autoregress
from eqjax.relaxation import Anderson, PseudoTransient, TimeStepping, equilibrium, relax

WIDTH, MEMORIES, ROOM = 3, 2, 4


def transformer(biases=(0.0,) * ROOM, room=ROOM):
    field = EnergyTransformer(
        WIDTH, MEMORIES, room, beta=2.0, visible=LogCosh(2.0), key=jax.random.key(0)
    )
    memory_bias, visible_bias = jnp.array([0.2, -0.1]), jnp.array([0.05, -0.1, 0.0])
    return eqx.tree_at(
        lambda f: (f.attention_bias, f.memory_bias, f.visible_bias),
        field,
        (jnp.asarray(biases), memory_bias, visible_bias),
    )


def tokens(count, seed=1):
    return jax.random.uniform(jax.random.key(seed), (count, WIDTH))


@eqx.filter_jit
def settled(field, x, z0=None):
    z0 = field.initial(x) if z0 is None else z0
    return relax(field, z0, x, step=5e-3, steps=2000)


def settle(field, z0, x):
    return relax(field, z0, x, step=5e-3, steps=200)


def test_appending_is_building_the_network_of_that_context():
    field, rows = transformer((0.1, -0.2, 0.3, 9.0)), tokens(3)
    grown = Context.of(rows[:1], ROOM).append(rows[1]).append(rows[2])
    (v, h), (w, k) = settled(field, grown).value, settled(field, rows).value
    np.testing.assert_allclose(v, w, rtol=1e-12)
    np.testing.assert_allclose(h[jnp.array([0, 1, 2, 4, 5])], k, rtol=1e-12)
    assert settled(field, grown).residual < 1e-8
    # the energy is that of the smaller network, whatever the idle neuron does
    idle = h.at[3].set(7.0)
    np.testing.assert_allclose(field.energy((v, h), grown), field.energy((w, k), rows), rtol=1e-12)
    np.testing.assert_allclose(field(0.0, (v, idle), grown)[0], field(0.0, (v, h), grown)[0])


def test_sliding_is_the_network_of_the_last_tokens():
    rows, biases = tokens(7), jnp.array([0.1, -0.2, 0.3, -0.4])
    slid = Context.of(rows[:2], ROOM)
    for row in rows[2:]:
        slid = slid.append(row)
    at_once = Context.of(rows, ROOM)
    np.testing.assert_array_equal(slid.rows, at_once.rows)
    assert slid.written == at_once.written == 7 and jnp.all(slid.used)
    # token t sits in neuron t mod 4, which keeps its bias
    order = jnp.arange(3, 7) % ROOM
    v, h = settled(transformer(biases), slid).value
    w, k = settled(transformer(biases[order]), rows[3:]).value
    np.testing.assert_allclose(v, w, rtol=1e-12)
    np.testing.assert_allclose(h[:4][order], k[:4], rtol=1e-12)
    v, _ = settled(transformer(), slid).value
    w, _ = settled(transformer(), rows[3:]).value
    np.testing.assert_allclose(v, w, rtol=1e-12)
    assert jnp.max(jnp.abs(w - settled(transformer(), rows[:4]).value[0])) > 1e-3


def test_idle_neurons_have_no_activation():
    lagrangian = Attending(jnp.asarray(0.7), jnp.array([True, False, True]))
    z = jnp.array([0.3, 500.0, -1.0])
    expected = jax.nn.softmax(0.7 * z[jnp.array([0, 2])])
    np.testing.assert_allclose(jax.grad(lagrangian)(z), [expected[0], 0, expected[1]], rtol=1e-12)


def test_generation_is_the_naive_loop():
    model = EnergyTransformerLM(transformer((0.1, -0.2, 0.3, -0.4)), 5, key=jax.random.key(3))
    prompt, count, key = jnp.array([1, 4]), 7, jax.random.key(4)
    sampler = Sampler(0.5)

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def generate(model, prompt, key):
        context = model.encode(prompt)
        read, logits = model.reader(settle), model.answer(context, settle)
        return autoregress(read, logits, context, count, sampler=sampler, key=key)

    new, _, context = generate(model, prompt, key)
    written = list(map(int, prompt))
    for i in range(count):
        length = min(len(written), ROOM)
        kept = np.array(written[len(written) - length :])
        places = np.arange(len(written) - length, len(written)) % ROOM
        biases = model.field.attention_bias[places]
        small = eqx.tree_at(lambda f: f.attention_bias, model.field, biases)
        x = model.embedding[kept]
        logits = model.decode(naive(small, x))
        written.append(int(sampler(logits, jax.random.fold_in(key, i))))
    assert written[2:] == new.tokens.tolist() and len(set(new.tokens.tolist())) > 1
    assert context.written == 2 + count
    generate(model, jnp.array([0, 2]), key)


@eqx.filter_jit
def naive(field, x):
    return settle(field, field.initial(x), x).value


def test_fast_hidden_neurons_have_the_same_fixed_points():
    field, x = transformer((0.1, -0.2, 0.3, -0.4)), tokens(4)
    fast = field.adiabatic()
    v, h = settled(field, x).value
    solver = Anderson(rtol=1e-10, mixing=0.1)
    found = equilibrium(fast, fast.initial(x), x, solver=solver)
    np.testing.assert_allclose(found.value, v, atol=1e-8)
    np.testing.assert_allclose(fast.complete(found.value, x)[1], h, atol=1e-8)
    away = v + 0.3
    whole = fast.complete(away, x)
    np.testing.assert_allclose(fast(0.0, away, x), field(0.0, whole, x)[0], rtol=1e-12)
    np.testing.assert_allclose(fast.energy(away, x), field.energy(whole, x), rtol=1e-12)
    slope = jax.grad(fast.energy)(away, x)  # -τ_v L_v'' times the force
    stiffness = jax.hessian(field.visible)(away)
    np.testing.assert_allclose(slope, -0.1 * stiffness @ fast(0.0, away, x), rtol=1e-10)


def test_energy_contrast_trains_the_reduction():
    def encoder(bits):
        return jnp.array([[0.1, 0.2, 0.0], [0.9, 0.4, 0.7]])[bits]

    fast = transformer((0.1, -0.2, 0.3, -0.4)).adiabatic()
    model = EquilibriumModel(encoder, fast, jnp.tanh, fast.initial)
    batch = jnp.array([[0, 1, 1, 0], [1, 1, 1, 0]]), jnp.array([[0.1, 0.0, 0.3], [-0.2, 0.1, 0.0]])
    free = Anderson(rtol=1e-11, mixing=0.1)
    oracle = OracleAdjoint(free=free)(model, squared_error, batch)
    nudged = Anderson(rtol=1e-8, mixing=0.2)
    energy = EnergyEP(free=free, nudged=nudged, radius=1e-4)(model, squared_error, batch)
    assert jnp.all(oracle.report.accepted) and jnp.all(energy.report.accepted)
    scale = jax.tree.map(lambda exact: jnp.max(jnp.abs(exact)), oracle.grads)
    found, exact = (jax.tree.map(jnp.divide, e.grads, scale) for e in (energy, oracle))
    chex.assert_trees_all_close(found, exact, rtol=0, atol=1e-4)


def test_rails_bound_what_the_rectified_memory_leaves_unbounded(experiment):
    parity = experiment("parity")
    assert len(set(parity.HELD_OUT)) == 52 and not {0, 255} & set(parity.HELD_OUT)
    assert len(parity.TRAINING) == 204
    bounded = []
    for form in ("published", "rails"):
        model = parity.build(jax.random.key(0), form)
        model = eqx.tree_at(lambda m: m.roots.patterns, model, 3 * model.roots.patterns)
        bounded.append(parity.report(model, 5e-3, horizons=4)["bounded"])
    assert bounded == [0, 256]


def test_the_weights_that_are_kept_do_as_reported(experiment):
    parity = experiment("parity")
    stays = parity.report(parity.load("rails"), 5e-3, horizons=40)
    assert stays["bounded"] == stays["settled"] == stays["right and settled"] == 256
    leaves = parity.report(parity.load("published"), 5e-3, horizons=40)
    assert leaves["held out"] == leaves["training"] == 1.0
    assert leaves["bounded"] < 20


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="`room` and the number of tokens must be at least 1"):
        Context.of(jnp.zeros((0, WIDTH)), ROOM)
    with pytest.raises(ValueError, match="`vocabulary` must hold at least 2 tokens, got 1"):
        EnergyTransformerLM(transformer(), 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="The context has 5 tokens, and there is room for 4"):
        transformer().network(Context.of(tokens(5), 5))


def test_the_published_start_and_a_readout_bias_are_a_choice():
    field = transformer((0.1, -0.2, 0.3, -0.4))
    key = jax.random.key(3)
    ours = EnergyTransformerLM(field, 5, key=key)
    theirs = EnergyTransformerLM(field, 5, bias=True, start="published", key=key)
    assert ours.bias is None and theirs.bias.shape == (5,)
    theirs = eqx.tree_at(lambda m: m.bias, theirs, jnp.arange(5.0))
    x = theirs.encode(jnp.array([1, 4]))
    v, h = theirs.initial(x)
    assert not v.any() and np.array_equal(h, [0.1, -0.2, 0.3, -0.4, 0.2, -0.1])
    # one fixed point here, and the same whatever the start
    answers = [model.answer(x, settled_from) for model in (ours, theirs)]
    np.testing.assert_allclose(answers[0] + jnp.arange(5.0), answers[1], rtol=1e-7)
    with pytest.raises(ValueError, match=r'`start` must be "rest" or "published", got'):
        EnergyTransformerLM(field, 5, start="zero", key=key)


def settled_from(field, z0, x):
    return settled(field, x, z0)


def test_times_that_differ_are_no_hindrance():
    """Hidden neurons ten times as fast as the visible ones: the first step is that of the fast ones."""
    field = EnergyTransformer(8, 8, 6, visible=LogCosh(4.0), key=jax.random.key(0))
    contexts = jax.random.uniform(jax.random.key(1), (8, 6, 8))

    @jax.jit
    @jax.vmap
    def found(x):
        find = lambda solver: equilibrium(
            field, field.initial(x), x, solver=solver, throw=False, check=True
        )
        flow, transient = map(find, (TimeStepping(1e-6), PseudoTransient(1e-6)))
        return flow.value, transient.value, flow.stats["stable"] & transient.stats["stable"]

    flow, transient, stable = found(contexts)
    assert stable.all()
    chex.assert_trees_all_close(flow, transient, atol=1e-4)
