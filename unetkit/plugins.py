"""Finds plugins and lets each register in isolation: one that fails costs one line, and everything else works."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from unetkit import hookspecs
from unetkit.errors import PluginError, UnetkitError, UnknownNameError, did_you_mean
from unetkit.registry import Entry, Parts, Plugin
from unetkit.utils.isolation import one_line, stdout_to_stderr

if TYPE_CHECKING:
    from torch.nn import Module

    from unetkit.plan import Plan


#: The group of entry points that plugins are installed by.
GROUP = "unetkit"

Find = Callable[[], object]


def installed_plugins() -> Iterator[tuple[Plugin, Find]]:
    """Every entry point of the group, with what loads it. What cannot be used carries its error."""
    for dist in distributions():
        # Before its name, since reading the metadata of everything installed takes longer than all else here.
        if f"[{GROUP}]" not in (dist.read_text("entry_points.txt") or ""):
            continue
        before = _first(dist)
        if before.version == dist.version and not _same(before, dist):
            continue  # an editable install can be listed twice
        told = Plugin(dist.name or "?", dist.version or "", dist.name or "")
        try:
            entry_points = dist.entry_points.select(group=GROUP)
        except Exception as error:  # a mangled entry_points.txt
            unread = f"its entry points cannot be read ({one_line(error)})"
            yield replace(told, error=unread), object
            continue
        hidden = f"version {before.version} is installed too and comes first; uninstall one"
        hidden = "" if _same(before, dist) else hidden
        for entry_point in entry_points:
            plugin = replace(told, name=entry_point.name, target=entry_point.value, error=hidden)
            yield plugin, partial(_load_installed, entry_point, plugin)


def _first(dist: Distribution) -> Distribution:
    """The distribution of this name that comes first on sys.path, whose modules Python imports."""
    try:
        return distribution(dist.name) if dist.name else dist
    except PackageNotFoundError:  # the folder is called otherwise than its metadata
        return dist


def _same(one: Distribution, other: Distribution) -> bool:
    return one.locate_file("") == other.locate_file("") and one.version == other.version


def _load_installed(entry_point: EntryPoint, plugin: Plugin) -> object:
    try:
        return entry_point.load()
    except ModuleNotFoundError as error:
        if error.name == entry_point.module.split(".")[0]:  # an editable install whose folder was moved, say
            advice = f"install {plugin.distribution} again, or uninstall it"
            raise PluginError(f"its module {entry_point.module} is not there; {advice}") from error
        raise


def find_plugins(target: str | Path | ModuleType, installed: list[tuple[Plugin, Find]]) -> list[tuple[Plugin, Find]]:
    """What a module, a file, a module's name, or the name of an installed plugin or its distribution stands for."""
    if isinstance(target, ModuleType):
        module = target
        by_name = module.__name__ in sys.modules and not module.__name__.startswith(_OF_A_FILE)
        where = module.__name__ if by_name else getattr(module, "__file__", None) or module.__name__
        return [(Plugin(module.__name__, target=where), lambda: module)]
    text = str(target)
    if here := [
        (replace(plugin, loaded=False), find)
        for plugin, find in installed
        if text in (plugin.name, plugin.target) or _normal(text) == _normal(plugin.distribution)
    ]:
        return here
    if text.endswith(".py"):
        path = Path(os.path.expanduser(text))
        return [(Plugin(path.stem, target=text), partial(_import_file, path))]
    known = [plugin.name for plugin, _ in installed]
    return [(Plugin(text, target=text), partial(_import_module, text, known))]


