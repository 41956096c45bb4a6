"""Several devices: what each computes of its share is what one computes of the whole. In a process of their own."""

import subprocess
import sys

SCRIPT = """
import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)

import equinox as eqx
import eqjax as ej  # touches no device
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

assert jax.device_count() == 4
field = ej.fields.RecurrentField(6, strength=2.0, asymmetry=0.7, key=jax.random.key(0))
model = ej.EquilibriumModel(eqx.nn.Identity(), field, eqx.nn.Identity())
inputs = jnp.linspace(0, 1, 24).reshape(4, 6)
settle = ej.NewtonKrylov(1e-12)
mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))


def shared(f, out):
    return jax.shard_map(f, mesh=mesh, in_specs=P("batch"), out_specs=out, check_vma=False)


def total(x):
    return jnp.sum(ej.equilibrium(field, jnp.zeros(6), x, solver=settle, throw=False).value ** 2)


for f in (total, jax.grad(total)):
    want = jax.vmap(f)(inputs)
    assert jnp.allclose(jax.pmap(f)(inputs), want, atol=1e-12), "pmap"
    assert jnp.allclose(shared(jax.vmap(f), P("batch"))(inputs), want, atol=1e-12), "shard_map"

tight = ej.Anderson(1e-12)
for estimator in (ej.OracleAdjoint(free=tight), ej.AsymEP(free=tight, nudged=ej.Anderson(1e-9))):

    def grads(x):
        estimate = estimator(model, ej.squared_error, (x, jnp.zeros_like(x)))
        return jax.tree.leaves(eqx.filter(estimate.grads, eqx.is_inexact_array))

    mean = lambda x: [jax.lax.pmean(leaf, "batch") for leaf in grads(x)]
    for ours, want in zip(shared(mean, P())(inputs), grads(inputs), strict=True):
        assert jnp.allclose(ours, want, rtol=1e-6, atol=1e-9), type(estimator).__name__
print("same")
"""


def test_shares_of_a_batch_on_four_devices_are_those_of_the_whole():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]
