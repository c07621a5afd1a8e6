"""The registered names and their factories: a Registry for each kind, collected in Parts.

There is no global registry: `unetkit.plugins.load_parts()` creates a Parts, which is passed to whatever needs it.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from unetkit.errors import OptionError, PluginError, UnetkitError, UnknownNameError, did_you_mean
from unetkit.options import Signature, load_target, read_signature
from unetkit.plan import PLAN_FIELDS
from unetkit.utils.isolation import one_line, wrap_errors

Factory = Callable[..., Any]


@dataclass(frozen=True)
class Kind:
    """A kind of names: its option (`--fuse`), its title, and its attribute in Parts.

    Attributes:
        field, title, attribute: the three words for it.
        has_option: whether a name of this kind is selected by an option of the command line.
        other_fields: further options that take a name of this kind.
    """

    field: str
    title: str
    attribute: str
    has_option: bool = True
    other_fields: tuple[str, ...] = ()


#: The owner of all that no plugin adds.
BUILTIN = "unetkit"

#: The kinds of parts of a network, which are fields of a plan.
PART_KINDS = (
    Kind("encoder", "encoder", "encoders"),
    Kind("up", "upsampler", "upsamplers", other_fields=("logits",)),
    Kind("fuse", "fusion", "fusions"),
    Kind("align", "align", "aligns"),
    Kind("block", "block", "blocks"),
    Kind("head", "head", "heads"),
    Kind("recipe", "recipe", "recipes"),
    Kind("model", "model", "models"),
)
#: The fields of a plan that are parts.
PART_FIELDS = {name for kind in PART_KINDS for name in (kind.field, *kind.other_fields)}
#: The kind of measurements of a benchmark.
METRIC_KIND = Kind("metrics", "metric", "metrics")
#: The kinds of what a training run or a benchmark is made of.
RUN_KINDS = (
    Kind("data", "dataset", "datasets"),
    Kind("loss", "loss", "losses"),
    Kind("target", "target", "targets", has_option=False),  # a head names the targets of its outputs
    Kind("augment", "augmentation", "augmentations"),
    Kind("optimizer", "optimizer", "optimizers"),
    METRIC_KIND,
)
#: The kind of formats to which networks are exported.
FORMAT_KIND = Kind("format", "format", "formats")
KINDS = (*PART_KINDS, *RUN_KINDS, FORMAT_KIND)


def find_kind(word: str) -> Kind:
    """Return a kind by its option ("fuse"), title ("fusion") or plural ("fusions"). Raises OptionError."""
    for kind in KINDS:
        if word in (kind.field, kind.title, kind.attribute, *kind.other_fields):
            return kind
    known = [kind.attribute for kind in KINDS]
    raise OptionError(f"no kind is called {word!r}{did_you_mean(word, known)}; the kinds are {', '.join(known)}")


@dataclass
class Plugin:
    """A plugin that was found, with its state.

    Attributes:
        name: the name of its entry point, file or module.
        version, distribution: those of the installed package; "" for a file or module.
        target: the file or module that contains its hooks.
        loaded: whether it is in use.
        heavy_imports: slow libraries that it imports when it registers, which delays every command.
        error, traceback: its last failure; "" if there was none.
        not_found: whether nothing was found under the requested name.
        disabled: whether the user has left it out.
    """

    name: str
    version: str = ""
    distribution: str = ""
    target: str = ""
    loaded: bool = False
    heavy_imports: tuple[str, ...] = ()
    error: str = ""
    traceback: str = ""
    not_found: bool = False
    disabled: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()

    def is_called(self, name: str) -> bool:
        """Return whether a name is that of the plugin or, however it is spelled (PEP 503), of its distribution."""
        return name == self.name or _normalize_name(name) == _normalize_name(self.distribution)

    def report_failure(self, error: BaseException, *, strict: bool = False) -> None:
        """Store a failure and print it as one line, or raise it if `strict` or UNETKIT_STRICT=1 is set."""
        self.not_found = isinstance(error, UnknownNameError)
        self.error, self.traceback = one_line(error), "".join(traceback.format_exception(error))
        line = f"plugin {self} failed in unetkit {version('unetkit')}: {self.error}"
        if strict or os.environ.get("UNETKIT_STRICT") == "1":
            raise PluginError(line) from error
        if "_UNETKIT_COMPLETE" not in os.environ:  # during completion, the shell would show it in the prompt
            print(f"unetkit: {line}", file=sys.stderr)


def _normalize_name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@dataclass(frozen=True)
class Entry:
    """A name with its factory (an object, or "module:attr" loaded on first use) and the plugin that registered it."""

    kind: Kind
    name: str
    factory: Factory | str
    owner: str
    #: The library of the name; its factory takes the name as the last positional argument.
    library: str | None = None
    #: "module:attr" of a function that gives the options of this name, in addition to those of the factory.
    library_options: str | None = None
    #: The library or the owner, if the bare name is not enough: it means another part, several parts, or would hide
    #: the library.
    prefix: str = ""
    #: The owner of the part that it replaces.
    replaces: str | None = None

    @property
    def qualified_name(self) -> str:
        """The shortest unambiguous name: "resnet18" is timm's, "smp/resnet18" is not."""
        return f"{self.prefix}/{self.name}" if self.prefix else self.name

    @property
    def names(self) -> set[str]:
        """Return all names of the entry, such as "resnet18" and "timm/resnet18"."""
        return {self.name, self.qualified_name, f"{self.library or self.owner}/{self.name}"}

    @property
    def signature(self) -> Signature:
        known = read_signature(self.factory)
        if unreadable := known.find_unreadable():
            raise PluginError(f"{unreadable} ({known.file}:{known.line})")
        if self.library_options is None:
            return known
        with wrap_errors(f"{self.library_options}, which gives the options of {self.name}, fails"):
            options = {
                option.name: option for option in (*known.options, *load_target(self.library_options)(self.name))
            }
        return replace(known, options=tuple(options.values()), var_keyword="")

    def load(self) -> Factory:
        """Return the factory, which is imported if it was registered as "module:attr"."""
        found = load_target(self.factory) if isinstance(self.factory, str) else self.factory
        return found if self.library is None else partial(_bind_name, found, self.name)


