"""The metrics of a benchmark, from the registered ones. The module imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from unetkit.errors import UnknownNameError
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
    registry, names = manager.parts.metrics, [*names]
    try:
        selected = {registry.get(name).name for name in names}
    except UnknownNameError as error:
        raise UnknownNameError(f"--metrics: {error}") from None
    metrics: list[Metric] = []
    plugins = {plugin.name: plugin for plugin in manager.loaded_plugins()}
    for metric in registry:
        if names and metric.name not in selected:
            continue
        with manager.isolate(plugins[metric.owner], strict=bool(names)):
            metric.info  # noqa: B018  # raises here if its function cannot be found
            metrics.append(metric)
    return metrics
