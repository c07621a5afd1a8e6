"""What can be measured: names and the functions behind them, unetkit's own and plugins'. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from unetkit.bench.rows import Better, MetricInfo
from unetkit.errors import BadOption, PluginError, UnknownName, nearest
from unetkit.plan import WORDS
from unetkit.plugins import Host
from unetkit.signature import load_target, read_signature

#: A figure is measured by a function from a Subject to a number; a timed one gives what is to be timed.
Function = Callable[[Any], Any]
#: What rows are told apart by.
_TAKEN = {"batch", "mode", *(word.name for word in WORDS)}


@dataclass(frozen=True)
class Metric:
    """A name, and the function of a `unetkit.bench.subject.Subject` behind it ("module:attr", or the object)."""

    name: str
    function: Function | str
    unit: str
    timed: bool
    owner: str
    better: Better = "less"

    @property
    def info(self) -> MetricInfo:
        summary = read_signature(self.function).summary
        return MetricInfo(self.name, self.unit, self.timed, summary, self.owner, self.better)

    def load(self) -> Function:
        """The function; imports it where it was registered as "module:attr"."""
        function: Function = load_target(self.function) if isinstance(self.function, str) else self.function
        return function


@dataclass
class Metrics:
    """The registered metrics, in the order in which they are measured. A plugin is given one to add its own to."""

    owner: str = "unetkit"
    entries: dict[str, Metric] = field(default_factory=dict)

    def add(
        self, name: str, function: Function | str, *, unit: str = "", timed: bool = False, better: Better = "less"
    ) -> None:
        """Register a metric.

        Args:
            name: letters, digits, dots, dashes and underscores.
            function: takes a `unetkit.bench.subject.Subject`; returns a number, or, if `timed`, a callable without
                arguments that is timed in turns with the baseline's. The first line of its docstring describes it.
                "module:attr" is not imported before it is used: prefer that.
            unit: "B" for bytes, "s" for seconds, "" for a count, or any other; a timed metric is in seconds.
            timed: whether it is timed.
            better: which numbers are better: "less" of a cost, "more" of a gain, "" where neither is.

        Raises:
            PluginError: the name is taken or is no name.
        """
        if not name or name[0] == "-" or not all(c.isalnum() or c in "._-" for c in name):
            raise PluginError(f"{name!r} is not a name for a metric: use letters, digits, '.', '_' and (but first) '-'")
        if name in _TAKEN:
            raise PluginError(f"metric {name!r} of {self.owner} has the name of what a grid chooses; rename it")
        if not (isinstance(function, str) or callable(function)):
            raise PluginError(f"metric {name!r} of {self.owner} is no function of a subject")
        if taken := self.entries.get(name):
            raise PluginError(f"metric {name!r} of {self.owner} is already registered by {taken.owner}; rename it")
        self.entries[name] = Metric(name, function, "s" if timed else unit, timed, self.owner, better)

    @classmethod
    def ours(cls) -> Metrics:
        """The built-in ones."""
        metrics = cls()
        for name, unit, timed in _OURS:
            metrics.add(name, f"unetkit.bench.measures:{name.replace('-', '_')}", unit=unit, timed=timed)
        return metrics

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.entries.values())

    def chosen(self, names: Iterable[str]) -> list[Metric]:
        """The metrics of these names, in the order in which they are measured; all, where none is named.

        Raises UnknownName with the nearest names.
        """
        wanted = {*names} or {*self.entries}
        for name in sorted(wanted - {*self.entries}):
            known = ", ".join(self.entries)
            raise UnknownName(
                f"--metrics: no metric is called {name!r}{nearest(name, self.entries)}; there are {known}"
            )
        return [metric for metric in self if metric.name in wanted]


def metrics_of(host: Host) -> Metrics:
    """The built-in ones, and those that plugins add. A plugin whose hook fails, or takes a name, costs a line."""
    metrics = Metrics.ours()
    for plugin in host.loaded():
        with host.isolated(plugin):
            staged = Metrics(plugin.name, dict(metrics.entries))
            host.hook("unetkit_register_metrics", plugin)(metrics=staged)
            for metric in staged:
                if not isinstance(metric, Metric):
                    raise BadOption(f"metric {metric!r} is none; add it by metrics.add(name, function)")
                metric.info  # noqa: B018  # what cannot be described would fail every row
            metrics.entries = staged.entries
    return metrics


#: What needs no weights: measured of all rows before any is timed.
ANALYTIC = ("parameters", "macs", "activations")
#: Name, unit, whether it is timed. What is cheap stands first, and what is measured in an untouched process before
#: what loads more into it.
_OURS = (
    ("parameters", "", False),
    ("macs", "", False),
    ("activations", "B", False),
    ("build", "s", False),
    ("disk", "B", False),
    ("memory", "B", False),
    ("training-memory", "B", False),
    ("latency", "s", True),
    ("training", "s", True),
)
