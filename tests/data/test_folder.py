"""Data sets as folders: the files that are read, what masks mean, splits, and torchvision's own sets."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.example_folders import GREEN, RED, SIZE, SPREAD, made, noise, put, stripes
from tests.reading import read_image
from unetkit.cli.data import data as data_command
from unetkit.data.augment import make_augment
from unetkit.data.datasets import open_data
from unetkit.data.folder import FolderDataset
from unetkit.data.io import read_mask
from unetkit.data.splits import SplitConfig, split_names
from unetkit.data.types import IGNORE, DatasetSplits, Target
from unetkit.data.visualize import label_paths, overlay, write_mask
from unetkit.errors import FileError, OptionError, UnetkitError, UnknownNameError

H, W = SIZE

Files = dict[str, np.ndarray]


def expected(values: np.ndarray) -> torch.Tensor:
    """An image's numbers by the rule, as (C, H, W)."""
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    most = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(values.dtype, 1)
    return torch.from_numpy(planes.astype(np.float32) / np.float32(most))


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("grey.png", (H, W), np.uint8),
        ("rgb.png", (H, W, 3), np.uint8),
        ("deep.png", (H, W), np.uint16),
        ("grey.tif", (H, W), np.uint8),
        ("rgb.tif", (H, W, 3), np.uint8),
        ("deep.tif", (H, W, 3), np.uint16),
        ("last.tif", (H, W, 5), np.uint16),
        ("signed.tif", (H, W), np.int16),
    ],
)
def test_an_image_is_read_by_its_depth(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: type) -> None:
    values = noise(*shape, dtype=dtype)
    assert torch.equal(read_image(put(tmp_path / name, values)), expected(values))


def test_channels_of_a_tiff_stand_where_the_file_says_or_along_the_shortest_side(tmp_path: Path) -> None:
    values = noise(5, H, W, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "plain.tif", values)
    tifffile.imwrite(tmp_path / "imagej.tif", values, imagej=True, metadata={"axes": "CYX"})
    for name in ("plain", "imagej"):
        assert torch.equal(read_image(tmp_path / f"{name}.tif"), expected(values.transpose(1, 2, 0)))
    wide = noise(40, H, W)  # more channels than rows, which only the file can tell
    tifffile.imwrite(tmp_path / "many.ome.tif", wide, metadata={"axes": "CYX"}, ome=True)
    assert read_image(tmp_path / "many.ome.tif").shape == (40, H, W)


def test_a_stack_is_refused_and_a_single_plane_of_one_is_not(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.tif", noise(4, H, W, dtype=np.uint16), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(FileError, match=r"z\.tif: .* stack .*\(ZYX 4x12x24\)"):
        read_image(tmp_path / "z.tif")
    tifffile.imwrite(tmp_path / "one.tif", noise(1, H, W))
    tifffile.imwrite(tmp_path / "last.tif", noise(H, W, 1))
    assert read_image(tmp_path / "one.tif").shape == read_image(tmp_path / "last.tif").shape == (1, H, W)


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1000, (H, W)).astype(np.float32)
    assert torch.equal(read_image(put(tmp_path / "f.tif", values)), torch.from_numpy(values)[None])


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_alpha_is_left_out(tmp_path: Path, channels: int, ending: str) -> None:
    values = noise(H, W, channels)
    path = tmp_path / f"x.{ending}"
    if ending == "png":
        Image.fromarray(values).save(path)
    else:
        photometric = "rgb" if channels == 4 else "minisblack"
        tifffile.imwrite(path, values, photometric=photometric, planarconfig="contig", extrasamples=["unassalpha"])
    assert torch.equal(read_image(path), expected(values[..., : channels - 1]))


def test_a_fourth_channel_that_is_no_alpha_is_kept(tmp_path: Path) -> None:
    values = noise(H, W, 4)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb", extrasamples=["unspecified"])
    assert torch.equal(read_image(tmp_path / "x.tif"), expected(values))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_png_of_16_bits_and_colours_keeps_all_of_them(tmp_path: Path, channels: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = noise(H, W, channels, dtype=np.uint16)
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(values))
    colours = values[..., : {2: 1, 4: 3}.get(channels, channels)]
    assert torch.equal(read_image(tmp_path / "x.png"), expected(colours))


