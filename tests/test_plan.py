"""The line and its object: the whole grammar there and back, and what it refuses."""

from __future__ import annotations

import itertools
import random
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.saying import says
from unetkit.builder import build
from unetkit.errors import OptionError, UnetkitError, UnknownNameError
from unetkit.network import Network
from unetkit.plan import PLAN_FIELDS, PartSpec, Plan

MANY = settings(max_examples=150)

TEXT = st.text() | st.text(alphabet="ab1./,:=[]\"'\\ \n\t-+<>x", max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
NAMES = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,8}", fullmatch=True)
ENCODER_NAMES = NAMES | NAMES.map("timm/{}".format)
OPTIONS = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), VALUES, max_size=3)
PARTS = st.builds(PartSpec.of, NAMES, OPTIONS)
LEVELS = st.lists(PARTS, min_size=1, max_size=4)
CHAINS = st.lists(PARTS, min_size=1, max_size=3).map(lambda links: sum(links[1:], start=links[0]))
COUNTS = st.integers(min_value=1, max_value=2**20)
PATHS = TEXT.filter(bool)

STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "recipe": PARTS,
    "model": PARTS,
    "encoder": st.builds(PartSpec.of, ENCODER_NAMES, OPTIONS),
    "up": LEVELS,
    "fuse": LEVELS,
    "align": LEVELS,
    "block": st.lists(CHAINS, min_size=1, max_size=4),
    "head": PARTS,
    "logits": PARTS,
    "widths": st.lists(COUNTS, min_size=1, max_size=6),
    "decode_to": COUNTS,
    "in_channels": COUNTS,
    "classes": COUNTS,
    "size": st.tuples(COUNTS, COUNTS) | COUNTS,
    "pretrained": st.just(True) | PATHS | PATHS.map(Path),
    "seed": st.integers(min_value=0, max_value=2**64 - 1),
}
PLANS = st.fixed_dictionaries({}, optional=STRATEGIES).map(lambda words: Plan.of(**words))


def one_line(error: Exception) -> str:
    message = str(error)
    assert len(message.splitlines()) == 1
    return message


def test_every_word_has_a_strategy_and_a_field() -> None:
    assert list(STRATEGIES) == [word.name for word in PLAN_FIELDS]


@pytest.mark.slow
@MANY
@given(PLANS)
def test_a_line_gives_its_plan_back(plan: Plan) -> None:
    line = str(plan)
    assert Plan.parse(line) == plan
    assert str(Plan.parse(line)) == line
    assert Plan.parse("").with_defaults(plan) == plan


@pytest.mark.slow
@settings(MANY, max_examples=40)
@given(PLANS, PLANS)
def test_over_takes_the_rest_from_the_base(plan: Plan, base: Plan) -> None:
    over = plan.with_defaults(base)
    assert over.explicit() == base.explicit() | plan.explicit()
    assert list(over.explicit()) == [name for name in STRATEGIES if name in over.explicit()]


@pytest.mark.slow
@MANY
@given(st.builds(PartSpec.of, ENCODER_NAMES, OPTIONS) | CHAINS)
def test_a_part_gives_its_text_back(spec: PartSpec) -> None:
    assert PartSpec.parse(str(spec)) == spec


FLAGS = st.sampled_from([word.flag for word in PLAN_FIELDS] + ["--", "--x", "--encoder=", "--widths="])
LINES = TEXT | st.lists(FLAGS | TEXT | TEXT.map(shlex.quote) | st.sampled_from(["1", "a:b=1", "a/b", "8x"])).map(
    " ".join
)


@MANY
@given(LINES)
def test_arbitrary_lines_are_read_or_refused_in_one_line(line: str) -> None:
    try:
        plan = Plan.parse(line)
    except UnetkitError as error:
        one_line(error)
    else:
        assert Plan.parse(str(plan)) == plan


@MANY
@example('a:"="')
@example("a:[=]")
@given(TEXT | st.lists(st.sampled_from(list('ab:,=[]"\\/ \n-')), max_size=10).map("".join))
def test_arbitrary_parts_are_read_or_refused_in_one_line(text: str) -> None:
    try:
        spec = PartSpec.parse(text)
    except UnetkitError as error:
        one_line(error)
    else:
        assert PartSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({}, ""),
        ({"encoder": "resnet101", "fuse": "add"}, "--encoder resnet101 --fuse add"),
        ({"fuse": "add/concat", "encoder": "x"}, "--encoder x --fuse add/concat"),
        ({"fuse": ["add", "concat"]}, "--fuse add/concat"),
        ({"up": "transposed:kernel=4,init=bilinear"}, "--up transposed:init=bilinear,kernel=4"),
        ({"up": 'a:x=[1,2],y="p/q"/b'}, "--up 'a:x=[1,2],y=\"p/q\"/b'"),
        ({"widths": "256,128"}, "--widths 256,128"),
        ({"widths": (256,)}, "--widths 256"),
        ({"size": 572}, "--size 572"),
        ({"size": "480X640"}, "--size 480x640"),
        ({"size": [480, 480]}, "--size 480"),
        ({"pretrained": True, "seed": 0}, "--pretrained --seed 0"),
        ({"pretrained": "my weights.pt"}, "'--pretrained=my weights.pt'"),
        ({"pretrained": Path("--x")}, "--pretrained=--x"),
        ({"pretrained": False, "classes": None}, ""),
        ({"seed": 2**63 + 1}, f"--seed {2**63 + 1}"),
        ({"classes": 4.0}, "--classes 4"),
    ],
)
def test_how_a_plan_is_written(words: dict[str, Any], line: str) -> None:
    plan = Plan.of(**words)
    assert str(plan) == line
    assert Plan.parse(line) == plan