def _normal(distribution: str) -> str:
    """The one form of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


#: What the modules of files are called, with the file's name and a digest of its place.
_OF_A_FILE = "unetkit_plugin_"


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownNameError(f"there is no file {path}")
    name = f"{_OF_A_FILE}{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is not a Python file")
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(name)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # what lies beside it can be imported, behind all that is installed
    sys.modules[name] = module  # so that dataclasses and pickles of the plugin find their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise
    return module


def _import_module(name: str, known: list[str]) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        advice = did_you_mean(name, known) or "; a file ends in .py"
        raise UnknownNameError(f"no plugin is called {name}, and no module can be{advice}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        file = Path(*name.split(".")).with_suffix(".py")  # the current folder is not on the path of a command
        advice = f"; for the file write ./{file}" if file.is_file() else did_you_mean(name, known)
        raise UnknownNameError(f"no plugin or module is called {name}{advice}") from error


#: What takes long to import; a plugin that does so to register makes every command wait for it.
_HEAVY = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "numpy", "scipy")


@dataclass
class PluginManager:
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
                raise PluginError(f"a plugin of this name is loaded already, from {first.target}; rename or drop one")
            before = set(sys.modules)
            module = find()
            if other := self.manager.get_name(module):
                raise PluginError(f"its module is loaded already, as plugin {other}; list it once")
            _check_hooks(module)
            staged = self.parts.staged(plugin.name)
            self.manager.register(module, plugin.name)
            undo.callback(self.manager.unregister, name=plugin.name)
            self.manager.check_pending()
            self.call_one("unetkit_register", plugin)(parts=staged)
            self.parts.commit(staged)
            plugin.loaded = True
            plugin.heavy = heavy_imports_since(before)
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
            if self.implements("unetkit_wrap_model", plugin):
                model, done = self._wrapped(plugin, model, plan, strict=plugin.name in owners)
                wrapped |= {plugin.name} if done else set()
        return model, wrapped

    def _wrapped(self, plugin: Plugin, model: Module, plan: Plan, *, strict: bool) -> tuple[Module, bool]:
        made: list[Module] = []
        before = _inside(model)
        with self.isolated(plugin, strict=strict):
            made += [_module(wrap(model), model) for wrap in self.call_one("unetkit_wrap_model", plugin)(plan=plan)]
        if not made and _inside(model) != before:
            raise PluginError(f"plugin {plugin} changed the model and then failed: {plugin.error}")
        return made[-1] if made else model, bool(made)

    def call_one(self, name: str, plugin: Plugin) -> Any:
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
            with stdout_to_stderr():
                yield
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # pyo3 and pytest raise what is no Exception
            if strict and isinstance(error, UnetkitError):
                raise
            plugin.fail(error, strict=strict)


def heavy_imports_since(before: set[str]) -> tuple[str, ...]:
    """What takes long to import, of the modules imported since."""
    return tuple(name for name in _HEAVY if name in sys.modules and name not in before)


def load_manager(plugins: Iterable[str | Path | ModuleType] = (), *, isolated: bool = False) -> PluginManager:
    """Load the built-in parts, installed plugins, those of UNETKIT_PLUGINS, and the ones named here.

    Args:
        plugins: paths of Python files, names of modules, or modules.
        isolated: whether to leave out what is installed or in UNETKIT_PLUGINS and not named here; an installed plugin
            is then named by its name or its distribution's.
    """
    host = PluginManager()
    builtin = Plugin("unetkit", version("unetkit"), "unetkit", "unetkit.parts")
    host.load(builtin, lambda: importlib.import_module("unetkit.parts"))
    if builtin.error:
        raise PluginError(f"unetkit's own parts do not load: {builtin.error}")
    # By name, so that who comes first does not depend on a folder's order.
    installed = sorted(installed_plugins(), key=lambda found: found[0].name)
    from_environment = [p.strip() for p in os.environ.get("UNETKIT_PLUGINS", "").split(",") if p.strip()]
    named = [*(() if isolated else from_environment), *plugins]
    wanted = [
        *(() if isolated else installed),
        *(found for target in named for found in find_plugins(target, installed)),
    ]
    for plugin, find in wanted:
        if _identity(plugin) not in map(_identity, host.plugins):
            host.load(plugin, find)
    return host


def _identity(plugin: Plugin) -> tuple[str, str, str]:
    """What tells a plugin from others: a file however its path is written."""
    target = plugin.target
    return plugin.name, plugin.version, os.path.realpath(os.path.expanduser(target)) if ".py" in target else target


@cache
def default_manager() -> PluginManager:
    """What is installed, found once a process."""
    return load_manager()


def default_parts() -> Parts:
    """What is installed, found once a process."""
    return default_manager().parts


def load_parts(plugins: Iterable[str | Path | ModuleType] = (), *, isolated: bool = False) -> Parts:
    """The registered parts: unetkit's, installed plugins', and those of `plugins` (files, modules or their names).

    `isolated` leaves out what is installed or in UNETKIT_PLUGINS, so that the same names are found everywhere; an
    installed plugin is then asked for by its name in `plugins`.
    """
    return load_manager(plugins, isolated=isolated).parts


def _check_hooks(module: object) -> None:
    """Raise PluginError where a module has no hook, one that there is not, or one with other arguments."""
    specs = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("unetkit_")}
    found = [name for name in dir(module) if isinstance(_marks(getattr(module, name, None)), dict)]
    for name in found:
        hook = getattr(module, name)
        spec = _marks(hook).get("specname") or name
        if spec not in specs:
            raise PluginError(f"there is no hook {spec}{did_you_mean(spec, specs)}; there are {', '.join(specs)}")
        if not inspect.isroutine(hook):
            raise PluginError(f"{name} is a {type(hook).__name__}, and a hook is a function; write one that calls it")
        takes = list(inspect.signature(specs[spec]).parameters)
        wants = [p.name for p in inspect.signature(hook).parameters.values() if p.default is p.empty]
        if unknown := [name for name in wants if name not in takes]:
            raise PluginError(f"{spec} takes {', '.join(takes)}, and no {unknown[0]!r}")
    if not found:
        bare = [name for name in specs if callable(getattr(module, name, None))]
        what = f"{bare[0]} is not marked" if bare else "it has no hooks, such as unetkit_register(parts)"
        raise PluginError(f"{what}; mark each with @unetkit.hookimpl")


def _marks(thing: object) -> Any:
    return getattr(thing, "unetkit_impl", None)


def _inside(model: Module) -> list[tuple[str, int]]:
    """What a model holds: its modules, parameters and buffers."""
    held = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    return [(name, id(thing)) for name, thing in held]


def _module(wrapped: Any, model: Module) -> Any:
    """What a wrapper made of a model: a module that holds it, since traces and files look for the network in it."""
    network = next(m for m in model.modules() if hasattr(m, "whole"))
    if not hasattr(wrapped, "modules") or not any(m is network for m in wrapped.modules()):
        made = f"what unetkit_wrap_model returned made {type(wrapped).__name__} of a model"
        raise PluginError(f"{made}; it must return a module that holds it")
    return wrapped


def list_parts(kind: str, pattern: str = "*", *, parts: Parts | None = None) -> list[Entry]:
    """The registered parts of a kind ("encoders", "fuse" ...) whose names match a glob.

    Each has a name, an owner, and a signature with its summary, options, file and line; reading them imports no
    torch.

    Raises:
        OptionError: there is no such kind.
    """
    return (parts or default_parts())[kind].find(pattern)
