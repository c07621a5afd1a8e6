"""How much memory there is, and holding a process to a share of it. Sizes are bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: Bytes, where the system does not tell.
_UNKNOWN = 4 << 30
_GROUP = Path("/sys/fs/cgroup")
#: Not all that oneDNN "could not create": it says that of a primitive for shapes that it does not know.
_EXHAUSTED = re.compile(
    r"\bMemoryError\b|[Cc]an(no|')t allocate memory|not enough memory|bad_alloc|out of memory"
    r"|could not create a memory object"
)


def free() -> int:
    """What this machine, or the container that it runs in, has left."""
    found = [_first(Path("/proc/meminfo"), r"MemAvailable:\s+(\d+)", 1024)]
    limit, used = (_first(_GROUP / name, r"(\d+)") for name in ("memory.max", "memory.current"))
    found.append(limit - used if limit is not None and used is not None else None)
    known = [size for size in found if size is not None]
    if known or not hasattr(os, "sysconf"):
        return min(known, default=_UNKNOWN)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def hold(share: int) -> None:
    """Let this process take so much more and no more: then an allocation fails, and nothing else is killed for it.

    Where the system does not say what a process has (it is not Linux), nothing is held.
    """
    has = _first(Path("/proc/self/status"), r"VmData:\s+(\d+)", 1024)
    if has is not None:
        import resource  # which Windows has not

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (has + share, hard))


def exhausted(error: BaseException) -> bool:
    """Whether an error is, or tells in the words of another, that memory could not be had."""
    return isinstance(error, MemoryError) or bool(_EXHAUSTED.search(str(error)))


def _first(path: Path, pattern: str, unit: int = 1) -> int | None:
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * unit if found else None
