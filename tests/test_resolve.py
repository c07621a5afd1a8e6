"""From what is said to a whole plan and back; what is refused on the way, each in one line."""

from __future__ import annotations

from typing import Any

import pytest

from tests.saying import says
from unetkit.errors import BuildError, OptionError, UnetkitError, UnknownNameError
from unetkit.options import PythonValue
from unetkit.plan import PartSpec, Plan
from unetkit.plugins import load_parts
from unetkit.registry import Parts
from unetkit.resolve import DEFAULTS, canonical_spec, minimal_plan, resolve


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load_parts(isolated=True)


def refused(line: str, parts: Parts, kind: type[UnetkitError]) -> str:
    with pytest.raises(kind) as error:
        resolve(Plan.parse(line), parts)
    assert type(error.value) is kind
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


UNKNOWN = {
    "--encoder resnet19": "--encoder resnet19: … (did you mean resnet18 or ",
    "--encoder timn/resnet18": "--encoder timn/resnet18: … (did you mean resnet18",
    "--encoder plain --fuse ad": "--fuse ad: … (did you mean add?); see `unetkit list fusions`",
    "--encoder plain --up bilinaer/nearest": "--up bilinaer: … (did you mean bilinear?)",
    "--encoder plain --logits zzz": "--logits zzz: … the upsamplers are bilinear, ",
    "--encoder plain --up none": "--up none: no upsampler",
    "--recipe unet2015": "--recipe unet2015: … (did you mean unet-2015?)",
}


@pytest.mark.parametrize(("line", "message"), UNKNOWN.items())
def test_unknown_names(line: str, message: str, parts: Parts) -> None:
    assert says(refused(line, parts, UnknownNameError), message)


BAD = {
    "--encoder plain:widht=1": "--encoder plain:widht=1: … (did you mean widths?); `unetkit list encoder plain`",
    "--encoder plain:zzz=1": "--encoder plain:zzz=1: … it has "
    "depth, widths, order, norm, act, dropout, padding, bias, padding_mode; ",
    "--encoder plain --fuse add:k=1": "--fuse add:k=1: add has no options… 'k'",
    "--encoder plain --logits bilinear:corners=true": "--logits bilinear:corners=true: … (did you mean align_corners?)",
    "--recipe unet-2015:depth=3": "--recipe unet-2015:depth=3: … 'depth'",
    "--encoder plain:depth=two": "--encoder plain:depth=two: depth … integer… got two",
    "--encoder plain:widths=64": "--encoder plain:widths=64: widths … list of integers… got 64",
    "--encoder plain:norm=bach": "--encoder plain:norm=bach: norm … batch, group, instance, layer, none; got bach",
    "--encoder plain:padding=2": "--encoder plain:padding=2: padding must be one of 0, 1; got 2",
    "--encoder plain:bias=1": "--encoder plain:bias=1: bias … true or false… got 1",
    "--encoder plain:dropout=much": "--encoder plain:dropout=much: dropout … a number; got much",
    "--encoder plain --up bilinear:align_corners=no": "--up bilinear:align_corners=no: align_corners … got no",
    "--encoder plain 'a:b=1'": "'a:b=1' appears where an option",
    "--encoder 'plain:depth=2\n3'": "--encoder plain:depth=2 3: depth … got 2 3",
    "--encoder plain --up transposed:kernel=2,kernel=4": "--up: 'transposed:kernel=2,kernel=4' gives 'kernel' twice",
}


@pytest.mark.parametrize(("line", "message"), BAD.items())
def test_bad_options(line: str, message: str, parts: Parts) -> None:
    assert says(refused(line, parts, OptionError), message)


def test_an_encoder_is_needed(parts: Parts) -> None:
    assert "no encoder is given" in refused("--fuse add", parts, BuildError)


def needy(x_channels: int, skip_channels: int, *, ratio: float) -> object:
    raise AssertionError


def test_an_option_without_a_default_must_be_given(parts: Parts) -> None:
    plan = Plan.of(encoder="plain", fuse=needy)
    with pytest.raises(OptionError) as error:
        resolve(plan, parts)
    assert str(error.value).startswith("--fuse <needy>: needy needs ratio=..., ")
    whole = resolve(Plan.of(encoder="plain", fuse=PartSpec.of(needy, {"ratio": 0.5})), parts)
    assert whole.fuse == (PartSpec("needy", (("ratio", PythonValue(0.5)),), needy),)


def circular() -> Plan:
    return Plan.of(recipe="unet-2015")


def test_a_recipe_returns_a_plan_without_a_recipe(parts: Parts) -> None:
    for recipe in (circular, lambda: 3):
        with pytest.raises(BuildError, match="a recipe must return a Plan"):
            resolve(Plan.of(recipe=recipe), parts)


