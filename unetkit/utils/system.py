"""What decides a measurement beside the network: the code, the libraries, the processor. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).parent.parent
#: Code that asks, or speaks to a user, and so changes no network.
_NO_PART = ("data", "jobs", "train", "predict", "bench", "sweep", "testing", "scaffold", "cli")


@cache
def code(*also: str, source: Path = _SOURCE) -> str:
    """A short digest of the source of unetkit that networks are made by, and of other rooms of it that are named.

    A changed checkout has another.
    """
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*.py")):
        inside = path.relative_to(source)
        if inside.parts[0] not in {*_NO_PART} - {*also}:
            digest.update(f"{inside.as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def cpu() -> str:
    """The processor's name."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def cores() -> tuple[int, ...]:
    """The cores that this process may use, those that share a physical one side by side."""
    known = hasattr(os, "sched_getaffinity")
    found = os.sched_getaffinity(0) if known else range(os.cpu_count() or 1)
    return tuple(sorted(found, key=lambda core: (physical(core), core)))


def physical(core: int) -> int:
    """What the cores that share one physical core have in common: the first of them."""
    try:
        told = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text(encoding="utf-8")
        return int(re.split("[-,]", told)[0])
    except (OSError, ValueError):
        return core
