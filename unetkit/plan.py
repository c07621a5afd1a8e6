"""The description of a model as an object, to and from text: `--encoder resnet101 --fuse add`.

A Plan contains what was given, and None for everything else; the builder adds recipes and defaults. This module handles
text and numbers only and does not import torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from unetkit.errors import OptionError, UnknownNameError, did_you_mean
from unetkit.options import PythonValue, format_value, has_text, has_unquoted, split_unquoted
from unetkit.utils.formatting import Size
from unetkit.utils.parsing import parse_int, parse_size


@dataclass(frozen=True)
class PartSpec:
    """A part: a name with options, such as `transposed:kernel=4`, or a Python factory that is not registered.

    Options are stored as text, so that specs can be compared and printed without knowing their types. Those of a Python
    factory, and values that have no text, are stored as a PythonValue. A chain of blocks such as `double+scse`, which
    is also `PartSpec.of("double") + "scse"`, has the second block in `chained`.
    """

    name: str
    options: tuple[tuple[str, str | PythonValue], ...] = ()
    factory: Callable[..., Any] | None = None
    chained: tuple[PartSpec, ...] = ()

    @classmethod
    def of(cls, part: Any, options: Mapping[str, Any] | None = None) -> PartSpec:
        """Create a spec from a spec, from text, or from a class or callable.

        Args:
            part: the part.
            options: the values of options in Python. A class or callable receives the same objects; a part that has a
                name receives what their text says, or the object if it has no text.
        """
        if isinstance(part, str):
            spec = cls.parse(part)
        elif isinstance(part, cls):
            spec = part
        elif callable(getattr(part, "state_dict", None)) and not isinstance(part, type):
            what = f"an instance of {type(part).__name__} is not a part"
            raise OptionError(f"{what}: give its class, or a callable with the signature of the kind that makes it")
        elif callable(part):
            spec = cls(getattr(part, "__qualname__", type(part).__qualname__), factory=part)
        else:
            raise OptionError(f"{part!r} is not a part: give a name, a PartSpec, a class or a callable")
        is_object = spec.factory is not None
        return spec.with_options(
            {
                key: PythonValue(value) if is_object or not has_text(value) else format_value(value)
                for key, value in (options or {}).items()
            }
        )

    @classmethod
    def parse(cls, text: str) -> PartSpec:
        """Parse `name:key=value,key=[1,2]`, or several of these joined by +. Raises OptionError for other text."""
        try:
            first, *rest = split_unquoted(text, "+")
        except ValueError as error:
            raise OptionError(f"{text!r}: {error}") from error
        return replace(cls._parse_link(first), chained=tuple(map(cls._parse_link, rest)))

    @classmethod
    def _parse_link(cls, text: str) -> PartSpec:
        name, colon, rest = text.partition(":")
        if not text:
            raise OptionError("a part is empty: write a name before and after each + and each slash")
        if not name or name.startswith("-") or any(c in '[]",=<>' or c.isspace() for c in name):
            levels = "; levels are separated by slashes, as in add/concat" if "," in name else ""
            raise OptionError(f"{text!r} is not a part: write a name, or name:option=value,option=value{levels}")
        pairs = [item.partition("=") for item in split_unquoted(rest, ",")] if colon else []
        if not all(key and equals and value and not {*key} & {*'[]"'} for key, equals, value in pairs):
            listed = _suggest_brackets(pairs)
            raise OptionError(f"{text!r}: write option=value pairs, separated by commas, after the colon{listed}")
        if objects := [key for key, _, value in pairs if has_unquoted(value, "<")]:
            raise OptionError(
                f"{text!r}: the value of {objects[0]} is an object, which only Python can give: "
                f"unetkit.PartSpec.of({name!r}, {{{objects[0]!r}: ...}}); put text that contains < in double quotes"
            )
        keys = [key for key, _, _ in pairs]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise OptionError(f"{text!r} gives {min(twice)!r} twice; leave one of them out")
        return cls(name).with_options({key: value for key, _, value in pairs})

    def with_options(self, options: Mapping[str, str | PythonValue]) -> PartSpec:
        """Return the same part with these options (as text), which replace its own options of the same names."""
        changed = {**dict(self.options), **options}
        return replace(self, options=tuple((name, changed[name]) for name in sorted(changed)))

    @property
    def objects(self) -> tuple[Any, ...]:
        """Return what a line cannot say: the factory that is not registered, and the values given as objects."""
        factory = () if self.factory is None else (self.factory,)
        return (*factory, *(value.value for _, value in self.options if isinstance(value, PythonValue)))

    @property
    def links(self) -> tuple[PartSpec, ...]:
        """Return each part of a chain as a separate spec."""
        return (replace(self, chained=()), *(link for part in self.chained for link in part.links))

    def __add__(self, other: Any) -> PartSpec:
        return replace(self, chained=(*self.chained, *PartSpec.of(other).links))

    def __str__(self) -> str:
        return "+".join(map(_format_link, self.links))


def _suggest_brackets(pairs: list[tuple[str, str, str]]) -> str:
    """Say how to write a list whose brackets are missing, as in widths=64,128; "" if that is not the mistake."""
    lists: list[tuple[str, list[str]]] = []
    for key, equals, value in pairs:
        if equals:
            lists.append((key, [value]))
        elif lists and key:
            lists[-1][1].append(key)
    key, values = next((one for one in lists if len(one[1]) > 1), ("", []))
    return f"; a list needs brackets: {key}=[{','.join(values)}]" if key else ""


def _format_link(spec: PartSpec) -> str:
    name = spec.name if spec.factory is None else f"<{spec.name}>"
    return name + (":" + ",".join(f"{k}={v}" for k, v in spec.options) if spec.options else "")


Levels = tuple[PartSpec, ...]


def _parse_part(value: Any) -> PartSpec:
    return PartSpec.of(value)


def _parse_levels(value: Any) -> Levels:
    """Read one part, or one for each level from deep to shallow: text with slashes, or a list."""
    if isinstance(value, str):
        try:
            value = split_unquoted(value, "/")
        except ValueError as error:
            raise OptionError(f"{value!r}: {error}") from error
    specs = tuple(map(PartSpec.of, value if isinstance(value, list | tuple) else [value]))
    if not specs:
        raise OptionError("a list of parts for the levels must not be empty")
    for spec in specs:
        if spec.factory is None and len(split_unquoted(str(spec), "/")) > 1:
            raise OptionError(f"{str(spec)!r}: a slash separates levels; put text that contains one in double quotes")
    return specs


def _parse_widths(value: Any) -> tuple[int, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, Iterable):
        raise OptionError(f"must be integers such as 256,128,64; got {value!r}")
    widths = tuple(parse_int(item, what=f"integers such as 256,128,64; got {item!r}") for item in items)
    if not widths:
        raise OptionError("must contain at least one integer")
    return widths


def _parse_pretrained(value: Any) -> bool | str:
    if value is True:
        return True
    if isinstance(value, str | Path) and str(value):
        return str(value)
    raise OptionError(f"give it without a value, or with the path of a weights file; got {value!r}")


@dataclass(frozen=True)
class PlanField:
    """One option that describes a model: its Python name (`decode_to`), metavar, parser and help text."""

    name: str
    metavar: str
    parse: Callable[[Any], Any]
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def plan_field(metavar: str, parse: Callable[[Any], Any], help: str) -> Any:  # noqa: A002  as in click
    """Declare a field of a plan, which is None unless its option is given."""
    return field(default=None, metadata={"metavar": metavar, "parse": parse, "help": help})


@dataclass(frozen=True)
class Plan:
    """The description of a model. None means that an option was not given.

    `Plan.of` reads Python values or text, `Plan.parse` reads a command line, and `str` writes one.
    """

    recipe: PartSpec | None = plan_field(
        "NAME", _parse_part, "start from a named U-Net; the other options override what it sets"
    )
    model: PartSpec | None = plan_field(
        "NAME", _parse_part, "use a whole model of another library, such as smp/unetplusplus"
    )
    encoder: PartSpec | None = plan_field(
        "PART", _parse_part, "encoder: plain, or any of timm's or smp's, such as resnet101 or smp/mit_b0"
    )
    up: Levels | None = plan_field(
        "PART[/PART...]", _parse_levels, "upsampler that brings a feature map to the size of the next level"
    )
    fuse: Levels | None = plan_field(
        "PART[/PART...]", _parse_levels, "fusion of the upsampled map with the skip connection"
    )
    align: Levels | None = plan_field(
        "PART[/PART...]", _parse_levels, "how both maps are brought to one size before they are fused"
    )
    block: Levels | None = plan_field(
        "PART[+PART][/...]", _parse_levels, "convolution block after each fusion; a + chains several"
    )
    head: PartSpec | None = plan_field("PART", _parse_part, "head that turns the last feature map into logits")
    logits: PartSpec | None = plan_field("PART|none", _parse_part, "upsampler that brings the logits to the input size")
    widths: tuple[int, ...] | None = plan_field(
        "N,N,...", _parse_widths, "channels of the decoder's levels, deep to shallow"
    )
    decode_to: int | None = plan_field("STRIDE", parse_int, "stride at which the decoder ends, such as 1, 2 or 4")
    in_channels: int | None = plan_field("N", parse_int, "number of input channels")
    classes: int | None = plan_field("N", parse_int, "number of output channels")
    size: Size | None = plan_field("HxW", parse_size, "input size, such as 572 or 480x640 (height first)")
    pretrained: bool | str | None = plan_field(
        "[FILE]", _parse_pretrained, "load the encoder's pretrained weights from its library or from FILE"
    )
    seed: int | None = plan_field("N", partial(parse_int, least=0, most=2**64 - 1), "seed of the random weights")

    @classmethod
    def of(cls, **words: Any) -> Plan:
        """Create a plan from Python values; None means not given.

        Raises:
            UnknownNameError: An option does not exist.
            OptionError: An option has a value that is not allowed.
        """
        read = {}
        for name, value in words.items():
            word = _find_field(name)
            if value is None or (name == "pretrained" and value is False):
                continue
            try:
                read[name] = word.parse(value)
            except OptionError as error:
                raise OptionError(f"{word.flag}: {error}") from None
        return cls(**read)

    @classmethod
    def parse(cls, line: str) -> Plan:
        """Parse a line such as `--encoder resnet101 --fuse add`, with quotes as in a shell."""
        try:
            tokens = shlex.split(line)
        except ValueError as error:
            raise OptionError(f"{line!r} is not a valid line of options: {error}") from None
        words: dict[str, Any] = {}
        while tokens:
            token = tokens.pop(0)
            if not token.startswith("--"):
                raise OptionError(f"{token!r} appears where an option such as --encoder is expected")
            flag, equals, value = token.partition("=")
            name = _find_field(flag[2:].replace("-", "_")).name
            if name in words:
                raise OptionError(f"{flag} is given twice; leave one of them out")
            if equals:
                words[name] = value
            elif tokens and not tokens[0].startswith("--"):
                words[name] = tokens.pop(0)
            elif name == "pretrained":
                words[name] = True
            else:
                raise OptionError(f"{flag} needs a value")
        return cls.of(**words)

    def with_defaults(self, base: Plan) -> Self:
        """Return this plan; options that it lacks are taken from `base`."""
        return replace(self, **{**base.explicit(), **self.explicit()})

    def explicit(self) -> dict[str, Any]:
        """Return the options that were given, in order."""
        values = {one.name: getattr(self, one.name) for one in PLAN_FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    def specs(self) -> list[tuple[str, PartSpec]]:
        """Return every part with its option; parts of a chain are separate."""
        found: list[tuple[str, PartSpec]] = []
        for name, value in self.explicit().items():
            members = value if isinstance(value, tuple) else (value,)
            found += [(name, link) for member in members if isinstance(member, PartSpec) for link in member.links]
        return found

    def __str__(self) -> str:
        tokens: list[str] = []
        for name, value in self.explicit().items():
            flag = _FIELDS_BY_NAME[name].flag
            if name == "pretrained":
                tokens.append(flag if value is True else f"{flag}={value}")
            else:
                tokens += [flag, _format_field(name, value)]
        return shlex.join(tokens)


#: The options that describe a model, in order.
PLAN_FIELDS = tuple(PlanField(one.name, **one.metadata) for one in fields(Plan))
_FIELDS_BY_NAME = {one.name: one for one in PLAN_FIELDS}


def _find_field(name: str) -> PlanField:
    if name not in _FIELDS_BY_NAME:
        raise UnknownNameError(
            f"there is no option {name!r}{did_you_mean(name, _FIELDS_BY_NAME)}; `unetkit build --help` lists all"
        )
    return _FIELDS_BY_NAME[name]


@dataclass(frozen=True, kw_only=True)
class ResolvedPlan(Plan):
    """A plan that recipe and defaults complete: the builder needs no further choice but those of a `UNetPlan`.

    Attributes:
        base: what the recipe and the defaults alone give.
    """

    in_channels: int = field()
    classes: int = field()
    base: Plan = field(compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class UNetPlan(ResolvedPlan):
    """A complete plan of a U-Net of parts.

    `widths` and `logits` may be None until the encoder, from which their defaults follow, is built.
    """

    encoder: PartSpec = field()
    up: Levels = field()
    fuse: Levels = field()
    align: Levels = field()
    block: Levels = field()
    head: PartSpec = field()
    decode_to: int = field()


def _format_field(name: str, value: Any) -> str:
    if name == "size":
        return str(value[0]) if value[0] == value[1] else f"{value[0]}x{value[1]}"
    separator = "," if name == "widths" else "/"
    return separator.join(map(str, value)) if isinstance(value, tuple) else str(value)


def part_at_level(levels: Levels | None, index: int) -> str:
    """Return the part at a level as text; a single part applies to all levels."""
    return str(levels[min(index, len(levels) - 1)]) if levels else ""
