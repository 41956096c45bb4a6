"""Where the time of a device goes: what its kernels did in a profile, by kind, and how long it had nothing to do."""

import re
import tempfile
from pathlib import Path

import jax
from jax.profiler import ProfileData

KINDS = {
    "collectives": re.compile(
        "nccl|all.?reduce|all.?gather|reduce.?scatter|permute", re.IGNORECASE
    ),
    "products": re.compile("gemm|nvjet|cutlass|cublas|dot", re.IGNORECASE),
    "copies": re.compile("memcpy|memset", re.IGNORECASE),
}


def kind(name):
    return next((k for k, pattern in KINDS.items() if pattern.search(name)), "other kernels")


def profile(function):
    """Of each GPU: its milliseconds by kind of kernel, those without any, and the number of kernels, while `function` runs.

    Empty where the profiler shows no kernels (on a CPU).
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(function())
        files = list(Path(folder).rglob("*.xplane.pb"))
        data = [ProfileData.from_file(str(path)) for path in files]
        planes = {p.name: list(p.lines) for d in data for p in d.planes if "GPU:" in p.name}
        return {name: told(kernels(lines)) for name, lines in planes.items() if kernels(lines)}


def kernels(lines):
    """(start, end, name) of what ran on the streams, in the order of starts; in nanoseconds."""
    events = (e for line in lines if line.name.startswith("Stream") for e in line.events)
    return sorted((e.start_ns, e.start_ns + e.duration_ns, e.name) for e in events)


def told(events):
    """Where kernels overlap the later one counts from the end of the earlier: the parts add up to the whole."""
    spent = dict.fromkeys((*KINDS, "other kernels", "nothing"), 0.0)
    until = events[0][0]
    for start, end, name in events:
        spent["nothing"] += max(0.0, start - until)
        spent[kind(name)] += max(0.0, end - max(start, until))
        until = max(until, end)
    return {name: ns / 1e6 for name, ns in spent.items()} | {"kernels": len(events)}
