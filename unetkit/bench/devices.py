"""Where trials run: devices, and cores of a CPU. Nothing here imports torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from unetkit.errors import OptionError
from unetkit.utils.system import physical_core


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


def make_slots(
    devices: list[tuple[str, str]], cores: tuple[int, ...], number: int | None, threads: int | None
) -> list[Slot]:
    """Divide a machine: a slot a GPU; on a CPU one with all its cores, or `number` that share them.

    Args:
        devices: each with its name.
        cores: that may be used.
        number: how many slots, where there is one device.
        threads: of each; as many as it has physical cores, if None.

    Raises:
        OptionError: more slots than cores, or several for GPUs.
    """
    if number is not None and devices[0][0] != "cpu" and number != len(devices):
        raise OptionError(f"--jobs {number}: a GPU is timed alone, so there are {len(devices)}; --device picks fewer")
    slots = number if number is not None and devices[0][0] == "cpu" else len(devices)
    if slots > len(cores):
        raise OptionError(f"--jobs {slots}: there are {len(cores)} cores")
    width = len(cores) // slots
    places = devices * slots if len(devices) == 1 else devices
    return [
        Slot(
            device, mine := cores[i * width : (i + 1) * width], threads or len({*map(physical_core, mine)}), slots, name
        )
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


_STAT = Path("/proc/stat")
#: user, nice, system, irq, softirq, steal: all that a core does but wait.
_BUSY = (0, 1, 2, 5, 6, 7)
#: Of the cores; less disturbs no timing that is paired.
_WORTH_SAYING = 0.05


class CpuContention:
    """Counts from when it is made."""

    def __init__(self, cores: tuple[int, ...]) -> None:
        self.cores = cores
        self._start = monotonic(), _busy(cores), _own()

    def share(self) -> float:
        """Of the time of these cores, what other processes took; 0 where the system does not tell."""
        start, busy, own = self._start
        now = _busy(self.cores)
        if busy is None or now is None or not self.cores:
            return 0.0
        return max(0.0, now - busy - (_own() - own)) / max(1e-9, (monotonic() - start) * len(self.cores))


def contention_warning(share: float) -> bool:
    """Whether other work took more than paired timings bear."""
    return share >= _WORTH_SAYING


def _busy(cores: tuple[int, ...]) -> float | None:
    """Seconds that cores were busy since the system started."""
    try:
        text = _STAT.read_text(encoding="utf-8")
    except OSError:
        return None
    ticks = {int(core): line.split() for core, line in re.findall(r"^cpu(\d+) (.+)$", text, re.MULTILINE)}
    if not all(core in ticks for core in cores):
        return None
    return sum(int(ticks[core][i]) for core in cores for i in _BUSY) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
