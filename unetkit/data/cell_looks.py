"""How cells look under the microscope: relief, texture, uneven light, debris, blur and noise.

H and W height and width; brightness from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetkit.data.cell_places import KINDS, Floats, Ints, Placed, placed
from unetkit.data.cell_shapes import Regions, regions


def smooth(rng: np.random.Generator, size: int, spacing: float) -> Floats:
    """Random hills (H, W), about 1 high and deep, that far apart: a grid of normal numbers under a cubic B-spline."""
    places = np.arange(size, dtype=np.float32) / spacing + np.float32(rng.uniform())
    whole = places.astype(int)
    t = (places - whole).astype(np.float32)
    taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    grid = rng.standard_normal((int(whole[-1]) + 4, int(whole[-1]) + 4), dtype=np.float32)
    rows = np.zeros((size, grid.shape[1]), np.float32)
    hills = np.zeros((size, size), np.float32)
    for k, tap in enumerate(taps):
        rows += tap[:, None] * grid[whole + k]
    for k, tap in enumerate(taps):
        hills += tap[None] * rows[:, whole + k]
    return hills / np.float32(18)  # the taps sum to 6 a direction; the hills are lower than the numbers, by a half


class Optics(NamedTuple):
    """How the microscope was set for an image.

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


def optics(rng: np.random.Generator) -> Optics:
    """One setting in which cells are seen, if not by their brightness alone."""
    halo = rng.uniform(0.18, 0.36) * rng.choice([-1, -1, 1])
    return Optics(rng.uniform(-0.06, 0.1), rng.uniform(0.35, 0.7), rng.uniform(0, 2 * np.pi), halo)


def looks(rng: np.random.Generator, cells: Placed, maps: Regions, owner: Ints, radius: float, noise: float) -> Floats:
    """The image (H, W) of cells that lie so, over others out of focus and among debris."""
    size = len(owner)
    set_to = optics(rng)
    image = 0.5 + 0.05 * smooth(rng, size, radius)
    image += out_of_focus(rng, set_to, size, radius)
    image += bodies(rng, set_to, cells, maps, owner)
    image += rng.uniform(-0.15, 0.15) * np.clip(4 * smooth(rng, size, 0.5 * radius) - 5, 0, 1)  # debris: flat and sharp
    image = ndimage.gaussian_filter(image, rng.uniform(0.5, 1.0), truncate=3)
    image *= 1 + 0.25 * smooth(rng, size, size / 1.5)
    image += noise * rng.uniform(0.02, 0.045) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(image, 0, 1), np.float32)


def out_of_focus(rng: np.random.Generator, set_to: Optics, size: int, radius: float) -> Floats:
    """What cells of another depth, which count as background, add to the image (H, W)."""
    half = (size + 1) // 2  # they are blurred, so they need not be drawn finer
    cells = placed(rng, half, radius / 2, 0.2, len(KINDS))
    maps = regions(cells, half)
    seen = 0.9 * bodies(rng, set_to, cells, maps, maps.owner)
    seen = seen.repeat(2, 0).repeat(2, 1)[:size, :size]
    return np.asarray(ndimage.gaussian_filter(seen, 0.2 * radius, truncate=2.5))


def bodies(rng: np.random.Generator, set_to: Optics, cells: Placed, maps: Regions, owner: Ints) -> Floats:
    """What cells add to the brightness of the ground (H, W): glow, texture, relief and halo."""
    inside = (owner > 0).astype(np.float32)
    bright = rng.normal(set_to.glow, 0.05, len(cells.y) + 1).astype(np.float32)[maps.owner]
    dome = np.sqrt(np.maximum(1 - maps.out**2, 0))
    height = ndimage.gaussian_filter(inside * (0.4 + 0.6 * dome), 0.8, truncate=3)
    down, right = np.gradient(height)
    shade = set_to.relief * (down * np.sin(set_to.light) + right * np.cos(set_to.light))
    halo = set_to.halo * (ndimage.gaussian_filter(inside, 2, truncate=2.5) - inside)
    return np.asarray(shade + halo + inside * (bright * dome + texture(rng, cells, maps)), np.float32)


def texture(rng: np.random.Generator, cells: Placed, maps: Regions) -> Floats:
    """What is seen inside the cells (H, W), by their kinds."""
    seen, kind = np.zeros_like(maps.out), np.concatenate([[-1], cells.kind])[maps.owner]
    phase = rng.uniform(0, 2 * np.pi, len(cells.y) + 1).astype(np.float32)[maps.owner]
    grain = ndimage.gaussian_filter(rng.standard_normal(kind.shape, dtype=np.float32), 0.9, truncate=3)
    for index, each in enumerate(KINDS):
        of = kind == index
        seen[of] = TEXTURES[each.texture](maps.along[of], maps.across[of], phase[of], grain[of])
    return seen


#: What is seen of a kind: how far along and across its cell a pixel lies, a number of the cell's, noise -> brightness.
TEXTURES: dict[str, Callable[[Floats, Floats, Floats, Floats], NDArray[Any]]] = {
    "nucleus": lambda u, v, phase, grain: 0.2 * np.exp(-(((u**2 + v**2) / 0.16) ** 2)) - 0.03,
    "streaks": lambda u, v, phase, grain: 0.07 * np.sin(8 * v + 1.5 * np.sin(3 * u + phase)),
    "grains": lambda u, v, phase, grain: 0.4 * grain,
    "vacuoles": lambda u, v, phase, grain: 0.03 - 0.2 * np.exp(-((np.abs(u) - 0.4) ** 2 + v**2) / 0.05),
    "stripes": lambda u, v, phase, grain: 0.09 * np.sin(10 * u + phase),
}
