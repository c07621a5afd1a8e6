"""The registered metrics: those of unetkit and those of plugins. The module imports no torch."""

from __future__ import annotations

from unetkit.errors import OptionError
from unetkit.plugins import PluginManager
from unetkit.registry import Metric, Metrics

#: Metrics that need no weights; they are computed for all rows before any row is timed.
ANALYTIC_METRICS = ("parameters", "macs", "activations")
#: Name, unit, and whether it is timed, in the order of measurement: cheap metrics first, and metrics that need a fresh
#: process before those that load more into it.
_BUILTIN = (
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


def register_builtin_metrics() -> Metrics:
    """Create a registry with the metrics of unetkit."""
    metrics = Metrics()
    for name, unit, is_timed in _BUILTIN:
        metrics.add(name, f"unetkit.bench.builtin_metrics:{name.replace('-', '_')}", unit=unit, timed=is_timed)
    return metrics


def collect_metrics(manager: PluginManager) -> Metrics:
    """Create a registry with the metrics of unetkit and of plugins.

    If a plugin fails to register its metrics, none of them is added, and one line on stderr reports it.

    Args:
        manager: the loaded plugins.
    """
    metrics = register_builtin_metrics()
    for plugin in manager.loaded_plugins():
        with manager.isolate(plugin):
            staged = Metrics(plugin.name, dict(metrics.entries))
            manager.call_one("unetkit_register_metrics", plugin)(metrics=staged)
            for metric in staged:
                if not isinstance(metric, Metric):
                    raise OptionError(f"{metric!r} is not a Metric; add metrics with metrics.add(name, function)")
                metric.info  # noqa: B018  # raises here if it cannot be described, rather than in every row
            metrics.entries = staged.entries
    return metrics
