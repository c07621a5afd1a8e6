"""Finds plugins and lets each register in isolation: one that fails costs one line, and everything else works."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from unetkit import hookspecs
from unetkit.errors import PluginError
from unetkit.registry import Parts

if TYPE_CHECKING:
    from torch.nn import Module

    from unetkit.plan import Plan

GROUP = "unetkit"


@dataclass
class Plugin:
    """A plugin as it was found, and what became of it."""

    name: str
    version: str
    target: str
    loaded: bool = False
    error: str = ""
    traceback: str = ""


@dataclass
class Host:
    """The loaded plugins and the parts that they and unetkit registered."""

    parts: Parts = field(default_factory=Parts)
    plugins: list[Plugin] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("unetkit"))

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)
        self.parts.wrap = self.wrap

    def load(self, plugin: Plugin, find: Callable[[], object]) -> None:
        """Import and register one plugin; a failure is remembered and told in one line, or raised if strict."""
        first = next((p for p in self.plugins if p.loaded and p.name == plugin.name), None)
        self.plugins.append(plugin)
        with self._isolated(plugin), ExitStack() as undo:
            if first:
                raise PluginError(f"a plugin of this name is loaded already, from {first.target}; list it once")
            module = find()
            staged = self.parts.staged(plugin.name)
            self.manager.register(module, plugin.name)
            undo.callback(self.manager.unregister, name=plugin.name)
            self.manager.check_pending()
            self._hook("unetkit_register", plugin)(parts=staged)
            self.parts.commit(staged)
            plugin.loaded = True
            undo.pop_all()

    def wrap(self, model: Module, plan: Plan) -> Module:
        """Pass a built model through every plugin that wraps models, in order of their names."""
        for plugin in sorted(self.plugins, key=lambda p: p.name):
            if plugin.loaded:
                with self._isolated(plugin):
                    for wrap in self._hook("unetkit_wrap_model", plugin)(plan=plan):
                        model = _module(wrap(model), model)
        return model

    def _hook(self, hook: str, plugin: Plugin) -> Any:
        """A hook that calls this plugin alone, since in a plain call one failure stops the rest."""
        others = [p for name, p in self.manager.list_name_plugin() if name != plugin.name and p is not None]
        return self.manager.subset_hook_caller(hook, others)

    @contextmanager
    def _isolated(self, plugin: Plugin) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):  # what a plugin prints must not mix with what a command prints
                yield
        except (Exception, SystemExit) as error:
            plugin.error, plugin.traceback = _one_line(error), traceback.format_exc()
            name = f"{plugin.name} {plugin.version}".strip()
            line = f"plugin {name} failed in unetkit {version('unetkit')}: {plugin.error}"
            if os.environ.get("UNETKIT_STRICT") == "1":
                raise PluginError(line) from error
            print(f"unetkit: {line}", file=sys.stderr)
            failed = tuple(p.name for p in self.plugins if not p.loaded)
            for registry in self.parts:
                registry.suspects = failed


def load_host(plugins: Iterable[str | Path | ModuleType] = ()) -> Host:
    """Load the built-in parts, installed plugins, those of UNETKIT_PLUGINS, and the ones named here.

    Args:
        plugins: paths of Python files, names of modules, or modules.
    """
    host = Host()
    builtin = Plugin("unetkit", version("unetkit"), "unetkit.parts")
    host.load(builtin, lambda: importlib.import_module("unetkit.parts"))
    if builtin.error:
        raise PluginError(f"unetkit's own parts do not load: {builtin.error}")
    for dist, name, load in _installed():
        host.load(Plugin(name, dist.version or "", dist.name or name), load)
    from_environment = [p.strip() for p in os.environ.get("UNETKIT_PLUGINS", "").split(",") if p.strip()]
    for target in [*from_environment, *plugins]:
        if isinstance(target, ModuleType):
            where = getattr(target, "__file__", None) or target.__name__
            host.load(Plugin(target.__name__, "", where), lambda t=target: t)  # type: ignore[misc]
        else:
            text = str(target)
            name = Path(text).stem if text.endswith(".py") else text
            host.load(Plugin(name, "", text), lambda t=text: _import(t))  # type: ignore[misc]
    return host


@cache
def default_parts() -> Parts:
    """What is installed, found once a process."""
    return load_parts()


def load_parts(plugins: Iterable[str | Path | ModuleType] = ()) -> Parts:
    """The registered parts: unetkit's, installed plugins', and those of `plugins` (files, modules or their names)."""
    return load_host(plugins).parts


def _installed() -> Iterator[tuple[Distribution, str, Callable[[], object]]]:
    seen: set[tuple[str, str]] = set()
    for dist in distributions():
        try:
            entry_points = dist.entry_points.select(group=GROUP)
        except Exception as error:  # a mangled entry_points.txt
            yield dist, dist.name, partial(_refuse, f"its entry points cannot be read ({_one_line(error)})")
            continue
        for entry_point in entry_points:
            # An editable install can be listed twice; the first on sys.path is the one that Python imports.
            if (dist.name, entry_point.name) not in seen:
                seen.add((dist.name, entry_point.name))
                yield dist, entry_point.name, entry_point.load


def _refuse(message: str) -> ModuleType:
    raise PluginError(message)


def _import(target: str) -> ModuleType:
    if not target.endswith(".py"):
        return importlib.import_module(target)
    path = Path(target)
    if not path.is_file():
        raise PluginError(f"there is no file {target}")
    name = f"unetkit_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{target} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that dataclasses and pickles of the plugin find their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module(wrapped: Any, model: Module) -> Any:
    """What a wrapper made of a model: a module that holds it, since traces and files look for the network in it."""
    network = next(m for m in model.modules() if hasattr(m, "whole"))
    if not hasattr(wrapped, "modules") or not any(m is network for m in wrapped.modules()):
        made = f"what unetkit_wrap_model returned made {type(wrapped).__name__} of a model"
        raise PluginError(f"{made}; it must return a module that holds it")
    return wrapped


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
