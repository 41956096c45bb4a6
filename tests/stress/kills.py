"""SIGKILL at random moments of a run, resumed each time: it must end with the weights and the log of one that ran through.

`python tests/stress/kills.py train|gpt2 [--kills 40]`. `gpt2` is `gpt2 train --memory both`. Most kills wait for a
checkpoint that is being written.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from eqjax.recipes import open_run
from eqjax.training import read_metrics

SMALL = "--width 16 --heads 2 --length 8 --batch 4 --evaluate-windows 8 --evaluate-every 100 --save-every 2 --log-every 5"
COMMANDS = {
    "train": "train --steps 300",
    "gpt2": "gpt2 train --steps 240 --memory both --slots 8 --segments 2 --layers 2",
}
TEXT = "".join(f"{i} times {i + 1} is {i * (i + 1)}.\n" for i in range(400))


def started(arguments):
    command = [sys.executable, "-m", "eqjax", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def entries(folder):
    place = folder / "checkpoints"
    return {name for name in os.listdir(place)} if place.is_dir() else set()


def steps(folder):
    return sorted(int(name) for name in entries(folder) if name.isdigit())


def killed(process, folder, rng):
    """Wait for the moment, then kill. False where the run has ended before."""
    before, partial = steps(folder), rng.random() < 0.6
    while process.poll() is None and steps(folder) == before:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    known = entries(folder)
    while partial and process.poll() is None and not entries(folder) - known:
        time.sleep(0.001)
    time.sleep(rng.choice([0, 0.001, 0.005, 0.02, 0.04]))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return True


def same(one, other):
    host = lambda leaf: (
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
    )
    arrays = lambda run: [
        np.asarray(host(leaf)) for leaf in jax.tree.leaves(run.state) if isinstance(leaf, jax.Array)
    ]
    pairs = zip(arrays(one), arrays(other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def log(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, wrong = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as place:
        text, whole, broken = (Path(place) / name for name in ("text.txt", "whole", "broken"))
        text.write_text(TEXT, "utf-8")
        settings = f"{COMMANDS[options.command]} {SMALL} --text {text}".split()
        process = started([*settings, "--out", str(whole)])
        said, _ = process.communicate()
        if process.returncode:
            sys.exit(said)
        resume = [*settings[: settings.index("--steps")], "--resume", str(broken)]
        kills = 0
        while kills < options.kills:
            reached = steps(broken)
            process = started(resume if reached else [*settings, "--out", str(broken)])
            if not killed(process, broken, rng):
                said, _ = process.communicate()
                if process.returncode:
                    wrong.append(f"could not go on: {said[-500:]}")
                break
            kills += 1
            after = steps(broken)
            print(f"kill {kills}: checkpoints {reached} -> {after}", flush=True)
            if reached and (not after or after[-1] < reached[-1]):
                wrong.append(f"checkpoint {reached[-1]} is lost")
            if not after:  # nothing was kept yet: another run may not begin in its folder
                subprocess.run(["rm", "-rf", str(broken)], check=True)
        process = started(resume)
        said, _ = process.communicate()
        if process.returncode:
            wrong.append(f"the last resume failed: {said[-500:]}")
        elif not same(open_run(whole), open_run(broken)):
            wrong.append("other weights")
        elif log(whole) != log(broken):
            wrong.append("another log")
    print(f"{kills} kills, {len(wrong)} faults", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
