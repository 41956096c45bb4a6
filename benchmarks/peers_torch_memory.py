"""How much memory PyTorch has, and takes, in `peers.py`; on a CPU a fresh process finds out, without JAX."""

import dataclasses

import torch
from peers_torch import DEQ, LanguageModel, finite, first_compilation


def device(platform):
    if platform != "cpu":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def free_memory(platform):
    """Bytes that are free on the device."""
    if platform != "cpu":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as file:
        line = next(line for line in file if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def cuda_memory(call):
    """MiB that a call allocates at its peak."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _resident(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 2**10


def resident_memory(weights, batch, jobs):
    """MiB by which the resident set of this process grows during each job `(settings, kind)`, at its peak.

    Meant for a fresh process with `MALLOC_MMAP_THRESHOLD_=65536`, so that freed arrays leave the resident set.
    Short calls before it load and compile what there is.
    """
    model = LanguageModel(weights, "cpu")
    tokens, targets = (model.array(a) for a in batch)
    advance = None
    if any(settings.compiled for settings, _ in jobs):
        advance, _ = first_compilation(model, tokens)
    measured = []
    for settings, kind in jobs:
        eager = dataclasses.replace(settings, compiled=False)
        finite(
            lambda run=eager.build(model), kind=kind: getattr(run, kind)(tokens[:1], targets[:1])
        )
        run = settings.build(model, advance)
        if settings.compiled and isinstance(settings, DEQ):
            brief = dataclasses.replace(settings, max_iter=4).build(model, advance)
            finite(lambda run=brief, kind=kind: getattr(run, kind)(tokens, targets))
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the high-water mark
        before = _resident("VmRSS")
        out = getattr(run, kind)(tokens, targets)
        measured.append(_resident("VmHWM") - before)
        del out, run
    return measured
