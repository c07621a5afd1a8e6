"""Where trials run: devices, and cores of a CPU. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from unetkit.errors import BadOption
from unetkit.jobs.machine import physical


@dataclass(frozen=True)
class Slot:
    """Where one trial runs at a time, alone.

    Attributes:
        device: "cpu", "cuda:0".
        cores: of the CPU, that its process is pinned to; none, if empty.
        threads: of torch's.
        share: how many slots share the machine's memory.
        name: of the device, for people: "NVIDIA H100".
    """

    device: str
    cores: tuple[int, ...]
    threads: int
    share: int = 1
    name: str = ""

    def __str__(self) -> str:
        cores = f" cores {_spans(self.cores)}," if self.cores else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.device}{f' {self.name}' * bool(self.name)},{cores} {threads}"


def slots_of(
    devices: list[tuple[str, str]], cores: tuple[int, ...], number: int | None, threads: int | None
) -> list[Slot]:
    """Divide a machine: a slot a GPU; on a CPU one with all its cores, or `number` that share them.

    Args:
        devices: each with its name.
        cores: that may be used.
        number: how many slots, where there is one device.
        threads: of each; as many as it has physical cores, if None.

    Raises:
        BadOption: more slots than cores, or several for GPUs.
    """
    if number is not None and devices[0][0] != "cpu" and number != len(devices):
        raise BadOption(f"--slots {number}: a GPU is timed alone, so there are {len(devices)}; --device picks fewer")
    slots = number if number is not None and devices[0][0] == "cpu" else len(devices)
    if slots > len(cores):
        raise BadOption(f"--slots {slots}: there are {len(cores)} cores")
    width = len(cores) // slots
    places = devices * slots if len(devices) == 1 else devices
    return [
        Slot(device, mine := cores[i * width : (i + 1) * width], threads or len({*map(physical, mine)}), slots, name)
        for i, (device, name) in enumerate(places)
    ]


def _spans(cores: tuple[int, ...]) -> str:
    """0-3,8 for 0, 1, 2, 3, 8."""
    spans: list[list[int]] = []
    for core in cores:
        if spans and core == spans[-1][-1] + 1:
            spans[-1][1:] = [core]
        else:
            spans.append([core])
    return ",".join("-".join(map(str, span)) for span in spans)