def _bind_name(factory: Factory, name: str, /, *wiring: Any, **options: Any) -> Any:
    return factory(*wiring, name, **options)


@dataclass(frozen=True)
class Library:
    """A library that supplies names, with one factory for all, which takes the name after its positional parameters."""

    name: str
    names: str  # "module:attr" of a function that lists them without importing torch
    factory: Factory | str
    owner: str
    options: str | None = None  # "module:attr" of a function from a name to its options, without importing torch

    def list_names(self) -> list[str]:
        list_names = load_target(self.names)
        with wrap_errors(f"{self.names}, which lists the names of {self.name}, fails"):
            names: list[str] = list(list_names())
        return names

    def make_entry(self, kind: Kind, name: str, *, taken: bool) -> Entry:
        """Return the entry of a name; `taken` says whether an earlier library or part has the same name."""
        is_bare = not taken and kind.field != "model"  # the library of a whole model is the point of naming it
        return Entry(
            kind,
            name,
            self.factory,
            self.owner,
            library=self.name,
            library_options=self.options,
            prefix="" if is_bare else self.name,
        )


#: The largest number of names that a message lists.
_MOST_NAMES = 12


@dataclass
class Registry:
    """The names of one kind.

    A bare name is looked up among the registered parts and then in each library; "timm/resnet18" selects a library.
    """

    kind: Kind
    owner: str = BUILTIN
    entries: dict[str, Entry] = field(default_factory=dict)
    libraries: dict[str, Library] = field(default_factory=dict)
    #: All plugins that were found, shared by every registry: a name that is missing may belong to one that failed.
    plugins: list[Plugin] = field(default_factory=list)
    #: The plugins whose part a name means that several plugins share; see `Parts.prefer`.
    preferred: frozenset[str] = frozenset()
    #: Whether two plugins may have parts of one name, which are then called "owner/name".
    shares_names = True
    #: The class of its entries.
    entry_type = Entry

    def add(self, name: str, factory: Factory | str, *, replaces: str | None = None) -> None:
        """Register `factory` under `name`.

        Args:
            name: letters, digits, dots, dashes and underscores.
            factory: a callable, or preferably "module:attr", which is imported on first use.
            replaces: the plugin whose part of the same name is replaced.

        If another plugin has a part of this name, both are called by the name with its owner, as in "my-gates/gate".

        Raises:
            PluginError: A built-in part has the name and `replaces` is not "unetkit", or the name is not valid.
        """
        self._add(Entry(self.kind, name, factory, self.owner, replaces=replaces))

    def _add(self, entry: Entry) -> None:
        name, title = entry.name, self.kind.title
        if not name or name[0] == "-" or not all(c.isalnum() or c in "._-" for c in name):
            raise PluginError(
                f"{name!r} is not a name for the {title}: use letters, digits, '.', '_' and (but first) '-'"
            )
        if not (isinstance(entry.factory, str) or callable(entry.factory)):
            raise PluginError(f'{title} {name!r} of {self.owner} is not a class or function, or its "module:attr"')
        same = [taken for taken in self.entries.values() if taken.name == name]
        if any(taken.replaces == self.owner for taken in same):
            return  # the part that it replaces is registered later
        others = [taken for taken in same if taken.owner != entry.replaces]
        for taken in others:
            if not self.shares_names or taken.owner in (BUILTIN, self.owner):
                raise PluginError(
                    f"{title} {name!r} of {self.owner} is already registered by {taken.owner}; UNETKIT_DISABLE="
                    f"{self.owner} leaves this plugin out, and its author can rename the {title}, or use "
                    f"replaces={taken.owner!r} to replace the other one"
                )
        added = replace(entry, prefix=self.owner if others else "")

        def update(known: Entry) -> Entry:
            if known in others:
                return replace(known, prefix=known.owner)
            return added if known in same else known  # in the place of the one that it replaces

        entries = [*map(update, self.entries.values()), added]
        self.entries = {known.qualified_name: known for known in entries}

    def add_library(self, name: str, names: str, factory: Factory | str, *, options: str | None = None) -> None:
        """Register a library of encoders or models, which lists their names itself.

        Args:
            name: the name of the library, for "name/part".
            names: "module:attr" of a function that returns the names of the parts.
            factory: creates each part; it takes the part's name after its positional parameters.
            options: "module:attr" of a function that takes a part's name and returns its options (a list of
                `unetkit.options.Option`), if they differ from part to part.
        """
        if name in self.libraries:
            raise PluginError(f"library {name!r} is already registered by {self.libraries[name].owner}")
        self.libraries[name] = Library(name, names, factory, self.owner, options)

    def get(self, name: str) -> Entry:
        """Return the entry of a name. Raises UnknownNameError with the closest names."""
        if name in self.entries:
            return self.entries[name]
        prefix, _, bare = name.rpartition("/")
        if prefix and bare in self.entries and self.entries[bare].owner == prefix:
            return self.entries[bare]
        if shared := [entry for entry in self.entries.values() if entry.name == name]:
            preferred = [entry for entry in shared if entry.owner in self.preferred]
            if len(preferred) == 1:
                return preferred[0]
            raise UnknownNameError(self._shared_name_message(shared))
        untagged = bare if bare.endswith(".") else bare.split(".")[0]  # a tag names weights, as in "resnet18.a1_in1k"
        taken = bare in self.entries
        for library in self.libraries.values():
            found = untagged in self.library_names(library)
            if found and prefix in ("", library.name):
                return library.make_entry(self.kind, bare, taken=taken)
            taken = taken or found
        raise UnknownNameError(self._unknown_name_message(name))

    def is_loaded(self, owner: str) -> bool:
        """Return whether a plugin of this name is loaded."""
        return any(plugin.loaded and plugin.name == owner for plugin in self.plugins)

    def library_names(self, library: Library) -> list[str]:
        """Return the names of a library. If a plugin's library cannot be listed, report it once and return none."""
        try:
            return library.list_names()
        except UnetkitError as error:
            plugin = next((p for p in self.plugins if p.loaded and p.name == library.owner), None)
            if plugin is None or plugin.name == BUILTIN:
                raise
            if plugin.error != str(error):
                plugin.report_failure(error)
            return []

    def _shared_name_message(self, shared: list[Entry]) -> str:
        owners = " and ".join(entry.owner for entry in shared)
        names = " or ".join(entry.qualified_name for entry in shared)
        return (
            f"a {self.kind.title} called {shared[0].name!r} is registered by the plugins {owners}; write {names}, or "
            f"leave one of the plugins out, as UNETKIT_DISABLE={shared[-1].owner} does"
        )

    def _unknown_name_message(self, name: str) -> str:
        owner, _, bare = name.rpartition("/")
        if owner not in (BUILTIN, *self.libraries) and self.is_loaded(owner):
            own = [entry.name for entry in self.entries.values() if entry.owner == owner]
            has = f"; it has {', '.join(own)}" if 0 < len(own) <= _MOST_NAMES else ""
            return f"plugin {owner} has no {self.kind.title} {bare!r}{did_you_mean(bare, own) or has}"
        loaded = {plugin.name for plugin in self.plugins if plugin.loaded}
        absent = [plugin for plugin in self.plugins if plugin.name not in loaded]
        failed = [plugin.name for plugin in absent if not plugin.disabled]
        disabled = [plugin.name for plugin in absent if plugin.disabled]
        known = self.names()
        near = did_you_mean(bare.split(".")[0], known)
        if not near and len(known) <= _MOST_NAMES:
            near = f"; the {self.kind.attribute} are {', '.join(known)}"
        return (
            f"no {self.kind.title} is called {name!r}{near}"
            + (f"; a plugin that failed may provide it: {', '.join(failed)}" if failed else "")
            + (f"; a plugin that UNETKIT_DISABLE leaves out may provide it: {', '.join(disabled)}" if disabled else "")
            + f"; see `unetkit list {self.kind.attribute}`"
        )

    def names(self) -> list[str]:
        """Return all names, those of unetkit and plugins first, then those of each library."""
        return [entry.qualified_name for entry in self.find()]

    def find(self, pattern: str = "*") -> list[Entry]:
        """Return the entries whose name matches a glob, with or without the name of the library."""
        found, taken = list(self.entries.values()), set(self.entries)
        for library in self.libraries.values():
            names = self.library_names(library)
            found += [library.make_entry(self.kind, name, taken=name in taken) for name in names]
            taken.update(names)
        return [entry for entry in found if any(fnmatchcase(name, pattern) for name in entry.names)]


