"""`unetkit predict`: image files of any size and kind become masks, probabilities and overlays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

import unetkit
from tests.reading import read_image
from tests.rounding import assert_equal_to_rounding
from unetkit.cli import cli
from unetkit.data.io import read_mask
from unetkit.data.statistics import ValueRange
from unetkit.data.types import Target
from unetkit.errors import FileError, OptionError
from unetkit.predict import image_reader as opening
from unetkit.predict import tiled
from unetkit.predict.config import PredictConfig
from unetkit.predict.image_reader import TiffWindows, open_image
from unetkit.predict.mask_writer import PngWriter
from unetkit.predict.predictor import (
    PredictCallback,
    PredictionJob,
    plan_outputs,
    predict_all,
)
from unetkit.predict.torch_engine import explain_if_too_large, make_predictor
from unetkit.train.checkpoint import BEST, TrainRun
from unetkit.train.config import TrainConfig

SMALL = "plain:widths=[4,8]"


#: Of images of any kind: no augmentation asks for it here.
RANGE = ValueRange((0.0,), (1.0,))


def trained(folder: Path, target: Target, channels: int = 1, **words: Any) -> TrainRun:
    """A run as training leaves it, of a network that has learned nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = words.pop("encoder", SMALL)
    model = unetkit.build(encoder, in_channels=channels, classes=target.outputs, seed=0, **words)
    plugins = (words["parts"],) if "parts" in words else ()
    run = TrainRun(
        folder,
        model.plan,
        TrainConfig(),
        target,
        channels,
        (0.5,) * channels,
        (0.25,) * channels,
        RANGE,
        plugins=plugins,
    )
    run.write()
    unetkit.save(model, folder / BEST)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    return trained(tmp_path_factory.mktemp("runs") / "three", Target("multiclass", ("ground", "cell", "edge")))


def pixels(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 256 if dtype == np.uint8 else 65536, shape)
    return drawn.astype(dtype)


def called(*words: object) -> Result:
    return CliRunner().invoke(cli, ["predict", *map(str, words)])