CANONICAL = {
    ("encoder", "timm/resnet18"): "resnet18",
    ("encoder", "timm/resnet18.a1_in1k"): "resnet18.a1_in1k",
    ("encoder", "resnet18:output_stride=32,levels=none"): "resnet18",
    ("encoder", "plain:widths=[64,128],depth=1"): "plain:depth=1,widths=[64,128]",
    ("encoder", "plain:dropout=0,act=relu"): "plain",
    ("encoder", "plain:dropout=5e-1"): "plain:dropout=0.5",
    ("encoder", "plain:norm=none"): "plain:norm=none",
    ("up", "bilinear:align_corners=TRUE"): "bilinear:align_corners=true",
    ("up", "bilinear:align_corners=False"): "bilinear",
    ("logits", "none"): "none",
    ("logits", "bilinear:align_corners=false"): "bilinear",
}


@pytest.mark.parametrize(("part", "text"), CANONICAL.items())
def test_the_canonical_form_of_a_part(part: tuple[str, str], text: str, parts: Parts) -> None:
    word, given = part
    spec = canonical_spec(word, PartSpec.parse(given), parts)
    assert str(spec) == text
    assert canonical_spec(word, spec, parts) == spec


def test_a_shadowed_name_keeps_its_source() -> None:
    parts = load_parts(isolated=True)
    parts.encoders.add("resnet18", "unetkit.parts.encoders.plain:PlainEncoder")
    assert canonical_spec("encoder", PartSpec("timm/resnet18"), parts) == PartSpec("timm/resnet18")
    assert canonical_spec("encoder", PartSpec("resnet18"), parts) == PartSpec("resnet18")


SHORTEST = {
    "--encoder timm/resnet18 --up bilinear --fuse concat/concat --decode-to 1 --classes 2": "--encoder resnet18",
    "--encoder plain --fuse add/add": "--encoder plain --fuse add",
    "--encoder plain --fuse add/concat": "--encoder plain --fuse add/concat",
    "--recipe unet-2015": "--recipe unet-2015",
    "--recipe unet-bilinear --decode-to 1 --widths 256,128,64,64": "--recipe unet-bilinear",
    "--recipe unet-2015 --size 600 --in-channels 3": "--recipe unet-2015 --in-channels 3 --size 600",
    "--encoder resnet18:pretrained=true": "--encoder resnet18 --pretrained",
    "--encoder resnet18:pretrained=false": "--encoder resnet18",
    "--encoder 'resnet18:pretrained=\"w a.pt\"'": "--encoder resnet18 '--pretrained=w a.pt'",
    "--encoder resnet18:pretrained=true --pretrained w.pt": "--encoder resnet18 --pretrained=w.pt",
    "--encoder plain --seed 0": "--encoder plain --seed 0",
    "--recipe unet-2015 --encoder plain": "--recipe unet-2015",
    "--recipe unet-2015 --encoder plain:norm=none,widths=[16,32,64]": (
        "--recipe unet-2015 --encoder 'plain:widths=[16,32,64]'"
    ),
    "--recipe unet-2015 --encoder plain:norm=batch": "--recipe unet-2015 --encoder plain:norm=batch",
    "--recipe unet-2015 --encoder resnet18": "--recipe unet-2015 --encoder resnet18",
}


@pytest.mark.parametrize(("line", "short"), SHORTEST.items())
def test_the_shortest_line(line: str, short: str, parts: Parts) -> None:
    shortest = minimal_plan(resolve(Plan.parse(line), parts), parts)
    assert str(shortest) == short
    assert minimal_plan(resolve(Plan.parse(short), parts), parts) == shortest


def test_options_of_an_encoder_are_added_to_those_of_the_recipe(parts: Parts) -> None:
    def encoder(line: str) -> str:
        return str(resolve(Plan.parse(line), parts).encoder)

    assert encoder("--recipe unet-2015") == "plain:norm=none,padding=0"
    small = encoder("--recipe unet-2015 --encoder plain:widths=[16,32,64]")
    assert small == "plain:norm=none,padding=0,widths=[16,32,64]"
    assert encoder("--recipe unet-2015 --encoder resnet18") == "resnet18"


def test_words_override_the_recipe_and_the_recipe_the_defaults(parts: Parts) -> None:
    whole = resolve(Plan.parse("--recipe unet-2015 --fuse add --classes 5"), parts)
    base = whole.base
    said: Any = whole.explicit()
    assert (str(said["fuse"][0]), said["classes"], said["in_channels"]) == ("add", 5, 1)
    assert (DEFAULTS.in_channels, base.in_channels, base.classes) == (3, 1, 2)
    assert base.recipe is None
