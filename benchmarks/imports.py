"""How long `import eqjax` takes beside the libraries that it needs, and `eqjax --help` beside that: medians of 5 processes,
taken in turn after one that is not counted.

    python benchmarks/imports.py
"""

import os
import statistics
import subprocess
import sys
import time

TIMED = {
    "jax, equinox, diffrax, optimistix, optax": "import jax, equinox, diffrax, optimistix, optax",
    "eqjax": "import eqjax",
    "eqjax, every room": "import eqjax\nfor room in dir(eqjax): getattr(eqjax, room)",
    "eqjax --help": "from eqjax.cli import main; main(['--help'])",
}


def seconds(code: str) -> float:
    # Bytecode is kept, as an installed package keeps it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment
    )
    return time.perf_counter() - start


def main() -> None:
    runs = [{name: seconds(code) for name, code in TIMED.items()} for _ in range(6)][1:]
    medians = {name: statistics.median(run[name] for run in runs) for name in TIMED}
    base = next(iter(medians.values()))
    print("| process | seconds | ratio |\n| --- | --- | --- |")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {value / base:.2f} |")


if __name__ == "__main__":
    main()