def test_bits_palettes_and_other_spaces_become_grey_or_rgb(tmp_path: Path) -> None:
    bits = stripes(0, 1).astype(bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert torch.equal(read_image(tmp_path / "bits.png")[0], torch.from_numpy(bits).float())
    put(tmp_path / "indexed.png", stripes(0, 1), SPREAD)
    assert read_image(tmp_path / "indexed.png")[:, 0, -1].tolist() == [1, 0, 0]
    Image.fromarray(stripes(0, 1)).convert("P").save(tmp_path / "indexed.tif")
    assert read_image(tmp_path / "indexed.tif").shape == (3, H, W)
    Image.new("CMYK", (W, H)).save(tmp_path / "cmyk.jpg")
    assert torch.equal(read_image(tmp_path / "cmyk.jpg"), torch.ones(3, H, W))


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    upright = np.zeros((H, W), np.uint8)
    upright[:, : W // 2] = 255
    Image.fromarray(np.rot90(upright)).save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert torch.allclose(read_image(tmp_path / "x.jpg")[0], torch.from_numpy(upright) / 255, atol=0.1)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(FileError, match=f"{name}: the file does not exist"):
        read_image(path)
    put(path, noise(200, 200)) if name != "x.jpg" else Image.fromarray(noise(200, 200)).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"nothing like it", whole[:9], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=name) as refused:
            read_image(path)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (b"II*\0 and no more", "cannot be read as TIFF: it contains no image"),
        (b"II*\0\x08" + b"\0" * 9, "cannot be read as TIFF: "),
        (b"no tiff", "cannot be read as TIFF: TiffFileError: not a TIFF file"),
    ],
)
def test_of_a_damaged_tiff_our_own_line_is_all_that_is_said(
    damaged: bytes, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.tif").write_bytes(damaged)
    with pytest.raises(FileError) as refused:
        read_image(tmp_path / "x.tif")
    assert str(refused.value).startswith(f"{tmp_path / 'x.tif'}: {told}")
    assert not caplog.records


def test_a_tiff_of_one_row_keeps_its_channels(tmp_path: Path) -> None:
    values = noise(1, W, 3)
    tifffile.imwrite(tmp_path / "row.tif", values, photometric="rgb")
    assert torch.equal(read_image(tmp_path / "row.tif"), expected(values))


@pytest.mark.slow
def test_what_needs_imagecodecs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "x.tif", noise(H, W), compression="zstd")
    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(noise(H, W, 3, dtype=np.uint16)))
    hide = "import sys; sys.modules['imagecodecs'] = None; "
    code = f"{hide}from unetkit.data.io import read_tiff; read_tiff(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.tif")], capture_output=True, text=True)
    assert re.search(r"x\.tif: .*compression .*pip install imagecodecs", ended.stderr)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(FileError, match=r"x\.png: .* 16 bits .*imagecodecs"):
        read_image(tmp_path / "x.png")


def test_more_pixels_than_pillow_reads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 3)
    with pytest.raises(FileError, match=r"x\.png: .* Pillow .*TIFF"):
        read_image(put(tmp_path / "x.png", noise(H, W)))


def test_an_image_of_25_million_pixels_is_read(tmp_path: Path) -> None:
    Image.new("L", (5000, 5000), 51).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").shape == (1, 5000, 5000)


def held(mask: torch.Tensor) -> list[int]:
    """The values of a mask."""
    return sorted({*map(int, mask.flatten().tolist())})


def masks(data: DatasetSplits) -> list[int]:
    """The values of all masks."""
    return held(torch.cat([images[i].mask.flatten() for images in data.splits.values() for i in range(len(images))]))


INDICES = {"a": stripes(0, 1, 2), "b": stripes(0, 2), "c": stripes(1, 0)}


def colours(mask: np.ndarray) -> np.ndarray:
    return np.take(np.array([(0, 0, 0), RED, GREEN], np.uint8), mask, axis=0)


@pytest.mark.parametrize(
    ("write", "names", "shown"),
    [
        (lambda folder: made(folder, INDICES), ("background", "class 1", "class 2"), ()),
        (lambda folder: made(folder, INDICES, SPREAD), ("background", "class 1", "class 2"), ((0, 0, 0), RED, GREEN)),
        (
            lambda folder: made(folder, {name: colours(mask) for name, mask in INDICES.items()}),
            ("background", "#00ff00", "#ff0000"),
            ((0, 0, 0), GREEN, RED),
        ),
        (lambda folder: made(folder, {n: m[None] for n, m in INDICES.items()}, ending="tif"), ("background",), ()),
        (lambda folder: made(folder, {n: m[..., None] for n, m in INDICES.items()}, ending="tif"), ("background",), ()),
        (lambda folder: made(folder, {n: m.astype(np.uint16) for n, m in INDICES.items()}), ("background",), ()),
        (lambda folder: made(folder, {n: m.astype(np.float32) for n, m in INDICES.items()}, ending="tif"), (), ()),
        (lambda folder: made(folder, {n: np.stack([m] * 3, -1) for n, m in INDICES.items()}), ("background",), ()),
    ],
    ids=["indices", "palette", "rgb", "1HW", "HW1", "16 bit", "float", "grey rgb"],
)
def test_three_classes_are_read_from_every_kind_of_mask(
    tmp_path: Path, write: Callable[[Path], Path], names: tuple[str, ...], shown: tuple[tuple[int, int, int], ...]
) -> None:
    data = open_data(str(write(tmp_path)))
    assert data.target.kind == "multiclass"
    assert data.target.names[: len(names)] == names
    assert not shown or data.target.colours == shown
    assert (len(data.target.names), data.channels, masks(data)) == (3, 1, [0, 1, 2])
    (mask,) = [
        one.mask
        for images in data.splits.values()
        for one in map(images.__getitem__, range(len(images)))
        if one.name == "a"
    ]
    order = [0, 2, 1] if "#00ff00" in names else [0, 1, 2]  # green sorts before red
    assert torch.equal(mask, torch.tensor(order)[torch.from_numpy(INDICES["a"]).long()])


