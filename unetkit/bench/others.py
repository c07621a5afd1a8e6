"""What other work took of the cores that a trial ran on, by the system's own count (Linux)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from time import monotonic

_STAT = Path("/proc/stat")
#: user, nice, system, irq, softirq, steal: all that a core does but wait.
_BUSY = (0, 1, 2, 5, 6, 7)
#: Of the cores; less disturbs no timing that is paired.
_WORTH_SAYING = 0.05


class Others:
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


def disturbed(share: float) -> bool:
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
