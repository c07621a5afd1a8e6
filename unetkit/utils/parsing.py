"""Values of options as they are read from text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from unetkit.errors import OptionError
from unetkit.utils.formatting import Size

#: Far above any useful value, and low enough that the sizes of tensors with such shapes do not overflow.
MAX_INTEGER = 2**20


def parse_int(value: Any, least: int = 1, what: str = "", most: int = MAX_INTEGER) -> int:
    """Read an integer from text or a number. Raises OptionError if it is none, or outside `least` to `most`."""
    try:
        number = int(value)
        if isinstance(value, bool) or (not isinstance(value, str) and number != value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"must be {what or f'an integer; got {value!r}'}") from None
    if number < least:
        raise OptionError(f"must be at least {least}; got {number}")
    if number > most:
        raise OptionError(f"must be at most {most}; got {number}")
    return number


_SIZES = "a number or HEIGHTxWIDTH, such as 572 or 480x640"


def parse_size(value: Any) -> Size:
    """Read an input size, (height, width), from 572, "572", "480x640" or a sequence. Raises OptionError."""
    items = value.lower().split("x") if isinstance(value, str) else value
    items = list(items) if isinstance(items, Iterable) else [items]
    if len(items) not in (1, 2):
        raise OptionError(f"must be {_SIZES}; got {value!r}")
    numbers = [parse_int(item, what=f"{_SIZES}; got {value!r}") for item in items]
    return numbers[0], numbers[-1]


def parse_nodata(text: str | float) -> float:
    """Read the value of `--nodata`: a number, nan or inf. Raises OptionError."""
    try:
        return float(text)
    except ValueError:
        raise OptionError("must be a number, nan or inf") from None


def describe_read_error(error: Exception) -> str:
    """Say where a file of text, JSON or YAML is wrong, without the words of its parser."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno} is not valid JSON"
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"line {line} is not UTF-8 text"
    if mark := getattr(error, "problem_mark", None):
        return f"line {mark.line + 1}, column {mark.column + 1} is not valid YAML"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return (isinstance(error, OSError) and error.strerror) or str(error)
