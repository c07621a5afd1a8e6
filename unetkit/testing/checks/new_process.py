"""The check of a plugin's parts in a new process, which has not imported the plugin yet."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from unetkit.builder import PartBuilder
from unetkit.errors import UnetkitError
from unetkit.plugins import load_manager
from unetkit.registry import Parts
from unetkit.testing.catalog import MODULE_KINDS, Nonconformity, SkipCheck, one_line
from unetkit.testing.checks.plugin import PluginSubject
from unetkit.testing.contracts import Outputs, PartInput, PositionalArgs
from unetkit.testing.subject import PartSubject, relative_difference
from unetkit.utils.processes import Emit, run_tasks
from unetkit.utils.rounding import float32_tolerance

#: Seconds that the new process may take.
_TIMEOUT = 600.0


class _Case(NamedTuple):
    """A part as it was created and run in the process that checks it."""

    kind: str
    name: str
    args: PositionalArgs
    part_input: PartInput
    outputs: Outputs
    pickled: bytes


def check_new_process(subject: PluginSubject) -> None:
    """Check that parts give the same outputs in a new process: created after a build on the meta device, and unpickled.

    A constant that a module creates when it is imported, or a function at its first call, must have values for ever.
    """
    cases = list(_create_cases(subject))
    if not cases:
        raise SkipCheck("it adds no part that can be created")
    [result] = run_tasks(
        [(subject.target, pickle.dumps(cases))],
        f"{__name__}:report_errors",
        [None],
        timeout=_TIMEOUT,
        preload=[__name__],
        needs_script=False,
    )
    if result.error and result.seconds >= _TIMEOUT:
        raise Nonconformity(
            f"it took longer than {_TIMEOUT:g} s to create its parts and to run them in a new process; make them faster"
        )
    if result.error:
        raise Nonconformity(f"its parts cannot be created in a new process: {result.error}")
    if errors := result.facts["errors"]:
        raise Nonconformity("; ".join(errors))


def _create_cases(subject: PluginSubject) -> Iterator[_Case]:
    for entry in subject.manager.parts.entries_of(subject.plugin.name):
        if entry.kind.title not in MODULE_KINDS:
            continue
        part_subject = PartSubject(entry.kind.field, entry.qualified_name, subject.manager.parts)
        outputs = None
        with suppress(Exception, SystemExit):  # the checks of the part say why
            args = part_subject.positional_cases[0]
            part_input = part_subject.inputs[args][0]
            part = part_subject.make(args).eval()
            outputs = part_subject.run(part, part_input)
        if outputs is None:
            continue
        try:
            pickled = pickle.dumps(part)
        except Exception as error:
            raise Nonconformity(
                f"{entry.kind.title} {entry.name}: it cannot be pickled ({one_line(error)}), as torch.save and new "
                "processes do; define its classes and functions at the top level of a module"
            ) from error
        yield _Case(entry.kind.field, entry.qualified_name, args, part_input, outputs, pickled)


def report_errors(task: tuple[str, bytes], _slot: None, emit: Emit) -> None:
    """Report what is wrong with pickled cases; this runs in the new process."""
    target, pickled = task
    parts = load_manager([target] if target else [], isolated=True).parts
    cases: list[_Case] = pickle.loads(pickled)  # noqa: S301  this kit made it
    # All before anything else, so that what is created at a first call is created on the meta device, if it can be.
    for case in cases:
        with suppress(UnetkitError), torch.device("meta"):
            subject = PartSubject(case.kind, case.name, parts)
            PartBuilder(parts)(case.kind, subject.spec, case.args)
    emit({"errors": [error for case in cases if (error := _find_error(case, parts))]})


def _find_error(case: _Case, parts: Parts) -> str:
    subject = PartSubject(case.kind, case.name, parts)
    ways: list[tuple[str, Any]] = [
        ("created after a build on the meta device", lambda: subject.make(case.args).eval()),
        ("unpickled in another process", lambda: pickle.loads(case.pickled)),  # noqa: S301
    ]
    for how, create in ways:
        title = f"{subject.kind.title} {case.name}: {how}, it"
        try:
            part = create()
            difference = relative_difference(subject.run(part, case.part_input), case.outputs)
        except Exception as error:
            return f"{title} fails with {one_line(error)}"
        if difference > 8 * float32_tolerance(part):
            return f"{title} returns other outputs, which differ by up to {difference:.2g}"
    return ""
