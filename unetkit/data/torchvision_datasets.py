"""Data sets of torchvision, read by its own loaders. Nothing is downloaded.

Shapes: C channels, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unetkit.data.folder import AUGMENT
from unetkit.data.io import from_pillow, to_float_image
from unetkit.data.splits import SplitConfig, split_names
from unetkit.data.types import IGNORE, Dataset, DatasetSplits, Sample, Target, palette
from unetkit.errors import FileError
from unetkit.utils.isolation import one_line

_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
#: The value of ignored pixels in masks of VOC and Cityscapes.
_VOID = 255


@dataclass(frozen=True)
class TorchvisionDataset:
    """One split of a torchvision data set.

    Attributes:
        dataset: returns an image and a mask as Pillow images.
        names: the names of all its images.
        indices: the indices of the images in this split.
        table: the class of each of the 256 numbers in a mask file.
    """

    dataset: Any
    names: Sequence[str]
    indices: Sequence[int]
    table: np.ndarray

    @property
    def sample_names(self) -> list[str]:
        """The names of the images in this split."""
        return [self.names[place] for place in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        place = self.indices[index]
        name = self.names[place]
        with _wrap_torchvision_errors(f"{type(self.dataset).__name__} {name}"):
            image, mask = self.dataset[place]
            classes = self.table[np.asarray(mask)]
        pixels = to_float_image(from_pillow(image).values)
        return Sample(name, torch.from_numpy(pixels), torch.from_numpy(classes))


def voc(*, root: str, year: Literal[2007, 2008, 2009, 2010, 2011, 2012] = 2012) -> DatasetSplits:
    """Pascal VOC: 20 classes and background, with splits train and val; borders (255 in masks) are ignored.

    Args:
        root: folder that contains VOCdevkit/VOC2012.
        year: year of the challenge.
    """
    from torchvision.datasets import VOCSegmentation

    layout = f"{root}/VOCdevkit/VOC{year} with JPEGImages, SegmentationClass and ImageSets/Segmentation"
    table = _table({number: number for number in range(len(_VOC))})
    splits: dict[str, Dataset] = {}
    for name in ("train", "val"):
        with _wrap_torchvision_errors("voc", layout):
            dataset = VOCSegmentation(root, year=str(year), image_set=name)
        splits[name] = _all(dataset, [Path(path).stem for path in dataset.images], table)
    return DatasetSplits(f"voc:root={root}", Target("multiclass", _VOC, palette(len(_VOC))), 3, splits, AUGMENT)


def pet(rules: SplitConfig, *, root: str, border: Literal["ignore", "pet", "class"] = "ignore") -> DatasetSplits:
    """Oxford-IIIT Pet: pet and background from its trimaps. trainval is split by seed; test is its own split.

    Args:
        root: folder that contains oxford-iiit-pet.
        border: how the border of the trimap is used: ignored, as part of the pet, or as a third class.
    """
    from torchvision.datasets import OxfordIIITPet

    rim = {"ignore": IGNORE, "pet": 1, "class": 2}[border]
    table = _table({1: 1, 2: 0, 3: rim})
    names = ("background", "pet", *(["border"] if border == "class" else []))
    sets = {}
    for name in ("trainval", "test"):
        with _wrap_torchvision_errors(
            "pet", f"{root}/oxford-iiit-pet with images, annotations/trimaps and annotations/{name}.txt"
        ):
            dataset = OxfordIIITPet(root, split=name, target_types="segmentation")
        sets[name] = _all(dataset, [Path(path).stem for path in dataset._images], table)
    heap = sets["trainval"]
    train, val = (TorchvisionDataset(heap.dataset, heap.names, kept, table) for kept in split_names(heap.names, rules))
    kind: Literal["binary", "multiclass"] = "binary" if len(names) == 2 else "multiclass"
    return DatasetSplits(
        f"pet:root={root}", Target(kind, names), 3, {"train": train, "val": val, "test": sets["test"]}, AUGMENT
    )


def cityscapes(*, root: str) -> DatasetSplits:
    """Cityscapes, fine annotations: the 19 evaluated classes, with splits train and val; others are ignored.

    Args:
        root: folder that contains leftImg8bit and gtFine.
    """
    from torchvision.datasets import Cityscapes

    layout = f"{root}/leftImg8bit and {root}/gtFine, each with train and val"
    scored = sorted((kind for kind in Cityscapes.classes if 0 <= kind.train_id < _VOID), key=lambda kind: kind.train_id)
    table = _table({kind.id: kind.train_id for kind in scored})
    splits: dict[str, Dataset] = {}
    for name in ("train", "val"):
        with _wrap_torchvision_errors("cityscapes", layout):
            dataset = Cityscapes(root, split=name, mode="fine", target_type="semantic")
        stems = [Path(path).stem.removesuffix("_leftImg8bit") for path in dataset.images]
        splits[name] = _all(dataset, stems, table)
    target = Target("multiclass", tuple(kind.name for kind in scored), tuple(kind.color for kind in scored))
    return DatasetSplits(f"cityscapes:root={root}", target, 3, splits, AUGMENT)


def _all(dataset: Any, names: Sequence[str], table: np.ndarray) -> TorchvisionDataset:
    if not len(dataset):
        raise FileError(f"{dataset.root}: torchvision's {type(dataset).__name__} finds no images in it")
    return TorchvisionDataset(dataset, names, range(len(names)), table)


def _table(classes: dict[int, int]) -> np.ndarray:
    """Return the class of each number, with IGNORE for numbers without a class."""
    table = np.full(256, IGNORE, np.int64)
    table[[*classes]] = [*classes.values()]
    return table


@contextmanager
def _wrap_torchvision_errors(what: str, layout: str = "") -> Iterator[None]:
    """Convert an exception of torchvision to a FileError that names the expected files."""
    try:
        yield
    except Exception as error:
        expected = f"; it expects {layout}; download it first" if layout else ""
        why = one_line(error).split(" You can use download=True")[0].rstrip(".")
        raise FileError(f"{what}: cannot be read: {why}{expected}") from error
