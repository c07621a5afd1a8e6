"""Checks of a plugin: loading, import time, libraries, commands and wrapped models; and of metrics."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from unetkit.commands import COMMANDS
from unetkit.errors import UnetkitError
from unetkit.options import read_signature
from unetkit.plan import Plan
from unetkit.plugins import PluginManager
from unetkit.registry import PART_KINDS, Library, Metric, Parts, Plugin
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.source import AuthorSource
from unetkit.testing.subject import PartSubject
from unetkit.utils.formatting import format_names, format_place, format_type

#: Run in a new process, because this one has already imported torch.
_LOAD_SCRIPT = """
import json, sys
target, sys.path[:] = json.loads(sys.argv[1])
from unetkit.plugins import load_manager
from unetkit.commands import plugin_commands
manager = load_manager([target] if target else [], isolated=True)
plugin_commands(manager)
print(json.dumps({p.name: [not p.loaded and p.error, p.heavy_imports] for p in manager.plugins}))
"""


@dataclass(frozen=True)
class PluginSubject:
    """A plugin that is checked.

    Attributes:
        manager: a manager with this plugin and the built-in parts only.
        plugin: the plugin.
        target: what it was loaded from; "" for the built-in parts.
    """

    manager: PluginManager
    plugin: Plugin
    target: str

    @property
    def source(self) -> AuthorSource:
        """The files of the author's code."""
        file = Path(self.plugin.target)
        return (
            AuthorSource("", str(file)) if file.suffix == ".py" else AuthorSource(self.plugin.target.partition(":")[0])
        )

    @property
    def place(self) -> str:
        """The file and line where loading failed; "" if it did not."""
        lines = re.findall(r'File "(.*)", line (\d+)', self.plugin.traceback)
        own = [(file, int(line)) for file, line in lines if self.source.contains(file)]
        return format_place(*own[-1]) if own else ""


def check_loading(subject: PluginSubject) -> None:
    """Check that the plugin loads and adds a part, a library, a model wrapper or a command."""
    if not subject.plugin.loaded:
        raise Nonconformity(f"it does not load: {subject.plugin.error}")
    hooks = ("unetkit_wrap_model", "unetkit_register_commands")
    adds = any(subject.manager.implements(hook, subject.plugin) for hook in hooks)
    if not (adds or subject.manager.parts.entries_of(subject.plugin.name) or _list_libraries(subject)):
        raise Nonconformity("it adds nothing; register a part, wrap models, or add a command in one of its hooks")


