"""Trials on a Ray cluster: Ray starts workers and tells when one is lost, `jobs.pool` does the trial there.

Ray's worker leads a pool of one. So a trial has a process as bare as on one machine, ends for the same causes in the
same words, and what it said before it died is kept. That its worker or its node is lost is no fault of the trial: it
is tried again, wherever there is a place then, which a retry of Ray's would not look for.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from time import monotonic, sleep
from typing import Any

from unetkit.bench.devices import Slot
from unetkit.errors import OptionError, UnetkitError
from unetkit.utils.isolation import one_line
from unetkit.utils.processes import TaskResult, run_tasks
from unetkit.utils.system import available_cores, code_digest

#: What results depend on beside the code. Another Ray is refused by Ray itself.
_LIBRARIES = ("torch", "timm", "segmentation-models-pytorch")
#: Seconds to wait for a machine that does not answer: Ray would wait for two minutes.
_ANSWER = 10.0
_START_ONE = "start one with `ray start --head`, and give its HOST:PORT"


def import_ray() -> Any:
    """Ray itself, told to keep what it reports from the terminal, and not to ask again and again for a cluster.

    Raises:
        OptionError: it is not installed.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise OptionError("--engine ray: Ray is not installed; pip install 'unetkit[ray]'") from error
    return ray