@pytest.mark.parametrize(
    "line",
    ["--decode-to 4 --pretrained a.pt", "--pretrained=a.pt --decode-to=4", "--decode_to 4 --pretrained 'a.pt'"],
)
def test_how_a_line_may_be_written(line: str) -> None:
    assert Plan.parse(line) == Plan(decode_to=4, pretrained="a.pt")


def test_pretrained_without_a_file_before_another_word() -> None:
    assert Plan.parse("--pretrained --classes 3") == Plan(pretrained=True, classes=3)


def test_specs_name_every_part_with_its_word() -> None:
    plan = Plan.of(encoder="plain", fuse="add/concat", widths=(2, 1))
    assert plan.specs() == [("encoder", PartSpec("plain")), ("fuse", PartSpec("add")), ("fuse", PartSpec("concat"))]


def test_a_factory_is_a_part() -> None:
    spec = PartSpec.of(nn.Conv2d, {"bias": True})
    assert (spec.name, spec.factory, str(spec)) == ("Conv2d", nn.Conv2d, "<Conv2d>:bias=true")
    assert PartSpec.of(partial(nn.Conv2d)).name == "partial"
    with pytest.raises(OptionError) as refused:  # a line cannot say what is only in memory
        PartSpec.parse(str(spec))
    assert one_line(refused.value).startswith("'<Conv2d>:bias=true' is not a part")


REFUSED_LINES = {
    "encoder resnet18": "'encoder' appears where an option",
    "--encoder a b": "'b' appears where an option",
    "--encodr a": "…'encodr' (did you mean encoder or decode_to",
    "--zzz": "there is no option 'zzz'",
    "--zzz 1 --zzz 1": "there is no option 'zzz'",
    "--fuse add --fuse add": "--fuse is given twice",
    "--decode-to 1 --decode_to 2": "--decode_to is given twice",
    "--encoder": "--encoder needs a value",
    "--encoder --fuse add": "--encoder needs a value",
    "--encoder 'a": '"--encoder \'a"… No closing quotation',
    "--encoder ''": "--encoder: a part is empty",
    "--encoder=--x": "--encoder: '--x' is not a part",
    "--up :a=1": "--up: ':a=1' is not a part",
    "--up 'a b'": "--up: 'a b' is not a part",
    "--up a:": "--up: 'a:': write option=value",
    "--up a:k": "--up: 'a:k': write option=value",
    "--up a:k=": "--up: 'a:k=': write option=value",
    "--up a:k=1,": "--up: 'a:k=1,': write option=value",
    "--up a:k=1,k=2": "--up: 'a:k=1,k=2' gives 'k' twice",
    "--up a:k=[1": "--up: 'a:k=[1': a bracket is not closed",
    "--head a:k=[1": "--head: 'a:k=[1': a bracket is not closed",
    "--up a//b": "--up: a part is empty",
    "--widths ''": "--widths: must be integers… got ''",
    "--widths 8,,8": "--widths: must be integers… got ''",
    "--widths 8,x": "--widths: must be integers… got 'x'",
    "--widths 8,0": "--widths: must be at least 1; got 0",
    "--decode-to 0": "--decode-to: must be at least 1; got 0",
    "--decode-to 1.5": "--decode-to: must be an integer; got '1.5'",
    "--in-channels 0": "--in-channels: must be at least 1; got 0",
    "--in-channels -3": "--in-channels: must be at least 1; got -3",
    "--classes 0": "--classes: must be at least 1; got 0",
    "--classes many": "--classes: must be an integer; got 'many'",
    "--seed -1": "--seed: must be at least 0; got -1",
    "--size 0": "--size: must be at least 1; got 0",
    "--size 5x0": "--size: must be at least 1; got 0",
    "--size 5x": "--size: … HEIGHTxWIDTH… got '5x'",
    "--size big": "--size: … HEIGHTxWIDTH… got 'big'",
    "--size 1x2x3": "--size: … HEIGHTxWIDTH… got '1x2x3'",
    "--pretrained=": "--pretrained: give it without a value… got ''",
}


@pytest.mark.parametrize(("line", "message"), REFUSED_LINES.items())
def test_refused_lines(line: str, message: str) -> None:
    with pytest.raises(UnetkitError) as refused:
        Plan.parse(line)
    assert says(one_line(refused.value), message)


def test_an_unknown_word_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        Plan.of(encodr="a")


