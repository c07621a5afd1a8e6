"""Turn annotations of labelme, COCO and YOLO into a folder of images and masks that `open_folder` reads.

Each object is drawn as its polygons; objects are drawn in the order of the file, the later ones over the earlier ones.
Shapes: H and W height and width.
"""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from unetkit.data.folder import CLASSES
from unetkit.data.io import ENDINGS, read_header
from unetkit.data.layout import find_split, walk_files
from unetkit.data.types import IGNORE, Target, palette
from unetkit.data.visualize import VOID, write_mask
from unetkit.errors import FileError, OptionError
from unetkit.utils.formatting import format_plural
from unetkit.utils.parsing import describe_read_error

#: Corners (x, y) in pixels from the upper left corner of the image.
Polygon = Sequence[tuple[float, float]]
#: The label of labelme for what is not to be learned.
_LABELME_IGNORE = "__ignore__"
_BACKGROUND = "background"


@dataclass
class AnnotatedObject:
    """An object: the name of its class, or None for an area to ignore, and its polygons, or a mask (H, W) of bool."""

    name: str | None
    polygons: list[Polygon] = field(default_factory=list)
    mask: np.ndarray | None = None


@dataclass
class AnnotatedImage:
    """An image with its objects; `split` is the name of its split, or "" if there are none."""

    path: Path
    split: str
    objects: list[AnnotatedObject]


