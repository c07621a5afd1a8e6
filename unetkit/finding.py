"""Where plugins are: in installed distributions, files and modules; and what loads each."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import ModuleType

from unetkit.errors import PluginError, UnknownName, nearest
from unetkit.foreign import one_line
from unetkit.registry import Plugin

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


def named_plugins(target: str | Path | ModuleType, installed: list[tuple[Plugin, Find]]) -> list[tuple[Plugin, Find]]:
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
        raise UnknownName(f"there is no file {path}")
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
        advice = nearest(name, known) or "; a file ends in .py"
        raise UnknownName(f"no plugin is called {name}, and no module can be{advice}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        file = Path(*name.split(".")).with_suffix(".py")  # the current folder is not on the path of a command
        advice = f"; for the file write ./{file}" if file.is_file() else nearest(name, known)
        raise UnknownName(f"no plugin or module is called {name}{advice}") from error
