"""How does the trained equilibrium block lose its fixed points: a true Hopf bifurcation, or an artefact of the Euler step?

    python experiments/hopf_or_artefact.py --train                    # short, CPU: trains to the wall, then examines
    python experiments/hopf_or_artefact.py --train --size full        # width 256, 128 characters, on a GPU
    python experiments/hopf_or_artefact.py --run runs/mine            # a run of yours, at every checkpoint it kept

Trains without any homeostat, keeping checkpoints; then takes the last one that has lost a window through long relaxation,
knockout of the attention, a sweep of the Euler step, spectra (whole, attention only, MLP only), a branch in the attention gain
and the verdict of `classify`, and the leading pair at every checkpoint. Writes hopf.json and hopf.png to the run's folder and
prints a row for each claim.
"""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from homeostats import chosen, training_options
from matplotlib.figure import Figure

import eqjax as ej
from eqjax import homeostasis, plots, stability
from eqjax.recipes import (
    TrainConfig,
    open_run,
    start_run,
    train,
)
from eqjax.recipes._examine import (
    check_windows,
    follow,
    in_double,
    settle,
    windows,
)
from eqjax.training import Checkpoints, holds_run
from eqjax.training._metrics import plain

MARGINAL = 1e-3  # force residual after a long relaxation, above which a window has not settled
LONG, TAIL = 2000, 1024
KNOCKOUT = (1.0, 0.7, 0.4, 0.2, 0.0)
STEPS = (0.4, 0.2, 0.1, 0.05, 0.02)
HORIZON = 60.0


def with_gain(model, gain):
    where = lambda m: m.field.attention_gain
    return eqx.tree_at(where, model, jnp.asarray(gain, where(model).dtype))


@eqx.filter_jit
def long_relaxation(model, inputs, step, steps: int):
    """Euler from the initial state: cross-entropy at the end, the residual and one coordinate of the state along the way."""

    def one(inputs):
        x = model.encode(inputs)
        z0 = model.initial(x)
        direction = jax.random.normal(jax.random.key(0), z0.shape, z0.dtype)
        direction = direction / jnp.linalg.norm(direction)

        def body(z, _):
            force = model.field(0.0, z, x)
            return z + step * force, (
                jnp.linalg.norm(force) / jnp.linalg.norm(z),
                jnp.sum(direction * z),
            )

        z, (residual, coordinate) = jax.lax.scan(body, z0, length=steps)
        return z, residual, coordinate

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(inputs)


@eqx.filter_jit
def cross_entropies(model, states, targets):
    return jax.vmap(lambda z, y: ej.cross_entropy(model.decode(z), y))(states, targets)


def frequency(series: np.ndarray, step: float) -> float:
    """Angular frequency of the tallest line in the spectrum of a time series, by parabolic interpolation of its peak."""
    series = (series - series.mean()) * np.hanning(len(series))
    power = np.log(abs(np.fft.rfft(series)) + 1e-300)
    i = int(np.clip(np.argmax(power), 1, len(power) - 2))
    a, b, c = power[i - 1 : i + 2]
    shift = np.clip(0.5 * (a - c) / (a - 2 * b + c), -0.5, 0.5) if a - 2 * b + c else 0.0
    return float(2 * np.pi * (i + shift) / (len(series) * step))


def tails(model, inputs, step: float) -> dict[str, Any]:
    """(1) What a long relaxation ends in."""
    _, residual, coordinate = map(
        np.asarray, long_relaxation(model, inputs, jnp.asarray(step), LONG)
    )
    tail = residual[:, -TAIL:]
    return {
        "residual_median": np.median(tail, 1),
        "residual_least": tail.min(1),
        "residual_most": tail.max(1),
        "frequency": np.array([frequency(c[-TAIL:], step) for c in coordinate]),
    }


def parts(model, inputs) -> dict[str, Any]:
    """(5) The rightmost eigenvalue at the fixed point of the whole field, and of it without MLP or without attention."""
    field = model.field

    def one(inputs, key):
        x, settled = settle(model, inputs)
        clamp = lambda z: field.reciprocal(0.0, z, x)
        forces = {
            "whole": lambda t, z, x: field(t, z, x),
            "attention only": lambda t, z, x: clamp(z) + field.attended(z),
            "MLP only": lambda t, z, x: clamp(z) + field.transformed(z),
        }
        settings = {"k": 2, "tol": 1e-4, "max_restarts": 100, "throw": False, "key": key}
        return {
            name: stability.spectrum(force, settled.value, x, **settings).values[0]
            for name, force in forces.items()
        }

    found = eqx.filter_jit(jax.vmap(one))(inputs, jax.random.split(jax.random.key(0), len(inputs)))
    return {name: np.asarray(value) for name, value in found.items()}


