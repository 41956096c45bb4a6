"""Can the conductances of a Hodgkin–Huxley neuron be had back from its voltage, by gradient?

    python experiments/fit_hh.py                      # seconds; writes fit_hh.png

A neuron fires under a current that comes and goes. From conductances that are wrong by up to 40%, Levenberg–Marquardt
minimises the squared distance of the voltages, with derivatives through `relax`: in forward mode, for they are many and
the conductances three. (Adam on the gradient of the same distance needs 300 updates for three digits.) What is fitted
is the logarithms of the conductances: these stay positive, and none is small.
"""

import argparse
from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.progress import Progress

import eqjax as ej
from eqjax.fields import HodgkinHuxley

START = (90.0, 45.0, 0.42)
NAMES = ("g_Na", "g_K", "g_L")


def stimulus(t):
    """Two smooth pulses and a swing between them, µA/cm²."""
    pulse = lambda at: jnp.exp(-(((t - at) / 3) ** 2))
    return 18 * pulse(6.0) + 14 * pulse(24.0) + 3 * jnp.sin(t / 3)


def conductances(field):
    return tuple(getattr(field, name) for name in NAMES)


def with_conductances(field, values):
    return eqx.tree_at(conductances, field, tuple(values))


def voltage(field, times, step=0.025, adjoint=dfx.RecursiveCheckpointAdjoint()):
    """V at `times`, mV, from the steady state of the gates at -65 mV."""
    found = ej.relax(
        field,
        field.clamped(jnp.asarray(-65.0, times.dtype)),
        solver=dfx.Tsit5(),
        step=step,
        steps=round(float(np.asarray(times)[-1]) / step),
        saveat=dfx.SaveAt(ts=times),
        adjoint=adjoint,
    )
    return found.trajectory[:, 0]


def distance(logarithms, field, times, target, step=0.025):
    """Mean squared distance of the voltages, mV²."""
    fitted = with_conductances(field, jnp.exp(logarithms))
    return jnp.mean((voltage(fitted, times, step) - target) ** 2)


def fit(field, times, target, *, steps=20, step=0.025, report=None):
    """Levenberg–Marquardt on the logarithms of the conductances, from those that `field` has.

    **Arguments:** `times (n,)`, ms; `target (n,)`, mV; `report(i, loss)`: called after every update.

    **Returns:** the fitted field, and the losses (mean squared distance, mV²).
    """

    def gap(logarithms):
        varied = with_conductances(field, jnp.exp(logarithms))
        return voltage(varied, times, step, dfx.ForwardMode()) - target

    @jax.jit
    def update(logarithms, damping):
        residual, jacobian = gap(logarithms), jax.jacfwd(gap)(logarithms)
        curvature = jacobian.T @ jacobian
        damped = curvature + damping * jnp.diag(jnp.diag(curvature))
        tried = logarithms - jnp.linalg.solve(damped, jacobian.T @ residual)
        before, after = jnp.mean(residual**2), jnp.mean(gap(tried) ** 2)
        better = after < before
        kept = jnp.where(better, tried, logarithms)
        return kept, damping * jnp.where(better, 0.2, 4.0), jnp.where(better, after, before)

    logarithms, damping = jnp.log(jnp.stack(conductances(field))), jnp.ones(())
    losses = [float(jnp.mean(gap(logarithms) ** 2))]
    for i in range(steps):
        logarithms, damping, loss = update(logarithms, damping)
        losses.append(float(loss))
        if report is not None:
            report(i, losses[-1])
    return with_conductances(field, jnp.exp(logarithms)), losses


def picture(times, target, first, last, losses):
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    trace, loss = figure.subplots(1, 2, width_ratios=(2, 1))
    voltages = {"target": (times, target), "before": (times, first), "fitted": (times, last)}
    title = "Hodgkin–Huxley, fitted to a voltage trace"
    ej.plots.curves(voltages, labels=("time (ms)", "V (mV)"), title=title, ax=trace)
    labels = "update", "mean squared distance (mV²)"
    ej.plots.curves({"": (range(len(losses)), losses)}, labels=labels, log="y", ax=loss)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--duration", type=float, default=40.0, help="of the trace, ms")
    parser.add_argument("--noise", type=float, default=0.0, help="added to the trace, mV")
    parser.add_argument("--out", type=Path, default=Path("fit_hh.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    truth = HodgkinHuxley(stimulus=stimulus)
    times = jnp.arange(0.0, options.duration + 0.05, 0.1)
    target = voltage(truth, times)
    target += options.noise * jax.random.normal(jax.random.key(0), target.shape)
    start = with_conductances(truth, [jnp.asarray(g) for g in START])
    with Progress() as progress:
        task = progress.add_task("fitting", total=options.steps)

        def report(i, loss):
            progress.update(task, advance=1, description=f"{loss:.3g} mV²")

        fitted, losses = fit(start, times, target, steps=options.steps, report=report)
    print("| conductance (mS/cm²) | true | start | fitted |\n|---|---|---|---|")
    for name, *values in zip(NAMES, *map(conductances, (truth, start, fitted)), strict=True):
        print(f"| {name} | " + " | ".join(f"{float(value):.6g}" for value in values) + " |")
    figure = picture(times, target, voltage(start, times), voltage(fitted, times), losses)
    ej.plots.save(figure, options.out)
    print(f"loss {losses[0]:.4g} to {losses[-1]:.4g} mV²; {options.out}")


if __name__ == "__main__":
    main()
