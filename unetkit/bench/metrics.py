"""What can be measured: names and the functions behind them, unetkit's own and plugins'. Nothing here imports torch."""

from __future__ import annotations

from unetkit.errors import OptionError
from unetkit.plugins import PluginManager
from unetkit.registry import Metric, Metrics


def builtin_metrics() -> Metrics:
    """Register the metrics that unetkit brings."""
    metrics = Metrics()
    for name, unit, timed in _BUILTIN:
        metrics.add(name, f"unetkit.bench.builtin_metrics:{name.replace('-', '_')}", unit=unit, timed=timed)
    return metrics


def metrics_of(host: PluginManager) -> Metrics:
    """The built-in ones, and those that plugins add. A plugin whose hook fails, or takes a name, costs a line."""
    metrics = builtin_metrics()
    for plugin in host.loaded():
        with host.isolated(plugin):
            staged = Metrics(plugin.name, dict(metrics.entries))
            host.call_one("unetkit_register_metrics", plugin)(metrics=staged)
            for metric in staged:
                if not isinstance(metric, Metric):
                    raise OptionError(f"metric {metric!r} is none; add it by metrics.add(name, function)")
                metric.info  # noqa: B018  # what cannot be described would fail every row
            metrics.entries = staged.entries
    return metrics


#: What needs no weights: measured of all rows before any is timed.
ANALYTIC = ("parameters", "macs", "activations")
#: Name, unit, whether it is timed. What is cheap stands first, and what is measured in an untouched process before
#: what loads more into it.
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
