"""Checks of a plugin: loading, import time, libraries, commands, wrapped models and metrics."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from unetkit.bench.metrics import register_builtin_metrics
from unetkit.commands import COMMANDS
from unetkit.errors import UnetkitError
from unetkit.options import read_signature
from unetkit.plan import Plan
from unetkit.plugins import PluginManager
from unetkit.registry import Metric, Metrics, Plugin
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line

#: Run apart, since here torch is imported already.
_LOADED = """
import json, sys
target, sys.path[:] = json.loads(sys.argv[1])
from unetkit.plugins import load_manager
from unetkit.commands import plugin_commands
host = load_manager([target] if target else [], isolated=True)
plugin_commands(host)
print(json.dumps({p.name: [not p.loaded and p.error, p.heavy_imports] for p in host.plugins}))
"""


@dataclass(frozen=True)
class PluginSubject:
    """A plugin that is checked.

    Attributes:
        host: a manager with this plugin and the built-in parts only.
        plugin: the plugin.
        target: what it was loaded from; "" for the built-in parts.
    """

    host: PluginManager
    plugin: Plugin
    target: str


def loads(guest: PluginSubject) -> None:
    """Check that the plugin loads and adds a part, a library, a model wrapper, a command or a metric."""
    if not guest.plugin.loaded:
        raise Nonconformity(f"it does not load: {guest.plugin.error}")
    hooks = ("unetkit_wrap_model", "unetkit_register_commands", "unetkit_register_metrics")
    adds = any(guest.host.implements(hook, guest.plugin) for hook in hooks)
    if not (adds or guest.host.parts.entries_of(guest.plugin.name) or _sources(guest)):
        raise Nonconformity(
            "it adds nothing: register a part, wrap models, or add a command or a metric in one of its hooks"
        )


def light(guest: PluginSubject) -> None:
    """Check in a new process that loading the plugin imports no slow library."""
    said = json.dumps([guest.target, sys.path])
    done = subprocess.run([sys.executable, "-c", _LOADED, said], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Nonconformity(f"in a process of its own it does not load: {last}")
    error, heavy = json.loads(done.stdout.splitlines()[-1])[guest.plugin.name]
    if error:
        raise Nonconformity(f"in a process of its own it does not load: {error}")
    if heavy and guest.target.endswith(".py"):
        raise SkipCheck(f"imports {' and '.join(heavy)}, but is a file, which only slows a command that names it")
    if heavy:
        raise Nonconformity(
            f"imports {' and '.join(heavy)} when it registers, which slows every unetkit command; "
            'register by "module:attr", and import torch in that module'
        )


def _sources(guest: PluginSubject) -> list[Any]:
    name = guest.plugin.name
    return [source for registry in guest.host.parts for source in registry.libraries.values() if source.owner == name]


def sources(guest: PluginSubject) -> None:
    """Check that each library lists at least one name, only text, without duplicates, and has a documented factory."""
    for source in _sources(guest):
        names = _listed(source)
        if not names or not all(isinstance(name, str) and name for name in names):
            raise Nonconformity(f"source {source.name}: {source.names} lists {names!r:.80}; promised are names")
        if len(set(names)) < len(names):
            raise Nonconformity(f"source {source.name}: {source.names} lists a name twice")
        if not read_signature(source.factory).summary:
            raise Nonconformity(f"source {source.name}: its factory has no docstring")


def _listed(source: Any) -> list[Any]:
    try:
        return list(source.listing())
    except Exception as error:
        raise Nonconformity(f"source {source.name}: {source.names} fails with {one_line(error)}") from error


def commands(guest: PluginSubject) -> None:
    """Check that each command has help; a failure here would break every `unetkit --help`."""
    group = click.Group("unetkit")
    try:
        guest.host.call_one("unetkit_register_commands", guest.plugin)(cli=group)
    except Exception as error:
        raise Nonconformity(f"unetkit_register_commands fails with {one_line(error)}") from error
    if not group.commands:
        raise Nonconformity(
            "unetkit_register_commands adds no command: write @cli.command() above a function within it"
        )
    for name, command in group.commands.items():
        if name in COMMANDS:
            raise Nonconformity(f"command {name!r} is unetkit's own; rename it")
        if not command.get_short_help_str():
            raise Nonconformity(f"command {name!r} has no help; give its function a docstring")
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.help and not parameter.hidden:
                raise Nonconformity(f"command {name!r}: {parameter.opts[0]} has no help")


def wraps(guest: PluginSubject) -> None:
    """Check that a plain network, and networks with the plugin's parts, remain models that their line describes."""
    from unetkit.builder import build
    from unetkit.summary.forward_hooks import find_network
    from unetkit.testing.checks.network import comes_back, predicts, trains
    from unetkit.testing.contracts import drawn

    x = drawn(2, 3, 21, 27)
    for index, words in enumerate(_networks(guest)):
        said = f"`{Plan.of(**words)}`: "
        guest.plugin.error = ""
        try:
            model: Any = build(**words, seed=0, parts=guest.host.parts)
        except UnetkitError as error:
            if index and not guest.plugin.error:
                continue  # a part may refuse this network; that it has one is the part's own check
            raise Nonconformity(f"{said}{error}") from error
        if guest.plugin.error:
            raise Nonconformity(f"{said}unetkit_wrap_model fails: {guest.plugin.error}")
        if lacks := [name for name in _PASSED_ON if hasattr(find_network(model), name) > hasattr(model, name)]:
            raise Nonconformity(f"{said}the model lacks {', '.join(lacks)}; pass them on from the network")
        trains(model, x, said)
        predicts(model, x, said)
        comes_back(model, x, guest.host.parts, said)
        comes_back(copy.deepcopy(model), x, guest.host.parts, f"{said}a deep copy: ")