@pytest.mark.parametrize("yes", [1, 255])
def test_two_classes_are_binary(tmp_path: Path, yes: int) -> None:
    data = open_data(str(made(tmp_path, {"a": stripes(0, yes), "b": stripes(0, 0)})))
    assert (data.target.kind, data.target.outputs, masks(data)) == ("binary", 1, [0, 1])
    Image.fromarray(stripes(0, 1).astype(bool)).save(tmp_path / "masks" / "b.png")
    if yes == 255:
        assert masks(open_data(str(tmp_path))) == [0, 1]


def test_255_counts_nowhere_beside_other_indices(tmp_path: Path) -> None:
    data = open_data(str(made(tmp_path, {"a": stripes(0, 1, 255), "b": stripes(0, 1)})))
    assert (data.target.kind, masks(data)) == ("binary", [IGNORE, 0, 1])


def test_another_number_is_ignored_where_that_is_said(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a": stripes(0, 1, 2), "b": stripes(0, 2)})
    assert masks(open_data(str(folder), ignore_index=2)) == [IGNORE, 0, 1]
    data = open_data(str(folder), ignore_index=0)  # what is left has no gap: classes 1 and 2
    assert (len(data.target.names), masks(data)) == (2, [IGNORE, 0, 1])
    assert (
        open_data(str(made(tmp_path / "y", {"a": stripes(0, 128, 255), "b": stripes(0, 0)})), ignore_index=128).channels
        == 1
    )


def test_a_negative_number_can_be_the_one_that_is_ignored(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a": stripes(0, 1, -1, dtype=np.int16), "b": stripes(0, 1, dtype=np.int16)}, ending="tif")
    assert masks(open_data(str(folder), ignore_index=-1)) == [IGNORE, 0, 1]
    data = open_data(str(folder))
    assert masks(data) == [IGNORE, 0, 1]
    (note,) = data.notes
    assert note.startswith("-1 in masks, as in ")


@pytest.mark.parametrize("huge", [2**31 - 2, 2**32 - 1, 2**53])
def test_a_huge_number_takes_no_memory(tmp_path: Path, huge: int) -> None:
    folder = made(tmp_path, {name: stripes(0, 1, huge, dtype=np.int64) for name in "ab"}, ending="tif")
    if huge == 2**32 - 1:  # the largest of 32 bits is none of a class
        assert masks(open_data(str(folder))) == [IGNORE, 0, 1]
        return
    with pytest.raises(FileError, match=f"holds {huge}; classes are numbers from 0 without gaps"):
        open_data(str(folder))


@pytest.mark.parametrize("values", [(200, 255), (254, 255), (0, 128), (0, 2), (0, 15), (0, 65535)])
def test_any_two_numbers_are_binary(tmp_path: Path, values: tuple[int, int]) -> None:
    mask = stripes(*values, dtype=np.uint16 if max(values) > 255 else np.uint8)
    data = open_data(str(made(tmp_path, {"a": mask, "b": mask})))
    assert (data.target.kind, masks(data)) == ("binary", [0, 1])
    assert data.notes == (f"the numbers {values[0]}, {values[1]} in masks are classes, in this order",)


@pytest.mark.parametrize("values", [(0, 85, 170, 255), (0, 128, 255), (0, 50, 100, 150)])
def test_few_evenly_spread_numbers_are_classes(tmp_path: Path, values: tuple[int, ...]) -> None:
    data = open_data(str(made(tmp_path, {name: stripes(*values) for name in "ab"})))
    assert (data.target.kind, masks(data)) == ("multiclass", [*range(len(values))])


def test_classes_txt_gives_numbers_to_classes(tmp_path: Path) -> None:
    folder = made(tmp_path, {name: stripes(0, 40, 7) for name in "ab"})
    (folder / "classes.txt").write_text("ground 0\ncar 40\nold tree 7\nnever 9\n")
    data = open_data(str(folder))
    assert data.target.names == ("ground", "car", "old tree", "never")
    assert torch.equal(data.splits["val"][0].mask, torch.from_numpy(stripes(0, 1, 2)).long())
    assert masks(open_data(str(folder), ignore_index=7)) == [IGNORE, 0, 1]
    (folder / "classes.txt").write_text("zone 1\nzone 2\nzone 3\n")
    data = open_data(str(folder))  # names that end in numbers, as many as there are numbers
    assert data.target.names == ("zone 1", "zone 2", "zone 3")
    (note,) = data.notes
    assert "0, 7, 40" in note


def test_of_two_colours_the_larger_is_the_background(tmp_path: Path) -> None:
    mask = np.take(np.array([RED, GREEN], np.uint8), stripes(0, 0, 0, 1), axis=0)
    data = open_data(str(made(tmp_path, {"a": mask, "b": mask})))
    assert data.target.colours == (RED, GREEN)
    (note,) = data.notes
    assert note.startswith("#ff0000 is taken for the background, ")
    assert "#00ff00; classes.txt" in note


def smooth_edges(image: Image.Image, how: str) -> np.ndarray:
    """A mask as it is after what people do to masks."""
    if how == "resized":
        return np.array(image.resize((160, 120), Image.Resampling.BICUBIC))
    if how == "anti-aliased":
        return np.array(image.resize((400, 300), Image.Resampling.NEAREST).resize((100, 75), Image.Resampling.BOX))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=90)
    return np.array(Image.open(packed))


@pytest.mark.parametrize("how", ["resized", "anti-aliased", "jpeg"])
@pytest.mark.parametrize("kind", ["grey", "three greys", "colours"])
def test_what_lies_between_classes_along_edges_is_no_class(tmp_path: Path, kind: str, how: str) -> None:
    y, x = np.mgrid[:90, :120]
    mask = ((y - 40) ** 2 + (x - 50) ** 2 < 900).astype(np.uint8)
    if kind != "grey":
        mask[(y > 60) & (x > 80)] = 2
    table = {"grey": [0, 255], "three greys": [0, 100, 255], "colours": [(0, 0, 0), (200, 30, 30), (30, 60, 220)]}[kind]
    made_smooth = smooth_edges(Image.fromarray(np.take(np.array(table, np.uint8), mask, axis=0)), how)
    for name in "abc":
        put(tmp_path / "images" / f"{name}.png", np.zeros(made_smooth.shape[:2], np.uint8))
        put(tmp_path / "masks" / f"{name}.png", made_smooth)
    why = r"a\.png: holds (.* between or next to .*nearest|1039 colours, .*JPEG)"
    with pytest.raises(FileError, match=why):
        open_data(str(tmp_path))


def test_odd_colours_in_one_file_are_told(tmp_path: Path) -> None:
    for name in "abcde":
        drawn = colours(stripes(0, 1, 2)).repeat(8, 0).repeat(8, 1)
        if name == "c":
            drawn[3:5, 100], drawn[9, 10:12] = (250, 2, 3), (6, 0, 4)
        put(tmp_path / "images" / f"{name}.png", np.zeros(drawn.shape[:2], np.uint8))
        put(tmp_path / "masks" / f"{name}.png", drawn)
    with pytest.raises(FileError, match=r"c\.png: holds 2 colours such as #\w+ "):
        open_data(str(tmp_path))


def test_thin_and_rare_classes_are_classes(tmp_path: Path) -> None:
    """Lines of a colour of their own, as poles in streets are, are no mixture of what is beside them."""
    rng, colours_ = np.random.default_rng(0), np.array([(128, 128, 128), (128, 0, 0), (192, 192, 128), (64, 0, 128)])
    for name in "abcd":
        mask = np.zeros((80, 100), np.uint8)
        mask[40:] = 1
        mask[20:60, int(rng.integers(10, 90))] = 2
        mask[50:52, 3:5] = 3
        put(tmp_path / "images" / f"{name}.png", np.zeros((80, 100), np.uint8))
        put(tmp_path / "masks" / f"{name}.png", colours_.astype(np.uint8)[mask])
    assert len(open_data(str(tmp_path)).target.names) == 4


def test_more_classes_than_masks_ought_to_hold_are_read_where_they_are_named(tmp_path: Path) -> None:
    mask = np.arange(H * W).reshape(H, W) % 100
    folder = made(tmp_path, {"a": mask.astype(np.uint8), "b": mask.astype(np.uint8)})
    with pytest.raises(FileError, match="holds 100 different numbers, more than 64"):
        open_data(str(folder))
    (folder / "classes.txt").write_text("".join(f"c{number}\n" for number in range(100)))
    assert masks(open_data(str(folder))) == [*range(100)]


def test_masks_of_0_and_1_among_masks_of_0_and_255_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"b\.png: holds 0 and 255, but .*a\.png 0 and 1; "):
        open_data(str(made(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 255)})))


