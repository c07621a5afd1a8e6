"""The nodes of a Ray cluster as places for one trial at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from unetkit.bench.cluster import versions
from unetkit.errors import BadOption, UnetkitError

#: Seconds that a node may take to start a worker.
_START = 120.0
_KINDS = ("CPU", "GPU")


@dataclass(frozen=True)
class Place:
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


class Nodes:
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

    def free(self, taken: Collection[Place]) -> list[Place]:
        """The places that are not taken, of nodes that are alive now.

        Raises:
            BadOption: there is no place at all, taken or free.
            UnetkitError: a node has other versions.
        """
        nodes = self._alive()
        places = [place for node in nodes for place in self._places(node)]
        if not places and not taken:
            wanted = f"{self.gpus:g} GPU" if self.gpus else f"{self.slots or 1} CPU"
            most = " and ".join(f"{max((_count(node, what) for node in nodes), default=0)} {what}" for what in _KINDS)
            raise BadOption(f"--engine ray: no node of {self.called} has {wanted} for a trial; the most are {most}")
        self._compare({place.node: place for place in places if place.node not in self.equal})
        return [place for place in places if place.node in self.equal and place not in taken]

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _places(self, node: dict[str, Any]) -> list[Place]:
        cpus = _count(node, "CPU")
        room = int(_count(node, "GPU") // self.gpus) if self.gpus else cpus
        share = min(room, self.slots or room) if self.gpus else (self.slots or 1)
        if not 0 < share <= room:
            return []
        named = (node["NodeID"], _name(node), _kind(node) if self.gpus else "")
        return [Place(*named, number, share, (cpus // share, cpus), self.gpus) for number in range(share)]

    def _compare(self, places: dict[str, Place]) -> None:
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