Better = Literal["less", "more", ""]


@dataclass(frozen=True)
class MetricInfo:
    """The description of a metric in the results of a benchmark, so that reading them needs no plugin.

    Attributes:
        name: the name for `--metrics` and in rows.
        unit: "s", "B" (bytes), "" for a count, or another unit; timed metrics have "s".
        timed: whether rows have samples in `timings` or a number in `values`.
        summary: what is measured and how, in one line.
        owner: the plugin that adds the metric, or "unetkit".
        better: which numbers are better: "less", "more", or "" for neither.
        trained: whether the metric is one of trained networks, of which each row has one for each seed.
    """

    name: str
    unit: str
    timed: bool
    summary: str
    owner: str = BUILTIN
    better: Better = "less"
    trained: bool = False


#: The values that distinguish rows of a benchmark, whose names no metric may have.
_RESERVED_NAMES = {"batch_size", "batch-size", "mode", "id", "line", "error", *(word.name for word in PLAN_FIELDS)}


@dataclass(frozen=True)
class Metric(Entry):
    """A metric of a benchmark: a function from a `unetkit.bench.builtin_metrics.BenchModel` to a number.

    Attributes:
        unit, timed, better, trained: see `MetricInfo`. The function of a timed metric returns the callable that is
            timed; that of a metric of trained networks takes a `unetkit.bench.quality_metrics.ScoredRun`.
        per_class: whether the function also takes the name of a class, which follows the metric's in `--metrics`.
    """

    unit: str = ""
    timed: bool = False
    better: Better = "less"
    trained: bool = False
    per_class: bool = False

    @property
    def measures(self) -> str:
        """The kind of measurement: a cost, a time, or one of a trained network, which needs --data."""
        return "trained network" if self.trained else "time" if self.timed else "cost"

    @property
    def info(self) -> MetricInfo:
        summary = self.signature.summary
        return MetricInfo(self.name, self.unit, self.timed, summary, self.owner, self.better, self.trained)