def test_palettes_that_differ_are_read_by_colour(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 0)}, (0, 0, 0, *RED))
    put(folder / "masks" / "b.png", stripes(1, 0), (*RED, 0, 0, 0))
    data = open_data(str(folder))
    assert data.target.colours == ((0, 0, 0), RED)
    read = {sample.name: sample.mask for images in data.splits.values() for sample in (images[0],)}
    assert torch.equal(read["a"], torch.from_numpy(stripes(0, 1)).long())
    assert torch.equal(read["b"], torch.from_numpy(stripes(0, 1)).long())


def test_a_grey_pixel_among_masks_of_0_and_255_is_told_as_that(tmp_path: Path) -> None:
    stray = stripes(0, 255)
    stray[0, 0] = 128
    folder = made(tmp_path, {"a": stripes(0, 255), "b": stripes(0, 255), "c": stray})
    with pytest.raises(FileError, match=r"c\.png: holds 128; .* 0, 128, 255"):
        open_data(str(folder))


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (
            stripes(0, 3, 4),
            "holds 4; .* all masks hold 0, 3, 4; ",
        ),
        (
            stripes(0, 128, 200),
            r"hold 0, 128, 200; .*classes\.txt, .*--ignore-index",
        ),
        (stripes(0, 1, 60000, dtype=np.uint16), "holds 60000; classes are numbers from 0"),
        (noise(H, W, 3), "colours, more than 64; .*JPEG"),
        (noise(H, W, dtype=np.uint16), "numbers, more than 64; .*instances/"),
        (
            np.full((H, W, 3), (9, 8, 7), np.uint8),
            "only one class, #090807",
        ),
    ],
    ids=["gap", "one gap", "huge", "photo", "instances", "one colour"],
)
def test_masks_that_hold_no_classes_are_refused(tmp_path: Path, mask: np.ndarray, why: str) -> None:
    with pytest.raises(FileError, match=why):
        open_data(str(made(tmp_path, {"a": mask, "b": mask})))


