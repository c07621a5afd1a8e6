"""`uv run python -m tests.benchmarks.predicting`: the most memory that `unetkit predict` holds, by the image's size.

A process each; its high-water mark of resident memory is read from /proc, so this is for Linux.
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

from tests.test_predict import PEAK, trained
from unetkit.data.types import Target

#: Networks, channels of their images, and sides of those; the first tells what a process holds in any case.
CASES = (("plain:widths=[4,8]", 1, (64, 1000, 5000, 20000)), ("resnet18", 3, (64, 1000, 5000)))
_TILE = 512


def write(path: Path, side: int, channels: int) -> None:
    """An image of noise, tile by tile, compressed."""
    drawn = np.random.default_rng(0).integers(0, 256, (_TILE, _TILE, channels), np.uint8)
    shape, photometric = ((side, side), "minisblack") if channels == 1 else ((side, side, channels), "rgb")
    tiles = repeat(drawn[..., 0] if channels == 1 else drawn, (-(-side // _TILE)) ** 2)
    how = {"photometric": photometric, "tile": (_TILE, _TILE), "compression": "zlib"}
    tifffile.imwrite(path, tiles, shape=shape, dtype=np.uint8, **how)  # type: ignore[arg-type]


def measured(run: Path, image: Path) -> tuple[float, float, str]:
    """MiB at the highest, seconds, and how the tiles lie."""
    words = ["predict", str(run), str(image), "--out", str(image.parent / "out")]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=True)
    found = re.search(r"peak (\d+)", done.stderr)
    assert found
    return int(found[1]) / 1024, time.monotonic() - began, done.stderr.splitlines()[0]


def rows() -> Iterator[str]:
    """A line of the table for each case."""
    for encoder, channels, sides in CASES:
        with TemporaryDirectory() as folder:
            run = trained(Path(folder) / "run", Target("multiclass", ("a", "b", "c")), channels, encoder=encoder)
            for side in sides:
                image = Path(folder) / "image.tif"
                write(image, side, channels)
                peak, seconds, how = measured(run.folder, image)
                kind = f"{side} x {side}{' RGB' if channels == 3 else ''}"
                passed = how.split(":")[0].split(", since")[0]
                yield f"| `{encoder}` | {kind} | {passed} | {peak:.0f} MiB | {seconds:.0f} s |"


if __name__ == "__main__":
    print("| network | image | passed | peak | time |\n| --- | --- | --- | --- | --- |")
    for row in rows():
        print(row, flush=True)
