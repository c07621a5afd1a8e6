"""The code, the processor and the memory of this machine, which influence measurements. This imports no torch.

Sizes are in bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).parent.parent
#: Packages whose code builds no network, so that a change in them leaves every network as it was.
_PACKAGES_WITHOUT_NETWORKS = ("data", "tiling", "train", "predict", "bench", "testing", "scaffold", "cli")


@cache
def code_digest(*also: str, source: Path = _SOURCE) -> str:
    """Return a short digest of the source files of unetkit that build networks, and of other given packages of it.

    An edited checkout has another digest.
    """
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.py")):
        inside = path.relative_to(source)
        if inside.parts[0] not in {*_PACKAGES_WITHOUT_NETWORKS} - {*also}:
            digest.update(f"{inside.as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cpu_name() -> str:
    """Return the name of the processor."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def available_cores() -> tuple[int, ...]:
    """Return the cores that this process may use, with those of one physical core next to each other."""
    known = hasattr(os, "sched_getaffinity")
    found = os.sched_getaffinity(0) if known else range(os.cpu_count() or 1)
    return tuple(sorted(found, key=lambda core: (physical_core(core), core)))


def physical_core(core: int) -> int:
    """Return the first of the logical cores that share a physical core."""
    try:
        siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text(encoding="utf-8")
        return int(re.split("[-,]", siblings)[0])
    except (OSError, ValueError):
        return core


_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Return the free memory of this machine, or of the container that it runs in."""
    import psutil

    available: int = psutil.virtual_memory().available
    limit, used = (_read_number(_CGROUP / name, r"(\d+)") for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else min(available, limit - used)


def total_memory() -> int:
    """Return the memory of this machine."""
    import psutil

    return int(psutil.virtual_memory().total)


def private_memory() -> int:
    """Return the resident memory of this process that no file backs and no process shares; 0 if that is unknown."""
    import psutil

    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared if hasattr(memory, "shared") else 0


def reset_peak_memory() -> None:
    """Set the high-water mark that `peak_private_memory` reads to the current memory.

    Raises:
        OSError: The system has no such mark; only Linux has.
    """
    Path("/proc/self/clear_refs").write_text("5")


def peak_private_memory() -> int | None:
    """Return the largest private memory of this process since its start or reset; None if the system has no such mark.

    Memory that files back is assumed to be as large at the peak as it is now.
    """
    import psutil

    # psutil reads no high-water mark, and that of getrusage cannot be reset.
    peak = _read_number(Path("/proc/self/status"), r"VmHWM:\s+(\d+)", 1024)
    return None if peak is None else int(peak - psutil.Process().memory_info().shared)


def limit_memory(share: int) -> None:
    """Limit the additional memory of this process, so that an allocation fails before the system kills another process.

    Nothing is limited on systems that do not report the memory of a process (other than Linux).
    """
    import psutil

    memory = psutil.Process().memory_info()
    if hasattr(memory, "data"):
        import resource  # which Windows has not

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (memory.data + share, hard))


def _read_number(path: Path, pattern: str, unit: int = 1) -> int | None:
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * unit if found else None