@pytest.mark.parametrize("values", [noise(H, W, 5), np.full((H, W), 0.5, np.float32), noise(H, W, 3, dtype=np.uint16)])
def test_what_is_no_mask_is_refused_with_what_it_holds(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(
        FileError, match=f"is not a mask: it contains {'x'.join(map(str, values.shape))} {values.dtype}"
    ):
        read_mask(put(tmp_path / "x.tif", values))


def test_classes_txt_names_orders_and_colours(tmp_path: Path) -> None:
    folder = made(tmp_path, {name: colours(mask) for name, mask in INDICES.items()})
    (folder / "classes.txt").write_text("# of ours\nsoil 0 0 0\nred deer 255 0 0\ngrass 0 255 0\nnever 9 9 9\n")
    data = open_data(str(folder))
    assert data.target == Target(
        "multiclass", ("soil", "red deer", "grass", "never"), ((0, 0, 0), RED, GREEN, (9, 9, 9))
    )
    assert masks(data) == [0, 1, 2]
    (folder / "classes.txt").write_text("soil 0 0 0\nred deer 255 0 0\n")
    with pytest.raises(FileError, match=r"masks/.*\.png: holds #00ff00, .*#000000, #ff0000"):
        open_data(str(folder))


def test_classes_txt_allows_classes_that_do_not_occur(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a": stripes(0, 3), "b": stripes(0, 255)})
    (folder / "classes.txt").write_text("one\ntwo\nthree\nfour\n")
    data = open_data(str(folder))
    assert (data.target.names, masks(data)) == (("one", "two", "three", "four"), [IGNORE, 0, 3])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a 0 0 0\nb\n", "1 of 2 lines have a colour"),
        ("a 0 0 256\nb 1 1 1\n", "the colour of a is 0 0 256"),
        ("a\na\n", "the name a appears twice"),
        ("a 1 1 1\nb 1 1 1\n", r"the colour \(1, 1, 1\) appears twice"),
    ],
)
def test_a_wrong_classes_txt_is_refused(tmp_path: Path, text: str, why: str) -> None:
    folder = made(tmp_path, INDICES)
    (folder / "classes.txt").write_text(text)
    with pytest.raises(FileError, match=f"classes.txt: {why}"):
        open_data(str(folder))


def test_a_folder_a_label_is_multi_label(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        put(tmp_path / "images" / f"{name}.png", noise(H, W, seed=len(name)))
        put(tmp_path / "masks" / "wall" / f"{name}.png", stripes(0, 255))
        put(tmp_path / "masks" / "nucleus" / f"{name}.png", stripes(255, 255))
    data = open_data(str(tmp_path))
    assert (data.target.kind, data.target.names) == ("multilabel", ("nucleus", "wall"))
    mask = data.splits["train"][0].mask
    assert torch.equal(mask, torch.from_numpy(np.stack([stripes(1, 1), stripes(0, 1)]).astype(np.int64)))
    (tmp_path / "classes.txt").write_text("wall\nnucleus\n")
    assert open_data(str(tmp_path)).target.names == ("wall", "nucleus")
    (tmp_path / "classes.txt").write_text("wall\nnuclei\n")
    with pytest.raises(FileError, match=r"wall, nuclei, .* masks/ are nucleus, wall"):
        open_data(str(tmp_path))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 1)})
    put(folder / "images" / "a.png", noise(H + 1, W))
    with pytest.raises(FileError, match=r"masks/a\.png: is 12x24, .*13x24; .*`unetkit data check"):
        open_data(str(folder))


