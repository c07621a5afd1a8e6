"""The processes that train together when they are started by `torchrun`; otherwise a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unetkit.errors import OptionError
from unetkit.utils.modules import default_device, numbered_device

#: The longest time that a process waits for another. Between two steps, the first one validates, draws and writes.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process, the number of processes, and the device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True for the process that writes files."""
        return self.rank == 0

    def all_gather(self, value: Any) -> list[Any]:
        """Return the objects of all processes in order of rank; every process must call this."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def means(self, values: Tensor) -> list[float]:
        """Return the mean of each number (N,) over all processes; every process must call this."""
        values = values.detach().double().cpu() if self.device.type == "cpu" else values.detach().float()
        if self.size > 1:
            dist.all_reduce(values)
        return [value / self.size for value in values.tolist()]

    def sync_buffers(self, network: nn.Module) -> None:
        """Copy the buffers of the first process, such as the statistics of norms, to all others."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def init_processes(device: str | None) -> Iterator[ProcessGroup]:
    """Connect to the processes that torchrun started, and disconnect at the end of the context.

    Raises:
        OptionError: A single GPU was given for several processes.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    there = torch.device(default_device(device))
    if size > 1 and there.index is not None:
        raise OptionError(f"--device {device}: each of {size} processes needs its own GPU; give cuda or cpu")
    if size > 1 and there.type == "cuda":
        there = torch.device("cuda", local)
    if there.type == "cuda":
        there = numbered_device(there)
        torch.cuda.set_device(there)
    if size == 1 or dist.is_initialized():
        yield ProcessGroup(dist.get_rank() if dist.is_initialized() else 0, size, there)
        return
    dist.init_process_group("nccl" if there.type == "cuda" else "gloo", timeout=_PATIENCE)
    group = ProcessGroup(dist.get_rank(), size, there)
    try:
        yield group
        group.all_gather(None)  # none ends while another still writes, which torchrun might then end, too
    finally:
        dist.destroy_process_group()
