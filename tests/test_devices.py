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
mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))


def shared(f, out, checked=True):
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("batch"), out_specs=out, check_vma=checked))


def total(x, solver):
    return jnp.sum(ej.equilibrium(field, jnp.zeros(6), x, solver=solver).value ** 2)


tight = ej.Anderson(1e-12)
f = jax.value_and_grad(eqx.Partial(total, solver=tight))
want = jax.vmap(f)(inputs)
for how in (jax.pmap(f), *(shared(jax.vmap(f), P("batch"), checked) for checked in (True, False))):
    for ours, theirs in zip(how(inputs), want, strict=True):
        assert jnp.allclose(ours, theirs, atol=1e-11)
other = ej.relaxation.Fallback(ej.TimeStepping(1e-12), ej.NewtonKrylov(1e-12), 3)
ours = shared(jax.vmap(eqx.Partial(total, solver=other)), P("batch"))(inputs)
assert jnp.allclose(ours, want[0], atol=1e-11)


def weights(f, x):
    settled = lambda f, x: ej.equilibrium(f, x, x, solver=tight).value
    return jax.grad(lambda f: jnp.mean(jax.vmap(lambda x: jnp.sum(settled(f, x)))(x)))(f).weight


# What is the same on all devices has its derivative summed over them, by JAX.
ours = shared(lambda x: weights(field, x) / 4, P())(inputs)
assert jnp.allclose(ours, weights(field, inputs), atol=1e-9), "weights"
try:
    shared(lambda x: ej.relax(field, x[0], x[0], step=0.1, steps=3).value[None], P("batch"))(inputs)
except ValueError as error:
    assert "check_vma=False" in str(error)
else:
    raise AssertionError

for estimator in (
    ej.OracleAdjoint(free=tight),
    ej.AsymEP(free=tight, nudged=ej.Anderson(1e-9)),
):

    def grads(x):
        estimate = estimator(model, ej.squared_error, (x, jnp.zeros_like(x)))
        return jax.tree.leaves(eqx.filter(estimate.grads, eqx.is_inexact_array))

    mean = lambda x: [jax.lax.pmean(leaf, "batch") for leaf in grads(x)]
    wanted = grads(inputs)
    for ours, want in zip(shared(mean, P())(inputs), wanted, strict=True):
        assert jnp.allclose(ours, want, rtol=1e-6, atol=1e-9), type(estimator).__name__
print("same")
"""


def test_shares_of_a_batch_on_four_devices_are_those_of_the_whole():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]
