"""The Ray engine: run tasks on the nodes of a Ray cluster that is already running.

Ray starts workers on the nodes, gives each one task after another, and reports if one is lost. A worker runs each task
in a process of its own with `unetkit.utils.processes.run_tasks`, so that a task has the same fresh process as on a
single machine, fails with the same messages, and keeps what it emitted before it failed. A lost worker or node is not
the fault of the task, which is then run again on any free slot; Ray's own retries would stay on the same node. The
module imports no torch.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pkgutil import resolve_name
from time import monotonic, sleep
from typing import Any

from unetkit.bench.devices import Slot
from unetkit.errors import OptionError, UnetkitError
from unetkit.utils.isolation import one_line
from unetkit.utils.processes import Emit, TaskResult, run_tasks
from unetkit.utils.system import available_cores, code_digest

#: Number of times that a task is started before it fails because it lost its worker each time.
MAX_ATTEMPTS = 3
#: Seconds between two searches for nodes that joined.
_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class _TrialOptions:
    """Options of a worker in addition to the task and its slot."""

    target: str
    threads: int | None
    timeout: float
    preload: Sequence[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class _RunningTask:
    task: Any
    attempt: int
    slot: NodeSlot
    start: float


def run_on_ray(
    tasks: Iterable[Any],
    target: str,
    *,
    address: str | None = None,
    gpus: float | None = None,
    slots: int | None = None,
    threads: int | None = None,
    timeout: float,
    preload: Sequence[str] = (),
) -> Generator[TaskResult, None, None]:
    """Run tasks on a Ray cluster that is already running, and yield each result.

    A node runs one task at a time, or `slots`; nodes that join later are used too. A task that loses its worker or its
    node is started up to `MAX_ATTEMPTS` times; a task that fails, crashes or exceeds its time limit is not started
    again. Closing the generator early ends the running tasks and leaves the cluster as it was. If this process is
    already connected to a cluster, that one is used. Each result contains at least "device", the name of its node.

    Args:
        tasks: objects that can be pickled.
        target: "module:function" that exists on every node; it is called with (task, slot, emit).
        address: "HOST:PORT" of the head node; if None, RAY_ADDRESS, or the cluster that this machine belongs to.
        gpus: number of GPUs of a task, which also gets the same share of the node's CPUs; if None, one if any node has
            a GPU, or else 0.
        slots: number of tasks at a time on a node, each with an equal share of its CPUs; if None, as many as its GPUs
            allow, or one without GPUs.
        threads: number of torch's threads for each task; the number of its CPUs if None.
        timeout: time limit for a task on its node, in seconds.
        preload: modules that each task needs.

    Raises:
        OptionError: Ray is not installed, there is no cluster at the address, or no node has enough GPUs or CPUs.
        UnetkitError: A node has other versions than this machine.
    """
    ray = import_ray()
    environment = {name: value for name, value in os.environ.items() if name.startswith("UNETKIT_")}
    options = _TrialOptions(target, threads, timeout, preload, environment)
    with connect(ray, address) as cluster:
        yield from _schedule(ray, tasks, options, ClusterNodes(ray, cluster, gpus, slots))


def _schedule(
    ray: Any, tasks: Iterable[Any], options: _TrialOptions, nodes: ClusterNodes
) -> Generator[TaskResult, None, None]:
    # A worker runs further tasks, since the server that it forks their processes from has imported what they need.
    # With GPUs it runs one: the server's processes see only the GPUs of the task that started it.
    remote = ray.remote(max_calls=1 if nodes.gpus else 0, max_retries=0)(_run_trial)
    waiting, running = deque((task, 1) for task in tasks), dict[Any, _RunningTask]()
    with _cancel_on_exit(ray, running):
        while waiting or running:
            free = nodes.free_slots([job.slot for job in running.values()]) if waiting else []
            for slot, (task, attempt) in zip(free, [*waiting], strict=False):
                waiting.popleft()
                reference = remote.options(**slot.task_options()).remote(task, slot, options)
                running[reference] = _RunningTask(task, attempt, slot, monotonic())
            if not running:
                sleep(_POLL_SECONDS)  # the last node is about to be lost
                continue
            for reference in ray.wait([*running], timeout=_POLL_SECONDS)[0]:
                job = running.pop(reference)
                result = _fetch_result(ray, reference, job)
                if result:
                    yield result
                else:
                    waiting.append((job.task, job.attempt + 1))


@contextmanager
def _cancel_on_exit(ray: Any, running: dict[Any, _RunningTask]) -> Iterator[None]:
    try:
        yield
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if running:
            ray.wait([*running], num_returns=len(running), timeout=_POLL_SECONDS)


def _fetch_result(ray: Any, reference: Any, job: _RunningTask) -> TaskResult | None:
    """Return the result of a task that ended, or None if it must be started again."""
    try:
        result: TaskResult = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        message = one_line(error.cause)
    except ray.exceptions.RayError as error:
        if job.attempt < MAX_ATTEMPTS:
            return None
        message = f"lost its Ray worker {MAX_ATTEMPTS} times, the last time with {_first_sentence(error)}"
    else:
        return result
    return TaskResult(job.task, {"device": job.slot.node_name}, message, round(monotonic() - job.start, 2))


def _first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error; Ray's may contain a page of advice."""
    return one_line(error).partition(". ")[0]


