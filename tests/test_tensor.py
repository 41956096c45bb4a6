"""Wide layers that several devices share out learn what one device learns. On four of a CPU, in a process of their own."""

import os
import subprocess
import sys

import jax
import optax
import pytest

import eqjax as ej
from eqjax import fields
from eqjax.fields._parts import MLP
from eqjax.language import GPT2, GPT2Config
from eqjax.training import make_step
from eqjax.training._tensor import check_tensor

SCRIPT = """
import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)

import equinox as eqx
import eqjax as ej
import jax.numpy as jnp
import numpy as np
import optax
from eqjax.training import TrainState, make_step

block = ej.fields.ThickBlock(8, 4, qknorm=True, expansion=1, key=jax.random.key(0))
model = ej.EquilibriumModel(eqx.nn.Identity(), block, eqx.nn.Identity())
x, y = jax.random.normal(jax.random.key(1), (2, 4, 3, 8))
asymep = ej.AsymEP(free=ej.Anderson(1e-13), nudged=ej.Anderson(1e-12), radius=1e-2)


def trained(mesh):
    step = make_step(asymep, optax.sgd(0.1, momentum=0.9), loss=ej.squared_error, mesh=mesh)
    state = TrainState.create(model, step.optimiser, key=jax.random.key(2))
    for _ in range(2):
        state, metrics = step(state, (x, y))
    assert metrics["accepted"] == 1
    return state


want = trained(None)
got = trained(jax.make_mesh((2, 2), ("batch", "tensor")))
arrays = lambda state: jax.device_get(jax.tree.leaves(eqx.filter((state.model, state.opt_state), eqx.is_array)))
for a, b in zip(arrays(got), arrays(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
assert np.abs(want.model.field.attention.query - block.attention.query).max() > 1e-4
# Each device has its heads and hidden units only, and the optimiser's momentum of them.
for field in (got.model.field, got.opt_state[0].trace.field):
    part = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
    assert part(field.attention.query) == (8, 4) and part(field.attention.output) == (4, 8)
    assert part(field.mlp.up) == (8, 4) and part(field.mlp.up_bias) == (4,) and part(field.mlp.down) == (4, 8)
    assert part(field.norm1.weight) == (8,)
print("same")
"""


def test_wide_layers_on_several_devices_learn_what_they_do_on_one():
    kept = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"],
        # Independent collectives of a CPU's devices may otherwise wait for each other.
        "XLA_FLAGS": "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    }
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | kept)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (fields.ThickBlock(6, 3, key=jax.random.key(0)), "3 of `heads` of `Attention`.* 2 devices"),
        (MLP(1, expansion=3, key=jax.random.key(0)), "3 of `up` of `MLP`.*Take 4"),
        (
            GPT2.init(GPT2Config(5, 4, 4, 1, 2), jax.random.key(0)),
            "`model` must have layers that say how to cut them.*`shard_parameters`",
        ),
        (fields.Lorenz(), "`model` must have layers that say how to cut them"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(model, told):
    with pytest.raises(ValueError, match=told):
        check_tensor(jax.sharding.AbstractMesh((1, 2), ("batch", "tensor")), model)


def test_parameters_are_cut_in_one_way():
    mesh = jax.make_mesh((1,), ("tensor",))
    with pytest.raises(ValueError, match="`shard_parameters` cuts all parameters"):
        make_step(ej.OracleAdjoint(), optax.sgd(0.1), mesh=mesh, shard_parameters=True)
