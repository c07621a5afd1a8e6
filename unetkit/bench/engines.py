"""Engines that measure rows: in processes on this machine, or on a Ray cluster. The module imports no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unetkit.bench.config import BenchConfig
from unetkit.bench.devices import Slot
from unetkit.errors import OptionError
from unetkit.utils.processes import TaskResult, run_tasks

#: Called with each line that a user should see while a benchmark runs.
NoticeCallback = Callable[[str], None]


def run_locally(
    tasks: Iterable[Any],
    target: str,
    slots: Sequence[Slot],
    *,
    timeout: float,
    preload: Sequence[str],
    on_notice: NoticeCallback,
    timed: bool = True,
) -> Generator[TaskResult, None, None]:
    """Run tasks in processes on this machine, one at a time in each slot, and yield each result.

    Args:
        tasks: objects that can be pickled.
        target: function that a process calls, as `unetkit.utils.processes.run_tasks` takes it.
        slots: where tasks run.
        timeout: time limit for a task, in seconds.
        preload: modules that all processes need.
        on_notice: called if another benchmark has to be waited for.
        timed: the tasks time something, so that only one benchmark at a time may use the devices.
    """
    with (
        device_lock([slot.device for slot in slots if timed], on_notice),
        closing(run_tasks(tasks, target, slots, timeout=timeout, preload=preload)) as results,
    ):
        yield from results


def run_on_cluster(
    tasks: Iterable[Any],
    target: str,
    config: BenchConfig,
    connection: ExitStack,
    *,
    timeout: float,
    preload: Sequence[str],
) -> Generator[TaskResult, None, None]:
    """Run tasks on the nodes of a Ray cluster, and yield each result.

    Args:
        tasks: objects that can be pickled.
        target: function that a process calls, as `unetkit.bench.ray_engine.run_on_ray` takes it.
        config: settings of the benchmark.
        connection: keeps the connection to the cluster until it is closed, since workers of another connection would
            import everything anew.
        timeout: time limit for a task, in seconds.
        preload: modules that all processes need.

    Raises:
        OptionError: The device cannot be used with Ray, or the cluster cannot be used.
        UnetkitError: A node has other versions than this machine.
    """
    from unetkit.bench.ray_engine import connect, import_ray, run_on_ray

    gpus = {"": None, "cpu": 0, "cuda": 1}
    if config.device not in gpus:
        raise OptionError(f"--device {config.device}: must be cpu or cuda with --engine ray, which selects the GPUs")
    connection.enter_context(connect(import_ray(), config.ray_address))
    return run_on_ray(
        tasks,
        target,
        gpus=gpus[config.device],
        slots=config.jobs,
        threads=config.threads,
        timeout=timeout,
        preload=preload,
    )


def require_ray() -> None:
    """Raise OptionError if Ray is not installed. Ray is not imported, so that this takes no time."""
    if find_spec("ray") is None:
        raise OptionError("--engine ray: Ray is not installed; install it with pip install 'unetkit[ray]'")


@contextmanager
def device_lock(devices: Iterable[str], on_notice: NoticeCallback) -> Iterator[None]:
    """Keep other benchmarks on this machine off devices; wait first for those that another benchmark uses.

    Args:
        devices: such as "cpu" or "cuda:0".
        on_notice: called if a device has to be waited for.
    """
    with ExitStack() as stack:
        for device in sorted({*devices}):
            lock = FileLock(Path(tempfile.gettempdir(), f"unetkit-bench-{device.replace(':', '-')}.lock"), mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_notice(f"waiting for another benchmark, which is timing on {device} of this machine")
                lock.acquire()
            except OSError:
                continue  # the lock file belongs to another user and cannot be opened; that must not stop a benchmark
            stack.callback(lock.release)
        yield


def select_devices(requested: str, gpus: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the devices that an option means, as (device, name) pairs.

    Args:
        requested: "cpu", "cuda" for all GPUs, or a list such as "cuda:0,cuda:2"; all GPUs if "", or the CPU if there
            are none.
        gpus: (device, name) pairs of the GPUs of this machine.

    Raises:
        OptionError: A device does not exist.
    """
    names = dict(gpus)
    if requested == "cpu" or (not requested and not names):
        return [("cpu", "")]
    devices = [*names] if requested in ("", "cuda") else requested.split(",")
    for device in devices or ["cuda"]:
        if device not in names:
            advice = f"give cpu, or some of {', '.join(names)}" if names else "torch finds no GPU; give cpu"
            if device == "cpu":
                raise OptionError(f"--device {requested}: cpu cannot be combined with other devices; give one of them")
            raise OptionError(f"--device {requested}: there is no device {device!r}; {advice}")
    return [(device, names[device]) for device in devices]