@contextmanager
def connect(ray: Any, address: str | None) -> Iterator[str]:
    """A connection to a cluster, for as long as it takes: gives what to call the cluster.

    Raises:
        OptionError: none answers there.
    """
    if ray.is_initialized():
        yield "the Ray cluster"
        return
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    _knock(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:  # Ray leaves so where what answers is no cluster
        why = one_line(error).partition(". ")[0]
        raise OptionError(f"--ray-address {address}: Ray cannot join it ({why}); {_START_ONE}") from error
    try:
        yield f"the Ray cluster at {ray.get_runtime_context().gcs_address}"
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise where nothing answers."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal() or "/" in host:
        raise OptionError(f"--ray-address {address}: takes HOST:PORT, as `ray start --head` prints it, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise OptionError(f"--ray-address {address}: no Ray cluster answers there ({error}); {_START_ONE}") from error


def versions() -> dict[str, str]:
    """What must be the same on every machine of a run, by its name."""
    libraries = {name: version(name) for name in ("unetkit", *_LIBRARIES)}
    return {"Python": platform.python_version(), **libraries, "unetkit's code": code_digest("bench", "jobs")}


#: Seconds that a node may take to start a worker.
_START = 120.0
_KINDS = ("CPU", "GPU")


@dataclass(frozen=True)
class NodeSlot:
    """A share of a node.

    Attributes:
        node: Ray's id of the node.
        name: the node's, where it was given one, or its host's.
        kind: of its GPU, as Ray knows it: "H100"; else "".
        number, share: which of how many places of its node, from 0.
        cpus: how many it has, and of how many.
        gpus: how many it has.
    """

    node: str
    name: str
    kind: str
    number: int
    share: int
    cpus: tuple[int, int]
    gpus: float

    def options(self) -> dict[str, Any]:
        """Of a Ray task that takes this place, and waits for it while others of the cluster's users have it."""
        return {"num_cpus": self.cpus[0], "num_gpus": self.gpus, **self.there()}

    def there(self) -> dict[str, Any]:
        """Options of a Ray task that runs on this node or nowhere."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.node, soft=False)}


class ClusterNodes:
    """The nodes of the cluster that this process is connected to.

    Args:
        ray: the module.
        called: the cluster, in a message.
        gpus: of a place; 1 where any node has one, else none, if None.
        slots: places on a node; one, or as its GPUs go round, if None.
    """

    def __init__(self, ray: Any, called: str, gpus: float | None, slots: int | None) -> None:
        self.ray, self.called, self.slots = ray, called, slots
        self.gpus = gpus if gpus is not None else float(any(_count(node, "GPU") for node in self._alive()))
        self.equal = set[str]()

    def free(self, taken: Collection[NodeSlot]) -> list[NodeSlot]:
        """The places that are not taken, of nodes that are alive now.

        Raises:
            OptionError: there is no place at all, taken or free.
            UnetkitError: a node has other versions.
        """
        nodes = self._alive()
        places = [place for node in nodes for place in self._places(node)]
        if not places and not taken:
            wanted = f"{self.gpus:g} GPU" if self.gpus else f"{self.slots or 1} CPU"
            most = " and ".join(f"{max((_count(node, what) for node in nodes), default=0)} {what}" for what in _KINDS)
            raise OptionError(f"--engine ray: no node of {self.called} has {wanted} for a trial; the most are {most}")
        self._compare({place.node: place for place in places if place.node not in self.equal})
        return [place for place in places if place.node in self.equal and place not in taken]

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _places(self, node: dict[str, Any]) -> list[NodeSlot]:
        cpus = _count(node, "CPU")
        room = int(_count(node, "GPU") // self.gpus) if self.gpus else cpus
        share = min(room, self.slots or room) if self.gpus else (self.slots or 1)
        if not 0 < share <= room:
            return []
        named = (node["NodeID"], _name(node), _kind(node) if self.gpus else "")
        return [NodeSlot(*named, number, share, (cpus // share, cpus), self.gpus) for number in range(share)]

    def _compare(self, places: dict[str, NodeSlot]) -> None:
        """Raise where a node is not like this machine; one that is lost meanwhile is left out."""
        look = self.ray.remote(max_calls=1, max_retries=0, num_cpus=0)(versions)
        asked = {node: look.options(**place.there()).remote() for node, place in places.items()}
        for node, place in places.items():
            try:
                there = self.ray.get(asked[node], timeout=_START)
            except self.ray.exceptions.RayTaskError as error:
                why = str(error.cause).splitlines()[-1]  # of a worker's traceback, where an import fails there
                raise UnetkitError(f"the Ray node {place.name} cannot run unetkit: {why}") from error
            except self.ray.exceptions.GetTimeoutError as error:
                raise UnetkitError(f"the Ray node {place.name} started no worker within {_START:g} s") from error
            except self.ray.exceptions.RayError:
                continue
            _same(place.name, there)
            self.equal.add(node)


def _same(name: str, there: dict[str, str]) -> None:
    for what, known in versions().items():
        if there[what] != known:
            other = f"has {what} {there[what]}, and this machine has {known}"
            raise UnetkitError(f"the Ray node {name} {other}: rows could not be compared; install the same on both")


def _count(node: dict[str, Any], what: str) -> int:
    return int(node["Resources"].get(what, 0))


def _name(node: dict[str, Any]) -> str:
    """Ray calls a node that was given no name by its address."""
    return str(node["NodeManagerHostname"] if node["NodeName"] == node["NodeManagerAddress"] else node["NodeName"])


def _kind(node: dict[str, Any]) -> str:
    kinds = (name.partition(":") for name in node["Resources"])
    return next((kind for what, _, kind in kinds if what == "accelerator_type"), "")


#: Workers that a task may lose.
TRIES = 3
#: Seconds after which to look for nodes that joined.
_LOOK = 5.0


@dataclass(frozen=True)
class _Order:
    """What a worker is told beside the task and its place."""

    ask: str
    threads: int | None
    timeout: float
    preload: Sequence[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class _Running:
    task: Any
    tries: int
    place: NodeSlot
    start: float


def run_on_ray(
    tasks: Iterable[Any],
    ask: str,
    *,
    address: str | None = None,
    gpus: float | None = None,
    slots: int | None = None,
    threads: int | None = None,
    timeout: float,
    preload: Sequence[str] = (),
) -> Generator[TaskResult, None, None]:
    """Do every task on a cluster that runs already; give each as it ends. It says "where" at least: the node's name.

    A node takes one task at a time, or `slots`; nodes that join later do too. A task that loses its worker or its node
    is tried again, `TRIES` times in all; one that fails, dies or takes too long is not. Leaving early ends what runs,
    and leaves the cluster as it was. Where this process is connected to a cluster already, that is used.

    Args:
        tasks: what can be pickled.
        ask: what a child calls, (task, slot, say): "module:function", to be had on every node.
        address: "host:port" of the head. By default RAY_ADDRESS, or the cluster that this machine is a node of.
        gpus: how many GPUs a task has, and with them their share of its node's CPUs; one where the cluster has any,
            else none, if None.
        slots: tasks at a time on a node, each with its share of the CPUs; by default one, or as the GPUs go round.
        threads: of torch's, for each; as many as it has CPUs, if None.
        timeout: seconds that one task may take, from when its node begins with it.
        preload: modules that a child needs.

    Raises:
        OptionError: there is no Ray, no such cluster, or none of its nodes has the GPUs or CPUs.
        UnetkitError: a node has other versions.
    """
    ray = import_ray()
    environment = {name: value for name, value in os.environ.items() if name.startswith("UNETKIT_")}
    order = _Order(ask, threads, timeout, preload, environment)
    with connect(ray, address) as called:
        yield from _run(ray, tasks, order, ClusterNodes(ray, called, gpus, slots))


def _run(ray: Any, tasks: Iterable[Any], order: _Order, nodes: ClusterNodes) -> Generator[TaskResult, None, None]:
    trial = ray.remote(max_calls=1, max_retries=0)(_trial)
    waiting, running = deque((task, 1) for task in tasks), dict[Any, _Running]()
    with _cancelled(ray, running):
        while waiting or running:
            free = nodes.free([job.place for job in running.values()]) if waiting else []
            for place, (task, tries) in zip(free, [*waiting], strict=False):
                waiting.popleft()
                asked = trial.options(**place.options()).remote(task, place, order)
                running[asked] = _Running(task, tries, place, monotonic())
            if not running:
                sleep(_LOOK)  # the last node that was alive is being lost
                continue
            for done in ray.wait([*running], timeout=_LOOK)[0]:
                job = running.pop(done)
                ended = _ended(ray, done, job)
                if ended:
                    yield ended
                else:
                    waiting.append((job.task, job.tries + 1))


@contextmanager
def _cancelled(ray: Any, running: dict[Any, _Running]) -> Iterator[None]:
    """Afterwards, nothing runs."""
    try:
        yield
    finally:
        for left in running:
            ray.cancel(left, force=True)
        if running:
            ray.wait([*running], num_returns=len(running), timeout=_LOOK)


def _ended(ray: Any, done: Any, job: _Running) -> TaskResult | None:
    """What became of a task; None where it must be tried again."""
    try:
        ended: TaskResult = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = one_line(error.cause)
    except ray.exceptions.RayError as error:
        if job.tries < TRIES:
            return None
        cause = f"lost its Ray worker {TRIES} times, at last by {_first_sentence(error)}"
    else:
        return ended
    return TaskResult(job.task, {"where": job.place.name}, cause, round(monotonic() - job.start, 2))


def _first_sentence(error: BaseException) -> str:
    """Of what may be a page of advice."""
    return one_line(error).partition(". ")[0]


def _trial(task: Any, place: NodeSlot, order: _Order) -> TaskResult:
    """What a worker does."""
    os.environ.update(order.environment)
    slots = [_slot(place, order.threads)]
    (ended,) = run_tasks([task], order.ask, slots, timeout=order.timeout, preload=order.preload)
    return replace(ended, said={"where": place.name, **ended.said})


def _slot(place: NodeSlot, threads: int | None) -> Slot:
    """The share of its node that a trial has. Ray shows it its own GPUs alone, so that the first is always "cuda:0".

    Ray counts CPUs and gives none in particular: which they are is known where it counts as many as there are.
    """
    each, of_all = place.cpus
    there = available_cores()
    mine = there[place.number * each :][:each] if len(there) == of_all else ()
    name = f"{place.kind} of {place.name}".strip()
    return Slot("cuda:0" if place.gpus else "cpu", mine, threads or max(each, 1), place.share, name)