class MetricRegistry(Registry):
    """The metrics, in the order in which they are measured."""

    shares_names = False  # the results of a benchmark are kept by their names
    entry_type = Metric

    def add(
        self,
        name: str,
        factory: Factory | str,
        *,
        unit: str = "",
        timed: bool = False,
        better: Better = "less",
        trained: bool = False,
        per_class: bool = False,
        replaces: str | None = None,
    ) -> None:
        """Register a metric for `unetkit bench`.

        Args:
            name: letters, digits, dots, dashes and underscores.
            factory: a function that takes a `unetkit.bench.builtin_metrics.BenchModel` (`.model`, `.x`, `.device`,
                `.forward()`) and returns a number or, if `timed`, a callable without arguments that is timed together
                with the baseline's. The first line of its docstring describes the metric. A "module:attr" is
                preferable, since it is imported on first use.
            unit: "B" for bytes, "s" for seconds, "" for a count, or any other unit; a timed metric is in seconds.
            timed: whether the metric is timed.
            better: which numbers are better: "less" for a cost, "more" for a gain, "" for neither.
            trained: whether the metric is one of trained networks: the function then takes a
                `unetkit.bench.quality_metrics.ScoredRun` (`.evaluation`, `.network`, `.val_loss`) for each training.
            per_class: whether the function of a metric of trained networks also takes the name of a class.
            replaces: the plugin whose metric of the same name is replaced.

        Raises:
            PluginError: The name is taken or not valid.
        """
        if name in _RESERVED_NAMES:
            raise PluginError(f"metric {name!r} of {self.owner} has the name of a grid option; rename it")
        self._add(
            Metric(
                self.kind,
                name,
                factory,
                self.owner,
                replaces=replaces,
                unit="s" if timed else unit,
                timed=timed,
                better=better,
                trained=trained,
                per_class=per_class,
            )
        )

    def __iter__(self) -> Iterator[Metric]:
        return (entry for entry in self.entries.values() if isinstance(entry, Metric))


