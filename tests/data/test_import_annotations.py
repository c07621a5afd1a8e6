"""Annotations of other tools, in files as those tools write them, become a folder that trains."""

from __future__ import annotations

import base64
import io
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from PIL import Image
from pycocotools import mask as coco_masks

from tests.data.example_folders import noise
from unetkit.cli.data import data
from unetkit.data.datasets import open_data
from unetkit.data.types import IGNORE, DatasetSplits, Sample
from unetkit.errors import FileError, OptionError

H, W = 40, 60
#: A square from (10, 5) to (30, 25), in pixels.
SQUARE = [(10, 5), (30, 5), (30, 25), (10, 25)]


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(H, W, 3, seed=zlib.crc32(str(path).encode()))).save(path)
    return path


def imported(kind: str, source: Path, out: Path) -> DatasetSplits:
    result = CliRunner().invoke(data, ["import", kind, str(source), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]
    checked = CliRunner().invoke(data, ["check", str(out)])
    assert (checked.exit_code, "no problems" in checked.output) == (0, True), checked.output
    return open_data(str(out))


def refused(kind: str, source: Path, out: Path) -> str:
    result: Result = CliRunner().invoke(data, ["import", kind, str(source), "--out", str(out)])
    assert isinstance(result.exception, FileError | OptionError)
    assert not out.exists() or not any(out.iterdir())
    return str(result.exception)


def samples(opened: DatasetSplits) -> dict[str, Sample]:
    return {one.name: one for images in opened.splits.values() for one in map(images.__getitem__, range(len(images)))}


def assert_square(mask: torch.Tensor, value: int) -> None:
    """A square fills the pixels whose centres lie in it; those on its edge may go either way."""
    assert (mask[6:24, 11:29] == value).all()
    outside = mask.clone()
    outside[4:27, 9:32] = -9
    assert not (outside == value).any()


def labelme(path: Path, shapes: list[dict[str, Any]]) -> None:
    content: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [{"group_id": None, "description": "", "flags": {}, "mask": None, **shape} for shape in shapes],
        "imagePath": image(path.with_suffix(".jpg")).name,
        "imageData": None,
        "imageHeight": H,
        "imageWidth": W,
    }
    path.write_text(json.dumps(content, indent=2))


def test_labelme(tmp_path: Path) -> None:
    drawn = io.BytesIO()
    Image.fromarray(np.ones((5, 7), bool)).save(drawn, "PNG")
    part: dict[str, Any] = {"label": "leaf", "points": [[2, 30], [8, 34]], "shape_type": "mask"}
    part["mask"] = base64.b64encode(drawn.getvalue()).decode()
    labelme(tmp_path / "in" / "a.json", [{"label": "cell", "points": SQUARE, "shape_type": "polygon"}, part])
    shapes = [
        {"label": "leaf", "points": [[10, 5], [30, 25]], "shape_type": "rectangle"},
        {"label": "cell", "points": [[20, 15], [20, 19]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[40, 0], [60, 0], [60, 40]], "shape_type": "polygon"},
    ]
    labelme(tmp_path / "in" / "b.json", shapes)
    (tmp_path / "in" / "settings.json").write_text("{}")
    opened = imported("labelme", tmp_path / "in", tmp_path / "out")
    assert opened.target.names == ("background", "cell", "leaf")
    found = samples(opened)
    assert_square(found["a"].mask, 1)
    assert (found["a"].mask[30:35, 2:9] == 2).all()
    assert found["b"].mask[15, 20] == 1
    assert found["b"].mask[7, 12] == 2
    assert found["b"].mask[2, 58] == IGNORE
    instances = found["b"].instances
    assert instances is not None
    assert {*instances.flatten().tolist()} == {0, 1, 2}


def coco(path: Path, names: list[str], segmentations: list[Any], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = [
        {"id": number, "image_id": 7, "category_id": 3, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1.0, **more}
        | {"segmentation": shape}
        for number, shape in enumerate(segmentations)
    ]
    images = [{"id": 7 + at, "file_name": name, "height": H, "width": W} for at, name in enumerate(names)]
    categories = [{"id": 3, "name": "zebra", "supercategory": "animal"}, {"id": 90, "name": "unused"}]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))