KINDS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "one strip": (pixels(70, 50), {}),
    "strips": (pixels(70, 50), {"rowsperstrip": 16}),
    "lzw strips": (pixels(70, 50), {"rowsperstrip": 16, "compression": "lzw"}),
    "deflate tiles": (pixels(70, 50), {"tile": (32, 16), "compression": "zlib", "predictor": True}),
    "tiles": (pixels(70, 50), {"tile": (32, 32)}),
    "16 bit": (pixels(70, 50, dtype=np.uint16), {"tile": (32, 32), "compression": "lzw"}),
    "big-endian": (pixels(70, 50, dtype=np.uint16), {"byteorder": ">"}),
    "big-endian strips": (
        pixels(70, 50, dtype=np.uint16),
        {"byteorder": ">", "compression": "zlib", "rowsperstrip": 9},
    ),
    "float": (pixels(70, 50).astype(np.float32) / 7, {"compression": "zlib"}),
    "colour": (pixels(70, 50, 3), {"photometric": "rgb"}),
    "colour tiles": (pixels(70, 50, 3), {"photometric": "rgb", "tile": (32, 32), "compression": "lzw"}),
    "colour planes": (pixels(3, 70, 50), {"photometric": "rgb", "planarconfig": "separate", "compression": "lzw"}),
    "colour planes in one": (pixels(3, 70, 50), {"photometric": "rgb", "planarconfig": "separate"}),
    "colour planes in tiles": (
        pixels(3, 70, 50),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 32), "compression": "zlib"},
    ),
    "alpha": (pixels(70, 50, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (32, 32)}),
    "five channels": (pixels(70, 50, 5), {"photometric": "minisblack", "planarconfig": "contig"}),
    "channels as pages": (pixels(4, 70, 50), {"photometric": "minisblack", "metadata": {"axes": "CYX"}}),
    "channels as compressed pages": (
        pixels(4, 70, 50),
        {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "compression": "zlib", "rowsperstrip": 7},
    ),
    "ome": (pixels(2, 70, 50, dtype=np.uint16), {"ome": True, "metadata": {"axes": "CYX"}, "tile": (32, 32)}),
    "imagej": (pixels(2, 70, 50, dtype=np.uint16), {"imagej": True, "metadata": {"axes": "CYX"}}),
    "jpeg": (np.repeat(np.repeat(pixels(10, 8, 3), 8, 0), 8, 1), {"compression": "jpeg", "tile": (32, 32)}),
    "white is zero": (pixels(70, 50), {"photometric": "miniswhite", "tile": (32, 32)}),
    "black and white": (pixels(70, 50) > 99, {"photometric": "minisblack"}),
    "bigtiff": (pixels(70, 50), {"bigtiff": True, "tile": (32, 32)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_tiff_are_those_of_the_whole(kind: str, tmp_path: Path) -> None:
    values, how = KINDS[kind]
    path = tmp_path / "a.tif"
    if how.pop("ome", False):
        path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, values, **how)
    whole = read_image(path)
    with open_image(path) as picture:
        assert isinstance(picture, opening._WindowReader)
        assert (picture.channels, *picture.size) == tuple(whole.shape)
        for rows in (slice(0, 40), slice(31, 33), slice(20, whole.shape[1])):
            for columns in (slice(0, 20), slice(15, whole.shape[2])):
                assert np.array_equal(picture.read(rows, columns), whole[:, rows, columns])


def test_a_palette_and_what_is_no_tiff_are_read_whole(tmp_path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    colours[0] = np.arange(256) * 257
    tifffile.imwrite(tmp_path / "a.tif", pixels(20, 30), photometric="palette", colormap=colours)
    Image.fromarray(pixels(20, 30, 3)).save(tmp_path / "b.png")
    for name in ("a.tif", "b.png"):
        with open_image(tmp_path / name) as picture:
            assert (picture.channels, picture.size) == (3, (20, 30))
            assert np.array_equal(picture.read(slice(3, 9), slice(0, 30)), read_image(tmp_path / name)[:, 3:9])


def test_only_the_segments_of_a_window_are_decoded_and_each_once_in_a_row_of_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels(640, 320), tile=(64, 64), compression="zlib")
    decoded: list[int] = []
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        stored = TiffWindows(file)
        decode = stored._page.decode

        def counted(data: Any, index: int, **how: Any) -> Any:
            decoded.append(index)
            return decode(data, index, **how)

        monkeypatch.setattr(stored._page, "decode", counted)
        for left in (0, 100, 200):
            stored.read(slice(100, 200), slice(left, left + 120))
        assert sorted(decoded) == list(range(5, 20))
        stored.read(slice(600, 640), slice(0, 64))
        assert len(stored._held) == 1


@pytest.mark.parametrize("palette", [b"", bytes(range(256)) * 3])
def test_a_png_written_by_rows_is_what_pillow_reads(palette: bytes, tmp_path: Path) -> None:
    values = pixels(33, 50)
    with (tmp_path / "a.png").open("wb") as file:
        rows = PngWriter(file, (33, 50), palette)
        for part in (values[:7], values[7:8], values[8:]):
            rows.add(part)
        rows.finish()
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
    with Image.open(tmp_path / "a.png") as image:
        assert (np.asarray(image) == values).all()
        assert image.mode == ("P" if palette else "L")
        assert not palette or bytes(image.getpalette() or ()) == palette


def chances(run: TrainRun, path: Path) -> Tensor:
    """The probabilities of an image's pixels (L, H, W)."""
    x = run.normalize(read_image(path))
    return tiled(run.network(), x, tile=(1200, 1200), then=run.target.probabilities)


def test_a_file_becomes_a_mask_with_the_runs_palette(run: TrainRun, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(600, 300), tile=(64, 64), compression="lzw")
    result = called(run.folder, path, "--out", tmp_path / "out", "--tile", "128x96", "--batch-size", 3, "--check")
    assert result.exit_code == 0, result.output
    assert "in tiles of 128x96 that overlap by 18x18: exactly " in result.output
    assert "0 of 180,000 pixels have another class" in result.output
    assert result.stdout == f"1 of 1 image written to {tmp_path / 'out'}\n"
    written = read_mask(tmp_path / "out" / "a.png")
    assert (torch.from_numpy(written.values) == run.target.to_mask(chances(run, path)[None])[0]).float().mean() == 1
    assert written.palette is not None
    assert [tuple(colour) for colour in written.palette[:3].tolist()] == [*run.target.colours]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.png"]


def test_probabilities_are_a_tiff_of_a_channel_a_class(run: TrainRun, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(530, 300))
    result = called(run.folder, path, "--out", tmp_path, "--tile", 100, "--probabilities")
    assert result.exit_code == 0, result.output
    found = read_image(tmp_path / "a-probabilities.tif")
    assert_equal_to_rounding(found, chances(run, path), run.network())
    with tifffile.TiffFile(tmp_path / "a-probabilities.tif") as file:
        assert (file.is_bigtiff, file.pages.first.is_tiled, file.series[0].axes) == (True, True, "YXS")


def test_several_labels_are_a_mask_each_and_one_may_be_alone(tmp_path: Path) -> None:
    Image.fromarray(pixels(40, 30)).save(tmp_path / "a.png")
    for names in (("wall", "core/nucleus"), ("wall",)):
        run = trained(tmp_path / names[-1][:4], Target("multilabel", names))
        out = tmp_path / f"out{len(names)}"
        result = called(run.folder, tmp_path / "a.png", "--out", out, "--probabilities", "--overlay", "--check")
        assert result.exit_code == 0, result.output
        found = chances(run, tmp_path / "a.png")
        files = ["a-wall.png", "a-core_nucleus.png"][: len(names)]
        assert {file.name for file in out.iterdir()} == {*files, "a-probabilities.tif", "a-overlay.png"}
        for plane, file in zip(found, files, strict=True):
            assert (torch.from_numpy(read_mask(out / file).values) == (plane > 0.5) * 255).all()
        assert_equal_to_rounding(read_image(out / "a-probabilities.tif"), found, run.network())


def test_a_binary_run_and_its_overlay_drawn_small(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", Target("binary", ("ground", "cell")), channels=3)
    tifffile.imwrite(tmp_path / "a.tif", pixels(300, 2200, 3), photometric="rgb", tile=(64, 64))
    result = called(run.folder, tmp_path / "a.tif", "--out", tmp_path / "out", "--overlay", "--tile", 500)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "a-overlay.png") as image:
        assert (image.mode, image.size) == ("RGB", (1100, 150))
    decided = run.target.to_mask(chances(run, tmp_path / "a.tif")[None])[0]
    from unetkit.data.visualize import overlay

    expected = overlay(read_image(tmp_path / "a.tif")[:, ::2, ::2], decided[::2, ::2], run.target)
    with Image.open(tmp_path / "out" / "a-overlay.png") as image:
        assert (np.asarray(image) == np.asarray(expected)).all()


def test_check_tells_how_far_blended_tiles_are_off(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", Target("multiclass", ("a", "b", "c")), encoder="test_efficientnet")
    Image.fromarray(pixels(200, 150)).save(tmp_path / "a.png")
    result = called(run.folder, tmp_path / "a.png", "--out", tmp_path / "out", "--tile", 96, "--check", "--tta")
    assert result.exit_code == 0, result.output
    assert "in tiles of 96x96 that overlap by 24x24, blended" in result.output
    told = re.search(
        r"differ by at most (\S+) from a single pass over the whole image; ([\d,]+) of 30,000", result.output
    )
    assert told
    assert 0 < float(told[1]) < 0.5


def test_an_image_too_large_for_one_pass_is_not_checked(run: TrainRun) -> None:
    told = explain_if_too_large(run.network(), (200_000, 200_000))
    assert re.fullmatch(r"a single pass .* GiB, .* free; use --check .*", told)
    assert explain_if_too_large(run.network(), (64, 64)) == ""


def test_what_cannot_be_done_is_reported_and_the_others_are_done(
    run: TrainRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(pixels(40, 30)).save(images / "a.png")
    (images / "b.tif").write_bytes(b"II*\0 and no more")
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:200])
    Image.fromarray(pixels(40, 30, 3)).save(images / "d.png")
    damaged = images / "e.tif"
    tifffile.imwrite(damaged, pixels(300, 300), tile=(64, 64), compression="zlib")
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(b"\0" * 9000)
    tifffile.imwrite(images / "f.tif", pixels(40, 30))
    (images / "notes.txt").write_text("no image")
    done = called(run.folder, images, "absent.png", "--out", tmp_path / "out")
    assert done.exit_code == 1, done.output
    assert not caplog.records  # of tifffile's, which a process without pytest would print
    assert done.stdout == f"2 of 7 images written to {tmp_path / 'out'}\n"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "f.png"]
    lines = done.stderr.splitlines()
    assert lines[0].startswith("in one tile: exactly ")
    assert lines[1].startswith("1 of 7: ")
    assert "2 of 7: failed: " in lines[2]
    assert "b.tif: cannot be read as TIFF: " in lines[2]
    assert "c.png: cannot be read as an image: " in lines[3]
    takes = f"has 3 channels, but the network of {run.folder} needs 1; --channels grey converts"
    assert lines[4].endswith(f"d.png: {takes}")
    assert "e.tif: cannot be read as TIFF: " in lines[5]
    assert lines[7].startswith("7 of 7: failed: absent.png: ")
    assert len(lines) == 8
    absent = [f"absent-{index}.png" for index in range(5)]
    done = called(run.folder, *absent, "--out", tmp_path / "none")
    assert done.stdout == "0 of 5 images written\n"
    *lines, last = done.stderr.splitlines()
    assert (len(lines), last.partition(":")[0]) == (3, "2 more images failed")


