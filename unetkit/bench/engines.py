"""Where trials run: on this machine by its slots, or on a Ray cluster. Nothing here imports torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unetkit.bench.config import BenchConfig
from unetkit.bench.devices import Slot
from unetkit.errors import OptionError
from unetkit.utils.processes import TaskResult, run_tasks

Notice = Callable[[str], None]


def run_locally(
    tasks: Iterable[Any],
    ask: str,
    slots: Sequence[Slot],
    *,
    timeout: float,
    preload: Sequence[str],
    notice: Notice,
    timed: bool = True,
) -> Generator[TaskResult, None, None]:
    """Run tasks in processes of this machine, one a slot at a time, as `unetkit.utils.processes.run` does.

    While it lasts, no other benchmark of unetkit's times on these devices: it waits, unless it is not `timed`.
    """
    with (
        device_lock([slot.device for slot in slots if timed], notice),
        closing(run_tasks(tasks, ask, slots, timeout=timeout, preload=preload)) as ended,
    ):
        yield from ended


def run_on_cluster(
    tasks: Iterable[Any], ask: str, choices: BenchConfig, *, timeout: float, preload: Sequence[str]
) -> Generator[TaskResult, None, None]:
    """Run tasks on the nodes of a Ray cluster. Raises as `unetkit.bench.ray_engine.run` does."""
    from unetkit.bench.ray_engine import run_on_ray

    gpus = {"": None, "cpu": 0, "cuda": 1}
    if choices.device not in gpus:
        raise OptionError(f"--device {choices.device}: on a cluster it is cpu or cuda; Ray finds which")
    return run_on_ray(
        tasks,
        ask,
        address=choices.ray_address,
        gpus=gpus[choices.device],
        slots=choices.jobs,
        threads=choices.threads,
        timeout=timeout,
        preload=preload,
    )


@contextmanager
def device_lock(devices: Iterable[str], notice: Notice) -> Iterator[None]:
    """Have devices of this machine to oneself among benchmarks; wait for those that another has, and say so."""
    with ExitStack() as held:
        for device in sorted({*devices}):
            lock = FileLock(Path(tempfile.gettempdir(), f"unetkit-bench-{device.replace(':', '-')}.lock"), mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                notice(f"another benchmark is timing on {device} of this machine; waits for its end")
                lock.acquire()
            except OSError:
                continue  # another user's lock cannot be opened, and a benchmark need not fail for it
            held.callback(lock.release)
        yield


def select_devices(asked: str, gpus: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The devices that are meant, each with its name: all GPUs, or the CPU where there is none, if "".

    Raises OptionError for one that there is not.
    """
    known = dict(gpus)
    if asked == "cpu" or (not asked and not known):
        return [("cpu", "")]
    wanted = [*known] if asked in ("", "cuda") else asked.split(",")
    for device in wanted or ["cuda"]:
        if device not in known:
            has = f"there are {', '.join(known)}" if known else "torch finds no GPU; leave it out for the CPU"
            raise OptionError(f"--device {asked}: there is no {device}; {has}")
    return [(device, known[device]) for device in wanted]
