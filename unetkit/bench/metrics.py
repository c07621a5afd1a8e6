"""The metrics of a benchmark, from the registered ones. The module imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from typing import Any

from unetkit.errors import OptionError, PluginError, UnetkitError, UnknownNameError
from unetkit.plugins import PluginManager, default_parts
from unetkit.registry import BUILTIN, Metric, MetricInfo
from unetkit.utils.formatting import format_place, format_type
from unetkit.utils.isolation import one_line

#: Metrics that need no weights; they are computed for all rows before any row is timed.
ANALYTIC_METRICS = ("parameters", "macs", "activations")


def collect_metrics(manager: PluginManager, names: Iterable[str] = (), *, trained: bool = False) -> list[Metric]:
    """Return the metrics of these names in the order in which they are measured; all that apply if no name is given.

    Metrics of trained networks come last, in the order of the names. A metric of a plugin whose function cannot be
    found is left out, and one line on stderr reports it; otherwise it would fail in every row.

    Args:
        manager: the loaded plugins.
        names: names of metrics; that of a metric of one class is followed by a colon and the class.
        trained: whether networks are trained.

    Raises:
        UnknownNameError: There is no such metric.
        OptionError: A metric needs trained networks, or the name of a class is missing or not expected.
        PluginError: A metric that is named cannot be described.
    """
    registry, names = manager.parts.metrics, [*dict.fromkeys(names)]
    selected: dict[str, list[str]] = {}
    failures: list[UnetkitError] = []
    for name in names:
        try:
            selected.setdefault(registry.get(name.partition(":")[0]).name, []).append(name)
        except UnknownNameError as error:
            failures.append(UnknownNameError(f"--metrics: {error}"))
    metrics: list[Metric] = []
    plugins = {plugin.name: plugin for plugin in manager.loaded_plugins()}
    for metric in registry:
        if (metric.name not in selected) if names else (metric.trained and not trained):
            continue
        for name in selected.get(metric.name, [metric.name]):
            try:
                if names:
                    _check_metric_name(metric, name, trained=trained)
                with manager.isolate(plugins[metric.owner], strict=bool(names)):
                    metric.info  # noqa: B018  # raises here if its function cannot be found
                    metrics.append(replace(metric, name=name))
            except UnetkitError as error:
                failures.append(error)
    if failures:
        raise type(failures[0])("; ".join(map(str, failures)))
    return sorted(metrics, key=lambda one: names.index(one.name) if one.trained and names else -1)


def to_number(value: Any) -> float:
    """Convert the result of a metric to a number; an int stays an int. Raises PluginError if it is none."""
    try:
        return int(value) if isinstance(value, int) else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(f"it returns {format_type(value)}; expected a number") from error


def describe_failure(metric: Metric, error: BaseException) -> str:
    """Format an error of a metric as one line, with the innermost place in the code of its plugin."""
    if metric.owner == BUILTIN or not metric.signature.file:
        return one_line(error)
    file, line = metric.signature.file, metric.signature.line
    for frame, number in walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename).parent == Path(metric.signature.file).parent:
            file, line = frame.f_code.co_filename, number
    return f"{one_line(error)} ({format_place(file, line)})"


def check_measured(name: str, measured: Collection[str], option: str) -> None:
    """Raise UnknownNameError if a column that a benchmark lacks is one of a metric that was not measured.

    Args:
        name: the name of the column, such as "memory" or "latency-p90".
        measured: the names of the metrics, or of all columns, that the benchmark has.
        option: the option that contains the name, for the message.
    """
    for metric in default_parts().metrics:
        if metric.name not in measured and _is_column_of(name, metric.name):
            raise UnknownNameError(
                f"{option}: {metric.name} was not measured in this benchmark; --metrics chooses what is"
            )


def _is_column_of(name: str, metric: str) -> bool:
    return name == metric or name.startswith((f"{metric}-", f"{metric}:"))


def split_absent_metrics(
    stored: Iterable[MetricInfo], manager: PluginManager
) -> tuple[tuple[str, ...], tuple[MetricInfo, ...]]:
    """Split the metrics of a folder into the names of those that can be measured, and those that no plugin has.

    Args:
        stored: the metrics of the header of a folder.
        manager: the loaded plugins.
    """
    stored = tuple(stored)
    absent = tuple(metric for metric in stored if not _has_metric(metric.name, manager))
    return tuple(metric.name for metric in stored if metric not in absent), absent


def _has_metric(name: str, manager: PluginManager) -> bool:
    """Return whether there is a metric whose function can be found.

    Args:
        name: name of a metric; that of a metric of one class is followed by a colon and the class.
        manager: the loaded plugins.
    """
    metric = next((one for one in manager.parts.metrics if one.name == name.partition(":")[0]), None)
    try:
        return metric is not None and bool(metric.info)  # raises if its function cannot be found
    except UnetkitError:
        return False


def _check_metric_name(metric: Metric, name: str, *, trained: bool) -> None:
    if metric.trained and not trained:
        raise OptionError(f"--metrics {name}: is measured on trained networks; give --data, too")
    if metric.per_class and not name.partition(":")[2]:
        raise OptionError(f"--metrics {name}: belongs to a class; write {name.partition(':')[0]}:CLASS")
    if ":" in name and not metric.per_class:
        raise OptionError(
            f"--metrics {name}: {metric.name} does not belong to a class; leave out :{name.partition(':')[2]}"
        )