#: What is found on a network, and so should be on what wraps it.
_PASSED_ON = ("encoder", "stages", "head", "resolved_plan", "plugins")


def _networks(guest: PluginSubject) -> Iterator[dict[str, Any]]:
    base = {"encoder": "plain:widths=[4,8,16]"}
    yield base
    for entry in guest.host.parts.entries_of(guest.plugin.name):
        if entry.kind.field not in ("encoder", "recipe"):
            yield {**({} if entry.kind.field == "model" else base), entry.kind.field: entry.name}


def metrics(guest: PluginSubject) -> None:
    """Check that each metric has a docstring, and measures a small network on the CPU.

    Raises SkipCheck if a metric rejects that network with an UnetkitError, for instance because it needs a GPU.
    """
    refusals = [refusal for metric in _added(guest) if (refusal := _tried(metric, guest))]
    if refusals:
        raise SkipCheck("; ".join(refusals))


def _added(guest: PluginSubject) -> list[Metric]:
    staged = Metrics(guest.plugin.name, register_builtin_metrics().entries)
    try:
        guest.host.call_one("unetkit_register_metrics", guest.plugin)(metrics=staged)
    except Exception as error:
        raise Nonconformity(f"unetkit_register_metrics fails with {one_line(error)}") from error
    added = [metric for metric in staged if metric.owner == guest.plugin.name]
    if not added:
        raise Nonconformity("unetkit_register_metrics adds no metric: call metrics.add(name, function) within it")
    return added


def _tried(metric: Metric, guest: PluginSubject) -> str:
    """Return why a metric rejects a small network; "" if it measures it. Raises Nonconformity."""
    from unetkit.testing.process_state import preserve_process_state

    said = f"metric {metric.name!r}"
    if not metric.info.summary:
        raise Nonconformity(f"{said} has no description; give its function a docstring")
    function = metric.load()
    with preserve_process_state():
        try:
            fault = _fault(metric, function(_subject(guest)))
        except UnetkitError as error:
            return f"{said} refuses a small network on the CPU: {error}"
        except Exception as error:
            raise Nonconformity(f"{said} fails with {one_line(error)}") from error
    if fault:
        raise Nonconformity(f"{said} {fault}")
    return ""


def _fault(metric: Metric, found: Any) -> str:
    """Describe what is wrong with the result of a metric; "" if nothing is."""
    gave = f"gives a {type(found).__name__}"
    if metric.timed:
        if not callable(found):
            return f"{gave}; promised is a callable without arguments, which is timed"
        found()
        found()  # it is called again and again
        return ""
    try:
        return "" if math.isfinite(float(found)) else f"gives {found}; promised is a finite number"
    except (TypeError, ValueError):
        return f"{gave}; promised is a number, and a callable only with timed=True"


def _subject(guest: PluginSubject) -> Any:
    """Create a new network for each metric, which may change it."""
    import torch

    from unetkit.bench.builtin_metrics import BenchModel
    from unetkit.bench.grid import Mode
    from unetkit.plan import Plan

    plan = Plan.of(encoder="plain:widths=[4,8]", size=32)
    return BenchModel(plan, 1, Mode(), torch.device("cpu"), guest.host.parts)