def test_instances_are_read_beside_the_masks(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a": stripes(0, 1), "b": stripes(0, 1)})
    labels = stripes(0, 70000, dtype=np.int32)
    for name in ("a", "b"):
        put(folder / "instances" / f"{name}.tif", labels)
    instances = open_data(str(folder)).splits["val"][0].instances
    assert instances is not None
    assert torch.equal(instances, torch.from_numpy(labels.astype(np.int64)))


def test_unmatched_files_are_refused_with_the_command_that_lists_them(tmp_path: Path) -> None:
    folder = made(tmp_path, INDICES)
    (folder / "masks" / "a.png").unlink()
    with pytest.raises(FileError, match=r"images/a\.png: .*masks/a\.\*; .*`unetkit data check "):
        open_data(str(folder))


@pytest.mark.parametrize("inside", [True, False])
def test_splits_that_folders_say_are_kept(tmp_path: Path, inside: bool) -> None:
    for split_, count in {"train": 3, "val": 1, "test": 2}.items():
        for index in range(count):
            for kind, values in {"images": noise(H, W, seed=index), "masks": stripes(0, 1)}.items():
                place = tmp_path / split_ / kind if inside else tmp_path / kind / split_
                put(place / f"{split_}{index}.png", values)
    data = open_data(str(tmp_path))
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 3, "val": 1, "test": 2}
    assert all(data.splits[name][0].name == f"{name}0" for name in data.splits)


def test_training_images_without_val_are_split(tmp_path: Path) -> None:
    made(tmp_path / "train", {str(number): stripes(0, 1) for number in range(10)})
    data = open_data(str(tmp_path), val_fraction=0.3)
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 7, "val": 3}


def test_a_target_that_is_known_reads_a_folder_that_lacks_classes(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a": stripes(0, 3), "b": stripes(0, 0)})
    target = Target("multiclass", ("no", "one", "two", "three"))
    data = open_data(str(folder), target=target)
    assert (data.target, masks(data)) == (target, [0, 3])
    with pytest.raises(FileError, match="holds 3, but classes are 0, 1, 2"):
        open_data(str(folder), target=Target("multiclass", ("no", "one", "two")))


@pytest.mark.parametrize("by_colour", [False, True])
def test_a_known_target_and_an_ignored_number_read_what_was_trained_on(tmp_path: Path, by_colour: bool) -> None:
    made(tmp_path, {name: colours(mask) if by_colour else mask for name, mask in INDICES.items()})
    trained = open_data(str(tmp_path), ignore_index=0)
    again = open_data(str(tmp_path), ignore_index=0, target=trained.target)
    assert again.splits == trained.splits
    assert masks(again) == [IGNORE, 0, 1]


@pytest.mark.parametrize("said", ["cells:count=3,val=1,test=1,size=32", "cells:count=3,val=1,test=1,size=32,classes=4"])
def test_a_set_that_is_written_as_files_is_read_back(tmp_path: Path, said: str) -> None:
    assert CliRunner().invoke(data_command, ["write", said, "--out", str(tmp_path / "x")]).exit_code == 0
    there, back = open_data(said), open_data(str(tmp_path / "x"))
    assert (back.target, back.splits.keys()) == (there.target, there.splits.keys())
    for name, images in there.splits.items():
        for index in range(len(images)):
            one, other = images[index], back.splits[name][index]
            assert (one.name, torch.equal(one.mask, other.mask)) == (other.name, True)
            assert one.instances is not None
            assert other.instances is not None
            assert torch.equal(one.instances, other.instances)
            assert torch.allclose(one.image.clamp(0, 1), other.image, atol=1e-5)


def test_a_folder_is_augmented_by_words_that_there_are(tmp_path: Path) -> None:
    data = open_data(str(made(tmp_path, INDICES)))
    sample, _ = make_augment(data.augment, (8, 8))(data.splits["train"][0], None, 0)
    assert (sample.image.shape, sample.mask.shape) == ((1, 8, 8), (8, 8))


def test_a_split_can_be_sent_to_another_process(tmp_path: Path) -> None:
    images = open_data(str(made(tmp_path, INDICES))).splits["train"]
    assert isinstance(images, FolderDataset)
    assert torch.equal(pickle.loads(pickle.dumps(images))[0].image, images[0].image)


NAMES = st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=30, unique=True)


