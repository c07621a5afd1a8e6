"""Folders as people have them: names of folders and files, links, and what is left out."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import ExifTags, Image

from tests.data.example_folders import SIZE, noise, put, stripes
from tests.reading import read_image
from unetkit.cli.data import data as data_command
from unetkit.data.contact_sheet import contact_sheet
from unetkit.data.datasets import open_data
from unetkit.data.io import read_header, read_mask
from unetkit.data.layout import find_layout
from unetkit.data.types import DatasetSplits, Sample, Target, fingerprint
from unetkit.data.visualize import label_paths
from unetkit.errors import FileError, OptionError
from unetkit.predict.config import PredictConfig
from unetkit.predict.predictor import find_images, plan_outputs

H, W = SIZE


def image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(H, W, seed=seed)).save(path)


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stripes(0, 1)).save(path)


def counts(data: DatasetSplits) -> dict[str, int]:
    return {name: len(images) for name, images in data.splits.items()}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"),
        ("training", "validation", "testing"),
        ("train2017", "val2017", "test2017"),
        ("Train", "Val", "Test"),
        ("train", "dev", "test"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_usual_names_of_splits_are_known(tmp_path: Path, train: str, val: str, test: str, inside: bool) -> None:
    for name, count in ((train, 4), (val, 2), (test, 1)):
        for number in range(count):
            for kind, write in (("images", image), ("masks", mask)):
                place = tmp_path / name / kind if inside else tmp_path / kind / name
                write(place / f"{name}{number}.png")
    data = open_data(str(tmp_path))
    assert counts(data) == {"train": 4, "val": 2, "test": 1}
    expected = {f"{name}/ is taken for {split}/" for split, name in (("train", train), ("val", val), ("test", test))}
    assert {*data.notes} == {note for note in expected if not note.startswith(note.split("taken for ")[1])}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("image", "label"),
        ("imgs", "labels"),
        ("JPEGImages", "SegmentationClass"),
        ("Images", "annotations"),
        ("img", "gt"),
    ],
)
def test_usual_names_of_folders_are_known(tmp_path: Path, images: str, masks: str) -> None:
    for name in "abc":
        image(tmp_path / images / f"{name}.jpg")
        mask(tmp_path / masks / f"{name}.png")
    data = open_data(str(tmp_path))
    assert counts(data) == {"train": 2, "val": 1}
    assert f"{masks}/ is taken for masks/" in data.notes


@pytest.mark.parametrize(
    ("of_image", "of_mask", "together"),
    [
        ("{}.jpg", "{}_mask.gif", False),
        ("{}.png", "{}_L.png", False),
        ("{}.png", "mask_{}.png", False),
        ("{}.bmp", "{}-seg.png", False),
        ("{}_leftImg8bit.png", "{}_gtFine_labelIds.png", False),
        ("{}_sat.jpg", "{}_mask.png", True),
        ("{}.png", "{}_mask.png", True),
        ("{}.webp", "{} label.png", True),
    ],
)
def test_masks_are_found_by_the_rest_of_their_names(
    tmp_path: Path, of_image: str, of_mask: str, together: bool
) -> None:
    for name in ("p1_a", "p1_b", "p22_a"):
        image(tmp_path / ("x" if together else "images") / of_image.format(name))
        mask(tmp_path / ("x" if together else "masks") / of_mask.format(name))
    data = open_data(str(tmp_path / "x") if together else str(tmp_path))
    assert counts(data) == {"train": 2, "val": 1}
    assert torch.equal(data.splits["val"][0].mask, torch.from_numpy(stripes(0, 1)).long())
    assert any("p1_a" in note or "mask_p1" in note for note in data.notes)


def test_names_that_agree_are_never_cut(tmp_path: Path) -> None:
    for name in ("a_mask", "b_mask"):
        image(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png")
    assert find_layout(tmp_path).notes == []


def test_what_is_not_used_is_counted_with_its_place(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in "ab":
            image(tmp_path / "images" / split / f"{split}{name}.png")
            mask(tmp_path / "masks" / split / f"{split}{name}.png")
    for number in range(3):
        image(tmp_path / "images" / f"loose{number}.png")
    image(tmp_path / "more" / "x.gif")
    notes = "\n".join(find_layout(tmp_path).notes)
    assert re.search(rf"{tmp_path}/images: 3 images ignored .*loose0\.png", notes)
    assert re.search(rf"{tmp_path}/more: 1 image ignored .*x\.gif", notes)


def test_images_beside_folders_of_splits_are_told(tmp_path: Path) -> None:
    for name in "ab":
        for place in (tmp_path / "train", tmp_path):
            image(place / "images" / f"{name}.png")
            mask(place / "masks" / f"{name}.png")
    layout = find_layout(tmp_path)
    assert [len(entries) for entries in layout.splits.values()] == [2]
    assert sum("2 images ignored " in note for note in layout.notes) == 2


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / "elsewhere" / "deep" / f"{name}.png")
        mask(tmp_path / "data" / "masks" / "deep" / f"{name}.png")
    (tmp_path / "data" / "images").mkdir()
    (tmp_path / "data" / "images" / "deep").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "elsewhere" / "deep" / "again").symlink_to(tmp_path / "elsewhere")
    assert [entry.name for entry in find_layout(tmp_path / "data").splits[""]] == ["deep/a", "deep/b"]
    assert sorted(path.name for path in find_images([tmp_path / "data" / "images"])) == ["a.png", "b.png"]


def test_accents_match_however_they_are_written(tmp_path: Path) -> None:
    for name in ("Zürich", "Genève"):
        image(tmp_path / "images" / f"{unicodedata.normalize('NFD', name)}.png")
        mask(tmp_path / "masks" / f"{unicodedata.normalize('NFC', name)}.png")
    assert counts(open_data(str(tmp_path))) == {"train": 1, "val": 1}


def test_instances_alone_are_binary(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / "images" / f"{name}.png")
        put(tmp_path / "instances" / f"{name}.png", stripes(0, 3, 7, dtype=np.uint16))
    data = open_data(str(tmp_path))
    assert (data.target.kind, data.target.names) == ("binary", ("background", "object"))
    sample = data.splits["val"][0]
    assert torch.equal(sample.mask, torch.from_numpy(stripes(0, 1, 1)).long())
    assert sample.instances is not None
    assert {*sample.instances.flatten().tolist()} == {0, 3, 7}


@pytest.mark.parametrize("split", [None, "stage1_train", "train"])
def test_a_folder_for_each_image_has_a_mask_for_each_object(tmp_path: Path, split: str | None) -> None:
    """As in the Data Science Bowl 2018."""
    for name in ("a1", "b2", "c3"):
        place = tmp_path / (split or "") / name if split == "train" else tmp_path / name
        image(place / "images" / f"{name}.png")
        for number, values in enumerate((stripes(0, 255, 0, 0), stripes(0, 0, 0, 255))):
            put(place / "masks" / f"{name}{number}.png", values)
    data = open_data(str(tmp_path))
    assert counts(data) == {"train": 2, "val": 1}
    sample = data.splits["val"][0]
    assert torch.equal(sample.mask, torch.from_numpy(stripes(0, 1, 0, 1)).long())
    assert sample.instances is not None
    assert torch.equal(sample.instances, torch.from_numpy(stripes(0, 1, 0, 2)).long())


def test_many_files_without_a_mask_are_one_line(tmp_path: Path) -> None:
    for number in range(30):
        image(tmp_path / "images" / f"{number:02}.png")
    mask(tmp_path / "masks" / "00.png")
    layout = find_layout(tmp_path)
    (problem,) = layout.problems
    assert re.fullmatch(rf"{tmp_path}/images/01\.png: .*masks/01\.\*; .* 28 more files", problem)
    with pytest.raises(FileError, match=r"01\.png: .*masks/01\.\*; .* 28 more files"):
        open_data(str(tmp_path))


def test_a_shape_in_the_alpha_channel_is_the_mask(tmp_path: Path) -> None:
    """As drawing programs export a selection: one colour everywhere, and the shape in its transparency."""
    for name, colour in (("a", 0), ("b", 255)):
        image(tmp_path / "images" / f"{name}.png")
        drawn = np.full((H, W, 4), colour, np.uint8)
        drawn[..., 3] = stripes(0, 255)
        put(tmp_path / "masks" / f"{name}.png", drawn)
    data = open_data(str(tmp_path))
    assert all(torch.equal(images[0].mask, torch.from_numpy(stripes(0, 1)).long()) for images in data.splits.values())


def test_classes_that_are_not_trained_are_told(tmp_path: Path) -> None:
    for split, values in (("train", (0, 1)), ("val", (0, 3))):
        for name in "ab":
            image(tmp_path / split / "images" / f"{split}{name}.png")
            put(tmp_path / split / "masks" / f"{split}{name}.png", stripes(*values))
    (tmp_path / "classes.txt").write_text("ground\ncar\nbus\ntram\n")
    assert open_data(str(tmp_path)).notes == ("classes bus, tram occur in no training mask",)
    for name in "ab":
        put(tmp_path / "train" / "masks" / f"train{name}.png", stripes(255, 255))
    with pytest.raises(FileError, match=r"all pixels .* ignored"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("CD4+", "CD4 "), ("x-CD4_.png", "x-CD4_-2.png")),
        (("<5mm", ">5mm", "5mm"), ("x-_5mm.png", "x-_5mm-2.png", "x-5mm.png")),
        (("overlay", "Cell", "cell"), ("x-overlay-1.png", "x-Cell.png", "x-cell-3.png")),
    ],
)
def test_labels_never_share_a_file(tmp_path: Path, names: tuple[str, ...], files: tuple[str, ...]) -> None:
    target = Target("multilabel", names)
    assert tuple(path.name for path in label_paths(tmp_path / "x.png", target)) == files
    image(tmp_path / "x.png")
    (job,) = plan_outputs(
        [tmp_path / "x.png"], tmp_path / "out", target, PredictConfig(overlay=True, probabilities=True)
    )
    assert len({*job.files}) == len(names) + 2


def test_a_name_of_several_lines_is_drawn_in_one() -> None:
    sample = Sample("two\nlines\t", torch.rand(1, 20, 20), torch.zeros(20, 20).long())
    assert contact_sheet([sample], Target("binary", ("a\nb", "c"))).size[0] > 100


def test_a_mask_of_floats_with_infinity_is_refused_without_a_warning(tmp_path: Path) -> None:
    values = stripes(0, 1).astype(np.float32)
    values[0, 0] = np.inf
    with pytest.raises(FileError, match=r"is not a mask: .*12x24 float32 with NaN"):
        read_mask(put(tmp_path / "x.tif", values))


def turned(path: Path, orientation: int) -> None:
    """A photograph with an orientation in its EXIF data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(noise(H, W)).save(path, exif=exif)