class Parts:
    """All registered names, with a Registry for each kind.

    Attributes:
        encoders, upsamplers, fusions, aligns, blocks, heads, recipes, models: the registries of parts of a network.
        datasets, losses, targets, augmentations, optimizers, metrics: the registries of what runs are made of.
        formats: the registry of formats to which networks are exported.
        plugins: all plugins that were found, including those that failed.
        wrap_model: passes a built model, its resolved plan and the owners of its parts through the plugins that wrap
            models; returns the result and the names of the plugins that wrapped it.
    """

    plugins: list[Plugin]
    wrap_model: Callable[[Any, Any, set[str]], tuple[Any, set[str]]]

    encoders: Registry
    upsamplers: Registry
    fusions: Registry
    aligns: Registry
    blocks: Registry
    heads: Registry
    recipes: Registry
    models: Registry
    datasets: Registry
    losses: Registry
    targets: Registry
    augmentations: Registry
    optimizers: Registry
    metrics: MetricRegistry
    formats: Registry

    def __init__(self) -> None:
        self.wrap_model = lambda model, plan, owners: (model, set())
        self.plugins = []
        for kind in KINDS:
            registry = MetricRegistry if kind is METRIC_KIND else Registry
            setattr(self, kind.attribute, registry(kind, plugins=self.plugins))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raises AttributeError with the nearest kind: `parts.fusion` is `parts.fusions`."""
            known = [kind.attribute for kind in KINDS]
            raise AttributeError(f"parts have no {name!r}{did_you_mean(name, known)}; they have {', '.join(known)}")

    def __iter__(self) -> Iterator[Registry]:
        return (getattr(self, kind.attribute) for kind in KINDS)

    def __getitem__(self, word: str) -> Registry:
        """Return the registry of a kind; see `find_kind`."""
        registry: Registry = getattr(self, find_kind(word).attribute)
        return registry

    def entries_of(self, owner: str) -> list[Entry]:
        """Return what a plugin registered, by kind, without the names of libraries."""
        return [entry for registry in self for entry in registry.entries.values() if entry.owner == owner]

    def stage(self, owner: str) -> Parts:
        """Return a copy in which `owner` may register; it takes effect with `commit`."""
        copy = Parts()
        for mine, theirs in zip(copy, self, strict=True):
            mine.owner, mine.plugins = owner, theirs.plugins
            mine.entries, mine.libraries = dict(theirs.entries), dict(theirs.libraries)
        return copy

    def prefer(self, owners: Iterable[str]) -> Parts:
        """Return a view in which a name that several plugins share means the part of one of these plugins."""
        view = Parts()
        view.plugins, view.wrap_model, preferred = self.plugins, self.wrap_model, frozenset(owners)
        for kind in KINDS:
            setattr(view, kind.attribute, replace(self[kind.field], preferred=preferred))
        return view

    def check(self) -> None:
        """Raise PluginError if something else than an entry was put into a registry."""
        for registry in self:
            for name, entry in registry.entries.items():
                if not isinstance(entry, registry.entry_type):
                    raise PluginError(
                        f"parts.{registry.kind.attribute} contains {entry!r:.80} as {name!r}; "
                        f"register it with parts.{registry.kind.attribute}.add(name, factory)"
                    )

    def commit(self, staged: Parts) -> None:
        """Take over what was registered in a staged copy."""
        for mine, theirs in zip(self, staged, strict=True):
            mine.entries, mine.libraries = theirs.entries, theirs.libraries
