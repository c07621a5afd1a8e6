"""An image with its mask, and what every set of them promises.

C channels, L labels, H and W height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from unetkit.data.target import Target


class Sample(NamedTuple):
    """An image and what is known of it.

    Attributes:
        name: of its file without the ending, or what else tells it from the others.
        image: (C, H, W) float32; of 8-bit files their values / 255, of 16-bit ones / 65535, others as they are.
        mask: int64, as `Target.kind` says, with IGNORE where nothing counts.
        instances: (H, W) int64, 0 the background and each object a number of its own; None where unknown.
    """

    name: str
    image: Tensor
    mask: Tensor
    instances: Tensor | None = None


class Images(Protocol):
    """Samples by number, the same each time they are asked for. Raises BadFile where a file cannot be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def known_by(images: Images) -> str:
    """What tells these images from others: how many, and a digest of their names where they have names (`held`)."""
    held = getattr(images, "held", None)
    names = "" if held is None else hashlib.sha256("\0".join(held).encode()).hexdigest()[:12]
    return f"{len(images)} {names}".rstrip()


@dataclass(frozen=True)
class Data:
    """A data set, opened.

    Attributes:
        said: the text that `--data` takes.
        target: what its masks mean.
        channels: of its images.
        splits: by name; "train" and "val" at least, and "test" where there is one. Disjoint.
        augment: what `--augment` is unless it is given.
    """

    said: str
    target: Target
    channels: int
    splits: Mapping[str, Images]
    augment: str