REFUSED_VALUES: list[tuple[str, Any, str]] = [
    ("encoder", 3, "--encoder: 3 is not a part"),
    ("fuse", [], "--fuse: a list of parts"),
    ("fuse", ["add", 3], "--fuse: 3 is not a part"),
    ("fuse", ["a/b"], "--fuse: 'a/b': a slash separates levels… double quotes"),
    (
        "fuse",
        ["a:k=p/q"],
        "--fuse: 'a:k=p/q': a slash separates levels… double quotes",
    ),
    ("widths", 64, "--widths: must be integers… got 64"),
    ("widths", [], "--widths: must contain at least one integer"),
    ("widths", [8, 0.5], "--widths: must be integers… got 0.5"),
    ("widths", [True], "--widths: must be integers… got True"),
    ("classes", True, "--classes: must be an integer; got True"),
    ("classes", 2.5, "--classes: must be an integer; got 2.5"),
    ("classes", float("nan"), "--classes: must be an integer; got nan"),
    ("classes", float("inf"), "--classes: must be an integer; got inf"),
    ("classes", [2], "--classes: must be an integer; got [2]"),
    ("size", 5.5, "--size: … HEIGHTxWIDTH… got 5.5"),
    ("size", True, "--size: … HEIGHTxWIDTH… got True"),
    ("size", (), "--size: … HEIGHTxWIDTH… got ()"),
    ("size", (1, 2, 3), "--size: … HEIGHTxWIDTH… got (1, 2, 3)"),
    ("pretrained", 3, "--pretrained: give it without a value… got 3"),
]


@pytest.mark.parametrize(("word", "value", "message"), REFUSED_VALUES)
def test_refused_values(word: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError) as refused:
        Plan.of(**{word: value})
    assert says(one_line(refused.value), message)


def test_a_message_stays_one_line_whatever_it_quotes() -> None:
    assert str(UnetkitError("what\nthey\r\nsaid\u2028here")) == "what they said here"


#: Words that go together at any of four levels below stride 16, of an encoder with five maps.
GRID: dict[str, tuple[str | None, ...]] = {
    "encoder": (
        "plain:widths=[4,6,8,10,12]",
        "plain:depth=4,widths=[4,6,8,10,12],order=norm-act-conv,norm=none",
        "timm/test_resnet:levels=4",
        "timm/test_efficientnet:output_stride=16",
        "resnet18:levels=4,pretrained=false",
        None,
    ),
    "recipe": (None, "unet-same", "unet-bilinear", "resnet34-unet"),
    "up": (None, "bilinear", "nearest", "transposed:channels=keep", "bilinear:align_corners=true", "nearest/bilinear"),
    "fuse": (None, "concat", "add", "add/add/concat/concat", "mean/mean"),
    "align": (None, "resize", "resize:mode=bilinear", "pad", "crop/crop/pad/pad"),
    "block": (None, "double", "basic:norm=group", "bottleneck:act=gelu,dropout=0.25", "preact/double/double/basic"),
    "head": (None, "conv", "conv:kernel=1", "conv-act-norm:norm=none"),
    "logits": (None, "bilinear", "nearest", "none"),
    "widths": (None, "16,12,8,4", "12,8"),
    "decode_to": (None, "1", "4"),
    "in_channels": (None, "1", "3"),
    "classes": (None, "1", "2"),
    "size": (None, "64", "32x48"),
    "seed": (None, "0"),
}


def sampled(seed: int) -> dict[str, str]:
    """Words for one line, each said half of the time."""
    rng = random.Random(seed)
    words = {name: rng.choice(choices) for name, choices in GRID.items() if name == "encoder" or rng.random() < 0.5}
    return {name: value for name, value in words.items() if value is not None}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def built(count: int) -> list[tuple[str, Network]]:
    """That many models of random lines; lines that are refused are passed over."""
    found = []
    for seed in itertools.count():
        line = str(Plan.of(**sampled(seed)))
        try:
            found.append((line, build(Plan.parse(line), device="meta")))
        except UnetkitError as error:
            one_line(error)
        if len(found) == count:
            return found
    raise AssertionError


@pytest.mark.slow
def test_the_line_of_a_built_model_is_the_shortest_that_rebuilds_it() -> None:
    for line, model in built(20):
        plan = model.plan
        assert Plan.parse(str(plan)) == plan, line
        again = build(Plan.parse(str(plan)), device="meta")
        assert again.plan == plan, line
        assert shapes(again) == shapes(model), line
        for word in plan.explicit():
            shorter = Plan(**{name: value for name, value in plan.explicit().items() if name != word})
            try:
                other = build(shorter, device="meta")
            except UnetkitError:
                continue
            assert other.plan != plan, f"{line}: {word} says nothing"


@pytest.mark.parametrize(
    ("word", "value", "most"), [("classes", 2**20 + 1, 2**20), ("size", 10**12, 2**20), ("seed", 2**64, 2**64 - 1)]
)
def test_numbers_too_large_to_count_with_are_refused(word: str, value: int, most: int) -> None:
    with pytest.raises(OptionError, match=f"--{word}: must be at most {most}; got {value}"):
        Plan.of(**{word: value})
