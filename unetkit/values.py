"""Option values as text: `kernel=4`, `widths=[64,128]`, `init=bilinear`, read by the parameter's annotation.

Brackets and double quotes protect the characters that separate parts, options and levels.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
#: Text that another type than str would take for its own.
_WORDS = {"none", "true", "false", "inf", "infinity", "nan"}


def format_value(value: Any, kind: Any = None) -> str:
    """A value as the grammar writes it; `from_text` with the right type gives it back.

    Where the type is known to be a choice of words, none of them needs quotes to differ from none or true.
    """
    if isinstance(value, str) and get_origin(kind) is Literal:
        return value if _PLAIN.fullmatch(value) else json.dumps(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):  # numpy's too, whose repr is none of the grammar's
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value)).replace("e+", "e")  # a plus would start the next part
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(format_value, value)) + "]"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text)


def parse_value(text: str, kind: Any) -> Any:
    """Read a value by its annotation. Raises ValueError where the text is not of that type."""
    if get_origin(kind) in (Union, types.UnionType):
        for choice in sorted(get_args(kind), key=_greed):
            try:
                return parse_value(text, choice)
            except ValueError:
                continue
        raise ValueError(text)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return _exactly(text, {str(c): c for c in choices} | {format_value(c): c for c in choices})
    if get_origin(kind) is tuple:
        return _tuple(text, get_args(kind))
    if kind is None or kind is type(None):
        return _exactly(text, {"none": None})
    if kind is bool:
        return _exactly(text.lower(), {"true": True, "false": False})
    if kind in (int, float):
        return kind(text)
    return json.loads(text) if text.startswith('"') else text


def _greed(kind: Any) -> int:
    """Which types of a union are asked last: a Literal takes its choices unquoted too, str takes anything."""
    return 2 if kind is str else int(get_origin(kind) is Literal)


def _exactly(text: str, table: dict[str, Any]) -> Any:
    if text not in table:
        raise ValueError(text)
    return table[text]


def _tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    items = split_unquoted(text[1:-1], ",") if text[1:-1] else []
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise ValueError(text)
    return tuple(map(parse_value, items, kinds))


def guess_value(text: str) -> Any:
    """Read a value whose type nothing tells: none, true, a number, a list of such, or else text."""
    try:
        return parse_value(text, bool | int | float | None)
    except ValueError:
        pass
    if text.startswith("[") and text.endswith("]"):
        return tuple(map(guess_value, split_unquoted(text[1:-1], ","))) if text[1:-1] else ()
    return parse_value(text, str)


def describe_type(kind: Any) -> str:
    """A type in words, for messages and listings: "an integer or none", "one of half, keep"."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(choice) for choice in get_args(kind)))
    if get_origin(kind) is Literal:
        choices = [format_value(choice, kind) for choice in get_args(kind)]
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if get_origin(kind) is tuple:
        return f"a list like [{','.join(['1', '2', '3'][: max(2, len(get_args(kind)))])}]"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none", None: "none"}
    return names.get(kind, "text")


def split_unquoted(text: str, separator: str) -> list[str]:
    """Split at a separator that stands outside brackets and double quotes.

    Raises ValueError where a bracket or quote is left open.
    """
    parts, depth, start = [], 0, 0
    for index, char in _outside_quotes(text):
        depth += (char == "[") - (char == "]")
        if depth < 0:
            break
        if char == separator and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if depth:
        raise ValueError(f"unbalanced brackets in {text!r}")
    return [*parts, text[start:]]


def split_items(text: str) -> list[str]:
    """Names with options between commas: in `elastic:grid=3,std=10,light` are two, since `std=10` goes on with options.

    Raises ValueError where brackets or quotes do not close.
    """
    found: list[str] = []
    for piece in split_unquoted(text, ","):
        if found and re.match(r"\w+=", piece):
            found[-1] += f",{piece}"
        else:
            found.append(piece.strip())
    return found


def _outside_quotes(text: str) -> Iterator[tuple[int, str]]:
    quoted = escaped = False
    for index, char in enumerate(text):
        if quoted:
            quoted, escaped = escaped or char != '"', not escaped and char == "\\"
        elif char == '"':
            quoted = True
        else:
            yield index, char
    if quoted:
        raise ValueError(f"a double quote is left open in {text!r}")
