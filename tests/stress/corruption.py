"""Every file of a run's folder flipped by a bit, cut, emptied and deleted: noticed, or harmless.

`python tests/stress/corruption.py [--flips 4]`.
"""

import argparse
import collections
import random
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from eqjax.recipes import TrainConfig, open_run
from eqjax.training import CheckpointError, Run

TEXT = "".join(f"{i} times {i + 1} is {i * (i + 1)}.\n" for i in range(400))


def flipped(path, rng):
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))] if data else data)


def emptied(path, rng):
    path.write_bytes(b"")


def deleted(path, rng):
    path.unlink()


def weights(run):
    return [
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.model) if hasattr(leaf, "dtype")
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, told, wrong = random.Random(options.seed), collections.Counter(), []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        (place / "text.txt").write_text(TEXT, "utf-8")
        small = {"width": 8, "heads": 2, "length": 8, "batch": 4, "steps": 6, "save_every": 2}
        config = TrainConfig(
            text=place / "text.txt", out=place / "run", evaluate_windows=8, **small
        )
        Run.start(config).train()
        whole = open_run(place / "run")
        expected = weights(whole), int(whole.state.step)
        files = [p.relative_to(place / "run") for p in (place / "run").rglob("*") if p.is_file()]
        ways = [flipped] * options.flips + [cut, emptied, deleted]
        for name in sorted(files):
            for way in ways:
                shutil.rmtree(place / "copy", ignore_errors=True)
                shutil.copytree(place / "run", place / "copy", symlinks=True)
                way(place / "copy" / name, rng)
                try:
                    run = open_run(place / "copy")
                    found = weights(run), int(run.state.step)
                    outcome = "harmless" if found == expected else "another model"
                    if found[1] < expected[1]:
                        outcome = "an older checkpoint"
                except (CheckpointError, ValueError, OSError) as error:
                    outcome = f"noticed ({type(error).__name__})"
                except Exception as error:
                    outcome = f"obscure: {type(error).__name__}: {str(error)[:100]}"
                told[way.__name__, outcome] += 1
                if outcome == "another model" or outcome.startswith("obscure"):
                    wrong.append(f"{name} {way.__name__}: {outcome}")
    for (way, outcome), count in sorted(told.items()):
        print(f"{way}: {outcome}: {count}")
    print(f"{sum(told.values())} corruptions, {len(wrong)} faults", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
