"""Reference traces of neurons from Brian2, for the tests.

    python -m venv /tmp/brian2 && /tmp/brian2/bin/pip install "brian2==2.9.0" "numpy<2" setuptools
    /tmp/brian2/bin/python experiments/brian2_traces.py        # a minute; writes tests/data/brian2.json

Brian2 needs NumPy < 2, so it cannot share an environment with JAX; this script imports neither JAX nor eqjax. It
installs nothing and writes one file, which carries the script's name, the versions and a hash of the data.
"""

import argparse
import hashlib
import json
import platform
from pathlib import Path

import brian2
import numpy as np
from brian2 import (
    Network,
    NeuronGroup,
    SpikeMonitor,
    StateMonitor,
    Synapses,
    cm,
    defaultclock,
    ms,
    msiemens,
    mV,
    uA,
)

HERE = Path(__file__)
OUT = HERE.parents[1] / "tests" / "data" / "brian2.json"

HODGKIN_HUXLEY = """
dv/dt = (drive + swing*sin(2*pi*t/period) - gNa*m**3*h*(v - 50*mV) - gK*n**4*(v + 77*mV)
         - gL*(v + 54.387*mV)) / (1*ufarad/cm**2) : volt
dm/dt = (1/exprel(-(v + 40*mV)/(10*mV))*(1 - m) - 4*exp(-(v + 65*mV)/(18*mV))*m)/ms : 1
dh/dt = (0.07*exp(-(v + 65*mV)/(20*mV))*(1 - h) - h/(1 + exp(-(v + 35*mV)/(10*mV))))/ms : 1
dn/dt = (0.1/exprel(-(v + 55*mV)/(10*mV))*(1 - n) - 0.125*exp(-(v + 65*mV)/(80*mV))*n)/ms : 1
"""


def hodgkin_huxley(drive, swing, period=20.0, duration=60.0, step=0.005, every=20):
    """One neuron from rest: V every `every` steps, and the upward crossings of 0 mV."""
    defaultclock.dt = step * ms
    names = {
        "gNa": 120 * msiemens / cm**2,
        "gK": 36 * msiemens / cm**2,
        "gL": 0.3 * msiemens / cm**2,
        "drive": drive * uA / cm**2,
        "swing": swing * uA / cm**2,
        "period": period * ms,
    }
    group = NeuronGroup(1, HODGKIN_HUXLEY, method="rk4", namespace=names)
    start = {"v": -65.0, "m": 0.05, "h": 0.6, "n": 0.32}
    group.v = start["v"] * mV
    group.m, group.h, group.n = start["m"], start["h"], start["n"]
    monitor = StateMonitor(group, "v", record=0)
    Network(group, monitor).run(duration * ms, namespace={})
    t, v = np.asarray(monitor.t / ms), np.asarray(monitor.v[0] / mV)
    return {
        "drive": drive,
        "swing": swing,
        "period": period,
        "duration": duration,
        "step": step,
        "start": list(start.values()),
        "times": rounded(t[::every]),
        "v": rounded(v[::every]),
        "spikes": rounded(crossings(t, v)),
    }


def crossings(t, v):
    """Upward zeros of v between samples, by the cubic through the four nearest."""
    found = []
    for i in np.flatnonzero((v[:-1] < 0) & (v[1:] >= 0)):
        near = slice(i - 1, i + 3)
        roots = np.roots(np.polyfit(t[near] - t[i], v[near], 3))
        real = roots[np.abs(roots.imag) < 1e-12].real
        inside = real[(real >= 0) & (real <= t[i + 1] - t[i])]
        found.append(t[i] + inside[0])
    return np.array(found)


def integrate_and_fire(drive, weight, synapse, duration=100.0, step=0.001, synapse_tau=5.0):
    """A network of `len(drive)` neurons from v = 0; `synapse` is "delta" or "exponential"."""
    defaultclock.dt = step * ms
    exponential = synapse == "exponential"
    group = NeuronGroup(
        len(drive),
        f"""dv/dt = (drive - v + s)/(10*ms) : volt (unless refractory)
        ds/dt = -s/({synapse_tau}*ms) : volt
        drive : volt""",
        threshold="v >= 10*mV",
        reset="v = 0*mV",
        refractory=5 * ms,
        method="exact",
    )
    group.drive = np.array(drive) * mV
    parts = [group]
    weight = np.array(weight)
    if weight.any():
        synapses = Synapses(group, group, "w : volt", on_pre=f"{'s' if exponential else 'v'} += w")
        post, pre = np.nonzero(weight)
        synapses.connect(i=pre, j=post)
        synapses.w = weight[post, pre] * mV
        parts.append(synapses)
    monitor = SpikeMonitor(group)
    Network(*parts, monitor).run(duration * ms, namespace={})
    return {
        "drive": list(drive),
        "weight": weight.tolist(),
        "synapse": synapse,
        "synapse_tau": synapse_tau,
        "duration": duration,
        "step": step,
        # Brian2 stamps a spike with the beginning of the step at whose end the threshold is tested.
        "times": rounded(np.asarray(monitor.t / ms) + step),
        "indices": np.asarray(monitor.i).tolist(),
    }


def rounded(values):
    return [round(float(value), 7) for value in values]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    drive = [11.0, 12.0, 15.0, 20.0]
    none = np.zeros((4, 4))
    weight = 1.5 * np.random.default_rng(0).normal(size=(4, 4)).round(2)
    np.fill_diagonal(weight, 0)
    data = {
        "hodgkin_huxley": [hodgkin_huxley(10.0, 0.0), hodgkin_huxley(12.0, 8.0)],
        "integrate_and_fire": [
            integrate_and_fire(drive, none, "delta"),
            integrate_and_fire(drive, weight, "delta"),
            integrate_and_fire(drive, weight, "exponential"),
        ],
    }
    text = json.dumps(data, sort_keys=True)
    about = {
        "script": f"experiments/{HERE.name}",
        "brian2": brian2.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"about": about, "data": data}, sort_keys=True) + "\n")
    print(options.out, about)


if __name__ == "__main__":
    main()
