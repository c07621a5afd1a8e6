"""Write a data set as the folder that `open_folder` reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from torch import Tensor

from unetkit.data.folder import CLASSES
from unetkit.data.types import DatasetSplits, Sample, Target
from unetkit.data.visualize import write_mask
from unetkit.errors import FileError, OptionError
from unetkit.utils.files import atomic_write


def write_dataset(data: DatasetSplits, folder: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Write every sample of a data set to `SPLIT/images`, `masks` and, if known, `instances`; and write `classes.txt`.

    Images with one channel are written as 16-bit PNG, with three channels as 8-bit PNG, and others as TIFF with floats.
    Masks are indexed PNGs.

    Args:
        data: the data set, whose image values are from 0 to 1.
        folder: a folder that does not exist or is empty.
        progress: is called with the number of samples that were written, and their total number.

    Returns:
        The number of samples.

    Raises:
        OptionError: The folder is not empty.
        FileError: The folder cannot be written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise OptionError(f"--out {folder}: {what}; give a new folder")
    jobs = [(split, index) for split, images in data.splits.items() for index in range(len(images))]
    try:
        for done, (split, index) in enumerate(jobs):
            if progress:
                progress(done, len(jobs))
            _write(folder / split, data.splits[split][index], data.target)
        with atomic_write(folder / CLASSES) as temporary:
            colours = [" ".join(map(str, colour)) for colour in data.target.colours]
            lines = [f"{name} {colour}\n" for name, colour in zip(data.target.names, colours, strict=True)]
            temporary.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise FileError(f"--out {folder} cannot be written: {error.strerror or error}") from error
    return len(jobs)


def _write(folder: Path, sample: Sample, target: Target) -> None:
    name = re.sub(r"[^\w.-]+", "_", sample.name)
    _image(folder / "images" / name, sample.image)
    if sample.mask.ndim == 2:
        write_mask(folder / "masks" / f"{name}.png", sample.mask, target)
    else:
        for label, plane in zip(target.names, sample.mask, strict=True):
            _png(folder / "masks" / label / f"{name}.png", (plane.numpy() == 1).astype(np.uint8) * 255)
    if sample.instances is not None:
        _instances(folder / "instances" / name, sample.instances.numpy())


def _instances(path: Path, values: np.ndarray) -> None:
    if values.max(initial=0) <= 65535:
        _png(path.with_name(f"{path.name}.png"), values.astype(np.uint16))
    else:
        with atomic_write(path.with_name(f"{path.name}.tif")) as temporary:
            tifffile.imwrite(temporary, values.astype(np.uint32))


def _image(path: Path, image: Tensor) -> None:
    values = image.numpy()
    if len(values) == 1:
        _png(path.with_name(f"{path.name}.png"), (values[0].clip(0, 1) * 65535).round().astype(np.uint16))
    elif len(values) == 3:
        _png(path.with_name(f"{path.name}.png"), np.moveaxis((values.clip(0, 1) * 255).round().astype(np.uint8), 0, 2))
    else:
        with atomic_write(path.with_name(f"{path.name}.tif")) as temporary:
            tifffile.imwrite(temporary, values, photometric="minisblack", planarconfig="separate")


def _png(path: Path, values: np.ndarray) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(values).save(temporary, "PNG")