def import_annotations(
    kind: str, source: Path, out: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[int, tuple[str, ...]]:
    """Write a folder with images, masks, instances and classes.txt.

    Args:
        kind: "labelme", "coco" or "yolo".
        source: the folder with the annotations, or for COCO also the JSON file; images are found by their names.
        out: a folder that does not exist or is empty; it is written as a whole, or not at all.
        progress: is called with the number of images that are done, and their total number.

    Returns:
        The number of images, and the names of the classes after the background.

    Raises:
        FileError: Annotations or images are missing or damaged.
        OptionError: `out` is not empty, or there are too many classes.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"--out {out}: {'is not empty' if out.is_dir() else 'is a file'}; give a new folder")
    if not source.exists():
        raise FileError(f"{source}: does not exist; give the folder of the annotations")
    images, names = _READERS[kind](source)
    names = tuple(name for name in names if name != _BACKGROUND)
    if not images:
        raise FileError(f"{source}: contains no annotations of {kind}")
    if len(names) >= VOID:
        raise OptionError(f"{source}: has {len(names)} classes; a mask can hold at most {VOID - 1}")
    target = Target("binary" if len(names) == 1 else "multiclass", (_BACKGROUND, *names), palette(len(names) + 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary, "data")
        taken: set[Path] = set()
        for done, image in enumerate(images):
            if progress:
                progress(done, len(images))
            _write_image(image, folder / image.split, target, taken)
        lines = [f"{name} {number}" for number, name in enumerate(target.names)]
        (folder / CLASSES).write_text("\n".join(lines) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return len(images), names


def _write_image(image: AnnotatedImage, folder: Path, target: Target, taken: set[Path]) -> None:
    height, width = read_header(image.path).size
    stem = image.path.stem
    while (folder / stem) in taken:  # the same name in several folders
        stem = f"{stem}_"
    taken.add(folder / stem)
    mask, instances = np.zeros((height, width), np.int64), np.zeros((height, width), np.uint16)
    for number, one in enumerate(image.objects, 1):
        inside = _draw(one, (height, width), image.path)
        mask[inside] = IGNORE if one.name is None else target.names.index(one.name)
        instances[inside] = 0 if one.name is None else number
    for kind in ("images", "instances"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image.path, folder / "images" / f"{stem}{image.path.suffix}")
    write_mask(folder / "masks" / f"{stem}.png", mask, target)
    Image.fromarray(instances).save(folder / "instances" / f"{stem}.png")


def _draw(one: AnnotatedObject, size: tuple[int, int], path: Path) -> np.ndarray:
    """Return where an object is, (H, W) of bool: in any of its polygons, as a pixel's centre says."""
    if one.mask is not None:
        if one.mask.shape != size:
            sizes = f"{one.mask.shape[0]}x{one.mask.shape[1]}, but the image is {size[0]}x{size[1]}"
            raise FileError(f"{path}: a mask of its annotations is {sizes}")
        return one.mask
    drawn = Image.new("1", (size[1], size[0]))
    for polygon in one.polygons:
        if len(polygon) > 1:
            ImageDraw.Draw(drawn).polygon([(x - 0.5, y - 0.5) for x, y in polygon], fill=1)
    return np.array(drawn)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: {describe_read_error(error)}; repair the file, or leave it out") from error


def _wrong(path: Path, error: Exception) -> FileError:
    return FileError(f"{path}: does not follow its format: {describe_read_error(error)}")


def _split_of(path: Path, source: Path) -> str:
    """Return the split that a folder on the way from the source to a file names; "" for none."""
    inside = path.relative_to(source).parts if source in path.parents else path.parts[-2:]
    return next((name for part in inside[:-1] if (name := find_split(part))), "")


# labelme


def _read_labelme(source: Path) -> tuple[list[AnnotatedImage], tuple[str, ...]]:
    """Read the JSON files of labelme, one beside each image (https://github.com/wkentaro/labelme)."""
    images = []
    for path in walk_files(source):
        if path.suffix.lower() != ".json":
            continue
        found = _read_json(path)
        if not isinstance(found, dict) or "shapes" not in found:
            continue
        try:
            image = path.parent / str(found["imagePath"]).replace("\\", "/")
            objects = [_labelme_object(shape, found) for shape in found["shapes"]]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise _wrong(path, error) from error
        if not image.is_file():
            raise FileError(f"{path}: its image {found['imagePath']} does not exist; put it beside the file")
        images.append(AnnotatedImage(image, _split_of(path, source), objects))
    return images, _names(one.name for image in images for one in image.objects)


def _labelme_object(shape: dict[str, Any], found: dict[str, Any]) -> AnnotatedObject:
    name = None if shape["label"] == _LABELME_IGNORE else str(shape["label"])
    points = [(float(x), float(y)) for x, y in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon":
        return AnnotatedObject(name, [points])
    if kind == "rectangle":
        (left, top), (right, bottom) = points[0], points[-1] if len(points) == 2 else points[2]
        return AnnotatedObject(name, [[(left, top), (right, top), (right, bottom), (left, bottom)]])
    if kind == "circle":
        (x, y), edge = points
        radius, turns = math.dist((x, y), edge), [math.tau * step / 128 for step in range(128)]
        return AnnotatedObject(name, [[(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]])
    if kind == "mask":
        mask = np.zeros((found["imageHeight"], found["imageWidth"]), bool)
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as drawn:
            part = np.array(drawn) > 0
        left, top = round(points[0][0]), round(points[0][1])
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return AnnotatedObject(name, mask=mask)
    raise ValueError(f"a shape of type {kind} has no area; replace it by a polygon, rectangle, circle or mask")


def _names(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if name is not None}))


# COCO


def _read_coco(source: Path) -> tuple[list[AnnotatedImage], tuple[str, ...]]:
    """Read JSON files of COCO (https://cocodataset.org/#format-data): one, or one for each split."""
    files = [source] if source.is_file() else [path for path in walk_files(source) if path.suffix.lower() == ".json"]
    root = source.parent if source.is_file() else source
    if root.name == "annotations":  # images lie beside this folder
        root = root.parent
    stored: dict[str, list[Path]] = defaultdict(list)
    for path in walk_files(root):
        if path.suffix.lower() in ENDINGS:
            stored[path.name].append(path)
    images: list[AnnotatedImage] = []
    names: dict[str, None] = {}  # in the order of the files
    for path in files:
        found = _read_json(path)
        if not isinstance(found, dict) or not {"images", "annotations", "categories"} <= found.keys():
            continue
        split = find_split(path.stem.removeprefix("instances_")) or _split_of(path, root)
        try:
            categories = {one["id"]: str(one["name"]) for one in found["categories"]}
            objects = defaultdict(list)
            for one in found["annotations"]:
                objects[one["image_id"]].append(one)
            for image in found["images"]:
                size = int(image["height"]), int(image["width"])
                own = [_coco_object(one, categories, size) for one in objects[image["id"]]]
                images.append(AnnotatedImage(_find_image(image["file_name"], path, stored), split, own))
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(path, error) from error
        used = {one["category_id"] for one in found["annotations"]}
        names |= {name: None for number, name in categories.items() if number in used}
    return images, (*names,)


def _find_image(name: str, annotations: Path, stored: dict[str, list[Path]]) -> Path:
    found = stored.get(Path(name).name, [])
    near = [path for path in found if path.as_posix().endswith(name)] or found
    if not near:
        raise FileError(f"{annotations}: its image {name} does not exist beside it or in folders beside it")
    return min(near, key=lambda path: (annotations.parent not in path.parents, len(path.parts)))


def _coco_object(one: dict[str, Any], categories: dict[Any, str], size: tuple[int, int]) -> AnnotatedObject:
    name = None if one.get("iscrowd") else categories[one["category_id"]]
    shape = one.get("segmentation")
    if not shape:
        raise ValueError(f"annotation {one.get('id')} has a box, but no segmentation; outline the object")
    if isinstance(shape, list):
        return AnnotatedObject(name, [[*zip(part[::2], part[1::2], strict=True)] for part in shape])
    counts = shape["counts"]
    if isinstance(counts, list):
        runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return AnnotatedObject(name, mask=runs.reshape(size[1], size[0]).T.copy())  # column by column
    try:
        from pycocotools import mask as coco_masks
    except ImportError:
        raise FileError("compressed masks of COCO need pycocotools; pip install 'unetkit[coco]'") from None
    encoded = {"size": [*size], "counts": counts.encode()}
    with warnings.catch_warnings():  # pycocotools does not know NumPy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return AnnotatedObject(name, mask=coco_masks.decode(encoded).astype(bool))


# YOLO


def _read_yolo(source: Path) -> tuple[list[AnnotatedImage], tuple[str, ...]]:
    """Read the text files of YOLO (https://docs.ultralytics.com/datasets/segment/) and the names in its YAML file."""
    names = _yolo_names(source)
    images = []
    for image in walk_files(source):
        parts = image.relative_to(source).parts
        if image.suffix.lower() not in ENDINGS or "images" not in parts:
            continue
        at = len(parts) - 1 - parts[::-1].index("images")
        labels = source.joinpath(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
        objects = [*_yolo_objects(labels, image, names)] if labels.is_file() else []  # no file means no object
        images.append(AnnotatedImage(image, _split_of(image, source), objects))
    return images, names


def _yolo_names(source: Path) -> tuple[str, ...]:
    for path in walk_files(source):
        if path.suffix.lower() in (".yaml", ".yml"):
            try:
                found = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise FileError(f"{path}: {describe_read_error(error)}; repair the file") from error
            if isinstance(found, dict) and "names" in found:
                names = found["names"]
                return tuple(map(str, names.values() if isinstance(names, dict) else names))
    raise FileError(f"{source}: contains no YAML file with the names of the classes, such as data.yaml")


def _yolo_objects(labels: Path, image: Path, names: Sequence[str]) -> Iterator[AnnotatedObject]:
    height, width = read_header(image).size
    for number, line in enumerate(labels.read_text(encoding="utf-8").splitlines(), 1):
        try:
            which, *sides = map(float, line.split())
        except ValueError:
            if not line.split():
                continue
            raise FileError(f"{labels}, line {number}: is not a list of numbers") from None
        if len(sides) < 6 or len(sides) % 2:
            raise FileError(
                f"{labels}, line {number}: has {len(sides)} numbers, as for a box; a polygon has at least 6"
            )
        if not 0 <= which < len(names) or which % 1:
            known = f"the YAML file has {format_plural(len(names), 'class')}, numbered from 0"
            raise FileError(f"{labels}, line {number}: has the class {which:g}, but {known}")
        corners = [(x * width, y * height) for x, y in zip(sides[::2], sides[1::2], strict=True)]
        yield AnnotatedObject(names[int(which)], [corners])


_READERS: dict[str, Callable[[Path], tuple[list[AnnotatedImage], tuple[str, ...]]]] = {
    "labelme": _read_labelme,
    "coco": _read_coco,
    "yolo": _read_yolo,
}
