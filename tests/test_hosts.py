"""Two processes, each with its own rows of a batch, train what one trains."""

import os
import socket
import subprocess
import sys

import equinox as eqx
import jax
import numpy as np
import pytest

from eqjax.cli import main
from eqjax.cli._hosts import ends_with_all
from eqjax.recipes import GPT2Settings, open_run
from eqjax.training import Run, read_metrics

SCRIPT = """
import sys

import jax

port, process, *settings = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_enable_x64", True)
from eqjax.cli import main
from eqjax.cli._hosts import ends_with_all

hosts = ["--coordinator", f"127.0.0.1:{port}", "--hosts", "2", "--host", process]
main(["gpt2", "train", *settings, *hosts])

import eqjax as ej
import numpy as np
import optax
from eqjax.training import TrainState, make_step

field = ej.fields.RecurrentField(4, strength=1.5, key=jax.random.key(0))
model = ej.EquilibriumModel(lambda u: u, field, lambda z: z)
step = make_step(ej.OracleAdjoint(), optax.sgd(0.1), loss=ej.squared_error, mesh=1)
state = TrainState.create(model, step.optimiser, key=jax.random.key(1))
rows = np.ones((1 + int(process), 4))
try:
    step.compile(state, (rows, rows))
except ValueError as error:
    assert "`batch`: process 1 has others than process 0" in str(error), error
    print("same")
else:
    raise AssertionError("not refused")
"""


def test_two_processes_train_as_one(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 9)
    sizes = {"layers": 1, "heads": 1, "width": 8, "length": 8, "batch": 4, "steps": 2}
    one = Run.start(GPT2Settings(text=text, out=tmp_path / "one", log_every=1, **sizes))
    one.train()
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    flags += [f"--text={text}", f"--out={tmp_path / 'two'}", "--log-every=1", "--save-async"]
    flags += ["--shard-parameters", "--devices=1"]
    kept = {"JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"]}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", SCRIPT, port]
    starts = [[*command, which, *flags] for which in "01"]
    both = [subprocess.Popen(start, env=os.environ | kept, **pipes) for start in starts]
    for process in both:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0 and out.endswith("same\n" * (process is both[0])), error[
            -2000:
        ]
    two = open_run(tmp_path / "two")
    arrays = lambda run: jax.tree.leaves(eqx.filter(run.model, eqx.is_array))
    for a, b in zip(arrays(one), arrays(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    lines = [read_metrics(run.recipe.out / "metrics.jsonl") for run in (one, two)]
    assert [x["step"] for x in lines[0]] == [x["step"] for x in lines[1]] == [1, 2]
    np.testing.assert_allclose(lines[0][-1]["validation"], lines[1][-1]["validation"], rtol=1e-9)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--coordinator a:1", "--hosts, --host: several hosts need all"),
        ("--coordinator a --hosts 2 --host 0", "must be ADDRESS:PORT"),
        ("--coordinator=a:1 --hosts=2 --host=2", "--host must be a number from 0"),
        ("--coordinator slurm", "no job of SLURM's"),
        ("--hosts", "--hosts needs a value"),
    ],
)
def test_hosts_that_cannot_be_joined_are_refused(flags, told, capsys, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(SystemExit):
        main(["train", *flags.split()])
    assert told in capsys.readouterr().err


def test_a_host_that_fails_ends_at_once_and_says_what_to_do(capsys, monkeypatch):
    ended = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("os._exit", ended.append)
    failed = RuntimeError("closed by peer\nat 127.0.0.1")
    for error, code in ((failed, 1), (MemoryError(), 1), (SystemExit(2), 2)):
        with pytest.raises(type(error)), ends_with_all():
            raise error
        assert ended.pop() == code
    told = capsys.readouterr().err
    assert "host 0 of 1 has ended: closed by peer\n" in told
    assert "host 0 of 1 has ended: MemoryError\n" in told
    assert "start all of them again, with --resume" in told
    with pytest.raises(SystemExit), ends_with_all():
        raise SystemExit(0)  # that is no failure: it waits for the others
    assert not ended
