"""Trials on a Ray cluster: Ray starts workers and tells when one is lost, `jobs.pool` does the trial there.

Ray's worker leads a pool of one. So a trial has a process as bare as on one machine, ends for the same causes in the
same words, and what it said before it died is kept. That its worker or its node is lost is no fault of the trial: it
is tried again, wherever there is a place then, which a retry of Ray's would not look for.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import Any

from unetkit.bench.cluster import connected, import_ray
from unetkit.bench.nodes import Nodes, Place
from unetkit.bench.slot import Slot
from unetkit.foreign import one_line
from unetkit.jobs.machine import cores
from unetkit.jobs.pool import Ended, run_tasks

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
    place: Place
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
) -> Generator[Ended, None, None]:
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
        BadOption: there is no Ray, no such cluster, or none of its nodes has the GPUs or CPUs.
        UnetkitError: a node has other versions.
    """
    ray = import_ray()
    environment = {name: value for name, value in os.environ.items() if name.startswith("UNETKIT_")}
    order = _Order(ask, threads, timeout, preload, environment)
    with connected(ray, address) as called:
        yield from _run(ray, tasks, order, Nodes(ray, called, gpus, slots))


def _run(ray: Any, tasks: Iterable[Any], order: _Order, nodes: Nodes) -> Generator[Ended, None, None]:
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


def _ended(ray: Any, done: Any, job: _Running) -> Ended | None:
    """What became of a task; None where it must be tried again."""
    try:
        ended: Ended = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = one_line(error.cause)
    except ray.exceptions.RayError as error:
        if job.tries < TRIES:
            return None
        cause = f"lost its Ray worker {TRIES} times, at last by {_first_sentence(error)}"
    else:
        return ended
    return Ended(job.task, {"where": job.place.name}, cause, round(monotonic() - job.start, 2))


def _first_sentence(error: BaseException) -> str:
    """Of what may be a page of advice."""
    return one_line(error).partition(". ")[0]


def _trial(task: Any, place: Place, order: _Order) -> Ended:
    """What a worker does."""
    os.environ.update(order.environment)
    slots = [_slot(place, order.threads)]
    (ended,) = run_tasks([task], order.ask, slots, timeout=order.timeout, preload=order.preload)
    return replace(ended, said={"where": place.name, **ended.said})


def _slot(place: Place, threads: int | None) -> Slot:
    """The share of its node that a trial has. Ray shows it its own GPUs alone, so that the first is always "cuda:0".

    Ray counts CPUs and gives none in particular: which they are is known where it counts as many as there are.
    """
    each, of_all = place.cpus
    there = cores()
    mine = there[place.number * each :][:each] if len(there) == of_all else ()
    name = f"{place.kind} of {place.name}".strip()
    return Slot("cuda:0" if place.gpus else "cpu", mine, threads or max(each, 1), place.share, name)
