"""Attention of tokens that several devices share out is attention. On eight of a CPU, in a process of their own."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from eqjax import analytic, fields, language
from eqjax.analytic import TokenRing
from eqjax.recipes import GPT2Settings
from eqjax.training import make_step

SCRIPT = """
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)

import eqjax as ej
import jax.numpy as jnp
import numpy as np
from eqjax import analytic, fields
from eqjax.analytic import TokenRing, ring_attention
from jax.sharding import Mesh, PartitionSpec as P

q, k, v, w = jax.random.normal(jax.random.key(0), (4, 2, 2, 16, 3))
over = P(None, None, "sequence")


def plain(q, k, v):
    mask = analytic.causal_mask(q.shape[2])
    return jax.vmap(lambda *a: analytic.attention(*a, mask))(q, k, v)


def ring(devices, **how):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("sequence",))
    one = jax.vmap(lambda q, k, v: ring_attention(q, k, v, "sequence", **how))
    return jax.shard_map(one, mesh=mesh, in_specs=(over,) * 3, out_specs=over, check_vma=False)


def both(attend):
    out, back = jax.vjp(attend, q, k, v)
    return out, back(w)


want = both(plain)
for devices in (2, 4, 8):
    for a, b in zip(jax.tree.leaves(jax.jit(both, static_argnums=0)(ring(devices, block=3))), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)

# Memory is that of the device's own tokens, forward and backward, in layers that are computed anew: 4096 tokens take no more than a
# quarter as many on a quarter of the devices, and four times what they take on as many.
def memory(devices, tokens):
    arrays = [jax.ShapeDtypeStruct((1, 1, tokens, 8), jnp.float32)] * 3
    attend = ring(devices, block=64)

    def loss(q, k, v):
        layer = jax.checkpoint(lambda q, _: (attend(q, k, v), None))
        return jnp.sum(jax.lax.scan(layer, q, None, length=2)[0] ** 2)

    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().memory_analysis().temp_size_in_bytes


assert memory(8, 4096) / memory(2, 1024) < 1.1
assert memory(2, 4096) / memory(2, 1024) < 4.1

# A field in a ring, seen in both directions.
mesh = jax.make_mesh((4,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
field = fields.ThickBlock(6, 2, qknorm=True, key=jax.random.key(1))
z, x, c = jax.random.normal(jax.random.key(2), (3, 16, 6))


@jax.jit
def seen(field):
    force = lambda z: field(0.0, z, x)
    return *jax.jvp(force, (z,), (c,)), jax.vjp(force, z)[1](c)[0]


for a, b in zip(seen(fields.in_ring(field, TokenRing(mesh, block=2))), seen(field)):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
print("same")
"""


def test_attention_in_a_ring_is_attention():
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"]}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | kept)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]


def one_device(axis):
    return jax.make_mesh((1,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))


def test_a_ring_where_there_is_none_is_refused():
    rows = jnp.ones((3, 1, 2))
    heads = language.Heads(rows, rows, rows, None, rows[:, 0])
    with pytest.raises(ValueError, match="`axis` 'sequence' .*shard_map"):
        language.RingAttention()(heads)
    with pytest.raises(ValueError, match="`mask`"):
        language.RingAttention()(heads._replace(mask=analytic.causal_mask(3)))
    with pytest.raises(ValueError, match="`axis` 'sequence' is none of the mesh"):
        TokenRing(one_device("batch"))
    with pytest.raises(ValueError, match="3 tokens are not divisible by 2"):
        TokenRing(one_device("sequence"))(*[jnp.ones((1, 3, 2))] * 3)
    with pytest.raises(ValueError, match="`model` must have causal attention"):
        fields.in_ring(fields.Lorenz(), None)


def test_meshes_and_settings_that_share_no_tokens_out_are_refused():
    import optax

    from eqjax.gradients import OracleAdjoint

    mesh = jax.make_mesh((1, 1), ("batch", "pipeline"))
    with pytest.raises(ValueError, match="`mesh` must have one axis.*`batch` and `sequence`"):
        make_step(OracleAdjoint(), optax.sgd(0.1), mesh=mesh)
    with pytest.raises(ValueError, match="`context_devices` share"):
        GPT2Settings(context_devices=2, memory="slots")
    with pytest.raises(ValueError, match="`context_devices` must be at least 1"):
        GPT2Settings(context_devices=0).mesh()
