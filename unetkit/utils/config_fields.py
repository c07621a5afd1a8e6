"""Fields of configurations, such as `TrainConfig`, that are also options of a command.

Name, type, default, range and help of an option are declared once, in the field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

from unetkit.errors import OptionError, did_you_mean

C = TypeVar("C")


@dataclass(frozen=True)
class ConfigField:
    """A field of a configuration.

    Attributes:
        name: its Python name, such as `batch_size`.
        type: int, float, bool, or str for everything that `parse` reads from text.
        metavar: the placeholder of its value in the help of the command.
        help: what it sets, and its default.
        parse: makes the value of the field from that of the option.
        choices: the only values; empty where there are others.
    """

    name: str
    type: type
    metavar: str
    help: str
    parse: Callable[[Any], Any]
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return flag_of(self.name)


def flag_of(name: str) -> str:
    """Return the option of a field: "--batch-size" for "batch_size"."""
    return "--" + name.replace("_", "-")


def config_field(
    default: Any,
    help: str,  # noqa: A002  as in click
    *,
    metavar: str = "",
    default_text: str = "",
    least: int | None = None,
    choices: tuple[str, ...] = (),
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a field of a configuration.

    Args:
        default: its default.
        help: a sentence that says what it sets.
        metavar: the placeholder of its value in the help of a command.
        default_text: what the default means, for a default such as None.
        least: the smallest value that `check_fields` accepts.
        choices: the only values that `check_fields` accepts besides the default; they are the metavar, too.
        parse: reads the value from text; None leaves it to its type.
    """
    shown = {"help": help, "metavar": metavar or "|".join(choices), "default_text": default_text}
    return field(default=default, metadata={**shown, "least": least, "choices": choices, "parse": parse})


def reuse_field(config: type, name: str, **changes: Any) -> Any:
    """Declare a field of a configuration that another one has, too, with the same meaning.

    Args:
        config: the other configuration.
        name: name of the field, in both.
        changes: arguments of `config_field` that differ; `default` among them.
    """
    [theirs] = [one for one in fields(config) if one.name == name]
    arguments = {"default": theirs.default, **theirs.metadata, **changes}
    return config_field(arguments.pop("default"), arguments.pop("help"), **arguments)


def list_config_fields(config: type) -> list[ConfigField]:
    """List the fields of a configuration that `config_field` declares."""
    hints = get_type_hints(config)
    return [_describe_field(one, hints[one.name]) for one in fields(config) if "help" in one.metadata]


def _describe_field(one: Any, annotation: Any) -> ConfigField:
    default, about = one.default, one.metadata
    kind = next((kind for kind in (annotation, *get_args(annotation)) if kind in (bool, int, float)), str)
    text = f"{default:g}" if kind is float and default is not None else str(default)
    shown = about["default_text"] or ("" if default is None or default is False or default == "" else text)
    return ConfigField(
        one.name,
        str if about["parse"] else kind,
        about["metavar"],
        about["help"] + (f"  [default: {shown}]" if shown else ""),
        about["parse"] or (lambda value: value),
        about["choices"],
    )


def make_config(config: type[C], values: dict[str, Any], function: str) -> C:
    """Create a configuration from the keyword arguments of a function.

    Args:
        config: the class of the configuration.
        values: the arguments, as `parse_values` takes them.
        function: the name of the function, for messages.

    Raises:
        OptionError: An argument does not exist, or its value is not allowed.
    """
    return config(**parse_values(config, values, function))


def parse_values(config: type, values: dict[str, Any], function: str) -> dict[str, Any]:
    """Read the values of fields that were given as keyword arguments; text is read as the command line reads it.

    Args:
        config: the class of the configuration.
        values: the arguments.
        function: the name of the function, for messages.

    Raises:
        OptionError: An argument does not exist, or its value is of another type.
    """
    known = {one.name: one for one in list_config_fields(config)}
    names = [one.name for one in fields(config)]
    for name in values:
        if name not in names:
            raise OptionError(f"{function}: there is no argument {name!r}{did_you_mean(name, names)}")
    parsed = dict(values)
    for name, value in values.items():
        if name in known and value is not None:
            try:
                parsed[name] = known[name].parse(_convert(value, known[name].type))
            except OptionError as error:
                raise OptionError(f"{function}: {name}={value!r}: {error}") from None
    return parsed


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "True or False"}


def _convert(value: Any, kind: type) -> Any:
    """Convert a value to the type of a field, from text too. Raises OptionError."""
    if kind not in _TYPE_NAMES:
        return value
    is_bool = isinstance(value, bool)
    try:
        if is_bool == (kind is bool) and (is_bool or isinstance(value, str) or value != value or value == kind(value)):
            return kind(value)  # NaN is not equal to itself, and is left to the range of the field
    except (TypeError, ValueError, OverflowError):
        pass
    raise OptionError(f"must be {_TYPE_NAMES[kind]}")


def format_option(name: str, value: Any) -> str:
    """Return the option that sets a field to a value, such as "--lr 0.1"; "" for the value of an option not given."""
    if value is None or value is False or value == "":
        return ""
    if isinstance(value, tuple):
        value = "x".join(map(str, value))
    return flag_of(name) if value is True else f"{flag_of(name)} {value}"


def check_fields(config: Any) -> None:
    """Raise OptionError if a field of a configuration is below its smallest value, or is none of its choices."""
    for one in fields(config):
        value, least, choices = getattr(config, one.name), one.metadata.get("least"), one.metadata.get("choices")
        if value is not None and least is not None and value < least:
            raise OptionError(f"{flag_of(one.name)} {value}: must be at least {least}")
        if choices and value != one.default and value not in choices:
            known = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise OptionError(f"{flag_of(one.name)} {value}: must be {known}{did_you_mean(str(value), choices)}")