@given(names=NAMES, seed=st.integers(0, 5), val=st.floats(0, 0.9))
def test_a_split_is_whole_disjoint_and_has_two_sides(names: list[str], seed: int, val: float) -> None:
    train, rest = split_names(names, SplitConfig(seed, val))
    assert sorted(train + rest) == [*range(len(names))]
    assert len(rest) == min(max(1, round(val * len(names))), len(names) - 1)


@given(names=NAMES, seed=st.integers(0, 5), val=st.floats(0, 0.9))
@settings(max_examples=50)
def test_a_split_never_parts_a_group(names: list[str], seed: int, val: float) -> None:
    if len({name[0] for name in names}) > 1:
        train, rest = split_names(names, SplitConfig(seed, val, "^(.)"))
        assert rest
        assert not {names[i][0] for i in train} & {names[i][0] for i in rest}


@given(names=NAMES, seed=st.integers(0, 5), val=st.floats(0, 0.9), data=st.data())
def test_a_name_that_is_added_moves_at_most_one_other(
    names: list[str], seed: int, val: float, data: st.DataObject
) -> None:
    added = [*names, "new"]
    before, after = ({(few[i]) for i in split_names(few, SplitConfig(seed, val))[1]} for few in (names, added))
    assert len((before ^ after) - {"new"}) <= 1
    order = data.draw(st.permutations(names))
    assert {order[i] for i in split_names(order, SplitConfig(seed, val))[1]} == before


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"group_by": "("}, r"--group-by \(: is not a regular expression"),
        ({"group_by": "^x"}, "--group-by .*: matches nothing in 'a'"),
        ({"group_by": ".*(z)?"}, "gives only one group"),
        ({"val_fraction": 1}, "--val-fraction 1: .* below 1"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(rules: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        split_names(["a", "a"] if "one group" in why else ["a", "b"], SplitConfig(**rules))


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("nowhere", FileError, "nowhere: the folder does not exist; "),
        ("cell:size=9", UnknownNameError, "'cell' (did you mean cells?)"),
        ("cells:sise=9", OptionError, "'sise' (did you mean size"),
        ("cells:size=x", OptionError, "size must be an integer; got x"),
        ("voc", OptionError, "voc needs root=..., "),
        ("pet:root=x,border=9", OptionError, "border must be one of ignore, pet, class"),
        ("voc:root=a+b", OptionError, "in double quotes"),
        ("voc:root=nowhere", FileError, "nowhere/VOCdevkit/VOC2012 with JPEGImages"),
        ("pet:root=nowhere", FileError, "nowhere/oxford-iiit-pet with images"),
        ("cityscapes:root=nowhere", FileError, "it expects nowhere/leftImg8bit and nowhere/gtFine"),
    ],
)
def test_a_set_that_cannot_be_opened_is_refused_in_one_line(text: str, kind: type[UnetkitError], why: str) -> None:
    with pytest.raises(kind) as refused:
        open_data(text)
    assert why in str(refused.value)


def test_options_of_folders_are_refused_for_sets_that_have_their_own() -> None:
    for words in ({"group_by": "x"}, {"ignore_index": 0}):
        with pytest.raises(
            OptionError, match=f"--{next(iter(words)).replace('_', '-')}: applies only to folders; cells defines its"
        ):
            open_data("cells", **words)


def test_a_folder_by_the_name_of_a_set_is_written_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "cells", INDICES)
    monkeypatch.chdir(tmp_path)
    assert open_data("cells:count=2,val=1,test=1,size=32").target.names == ("background", "cell")
    assert open_data("./cells").target.names == ("background", "class 1", "class 2")


def test_voc_is_read_by_torchvision(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for split_, names in {"train": ["t1", "t2"], "val": ["v1"]}.items():
        listed = root / "ImageSets" / "Segmentation" / f"{split_}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names))
        for name in names:
            (root / "JPEGImages").mkdir(exist_ok=True)
            Image.fromarray(noise(H, W, 3)).save(root / "JPEGImages" / f"{name}.jpg")
            put(root / "SegmentationClass" / f"{name}.png", stripes(0, 20, 255), SPREAD)
    data = open_data(f"voc:root={tmp_path}")
    assert (data.target.names[20], len(data.target.names), data.channels) == ("tvmonitor", 21, 3)
    assert [[images[i].name for i in range(len(images))] for images in data.splits.values()] == [["t1", "t2"], ["v1"]]
    sample = data.splits["val"][0]
    assert (sample.image.shape, sample.image.dtype, sample.mask.dtype) == ((3, H, W), torch.float32, torch.int64)
    assert held(sample.mask) == [IGNORE, 0, 20]
    (root / "JPEGImages" / "v1.jpg").write_bytes(b"")
    with pytest.raises(FileError, match="VOCSegmentation v1: cannot be read"):
        data.splits["val"][0]


def test_pet_is_read_by_torchvision_and_split_by_seed(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    names = {"trainval": [f"Cat_{n}" for n in range(5)] + [f"Dog_{n}" for n in range(5)], "test": ["Cat_9"]}
    for split_, found in names.items():
        listed = root / "annotations" / f"{split_}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{name} {1 + name.startswith('Dog')} 1 1\n" for name in found))
        for name in found:
            (root / "images").mkdir(exist_ok=True)
            Image.fromarray(noise(H, W, 3)).save(root / "images" / f"{name}.jpg")
            put(root / "annotations" / "trimaps" / f"{name}.png", stripes(1, 2, 3))
    data = open_data(f"pet:root={tmp_path}")
    assert ({n: len(i) for n, i in data.splits.items()}, data.target.kind) == (
        {"train": 8, "val": 2, "test": 1},
        "binary",
    )
    assert held(data.splits["test"][0].mask) == [IGNORE, 0, 1]
    assert held(open_data(f"pet:root={tmp_path},border=pet").splits["test"][0].mask) == [0, 1]
    three = open_data(f"pet:root={tmp_path},border=class", group_by="^[A-Z]")
    assert (three.target.names, held(three.splits["test"][0].mask)) == (
        ("background", "pet", "border"),
        [0, 1, 2],
    )
    assert {images[i].name[0] for images in (three.splits["val"],) for i in range(len(images))} in ({"C"}, {"D"})