def test_an_image_that_memory_does_not_hold_costs_a_line_and_a_wrong_option_ends_all(
    run: TrainRun, tmp_path: Path
) -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_meta or x.shape[-1] < 64:
                return x
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: ...")

    class Told(PredictCallback):
        def on_image_error(self, job: PredictionJob, why: str) -> None:
            told.append(why)

    told: list[str] = []
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, side in zip(images, (100, 30), strict=True):
        Image.fromarray(pixels(side, side)).save(path)
    network = run.network()
    network.head = nn.Sequential(network.head, Hungry())
    jobs = plan_outputs(images, tmp_path / "out", run.target)
    assert predict_all(make_predictor(run, network, PredictConfig()).predict, jobs, Told()) == 1
    (line,) = told
    assert line.startswith(f"{images[0]}: not enough memory ")
    assert " 1 of 100x100; " in line
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["b.png"]
    with pytest.raises(OptionError, match=r"--overlap 64: .* 64x64"):
        predict_all(make_predictor(run, network, PredictConfig(tile=(64, 64), overlap=64)).predict, jobs, Told())


def test_images_in_sub_folders_keep_their_place(run: TrainRun, tmp_path: Path) -> None:
    for folder in ("images", "images/sub"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels(30, 30)).save(tmp_path / folder / "x.png")
    jobs = plan_outputs([tmp_path / "images"], tmp_path / "out", run.target)
    assert [job.masks for job in jobs] == [(tmp_path / "out/sub/x.png",), (tmp_path / "out/x.png",)]
    assert predict_all(make_predictor(run, run.network(), PredictConfig()).predict, jobs, PredictCallback()) == 0
    assert (tmp_path / "out" / "sub" / "x.png").exists()


