"""Bad calls, in one table: each is refused before any work, by a `ValueError` that names what is wrong."""

import functools
import re

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import eqjax as ej
from eqjax import fields, language, relaxation

ROOMS = "fields relaxation gradients stability homeostasis training language memory recipes"

# A line is a call and the argument that the message must name; or a call with `name=_`, and values of it that are all bad.
CALLS = """
ej.equilibrium(field, jnp.zeros(5), x)  # field(t, z, x)
ej.equilibrium(field, z, jnp.ones(3))  # field(t, z, x)
ej.equilibrium(field, z, None)  # field(t, z, x)
ej.equilibrium(field, z, 'hello')  # field(t, z, x)
ej.equilibrium(lambda z: -z, z, x)  # field(t, z, x)
ej.equilibrium(lambda t, z, x: jnp.sum(z), z, x)  # field(t, z, x)
ej.equilibrium(lambda t, z, x: None, z, x)  # field(t, z, x)
ej.equilibrium(3, z, x)  # field
ej.equilibrium(field, 'zero', x)  # z0
ej.equilibrium(field, None, x)  # z0
ej.equilibrium(field, (), x)  # z0
ej.equilibrium(field, jnp.zeros(4, int), x)  # z0
ej.equilibrium(field, z, x, max_steps=_) : 0 -3 2.5 nan inf None '100' True
ej.equilibrium(field, z, x, solver=_) : 'anderson' None ej.Anderson dfx.Tsit5()
ej.equilibrium(field, z, x, precision=_) : 'hihg' 3
ej.equilibrium(field, z, x, adjoint=_) : 'implicit'
ej.equilibrium(field, z, x, throw=_) : 'no' None
ej.equilibrium(field, z, x, check=_) : 'yes' None
ej.equilibrium(field, z, x, conserved=_) : 3 jnp.isfinite
relaxation.Anderson(rtol=_) : -1.0 nan inf None '1e-5' True jnp.asarray(nan)
relaxation.Broyden(1e-5, atol=_) : -1.0 nan inf None '0'
relaxation.TimeStepping(1e-5, scale=_) : -1.0 0.0 nan inf '0'
relaxation.Anderson(1e-5, mixing=_) : -1.0 0.0 nan 'a'
relaxation.Anderson(1e-5, ridge=_) : -1.0 nan 'a'
relaxation.Anderson(1e-5, growth=_) : 0.0 nan 'a'
relaxation.Anderson(1e-5, patience=_) : 0 1.5 'a' nan
relaxation.Broyden(1e-5, window=_) : 0 1.5 '8' None 10**9
relaxation.Broyden(1e-5, norm=_) : 3 None 'two'
relaxation.Picard(1e-5, step_size=_) : -1.0 0.0 nan inf '0.1'
relaxation.NewtonKrylov(1e-5, forcing=_) : 0.0 1.0 nan 'a'
relaxation.NewtonKrylov(1e-5, restart=_) : 0 1.5
relaxation.NewtonKrylov(1e-5, krylov_steps=_) : 0 'a'
relaxation.NewtonKrylov(1e-5, halvings=_) : -1 1.5
relaxation.PseudoTransient(1e-5, min_step=_) : nan 'a'
relaxation.PseudoTransient(1e-5, growth=_) : 0.5 nan
relaxation.TimeStepping(1e-5, step_size=_) : inf nan '1'
relaxation.TimeStepping(1e-5, solver=_) : 'euler'
relaxation.GMRES(rtol=_) : -1.0 nan inf 'a'
relaxation.GMRES(1e-3, restart=_) : 0 1.5 'a'
relaxation.Fallback(anderson, None)  # then
relaxation.Fallback(anderson, anderson, first_steps=_) : 0 1.5
relaxation.Quorum(anderson, settled=_) : nan 2.0 'a'
relaxation.Refine(coarse=_) : 'nonsense' None
relaxation.Refine(rtol=_) : nan inf 'a'
ej.relax(field, z, x)  # steps
ej.relax(field, z, x, steps=_) : 0 -1 1.5 True '3' nan 10**30
ej.relax(field, z, x, t1=_) : -1.0 nan inf '1'
ej.relax(field, z, x, t1=1.0, max_steps=_) : 0 2.5 'a'
ej.relax(field, z, x, steps=3, step=_) : 0.0 nan inf -1 '0.1' None jnp.asarray(-1.0)
ej.relax(field, z, x, steps=3, key=key, temperature=_) : -1.0 nan inf 'hot'
ej.relax(field, z, x, steps=3, temperature=1.0, key=_) : 0 '0' keys
ej.relax(field, jnp.zeros(5), x, steps=3)  # field(t, z, x)
ej.relax(field, z, None, steps=3)  # field(t, z, x)
ej.relax(field, None, x, steps=3)  # z0
ej.relax(field, z, x, steps=3, solver=_) : 'euler' dfx.Euler anderson
ej.relax(field, z, x, t1=1.0, controller=_) : 'pid'
ej.relax(field, z, x, steps=3, saveat=_) : 'all'
relaxation.fire(neuron, 0.0, capacity=3, t1=_) : nan inf -1.0 'a'
relaxation.fire(neuron, 0.0, t1=1.0, capacity=_) : 0 1.5
relaxation.fire(neuron, 'a', t1=1.0, capacity=3)  # z0
relaxation.fire(field, z, t1=1.0, capacity=3)  # network
asymep(model, loss, None)  # batch
asymep(model, loss, (x, x, x))  # batch
asymep(model, loss, (ones[:0], ones[:0]))  # batch
asymep(model, loss, (ones, ones[:2]))  # batch
asymep(model, loss, ('a', 'b'))  # inputs
asymep(model, loss, (jnp.ones((3, 5)), ones))  # field(t, z, x)
asymep(model, loss, (ones, jnp.ones((3, 1))))  # targets
asymep(model, loss, (ones, jnp.ones(3)))  # targets
asymep(model, lambda o, t: (o - t) ** 2, (ones, ones))  # loss(outputs, targets)
asymep(model, lambda o: o.sum(), (ones, ones))  # loss(outputs, targets)
asymep(model, lambda o, t: 3.0, (ones, ones))  # loss(outputs, targets)
asymep(model, lambda o, t: o.sum() * 1j, (ones, ones))  # loss(outputs, targets)
bptt(model, lambda o, t: o.argmax(), (ones, ones))  # loss(outputs, targets)
oracle(model, lambda o, t: (o.sum(), o), (ones, ones))  # loss(outputs, targets)
bptt(model, lambda o, t: (o - t) ** 2, (ones, ones))  # loss(outputs, targets)
bptt(model, lambda o: o.sum(), (ones, ones))  # loss(outputs, targets)
oracle(model, lambda o, t: None, (ones, ones))  # loss(outputs, targets)
asymep(model, 'mse', (ones, ones))  # loss
bptt(model, None, (ones, ones))  # loss
asymep(field, loss, (ones, ones))  # model
oracle(None, loss, (ones, ones))  # model
asymep(model, loss, (ones, ones), subset=_) : jnp.ones(2,bool) jnp.ones(3) 'a'
bptt(model, loss, (ones, ones), key=_) : 0 '0'
oracle(lm, ej.cross_entropy, (tokens[:, 1:], tokens[:, 1:].astype(float)))  # targets
oracle(lm, ej.cross_entropy, (tokens[:, 1:], tokens[:, 2:]))  # targets
ej.EquilibriumModel(None, field, identity)  # encoder
ej.EquilibriumModel(identity, 3, identity)  # field
ej.EquilibriumModel(identity, field, identity, 3)  # start
ej.AsymEP(beta=_) : 0.0 nan -1.0 inf '0.1' True
ej.AsymEP(radius=_) : 0.0 nan '0.1' jnp.array([1.0,-1.0])
ej.AsymEP(radius=_)(model, loss, (ones, ones)) : jnp.ones(2) jnp.ones((3,1))
ej.DyadicEP(radius=_)(model, loss, (ones, ones)) : jnp.ones(2)
ej.AsymEP(beta=_)(model, loss, (ones, ones)) : jnp.ones(2)
ej.AsymEP(read_noise=_) : 0.0 nan -0.1 'a'
ej.AsymEP(state_noise=_) : 0.0 nan inf 'a'
ej.AsymEP(nudged=_) : 'anderson' None relaxation.NewtonKrylov(1e-3)
ej.AsymEP(free=_) : 'anderson' None ej.Anderson
ej.AsymEP(free_steps=_) : 0 1.5 'a'
ej.AsymEP(accept=_) : 1e-3 None
ej.AsymEP(trains=_) : 3 None
ej.AsymEP(correction=_) : 'exact'
gradients.Nudge(steps=_) : 0 1.5 inf 'a'
gradients.Nudge(stencil=_) : 'central'
gradients.Accept(free_residual=_) : 0.0 nan -1.0 '1e-3'
gradients.Accept(adjoint_residual=_) : 0.0 nan '1'
gradients.Central(pairs=_) : 0 -2 1.5 'a'
ej.HolomorphicEP(points=_) : 0 2.5 '4'
ej.BPTT(steps=_) : 0 1.5 '5' nan None
ej.BPTT(step=_) : -1.0 nan inf '0.1'
ej.BPTT(steps=3, truncate=_) : 0 9 1.5 'a'
ej.BPTT(solver=_) : 'euler'
ej.OracleAdjoint(adjoint_solver=_) : 'gmres'
gradients.TruncatedAdjoint(terms=_) : 0 -1 1.5 'a'
gradients.TruncatedAdjoint(damping=_) : 0.0 nan inf 'a'
gradients.DyadicEP(radius=_) : nan inf 'a'
gradients.Averaged('asymep')  # estimator
gradients.Averaged(asymep, repeats=_) : 0 1.5 'a'
gradients.ProbeCorrection(probes=_) : 0 1.5
gradients.Reversible(coupling=_) : nan 1.0 'a'
gradients.LockIn(period=_) : nan 0.0
gradients.LockIn(transient=_) : -1 'a'
ej.compare(model, loss, (ones, ones), _estimators_)  # estimators
ej.compare(model, loss, (ones, ones), 'asymep')  # estimators
ej.compare(model, loss, (ones, ones), [asymep], repeats=_) : 0 -1 1.5 'a'
ej.compare(model, loss, (ones, ones), [asymep], reference=_) : 'oracle'
ej.cross_entropy(jnp.ones((3, 5)), jnp.zeros(3))  # targets
ej.cross_entropy(jnp.ones((3, 5)), None)  # targets
ej.squared_error('a', 'b')  # outputs
fields.RecurrentField(size=_, key=key) : 1 4.0 '4' None 10**7
fields.RecurrentField(4, key=key, asymmetry=_) : 2.0 nan 'a'
fields.RecurrentField(4, key=key, strength=_) : -1.0 nan inf 'a'
fields.RecurrentField(4, key=_) : 0 None 'a' keys
fields.GainNetwork(weight=_) : jnp.ones(4) jnp.ones((2,3)) jnp.eye(2,dtype=int) 'a'
fields.ThickBlock(8, 2, key=_) : 0 None
fields.ThickBlock(width=_, heads=2, key=key) : 7 8.0 0 -8 '8' 10**9
fields.ThickBlock(8, heads=_, key=key) : 3 0 2.0
fields.ThickBlock(8, 2, key=key, leak=_) : nan inf 'a'
fields.EnergyBlock(8, 2, key=_) : 0
fields.MonotoneBlock(8, 2, key=key, margin=_) : nan 9.0 'a'
fields.VanDerPol(damping=_) : nan 'a'
fields.LeakyIntegrateAndFire(stimulus=_) : 3
fields.feed_forward_model('abc', key=key)  # sizes
fields.feed_forward_model([4, 1.5], key=key)  # sizes
fields.hebb(None)  # patterns
fields.BinaryHopfield('a')  # weight
fields.perturbed(field, nan, key)  # spread
fields.perturbed(field, 0.1, 0)  # key
language.equilibrium_lm(length=6, width=8, heads=2, key=key, vocabulary=_) : 0 2.5 '7' 10**12
language.equilibrium_lm(7, width=8, heads=2, key=key, length=_) : 0 -1 4.5 10**12
language.equilibrium_lm(7, 6, 8, 2, key=key, embedding_scale=_) : nan -1.0 '6'
language.equilibrium_lm(7, 6, 8, 2, key=key, attention_gain=_) : nan inf 'a'
language.equilibrium_lm(7, 6, 8, 2, key=_) : 0 None
lm.encode(jnp.zeros(50, int))  # inputs
lm.encode(jnp.full(6, 99))  # inputs
lm.encode(jnp.zeros(6))  # inputs
lm.encode('hello')  # inputs
language.generate(lm, prompt[:0], 5, length=6, key=key)  # prompt
language.generate(lm, prompt.astype(float), 5, length=6, key=key)  # prompt
language.generate(lm, 'hello', 5, length=6, key=key)  # prompt
language.generate(lm, prompt, -1, length=6, key=key)  # count
language.generate(lm, prompt, 1.5, length=6, key=key)  # count
language.generate(lm, prompt, 10**12, length=6, key=key)  # count
language.generate(lm, prompt, 5, length=6, key=key, temperature=_) : -1.0 nan inf 'a'
language.generate(gpt2, prompt, 5, key=_) : 0 None
language.generate(gpt2, prompt, 5, key=key, top_k=_) : 0 1.5 'a'
language.generate(gpt2, prompt, 5, key=key, top_p=_) : 0.0 nan 2.0
language.GPT2.init(config, 0)  # key
language.GPT2.init(None, key)  # config
language.GPT2Config(n_layer=_) : 0 1.5 '8' True
language.GPT2Config(layer_norm_epsilon=_) : -1.0 nan '1e-5' None
language.GPT2Config(tie_word_embeddings=_) : 'no'
language.GPT2Config(eos_token_id=_) : -1 1.5 'a'
gpt2(jnp.zeros(4))  # tokens
gpt2(prompt[:0])  # tokens
gpt2('hello')  # tokens
language.lora(gpt2, alpha=2, key=key, rank=_) : 0 1.5 '2'
language.lora(gpt2, rank=2, key=key, alpha=_) : nan inf 0 'a'
language.lora(gpt2, rank=2, alpha=2, key=_) : 0
language.lora(None, rank=2, alpha=2, key=key)  # model
language.train_bpe([1, 2], 300)  # texts
language.train_bpe(['abc'], 300.5)  # size
language.CharTokenizer('cba')  # characters
language.CharTokenizer('')  # characters
language.CharTokenizer('abc').encode(None)  # text
language.CharTokenizer('abc').decode([1.5])  # ids
language.batches(ids, length=2, batch=2, seed=_) : -1 'a' 2**70
language.batches(ids, length=2, seed=0, batch=_) : 0 1.5
language.batches(ids, batch=2, seed=0, length=_) : 0 20
language.tiles(ids, length=_, count=1) : 0 20
language.split(ids, 2, fraction=_) : nan 2.0
memory.MemoryGPT2(gpt2, key=key, capacity=_) : -1 1.5
stability.spectrum(field, z, x, k=_) : 0 99 1.5 '2' None
stability.spectrum(field, z, x, k=2, tol=_) : nan -1.0 inf 'a'
stability.spectrum(field, z, x, k=2, step=_) : nan inf 'a'
stability.spectrum(field, z, x, k=2, key=_) : 0
stability.spectrum(field, jnp.zeros(5), x, k=2)  # field(t, z, x)
stability.spectrum(field, None, x, k=2)  # z
stability.continuation(field, z, x, where=where, bounds=_) : None 3.0 ('a','b') (2.0,1.0) (nan,1.0)
stability.continuation(field, z, x, where=where, bounds=(0.0, 1.0), linear_solver=_) : 'lu' 3 stability.SparseLU
stability.Preconditioned('ilu', 3)  # inverse
stability.Rightmost(solver=_) : 'lu' None
stability.continuation(field, z, x, where='strength', bounds=(0.0, 1.0))  # where
stability.equilibria(field, z[None], x, count=_) : 0 1.5 '2' None
stability.equilibria(field, z[None], x, scale=_) : -1.0 0.0 nan 'a'
stability.equilibria(field, z[None], x, power=_) : -1.0 nan inf
stability.equilibria(field, z[None], x, tol=_) : -1.0 nan 'a'
stability.equilibria(field, 'zero', x)  # starts
stability.equilibria(field, jnp.asarray(0.0), x)  # starts
stability.equilibria(field, jnp.zeros((1, 5)), x)  # field(t, z, x)
stability.diagram(field, z, x, where=where, bounds=(0.0, 9.0), depth=_) : -1 1.5 None
stability.diagram(field, z, x, where=where, bounds=(0.0, 9.0), size=_) : -1.0 nan 'a'
stability.diagram(field, z, x, where=where, bounds=(0.0, 9.0), cycles=_) : True 3
stability.diagram(field, z, x, where=where, bounds=(2.0, 1.0))  # bounds
stability.diagram(field, z, x, where=where, bounds=(0.0, 9.0), backwards=True)  # backwards
stability.diagram(field, z, x, where=where, bounds=(0.0, 9.0), at=[99.0], starts=z[None])  # at
stability.normal_form(field, None, x, where=where)  # point
stability.switch_curve(field, None, x, where=(where, where), to='Hopf')  # point
stability.homoclinic(field, None, x, where=where)  # branch
stability.homoclinic_curve(field, None, x, where=where, bounds=None)  # point
stability.lyapunov(field, z, x, steps=10, step=_) : nan inf 'a'
stability.periodic_orbit(field, z, x, period=_) : nan -1.0 inf 'a'
stability.check(field, z, x, step=_) : nan inf
homeostasis.growth_homeostat(margin=_) : nan -1.0 inf 'a'
homeostasis.growth_homeostat(weight=_) : nan inf 'a'
homeostasis.growth_homeostat(samples=_) : 0 1.5 'a'
homeostasis.growth_homeostat(gate=_) : nan 2.0 'a'
homeostasis.growth_homeostat(nonsense=_) : 3
homeostasis.Homeostat(penalty=_) : None 'growth'
homeostasis.PI(target=_) : inf 'a'
homeostasis.cap_norms(factor=_) : nan inf 'a'
training.make_step(None, optimiser)  # estimator
training.make_step(ej.AsymEP, optimiser)  # estimator
training.make_step(asymep, 'adam')  # optimiser
training.make_step(asymep, 3e-3)  # optimiser
training.make_step(asymep, None)  # optimiser
training.make_step(asymep, optimiser, loss=_) : None 'mse'
training.make_step(asymep, optimiser, homeostat=_) : 'growth'
training.make_step(asymep, optimiser)(model, (ones, ones))  # state
training.TrainState.create(model, 'adam', key=key)  # optimiser
training.TrainState.create(model, optimiser, key=_) : 0 None
training.TrainState.create(None, optimiser, key=key)  # model
recipes.TrainConfig(width=_) : '8' 8.5 None True 0
recipes.TrainConfig(steps=_) : 0 1.5 nan
recipes.TrainConfig(estimator=_) : 'foo' None
recipes.TrainConfig(learning_rate=_) : 0.0 inf nan
recipes.TrainConfig(attention_gain=_) : inf nan
recipes.TrainConfig(qknorm=_) : 'no'
recipes.TrainConfig(seed=_) : -1 1.5 None 2**32 2**70
recipes.TrainConfig(out=_) : 3 None
recipes.TrainConfig(homeostat='growth', homeostat_gate=_) : 5.0 nan
recipes.TrainConfig(homeostat='growth', homeostat_samples=_).check_start() : 0 99
recipes.TrainConfig(homeostat_margin=_).check_start() : 0.1
recipes.TrainConfig(homeostat='growth', homeostat_target=_).check_start() : 0.2
recipes.TrainConfig(block='monotone', qknorm=_).check_start() : False
recipes.TrainConfig(batch=_).check_start() : 10**12
recipes.TrainConfig.from_dict(None)  # configuration
recipes.GPT2Settings(vocabulary=_).check_start() : 300
recipes.GPT2Settings(slots=_).check_start() : 8
recipes.GPT2Settings(memory='recurrence', slots=_).check_start() : 8
recipes.GPT2Settings(memory='slots', slots=_).check_start() : 10**12
recipes.GPT2Settings(segments=_).check_start() : 2
recipes.GPT2Settings(start='gpt2', width=_).check_start() : 64
recipes.GPT2Settings(start='gpt2', tokens=_).check_start() : 'bpe'
recipes.AeonSettings(coupling=_) : nan 2.0
recipes.ARLLSettings(vigilance=_) : nan 1.5
training.Run.start('train')  # recipe
"""


