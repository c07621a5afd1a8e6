"""What the machine is and has, asked by a child, since the leader imports no torch."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from unetkit.bench.cluster import versions
from unetkit.inspect.figures import format_bytes
from unetkit.jobs.machine import cores, cpu
from unetkit.jobs.pool import Say


def survey(task: None, slot: None, say: Say) -> None:
    """Say the machine, the versions, and the GPUs as (device, name)."""
    gpus = [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    say({"machine": _machine([name for _, name in gpus]), "versions": versions(), "gpus": gpus})


def _machine(gpus: list[str]) -> dict[str, Any]:
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu(),
        "cores": len(cores()),
        "memory": format_bytes(held),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch._C._has_mkldnn,
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": _cudnn() if gpus else None,
        "tf32 in matmul": torch.backends.cuda.matmul.allow_tf32 if gpus else None,
        "tf32 in convolutions": torch.backends.cudnn.allow_tf32 if gpus else None,
    }


def _cudnn() -> int:
    version: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version
