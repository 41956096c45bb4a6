"""Two processes, each with its own rows of a batch, train what one trains."""

import os
import socket
import subprocess
import sys

import jax

SCRIPT = """
import sys

import jax

port, process = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_enable_x64", True)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))

import equinox as eqx
import eqjax as ej
import jax.numpy as jnp
import numpy as np
import optax
from eqjax.training import TrainState, make_step

field = ej.fields.RecurrentField(4, strength=1.5, key=jax.random.key(0))
model = ej.EquilibriumModel(eqx.nn.Identity(), field, eqx.nn.Identity())
oracle = ej.OracleAdjoint(free=ej.Anderson(1e-12), adjoint_solver=ej.relaxation.GMRES(1e-12))
inputs = np.linspace(0, 1, 16).reshape(4, 4)


def trained(mesh, rows):
    optimiser = optax.adamw(0.1)
    step = make_step(oracle, optimiser, loss=ej.squared_error, mesh=mesh)
    state = TrainState.create(model, optimiser, key=jax.random.key(1))
    batch = rows, np.zeros_like(rows)
    step = step.compile(state, batch)
    for _ in range(2):
        state, metrics = step(state, batch)
    return [np.asarray(a) for a in jax.tree.leaves(eqx.filter(state.model, eqx.is_inexact_array))], metrics


want, _ = trained(None, inputs)
ours, metrics = trained(jax.make_mesh((2,), ("batch",)), inputs[2 * int(process) :][:2])
for a, b in zip(ours, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
assert metrics["slowest"].shape == (2,) and metrics["accepted"] == 1
try:
    trained(1, inputs[: 1 + int(process)])
except ValueError as error:
    assert "process 1 is not about to train what process 0 is" in str(error), error
    print("same")
"""


def test_two_processes_train_as_one():
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"]}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", SCRIPT, port]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    two = [subprocess.Popen([*command, str(i)], env=os.environ | kept, **pipes) for i in (0, 1)]
    for process in two:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0 and out.endswith("same\n"), error[-2000:]
