"""The grid: lists, globs, levels and whole models become the rows that a user means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.saying import says
from unetkit.bench.config import BenchConfig, repeat_command
from unetkit.bench.grid import PRELOAD, Case, Mode, exclude_cases, make_cases, make_plans, parse_axis, split_axis
from unetkit.bench.runner import BenchRunner
from unetkit.bench.training import combine_trainings
from unetkit.bench.training_runner import PRELOAD as TRAINING_PRELOAD
from unetkit.errors import BuildError, OptionError, UnetkitError, UnknownNameError
from unetkit.plan import Plan
from unetkit.plugins import load_manager, load_parts

PARTS = load_parts(isolated=True)


def grid(**words: str) -> list[Plan]:
    return make_plans({word: parse_axis(word, [text], PARTS) for word, text in words.items()}, PARTS)


def rows(found: list[Plan], **conditions: list[str]) -> list[Case]:
    sizes, batches = conditions.get("size", []), [int(text) for text in conditions.get("batch_size", ["1"])]
    modes = [Mode.parse(text) for text in conditions.get("mode", ["eager"])]
    return make_cases(found, sizes, batches, modes, PARTS)


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("encoder", "resnet18,resnet34", ["resnet18", "resnet34"]),
        ("encoder", "resnet1[48]", ["resnet14", "resnet18"][1:]),
        ("encoder", "smp/mit_b[01]", ["mit_b0", "mit_b1"]),
        ("encoder", "plain:widths=[8,16],norm=none,resnet18", ["plain:widths=[8,16],norm=none", "resnet18"]),
        (
            "up",
            "bilinear,transposed:kernel=4,init=bilinear,nearest",
            ["bilinear", "transposed:kernel=4,init=bilinear", "nearest"],
        ),
        ("up", "bi*", ["bilinear"]),
        ("up", "trans*:kernel=4", ["transposed:kernel=4"]),
        ("fuse", "add/concat, add", ["add/concat", "add"]),
        ("block", "double+basic,double", ["double+basic", "double"]),
        ("widths", "64,32", ["64,32"]),
        ("encoder", "resnet18,resnet18", ["resnet18"]),
    ],
)
def test_an_axis_is_a_list(word: str, text: str, found: list[str]) -> None:
    assert parse_axis(word, [text], PARTS) == found


def test_an_axis_may_be_given_again() -> None:
    assert parse_axis("widths", ["64,32", "16,8"], PARTS) == ["64,32", "16,8"]
    assert parse_axis("fuse", ["add,mean", "concat"], PARTS) == ["add", "mean", "concat"]


def test_a_bare_glob_finds_no_network_twice() -> None:
    found = parse_axis("encoder", ["resnet*"], PARTS)
    assert "resnet18" in found
    assert not [name for name in found if name.startswith("smp/")]
    assert parse_axis("model", ["unet*"], PARTS) == ["smp/unet", "smp/unetplusplus"]


@given(
    st.lists(st.sampled_from(["bilinear", "nearest", "transposed:kernel=4", "a:b=[1,2],c=d"]), min_size=1, max_size=5)
)
def test_what_is_joined_by_commas_is_found_again(names: list[str]) -> None:
    assert split_axis("up", [",".join(names)]) == names


@pytest.mark.parametrize(
    ("word", "text", "kind", "message"),
    [
        (
            "encoder",
            "resnexxt*",
            UnknownNameError,
            "--encoder resnexxt*: no encoder matches; ",
        ),
        ("fuse", "add,,concat", OptionError, "--fuse add,,concat: "),
        ("fuse", "add,ad/concat", UnknownNameError, "--fuse ad: … (did you mean add"),
        (
            "up",
            "transposed:kernal=4",
            OptionError,
            "--up transposed:kernal=4: … (did you mean kernel",
        ),
        ("recipe", "unet-2051", UnknownNameError, "--recipe unet-2051: … (did you mean"),
        ("decode_to", "two", OptionError, "--decode-to: … got 'two'"),
        ("up", "transposed:x=[1", OptionError, "--up transposed:x=[1: "),
    ],
)
def test_what_is_no_list_is_refused(word: str, text: str, kind: type[UnetkitError], message: str) -> None:
    with pytest.raises(kind) as found:
        parse_axis(word, [text], PARTS)
    assert says(str(found.value), message)


def test_every_combination_is_a_plan() -> None:
    found = grid(encoder="resnet18,resnet34", up="bilinear,nearest,transposed", fuse="concat,add")
    assert len(found) == len({*found}) == 12
    assert str(found[0]) == "--encoder resnet18 --up bilinear --fuse concat"
    assert str(found[-1]) == "--encoder resnet34 --up transposed --fuse add"


def test_whole_models_are_rows_beside_those_of_parts() -> None:
    found = grid(encoder="resnet18", fuse="concat,add", classes="3", model="smp/unet,smp/fpn")
    assert list(map(str, found)) == [
        "--encoder resnet18 --fuse concat --classes 3",
        "--encoder resnet18 --fuse add --classes 3",
        "--model smp/unet --encoder resnet18 --classes 3",
        "--model smp/fpn --encoder resnet18 --classes 3",
    ]
    factors = [dict(case.factors) for case in rows(found)]
    assert [each["model"] for each in factors] == ["unet", "unet", "smp/unet", "smp/fpn"]
    assert [each.get("fuse") for each in factors] == ["concat", "add", None, None]
    assert list(map(str, grid(model="smp/unet"))) == ["--model smp/unet"]


def test_recipes_are_an_axis() -> None:
    assert list(map(str, grid(recipe="unet-2015,unet-same"))) == ["--recipe unet-2015", "--recipe unet-same"]


def test_a_grid_without_an_encoder_is_refused() -> None:
    with pytest.raises(BuildError, match=r"^no encoder is given; give --encoder"):
        grid(fuse="add,concat")
    with pytest.raises(BuildError, match=r"^no encoder is given"):
        grid(fuse="add", model="smp/unet")


def test_conditions_multiply_rows_and_are_factors() -> None:
    found = rows(grid(encoder="resnet18"), size=["64", "96x32"], batch_size=["1", "8"], mode=["eager", "compiled"])
    assert len({case.id for case in found}) == 8
    chosen = {name: value for name, value in found[-1].factors if name not in found[-1].defaults}
    assert chosen == {"encoder": "resnet18", "size": "96x32", "batch_size": "8", "mode": "compiled"}
    assert dict(rows(grid(encoder="resnet18"))[0].factors)["size"] == "own"
    assert str(found[-1].plan) == "--encoder resnet18 --size 96x32"


def test_a_default_is_the_same_row_whether_it_is_given_or_not() -> None:
    [short] = rows(grid(encoder="resnet18", fuse="add"))
    [long] = rows(grid(encoder="resnet18", up="bilinear", fuse="add", decode_to="1"))
    assert (short.id, short.factors, str(short.plan)) == (long.id, long.factors, "--encoder resnet18 --fuse add")
    assert {*short.defaults} - {*long.defaults} == {"up", "decode_to"}
    [recipe] = rows(grid(recipe="unet-2015"))
    [said] = rows(grid(recipe="unet-2015", up="transposed"))
    assert (recipe.id, dict(recipe.factors)["up"]) == (said.id, "transposed")
    [whole] = rows(grid(model="smp/unet"))
    assert whole.id in {case.id for case in rows(grid(model="smp/unet", encoder="resnet34"))}


def test_settings_of_trainings_are_completed_too() -> None:
    given: list[dict[str, list[str]]] = [{}, {"lr": ["1e-3", "1e-2"]}]
    trainings = [one for axes in given for one in combine_trainings(axes, trained=True)]
    cases = make_cases(grid(encoder="resnet18"), [], [1], [Mode()], PARTS, trainings, trained=True)
    assert [(case.training, dict(case.factors)["lr"]) for case in cases] == [
        ((), "0.001"),
        ((("lr", "1e-2"),), "1e-2"),
    ]
    assert "classes" not in dict(cases[0].factors)  # those of the data


def test_two_names_of_one_part_stay_two_rows() -> None:
    assert len(rows(grid(encoder="resnet18,timm/resnet18"))) == 2


def test_what_is_excepted_is_left_out() -> None:
    found = rows(grid(encoder="resnet18,resnet34", fuse="concat,add"), batch_size=["1", "8"])
    assert len(exclude_cases(found, ["--encoder resnet34 --batch-size 8"])) == 6
    assert len(exclude_cases(found, ["--encoder 'resnet1*,x' --fuse add", "--batch-size 8"])) == 3
    assert exclude_cases(found, []) == found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--encoder resnet50",
            r"^--exclude '--encoder resnet50' matches none .*`--dry-run`",
        ),
        ("--fusion add", r"^--exclude '--fusion add': .*did you mean fuse\?\)$"),
        ("resnet18", r"^--exclude 'resnet18': must consist of options"),
        ("--fuse 'add", r"^--exclude \"--fuse 'add\": No closing quotation$"),
        ("", r"^--exclude '': must consist of options"),
    ],
)
def test_an_exception_that_is_none_is_refused(line: str, message: str) -> None:
    found = rows(grid(encoder="resnet18,resnet34", fuse="concat,add"))
    with pytest.raises(UnetkitError, match=message):
        exclude_cases(found, [line])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("eager", "eager"),
        ("bfloat16+compiled", "compiled+bfloat16"),
        ("channels_last+eager", "eager+channels_last"),
        ("openvino", "openvino"),
    ],
)
def test_a_mode_is_written_one_way(text: str, written: str) -> None:
    assert str(Mode.parse(text)) == written
    assert Mode.parse(written) == Mode.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "eager+compiled", "bfloat16+float16", "eager,compiled", "onnxruntime+bfloat16", "openvino+eager"],
)
def test_a_mode_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"^--mode "):
        Mode.parse(text)
    with pytest.raises(OptionError, match=r"did you mean compiled\?\)"):
        Mode.parse("compile")


def test_an_engine_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Mode.parse("onnxruntime").is_exported
    monkeypatch.setattr("unetkit.predict.engines.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="pip install"):
        Mode.parse("openvino")


def test_a_command_repeats_a_row() -> None:
    [case] = rows(grid(encoder="resnet18", up="transposed:kernel=4"), size=["64"], mode=["compiled"])
    choices = BenchConfig(metrics=("macs",), plugins=("mine.py",), budget=2.5, threads=1)
    assert repeat_command(case, choices, "--encoder resnet18", Mode()) == (
        f"unetkit --plugin {Path('mine.py').absolute()} bench --encoder resnet18 --up transposed:kernel=4 --size 64 "
        "--batch-size 1 "
        "--mode compiled --baseline-mode eager --baseline '--encoder resnet18' --metrics macs --budget 2.5 --threads 1"
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"budget": 0.0}, "--budget 0.0: … above 0"),
        ({"timeout": float("inf")}, "--timeout inf: … at most a week"),
        ({"target_ci": 2.0}, "--target-ci 2.0: … between 0 and 1"),
        ({"jobs": 0}, "--jobs 0: must be at least 1"),
        ({"engine": "rey"}, "--engine rey: … (did you mean ray?)"),
        ({"ray_address": "auto"}, "--ray-address auto: … --engine ray"),
    ],
)
def test_a_choice_that_is_none_is_refused(choice: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as found:
        BenchConfig(**choice)  # type: ignore[arg-type]
    assert says(str(found.value), message)


@pytest.mark.parametrize(
    ("line", "config", "more"),
    [
        ("--encoder plain", {"metrics": ("macs",)}, []),
        ("--encoder test_resnet", {"metrics": ("macs", "latency")}, ["timm"]),
        ("--encoder smp/mobilenet_v2", {"metrics": ("memory",)}, ["timm", "segmentation_models_pytorch"]),
        ("--encoder plain", {"metrics": ("training",)}, ["torch._dynamo"]),
        ("--encoder plain", {"metrics": ("training-memory",)}, ["torch._dynamo"]),
        ("--encoder plain", {"metrics": ("miou",), "data": "cells"}, [*TRAINING_PRELOAD]),
    ],
)
def test_processes_are_forked_after_the_import_of_what_their_rows_need(
    line: str, config: dict[str, Any], more: list[str]
) -> None:
    manager = load_manager()
    runner = BenchRunner(
        make_cases([Plan.parse(line)], [], [1], [Mode()], manager.parts), BenchConfig(**config), manager
    )
    assert sorted(runner._preload()) == sorted([*PRELOAD, *more])
    runner.baseline = Plan.parse("--encoder test_resnet")
    assert {*runner._preload()} == {*PRELOAD, *more, "timm"}