def learned_norm(width: int, heads: int, length: int, scale: float) -> tuple[float, float]:
    """‖N′‖₂ and ‖N′‖_F / √n of the untrained block at its fixed point."""
    a, b, c = jax.random.split(jax.random.key(0), 3)
    model = ej.language.equilibrium_lm(
        65, length, width, heads, qknorm=True, embedding_scale=scale, key=a
    )
    x, settled = settle(model, jax.random.randint(b, (length,), 0, 65))
    learned = lambda z: model.field.nonreciprocal(0.0, z, x)
    product = jax.linearize(learned, settled.value)[1]
    transpose = jax.linear_transpose(product, settled.value)
    gram = lambda v: transpose(product(v))[0]
    start = jax.random.normal(c, settled.value.shape, settled.value.dtype)
    top = stability.krylov_schur(gram, start, k=1, which="LM", tol=1e-3, key=c).values[0]
    mean = homeostasis.jacobian_penalty(model.field, settled.value, x, c, probes=32)
    return float(jnp.sqrt(top.real)), float(jnp.sqrt(mean))


def probes(model, ids: np.ndarray, vocabulary: int, length: int) -> dict[str, list[float]]:
    """Accuracy of a linear (ridge) probe for the character k places back, on the settled state and on the input alone."""
    inputs = jnp.asarray(ej.language.tiles(ids, length=length, count=160)[0])
    x, settled = jax.lax.map(lambda u: settle(model, u), inputs, batch_size=32)
    accuracy = {}
    for name, features in (("input", x), ("settled state", settled.value)):
        features = np.asarray(features, np.float64)
        accuracy[name] = []
        for back in range(5):
            X = features[:, back:].reshape(-1, features.shape[-1])
            y = np.asarray(inputs)[:, : length - back].reshape(-1)
            half = len(y) * 3 // 4
            mean, size = X[:half].mean(0), X[:half].std(0) + 1e-9
            X = np.concatenate([(X - mean) / size, np.ones((len(X), 1))], 1)
            target = np.eye(vocabulary)[y]
            solve = X[:half].T @ X[:half] + 1e-2 * half * np.eye(X.shape[1])
            weights = np.linalg.solve(solve, X[:half].T @ target[:half])
            accuracy[name].append(float(np.mean(np.argmax(X[half:] @ weights, 1) == y[half:])))
    return accuracy


