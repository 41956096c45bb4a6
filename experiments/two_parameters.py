"""Where do the Hopf points of a trained block and those of its Euler map part, in attention gain and leak?

    python experiments/two_parameters.py                 # two CPU cores, some ten minutes
    python experiments/two_parameters.py --run runs/mine # a run of yours

Trains a block of width 16 on windows of 8 characters by the exact gradient, to where some windows lose their fixed points.
The window whose fixed point the flow leaves fastest is followed in the attention gain, and its Hopf point and, for each Euler
step, its Neimark–Sacker point through gain and leak. Prints the gains at equal leak, and at equal ε(1 + c), and writes
two_parameters.json and two_parameters.png to the run's folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.interpolate

from eqjax import plots, stability
from eqjax.plots._figure import look, panels
from eqjax.recipes import TrainConfig, check_windows, in_double, open_run, windows
from eqjax.recipes._examine import settle
from eqjax.training import Run, plain

SETTINGS: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "length": 8,
    "order": "window",
    "estimator": "oracle",
    "embedding_scale": 1.0,
    "learning_rate": 8e-3,
    "max_steps": 120,
    "steps": 800,
    "batch": 32,
    "save_every": 200,
}
STEPS = (0.05, 0.1, 0.2)
GAIN, LEAK = (0.0, 2.0), (-0.5, 3.0)
LEAKS = (-0.5, 0.0, 0.5, 1.0, 2.0, 3.0)


def where():
    return (lambda field: field.attention_gain, lambda field: field.leak)


def fixed_point(run, count):
    """Field, state and input of the window that the flow leaves fastest, and its number."""
    model, inputs = in_double(run), windows(run, count)
    found = check_windows(model, inputs, step=max(STEPS))
    growth = np.where(found.fixed_point, np.asarray(found.abscissa), -np.inf)
    window = int(np.argmax(growth))
    x, settled = settle(model, inputs[window])
    told = {"window": window, "growth": growth, "fixed_point": np.asarray(found.fixed_point)}
    return model.field, settled.value, x, told


def both_ways(field, point, x, step=None):
    """A curve from its Hopf or Neimark–Sacker point on, up and down in the leak, in one order."""
    settings = {"where": where(), "bounds": (GAIN, LEAK), "step": step}
    down, up = (
        stability.hopf_curve(field, point, x, backwards=backwards, **settings)
        for backwards in (True, False)
    )
    print(f"{'flow' if step is None else f'ε = {step}'}\n{down}\n{up}", flush=True)
    join = lambda a, b: np.concatenate([np.asarray(a)[:0:-1], np.asarray(b)])
    return {
        "gain_leak": join(down.parameters, up.parameters),
        "frequency": join(down.frequencies, up.frequencies),
        "points": [
            {"type": p.type, "gain_leak": p.parameters, "status": p.status}
            for p in (*down.special_points, *up.special_points)
        ],
        "ended": (down.ended, up.ended),
    }


def examine(field, z, x):
    """The curves of the flow, under None, and of each Euler step."""
    curves = {}
    gain = where()[0]
    for step in STEPS:
        branch = stability.continuation(
            field, z, x, where=gain, bounds=GAIN, step=step, k=8, backwards=True
        )
        print(branch, flush=True)
        special = branch.special_points
        if None not in curves:
            point = next(p for p in special if p.flow == "Hopf")
            curves[None] = both_ways(field, point, x)
        # The pair that was critical under the flow is met first.
        point = next(p for p in special if p.euler == "Neimark–Sacker")
        curves[step] = both_ways(field, point, x, step)
        print(tables(curves), flush=True)
    return curves


def crossing(curve, leak):
    """The gain at which a curve passes a leak, and the frequency there, by cubic splines."""
    gains, leaks = curve["gain_leak"].T
    if not leaks.min() <= leak <= leaks.max():
        return np.nan, np.nan
    at = lambda values: float(scipy.interpolate.CubicSpline(leaks, values)(leak))
    return at(gains), at(curve["frequency"])


def tables(curves):
    lines = ["| leak c | ω | α, flow | " + " | ".join(f"α, ε = {e}" for e in STEPS) + " |"]
    lines.append("| --- " * (3 + len(STEPS)) + "|")
    for leak in LEAKS:
        gain, omega = crossing(curves[None], leak)
        others = [crossing(curves[step], leak)[0] for step in curves if step]
        lines.append("| " + " | ".join(f"{v:.4f}" for v in (leak, omega, gain, *others)) + " |")
    # LayerNorm sees no size: leak and step matter by ε(1 + c) alone.
    lines += ["", "| ε(1 + c) | " + " | ".join(f"α, ε = {e}" for e in STEPS) + " |"]
    lines.append("| --- " * (1 + len(STEPS)) + "|")
    for product in (0.1, 0.15, 0.2):
        found = [crossing(curves[step], product / step - 1)[0] for step in curves if step]
        lines.append("| " + " | ".join(f"{v:.4f}" for v in (product, *found)) + " |")
    for step, curve in curves.items():
        for p in curve["points"]:
            lines.append(f"ε = {step}: {p['type']} at {p['gain_leak']}, {p['status']}")
    return "\n".join(lines)


def picture(curves, at):
    figure, (left, right) = panels(None, 8, 3.6, 1, 2)
    for i, step in enumerate(sorted(curves, key=lambda step: step or 0)):
        style = look(i) | {"marker": ""}
        gains, leaks = np.asarray(curves[step]["gain_leak"]).T
        left.plot(gains, leaks, label="Hopf, flow" if step is None else f"ε = {step}", **style)
        if step is None:
            right.axhline(gains[0], label="Hopf, flow", **style)
        else:
            right.plot(step * (1 + leaks), gains, label=f"Neimark–Sacker, ε = {step}", **style)
    left.plot(*at, "k*", ms=9, label="as trained")
    left.set(xlabel="attention gain α", ylabel="leak c")
    right.set(xlabel="ε(1 + c)", ylabel="attention gain α")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/two_parameters"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, default=16, help="validation windows looked at")
    options = parser.parse_args()
    if not (options.run / "checkpoints").exists():
        settings = SETTINGS | {"out": str(options.run), "seed": options.seed}
        Run.start(TrainConfig.from_dict(settings)).train()
    run = open_run(options.run, TrainConfig)
    field, z, x, told = fixed_point(run, options.windows)
    print(
        f"window {told['window']}, largest growth rates {np.round(told['growth'], 3)}", flush=True
    )
    tokens = stability.token_spectrum(field, z, x)
    print(f"token {int(tokens.token)}, by token {np.round(np.asarray(tokens.abscissas), 3)}")
    curves = examine(field, z, x)
    print(tables(curves))
    at = float(field.attention_gain), float(field.leak)
    report = {"told": told, "trained": at, "curves": {str(k): v for k, v in curves.items()}}
    (options.run / "two_parameters.json").write_text(json.dumps(plain(report), indent=1), "utf-8")
    plots.save(picture(curves, at), options.run / "two_parameters.png")


if __name__ == "__main__":
    main()
