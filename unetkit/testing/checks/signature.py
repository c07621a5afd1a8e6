"""Checks of the signature of a factory, its options and their help."""

from __future__ import annotations

import inspect
from inspect import Parameter

from torch import nn

from unetkit.errors import OptionError, UnetkitError
from unetkit.options import (
    Option,
    Signature,
    describe_type,
    format_value,
    has_text,
    parse_value,
    read_signature,
)
from unetkit.resolve import parse_options
from unetkit.testing.catalog import MODULE_KINDS, Nonconformity, one_line
from unetkit.testing.subject import PartSubject

#: The name of an option that no part has.
_UNKNOWN_OPTION = "no_such_option"


def _get_parameters(subject: PartSubject) -> list[Parameter]:
    if getattr(subject.registered_factory, "__init__", None) is nn.Module.__init__:
        return []  # it is declared with *args and **kwargs, but accepts neither
    try:
        return list(inspect.signature(subject.registered_factory).parameters.values())
    except (TypeError, ValueError):
        raise Nonconformity(f"{subject.registered_factory!r} has no signature to read; wrap it in a function") from None


def check_positional(subject: PartSubject) -> None:
    """Check that positional parameters are those that the builder supplies, and that all others are keyword-only."""
    parameters = _get_parameters(subject)
    is_from_library = subject.entry is not None and subject.entry.library is not None
    for parameter in parameters:
        if parameter.kind is Parameter.VAR_KEYWORD and not is_from_library:  # a library checks its own options
            raise Nonconformity(
                f"accepts **{parameter.name}, so unknown options would be accepted silently; declare each option"
            )
        if parameter.kind is Parameter.VAR_POSITIONAL:
            raise Nonconformity(f"accepts *{parameter.name}; declare one named parameter for each positional argument")
    positional = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    expected = [*subject.contract.arg_names, *(["name"] if is_from_library else [])]
    if len(positional) > len(expected):
        extra = positional[len(expected)]
        raise Nonconformity(
            f"{extra!r} is positional, but not supplied by the builder; write it after a * to make it an option"
        )
    if len(positional) < len(expected) - subject.contract.num_optional_args:
        raise Nonconformity(f"accepts ({', '.join(positional)}); the builder supplies ({', '.join(expected)})")
    set_options = dict(subject.spec.options)
    required = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty]
    if subject.contract.needs_defaults and (missing := [name for name in required if name not in set_options]):
        raise Nonconformity(f"option {missing[0]!r} has no default; add one, so that the name alone creates the part")


def check_option_types(subject: PartSubject) -> None:
    """Check that every option has a type that can be read from text, and that its default can be written and read."""
    known = read_signature(subject.registered_factory)
    if unreadable := known.find_unreadable():
        raise Nonconformity(unreadable)
    for option in known.options:
        _check_default(option)
    _check_source_signature(subject, known)


def _check_default(option: Option) -> None:
    if option.required:
        return
    prefix = f"the default {option.default!r} of option {option.name!r} is not {describe_type(option.type)}"
    if not has_text(option.default):
        raise Nonconformity(prefix)
    text = format_value(option.default, option.type)
    try:
        parsed = parse_value(text, option.type)
    except ValueError:
        raise Nonconformity(f"{prefix}: `{text}` cannot be parsed back") from None
    if not option.is_default(parsed):
        raise Nonconformity(f"{prefix}: `{text}` is parsed as {parsed!r}")


def _check_source_signature(subject: PartSubject, imported: Signature) -> None:
    """Check that the signature from source text equals that of the imported factory."""
    if subject.entry is None or not isinstance(subject.entry.factory, str):
        return
    from_source = read_signature(subject.entry.factory)
    if from_source.options != imported.options or from_source.summary != imported.summary:
        names = [o.name for o in from_source.options], [o.name for o in imported.options]
        raise Nonconformity(
            f"the source code declares the options ({', '.join(names[0])}), "
            f"the imported factory ({', '.join(names[1])}), or their "
            "types, defaults or help differ; register the class or function that has this name in the source code"
        )


def check_documentation(subject: PartSubject) -> None:
    """Check for a summary, and for help of every option."""
    if not subject.signature.summary:
        raise Nonconformity("has no docstring; `unetkit list` shows its first line")
    if missing := [option.name for option in subject.signature.options if not option.help]:
        line = f"{missing[0]}: what it does"
        raise Nonconformity(f"option {missing[0]!r} has no help; add a line `{line}` under Args: in the docstring")


def check_unknown_option(subject: PartSubject) -> None:
    """Check that an unknown option is rejected by the factory and by the command line."""
    is_module = subject.kind.title in MODULE_KINDS
    cases = subject.positional_cases if is_module else subject.contract.positional_cases
    try:
        subject.factory(*(cases[0] if cases else ()), **{**subject.options, _UNKNOWN_OPTION: 1})
    except (TypeError, UnetkitError):
        pass
    except Exception as error:
        raise Nonconformity(
            f"an unknown option raises {one_line(error)}; declare no **kwargs, so that Python raises a TypeError"
        ) from error
    else:
        raise Nonconformity(f"accepts an unknown option ({_UNKNOWN_OPTION}=1) silently")
    if subject.signature.var_keyword:
        return  # the factory itself checks the options
    try:
        parse_options(subject.kind.field, subject.spec.with_options({_UNKNOWN_OPTION: "1"}), subject.signature)
    except OptionError:
        return
    raise Nonconformity(f"its signature has {_UNKNOWN_OPTION}")  # pragma: no cover
