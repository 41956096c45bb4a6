"""Whether a compiled step fits into the memory of its devices, which is known before it runs."""

import dataclasses
import os
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of one device: `kept` by parameters, optimiser and batch, `passing` through one update, and `there` on the device (None:
    it does not say)."""

    kept: int
    passing: int
    there: int | None

    def __str__(self) -> str:
        told = f"{_shown(self.kept)} for the state and {_shown(self.passing)} for an update"
        return told if self.there is None else f"{told}, of {_shown(self.there)} on each device"

    def check(self, batch: int, parts: int, devices: int) -> None:
        """`ValueError` for a step that does not fit, with what would; `batch` samples in `parts` parts on so many devices."""
        if self.there is None or self.kept + self.passing <= self.there:
            return
        room, each = self.there - self.kept, self.passing * parts * devices / batch
        fits = int(max(0, room) / max(each, 1)) * devices
        needs = f"`batch` {batch} needs {self}."
        if fits < devices:
            raise ValueError(
                f"{needs} Not one sample a device would fit: take a smaller model or `length`, or more `devices` with "
                "`shard_parameters`."
            )
        cuts = range(parts + 1, batch // devices + 1)
        even = (k for k in cuts if batch % (k * devices) == 0 and batch // k <= fits)
        count = next(even, batch // devices)
        raise ValueError(
            f"{needs} About {fits} samples at a time would fit: `batch` {fits}, or `accumulate` {count}."
        )


def needed(program: Any, device: jax.Device) -> StepMemory:
    """What a compiled program needs of each device that it runs on."""
    found = program.memory_analysis()
    kept = found.argument_size_in_bytes
    passing = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return StepMemory(kept, max(0, passing), _there(device))


def _there(device: jax.Device) -> int | None:
    said = device.memory_stats() if device.platform != "cpu" else None
    if said:
        return said.get("bytes_limit")
    if device.platform != "cpu":
        return None
    # Devices of a CPU share its memory, and most of what a step needs is needed once on each.
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.local_device_count()


def _shown(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
