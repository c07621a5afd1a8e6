"""Finds plugins and lets each register in isolation: one that fails costs one line, and everything else works."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from unetkit import hookspecs
from unetkit.errors import PluginError, UnetkitError
from unetkit.registry import Parts, Plugin

if TYPE_CHECKING:
    from torch.nn import Module

    from unetkit.plan import Plan

GROUP = "unetkit"


#: What takes long to import; a plugin that does so to register makes every command wait for it.
_HEAVY = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "numpy", "scipy")


@dataclass
class Host:
    """The loaded plugins and the parts that they and unetkit registered."""

    parts: Parts = field(default_factory=Parts)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("unetkit"))

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)
        self.parts.wrap = self.wrap

    @property
    def plugins(self) -> list[Plugin]:
        """All that were found, the built-in one first, those that failed included."""
        return self.parts.plugins

    def load(self, plugin: Plugin, find: Callable[[], object]) -> None:
        """Import and register one plugin; a failure is remembered and told in one line, or raised if strict."""
        first = next((p for p in self.plugins if p.loaded and p.name == plugin.name), None)
        self.plugins.append(plugin)
        with self.isolated(plugin), ExitStack() as undo:
            if plugin.error:
                raise PluginError(plugin.error)
            if first:
                advice = "list it once" if first.target == plugin.target else "rename or uninstall one"
                raise PluginError(f"a plugin of this name is loaded already, from {first.target}; {advice}")
            before = set(sys.modules)
            module = find()
            staged = self.parts.staged(plugin.name)
            self.manager.register(module, plugin.name)
            undo.callback(self.manager.unregister, name=plugin.name)
            self.manager.check_pending()
            self.hook("unetkit_register", plugin)(parts=staged)
            self.parts.commit(staged)
            plugin.loaded = True
            plugin.heavy = tuple(name for name in _HEAVY if name in sys.modules and name not in before)
            undo.pop_all()

    def loaded(self) -> list[Plugin]:
        """The plugins in use, in order of their names."""
        return sorted((plugin for plugin in self.plugins if plugin.loaded), key=lambda plugin: plugin.name)

    def wrap(self, model: Module, plan: Plan, owners: set[str]) -> tuple[Module, set[str]]:
        """Pass a built model through every plugin that wraps models, in order of their names.

        Args:
            model: as it was built.
            plan: the whole plan of it.
            owners: of its parts. What these refuse is raised, since a model without would not be what its line says.

        Returns:
            What came out, and the names of the plugins that wrapped it.
        """
        wrapped: set[str] = set()
        for plugin in self.loaded():
            with self.isolated(plugin, strict=plugin.name in owners):
                for wrap in self.hook("unetkit_wrap_model", plugin)(plan=plan):
                    model = _module(wrap(model), model)
                    wrapped.add(plugin.name)
        return model, wrapped

    def hook(self, name: str, plugin: Plugin) -> Any:
        """A hook that calls this plugin alone, since in a plain call one failure stops the rest."""
        others = [p for known, p in self.manager.list_name_plugin() if known != plugin.name and p is not None]
        return self.manager.subset_hook_caller(name, others)

    def implements(self, name: str, plugin: Plugin) -> bool:
        """Whether a plugin implements a hook."""
        return any(found.plugin_name == plugin.name for found in getattr(self.manager.hook, name).get_hookimpls())

    @contextmanager
    def isolated(self, plugin: Plugin, *, strict: bool = False) -> Iterator[None]:
        """Turn what a plugin raises into one line on stderr, or, if strict or UNETKIT_STRICT=1, into a PluginError."""
        try:
            with redirect_stdout(sys.stderr):  # what a plugin prints must not mix with what a command prints
                yield
        except (Exception, SystemExit) as error:
            if strict and isinstance(error, UnetkitError):
                raise
            plugin.error, plugin.traceback = _one_line(error), traceback.format_exc()
            line = f"plugin {plugin} failed in unetkit {version('unetkit')}: {plugin.error}"
            if strict or os.environ.get("UNETKIT_STRICT") == "1":
                raise PluginError(line) from error
            print(f"unetkit: {line}", file=sys.stderr)


def load_host(plugins: Iterable[str | Path | ModuleType] = (), *, isolated: bool = False) -> Host:
    """Load the built-in parts, installed plugins, those of UNETKIT_PLUGINS, and the ones named here.

    Args:
        plugins: paths of Python files, names of modules, or modules.
        isolated: whether to leave out what is installed or in UNETKIT_PLUGINS and not named here; an installed plugin
            is then named by its name or its distribution's.
    """
    host = Host()
    builtin = Plugin("unetkit", version("unetkit"), "unetkit", "unetkit.parts")
    host.load(builtin, lambda: importlib.import_module("unetkit.parts"))
    if builtin.error:
        raise PluginError(f"unetkit's own parts do not load: {builtin.error}")
    installed = list(_installed())
    from_environment = [p.strip() for p in os.environ.get("UNETKIT_PLUGINS", "").split(",") if p.strip()]
    for plugin, find in () if isolated else installed:
        host.load(plugin, find)
    for target in [*(() if isolated else from_environment), *plugins]:
        host.load(*_found(target, installed))
    return host


@cache
def default_host() -> Host:
    """What is installed, found once a process."""
    return load_host()


def default_parts() -> Parts:
    """What is installed, found once a process."""
    return default_host().parts


def load_parts(plugins: Iterable[str | Path | ModuleType] = (), *, isolated: bool = False) -> Parts:
    """The registered parts: unetkit's, installed plugins', and those of `plugins` (files, modules or their names).

    `isolated` leaves out what is installed or in UNETKIT_PLUGINS, so that the same names are found everywhere; an
    installed plugin is then asked for by its name in `plugins`.
    """
    return load_host(plugins, isolated=isolated).parts


Find = Callable[[], object]


def _installed() -> Iterator[tuple[Plugin, Find]]:
    """Every entry point of the group, with what loads it. What cannot be used carries its error."""
    first: dict[str, Distribution] = {}
    for dist in distributions():
        before = first.setdefault(re.sub(r"[-_.]+", "-", dist.name).lower(), dist) if dist.name else dist
        if before is not dist and before.version == dist.version:
            continue  # an editable install can be listed twice; the first on sys.path is the one that Python imports
        told = Plugin(dist.name or "?", dist.version or "", dist.name or "")
        try:
            entry_points = dist.entry_points.select(group=GROUP)
        except Exception as error:  # a mangled entry_points.txt
            unread = f"its entry points cannot be read ({_one_line(error)})"
            yield replace(told, error=unread), object
            continue
        hidden = "" if before is dist else f"version {before.version} is installed too and comes first; uninstall one"
        for entry_point in entry_points:
            yield replace(told, name=entry_point.name, target=entry_point.value, error=hidden), entry_point.load


def _found(target: str | Path | ModuleType, installed: list[tuple[Plugin, Find]]) -> tuple[Plugin, Find]:
    """The plugin behind a module, a file, a module's name, or the name of an installed plugin or its distribution."""
    if isinstance(target, ModuleType):
        module = target
        return Plugin(module.__name__, target=getattr(module, "__file__", None) or module.__name__), lambda: module
    text = str(target)
    for plugin, find in installed:
        if text in (plugin.name, plugin.distribution):
            return replace(plugin, loaded=False), find
    name = Path(text).stem if text.endswith(".py") else text
    return Plugin(name, target=text), partial(_import, text)


def _import(target: str) -> ModuleType:
    if not target.endswith(".py"):
        return _import_module(target)
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


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name and Path(f"{name}.py").is_file():  # the current folder is not on the path of a command
            raise PluginError(f"no module is called {name}; for the file write ./{name}.py") from error
        raise


def _module(wrapped: Any, model: Module) -> Any:
    """What a wrapper made of a model: a module that holds it, since traces and files look for the network in it."""
    network = next(m for m in model.modules() if hasattr(m, "whole"))
    if not hasattr(wrapped, "modules") or not any(m is network for m in wrapped.modules()):
        made = f"what unetkit_wrap_model returned made {type(wrapped).__name__} of a model"
        raise PluginError(f"{made}; it must return a module that holds it")
    return wrapped


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, UnetkitError) else f"{type(error).__name__}: {text}"
