"""Checks of the signature of a factory, its options and their help."""

from __future__ import annotations

import inspect
import types
from inspect import Parameter
from typing import Any, Literal, Union, get_args, get_origin

from torch import nn

from unetkit.errors import OptionError, UnetkitError
from unetkit.options import Option, Signature, format_value, parse_value, read_signature
from unetkit.resolve import parse_options
from unetkit.testing.catalog import Nonconformity, one_line
from unetkit.testing.subject import PartSubject

_READABLE = (int, float, str, bool, None, type(None))
#: An option that no part has.
_UNHEARD = "unheard_of"


def _parameters(subject: PartSubject) -> list[Parameter]:
    if getattr(subject.written, "__init__", None) is nn.Module.__init__:
        return []  # it is written with *args and **kwargs, and refuses both
    try:
        return list(inspect.signature(subject.written).parameters.values())
    except (TypeError, ValueError):
        raise Nonconformity(f"{subject.written!r} has no signature to read; wrap it in a function") from None


def wiring(subject: PartSubject) -> None:
    """Check that positional parameters are those that the builder supplies, and that all others are keyword-only."""
    parameters = _parameters(subject)
    of_source = subject.entry is not None and subject.entry.library is not None
    for parameter in parameters:
        if parameter.kind is Parameter.VAR_KEYWORD and not of_source:  # a library's own; an unknown one it refuses
            raise Nonconformity(f"takes **{parameter.name}, so an option that there is not would be taken in silence")
        if parameter.kind is Parameter.VAR_POSITIONAL:
            raise Nonconformity(f"takes *{parameter.name}; name the wiring, one parameter each")
    has = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    wanted = [*subject.contract.names, *(["name"] if of_source else [])]
    if len(has) > len(wanted):
        extra = has[len(wanted)]
        raise Nonconformity(f"{extra!r} is positional, but no wiring; write it after a *, so that it is an option")
    if len(has) < len(wanted):
        raise Nonconformity(f"takes ({', '.join(has)}); the builder gives ({', '.join(wanted)})")
    given = dict(subject.spec.options)
    required = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.default is Parameter.empty]
    if bare := [name for name in required if name not in given]:
        raise Nonconformity(f"option {bare[0]!r} has no default, so its name alone does not make the part; give it one")


def types_(subject: PartSubject) -> None:
    """Check that every option has a type that can be written as text, and that its default can be written and read."""
    known = read_signature(subject.written)
    for parameter in _parameters(subject):
        if parameter.kind is Parameter.KEYWORD_ONLY:
            option = next(o for o in known.options if o.name == parameter.name)
            _readable(option, parameter.annotation)
    _one_source(subject, known)


def _readable(option: Option, annotation: Any) -> None:
    if annotation is Parameter.empty:
        raise Nonconformity(f"option {option.name!r} has no annotation; without one it is read as text")
    if not _is_readable(option.type) or (option.type is str and annotation not in (str, "str")):
        raise Nonconformity(
            f"option {option.name!r} is annotated {_written(annotation)}, which the grammar cannot read; "
            "it reads int, float, str, bool, None, tuple, Literal and unions of these"
        )
    if option.required:
        return
    text = format_value(option.default, option.type)
    try:
        back = parse_value(text, option.type)
    except ValueError:
        back = inspect.Parameter.empty
    if back != option.default:
        what = f"the default {option.default!r} of option {option.name!r}"
        raise Nonconformity(f"{what} is no {_written(annotation)}: it would be written {text}, and not read back")


def _is_readable(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return True
    if get_origin(kind) in (Union, types.UnionType, tuple):
        return all(_is_readable(member) for member in get_args(kind) if member is not Ellipsis)
    return any(kind is known for known in _READABLE)


def _written(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _one_source(subject: PartSubject, imported: Signature) -> None:
    """Check that the signature from source text equals that of the imported factory."""
    if subject.entry is None or not isinstance(subject.entry.factory, str):
        return
    read = read_signature(subject.entry.factory)
    if read.options != imported.options or read.summary != imported.summary:
        names = [o.name for o in read.options], [o.name for o in imported.options]
        raise Nonconformity(
            f"its source says options ({', '.join(names[0])}), and imported it has ({', '.join(names[1])}), or their "
            "types, defaults or help differ; let the class or function of that name be what is registered"
        )


def documented(subject: PartSubject) -> None:
    """Check for a summary, and for help of every option."""
    if not subject.signature.summary:
        raise Nonconformity("has no docstring; its first line is what `unetkit list` shows")
    if bare := [option.name for option in subject.signature.options if not option.help]:
        line = f"{bare[0]}: what it does"
        raise Nonconformity(f"option {bare[0]!r} has no help; write a line `{line}` under Args: in the docstring")


def unknown(subject: PartSubject) -> None:
    """Check that an unknown option is rejected by the factory and by the command line."""
    wirings = subject.contract.wirings if subject.kind.title == "recipe" else subject.wirings
    try:
        subject.factory(*(wirings[0] if wirings else ()), **{**subject.options, _UNHEARD: 1})
    except (TypeError, UnetkitError):
        pass
    except Exception as error:
        raise Nonconformity(
            f"an unknown option ends in {one_line(error)}; let Python raise its TypeError by taking no **kwargs"
        ) from error
    else:
        raise Nonconformity(f"takes an option that it has not ({_UNHEARD}=1) in silence")
    if subject.signature.var_keyword:
        return  # the grammar leaves it to the factory
    try:
        parse_options(subject.kind.field, subject.spec.with_options({_UNHEARD: "1"}), subject.signature)
    except OptionError:
        return
    raise Nonconformity(f"its signature has {_UNHEARD}")  # pragma: no cover
