"""`unetkit data check`: what it tells of a folder, and every problem by its file name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from tests.data.example_folders import GREEN, RED, SIZE, SPREAD, made, noise, put, stripes
from unetkit.cli.data import data
from unetkit.errors import FileError, OptionError, UnetkitError

H, W = SIZE


def called(*words: object) -> Result:
    return CliRunner().invoke(data, ["check", *map(str, words)])


def told(*words: object) -> dict[str, Any]:
    """The report as JSON, of which every problem and note is a line."""
    result = called(*words, "--json")
    report: dict[str, Any] = json.loads(result.output)
    assert result.exit_code == (1 if report["problems"] else 0)
    assert not [line for line in report["problems"] + report["notes"] if len(line.splitlines()) != 1]
    return report


def problems(folder: Path, *words: object) -> list[str]:
    """Its problems, with paths as in the folder."""
    return [line.replace(f"{folder}/", "") for line in told(folder, *words)["problems"]]


MASKS = {f"p{i // 2}-{i}": stripes(0, 1, 2, 2) if i else stripes(0, 1) for i in range(10)}


def test_a_folder_without_problems_is_told_and_exits_with_0(tmp_path: Path) -> None:
    report = told(made(tmp_path, MASKS, SPREAD), "--val-fraction", 0.3)
    assert report["classes"] == [
        {
            "name": "background",
            "colour": [0, 0, 0],
            "share": pytest.approx(0.275),
            "images": 10,
            "splits": {"train": 7, "val": 3},
        },
        {
            "name": "class 1",
            "colour": [*RED],
            "share": pytest.approx(0.275),
            "images": 10,
            "splits": {"train": 7, "val": 3},
        },
        {
            "name": "class 2",
            "colour": [*GREEN],
            "share": pytest.approx(0.45),
            "images": 9,
            "splits": {"train": 6, "val": 3},
        },
    ]
    assert (report["kind"], report["class_encoding"]) == ("multiclass", "numbers 0 to 2")
    assert (report["splits"], report["sizes"]) == ({"train": 7, "val": 3}, [[H, W], [H, W]])
    assert (report["channels"], report["depths"], report["files"]) == ({"1": 10}, {"8 bit": 10}, {"png": 10})
    assert (report["objects"], report["ignored"], report["problems"], report["notes"]) == (None, 0, [], [])


def test_the_table_is_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("scans"), {"a": stripes(0, 1, 255), "b": stripes(0, 0)})
    put(Path("scans/images/a.png"), noise(H, W, dtype=np.uint16))
    shown = called("scans")
    lines = [line.split() for line in shown.output.splitlines()]
    assert shown.exit_code == 0
    for line in (
        "scans: binary, encoded by numbers 0 and 1; 255 is ignored",
        "foreground #800000 20.0% 1 0 1",
        "splits: train 1, val 1",
        "note: images of 8 bit and 16 bit are mixed",
        "ignored: 16.7% of all pixels",
        "note: 1 mask of 2 with nothing but background, the first that of scans/images/b.png",
        "no problems",
    ):
        assert line.split() in lines, shown.output


def test_every_problem_is_a_line_with_its_file(tmp_path: Path) -> None:
    made(tmp_path, MASKS)
    (tmp_path / "masks" / "p0-0.png").unlink()
    put(tmp_path / "masks" / "stray.png", stripes(0, 1))
    put(tmp_path / "masks" / "p0-1.png", stripes(0, 1)[1:])
    (tmp_path / "images" / "p1-2.png").write_bytes(b"nothing")
    (tmp_path / "masks" / "p1-3.png").write_bytes(b"nothing")
    put(tmp_path / "images" / "p2-4.png", noise(H, W, 3))
    put(tmp_path / "images" / "p2-5.jpg", noise(H, W))
    (tmp_path / "images" / "p3-6.png").unlink()
    put(tmp_path / "images" / "p3-6.tif", np.full((H, W), np.nan, np.float32))
    (tmp_path / "images" / "read.me").write_text("")
    expected = {
        "images/p0-0.png": "has no mask masks/p0-0.*",
        "masks/stray.png": "has no image images/stray.*",
        "masks/p0-1.png": "11x24, but its image p0-1.png is 12x24",
        "images/p1-2.png": "not a readable image",
        "masks/p1-3.png": "not a readable image",
        "images/p2-4.png": "3 channels",
        "images/p2-5.png": "p2-5.jpg has the same name",
        "images/p3-6.tif": "NaN or infinity (288 numbers)",
    }
    said = dict(line.split(": ", 1) for line in problems(tmp_path))
    assert said.keys() == expected.keys()
    assert len(problems(tmp_path)) == len(expected)
    for file, words in expected.items():
        assert words in said[file]
    (note,) = [note for note in told(tmp_path)["notes"] if "read.me" in note]
    assert note.startswith(f"{tmp_path}/images: 1 file ")


def test_unexpected_labels_are_told_of_each_file(tmp_path: Path) -> None:
    made(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 7), "c": stripes(8, 9)})
    (tmp_path / "classes.txt").write_text("no\nyes\n")
    assert problems(tmp_path) == [
        "masks/b.png: holds 7, but classes are 0, 1",
        "masks/c.png: holds 8, 9, but classes are 0, 1",
    ]
    (tmp_path / "classes.txt").unlink()
    (gap,) = problems(tmp_path)
    assert gap.startswith("masks/c.png: holds 9; ")
    assert "all masks hold 0, 1, 7, 8" in gap


def test_the_same_image_on_two_sides_is_a_leak(tmp_path: Path) -> None:
    for split in ("train", "val"):
        made(tmp_path / split, {f"{split}{number}": stripes(0, 1) for number in range(2)})
        put(tmp_path / split / "images" / f"{split}1.png", noise(H, W, seed=ord(split[0])))
    (leak,) = problems(tmp_path)
    assert leak.startswith("val/images/val0.png: is the same image as train/images/train0.png")


def test_groups_that_folders_tear_apart_are_a_leak(tmp_path: Path) -> None:
    for seed, (split, name) in enumerate([("train", "p1-1"), ("train", "p2-1"), ("val", "p1-2")]):
        put(tmp_path / split / "images" / f"{name}.png", noise(H, W, seed=seed))
        put(tmp_path / split / "masks" / f"{name}.png", stripes(0, 1))
    (leak,) = problems(tmp_path, "--group-by", r"^(p\d)")
    assert leak.startswith("group 'p1': is in train and val")
    (lacking,) = problems(tmp_path, "--group-by", "x")
    assert lacking.startswith("--group-by x: matches nothing in 'p1-1'")


def test_a_group_stays_on_one_side(tmp_path: Path) -> None:
    report = told(made(tmp_path, MASKS), "--group-by", r"^(p\d)", "--val-fraction", 0.2)
    assert report["splits"] == {"train": 8, "val": 2}


def test_labels_and_instances_are_told(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b")):
        put(tmp_path / "images" / f"{name}.png", noise(H, W, seed=index))
        put(tmp_path / "masks" / "left" / f"{name}.png", stripes(255, 0))
        put(tmp_path / "masks" / "all" / f"{name}.png", stripes(255, 255))
        put(tmp_path / "instances" / f"{name}.tif", stripes(0, 5, 70000, dtype=np.int32))
    report = told(tmp_path)
    assert (report["kind"], report["class_encoding"], report["objects"]) == ("multilabel", "a folder a label", 4)
    assert [(one["name"], one["share"], one["images"]) for one in report["classes"]] == [
        ("all", 1, 2),
        ("left", 0.5, 2),
    ]
    put(tmp_path / "instances" / "a.tif", noise(H, W, 3))
    (tmp_path / "instances" / "b.tif").unlink()
    absent, few, coloured = problems(tmp_path)
    assert absent.startswith("images/b.png: has no instances/b.*")
    assert few.startswith("there is only 1 image")
    assert coloured.startswith("instances/a.tif: contains colours")


def test_a_test_folder_without_masks_is_left_out(tmp_path: Path) -> None:
    made(tmp_path / "train", MASKS)
    put(tmp_path / "test" / "images" / "x.png", noise(H, W))
    report = told(tmp_path)
    assert report["splits"] == {"train": 8, "val": 2}
    (note,) = report["notes"]
    assert note.startswith("test: ignored")


def test_masks_that_none_can_read_are_problems_too(tmp_path: Path) -> None:
    made(tmp_path, {"a": noise(H, W, 3), "b": noise(H, W, 3)})
    shown = called(tmp_path)
    assert (shown.exit_code, "no mask can be read" in shown.output) == (1, True)
    assert "2 problems" in shown.output


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("none", "the folder does not exist; "),
        ("file", "is not a folder; give one"),
        ("empty", "contains no images/ and masks/"),
        ("bare", "contains no images; .png .jpg"),
    ],
)
def test_where_there_is_nothing_to_understand_it_is_refused(tmp_path: Path, kind: str, why: str) -> None:
    folder = tmp_path / "x"
    if kind == "file":
        folder.write_text("")
    elif kind != "none":
        folder.mkdir()
    if kind == "bare":
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
    refused = called(folder).exception
    assert isinstance(refused, FileError)
    assert why in str(refused)


def test_a_named_set_is_told_alike(tmp_path: Path) -> None:
    report = told("cells:count=3,val=1,test=0,size=32", "--overlay", tmp_path / "x.png")
    assert (report["kind"], report["splits"], report["sizes"]) == (
        "binary",
        {"train": 3, "val": 1},
        [[32, 32], [32, 32]],
    )
    assert report["objects"] > 0
    assert sum(one["share"] for one in report["classes"]) == pytest.approx(1)


def test_the_overlay_shows_images_masks_and_the_legend(tmp_path: Path) -> None:
    made(tmp_path / "x", {str(number): stripes(0, 1, 2) for number in range(30)}, (0, 0, 0, 200, 0, 0, 0, 0, 200))
    (tmp_path / "x" / "images" / "3.png").write_bytes(b"")  # what cannot be read is not drawn
    shown = called(tmp_path / "x", "--overlay", tmp_path / "sheet.png")
    assert shown.exit_code == 1
    assert "samples drawn to" in shown.output.replace("\n", " ")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
        assert sheet.width > 4 * 240
    legend = pixels[-40:].reshape(-1, 3)
    assert all((legend == colour).all(1).any() for colour in ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
    red, blue = ((pixels[..., a].astype(int) - pixels[..., b] > 60).sum() for a, b in ((0, 2), (2, 0)))
    assert red == pytest.approx(blue, rel=0.1)
    assert red > 10_000


def test_an_overlay_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    refused = called(tmp_path, "--overlay", "x.jpg").exception
    assert isinstance(refused, OptionError)
    assert "--overlay x.jpg: only PNG" in str(refused)
    (tmp_path / "x").write_text("")
    refused = called(made(tmp_path / "y", MASKS), "--overlay", tmp_path / "x" / "y.png").exception
    assert isinstance(refused, UnetkitError)
    assert "cannot be written" in str(refused)


def test_unusual_depths_are_told_by_their_type(tmp_path: Path) -> None:
    for name, values in {"a": stripes(0, 1).astype(np.float32), "b": stripes(1, 0).astype(np.float32)}.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.ome.tif", values)
        put(tmp_path / "masks" / f"{name}.png", stripes(0, 255))
    report = told(tmp_path)
    assert (report["depths"], report["class_encoding"], report["files"]) == (
        {"float32": 2},
        "numbers 0 and 255",
        {"tif": 2},
    )