def _run_trial(task: Any, slot: NodeSlot, options: _TrialOptions) -> TaskResult:
    """Run one task in a process of its own; this runs in a worker on a node."""
    job, slots = (task, options.target, options.environment), [_make_slot(slot, options.threads)]
    (result,) = run_tasks([job], _TARGET, slots, timeout=options.timeout, preload=options.preload)
    return replace(result, task=task, facts={"device": slot.node_name, **result.facts})


def _run_with_environment(job: tuple[Any, str, dict[str, str]], slot: Slot, emit: Emit) -> None:
    """Run a task with the variables of the command; this runs in the task's own process.

    The variables are set here because the worker, and the server that its processes are forked from, also run the tasks
    of later commands, which may have other variables.
    """
    task, target, environment = job
    os.environ.update(environment)
    resolve_name(target)(task, slot, emit)


#: The function that a process of a worker calls.
_TARGET = f"{__name__}:{_run_with_environment.__name__}"


def _make_slot(node_slot: NodeSlot, threads: int | None) -> Slot:
    """Return the slot of a task on its node; Ray shows it only its own GPUs, so the first is always "cuda:0".

    Ray counts CPUs but does not assign particular ones. They can only be assigned if Ray counts all CPUs of the node.
    """
    cores = available_cores()
    width = node_slot.cpus
    own_cores = cores[node_slot.index * width :][:width] if len(cores) == node_slot.node_cpus else ()
    device = "cuda:0" if node_slot.gpus else "cpu"
    name = f"{node_slot.accelerator} of {node_slot.node_name}".strip()
    return Slot(device, own_cores, threads or max(width, 1), node_slot.num_slots, name)


#: Seconds that a node may take to start a worker.
_WORKER_START_SECONDS = 120.0


@dataclass(frozen=True)
class NodeSlot:
    """A share of a node that runs one task at a time.

    Attributes:
        node_id: Ray's id of the node.
        node_name: name that was given to the node, or the name of its host.
        accelerator: type of its GPU as Ray names it, such as "H100"; "" if the slot has no GPU.
        index: number of the slot on its node, from 0.
        num_slots: number of slots on its node.
        cpus: number of CPUs of the slot.
        node_cpus: number of CPUs of the node.
        gpus: number of GPUs of the slot.
    """

    node_id: str
    node_name: str
    accelerator: str
    index: int
    num_slots: int
    cpus: int
    node_cpus: int
    gpus: float

    def task_options(self) -> dict[str, Any]:
        """Return the options of a Ray task that runs in this slot, and waits while other users occupy it."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **self.node_affinity()}

    def node_affinity(self) -> dict[str, Any]:
        """Return the options of a Ray task that can only run on this node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.node_id, soft=False)}


