"""What a distribution's name makes, and whether it may: my-gate is the part my-gate, in my_gate, by MyGate."""

from __future__ import annotations

import builtins
import keyword
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from unetkit.bench.metrics import metrics_of
from unetkit.commands import COMMANDS, plugin_commands
from unetkit.errors import BadOption, PluginError, UnknownName
from unetkit.plugins import default_host, default_parts

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SEPARATOR = re.compile(r"[-_.]+")

#: What stands beside the package in its distribution.
_FOLDERS = ("tests", "dist")


@dataclass(frozen=True)
class Names:
    """The names of a new plugin.

    Attributes:
        name: of the distribution.
        part: the name without "unetkit-", of the part and of the plugin.
        package: to import.
        function, cls: of the part, whichever it is made by.
    """

    name: str
    part: str
    package: str
    function: str
    cls: str

    @classmethod
    def of(cls, name: str) -> Names:
        """The names that a distribution's name makes. Raises BadOption where it is no such name."""
        if not _NAME.fullmatch(name):
            rule = "take letters and digits, with '-', '_' or '.' between them"
            raise BadOption(f"{name!r} is not a name for a distribution: {rule}, such as my-gate")
        if name.lower().endswith(".py"):
            raise BadOption(f"{name!r} is a file's name, and this makes a folder; leave out .py")
        part = re.sub(r"^unetkit[-_.]+", "", name, flags=re.IGNORECASE)
        words = _SEPARATOR.split(part)
        return cls(
            name,
            part.lower(),
            _SEPARATOR.sub("_", name).lower(),
            "_".join(words).lower(),
            "".join(word[0].upper() + word[1:] for word in words),
        )

    def check(self, symbol: str) -> None:
        """Refuse a package, or a class or function, that Python cannot call so or something else is called."""
        for identifier in (self.package, symbol):
            if not identifier.isidentifier() or keyword.iskeyword(identifier):
                self.refuse(f"would make {identifier!r}, which cannot be a name in Python")
            if hasattr(builtins, identifier):
                self.refuse(f"would make {identifier!r}, which is built into Python")
        if self.package in _FOLDERS or _importable(self.package):
            self.refuse(f"would make the package {self.package!r}, and there is one")

    def check_free(self, made: str) -> None:
        """Refuse a name that another of its kind has."""
        if made == "command":
            self.check_command()
        elif made == "metric":
            self.check_metrics()
        else:
            self.check_part("head" if made == "wrap" else made)

    def check_part(self, kind: str) -> None:
        """Refuse the name of a part that there is."""
        registry = default_parts()[kind]
        try:
            entry = registry.get(self.part)
        except UnknownName:
            return
        self.refuse(f"would make the {registry.kind.title} {self.part!r}, and {entry.source or entry.owner} has one")

    def check_command(self) -> None:
        """Refuse the name of a command that there is."""
        if self.part in COMMANDS or self.part in plugin_commands(default_host()):
            self.refuse(f"would make the command {self.part!r}, and there is one")

    def check_metrics(self) -> None:
        """Refuse the names of metrics that there are, or of what a grid chooses."""
        metrics = metrics_of(default_host())
        for name in (self.part, f"{self.part}-time"):
            try:
                metrics.add(name, "")
            except PluginError:
                self.refuse(f"would make the metric {name!r}, and that name is taken")

    def refuse(self, why: str) -> None:
        """Raise BadOption with what to do instead."""
        raise BadOption(f"{self.name!r} {why}; choose another name, such as my-{self.part}")


def _importable(package: str) -> bool:
    if package in sys.stdlib_module_names or package in sys.modules:
        return True
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder that happens to be there has none