def rows():
    for line in CALLS.replace("_estimators_", "[]").strip().splitlines():
        call, by_hand, name = line.rpartition("  # ")
        if by_hand:
            yield call, name
            continue
        call, _, values = line.rpartition(" : ")
        name = re.search(r"(\w+)=_", call)[1]
        yield from ((call.replace("=_", f"={value}"), name) for value in values.split())


@functools.cache
def names():
    """What the calls are made of."""
    key = jax.random.key(0)
    field = fields.RecurrentField(4, strength=0.5, key=key)
    identity = eqx.nn.Identity()
    config = language.GPT2Config(11, 8, 8, 1, 2)
    return {room: getattr(ej, room) for room in ROOMS.split()} | {
        "ej": ej,
        "dfx": dfx,
        "jnp": jnp,
        "nan": float("nan"),
        "inf": float("inf"),
        "key": key,
        "keys": jax.random.split(key, 2),
        "field": field,
        "z": jnp.zeros(4),
        "x": jnp.ones(4),
        "ones": jnp.ones((3, 4)),
        "identity": identity,
        "model": ej.EquilibriumModel(identity, field, identity, jnp.zeros_like),
        "loss": ej.squared_error,
        "anderson": relaxation.Anderson(1e-5),
        "asymep": ej.AsymEP(),
        "oracle": ej.OracleAdjoint(),
        "bptt": ej.BPTT(steps=5),
        "neuron": fields.LeakyIntegrateAndFire(),
        "lm": language.equilibrium_lm(7, 6, 8, 2, key=key),
        "tokens": jnp.zeros((3, 7), int),
        "prompt": jnp.zeros(2, int),
        "config": config,
        "gpt2": language.GPT2.init(config, key),
        "ids": np.arange(10),
        "where": lambda field: field.strength,
        "optimiser": optax.adamw(1e-3),
    }


@pytest.fixture
def as_users_have_it():
    """Without the checker of annotations, which would speak before the library does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(("call", "name"), list(rows()))
def test_a_bad_call_is_refused_by_name(as_users_have_it, call, name):
    with pytest.raises(ValueError) as refused:
        eval(call, names())
    assert f"`{name}`" in str(refused.value) or str(refused.value).startswith(name), refused.value


def test_a_new_function_at_every_call_is_told_once(network):
    """A `lambda` written in the call compiles everything anew; one defined outside does not."""
    field, z, x = network
    model = ej.EquilibriumModel(eqx.nn.Identity(), field, eqx.nn.Identity())
    estimator, batch = ej.BPTT(steps=1), (x[None], z[None])
    with pytest.warns(UserWarning, match="`loss` is, or holds, a new function") as told:
        for _ in range(5):
            jax.eval_shape(lambda b: estimator(model, lambda o, t: jnp.sum(o - t), b).loss, batch)
    assert len(told) == 1 and __file__ in str(told[0].message)
    once = lambda o, t: jnp.sum(o * t)
    for _ in range(5):
        jax.eval_shape(lambda b: estimator(model, once, b).loss, batch)