def test_coco_with_splits_several_polygons_holes_and_runs(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    flat = [[float(side) for corner in SQUARE for side in corner]]
    ring = np.zeros((H, W), np.uint8)
    ring[5:25, 10:30], ring[12:18, 17:23] = 1, 0
    counts = [0]
    for value in ring.T.flatten().tolist():
        if value != (len(counts) - 1) % 2:
            counts.append(0)
        counts[-1] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        packed = coco_masks.encode(np.asfortranarray(ring))["counts"].decode()
    shapes_of: dict[str, list[Any]] = {"train2017": [flat], "val2017": [{"size": [H, W], "counts": counts}]}
    for split, shapes in shapes_of.items():
        names = [f"{split}-{number}.jpg" for number in range(2)]
        for name in names:
            image(root / split / name)
        coco(root / "annotations" / f"instances_{split}.json", names, shapes)
    coco(root / "annotations" / "captions.json", [], [])
    opened = imported("coco", root, tmp_path / "out")
    assert {name: len(images) for name, images in opened.splits.items()} == {"train": 2, "val": 2}
    assert opened.target.names == ("background", "zebra")
    found = samples(opened)
    assert_square(found["train2017-0"].mask, 1)
    assert not found["train2017-1"].mask.any()
    assert torch.equal(found["val2017-0"].mask, torch.from_numpy(ring).long())
    one = tmp_path / "one"
    image(one / "x.jpg")
    image(one / "y.jpg")
    two = [*flat, [40.0, 30.0, 50.0, 30.0, 50.0, 38.0]]
    coco(one / "_annotations.coco.json", ["x.jpg", "y.jpg"], [two, {"size": [H, W], "counts": packed}])
    mask = samples(imported("coco", one / "_annotations.coco.json", tmp_path / "out2"))["x"].mask
    assert mask[31, 48] == 1
    assert mask[8, 12] == 1
    coco(one / "_annotations.coco.json", ["x.jpg", "y.jpg"], [flat], iscrowd=1)
    assert samples(imported("coco", one, tmp_path / "out3"))["x"].mask[15, 20] == IGNORE


def test_yolo(tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    line = " ".join(f"{x / W:.6f} {y / H:.6f}" for x, y in SQUARE)
    for split, count in (("train", 2), ("valid", 1)):
        for number in range(count):
            image(root / split / "images" / f"{split}{number}.jpg")
            (root / split / "labels").mkdir(exist_ok=True)
            (root / split / "labels" / f"{split}{number}.txt").write_text(f"{number} {line}\n")
    image(root / "train" / "images" / "empty.jpg")
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['ant', 'bee']\n")
    opened = imported("yolo", root, tmp_path / "out")
    assert {name: len(images) for name, images in opened.splits.items()} == {"train": 3, "val": 1}
    found = samples(opened)
    assert_square(found["train0"].mask, 1)
    assert_square(found["train1"].mask, 2)
    assert not found["empty"].mask.any()


def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    assert "does not exist" in refused("yolo", source, out)
    source.mkdir()
    assert "contains no annotations of labelme" in refused("labelme", source, out)
    assert "YAML" in refused("yolo", source, out)
    labelme(source / "a.json", [{"label": "x", "points": [[1, 2], [3, 4]], "shape_type": "line"}])
    assert "type line" in refused("labelme", source, out)
    (source / "a.jpg").unlink()
    labelme_text = (source / "a.json").read_text().replace("line", "rectangle")
    (source / "a.json").write_text(labelme_text)
    assert "its image a.jpg" in refused("labelme", source, out)
    (source / "a.json").write_text("{")
    assert "a.json: line 1, column 2 is not valid JSON" in refused("labelme", source, out)
    image(source / "x.jpg")
    coco(source / "a.json", ["x.jpg"], [[]])
    assert "annotation 0 has a box, but no segmentation" in refused("coco", source, out)
    coco(source / "a.json", ["gone.jpg"], [])
    assert "its image gone.jpg does not exist beside it" in refused("coco", source, out)
    image(source / "images" / "x.jpg")
    (source / "labels").mkdir()
    (source / "data.yaml").write_text("names: {0: ant}")
    for line, why in (
        ("0 0.5 0.5 0.1 0.1", "line 1: has 4 numbers, as for a box; a polygon has at least 6"),
        ("1 0 0 0 1 1 1", "line 1: has the class 1, but"),
        ("a b", "line 1: is not a list of numbers"),
    ):
        (source / "labels" / "x.txt").write_text(line)
        assert why in refused("yolo", source, out)
    out.mkdir()
    (out / "mine").write_text("")
    result = CliRunner().invoke(data, ["import", "yolo", str(source), "--out", str(out)])
    assert "is not empty; give a new folder" in str(result.exception)