def test_an_orientation_that_masks_do_not_have_is_told(tmp_path: Path) -> None:
    for name in "ab":
        turned(tmp_path / "images" / f"{name}.jpg", 3)
        mask(tmp_path / "masks" / f"{name}.png")
    (note,) = open_data(str(tmp_path)).notes
    assert re.search(r"\.jpg: is turned by 180 degrees, .*\(1 more image\)$", note)
    turned(tmp_path / "images" / "a.jpg", 6)
    with pytest.raises(FileError, match=r"masks/a\.png: is 12x24, .*a\.jpg is 24x12 .* 90 degrees, .*EXIF"):
        open_data(str(tmp_path))
    report = CliRunner().invoke(data_command, ["check", str(tmp_path)])
    assert "EXIF orientation" in report.output


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (noise(H, W), "x.png"),
        (noise(H, W, 3), "x.jpg"),
        (noise(H, W, 4), "x.png"),
        (noise(H, W, dtype=np.uint16), "x.png"),
        (noise(H, W, 3), "x.tif"),
        (noise(5, H, W, dtype=np.uint16), "x.tif"),
        (noise(H, W, 7), "x.tif"),
        (noise(H, W) > 99, "x.gif"),
        (noise(H, W, 3), "x.webp"),
    ],
)
def test_headers_say_what_is_read(tmp_path: Path, values: np.ndarray, name: str) -> None:
    put(tmp_path / name, values)
    read, header = read_image(tmp_path / name), read_header(tmp_path / name)
    assert (len(read), *read.shape[1:]) == (header.channels, *header.size)


