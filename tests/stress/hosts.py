"""One of two hosts killed at a random instant: the other ends, too, and the run goes on to the same bits.

`python tests/stress/hosts.py [--kills 4]`.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

from eqjax.recipes import open_run

ONE = "import jax, sys; jax.config.update('jax_num_cpu_devices', 1)\nfrom eqjax.cli import main; main(sys.argv[1:])"
SIZES = {"layers": 1, "heads": 1, "width": 8, "length": 8, "batch": 4, "steps": 600}
EVERY = {"log-every": 20, "save-every": 50, "evaluate-every": 1000, "keep": 0, "devices": 1}


def both(*words):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    hosts = ["--coordinator", at, "--hosts", "2", "--host"]
    command = [sys.executable, "-c", ONE, "gpt2", "train", *words, *hosts]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, which], **pipes) for which in "01"]


def weights(run):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(run.model, eqx.is_array))]


def finished(processes):
    for process in processes:
        _, error = process.communicate(timeout=300)
        if process.returncode:
            raise SystemExit(error[-2000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        text = Path(place, "text.txt")
        text.write_text("to be or not to be, that is the question. " * 40, "utf-8")
        flags = [f"--{name}={value}" for name, value in (SIZES | EVERY).items()]
        flags.append(f"--text={text}")
        finished(both(*flags, f"--out={place}/whole"))
        whole = weights(open_run(Path(place, "whole")))
        for kill in range(options.kills):
            out = Path(place, f"killed-{kill}")
            processes, victim = both(*flags, f"--out={out}"), rng.randrange(2)
            while not (out / "checkpoints" / "50").exists():
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 3))
            processes[victim].send_signal(signal.SIGKILL)
            begun = time.perf_counter()
            _, error = processes[1 - victim].communicate(timeout=120)
            seconds = time.perf_counter() - begun
            ended = "the other had ended" if processes[1 - victim].returncode == 0 else "told"
            if ended == "told" and "start all of them again, with --resume" not in error:
                raise SystemExit(f"host {1 - victim} did not say what to do:\n{error[-2000:]}")
            finished(both("--resume", str(out)))
            again = weights(open_run(out))
            same = all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))
            print(
                f"host {victim} killed: {ended} after {seconds:.1f} s; the same bits: {same}",
                flush=True,
            )
            if not same:
                raise SystemExit(1)


if __name__ == "__main__":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())
    main()