def test_cityscapes_is_read_by_torchvision_as_19_classes(tmp_path: Path) -> None:
    for split_ in ("train", "val"):
        place = Path(split_, "town")
        (tmp_path / "leftImg8bit" / place).mkdir(parents=True)
        Image.fromarray(noise(H, W, 3)).save(tmp_path / "leftImg8bit" / place / "town_0_0_leftImg8bit.png")
        mask = stripes(0, 7, 33, 29)  # unlabelled, road, bicycle, caravan
        put(tmp_path / "gtFine" / place / "town_0_0_gtFine_labelIds.png", mask)
        put(tmp_path / "gtFine" / place / "town_0_0_gtFine_instanceIds.png", mask)
        put(tmp_path / "gtFine" / place / "town_0_0_gtFine_color.png", mask)
        (tmp_path / "gtFine" / place / "town_0_0_gtFine_polygons.json").write_text(json.dumps({}))
    data = open_data(f"cityscapes:root={tmp_path}")
    assert (len(data.target.names), data.target.names[0], data.target.colours[0]) == (19, "road", (128, 64, 128))
    sample = data.splits["val"][0]
    assert (sample.name, held(sample.mask)) == ("town_0_0", [IGNORE, 0, 18])


def test_a_written_mask_is_read_back(tmp_path: Path) -> None:
    target = Target("multiclass", ("no", "one", "two"), ((0, 0, 0), RED, GREEN))
    mask = torch.from_numpy(stripes(0, 2, 1).astype(np.int64))
    mask[0] = IGNORE
    (path,) = write_mask(tmp_path / "x.png", mask, target)
    values, palette, _ = read_mask(path)
    assert palette is not None
    assert (palette[1].tolist(), palette[2].tolist()) == ([*RED], [*GREEN])
    assert torch.equal(torch.from_numpy(values.astype(np.int64)), torch.where(mask == IGNORE, 255, mask))


def test_labels_are_written_to_a_file_each(tmp_path: Path) -> None:
    target = Target("multilabel", ("cell wall", "core"))
    mask = torch.from_numpy(np.stack([stripes(0, 1), stripes(1, 1)]).astype(np.int64))
    paths = write_mask(tmp_path / "x.png", mask, target)
    assert paths == label_paths(tmp_path / "x.png", target) == [tmp_path / "x-cell_wall.png", tmp_path / "x-core.png"]
    assert np.array_equal(read_mask(paths[0]).values, stripes(0, 255))


def test_an_overlay_colours_what_is_not_background_at_half_strength() -> None:
    target = Target("binary", ("no", "yes"), ((0, 0, 0), RED))
    image = torch.zeros(2, H, W)
    image[:, :, W // 2 :] = 1  # the left half is black and the right one white
    mask = torch.zeros(H, W, dtype=torch.int64)
    mask[H // 2 :] = 1
    mask[0] = IGNORE
    shown = np.asarray(overlay(image, mask, target))
    assert shown.shape == (H, W, 3)
    assert [shown[y, x].tolist() for y, x in ((0, 0), (1, -1), (-1, 0), (-1, -1))] == [
        [0, 0, 0],
        [255, 255, 255],
        [128, 0, 0],
        [255, 128, 128],
    ]


def test_overlapping_labels_are_mixed() -> None:
    target = Target("multilabel", ("a", "b"), (RED, GREEN))
    shown = np.asarray(overlay(torch.zeros(1, H, W), torch.ones(2, H, W, dtype=torch.int64), target))
    assert shown[0, 0].tolist() == [64, 64, 0]
