"""Values as text and back, for every annotation that an option may have."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetkit.options import describe_type, format_value, parse_value, split_unquoted

MANY = settings()

NASTY = st.text(alphabet=st.sampled_from("ab1./,:=[]\"'\\ \n\t-+<>nonetruinfaé日"), max_size=12)
TEXT = st.one_of(
    st.text(), NASTY, st.sampled_from(["none", "None", "true", "FALSE", "inf", "-inf", "NaN", "1", "1e5", ""])
)
FLOATS = st.floats(allow_nan=False)
INTS = st.integers()


class Word(Enum):
    """Its values are text, and so its words."""

    FIRST = "none"
    LAST = "a,b"


class Level(IntEnum):
    """Its values are numbers, so its names are its words."""

    low = 1
    HIGH = 2


#: Every annotation, with the values that it may have.
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, INTS),
    (float, FLOATS),
    (bool, st.booleans()),
    (str, TEXT),
    (
        Literal["half", "keep", "none", "true", "a,b", "1"],
        st.sampled_from(["half", "keep", "none", "true", "a,b", "1"]),
    ),
    (Literal[8, -16, 32], st.sampled_from([8, -16, 32])),
    (Literal[1, "1"], st.sampled_from([1, "1"])),
    (Literal["1", 1], st.sampled_from([1, "1"])),
    (int | None, INTS | st.none()),
    (float | None, FLOATS | st.none()),
    (bool | None, st.booleans() | st.none()),
    (str | None, TEXT | st.none()),
    (bool | str, st.booleans() | TEXT),
    (float | str, FLOATS | TEXT),
    (int | float, INTS | FLOATS),
    (str | int | None, TEXT | INTS | st.none()),
    (Literal["a", "none"] | None, st.sampled_from(["a", "none", None])),
    (Literal["true", "3"] | bool | int, st.sampled_from(["true", "3", True, False, 3])),
    (tuple[int, ...], st.lists(INTS).map(tuple)),
    (tuple[float, ...], st.lists(FLOATS).map(tuple)),
    (tuple[str, ...], st.lists(TEXT).map(tuple)),
    (tuple[int, str, bool], st.tuples(INTS, TEXT, st.booleans())),
    (tuple[tuple[str, ...], ...], st.lists(st.lists(TEXT).map(tuple)).map(tuple)),
    (tuple[int, ...] | None, st.lists(INTS).map(tuple) | st.none()),
    (tuple[str, ...] | str, st.lists(TEXT).map(tuple) | TEXT),
    (list[int] | None, st.lists(INTS) | st.none()),
    (Sequence[str], st.lists(TEXT).map(tuple)),
    (Path, TEXT.map(Path)),
    (Path | None, TEXT.map(Path) | st.none()),
    (Word, st.sampled_from(Word)),
    (list[Level | None], st.lists(st.sampled_from(Level) | st.none())),
]


@pytest.mark.parametrize(
    ("kind", "values"), KINDS, ids=lambda v: str(v) if not isinstance(v, st.SearchStrategy) else ""
)
def test_text_gives_the_value_back(kind: Any, values: st.SearchStrategy[Any]) -> None:
    @MANY
    @given(values)
    def check(value: Any) -> None:
        text = format_value(value)
        back = parse_value(text, kind)
        assert back == value
        assert type(back) is type(value)
        assert parse_value(format_value(value, kind), kind) == value
        assert text.isascii()
        assert text.isprintable()
        assert all(split_unquoted(text, separator) == [text] for separator in ",/")

    check()


def test_a_choice_of_words_needs_no_quotes() -> None:
    assert format_value("none", Literal["batch", "none"]) == "none"
    assert format_value("a,b", Literal["a,b"]) == '"a,b"'
    assert format_value("none", str) == '"none"'


def test_nan_is_a_float() -> None:
    assert math.isnan(parse_value(format_value(math.nan), float))


def test_signed_zero_keeps_its_sign() -> None:
    assert math.copysign(1, parse_value(format_value(-0.0), float)) == -1


@MANY
@given(st.text() | NASTY)
def test_arbitrary_text_is_read_or_refused(text: str) -> None:
    for kind, _ in KINDS:
        try:
            value = parse_value(text, kind)
        except ValueError:
            continue
        if value == value:  # nan is not
            assert parse_value(format_value(value), kind) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4, "4"),
        (0.5, "0.5"),
        (1e-7, "1e-07"),
        (-math.inf, "-inf"),
        (True, "true"),
        (None, "none"),
        ("bilinear", "bilinear"),
        ("none", '"none"'),
        ("a b", '"a b"'),
        ("/weights/a.pt", '"/weights/a.pt"'),
        ((64, 128), "[64,128]"),
        ([64, 128], "[64,128]"),
        ((), "[]"),
        (("a", "b,c"), '[a,"b,c"]'),
        (np.int64(4), "4"),
        (np.float32(0.5), "0.5"),
        (np.float64(0.1), "0.1"),
        (Fraction(1, 2), "0.5"),
        (Path("/a/b"), '"/a/b"'),
        (Level.low, "low"),
        ([Word.FIRST, Word.LAST], '[none,"a,b"]'),
        (int, "<int>"),
        ({"a": 1}, "<dict>"),
    ],
)
def test_how_values_are_written(value: Any, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("TRUE", bool, True),
        ("3", float, 3.0),
        ("1e-3", float, 0.001),
        ("3", int | float, 3),
        ("none", str, "none"),
        ("none", str | None, None),
        ("/a/b c.pt", bool | str, "/a/b c.pt"),
        ("relu", Any, "relu"),
        ("a,b", Word, Word.LAST),
        ("[none,1]", Sequence[int | None], (None, 1)),
    ],
)
def test_how_values_may_be_written_by_hand(text: str, kind: Any, value: Any) -> None:
    assert parse_value(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("x", int),
        ("1.5", int),
        ("", int),
        ("x", float),
        ("1", bool),
        ("half", Literal["keep"]),
        ("3", Literal[0, 1]),
        ("true", Literal[0, 1]),
        ("None", int | None),
        ("1,2", tuple[int, ...]),
        ("[1,x]", tuple[int, ...]),
        ("[1,]", tuple[int, ...]),
        ("[1]", tuple[int, int]),
        ("1", list[int]),
        ("[x]", Sequence[int]),
        ("FIRST", Word),
        ("1", Level),
        ('"open', str),
        ('"a"b', str),
    ],
)
def test_ill_typed_text_is_refused(text: str, kind: Any) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_value(text, kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "an integer"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "text"),
        (int | None, "an integer or none"),
        (bool | str, "true or false or text"),
        (Literal["half", "keep"], "one of half, keep"),
        (Literal["half"], "half"),
        (tuple[int, ...], "a list of integers, like [1,2]"),
        (tuple[int, int, int], "a list of 3 integers, like [1,2,3]"),
        (tuple[int, ...] | None, "a list of integers, like [1,2] or none"),
        (list[float], "a list of numbers, like [0.5,2]"),
        (Sequence[str], "a list of texts, like [a,b]"),
        (tuple[int, str], "a list of an integer, text, like [1,b]"),
        (list[Word], 'a list of items, each one of none, "a,b", like [none,"a,b"]'),
        (tuple[tuple[int, ...], ...], "a list of items, each a list of integers, like [[1,2],[1,2]]"),
        (Level, "one of low, HIGH"),
        (Path, "a path"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert describe_type(kind) == words


def test_brackets_and_quotes_protect_separators() -> None:
    assert split_unquoted('a,[b,c],"d,]e",f', ",") == ["a", "[b,c]", '"d,]e"', "f"]
    assert split_unquoted(r'"a\",b",c', ",") == [r'"a\",b"', "c"]
    assert split_unquoted("", ",") == [""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1,2", "a bracket is not closed in '[1,2'"),
        ("1]", "a bracket is not closed in '1]'"),
        ("][", "a bracket is not closed in ']['"),
        ('"a', "a double quote is not closed in '\"a'"),
    ],
)
def test_what_is_left_open_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        split_unquoted(text, ",")
