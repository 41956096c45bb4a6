"""How many characters back can a linear probe read off the settled state, and off the input alone?

python experiments/probes.py --run runs/mine                       # a run of yours, at its newest checkpoint
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import eqjax as ej
from eqjax.recipes import TrainConfig, open_run
from eqjax.recipes._examine import settle


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


def table(accuracy: dict[str, list[float]]) -> str:
    header = "| linear probe: character | " + " | ".join(f"{k} back" for k in range(5)) + " |"
    rows = [
        f"| {name} | " + " | ".join(f"{a:.1%}" for a in row) + " |"
        for name, row in accuracy.items()
    ]
    return "\n".join([header, "|---" * 6 + "|", *rows])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a run")
    parser.add_argument("--at", type=int, default=None, help="this checkpoint, not the newest")
    options = parser.parse_args()
    run = open_run(options.run, TrainConfig, step=options.at)
    ids, vocabulary = run.validation_ids, run.tokenizer.size
    print(table(probes(run.model, ids, vocabulary, run.recipe.length)))


if __name__ == "__main__":
    main()
