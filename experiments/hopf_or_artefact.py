"""How does the trained equilibrium block lose its fixed points: a true Hopf bifurcation, or an artefact of the Euler step?

    python experiments/hopf_or_artefact.py --train                    # short, CPU: trains to the wall, then examines
    python experiments/hopf_or_artefact.py --train --size full        # width 256, 128 characters, on a GPU
    python experiments/hopf_or_artefact.py --run runs/mine            # a run of yours, at every checkpoint it kept

Trains without any homeostat, keeping checkpoints; then takes the last one that has lost a window through long relaxation,
knockout of the attention, a sweep of the Euler step, spectra (whole, attention only, MLP only), a branch in the attention gain
and the verdict of `classify`, and the leading pair at every checkpoint; and the answers of `learned_norm.py` and `probes.py`.
Writes hopf.json and hopf.png to the run's folder and prints a row for each claim.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import learned_norm
import numpy as np
import probes
from homeostats import chosen, training_options
from hopf_measures import (
    HORIZON,
    KNOCKOUT,
    LONG,
    MARGINAL,
    STEPS,
    cross_entropies,
    long_relaxation,
    parts,
    tails,
    with_gain,
)
from hopf_report import claims, picture

import eqjax as ej
from eqjax import plots, stability
from eqjax.recipes import TrainConfig, check_windows, follow, in_double, open_run, windows
from eqjax.training import Checkpoints, Run, holds_run, plain


def along(options, steps: list[int]) -> list[dict[str, Any]]:
    """(7) The leading pair at every checkpoint, and how many windows a long relaxation settles."""
    rows = []
    for step in steps:
        run = open_run(options.run, TrainConfig, step=step)
        model, epsilon = run.model, run.recipe.step_size
        inputs = windows(run, options.windows)
        found = check_windows(model, inputs, step=epsilon, k=4)
        end = tails(model, inputs, epsilon)
        value = np.asarray(found.spectrum.values[:, 0])
        # What was not found, a ghost of a fixed point that is gone, has no spectrum to speak of.
        worst = int(np.argmax(np.where(np.asarray(found.fixed_point), value.real, -np.inf)))
        result = run.evaluate(run.validation_ids)
        rows.append(
            {
                "step": step,
                "cross_entropy": result.cross_entropy,
                "unsettled_by_solver": result.unsettled,
                "unsettled_by_euler": float(np.mean(~(end["residual_median"] <= MARGINAL))),
                "tail_residual": float(np.nanmax(end["residual_median"])),
                "observed_frequency": float(end["frequency"][np.nanargmax(end["residual_median"])]),
                "real": float(value[worst].real),
                "imag": float(abs(value[worst].imag)),
                "mean_imag": float(np.mean(abs(value.imag))),
                "multiplier": float(np.max(abs(np.asarray(found.multipliers)))),
                "fixed_points": float(np.mean(found.fixed_point)),
                "flow_leaves": float(np.mean(found.fixed_point & ~found.holds)),
                "force_residual": float(np.max(np.asarray(found.residual))),
                "eigenpair_residual": float(np.asarray(found.spectrum.residuals)[worst, 0]),
            }
        )
        print(
            f"step {step}: CE {result.cross_entropy:.3f}, Euler settles {1 - rows[-1]['unsettled_by_euler']:.0%}, "
            f"leading μ {rows[-1]['real']:+.4f} ± {rows[-1]['imag']:.4f}i",
            flush=True,
        )
    return rows


def examine(options, step: int) -> dict[str, Any]:
    """(1) to (6) on one checkpoint."""
    run = open_run(options.run, TrainConfig, step=step)
    epsilon = run.recipe.step_size
    model = in_double(run) if options.x64 else run.model
    inputs, targets = ej.language.tiles(
        run.validation_ids, length=run.recipe.length, count=options.windows
    )
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)
    result: dict[str, Any] = {
        "step": step,
        "epsilon": epsilon,
        "long": tails(model, inputs, epsilon),
    }
    result["knockout"] = []
    for gain in KNOCKOUT:
        knocked = with_gain(model, gain * float(model.field.attention_gain))
        states, residual, _ = long_relaxation(knocked, inputs, jnp.asarray(epsilon), LONG)
        found = check_windows(knocked, inputs, step=epsilon, k=4)
        result["knockout"].append(
            {
                "gain": gain,
                "cross_entropy": float(jnp.mean(cross_entropies(knocked, states, targets))),
                "unsettled": float(np.mean(~(np.asarray(residual)[:, -1] <= MARGINAL))),
                "residual": float(np.nanmax(np.asarray(residual)[:, -1])),
                "abscissa": float(
                    np.max(np.where(found.fixed_point, np.asarray(found.abscissa), -np.inf))
                ),
            }
        )
    result["sweep"] = []
    for size in STEPS:
        _, residual, _ = long_relaxation(model, inputs, jnp.asarray(size), round(HORIZON / size))
        tail = np.median(np.asarray(residual)[:, -round(HORIZON / size / 4) :], 1)
        result["sweep"].append(
            {
                "step": size,
                "median": float(np.median(tail)),
                "most": float(np.nanmax(tail)),
                "unsettled": float(np.mean(~(tail <= MARGINAL))),
            }
        )
    found = check_windows(model, inputs, step=epsilon, k=6)
    value = np.asarray(found.spectrum.values[:, 0])
    result["spectrum"] = {
        "real": value.real,
        "imag": abs(value.imag),
        "multiplier": np.max(abs(np.asarray(found.multipliers)), 1),
        # The mode that grows fastest under Euler, whatever the flow does with it, is the one to be seen in its tail.
        "euler_frequency": abs(np.angle(np.asarray(found.multipliers)[:, 0])) / epsilon,
        "force_residual": np.asarray(found.residual),
        "eigenpair_residual": np.asarray(found.spectrum.residuals)[:, 0],
        "fixed_point": np.asarray(found.fixed_point),
        "holds": np.asarray(found.holds),
        "holds_euler": np.asarray(found.holds_euler),
    }
    result["parts"] = {
        name: {"real": v.real, "imag": abs(v.imag)} for name, v in parts(model, inputs).items()
    }
    # The window whose fixed point the flow leaves fastest is followed from where it is stable.
    window = int(np.argmax(np.where(np.asarray(found.fixed_point), value.real, -np.inf)))
    gain = float(model.field.attention_gain)
    bounds = (0.0, 1.2 * gain)
    branch = follow(
        model, inputs[window], parameter="attention_gain", bounds=bounds, step=epsilon, k=6
    )
    print(branch)
    stability.save(options.run / "hopf_branch.zip", branch)
    plots.save(
        plots.branch(branch, labels=("attention gain α", "‖z‖")), options.run / "hopf_branch.png"
    )
    first = here = None
    try:
        first = stability.classify(branch)
        here = stability.classify(branch, at=gain)
    except ValueError as error:
        print(f"No verdict: {error}")
    result["branch"] = {
        "window": window,
        "from": float(branch.parameters[0]),
        "table": str(branch),
        "first": None if first is None else first.outcome,
        "first_at": float(first.point.parameter) if first and first.point else None,
        "first_frequency": float(first.point.frequency or 0) if first and first.point else None,
        "at_trained_gain": None if here is None else here.outcome,
        "observed_frequency": float(result["long"]["frequency"][window]),
        "observed_residual": float(result["long"]["residual_median"][window]),
    }
    result["probes"] = probes.probes(
        model, run.validation_ids, run.tokenizer.size, run.recipe.length
    )
    return result


def main():
    parser = training_options(__doc__)
    parser.add_argument(
        "--run", type=Path, default=None, help="folder of a run; of the training's, with --train"
    )
    parser.add_argument("--train", action="store_true", help="train one to the wall first")
    parser.add_argument("--windows", type=int, default=8, help="validation windows looked at")
    parser.add_argument(
        "--at",
        type=int,
        default=None,
        help="examine this checkpoint, not the last one that has lost a window",
    )
    parser.add_argument("--x64", action="store_true", help="examine in float64")
    options = parser.parse_args()
    if options.run is None:
        if not options.train:
            parser.error("name a run with --run, or --train one")
        options.run = Path("runs/hopf") / options.size
    if options.train and not holds_run(options.run):
        settings = chosen(options, {})
        every = max(1, settings["steps"] // 8)
        settings |= {
            "out": str(options.run),
            "order": "window",
            "save_every": every,
            "evaluate_every": every,
            "keep": 0,
        }
        Run.start(TrainConfig.from_dict(settings)).train()
    with Checkpoints(options.run / "checkpoints") as kept:
        steps = kept.steps()
    rows = along(options, steps)
    at = options.at
    if at is None:
        lost = [r["step"] for r in rows if r["flow_leaves"] > 0 or r["unsettled_by_euler"] > 0]
        at = lost[-1] if lost else steps[-1]
    print(f"Examining step {at}.", flush=True)
    found = examine(options, at)
    config = open_run(options.run, TrainConfig, step=at).recipe
    widths = learned_norm.by_width(
        learned_norm.WIDTHS, config.heads, config.length, config.embedding_scale
    )
    report = {"config": config.to_dict(), "along": rows, "examined": found, "learned_norm": widths}
    (options.run / "hopf.json").write_text(json.dumps(plain(report), indent=1), "utf-8")
    plots.save(picture(rows, found), options.run / "hopf.png")
    print(claims(rows, found))
    print(f"\n{learned_norm.table(widths)}\n")
    print(probes.table(found["probes"]))


if __name__ == "__main__":
    main()
