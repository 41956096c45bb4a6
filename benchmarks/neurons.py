"""Neuron·steps per second: Hodgkin–Huxley populations and integrate-and-fire networks, beside Brian2.

    python benchmarks/neurons.py --brian2 /tmp/brian2/bin/python    # that environment: see experiments/brian2_traces.py
    python benchmarks/neurons.py --jaxley /tmp/jaxley/bin/python --hh 100 1000 --lif    # one with `pip install jaxley`

Both integrate the same equations by the same scheme with the same fixed step: Hodgkin–Huxley by explicit Euler at 0.01
ms (eqjax through `relax`), the network by exact membrane steps of 0.1 ms with exponential synapses, every neuron
reaching a tenth of the others, 400 at most. Brian2 runs its Cython target, and with `--standalone` its C++ standalone one, on the CPU. Compilation is not
counted; the best of three runs is. Jaxley steps its own Hodgkin–Huxley channels by its own explicit scheme at 0.01 ms, without a
current, so that its check values differ. What runs beside it on the machine counts, so read ratios.
"""

import argparse
import json
import platform
import subprocess
import sys
import time

import numpy as np

HH_STEP, LIF_STEP = 0.01, 0.1


def best(run, repeats=3):
    run()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds), result


def coupling(n):
    """Drives, and the targets (n, k) and weights (n, k) of each neuron's spikes, from a fixed seed; mV."""
    rng = np.random.default_rng(0)
    k = min(n // 10, 400)
    return rng.uniform(9.5, 13.0, n), rng.integers(0, n, (n, k)), rng.normal(0.0, 1 / k, (n, k))


def eqjax_hh(n, steps, dtype):
    import diffrax as dfx
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import eqjax as ej

    field = ej.tree_cast(
        ej.fields.HodgkinHuxley(current=jnp.linspace(5.0, 20.0, n)), jnp.dtype(dtype)
    )
    z0 = jnp.broadcast_to(field.clamped(jnp.asarray(-65.0, dtype))[:, None], (4, n))

    @eqx.filter_jit
    def run(field, z0):
        return ej.relax(
            field, z0, step=HH_STEP, steps=steps, adjoint=dfx.ForwardMode(), throw=False
        ).value

    seconds, z = best(lambda: jax.block_until_ready(run(field, z0)))
    return {"seconds": seconds, "check": float(jnp.mean(z[0]))}


def eqjax_lif(n, steps, dtype):
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import eqjax as ej

    drive, targets, values = map(jnp.asarray, coupling(n))
    f = ej.fields
    net = f.SpikingNetwork(
        f.LeakyIntegrateAndFire(current=drive),
        f.SparseWeight(targets, values),
        f.ExponentialSynapse(5.0),
    )
    net = ej.tree_cast(net, jnp.dtype(dtype))
    scheme, t1, capacity = ej.relaxation.FixedStep(LIF_STEP), steps * LIF_STEP, steps * n // 50

    @eqx.filter_jit
    def run(net, v0):
        return ej.relaxation.fire(
            net, v0, t1=t1, capacity=capacity, scheme=scheme, throw=False
        ).counts

    seconds, counts = best(lambda: jax.block_until_ready(run(net, jnp.zeros(n, dtype))))
    return {"seconds": seconds, "check": float(jnp.sum(counts)) / n / t1 * 1000}


def brian2_run(group, others, step, steps, standalone):
    import brian2 as b2

    network = b2.Network(group, *others)
    duration = steps * step * b2.ms
    if standalone:
        network.run(duration, namespace={})
        return b2.device._last_run_time
    network.store()

    def run():
        network.restore()
        begin = time.perf_counter()
        network.run(duration, namespace={})
        return time.perf_counter() - begin

    run()
    return min(run() for _ in range(3))


def brian2_hh(n, steps, dtype, standalone):
    import brian2 as b2

    b2.defaultclock.dt = HH_STEP * b2.ms
    equations = """
    dv/dt = (drive - 120*m**3*h*(v - 50) - 36*n**4*(v + 77) - 0.3*(v + 54.387))/ms : 1
    dm/dt = (1/exprel(-(v + 40)/10)*(1 - m) - 4*exp(-(v + 65)/18)*m)/ms : 1
    dh/dt = (0.07*exp(-(v + 65)/20)*(1 - h) - h/(1 + exp(-(v + 35)/10)))/ms : 1
    dn/dt = (0.1/exprel(-(v + 55)/10)*(1 - n) - 0.125*exp(-(v + 65)/80)*n)/ms : 1
    drive : 1
    """
    group = b2.NeuronGroup(n, equations, method="euler")
    group.drive = np.linspace(5.0, 20.0, n)
    group.v, group.m, group.h, group.n = -65.0, 0.0529325, 0.5961208, 0.3176769
    seconds = brian2_run(group, [], HH_STEP, steps, standalone)
    return {"seconds": seconds, "check": float(np.mean(group.v[:]))}


def brian2_lif(n, steps, dtype, standalone):
    import brian2 as b2

    b2.defaultclock.dt = LIF_STEP * b2.ms
    group = b2.NeuronGroup(
        n,
        """dv/dt = (drive - v + s)/(10*ms) : 1 (unless refractory)
        ds/dt = -s/(5*ms) : 1
        drive : 1""",
        threshold="v >= 10",
        reset="v = 0",
        refractory=5 * b2.ms,
        method="exact",
    )
    drive, targets, values = coupling(n)
    group.drive = drive
    synapses = b2.Synapses(group, group, "w : 1", on_pre="s += w")
    synapses.connect(i=np.repeat(np.arange(n), targets.shape[1]), j=targets.ravel())
    synapses.w = values.ravel()
    monitor = b2.SpikeMonitor(group)
    seconds = brian2_run(group, [synapses, monitor], LIF_STEP, steps, standalone)
    return {"seconds": seconds, "check": monitor.num_spikes / n / (steps * LIF_STEP) * 1000}


def jaxley_hh(n, steps, dtype):
    import jax
    import jaxley as jx
    from jaxley.channels import HH

    jax.config.update("jax_enable_x64", dtype == "float64")
    net = jx.Network([jx.Cell(jx.Branch(jx.Compartment(), ncomp=1), parents=[-1])] * n)
    net.insert(HH())
    net.cell(0).branch(0).comp(0).record(verbose=False)
    run = jax.jit(
        lambda: jx.integrate(net, delta_t=HH_STEP, t_max=steps * HH_STEP, solver="fwd_euler")
    )
    seconds, v = best(lambda: jax.block_until_ready(run()))
    found = {"seconds": seconds, "check": float(v[0, -1])}
    return found | {"device": f"jaxley {jx.__version__} (jax {jax.__version__})"}


def one(options):
    """One measurement, in a process of its own; prints JSON."""
    what, n, steps, dtype = options.what, options.n, options.steps, options.dtype
    if options.peer == "jaxley":
        found = jaxley_hh(n, steps, dtype)
    elif options.peer:
        import brian2 as b2

        b2.prefs.core.default_float_dtype = np.dtype(dtype).type
        if options.standalone:
            b2.set_device("cpp_standalone", directory=None)
        else:
            b2.prefs.codegen.target = "cython"
        found = {"hh": brian2_hh, "lif": brian2_lif}[what](n, steps, dtype, options.standalone)
        found["device"] = f"brian2 {b2.__version__}, {platform.machine()}"
    else:
        import jax

        jax.config.update("jax_enable_x64", dtype == "float64")
        found = {"hh": eqjax_hh, "lif": eqjax_lif}[what](n, steps, dtype)
        found["device"] = f"{jax.devices()[0].device_kind} (jax {jax.__version__})"
    print(json.dumps(found))


def measured(python, *arguments):
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brian2", help="the Python of an environment that has Brian2")
    parser.add_argument("--standalone", action="store_true", help="Brian2's C++ standalone target")
    parser.add_argument(
        "--jaxley", help="the Python of an environment that has Jaxley, in place of Brian2"
    )
    parser.add_argument("--hh", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--lif", type=int, nargs="*", default=[100, 1000, 4000, 100_000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--work", type=float, default=2e7, help="neuron·steps of a run, about")
    for name in ("--what", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--n", "--steps"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what:
        return one(options)
    peer = "Jaxley" if options.jaxley else "Brian2"
    print(f"| neurons | steps | type | eqjax: neuron·steps/s | check | {peer} | check | ratio |")
    print("|---" * 8 + "|")
    for what, sizes in (("hh", options.hh), ("lif", options.lif)):
        for n in sizes:
            steps = int(np.clip(options.work / n, 100, 5000))
            for dtype in options.dtypes:
                case = ("--what", what, "--n", n, "--steps", steps, "--dtype", dtype)
                ours = measured(sys.executable, *case)
                extra = ["--standalone"] if options.standalone else []
                peer = "jaxley" if options.jaxley else "brian2"
                python = options.jaxley or options.brian2
                theirs = measured(python, *case, "--peer", peer, *extra) if python else None
                cells = [f"{what} {n}", steps, dtype]
                for found in (ours, theirs or {"error": "–"}):
                    if "error" in found:
                        cells += [found["error"], ""]
                    else:
                        cells += [f"{n * steps / found['seconds']:.3g}", f"{found['check']:.5g}"]
                both = theirs and "seconds" in ours and "seconds" in theirs
                cells.append(f"{theirs['seconds'] / ours['seconds']:.2f}" if both else "")
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\n{ours.get('device')}; {(theirs or {}).get('device', 'alone')}")


if __name__ == "__main__":
    main()