def along(options, steps: list[int]) -> list[dict[str, Any]]:
    """(7) The leading pair at every checkpoint, and how many windows a long relaxation settles."""
    rows = []
    for step in steps:
        run = open_run(options.run, step=step)
        model, epsilon = run.model, run.config.step_size
        inputs = windows(run, options.windows)
        found = check_windows(model, inputs, step=epsilon, k=4)
        end = tails(model, inputs, epsilon)
        value = np.asarray(found.spectrum.values[:, 0])
        # What was not found, a ghost of a fixed point that is gone, has no spectrum to speak of.
        worst = int(np.argmax(np.where(np.asarray(found.fixed_point), value.real, -np.inf)))
        result = ej.recipes.evaluate(run, run.validation_ids)
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
    run = open_run(options.run, step=step)
    epsilon = run.config.step_size
    model = in_double(run) if options.x64 else run.model
    inputs, targets = ej.language.tiles(
        run.validation_ids, length=run.config.length, count=options.windows
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
    branch = follow(model, inputs[window], path="attention_gain", bounds=bounds, step=epsilon, k=6)
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
    result["probes"] = probes(model, run.validation_ids, run.tokenizer.size, run.config.length)
    return result


def claims(rows: list[dict[str, Any]], e: dict[str, Any]) -> str:
    """A row per claim of the reference work: claim, test, figure, verdict."""
    branch, spectrum, long = e["branch"], e["spectrum"], e["long"]
    w = branch["window"]
    unstable = bool(np.any(spectrum["fixed_point"] & ~spectrum["holds"]))
    proof = f"force residual {spectrum['force_residual'][w]:.0e}, eigenpair residual {spectrum['eigenpair_residual'][w]:.0e}"
    first_at = branch["first_at"]
    expected = spectrum["euler_frequency"][w]
    knocked = e["knockout"]
    fine = e["sweep"][-1]
    whole, attention, mlp = (e["parts"][n]["real"] for n in ("whole", "attention only", "MLP only"))
    imag = [r["mean_imag"] for r in rows]
    entropy = [r["cross_entropy"] for r in rows]
    # Rank correlation of |Im μ| with CE along training.
    ranks = lambda v: np.argsort(np.argsort(v))
    spearman = (
        float(np.corrcoef(ranks(imag), ranks(entropy))[0, 1]) if len(rows) > 2 else float("nan")
    )
    late = np.mean(imag[-max(1, len(imag) // 3) :]) / max(
        np.mean(imag[len(imag) // 3 : -max(1, len(imag) // 3)] or imag), 1e-9
    )
    cycling = long["residual_median"][w] > MARGINAL

    lost = unstable or bool(np.any(long["residual_median"] > MARGINAL))

    def say(condition: bool) -> str:
        if not lost:
            return f"undecided: nothing is lost yet ({proof})"
        return "upheld" if condition else "refuted"

    table = [
        (
            "the relaxation ends in a cycle whose force residual stays near 1e-1",
            f"{LONG} Euler steps of ε = {e['epsilon']:g}, tail of {TAIL}",
            f"median residual of the windows {np.median(long['residual_median']):.1e}, largest {np.nanmax(long['residual_median']):.1e}; "
            f"{np.mean(long['residual_median'] > MARGINAL):.0%} unsettled",
            say(bool(np.nanmax(long["residual_median"]) > 1e-2)),
        ),
        (
            "what is lost is lost by a complex pair",
            f"branch in α of window {w}, from α = {branch['from']:g}",
            "no loss up to 1.2 times the trained gain"
            if first_at is None
            else f"{branch['first']} at α = {first_at:.4f}, frequency {branch['first_frequency']:.4f}",
            say(first_at is not None and branch["first"] in ("Hopf", "step artefact")),
        ),
        (
            "it is a true Hopf bifurcation of the flow, no artefact of the Euler step",
            "classify at the trained gain; Re μ at the fixed point",
            f"{branch['at_trained_gain']}; μ = {spectrum['real'][w]:+.4f} ± {spectrum['imag'][w]:.4f}i ({proof})",
            say(unstable and branch["at_trained_gain"] == "Hopf"),
        ),
        (
            "a smaller Euler step does not cure it",
            f"ε = {STEPS[0]} … {STEPS[-1]} to t = {HORIZON:g}",
            "; ".join(
                f"{s['step']:g}: {s['unsettled']:.0%} unsettled ({s['most']:.0e})"
                for s in e["sweep"]
            ),
            say(fine["unsettled"] > 0),
        ),
        (
            "the observed oscillation has the frequency of the pair",
            "tallest line of the tail against |arg λ|/ε of Euler's fastest mode, same window",
            f"{branch['observed_frequency']:.3f} against {expected:.3f} at the fixed point",
            say(abs(branch["observed_frequency"] - expected) < 0.25 * expected)
            if cycling
            else f"undecided: this window settles ({proof})",
        ),
        (
            "without its attention the block settles",
            "knockout of α",
            "; ".join(
                f"α × {k['gain']:g}: {k['unsettled']:.0%} unsettled, Re μ {k['abscissa']:+.2f}"
                for k in knocked
            ),
            say(knocked[-1]["unsettled"] == 0),
        ),
        (
            "the attention does it alone, without the MLP",
            "spectra without MLP or attention, at the same states",
            f"largest Re μ whole {whole.max():+.2f}, attention only {attention.max():+.2f}, MLP only {mlp.max():+.2f}",
            say(attention.max() > 0 and mlp.max() < 0),
        ),
        (
            "a quasi-Newton or Newton solve finds the fixed point that the flow leaves",
            "Anderson, then Newton–Krylov; stability.check",
            f"{np.mean(spectrum['fixed_point']):.0%} of windows have one ({proof}), the flow stays at {np.mean(spectrum['holds']):.0%}",
            say(unstable),
        ),
        (
            "|Im μ| grows as the loss falls",
            f"leading pair at {len(rows)} checkpoints",
            f"{imag[0]:.3f} at the first, {imag[-1]:.3f} at the last; rank correlation with CE {spearman:+.2f}; last third / middle third {late:.2f}",
            ("grows" if late > 1.15 else "saturates")
            + (", upheld" if spearman < -0.5 else ", refuted"),
        ),
    ]
    lines = ["| claim | test | figure | verdict |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in table])


def picture(rows: list[dict[str, Any]], e: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    (a, b, c), (d, f, g) = figure.subplots(2, 3)
    steps = [r["step"] for r in rows]
    a.plot(steps, [r["cross_entropy"] for r in rows], "o-")
    a.set(xlabel="step", ylabel="validation cross-entropy (nats)", title="learning")
    b.plot(steps, [r["real"] for r in rows], "o-", label="largest Re μ")
    b.plot(steps, [r["mean_imag"] for r in rows], "s--", label="mean |Im μ| of the leading pairs")
    b.axhline(0, color="0.5", linewidth=0.8)
    b.set(xlabel="step", title="the leading pair of J")
    b.legend(fontsize=8)
    c.semilogy(steps, [max(r["tail_residual"], 1e-8) for r in rows], "o-")
    c.axhline(MARGINAL, color="0.5", linewidth=0.8)
    c.set(xlabel="step", ylabel="force residual", title=f"worst window after {LONG} Euler steps")
    d.plot([k["gain"] for k in e["knockout"]], [k["abscissa"] for k in e["knockout"]], "o-")
    d.axhline(0, color="0.5", linewidth=0.8)
    d.set(xlabel="attention gain × α", ylabel="largest Re μ", title="knockout of the attention")
    f.loglog(
        [s["step"] for s in e["sweep"]], [s["most"] for s in e["sweep"]], "o-", label="worst window"
    )
    f.loglog(
        [s["step"] for s in e["sweep"]],
        [s["median"] for s in e["sweep"]],
        "s--",
        label="median window",
    )
    f.set_xticks(STEPS, map(str, STEPS))
    f.minorticks_off()
    f.set(xlabel="Euler step ε", ylabel="force residual", title=f"at t = {HORIZON:g}")
    f.legend(fontsize=8)
    for (name, value), style in zip(e["parts"].items(), ("o", "^", "s"), strict=True):
        g.plot(value["real"], value["imag"], style, label=name, alpha=0.7)
    g.axvline(0, color="0.5", linewidth=0.8)
    g.set(xlabel="Re μ", ylabel="|Im μ|", title=f"leading modes at step {e['step']}")
    g.legend(fontsize=8)
    for axes in (a, b, c, d, f, g):
        axes.grid(alpha=0.3)
    return figure


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
            "save_every": every,
            "evaluate_every": every,
            "keep": 0,
        }
        train(start_run(TrainConfig.from_dict(settings)))
    with Checkpoints(options.run / "checkpoints") as kept:
        steps = kept.steps()
    rows = along(options, steps)
    at = options.at
    if at is None:
        lost = [r["step"] for r in rows if r["flow_leaves"] > 0 or r["unsettled_by_euler"] > 0]
        at = lost[-1] if lost else steps[-1]
    print(f"Examining step {at}.", flush=True)
    found = examine(options, at)
    config = open_run(options.run, step=at).config
    widths = [
        (w, *learned_norm(w, config.heads, config.length, config.embedding_scale))
        for w in (64, 128, 256, 512)
    ]
    report = {"config": config.to_dict(), "along": rows, "examined": found, "learned_norm": widths}
    (options.run / "hopf.json").write_text(json.dumps(plain(report), indent=1), "utf-8")
    plots.save(picture(rows, found), options.run / "hopf.png")
    print(claims(rows, found))
    print("\n| width | ‖N′‖₂, untrained | ‖N′‖_F / √n |\n|---|---|---|")
    for width, top, mean in widths:
        print(f"| {width} | {top:.2f} | {mean:.3f} |")
    print(
        "\n| linear probe: character | "
        + " | ".join(f"{k} back" for k in range(5))
        + " |\n"
        + "|---" * 6
        + "|"
    )
    for name, accuracy in found["probes"].items():
        print(f"| {name} | " + " | ".join(f"{a:.1%}" for a in accuracy) + " |")


if __name__ == "__main__":
    main()