@pytest.mark.slow
def test_a_run_that_is_interrupted_leaves_whole_files_alone(run: TrainRun, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels(300 if name == "a" else 6000, 6000 if name == "b" else 300))
    words = [sys.executable, "-m", "unetkit", "predict", str(run.folder), str(tmp_path / "a.tif")]
    out = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*words, str(tmp_path / "b.tif"), "--out", str(out), "--probabilities"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "1 of 2" in line:
                break
        ends = time.monotonic() + 60
        while not list(out.glob(".b.png*")):
            if time.monotonic() > ends or child.poll() is not None:
                child.kill()
                pytest.fail(f"the second image was never begun: {child.stderr.read()}")
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        told = child.stderr.read()
    assert child.returncode == 130
    assert re.fullmatch(f"Error: interrupted: 1 of 2 images .*{re.escape(str(out))}", told.splitlines()[-1])
    assert sorted(file.name for file in out.iterdir()) == ["a-probabilities.tif", "a.png"]


def refused(*words: object) -> str:
    result = called(*words)
    assert result.exception is not None
    assert not result.stdout
    return str(result.exception)


def test_two_images_never_end_in_one_file(run: TrainRun, tmp_path: Path) -> None:
    for name in ("one/x.png", "two/x.tif"):
        (tmp_path / name).parent.mkdir()
    Image.fromarray(pixels(20, 20)).save(tmp_path / "one" / "x.png")
    tifffile.imwrite(tmp_path / "two" / "x.tif", pixels(20, 20))
    told = refused(run.folder, tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out")
    assert told.startswith(f"{tmp_path}/one/x.png and {tmp_path}/two/x.tif would both be written to x.png")
    assert f"{tmp_path}/one/x.png would be overwritten" in refused(
        run.folder, tmp_path / "one", "--out", tmp_path / "one"
    )
    twice = called(run.folder, tmp_path / "one", tmp_path / "one" / "x.png", "--out", tmp_path / "out")
    assert twice.stdout.startswith("1 of 1 image written to ")


def test_what_is_asked_wrongly_is_refused(run: TrainRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Image.fromarray(pixels(20, 20)).save(tmp_path / "x.png")
    asked = (run.folder, tmp_path / "x.png", "--out", tmp_path / "out")
    assert "contains no image: no file name ends in .png" in refused(
        run.folder, tmp_path / "empty", "--out", tmp_path / "out"
    )
    assert refused(tmp_path, *asked[1:]).startswith(f"{tmp_path} is not a training run")
    assert refused(*asked, "--tile", "12by12").startswith("--tile 12by12: ")
    assert refused(*asked, "--tile", "0x12") == "--tile 0x12: must be at least 1; got 0"
    assert refused(*asked, "--batch-size", 0) == "--batch-size 0: must be at least 1"
    assert refused(*asked, "--overlap", -1) == "--overlap -1: must be at least 0"
    assert "--device nowhere: is not available" in refused(*asked, "--device", "nowhere")
    assert "has no last.safetensors" in refused(*asked, "--weights", "last")
    with pytest.raises(OptionError, match=r"300 classes .* 255"):
        plan_outputs([tmp_path / "x.png"], tmp_path, Target("multiclass", tuple(map(str, range(300)))))
    assert not (tmp_path / "out").exists()


def test_the_plugins_of_a_run_are_loaded_with_it(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import unetkit\nfrom torch import nn\n\n"
        "class Thin(nn.Module):\n    def __init__(self, in_channels: int, out_channels: int) -> None:\n"
        "        super().__init__()\n        self.conv = nn.Conv2d(in_channels, out_channels, 1)\n\n"
        "    def forward(self, x):\n        print('thin')\n        return self.conv(x)\n\n\n"
        "@unetkit.hookimpl\ndef unetkit_register(parts):\n    parts.blocks.add('thin', Thin)\n"
    )
    parts = unetkit.load_parts([plugin])
    folder = tmp_path / "run"
    model = unetkit.build(SMALL, block="thin", in_channels=1, classes=1, seed=0, parts=parts)
    target = Target("binary", ("ground", "cell"))
    folder.mkdir()
    TrainRun(folder, model.plan, TrainConfig(), target, 1, (0.5,), (0.25,), RANGE, plugins=(str(plugin),)).write()
    unetkit.save(model, folder / BEST)
    Image.fromarray(pixels(20, 20)).save(tmp_path / "x.png")
    result = called(folder, tmp_path / "x.png", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"1 of 1 image written to {tmp_path / 'out'}\n"


def test_what_cannot_be_written_is_said(run: TrainRun, tmp_path: Path) -> None:
    Image.fromarray(pixels(20, 20)).save(tmp_path / "x.png")
    (tmp_path / "out" / "x.png").mkdir(parents=True)
    result = called(run.folder, tmp_path / "x.png", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "x.png: its files cannot be written: " in result.output
    result = called(run.folder, tmp_path / "x.png", "--out", tmp_path / "x.png" / "out")
    assert isinstance(result.exception, FileError)
    assert "single pass" not in result.output  # no image was begun


def test_a_file_read_whole_says_so_where_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_LARGE", 1000)
    Image.fromarray(pixels(40, 50)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", pixels(40, 50), compression="zlib", rowsperstrip=40)
    with open_image(tmp_path / "a.png") as picture:
        assert picture.note.startswith("is read as a whole, 7.812 KiB; ")
    with open_image(tmp_path / "b.tif") as picture:
        assert picture.note.startswith("has strips or tiles of 1.953 KiB, ")
    with pytest.raises(FileError, match="the file does not exist"), open_image(tmp_path / "c.tif"):
        pass


PEAK = """
import re, sys
from pathlib import Path
from unetkit.cli import cli
for image in sys.argv[3:]:
    words = ["predict", sys.argv[1], image, "--out", sys.argv[2], "--tile", "256"]
    cli(words, standalone_mode=False)
    print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")
def test_memory_does_not_grow_with_the_image(run: TrainRun, tmp_path: Path) -> None:
    images = [tmp_path / f"{side}.tif" for side in (1100, 2400)]
    for path in images:
        side = int(path.stem)
        tifffile.imwrite(path, np.zeros((side, side), np.uint8), tile=(256, 256), compression="zlib")
    words = [sys.executable, "-c", PEAK, str(run.folder), str(tmp_path / "out"), *map(str, images)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    small, large = (int(peak) * 1024 for peak in re.findall(r"peak (\d+)", done.stdout))
    # A row of tiles is 7 MB of probabilities. The image as the network takes it is 23 MB, and all of them are 69 MB.
    assert large - small < 18e6, (small, large)


@pytest.mark.parametrize("tile", [None, "32"])
def test_where_an_image_has_no_data_nothing_is_predicted(run: TrainRun, tmp_path: Path, tile: str | None) -> None:
    values = pixels(80, 70).astype(np.float32) / 255
    values[10:20, 30:60] = -9999
    values[60:, :5] = -9999
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(32, 32))
    words = ["--probabilities", "--overlay", *(["--tile", tile] if tile else [])]
    result = called(run.folder, tmp_path / "a.tif", "--out", tmp_path / "out", "--nodata", "-9999", *words)
    assert result.exit_code == 0, result.output
    mask, found = (
        read_mask(tmp_path / "out" / "a.png").values,
        tifffile.imread(tmp_path / "out" / "a-probabilities.tif"),
    )
    missing = values == -9999
    assert ((mask == 255) == missing).all()
    assert (np.isnan(found).any(-1) == missing).all()
    # The rest is what a network sees that is given the mean there.
    x = torch.from_numpy(np.where(missing, 0.5, values)).float()[None]
    expected = run.target.to_mask(tiled(run.network(), run.normalize(x))[None])[0]
    assert (torch.from_numpy(mask.astype(np.int64))[~missing] == expected[~missing]).float().mean() > 0.999


def test_no_number_is_refused_and_no_file_is_left(run: TrainRun, tmp_path: Path) -> None:
    values = pixels(40, 40).astype(np.float32) / 255
    values[35, 3] = np.nan
    for name, tile in (("strips", None), ("tiles", (16, 16))):
        tifffile.imwrite(tmp_path / f"{name}.tif", values, tile=tile)
        result = called(run.folder, tmp_path / f"{name}.tif", "--out", tmp_path / "out", "--tile", "32")
        assert result.exit_code == 1
        assert f"{name}.tif: contains NaN or infinity in 1 pixel; " in result.output
    assert [*(tmp_path / "out").glob("*")] == []


@pytest.mark.parametrize("mask_format", [None, "index", "binary", "color"])
def test_masks_have_the_numbers_that_are_asked_for(tmp_path: Path, mask_format: str | None) -> None:
    run = trained(tmp_path / "run", Target("binary", ("ground", "cell"), ((0, 0, 0), (200, 10, 30))))
    image, out = tmp_path / "images" / "x.png", tmp_path / "images" / "masks"
    image.parent.mkdir()
    Image.fromarray(pixels(40, 50)).save(image)
    words = ["--format", mask_format] if mask_format else []
    for _ in range(2):  # its own outputs are no inputs
        result = called(run.folder, image.parent, "--out", out, *words)
        assert (result.exit_code, "1 of 1 image written" in result.output) == (0, True), result.output
    expected = run.target.to_mask(
        tiled(run.network(), run.normalize(read_image(image)), then=run.target.probabilities)[None]
    )
    with Image.open(out / "x.png") as written:
        assert written.mode == {"binary": "L", "color": "RGB"}.get(mask_format or "index", "P")
        values = torch.from_numpy(np.array(written))
    table = {"binary": torch.tensor([0, 255]), "color": torch.tensor(run.target.colours)}
    assert torch.equal(values.long(), table.get(mask_format or "", torch.arange(2))[expected[0]])


def test_a_format_that_cannot_be_is_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels(8, 8)).save(tmp_path / "x.png")
    three, labels = Target("multiclass", ("a", "b", "c")), Target("multilabel", ("a", "b"))
    with pytest.raises(OptionError, match=r"--format binary: .*3 classes; "):
        plan_outputs([tmp_path / "x.png"], tmp_path / "out", three, PredictConfig(format="binary"))
    with pytest.raises(OptionError, match=r"--format color: each label "):
        plan_outputs([tmp_path / "x.png"], tmp_path / "out", labels, PredictConfig(format="color"))


def test_colours_are_converted_where_that_is_said(run: TrainRun, tmp_path: Path) -> None:
    colours = pixels(40, 50, 3)
    Image.fromarray(colours).save(tmp_path / "x.png")
    refused = called(run.folder, tmp_path / "x.png", "--out", tmp_path / "out")
    assert "x.png: has 3 channels, but the network" in refused.output
    assert "needs 1; --channels grey converts" in refused.output
    assert called(run.folder, tmp_path / "x.png", "--out", tmp_path / "out", "--channels", "rgb").exit_code == 1
    done = called(run.folder, tmp_path / "x.png", "--out", tmp_path / "out", "--channels", "grey", "--probabilities")
    assert done.exit_code == 0, done.output
    grey = torch.from_numpy(colours.astype(np.float32) / 255) @ torch.tensor([0.299, 0.587, 0.114])
    expected = tiled(run.network(), run.normalize(grey[None]), then=run.target.probabilities)
    found = torch.from_numpy(tifffile.imread(tmp_path / "out" / "x-probabilities.tif"))
    assert_equal_to_rounding(found, expected.permute(1, 2, 0), run.network())