def test_channels_are_converted_where_that_is_said(tmp_path: Path) -> None:
    for name, values in (("a", noise(H, W)), ("b", noise(H, W, 3)), ("c", noise(H, W, 3))):
        put(tmp_path / "images" / f"{name}.png", values)
        mask(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(FileError, match=r"has \d channels?, .* has \d; --channels (grey|rgb)"):
        open_data(str(tmp_path))
    for word, count in (("grey", 1), ("rgb", 3)):
        data = open_data(str(tmp_path), channels=word)
        assert data.channels == count
        samples = {
            one.name: one.image
            for images in data.splits.values()
            for one in map(images.__getitem__, range(len(images)))
        }
        assert {len(image) for image in samples.values()} == {count}
        grey = read_image(tmp_path / "images" / "a.png")
        assert torch.equal(samples["a"], grey.expand(count, -1, -1))
    with pytest.raises(OptionError, match="--channels: applies only to folders; cells"):
        open_data("cells", channels="grey")


def test_files_of_the_same_names_with_other_contents_are_noticed(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png")
    before = [fingerprint(images) for images in open_data(str(tmp_path)).splits.values()]
    assert before == [fingerprint(images) for images in open_data(str(tmp_path)).splits.values()]
    put(tmp_path / "masks" / "a.png", stripes(1, 0))
    after = [fingerprint(images) for images in open_data(str(tmp_path)).splits.values()]
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_a_truncated_image_is_told_before_training(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "images" / "b.png").write_bytes(b"nothing")
    with pytest.raises(FileError, match=r"b\.png: is not a readable image"):
        open_data(str(tmp_path))
