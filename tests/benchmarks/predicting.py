"""Measure the peak memory of `unetkit predict` by image size: `uv run python -m tests.benchmarks.predicting`.

Each image is predicted in its own process, whose peak of resident memory is read from /proc, so this needs Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile

from tests.predict.test_predictor import trained
from unetkit.data.types import Target

#: Encoders, numbers of channels, and image sizes. The smallest image shows the memory that a process needs in any case.
CASES = (("plain:widths=[4,8]", 1, (64, 1000, 5000, 20000)), ("resnet18", 3, (64, 1000, 5000)))
#: Predict one image and print the peak of resident memory in KiB.
_PREDICT = """
import re, sys
from pathlib import Path
from unetkit.cli import cli
cli(["predict", sys.argv[1], sys.argv[2], "--out", sys.argv[3]], standalone_mode=False)
print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
#: Height and width of the tiles of the TIFF file.
_TILE = 512


def write_image(path: Path, size: int, channels: int) -> None:
    """Write a compressed, tiled TIFF file of noise with equal height and width."""
    tile = np.random.default_rng(0).integers(0, 256, (_TILE, _TILE, channels), np.uint8)
    shape, photometric = ((size, size), "minisblack") if channels == 1 else ((size, size, channels), "rgb")
    tiles = repeat(tile[..., 0] if channels == 1 else tile, (-(-size // _TILE)) ** 2)
    options = {"photometric": photometric, "tile": (_TILE, _TILE), "compression": "zlib"}
    tifffile.imwrite(path, tiles, shape=shape, dtype=np.uint8, **options)  # type: ignore[arg-type]


def measure_prediction(run: Path, image: Path) -> tuple[float, float, str]:
    """Return the peak memory in MiB, the seconds, and the line that describes the tiles."""
    arguments = [str(run), str(image), str(image.parent / "out")]
    start = time.monotonic()
    process = subprocess.run([sys.executable, "-c", _PREDICT, *arguments], capture_output=True, text=True, check=True)
    match = re.search(r"peak (\d+)", process.stdout)
    assert match
    return int(match[1]) / 1024, time.monotonic() - start, process.stderr.splitlines()[0]


def measure_cases() -> Iterator[str]:
    """Yield a line of the table for each network and image size."""
    for encoder, channels, sizes in CASES:
        with TemporaryDirectory() as folder:
            run = trained(Path(folder) / "run", Target("multiclass", ("a", "b", "c")), channels, encoder=encoder)
            for size in sizes:
                image = Path(folder) / "image.tif"
                write_image(image, size, channels)
                peak, seconds, tiling = measure_prediction(run.folder, image)
                image_size = f"{size} x {size}{' RGB' if channels == 3 else ''}"
                tiles = tiling.split(":")[0].split(", since")[0]
                yield f"| `{encoder}` | {image_size} | {tiles} | {peak:.0f} MiB | {seconds:.0f} s |"


if __name__ == "__main__":
    print("| network | image | tiles | peak | time |\n| --- | --- | --- | --- | --- |")
    for row in measure_cases():
        print(row, flush=True)
