"""Run the checks of a part, or of a plugin and all its parts."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from unetkit.errors import OptionError, UnetkitError, UnknownNameError
from unetkit.options import load_target
from unetkit.plan import PartSpec
from unetkit.plugins import PluginManager, default_parts, load_manager
from unetkit.registry import Parts, Plugin
from unetkit.resolve import parse_options
from unetkit.testing.catalog import (
    CHECKS,
    DEPENDS_ON,
    MODULE_KINDS,
    Check,
    CheckResult,
    Nonconformity,
    SkipCheck,
    one_line,
)
from unetkit.testing.source import iterate_causes
from unetkit.utils.formatting import format_place
from unetkit.utils.isolation import INTERRUPTS

_BY_NAME = {check.name: check for check in CHECKS}


@dataclass
class _CheckSession:
    """The subject of checks, which is created when the first check needs it, and the results so far."""

    title: str
    kind: str
    create_subject: Callable[[], Any]
    results: dict[str, CheckResult] = field(default_factory=dict)

    @cached_property
    def subject(self) -> Any:
        return self.create_subject()

    def list_checks(self) -> list[Check]:
        return [check for check in CHECKS if self.kind in check.kinds]

    def get_result(self, name: str) -> CheckResult:
        if name not in self.results:
            self.results[name] = self._run_check(_BY_NAME[name])
        return self.results[name]

    def _run_check(self, check: Check) -> CheckResult:
        for need in check.needs:
            if self.kind in _BY_NAME[need].kinds and self.get_result(need).outcome != "passed":
                return CheckResult(self.title, check.name, "skipped", f"{DEPENDS_ON}{need}, which did not pass")
        try:
            self._call_check(load_target(f"unetkit.testing.checks.{check.function}"))
        except SkipCheck as reason:
            return CheckResult(self.title, check.name, "skipped", str(reason))
        except BaseException as error:  # a part may call sys.exit
            for cause in iterate_causes(error):
                if isinstance(cause, INTERRUPTS):
                    raise cause from None
            return self._describe_failure(check, error)
        return CheckResult(self.title, check.name, "passed")

    def _describe_failure(self, check: Check, error: BaseException) -> CheckResult:
        is_ours = isinstance(error, UnetkitError | Nonconformity)
        message = " ".join(str(error).split()) if is_ours else one_line(error)
        frames, place = self.subject.source.select_frames(error), self.subject.place
        shown = ""
        if frames:
            cause = [*iterate_causes(error)][-1]
            shown = "".join([*traceback.format_list(frames), *traceback.format_exception_only(cause)])
            place = format_place(frames[-1].filename, frames[-1].lineno or 0)
        return CheckResult(self.title, check.name, "failed", message, place, shown)

    def _call_check(self, check: Callable[[Any], None]) -> None:
        if self.kind == "plugin":
            check(self.subject)
            return
        import torch

        from unetkit.testing.process_state import preserve_process_state

        with torch.inference_mode(False), torch.enable_grad(), preserve_process_state():
            check(self.subject)


@dataclass(frozen=True)
class PendingCheck:
    """A check that has not run yet. Calling `run` executes it, and those that it depends on.

    Attributes:
        part: see CheckResult.
        check: the name of the check.
        title: what it checks.
        run: runs it once.
    """

    part: str
    check: str
    title: str
    run: Callable[[], CheckResult]


def _create_checks(session: _CheckSession) -> list[PendingCheck]:
    return [
        PendingCheck(session.title, check.name, check.title, partial(session.get_result, check.name))
        for check in session.list_checks()
    ]


def collect_part_checks(kind: str, part: Any, *, parts: Parts | None = None) -> list[PendingCheck]:
    """Return the checks of one part without running them, so that progress can be shown. See `check_part`."""
    parts = default_parts() if parts is None else parts
    title, spec = parts[kind].kind.title, PartSpec.of(part)
    if spec.chained:
        raise OptionError(f"{spec}: chained blocks are checked one at a time")
    if spec.factory is None and spec.options:
        parse_options(parts[kind].kind.field, spec, parts[kind].get(spec.name).signature)
    elif spec.factory is None:
        parts[kind].get(spec.name)

    def create_subject() -> Any:
        from unetkit.testing.subject import PartSubject

        return PartSubject(kind, spec, parts)

    name = spec.name.rpartition(".")[2] if spec.factory is not None else str(spec)
    return _create_checks(_CheckSession(f"{title} {name}", title, create_subject))


def collect_plugin_checks(target: str | Path | ModuleType) -> list[PendingCheck]:
    """Return the checks of a plugin and all its parts without running them. See `check_plugin`."""
    is_builtin = target == "unetkit"
    with redirect_stderr(StringIO()):  # problems are reported by the checks
        manager = load_manager([] if is_builtin else [target], isolated=True)
    if manager.plugins[-1].not_found:
        raise UnknownNameError(manager.plugins[-1].error)
    plugins = manager.plugins if is_builtin else manager.plugins[1:]  # a distribution may have several
    target_name = "" if is_builtin else target.__name__ if isinstance(target, ModuleType) else str(target)
    pending_checks: list[PendingCheck] = []
    for plugin in plugins:
        title = "plugin" if len(plugins) == 1 else f"plugin {plugin.name}"
        checks = _create_checks(
            _CheckSession(title, "plugin", partial(_create_plugin_subject, manager, plugin, target_name))
        )
        pending_checks += [pending for pending in checks if pending.check in _applicable_plugin_checks(manager, plugin)]
    for plugin in plugins:
        for entry in manager.parts.entries_of(plugin.name) if plugin.loaded else ():
            pending_checks += collect_part_checks(entry.kind.field, entry.qualified_name, parts=manager.parts)
    return pending_checks


def _create_plugin_subject(manager: PluginManager, plugin: Plugin, target: str) -> Any:
    from unetkit.testing.checks.plugin import PluginSubject

    return PluginSubject(manager, plugin, target)


def _applicable_plugin_checks(manager: PluginManager, plugin: Plugin) -> set[str]:
    """Return the checks of a plugin itself that apply to it."""
    libraries = [library.owner for registry in manager.parts for library in registry.libraries.values()]
    adds = {
        "new process": any(e.kind.title in MODULE_KINDS for e in manager.parts.entries_of(plugin.name)),
        "libraries": plugin.name in libraries,
        "commands": manager.implements("unetkit_register_commands", plugin),
        "wrapping": manager.implements("unetkit_wrap_model", plugin),
    }
    return {"loading", "imports"} | {name for name, has in adds.items() if has}


def check_part(kind: str, part: Any, *, parts: Parts | None = None) -> list[CheckResult]:
    """Check one part against the contract of its kind.

    Args:
        kind: the title of a kind, such as "fusion" or "loss".
        part: a name with options, a PartSpec, or a class or callable, which needs no plugin.
        parts: the registered parts; None for all that are installed.

    Returns:
        A CheckResult for each check, in order.

    Raises:
        UnknownNameError: The part does not exist.
    """
    return [pending.run() for pending in collect_part_checks(kind, part, parts=parts)]


def assert_conforms(kind: str, part: Any, *, parts: Parts | None = None) -> None:
    """Raise an AssertionError that lists every failure of `check_part`, one in a line."""
    failed = [result for result in check_part(kind, part, parts=parts) if result.outcome == "failed"]
    if failed:
        raise Nonconformity("\n".join(f"{result.part}: {result.check}: {result.full_message}" for result in failed))


def check_plugin(target: str | Path | ModuleType) -> list[CheckResult]:
    """Check a plugin and every part that it registers by name.

    For a library (`add_library`) only the list of names is checked; use `check_part` for some of its parts.

    Args:
        target: the name of an installed plugin, a module or its name, or a Python file; "unetkit" for the built-in
            parts.

    Returns:
        A CheckResult for each check, with those of the plugin itself first. A plugin that does not load has a failed
        one.

    Raises:
        UnknownNameError: The plugin, module or file does not exist.
        PluginError: The plugin does not load, and UNETKIT_STRICT is 1.
    """
    return list(_run_each(target))


def _run_each(target: str | Path | ModuleType) -> Iterator[CheckResult]:
    for pending in collect_plugin_checks(target):
        yield pending.run()
