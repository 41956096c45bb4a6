"""What `hopf_or_artefact.py` found, as a row for each claim of the reference work and as a picture."""

from typing import Any

import numpy as np
from hopf_measures import HORIZON, LONG, MARGINAL, STEPS, TAIL
from matplotlib.figure import Figure

from eqjax.plots import curves
from eqjax.plots._figure import look


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
    of = lambda found, name: [one[name] for one in found]
    steps = of(rows, "step")
    labels = "step", "validation cross-entropy (nats)"
    curves({"": (steps, of(rows, "cross_entropy"))}, labels=labels, title="learning", ax=a)
    pairs = {"largest Re μ": "real", "mean |Im μ| of the leading pairs": "mean_imag"}
    pairs = {name: (steps, of(rows, key)) for name, key in pairs.items()}
    curves(pairs, labels=("step", "Re μ, |Im μ|"), title="the leading pair of J", ax=b)
    tails = {"": (steps, np.maximum(of(rows, "tail_residual"), 1e-8))}
    title = f"worst window after {LONG} Euler steps"
    curves(tails, labels=("step", "force residual"), title=title, log="y", ax=c)
    gains, labels = of(e["knockout"], "gain"), ("attention gain × α", "largest Re μ")
    knocked = {"": (gains, of(e["knockout"], "abscissa"))}
    curves(knocked, labels=labels, title="knockout of the attention", ax=d)
    finer = {"worst window": "most", "median window": "median"}
    finer = {name: (of(e["sweep"], "step"), of(e["sweep"], key)) for name, key in finer.items()}
    labels = "Euler step ε", "force residual"
    curves(finer, labels=labels, title=f"at t = {HORIZON:g}", log="xy", ax=f)
    f.set_xticks(STEPS, map(str, STEPS))
    f.minorticks_off()
    for i, (name, value) in enumerate(e["parts"].items()):
        g.plot(value["real"], value["imag"], label=name, **look(i) | {"linestyle": "none"})
    g.set(xlabel="Re μ", ylabel="|Im μ|", title=f"leading modes at step {e['step']}")
    g.grid(alpha=0.3)
    g.legend(fontsize=8)
    for draw, level in ((b.axhline, 0), (c.axhline, MARGINAL), (d.axhline, 0), (g.axvline, 0)):
        draw(level, color="0.5", linewidth=0.8)
    return figure