class ClusterNodes:
    """The nodes of the cluster that this process is connected to, and their slots.

    Args:
        ray: the module.
        cluster: name of the cluster in error messages.
        gpus: number of GPUs of a slot; if None, 1 if any node has a GPU, or else 0.
        slots: number of slots on a node; if None, as many as its GPUs allow, or one without GPUs.
    """

    def __init__(self, ray: Any, cluster: str, gpus: float | None, slots: int | None) -> None:
        self.ray, self.cluster, self.slots = ray, cluster, slots
        self.gpus = gpus if gpus is not None else float(any(_resource_count(n, "GPU") for n in self._alive_nodes()))
        self.verified = set[str]()

    def free_slots(self, used: Collection[NodeSlot]) -> list[NodeSlot]:
        """Return the slots of all nodes that are alive now, except the used ones.

        Args:
            used: slots that run a task.

        Raises:
            OptionError: There are neither free nor used slots.
            UnetkitError: A node has other versions than this machine.
        """
        nodes = self._alive_nodes()
        slots = [slot for node in nodes for slot in self._slots_of(node)]
        if not slots and not used:
            needed = f"{self.gpus:g} GPU" if self.gpus else f"{self.slots or 1} CPU"
            cpus, gpus = (max((_resource_count(n, name) for n in nodes), default=0) for name in ("CPU", "GPU"))
            raise OptionError(
                f"--engine ray: rows need nodes with {needed}, but those of {self.cluster} have at most {cpus} CPU "
                f"and {gpus} GPU"
            )
        self._verify({slot.node_id: slot for slot in slots if slot.node_id not in self.verified})
        return [slot for slot in slots if slot.node_id in self.verified and slot not in used]

    def _alive_nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _slots_of(self, node: dict[str, Any]) -> list[NodeSlot]:
        node_cpus = _resource_count(node, "CPU")
        most = int(_resource_count(node, "GPU") // self.gpus) if self.gpus else node_cpus
        num_slots = min(most, self.slots or most) if self.gpus else (self.slots or 1)
        if not 0 < num_slots <= most:
            return []
        name, accelerator = _node_name(node), _accelerator_type(node) if self.gpus else ""
        return [
            NodeSlot(node["NodeID"], name, accelerator, index, num_slots, node_cpus // num_slots, node_cpus, self.gpus)
            for index in range(num_slots)
        ]

    def _verify(self, slots: dict[str, NodeSlot]) -> None:
        """Check that nodes have the versions of this machine; a node that is lost meanwhile is left out.

        Args:
            slots: a slot of each node, by the node's id.
        """
        remote = self.ray.remote(max_retries=0, num_cpus=0)(library_versions)
        references = {node_id: remote.options(**slot.node_affinity()).remote() for node_id, slot in slots.items()}
        for node_id, slot in slots.items():
            try:
                versions = self.ray.get(references[node_id], timeout=_WORKER_START_SECONDS)
            except self.ray.exceptions.RayTaskError as error:
                reason = str(error.cause).splitlines()[-1]  # the last line of a traceback if an import fails there
                raise UnetkitError(f"the Ray node {slot.node_name} cannot run unetkit: {reason}") from error
            except self.ray.exceptions.GetTimeoutError as error:
                raise UnetkitError(
                    f"the Ray node {slot.node_name} started no worker within {_WORKER_START_SECONDS:g} s"
                ) from error
            except self.ray.exceptions.RayError:
                continue
            _check_versions(slot.node_name, versions)
            self.verified.add(node_id)


def library_versions() -> dict[str, str]:
    """Return the versions that must be equal on all machines of a run, by name."""
    libraries = {name: version(name) for name in ("unetkit", *_LIBRARIES)}
    return {"Python": platform.python_version(), **libraries, "unetkit's code": code_digest("bench")}


#: Libraries that results depend on. Ray itself refuses nodes with another version of Ray.
_LIBRARIES = ("torch", "timm", "segmentation-models-pytorch")


def _check_versions(node_name: str, versions: dict[str, str]) -> None:
    for name, own in library_versions().items():
        if versions[name] != own:
            raise UnetkitError(
                f"the Ray node {node_name} has {name} {versions[name]}, but this machine has {own}, so that rows could "
                "not be compared; install the same version on both"
            )


def _resource_count(node: dict[str, Any], name: str) -> int:
    return int(node["Resources"].get(name, 0))


def _node_name(node: dict[str, Any]) -> str:
    """Return the name of a node, or the name of its host if Ray calls it by its address."""
    return str(node["NodeManagerHostname"] if node["NodeName"] == node["NodeManagerAddress"] else node["NodeName"])


def _accelerator_type(node: dict[str, Any]) -> str:
    pairs = (name.partition(":") for name in node["Resources"])
    return next((value for key, _, value in pairs if key == "accelerator_type"), "")


#: Seconds to wait for a machine that does not answer; Ray would wait for two minutes.
_CONNECT_SECONDS = 10.0
_START_HINT = "start one with `ray start --head`, and give its HOST:PORT"


def import_ray() -> Any:
    """Import Ray, set up not to print what it reports, and not to retry the connection to a cluster again and again.

    Raises:
        OptionError: Ray is not installed.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Under `uv run`, each worker would install the whole project anew; nodes have the same versions already.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError as error:
        raise OptionError("--engine ray: Ray is not installed; install it with pip install 'unetkit[ray]'") from error
    return ray


@contextmanager
def connect(ray: Any, address: str | None) -> Iterator[str]:
    """Connect to a cluster, or use the existing connection, and yield a name of the cluster for messages.

    Args:
        ray: the module.
        address: "HOST:PORT" or "auto"; if None, RAY_ADDRESS or "auto".

    Raises:
        OptionError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield f"the Ray cluster at {ray.get_runtime_context().gcs_address}"
        return
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    _check_address(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, job_config=_make_job_config(ray))
    except (Exception, SystemExit) as error:  # Ray exits if something other than a cluster answers
        reason = _first_sentence(error)
        raise OptionError(f"--ray-address {address}: cannot connect to Ray ({reason}); {_START_HINT}") from error
    try:
        yield f"the Ray cluster at {ray.get_runtime_context().gcs_address}"
    finally:
        ray.shutdown()


def _make_job_config(ray: Any) -> Any:
    """Return settings with which workers do not import from this process's current folder, unless this one does.

    Ray puts that folder first on the path of each worker, before the standard library.
    """

    class SafePathConfig(ray.job_config.JobConfig):  # type: ignore[misc]
        def _serialize(self) -> Any:
            own = {os.path.abspath(folder) for folder in sys.path}
            driver_path: list[str] = self._py_driver_sys_path
            driver_path[:] = [folder for folder in driver_path if folder in own]
            return super()._serialize()

    return SafePathConfig()


def _check_address(address: str) -> None:
    """Raise OptionError if nothing answers at an address."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal() or "/" in host:
        raise OptionError(f"--ray-address {address}: must be auto, or HOST:PORT such as `ray start --head` prints it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise OptionError(f"--ray-address {address}: no Ray cluster answers there ({error}); {_START_HINT}") from error
