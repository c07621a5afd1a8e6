"""The metrics of a benchmark, from the registered ones. The module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from unetkit.plugins import PluginManager
from unetkit.registry import Metric

#: Metrics that need no weights; they are computed for all rows before any row is timed.
ANALYTIC_METRICS = ("parameters", "macs", "activations")


def collect_metrics(manager: PluginManager, names: Iterable[str] = ()) -> list[Metric]:
    """Return the metrics of these names in the order in which they are measured; all if no name is given.

    A metric of a plugin whose function cannot be found is left out, and one line on stderr reports it; otherwise it
    would fail in every row.

    Args:
        manager: the loaded plugins.
        names: names of metrics.

    Raises:
        UnknownNameError: There is no such metric.
        PluginError: A metric that is named cannot be described.
    """
    names = [*names]
    metrics: list[Metric] = []
    plugins = {plugin.name: plugin for plugin in manager.loaded_plugins()}
    for metric in manager.parts.metrics.select(names):
        with manager.isolate(plugins[metric.owner], strict=bool(names)):
            metric.info  # noqa: B018  # raises here if its function cannot be found
            metrics.append(metric)
    return metrics
