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


#: The assumed memory in bytes if the system does not report it.
_DEFAULT_FREE_MEMORY = 4 << 30
_CGROUP = Path("/sys/fs/cgroup")
#: Not every "could not create" of oneDNN: it also reports unsupported shapes in this way.
_OOM_PATTERN = re.compile(
    r"\bMemoryError\b|[Cc]an(no|')t allocate memory|not enough memory|bad_alloc|out of memory"
    r"|could not create a memory object"
)


def free_memory() -> int:
    """Return the free memory of this machine, or of the container that it runs in."""
    found = [_read_number(Path("/proc/meminfo"), r"MemAvailable:\s+(\d+)", 1024)]
    limit, used = (_read_number(_CGROUP / name, r"(\d+)") for name in ("memory.max", "memory.current"))
    found.append(limit - used if limit is not None and used is not None else None)
    known = [size for size in found if size is not None]
    if known or not hasattr(os, "sysconf"):
        return min(known, default=_DEFAULT_FREE_MEMORY)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def limit_memory(share: int) -> None:
    """Limit the additional memory of this process, so that an allocation fails before the system kills another process.

    Nothing is limited on systems that do not report the memory of a process (other than Linux).
    """
    has = _read_number(Path("/proc/self/status"), r"VmData:\s+(\d+)", 1024)
    if has is not None:
        import resource  # which Windows has not

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (has + share, hard))


def is_oom(error: BaseException) -> bool:
    """Return whether an error means, by its type or message, that memory was not sufficient."""
    return isinstance(error, MemoryError) or bool(_OOM_PATTERN.search(str(error)))


def _read_number(path: Path, pattern: str, unit: int = 1) -> int | None:
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * unit if found else None
