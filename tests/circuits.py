"""Circuits that ngspice integrates, and the traces it left of them: the tests compare with those on every machine.

    .venv/bin/python tests/circuits.py        # seconds, with ngspice; writes tests/data/ngspice.json

The file carries each netlist beside its trace, so that a trace stands for what `to_spice` writes now, and for nothing
else: run this again after a change of `to_spice`.
"""

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from eqjax.fields import (
    Crossbar,
    LogCosh,
    Polynomial,
    Quadratic,
    Softmax,
    Spherical,
    hamming_memory,
    perturbed,
    to_spice,
    xor_memory,
)
from eqjax.fields._circuit import expression

LAST = 6e-3
NAMES = "xor 00", "xor 01", "xor 10", "xor 11", "hamming", "device", "activations"
STORED = Path(__file__).parent / "data" / "ngspice.json"
POTENTIALS = (0.6, -1.1, 0.3)
WORD = 11  # the Hamming word, which arrives with its third bit flipped
NUMBER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w.])")


def circuits():
    """Name -> circuit, initial state and input."""
    start = jnp.full(1, 0.5), jnp.zeros(4)
    memory = hamming_memory()
    received = memory.patterns[WORD].at[2].set(1 - memory.patterns[WORD, 2])
    device = perturbed(Crossbar(xor_memory(), gain=30.0), 0.05, jax.random.key(1))
    return {
        **{
            f"xor {a}{b}": (Crossbar(xor_memory()), start, jnp.array([a, b], float))
            for a in (0, 1)
            for b in (0, 1)
        },
        "hamming": (Crossbar(memory), (received, jnp.zeros(16)), 0.0),
        "device": (device, start, jnp.array([1.0, 0.0])),
    }


def lagrangians():
    return Quadratic(), Polynomial(3), LogCosh(0.7), Softmax(1.5), Spherical()


def activations():
    """A netlist of nothing but the activations at `POTENTIALS`."""
    nodes = [f"V(u{k})" for k in range(3)]
    shapes = [shape for lagrangian in lagrangians() for shape in expression(lagrangian, nodes)]
    deck = ["* activations", *(f"Vu{k} u{k} 0 {u}" for k, u in enumerate(POTENTIALS))]
    deck += [f"B{i} a{i} 0 V={shape}" for i, shape in enumerate(shapes)]
    names = " ".join(f"v(a{i})" for i in range(len(shapes)))
    deck += [
        f".tran {LAST:g} {LAST:g}",
        f".control\nset wr_singlescale\nrun\nwrdata memory.txt {names}\nquit 0\n.endc\n.end",
    ]
    return "\n".join(deck) + "\n"


def netlists():
    written = {name: to_spice(*parts, t1=LAST) for name, parts in circuits().items()}
    written["activations"] = activations()
    assert tuple(written) == NAMES
    return written


def simulate(netlist):
    """Times and voltages of ngspice, which must get to the end."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "memory.cir").write_text(netlist, "utf-8")
        done = subprocess.run(
            ["ngspice", "-b", "memory.cir"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        table = np.loadtxt(Path(folder) / "memory.txt")
    assert abs(table[-1, 0] / LAST - 1) < 1e-6, done.stdout + done.stderr
    return table[:, 0], table[:, 1:]


def stored(name, netlist):
    """The committed times and voltages of a netlist, which must be the one they were computed from."""
    found = json.loads(STORED.read_text("utf-8"))
    text = json.dumps(found["data"], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == found["about"]["sha256"]
    then, now = (NUMBER.split(text) for text in (found["data"][name]["netlist"], netlist))
    stale = f"`{name}` is another netlist than that of the trace: run {found['about']['script']}"
    assert then[::2] == now[::2], stale
    np.testing.assert_allclose(
        np.array(now[1::2], float), np.array(then[1::2], float), rtol=1e-9, err_msg=stale
    )
    trace = found["data"][name]
    return np.array(trace["times"]), np.array(trace["voltages"]).T


def thinned(times, voltages):
    """Points enough to follow every change by 1%, and every tenth where little happens."""
    kept, small = [0], 0.01 * np.abs(voltages).max()
    for k in range(1, len(times) - 1):
        if k - kept[-1] == 10 or np.abs(voltages[k + 1] - voltages[kept[-1]]).max() > small:
            kept.append(k)
    kept.append(len(times) - 1)
    return times[kept], voltages[kept]


def main():
    asked = subprocess.run(["ngspice", "--version"], capture_output=True, text=True, check=True)
    data = {}
    for name, netlist in netlists().items():
        times, voltages = thinned(*simulate(netlist))
        digits = 9 if name == "activations" else 6
        data[name] = {
            "netlist": netlist,
            "times": [float(f"{t:.7g}") for t in times],
            "voltages": [[round(v, digits) for v in column] for column in voltages.T.tolist()],
        }
        print(f"{name}: {len(times)} points of {voltages.shape[1]} voltages")
    about = {
        "ngspice": re.search(r"ngspice-(\S+)", asked.stdout)[1],
        "script": "tests/circuits.py",
        "sha256": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(),
    }
    STORED.write_text(
        json.dumps({"about": about, "data": data}, separators=(",", ":")) + "\n", "utf-8"
    )


if __name__ == "__main__":
    if not shutil.which("ngspice"):
        raise SystemExit("ngspice is not installed: apt-get install ngspice")
    jax.config.update("jax_enable_x64", True)
    main()
