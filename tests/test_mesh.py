"""Training on several devices is training on one, to rounding. On eight of a CPU, in a process of their own."""

import os
import subprocess
import sys

import jax
import pytest

from eqjax.gradients import OracleAdjoint
from eqjax.training import make_step

SCRIPT = """
import sys
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)

import equinox as eqx
import eqjax as ej
import jax.numpy as jnp
import numpy as np
import optax
from eqjax.training import Run, TrainState, make_step


def refused(told, f):
    try:
        f()
    except ValueError as error:
        assert all(word in str(error) for word in told), error
    else:
        raise AssertionError(told)


# An equilibrium model, of which two samples are not accepted: one device of eight has none that is.
field = ej.fields.RecurrentField(6, strength=2.0, asymmetry=0.7, key=jax.random.key(0))
model = ej.EquilibriumModel(eqx.nn.Identity(), field, eqx.nn.Identity())
inputs = jnp.linspace(0, 1, 96).reshape(16, 6).at[jnp.array([4, 5])].set(jnp.nan)
batch = inputs, jnp.zeros_like(inputs)
signal = ej.homeostasis.rejected_signal
penalty = eqx.Partial(ej.homeostasis.jacobian_penalty, probes=2)
homeostat = ej.homeostasis.Homeostat(penalty, ej.homeostasis.PI(weight=0.1), signal)
optimiser = optax.sgd(0.1, momentum=0.9)
# Each its own nudge, and noise: what belongs to a sample goes with it.
nudged = {"nudged": ej.Anderson(1e-11), "radius": jnp.linspace(0.01, 0.03, 16), "state_noise": 1e-5}
asymep = ej.AsymEP(free=ej.Anderson(1e-12), **nudged)


def trained(devices, batch=batch, steps=2, **how):
    step = make_step(asymep, optimiser, homeostat, loss=ej.squared_error, mesh=devices, **how)
    state = TrainState.create(model, optimiser, key=jax.random.key(1), homeostat=homeostat)
    for _ in range(steps):
        state, metrics = step(state, batch)
    arrays = eqx.filter((state.model, state.opt_state, state.homeostat), eqx.is_inexact_array)
    return jax.device_get(arrays), jax.device_get(metrics)


want, told = trained(None)
assert told["accepted"] == 0.875
mesh = jax.make_mesh((8,), ("samples",))
ours, said = trained(mesh)
assert said["slowest"].shape == (8,)
for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
for name in "accepted loss gradient_norm penalty penalty_weight penalty_signal".split():
    np.testing.assert_allclose(said[name], told[name], rtol=1e-9, err_msg=name)
# Parameters in parts on two devices, and the batch in four parts one after the other.
ours, said = trained(2, shard_parameters=True, accumulate=4)
assert said["slowest"].shape == (2,) and said["accepted"] == 0.875
for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
refused(["`batch` of 16", "`accumulate` 3"], lambda: trained(2, accumulate=3))
_, said = trained(mesh, (jnp.full((16, 6), jnp.nan), batch[1]), steps=1)
assert said["accepted"] == 0 and np.isnan(said["loss"])

# bfloat16 on two devices that keep parts of float32 parameters, which are sent as short as they are computed with.
layer = eqx.nn.Linear(8, 8, use_bias=False, dtype=jnp.float32, key=jax.random.key(0))
pairs = jnp.linspace(-1, 2, 64, dtype=jnp.float32).reshape(2, 4, 8) ** 2


def short(dtype, mesh, **how):
    learner = ej.gradients.Backprop(dtype=dtype)
    step = make_step(learner, optax.sgd(1e-3), loss=ej.squared_error, mesh=mesh, **how)
    state = TrainState.create(layer, step.optimiser, key=jax.random.key(3))
    if mesh:
        text = step.compile(state, tuple(pairs)).program.compiled.as_text()
        gathers = [line for line in text.splitlines() if "all-gather(" in line]
        assert len(gathers) == 1 and "all-gather(%convert" in gathers[0], gathers
    for _ in range(20):
        state, _ = step(state, tuple(pairs))
    assert state.model.weight.dtype == jnp.float32
    return np.asarray(state.model.weight)


first, full, alone = np.asarray(layer.weight), short(None, None), short(jnp.bfloat16, None)
parts = short(jnp.bfloat16, 2, shard_parameters=True)
np.testing.assert_allclose(parts, alone, atol=1e-6)
# An update is below the spacing of bfloat16 for many, and none is lost: all that float32 learns is learned.
each, spacing = np.abs(full - first) / 20, 2.0**-8 * np.abs(first)
assert np.mean(each < spacing / 2) > 0.5
assert np.linalg.norm(alone - full) < 2.0**-8 * np.linalg.norm(full - first)

odd = inputs[:3], inputs[:3]
refused(["`batch` of 3", "the 2 devices of `mesh`"], lambda: trained(2, odd))
refused(["`mesh` must have one axis"], lambda: trained(jax.make_mesh((4, 2), ("a", "b"))))
refused(["9 devices", "there are 8", "JAX_NUM_CPU_DEVICES=9"], lambda: trained(9))

# A GPT-2 of two devices, stopped, goes on with four, and with none but one.
from eqjax.recipes import GPT2Settings

text = Path(sys.argv[1]) / "text.txt"
text.write_text("to be or not to be, that is the question. " * 40)
sizes = {"layers": 1, "heads": 1, "width": 8, "length": 8, "batch": 4, "evaluate_windows": 8}
counts = {"steps": 4, "save_every": 2, "log_every": 1, "evaluate_every": 4, "warmup": 1}


def settings(name, **more):
    return GPT2Settings(text=text, out=Path(sys.argv[1]) / name, **sizes, **counts, **more)


refused(["`batch` of 4", "`devices`"], lambda: Run.start(settings("bad", devices=3)))
refused(["`devices` asks for 16"], lambda: Run.start(settings("bad", devices=16)))
assert not settings("bad").out.exists()
whole = Run.start(settings("whole"))
whole.train()


def stop(step, values):
    if step == 3:
        raise InterruptedError


run = Run.start(settings("parts", devices=2, shard_parameters=True, accumulate=1))
try:
    run.train(on_step=stop)
except InterruptedError:
    pass
run = Run.open(settings("parts").out, [GPT2Settings], devices=4)
assert run.recipe.shard_parameters
assert run.state.step == 2 and run.recipe.devices == 4
run.train()
weights = lambda run: jax.tree.leaves(jax.device_get(eqx.filter(run.model, eqx.is_array)))
for a, b in zip(weights(run), weights(whole), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
again = Run.open(settings("parts").out, [GPT2Settings])
for a, b in zip(weights(run), weights(again), strict=True):
    np.testing.assert_array_equal(a, b)
ids = run.validation_ids

# Two groups of two devices, each of which shares the tokens of its windows out.
refused(["`length` of 8", "`context_devices`"], lambda: Run.start(settings("bad", context_devices=3)))
refused(["`context_devices` asks for 16"], lambda: Run.start(settings("bad", devices=4, context_devices=4)))
ring = Run.start(settings("ring", devices=2, context_devices=2))
ring.train()
for a, b in zip(weights(ring), weights(whole), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
np.testing.assert_allclose(ring.evaluate(ids).cross_entropy, whole.evaluate(ids).cross_entropy, rtol=1e-5)
np.testing.assert_allclose(run.evaluate(ids).cross_entropy, again.evaluate(ids).cross_entropy, rtol=1e-5)
print("same")
"""


def test_training_on_several_devices_is_training_on_one(tmp_path):
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"]}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | kept)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]


@pytest.mark.parametrize("mesh", [0, 2.0, "two", True])
def test_what_is_no_mesh_is_refused(mesh):
    import optax

    with pytest.raises(ValueError, match="`mesh` must"):
        make_step(OracleAdjoint(), optax.sgd(0.1), mesh=mesh)
