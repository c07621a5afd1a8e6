"""The devices that rows are measured on: how a machine is divided into slots, and how busy its cores are otherwise.

The module imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import monotonic

from unetkit.errors import OptionError
from unetkit.utils.system import physical_core


@dataclass(frozen=True)
class Slot:
    """A device, and CPU cores, that measure one row at a time.

    Attributes:
        device: "cpu", or a GPU such as "cuda:0".
        cores: CPU cores that the process is pinned to; it is not pinned if empty.
        threads: number of torch's threads.
        num_slots: number of slots that share the memory of the machine.
        name: name of the device for display, such as "NVIDIA H100".
    """

    device: str
    cores: tuple[int, ...]
    threads: int
    num_slots: int = 1
    name: str = ""

    def __str__(self) -> str:
        cores = f" cores {_format_cores(self.cores)}," if self.cores else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.device}{f' {self.name}' * bool(self.name)},{cores} {threads}"


def make_slots(
    devices: list[tuple[str, str]],
    cores: tuple[int, ...],
    jobs: int | None,
    threads: int | None,
    *,
    shares_gpus: bool = False,
) -> list[Slot]:
    """Divide a machine into slots: one for each GPU, or one or several for a CPU, which share its cores equally.

    Args:
        devices: (device, name) pairs, either of GPUs or of the CPU.
        cores: CPU cores that may be used.
        jobs: number of slots of a CPU; one if None.
        threads: number of torch's threads in each slot; the number of its physical cores if None.
        shares_gpus: whether several slots may share a GPU, as where nothing is timed.

    Raises:
        OptionError: There are more slots than cores, or `jobs` differs from the number of GPUs.
    """
    is_cpu = devices[0][0] == "cpu"
    if shares_gpus and not is_cpu and jobs is not None:
        devices = [devices[index % len(devices)] for index in range(jobs)]
    if jobs is not None and not is_cpu and jobs != len(devices):
        advice = "select GPUs with --device"
        raise OptionError(f"--jobs {jobs}: each GPU measures one row at a time, and there are {len(devices)}; {advice}")
    num_slots = jobs if jobs is not None and is_cpu else len(devices)
    if num_slots > len(cores):
        raise OptionError(f"--jobs {num_slots}: must be at most the number of cores, {len(cores)}")
    width = len(cores) // num_slots
    slot_devices = devices * num_slots if len(devices) == 1 else devices
    slots = []
    for index, (device, name) in enumerate(slot_devices):
        slot_cores = cores[index * width : (index + 1) * width]
        slot_threads = threads or len({*map(physical_core, slot_cores)})
        slots.append(Slot(device, slot_cores, slot_threads, num_slots, name))
    return slots


def _format_cores(cores: tuple[int, ...]) -> str:
    """Format cores as ranges: (0, 1, 2, 3, 8) -> "0-3,8"."""
    ranges: list[list[int]] = []
    for core in cores:
        if ranges and core == ranges[-1][-1] + 1:
            ranges[-1][1:] = [core]
        else:
            ranges.append([core])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


#: The times of a core in which it is not idle, as psutil names them; some systems have only the first three.
_BUSY_TIMES = ("user", "nice", "system", "irq", "softirq", "steal")
#: Fraction of the time of the cores from which contention is reported; less does not disturb paired timings.
_CONTENTION_THRESHOLD = 0.05


class CpuContention:
    """A measurement of the CPU time that other processes take, from the moment this is created.

    Args:
        cores: the observed CPU cores.
    """

    def __init__(self, cores: tuple[int, ...]) -> None:
        self.cores = cores
        self._start = monotonic(), _busy_seconds(cores), _own_cpu_seconds()

    def fraction(self) -> float:
        """Return the fraction of the cores' time that other processes used; 0 if the system does not report it."""
        start, busy_before, own_before = self._start
        busy = _busy_seconds(self.cores)
        if busy_before is None or busy is None or not self.cores:
            return 0.0
        foreign = busy - busy_before - (_own_cpu_seconds() - own_before)
        return max(0.0, foreign) / max(1e-9, (monotonic() - start) * len(self.cores))


def is_contended(fraction: float) -> bool:
    """Return whether other processes took more CPU time than paired timings tolerate.

    Args:
        fraction: as `CpuContention.fraction` returns it.
    """
    return fraction >= _CONTENTION_THRESHOLD


def _busy_seconds(cores: tuple[int, ...]) -> float | None:
    """Return how long the cores were busy since the system started, in seconds, summed; None if it is unknown."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    if max(cores, default=0) >= len(times):
        return None
    return float(sum(getattr(times[core], name, 0.0) for core in cores for name in _BUSY_TIMES))


def _own_cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
