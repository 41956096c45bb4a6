"""How long does the equilibrium block keep its fixed points, as the scale of its embeddings varies?

    python experiments/embedding_scale.py --scales 1 3 6 10 --steps 1200 --estimator oracle
    python experiments/embedding_scale.py --scales 1 2 3 4 --steps 400 --length 32

Prints, per scale and seed, validation cross-entropy, the fraction of validation windows that did not settle, and
the fraction of samples accepted since the last line. A row is about five minutes on two cores with the oracle.
"""

import argparse
from pathlib import Path

from eqjax.recipes import TrainConfig
from eqjax.training import Run, read_metrics


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 6.0, 10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--leak", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--no-qknorm", action="store_true", help="queries and keys as they are")
    parser.add_argument("--estimator", default="oracle", choices=["asymep", "oracle", "bptt"])
    parser.add_argument("--text", type=Path, help="a text file; tiny Shakespeare if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/embedding_scale"))
    options = parser.parse_args()
    kind = f"{options.estimator}-{options.length}-{options.leak:g}-{options.rate:g}"
    kind += "-plain" if options.no_qknorm else ""
    every = max(1, options.steps // 8)
    print(
        "| scale | seed | step | validation CE | unsettled windows | samples accepted |\n"
        + "|---" * 6
        + "|"
    )
    for scale, seed in [(scale, seed) for scale in options.scales for seed in options.seeds]:
        config = TrainConfig(
            out=options.out / f"{kind}-{scale:g}-{seed}",
            text=options.text,
            estimator=options.estimator,
            order="window",
            embedding_scale=scale,
            length=options.length,
            leak=options.leak,
            learning_rate=options.rate,
            qknorm=not options.no_qknorm,
            steps=options.steps,
            seed=seed,
            evaluate_every=every,
            save_every=options.steps,
        )
        Run.start(config).train()
        lines = read_metrics(config.out / "metrics.jsonl")
        for line in lines:
            if "validation" in line:
                step, unsettled = line["step"], line["validation_unsettled"]
                told = "–" if unsettled is None else f"{unsettled:.1%}"  # None: BPTT
                recent = [x["accepted"] for x in lines if step - every < x["step"] <= step]
                print(
                    f"| {scale:g} | {seed} | {step} | {line['validation']:.3f} "
                    f"| {told} | {sum(recent) / len(recent):.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