def check_imports(subject: PluginSubject) -> None:
    """Check in a new process that loading the plugin imports no slow library."""
    arguments = json.dumps([subject.target, sys.path])
    command = [sys.executable, "-P", "-c", _LOAD_SCRIPT, arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise Nonconformity(f"it does not load in a new process: {last}")
    error, heavy = json.loads(process.stdout.splitlines()[-1])[subject.plugin.name]
    if error:
        raise Nonconformity(f"it does not load in a new process: {error}")
    if heavy and subject.target.endswith(".py"):
        raise SkipCheck(
            f"it imports {format_names(heavy)}; since it is a single file, that slows only the commands that name it"
        )
    if heavy:
        raise Nonconformity(
            f"imports {format_names(heavy)} when it registers, which slows every unetkit command; "
            'register parts as "module:attr", and import torch in that module'
        )


def _list_libraries(subject: PluginSubject) -> list[Library]:
    name = subject.plugin.name
    return [
        library
        for registry in subject.manager.parts
        for library in registry.libraries.values()
        if library.owner == name
    ]


def check_libraries(subject: PluginSubject) -> None:
    """Check that each library lists at least one name, only text, without duplicates, and has a documented factory."""
    for library in _list_libraries(subject):
        names: list[Any] = library.list_names()
        if not names or not all(isinstance(name, str) and name for name in names):
            raise Nonconformity(f"library {library.name}: {library.names} lists {names!r:.80}; expected names")
        if len(set(names)) < len(names):
            raise Nonconformity(f"library {library.name}: {library.names} lists a name twice")
        if not read_signature(library.factory).summary:
            raise Nonconformity(f"library {library.name}: its factory has no docstring")


def check_commands(subject: PluginSubject) -> None:
    """Check that each command has help; a failure here would break every `unetkit --help`."""
    group = click.Group("unetkit")
    try:
        subject.manager.call_one("unetkit_register_commands", subject.plugin)(cli=group)
    except Exception as error:
        raise Nonconformity(f"unetkit_register_commands fails with {one_line(error)}") from error
    if not group.commands:
        raise Nonconformity("unetkit_register_commands adds no command; define one in it with @cli.command()")
    for name, command in group.commands.items():
        if name in COMMANDS:
            raise Nonconformity(f"command {name!r} is a command of unetkit; rename it")
        if not command.get_short_help_str():
            raise Nonconformity(f"command {name!r} has no help; give its function a docstring")
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.help and not parameter.hidden:
                raise Nonconformity(f"command {name!r}: {parameter.opts[0]} has no help")


def check_wrapping(subject: PluginSubject) -> None:
    """Check that a plain network, and networks with the plugin's parts, remain models that their line describes."""
    from unetkit.builder import build
    from unetkit.summary.forward_hooks import find_network
    from unetkit.testing.checks.network import check_prediction, check_round_trip, check_training
    from unetkit.testing.contracts import random_tensor

    x = random_tensor(2, 3, 21, 27)
    for index, plan_fields in enumerate(_iter_networks(subject)):
        prefix = f"`{Plan.of(**plan_fields)}`: "
        subject.plugin.error = ""
        try:
            model: Any = build(**plan_fields, seed=0, parts=subject.manager.parts)
        except UnetkitError as error:
            if index and not subject.plugin.error:
                continue  # a part may reject this network; the part's own checks find one that it accepts
            raise Nonconformity(f"{prefix}{error}") from error
        if subject.plugin.error:
            raise Nonconformity(f"{prefix}unetkit_wrap_model fails: {subject.plugin.error}")
        if missing := [name for name in _FORWARDED if hasattr(find_network(model), name) > hasattr(model, name)]:
            raise Nonconformity(f"{prefix}the model lacks {', '.join(missing)}; forward them from the network")
        check_training(model, x, prefix)
        check_prediction(model, x, prefix)
        check_round_trip(model, x, subject.manager.parts, prefix)
        check_round_trip(copy.deepcopy(model), x, subject.manager.parts, f"{prefix}a deep copy: ")


#: Attributes of a network that a wrapper must forward.
_FORWARDED = ("encoder", "stages", "head", "resolved_plan", "plugins")


def _iter_networks(subject: PluginSubject) -> Iterator[dict[str, Any]]:
    base = {"encoder": "plain:widths=[4,8,16]"}
    yield base
    for entry in subject.manager.parts.entries_of(subject.plugin.name):
        if entry.kind in PART_KINDS and entry.kind.field not in ("encoder", "recipe"):
            yield {**({} if entry.kind.field == "model" else base), entry.kind.field: entry.name}


def check_metric(subject: PartSubject) -> None:
    """Check that a metric measures a small network, or a small trained network, on the CPU.

    Raises SkipCheck if the metric rejects that network with an UnetkitError, for instance because it needs a GPU.
    """
    metric = subject.entry
    timed = isinstance(metric, Metric) and metric.timed
    try:
        error = _find_metric_error(_measure(subject), timed)
    except UnetkitError as rejection:
        raise SkipCheck(f"it rejects a small network on the CPU: {rejection}") from rejection
    except Exception as failure:
        raise Nonconformity(f"it fails with {one_line(failure)}") from failure
    if error:
        raise Nonconformity(f"it {error}")


def _measure(subject: PartSubject) -> Any:
    metric = subject.entry
    if not (isinstance(metric, Metric) and metric.trained):
        return subject.factory(_create_bench_model(subject.parts))
    scored = _create_scored_run(subject.parts)
    return subject.factory(scored, scored.evaluation.target.names[-1]) if metric.per_class else subject.factory(scored)


def _create_scored_run(parts: Parts) -> Any:
    """Create the scores of a small network on two made-up images, as a training of a benchmark leaves them."""
    import tempfile

    import torch

    from unetkit.bench.quality_metrics import ScoredRun
    from unetkit.builder import build_plan
    from unetkit.data.statistics import ValueRange
    from unetkit.data.types import Sample, Target
    from unetkit.plan import Plan
    from unetkit.summary.forward_hooks import find_network
    from unetkit.train.checkpoint import TrainRun
    from unetkit.train.config import TrainConfig
    from unetkit.train.metrics import Evaluation

    target = Target("binary", ("background", "object"))
    network = find_network(build_plan(Plan.of(encoder="plain:widths=[4,8]", in_channels=1, classes=1, seed=0), parts))
    evaluation = Evaluation(target, outlines=True, apart=True)
    for index in range(2):
        generator = torch.Generator().manual_seed(index)
        chances = torch.rand(2, 16, 16, generator=generator)
        objects = torch.zeros(16, 16, dtype=torch.int64)
        objects[2:12, 2:7], objects[2:12, 8:14] = 1, 2  # two that touch
        sample = Sample(f"image{index}", torch.zeros(1, 16, 16), objects.clamp(max=1), objects)
        evaluation.add(sample.name, chances / chances.sum(0), sample)
    run = TrainRun(
        Path(tempfile.gettempdir()), network.plan, TrainConfig(), target, 1, (0.0,), (1.0,), ValueRange((0.0,), (1.0,))
    )
    return ScoredRun(run, network.eval(), evaluation, 0.5)


def _find_metric_error(result: Any, timed: bool) -> str:
    """Describe what is wrong with the result of a metric; "" if nothing is."""
    description = f"returns {format_type(result)}"
    if timed:
        if not callable(result):
            return f"{description}; a timed metric must return a callable without arguments"
        result()
        result()  # it is called repeatedly
        return ""
    try:
        return "" if math.isfinite(float(result)) else f"returns {result}; expected a finite number"
    except (TypeError, ValueError):
        return f"{description}; expected a number (or a callable, with timed=True)"


def _create_bench_model(parts: Parts) -> Any:
    """Create a new network for a metric, which may change it."""
    import torch

    from unetkit.bench.builtin_metrics import BenchModel
    from unetkit.bench.grid import Mode
    from unetkit.plan import Plan

    plan = Plan.of(encoder="plain:widths=[4,8]", size=32)
    return BenchModel(plan, 1, Mode(), torch.device("cpu"), parts)
