"""The most memory that was held since a moment: CUDA's own counters, or the process's high-water mark on Linux."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

from unetkit.errors import CannotBuild

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Resident:
    """What is held beyond what was held when this was made.

    On a CPU it is the anonymous memory of the process: that of files (the libraries' own code, which a first pass
    reads in) is left out. Memory that was freed is given back to the system before it counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        _trim()
        self._base = torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("RssAnon") or 0

    def peak(self, run: Callable[[], object]) -> int:
        """Call `run`; the most bytes that were held while it ran.

        Raises:
            CannotBuild: the system does not tell (on a CPU, Linux alone does).
        """
        if self.device.type == "cuda":
            return self._on_gpu(run)
        _trim()
        try:
            _CLEAR.write_text("5")  # sets the high-water mark back to what is held now
        except OSError as error:
            raise CannotBuild(f"the high-water mark of memory cannot be set back here: {error}") from error
        run()
        return _told("VmHWM") - _told("RssFile") - self._base

    def _on_gpu(self, run: Callable[[], object]) -> int:
        run()  # cuDNN tries its algorithms the first time, some with more memory than any pass takes later
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self._base


def _told(what: str) -> int:
    found = _status(what)
    if found is None:
        raise CannotBuild("peak memory on a CPU is read from /proc/self/status, which this system has not")
    return found


def _status(what: str) -> int | None:
    try:
        found = re.search(rf"{what}:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"))
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def _trim() -> None:
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # another libc, which keeps less
