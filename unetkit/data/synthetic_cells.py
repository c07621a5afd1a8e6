"""The set `cells`: synthetic microscopy, made on the fly from a seed.

Cells of varied shape lie in clusters, pressed together; in the mask a line of background, 1 or 2 pixels wide, keeps
those that touch apart, as in the sets that U-Net was made for. See docs/cells.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import cos, pi, sin
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from unetkit.data.rng import numpy_rng
from unetkit.data.types import DatasetSplits, Sample, Target
from unetkit.errors import OptionError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class CellKind(NamedTuple):
    """Properties that the cells of a kind have in common.

    Attributes:
        name: as a class.
        size: of a cell, where 1 is an ordinary one's.
        length: of a cell, its width being 1.
        waves: amplitudes of the 2, 3, 4 ... waves that its outline has, its radius being 1.
        texture: what its inside looks like.
    """

    name: str
    size: float
    length: float
    waves: tuple[float, ...]
    texture: str


KINDS = (
    CellKind("round cell", 1.0, 1.15, (0.05, 0.04, 0.02), "nucleus"),
    CellKind("spindle cell", 1.0, 2.4, (0.05, 0.08, 0.03), "streaks"),
    CellKind("grainy cell", 0.9, 1.3, (0.06, 0.05, 0.04, 0.03), "grains"),
    CellKind("lobed cell", 1.2, 1.2, (0.05, 0.18, 0.14, 0.05), "vacuoles"),
    CellKind("striped cell", 0.8, 1.6, (0.12, 0.04, 0.02), "stripes"),
)


class CellPlacement(NamedTuple):
    """N cells before they press on one another: centres, radii and angles (N,), kinds (N,), waves (N, K) complex."""

    y: Floats
    x: Floats
    radius: Floats
    length: Floats
    angle: Floats
    kind: Ints
    waves: NDArray[np.complex64]


def place_cells(rng: np.random.Generator, size: int, radius: float, crowding: float, kinds: int) -> CellPlacement:
    """Cells of the first `kinds` KINDS, in clusters, until they would cover the share `crowding` of the image."""
    spots = np.array(_draw_spots(rng, size, radius, crowding))
    n = len(spots)
    kind = rng.integers(kinds, size=n)
    amplitudes = np.array([(*KINDS[k].waves, 0.0, 0.0)[:4] for k in range(kinds)])[kind]
    waves = amplitudes * np.abs(rng.normal(1, 0.4, (n, 4))) * np.exp(1j * rng.uniform(0, 2 * np.pi, (n, 4)))
    length = np.array([k.length for k in KINDS])[kind] * rng.uniform(0.85, 1.25, n)
    scale = np.array([k.size for k in KINDS])[kind]
    y, x, r = spots.T.astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi, n)
    return CellPlacement(y, x, r * _f(scale), _f(length), _f(angle), kind, waves.astype(np.complex64))


def _f(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float32)


Spot = tuple[float, float, float]
#: The smallest distance of the centres of two spots, as a fraction of the sum of their radii.
_NEAREST = 0.7
_LARGEST = 1.5


def _draw_spots(rng: np.random.Generator, size: int, radius: float, crowding: float) -> list[Spot]:
    """Centres (y, x) and radii: each cell is set beside one before it, or now and then on free ground."""
    cell_count = max(3, round(crowding * size * size / (pi * radius * radius)))
    found: list[Spot] = []
    # Spots that are too near lie in the same grid square of this side, or in an adjacent one.
    side = 2 * _NEAREST * _LARGEST * radius
    squares: dict[tuple[int, int], list[Spot]] = {}
    for chances in rng.random((4 * cell_count, 4)).tolist():
        if len(found) == cell_count:
            break
        y, x, r = spot = _try_spots(chances, found, size, radius)
        row, column = int(y // side), int(x // side)
        near = (squares.get((row + i, column + j), ()) for i, j in product((-1, 0, 1), repeat=2))
        outside = min(y, x) < -r or max(y, x) > size + r
        if outside or any(_overlaps(spot, other) for others in near for other in others):
            continue
        found.append(spot)
        squares.setdefault((row, column), []).append(spot)
    return found


def _try_spots(chances: list[float], found: list[Spot], size: int, radius: float) -> Spot:
    """A spot from four numbers between 0 and 1."""
    r = radius * (0.7 + (_LARGEST - 0.7) * chances[0] ** 2)
    if not found or chances[2] >= 0.8:
        return size * chances[1], size * chances[3], r
    y, x, beside = found[int(len(found) * chances[2] / 0.8)]
    turn, far = 2 * pi * chances[1], (beside + r) * (_NEAREST + 0.02 + 0.23 * chances[3])
    return y + far * sin(turn), x + far * cos(turn), r


def _overlaps(one: Spot, other: Spot) -> bool:
    return (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 < (_NEAREST * (one[2] + other[2])) ** 2


class CellRegions(NamedTuple):
    """Cells as they lie in the image, each map (H, W).

    Attributes:
        owner: whose a pixel is, 0 for nobody's, i + 1 for the i-th cell's.
        out: how far out in its cell a pixel lies: 0 in the centre, 1 on the outline and outside.
        along, across: where in its cell it lies, in the cell's own axes, its radius being 1.
    """

    owner: Ints
    out: Floats
    along: Floats
    across: Floats


def draw_regions(cells: CellPlacement, size: int) -> CellRegions:
    """Assign each pixel to a cell: of those that reach it, the one to whose middle it is nearest.

    So neighbours share a border where they meet, as cells that press on one another do.
    """
    maps = CellRegions(np.zeros((size, size), np.int64), *(np.ones((size, size), np.float32) for _ in range(3)))
    for index, cell in enumerate(zip(*cells, strict=True)):
        y, x, radius, length = map(float, cell[:4])
        # Waves enlarge the radius by up to a half, except in rare cases.
        reach = radius * length**0.5 * 1.5
        rows, columns = (slice(max(0, int(c - reach)), max(0, min(size, int(c + reach) + 2))) for c in (y, x))
        if rows.start < rows.stop and columns.start < columns.stop:
            _paint(maps, index + 1, rows, columns, CellPlacement(*cell))
    return maps


def _paint(maps: CellRegions, number: int, rows: slice, columns: slice, cell: CellPlacement) -> None:
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - cell.y
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - cell.x
    c, s, stretch = np.cos(cell.angle), np.sin(cell.angle), np.sqrt(cell.length)
    along, across = (x * c + y * s) / (cell.radius * stretch), (y * c - x * s) * (stretch / cell.radius)
    out = np.sqrt(along * along + across * across)
    wave = turn = (along + np.complex64(1j) * across) / np.maximum(out, np.float32(1e-6))
    outline = np.ones_like(out)
    for amplitude in cell.waves:
        wave = wave * turn
        outline += (amplitude * wave).real
    out /= np.maximum(outline, np.float32(0.3))
    nearer = out < maps.out[rows, columns]
    maps.owner[rows, columns][nearer] = number
    for field, values in zip(maps[1:], (out, along, across), strict=True):
        field[rows, columns][nearer] = values[nearer]


def separate_cells(owner: Ints, least: int) -> Ints:
    """Separate touching cells by a line of background, 2 pixels wide, and return the owner of each pixel.

    Each cell is one connected piece (of its pieces, the largest) of at least that many pixels, or is gone.
    """
    high = ndimage.maximum_filter(owner, 3)
    low = ndimage.minimum_filter(np.where(owner > 0, owner, len(owner) ** 2), 3)
    kept = np.where(high == low, owner, 0)
    pieces, count = ndimage.label(kept)
    area, of = np.bincount(pieces.ravel(), minlength=count + 1), np.zeros(count + 1, np.int64)
    of[pieces.ravel()] = kept.ravel()
    order = np.lexsort((-area, of))
    largest = order[np.unique(of[order], return_index=True)[1]]
    stays = np.zeros(count + 1, bool)
    stays[largest[area[largest] >= least]] = True
    return np.where(stays[pieces], kept, 0)


def smooth_noise(rng: np.random.Generator, size: int, spacing: float) -> Floats:
    """Random hills (H, W), about 1 high and deep, that far apart: a grid of normal numbers under a cubic B-spline."""
    places = np.arange(size, dtype=np.float32) / spacing + np.float32(rng.uniform())
    cells = places.astype(int)
    t = (places - cells).astype(np.float32)
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    grid = rng.standard_normal((int(cells[-1]) + 4, int(cells[-1]) + 4), dtype=np.float32)
    rows = np.zeros((size, grid.shape[1]), np.float32)
    hills = np.zeros((size, size), np.float32)
    for k, tap in enumerate(taps):
        rows += tap[:, None] * grid[cells + k]
    for k, tap in enumerate(taps):
        hills += tap[None] * rows[:, cells + k]
    return hills / np.float32(18)  # the taps sum to 6 a direction; the hills are lower than the numbers, by a half


class Optics(NamedTuple):
    """The settings of the microscope for an image.

    Attributes:
        glow: how much brighter cells are than the ground, on average; below 0 where they are darker.
        relief: how strongly slopes towards the light stand out, as in differential interference contrast.
        light: where the light comes from, in radians.
        halo: how bright the surroundings of cells are, as in phase contrast, and so the seams between them; below 0
            where they are dim.
    """

    glow: float
    relief: float
    light: float
    halo: float


def draw_optics(rng: np.random.Generator) -> Optics:
    """One setting in which cells are seen, if not by their brightness alone."""
    halo = rng.uniform(0.18, 0.36) * rng.choice([-1, -1, 1])
    return Optics(rng.uniform(-0.06, 0.1), rng.uniform(0.35, 0.7), rng.uniform(0, 2 * np.pi), halo)


def render_image(
    rng: np.random.Generator, cells: CellPlacement, maps: CellRegions, owner: Ints, radius: float, noise: float
) -> Floats:
    """The image (H, W) of cells that lie so, over others out of focus and among debris."""
    size = len(owner)
    set_to = draw_optics(rng)
    image = 0.5 + 0.05 * smooth_noise(rng, size, radius)
    image += render_out_of_focus(rng, set_to, size, radius)
    image += render_cells(rng, set_to, cells, maps, owner)
    image += rng.uniform(-0.15, 0.15) * np.clip(
        4 * smooth_noise(rng, size, 0.5 * radius) - 5, 0, 1
    )  # debris: flat and sharp
    image = ndimage.gaussian_filter(image, rng.uniform(0.5, 1.0), truncate=3)
    image *= 1 + 0.25 * smooth_noise(rng, size, size / 1.5)
    image += noise * rng.uniform(0.02, 0.045) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(image, 0, 1), np.float32)


def render_out_of_focus(rng: np.random.Generator, set_to: Optics, size: int, radius: float) -> Floats:
    """Render cells of another depth, which count as background, as an addition to the image (H, W)."""
    half = (size + 1) // 2  # they are blurred, so they need not be drawn finer
    cells = place_cells(rng, half, radius / 2, 0.2, len(KINDS))
    maps = draw_regions(cells, half)
    seen = 0.9 * render_cells(rng, set_to, cells, maps, maps.owner)
    seen = seen.repeat(2, 0).repeat(2, 1)[:size, :size]
    return np.asarray(ndimage.gaussian_filter(seen, 0.2 * radius, truncate=2.5))


def render_cells(
    rng: np.random.Generator, set_to: Optics, cells: CellPlacement, maps: CellRegions, owner: Ints
) -> Floats:
    """Render what cells add to the brightness of the ground (H, W): glow, texture, relief and halo."""
    inside = (owner > 0).astype(np.float32)
    bright = rng.normal(set_to.glow, 0.05, len(cells.y) + 1).astype(np.float32)[maps.owner]
    dome = np.sqrt(np.maximum(1 - maps.out**2, 0))
    height = ndimage.gaussian_filter(inside * (0.4 + 0.6 * dome), 0.8, truncate=3)
    down, right = np.gradient(height)
    shade = set_to.relief * (down * np.sin(set_to.light) + right * np.cos(set_to.light))
    halo = set_to.halo * (ndimage.gaussian_filter(inside, 2, truncate=2.5) - inside)
    return np.asarray(shade + halo + inside * (bright * dome + render_texture(rng, cells, maps)), np.float32)


def render_texture(rng: np.random.Generator, cells: CellPlacement, maps: CellRegions) -> Floats:
    """Render the texture inside the cells (H, W), according to their kinds."""
    seen, kind = np.zeros_like(maps.out), np.concatenate([[-1], cells.kind])[maps.owner]
    phase = rng.uniform(0, 2 * np.pi, len(cells.y) + 1).astype(np.float32)[maps.owner]
    grain = ndimage.gaussian_filter(rng.standard_normal(kind.shape, dtype=np.float32), 0.9, truncate=3)
    for index, each in enumerate(KINDS):
        of = kind == index
        seen[of] = TEXTURES[each.texture](maps.along[of], maps.across[of], phase[of], grain[of])
    return seen


#: The texture of a kind of cell: a function from the position along and across the cell, a random number of the cell,
#: and noise to the brightness.
TEXTURES: dict[str, Callable[[Floats, Floats, Floats, Floats], NDArray[Any]]] = {
    "nucleus": lambda u, v, phase, grain: 0.2 * np.exp(-(((u**2 + v**2) / 0.16) ** 2)) - 0.03,
    "streaks": lambda u, v, phase, grain: 0.07 * np.sin(8 * v + 1.5 * np.sin(3 * u + phase)),
    "grains": lambda u, v, phase, grain: 0.4 * grain,
    "vacuoles": lambda u, v, phase, grain: 0.03 - 0.2 * np.exp(-((np.abs(u) - 0.4) ** 2 + v**2) / 0.05),
    "stripes": lambda u, v, phase, grain: 0.09 * np.sin(10 * u + phase),
}


@dataclass(frozen=True)
class CellsDataset:
    """A split of the data set: each sample depends only on these fields and on its index. See `cells`."""

    split: str
    count: int
    size: int
    classes: int
    seed: int
    radius: float
    crowding: float
    noise: float

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.split} has samples 0 to {self.count - 1}; got {index}")
        rng = numpy_rng(self.seed, "cells", self.split, index)
        kinds = self.classes - 1 if self.classes > 2 else len(KINDS)
        lying = place_cells(rng, self.size, self.radius, self.crowding, kinds)
        maps = draw_regions(lying, self.size)
        owner = separate_cells(maps.owner, least=round(0.5 * self.radius**2))
        image = torch.from_numpy(render_image(rng, lying, maps, owner, self.radius, self.noise))[None]
        kind = lying.kind + 1 if self.classes > 2 else np.ones_like(lying.kind)
        mask = torch.from_numpy(np.concatenate([[0], kind])[owner])
        return Sample(f"{self.split}-{index:05d}", image, mask, torch.from_numpy(owner))


def cells(
    *,
    count: int = 200,
    val: int = 40,
    test: int = 40,
    size: int = 128,
    classes: int = 2,
    seed: int = 0,
    radius: float = 10,
    crowding: float = 0.6,
    noise: float = 1,
) -> DatasetSplits:
    """Synthetic microscopy with touching cells, made on the fly.

    Args:
        count: training images.
        val: validation images.
        test: test images.
        size: height and width of an image, in pixels.
        classes: 2 for background and cell; 3 to 6 for the background and 2 to 5 kinds of cells, which differ in shape,
            size and texture.
        seed: seed of everything that is random.
        radius: radius of a typical cell in pixels.
        crowding: share of the image that the cells would cover if they did not overlap.
        noise: strength of the noise; 1 is typical of a microscope.

    Raises:
        OptionError: A number is out of range.
    """
    least: dict[str, float] = {"count": 1, "val": 1, "test": 0, "size": 16, "seed": 0, "radius": 4, "noise": 0}
    given = locals()
    for name, value in least.items():
        if not given[name] >= value:
            raise OptionError(f"cells: {name} must be at least {value:g}; got {given[name]:g}")
    if not 2 <= classes <= len(KINDS) + 1:
        raise OptionError(f"cells: classes must be 2 to {len(KINDS) + 1}; got {classes}")
    if not 0 < crowding <= 1.5:
        raise OptionError(f"cells: crowding must be above 0 and at most 1.5; got {crowding:g}")
    options = (size, classes, seed, radius, crowding, noise)
    counts = {"train": count, "val": val, **({"test": test} if test else {})}
    splits = {name: CellsDataset(name, number, *options) for name, number in counts.items()}
    names = ("background", "cell") if classes == 2 else ("background", *(kind.name for kind in KINDS[: classes - 1]))
    target = Target("binary" if classes == 2 else "multiclass", names)
    return DatasetSplits("cells", target, 1, splits, augment="hflip,rotate90,elastic:std=5,light")
