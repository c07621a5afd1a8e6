"""Find plugins and let each of them register in isolation: one that fails is reported in one line, and all others work.

Plugins are installed distributions, files and modules. `list_parts` lists the registered parts as data.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from unetkit import hookspecs, plugin_files
from unetkit.errors import PluginError, UnetkitError, UnknownNameError, did_you_mean
from unetkit.registry import Entry, Parts, Plugin
from unetkit.utils.isolation import INTERRUPTS, one_line, stdout_to_stderr

if TYPE_CHECKING:
    from torch.nn import Module

    from unetkit.plan import Plan


#: The entry-point group of plugins.
GROUP = "unetkit"
#: The environment variable that names plugins to leave out, separated by commas.
DISABLE = "UNETKIT_DISABLE"

Loader = Callable[[], object]


def installed_plugins() -> Iterator[tuple[Plugin, Loader]]:
    """Return every entry point of the group with its loader. A plugin that cannot be used carries its error."""
    for dist in distributions():
        # Checked before the name, because reading the metadata of every distribution is the slowest step.
        if f"[{GROUP}]" not in (dist.read_text("entry_points.txt") or ""):
            continue
        before = _first_on_path(dist)
        if before.version == dist.version and not _is_same_distribution(before, dist):
            continue  # an editable install can be listed twice
        unnamed = Plugin(dist.name or "?", dist.version or "", dist.name or "")
        try:
            entry_points = dist.entry_points.select(group=GROUP)
        except Exception as error:  # a mangled entry_points.txt
            unread = f"its entry points are not readable ({one_line(error)})"
            yield replace(unnamed, error=unread), object
            continue
        hidden = f"version {before.version} is also installed and comes first; uninstall one"
        hidden = "" if _is_same_distribution(before, dist) else hidden
        for entry_point in entry_points:
            plugin = replace(unnamed, name=entry_point.name, target=entry_point.value, error=hidden)
            yield plugin, partial(_load_installed, entry_point, plugin)


def _first_on_path(dist: Distribution) -> Distribution:
    """Return the distribution of this name that is first on sys.path, from which Python imports modules."""
    try:
        return distribution(dist.name) if dist.name else dist
    except PackageNotFoundError:  # the folder's name differs from the name in its metadata
        return dist


def _is_same_distribution(one: Distribution, other: Distribution) -> bool:
    return one.locate_file("") == other.locate_file("") and one.version == other.version


def _load_installed(entry_point: EntryPoint, plugin: Plugin) -> object:
    try:
        return entry_point.load()
    except ModuleNotFoundError as error:
        if error.name == entry_point.module.split(".")[0]:  # an editable install whose folder was moved, say
            advice = f"install {plugin.distribution} again, or uninstall it"
            raise PluginError(f"its module {entry_point.module} does not exist; {advice}") from error
        raise


def absolute_target(target: str) -> str:
    """Return a plugin as `--plugin` takes it, with the absolute path of a file, which is valid in any folder."""
    return os.path.abspath(os.path.expanduser(target)) if target.endswith(".py") else target


def find_plugins(
    target: str | Path | ModuleType, installed: list[tuple[Plugin, Loader]]
) -> list[tuple[Plugin, Loader]]:
    """Find the plugin for a module, a file, the name of a module, or the name of a plugin or its distribution."""
    if isinstance(target, ModuleType):
        module = target
        by_name = module.__name__ in sys.modules and not module.__name__.startswith(plugin_files.PREFIX)
        where = module.__name__ if by_name else getattr(module, "__file__", None) or module.__name__
        return [(Plugin(module.__name__, target=where), lambda: module)]
    text = str(target)
    if here := [
        (replace(plugin, loaded=False), find)
        for plugin, find in installed
        if plugin.is_called(text) or text == plugin.target
    ]:
        return here
    if text.endswith(".py"):
        path = Path(os.path.expanduser(text))
        return [(Plugin(path.stem, target=text), partial(plugin_files.import_file, path))]
    known = [plugin.name for plugin, _ in installed]
    return [(Plugin(text, target=text), partial(_import_module, text, known))]


def _import_module(name: str, known: list[str]) -> ModuleType:
    install = f"; install it first: pip install -e {name}" if Path(name, "pyproject.toml").is_file() else ""
    if install and not name.isidentifier():
        raise UnknownNameError(f"no plugin is called {name}, which is a folder here{install}")
    if not all(part.isidentifier() for part in name.split(".")):
        advice = did_you_mean(name, known) or "; a file ends in .py"
        raise UnknownNameError(f"no plugin is called {name or repr(name)}, and it is not a valid module name{advice}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        file = Path(*name.split(".")).with_suffix(".py")  # the current folder is not on the path of a command
        advice = f"; write ./{file} for the file" if file.is_file() else install or did_you_mean(name, known)
        advice = advice or "; give the name of a plugin, an installed module, or the path of a file that ends in .py"
        raise UnknownNameError(f"no plugin or module is called {name}{advice}") from error


#: Modules that are slow to import. A plugin that imports one when it registers slows down every command.
_HEAVY_LIBRARIES = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "numpy", "scipy")


@dataclass
class PluginManager:
    """The loaded plugins, and the parts that they and unetkit registered."""

    parts: Parts = field(default_factory=Parts)
    pluggy_manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("unetkit"))

    def __post_init__(self) -> None:
        self.pluggy_manager.add_hookspecs(hookspecs)
        self.parts.wrap_model = self.wrap_model

    @property
    def plugins(self) -> list[Plugin]:
        """All plugins that were found, with the built-in one first, including those that failed."""
        return self.parts.plugins

    def load(self, plugin: Plugin, find: Callable[[], object], *, is_required: bool = False) -> None:
        """Import and register a plugin; a failure is stored and printed as one line, or raised if it is required."""
        first = next((p for p in self.plugins if p.loaded and p.name == plugin.name), None)
        self.plugins.append(plugin)
        with self.isolate(plugin, is_required=is_required), ExitStack() as undo:
            if plugin.error:
                raise PluginError(plugin.error)
            if first:
                raise PluginError(
                    f"a plugin with this name is already loaded, from {first.target}; rename or remove one"
                )
            before = set(sys.modules)
            module = find()
            if other := self.pluggy_manager.get_name(module):
                raise PluginError(f"its module is already loaded, as plugin {other}; list it once")
            _check_hooks(module)
            staged = self.parts.stage(plugin.name)
            self.pluggy_manager.register(module, plugin.name)
            undo.callback(self.pluggy_manager.unregister, name=plugin.name)
            self.call_one("unetkit_register", plugin)(parts=staged)
            staged.check()
            self.parts.commit(staged)
            plugin.loaded = True
            plugin.heavy_imports = find_heavy_imports(before)
            undo.pop_all()

    def loaded_plugins(self) -> list[Plugin]:
        """Return the plugins in use, ordered by name."""
        return sorted((plugin for plugin in self.plugins if plugin.loaded), key=lambda plugin: plugin.name)

    def wrap_model(self, model: Module, plan: Plan, owners: set[str]) -> tuple[Module, set[str]]:
        """Pass a built model through every plugin that wraps models, ordered by name.

        Args:
            model: the built model.
            plan: its resolved plan.
            owners: the plugins of its parts. Their errors are raised, since the model without the wrapper would not be
                the one that its line describes.

        Returns:
            The result, and the names of the plugins that wrapped the model.
        """
        wrapped: set[str] = set()
        for plugin in self.loaded_plugins():
            if self.implements("unetkit_wrap_model", plugin):
                model, done = self._wrap_with(plugin, model, plan, strict=plugin.name in owners)
                wrapped |= {plugin.name} if done else set()
        return model, wrapped

    def _wrap_with(self, plugin: Plugin, model: Module, plan: Plan, *, strict: bool) -> tuple[Module, bool]:
        made: list[Module] = []
        before = None
        with self.isolate(plugin, strict=strict):
            for wrap in self.call_one("unetkit_wrap_model", plugin)(plan=plan):
                before = before or _named_contents(model)
                made.append(_check_wrapped(wrap(model), model))
        if before and not made and _named_contents(model) != before:
            raise PluginError(f"plugin {plugin} modified the model and then failed: {plugin.error}")
        return made[-1] if made else model, bool(made)

    def call_one(self, name: str, plugin: Plugin) -> Any:
        """Return a hook that calls only this plugin, since in a common call one failure would stop all others."""
        others = [p for known, p in self.pluggy_manager.list_name_plugin() if known != plugin.name and p is not None]
        return self.pluggy_manager.subset_hook_caller(name, others)

    def implements(self, name: str, plugin: Plugin) -> bool:
        """Return whether a plugin implements a hook."""
        return any(
            found.plugin_name == plugin.name for found in getattr(self.pluggy_manager.hook, name).get_hookimpls()
        )

    @contextmanager
    def isolate(self, plugin: Plugin, *, strict: bool = False, is_required: bool = False) -> Iterator[None]:
        """Print an error of a plugin as one line on stderr, or raise it if `strict` or UNETKIT_STRICT=1.

        If the plugin is required, that line is raised.
        """
        try:
            with stdout_to_stderr():
                yield
        except INTERRUPTS:
            raise
        except BaseException as error:  # pyo3 and pytest raise exceptions that do not derive from Exception
            if strict and isinstance(error, UnetkitError):
                raise
            plugin.report_failure(error, strict=strict or is_required)


def find_heavy_imports(before: set[str]) -> tuple[str, ...]:
    """Return the slow libraries among the modules that were imported since."""
    return tuple(name for name in _HEAVY_LIBRARIES if name in sys.modules and name not in before)


def load_manager(
    plugins: Iterable[str | Path | ModuleType] = (), *, isolated: bool = False, strict: bool = False
) -> PluginManager:
    """Load the built-in parts, installed plugins, those of UNETKIT_PLUGINS, and the given ones.

    Plugins that UNETKIT_DISABLE names are left out, unless `isolated`.

    Args:
        plugins: paths of Python files, names of modules, or modules.
        isolated: whether to load only the given plugins; installed plugins can be given by their name or the name of
            their distribution.
        strict: whether to raise the error of a given plugin that does not load.

    Raises:
        PluginError: The built-in parts do not load, or with `strict`, one of the given plugins.
    """
    manager = PluginManager()
    builtin = Plugin("unetkit", version("unetkit"), "unetkit", "unetkit.parts")
    manager.load(builtin, lambda: importlib.import_module("unetkit.parts"))
    if builtin.error:
        raise PluginError(f"the built-in parts do not load: {builtin.error}")
    # Sorted by name, so that the order does not depend on the file system.
    installed = sorted(installed_plugins(), key=lambda found: found[0].name)
    from_environment = _read_names("UNETKIT_PLUGINS")
    given = [found for target in plugins for found in find_plugins(target, installed)]
    required = {_identity(plugin) for plugin, _ in given} if strict else set()
    named = () if isolated else (found for target in from_environment for found in find_plugins(target, installed))
    disabled = [] if isolated else list_disabled()
    for plugin, find in [*(() if isolated else installed), *named, *given]:
        if _identity(plugin) in map(_identity, manager.plugins):
            continue
        is_required = _identity(plugin) in required
        if any(plugin.is_called(name) for name in disabled):
            if is_required:
                raise PluginError(f"--plugin {plugin.target}: {DISABLE} names this plugin; leave one of the two out")
            manager.plugins.append(replace(plugin, error=f"is left out, since {DISABLE} names it", disabled=True))
        else:
            manager.load(plugin, find, is_required=is_required)
    return manager


def list_disabled() -> list[str]:
    """Return the names of plugins to leave out, as UNETKIT_DISABLE lists them."""
    return _read_names(DISABLE)


def _read_names(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def _identity(plugin: Plugin) -> tuple[str, str, str]:
    """Return what identifies a plugin; different paths to one file are equal."""
    target = plugin.target
    return plugin.name, plugin.version, os.path.realpath(os.path.expanduser(target)) if ".py" in target else target


@cache
def default_manager() -> PluginManager:
    """Return the manager of the installed plugins, which are found once per process."""
    return load_manager()


def default_parts() -> Parts:
    """Return the parts of the installed plugins, which are found once per process."""
    return default_manager().parts


def load_parts(plugins: Iterable[str | Path | ModuleType] = (), *, isolated: bool = False) -> Parts:
    """Return the registered parts of unetkit, of installed plugins, and of `plugins` (files, modules or their names).

    With `isolated`, installed plugins and those of UNETKIT_PLUGINS are not loaded, so that the same names exist
    everywhere; an installed plugin can be given by its name in `plugins`.
    """
    return load_manager(plugins, isolated=isolated).parts


def _check_hooks(module: object) -> None:
    """Raise PluginError for a module without hooks, with an unknown hook, or with a hook that has other parameters."""
    specs = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("unetkit_")}
    found = [name for name in dir(module) if isinstance(_hook_markers(getattr(module, name, None)), dict)]
    for name in found:
        hook = getattr(module, name)
        spec = _hook_markers(hook).get("specname") or name
        if spec not in specs:
            raise PluginError(f"there is no hook {spec}{did_you_mean(spec, specs)}; the hooks are {', '.join(specs)}")
        if not inspect.isroutine(hook):
            raise PluginError(
                f"{name} is a {type(hook).__name__}, but a hook must be a function; write a function that calls it"
            )
        takes = list(inspect.signature(specs[spec]).parameters)
        wants = [p.name for p in inspect.signature(hook).parameters.values() if p.default is p.empty]
        if unknown := [name for name in wants if name not in takes]:
            raise PluginError(f"{spec} takes {', '.join(takes)}, but not {unknown[0]!r}; rename the argument")
    if not found:
        bare = [name for name in specs if callable(getattr(module, name, None))]
        what = f"{bare[0]} is not marked" if bare else "it has no hooks, such as unetkit_register(parts)"
        raise PluginError(f"{what}; write @unetkit.hookimpl above {'it' if bare else 'each'}")


def _hook_markers(thing: object) -> Any:
    return getattr(thing, "unetkit_impl", None)


def _named_contents(model: Module) -> list[tuple[str, int]]:
    """Return the modules, parameters and buffers of a model."""
    held = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
    return [(name, id(thing)) for name, thing in held]


def _check_wrapped(wrapped: Any, model: Module) -> Any:
    """Return the result of a wrapper, which must be a module that contains the model.

    Traces and files look for it there.
    """
    network = next(m for m in model.modules() if hasattr(m, "resolved_plan"))
    if not hasattr(wrapped, "modules") or not any(m is network for m in wrapped.modules()):
        made = f"what unetkit_wrap_model returned made {type(wrapped).__name__} of a model"
        raise PluginError(f"{made}; it must return a module that contains the model")
    return wrapped


def list_parts(kind: str, pattern: str = "*", *, parts: Parts | None = None) -> list[Entry]:
    """List the registered parts of a kind ("encoders", "fuse", ...) whose names match a glob.

    Each entry has a name, an owner, and a signature with its summary, options, file and line. Reading them imports no
    torch.

    Raises:
        OptionError: The kind does not exist.
    """
    return (parts or default_parts())[kind].find(pattern)
