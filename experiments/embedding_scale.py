"""How long does the equilibrium block keep its fixed points, as the scale of its embeddings varies?

    python experiments/embedding_scale.py --scales 1 3 6 10 --steps 1200 --estimator oracle

Prints, per scale, validation cross-entropy and the fraction of samples accepted along training. A row is
about five minutes on two cores with the oracle.
"""

import argparse
from pathlib import Path

from eqjax.recipes import TrainConfig
from eqjax.training import Run, read_metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 6.0, 10.0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--estimator", default="oracle", choices=["asymep", "oracle", "bptt"])
    parser.add_argument("--out", type=Path, default=Path("runs/embedding_scale"))
    options = parser.parse_args()
    print(
        "| scale | step | validation CE | unsettled windows | samples accepted |\n"
        + "|---" * 5
        + "|"
    )
    for scale in options.scales:
        config = TrainConfig(
            out=options.out / f"{options.estimator}-{scale:g}-{options.length}",
            estimator=options.estimator,
            embedding_scale=scale,
            length=options.length,
            steps=options.steps,
            evaluate_every=max(1, options.steps // 8),
            save_every=options.steps,
        )
        Run.start(config).train()
        lines = read_metrics(config.out / "metrics.jsonl")
        for i, line in enumerate(lines):
            if "validation" in line:
                recent = [x["accepted"] for x in lines[max(0, i - 9) : i + 1]]
                print(
                    f"| {scale:g} | {line['step']} | {line['validation']:.3f} "
                    f"| {line['validation_unsettled']:.1%} | {sum(recent) / len(recent):.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
