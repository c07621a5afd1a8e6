"""The facts that prediction needs about a network beside its weights, as an exported file carries them.

This is NumPy without torch. Shapes: B batch, C channels, K outputs of the network, L classes or labels, H and W height
and width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from unetkit.data.types import Target
from unetkit.errors import FileError
from unetkit.tiling.layout import TileRequirements
from unetkit.utils.formatting import format_plural

#: The beginning of the keys by which a file's metadata carry these facts, and the version of their meaning.
PREFIX, VERSION = "unetkit.", 1

OutputKind = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class ModelInfo:
    """The facts that prediction needs about a network.

    Attributes:
        source: the folder or the file that the network is from, for messages.
        plan: the line that builds the network.
        target: what its outputs mean.
        channels: the number of image channels.
        mean, std: the mean and the standard deviation by which each channel is normalized, of images as `read_image`
            reads them: 8-bit values / 255, 16-bit values / 65535, others unchanged.
        tiles: what the network requires of tiles.
        conversion: "grey" or "rgb" if images of one or three channels are converted before; otherwise "".
        nodata: the stored number in images that means that there are no data; None for none.
        output: whether the network returns logits, or probabilities of its K outputs.
        bytes_per_pixel: the memory of all activations of a pass for each pixel of its input, which is more than a pass
            needs; 0 if it is unknown.
    """

    source: str
    plan: str
    target: Target
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tiles: TileRequirements
    conversion: str = ""
    nodata: float | None = None
    output: OutputKind = "logits"
    bytes_per_pixel: int = 0
    _affine: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        object.__setattr__(self, "_affine", (mean, std))

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Normalize an image (C, H, W) as the network expects it; NaN (no data) becomes 0."""
        mean, std = self._affine
        normalized: np.ndarray = (image - mean) / std
        normalized[np.isnan(normalized)] = 0
        return normalized

    def to_probabilities(self, output: np.ndarray) -> np.ndarray:
        """Convert the network's output (B, K, H, W) to probabilities (B, L, H, W) by class or label."""
        if self.output == "logits":
            is_softmax = self.target.activation(output.shape[1]) == "softmax"
            output = _softmax(output) if is_softmax else _sigmoid(output)
        if self.target.kind == "binary" and output.shape[1] == 1:
            return np.concatenate([1 - output, output], 1)
        return output

    def to_mask(self, probabilities: np.ndarray) -> np.ndarray:
        """Convert probabilities (L, H, W) to a mask: classes (H, W), or labels above 0.5 (L, H, W), int16.

        The class with the highest probability is chosen, or the first of several equal ones.
        """
        if self.target.kind == "multilabel":
            return (probabilities > 0.5).astype(np.int16)
        mask, highest = np.zeros(probabilities.shape[1:], np.int16), probabilities[0]
        for index, plane in enumerate(probabilities[1:], 1):  # np.argmax along the first axis takes many times as long
            mask[plane > highest] = index
            highest = np.maximum(highest, plane)
        return mask

    def to_metadata(self) -> dict[str, str]:
        """Return the facts as texts by key, for the metadata of a file; all but `source`, which reading supplies."""
        values = {
            "version": VERSION,
            "plan": self.plan,
            "kind": self.target.kind,
            "classes": self.target.names,
            "colours": self.target.colours,
            "channels": self.channels,
            "mean": self.mean,
            "std": self.std,
            "tiles": asdict(self.tiles),
            "conversion": self.conversion,
            "nodata": None if self.nodata is None else str(self.nodata),  # JSON has no NaN
            "output": self.output,
            "bytes_per_pixel": self.bytes_per_pixel,
        }
        return {PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> ModelInfo:
        """Read what `to_metadata` wrote.

        Args:
            metadata: texts by key; keys that do not begin with PREFIX are ignored.
            source: the file, for messages.

        Raises:
            FileError: A key is missing or has the wrong content, or the file is of a newer version.
        """
        found = {key.removeprefix(PREFIX): text for key, text in metadata.items() if key.startswith(PREFIX)}
        if "version" not in found:
            raise FileError(
                f"{source} was not exported by unetkit: its metadata do not have {PREFIX}version; "
                "export the network with `unetkit export`"
            )
        if found["version"] != str(VERSION):
            raise FileError(
                f"{source} is of format version {found['version']}, and this unetkit reads {VERSION}; "
                "install a newer unetkit, or export the network again"
            )
        try:
            info = cls(
                source=source,
                plan=found["plan"],
                target=Target(
                    _one_of(found["kind"], "binary", "multiclass", "multilabel"),
                    tuple(json.loads(found["classes"])),
                    tuple((red, green, blue) for red, green, blue in json.loads(found["colours"])),
                ),
                channels=int(found["channels"]),
                mean=tuple(map(float, json.loads(found["mean"]))),
                std=tuple(map(float, json.loads(found["std"]))),
                tiles=_read_tiles(json.loads(found["tiles"])),
                conversion=_one_of(found["conversion"], "", "grey", "rgb"),
                nodata=None if found["nodata"] == "null" else float(found["nodata"]),
                output=_one_of(found["output"], "logits", "probabilities"),
                bytes_per_pixel=int(found["bytes_per_pixel"]),
            )
            info._check()
        except KeyError as error:
            key = f"{PREFIX}{error.args[0]}"
            raise FileError(f"{source}: its metadata do not have {key}; export the network again") from error
        except (ValueError, TypeError) as error:
            raise FileError(f"{source}: its metadata are damaged ({error}); export the network again") from error
        return info

    def _check(self) -> None:
        """Raise ValueError if facts contradict each other."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} numbers for {format_plural(self.channels, 'channel')}")
        if not np.isfinite([*self.mean, *self.std]).all() or 0 in self.std:
            raise ValueError("mean and std must be finite, and std not 0")
        if not self.target.names or len(self.target.colours) != len(self.target.names):
            raise ValueError(f"{len(self.target.names)} classes have {len(self.target.colours)} colours")
        if self.target.kind == "binary" and len(self.target.names) != 2:
            raise ValueError(f"binary masks have {len(self.target.names)} classes")
        if self.tiles.period < 1 or min(self.tiles.least) < 1 or min(self.tiles.shrinks) < 0:
            raise ValueError("tiles have no size")


def _one_of(text: str, *known: str) -> Any:
    if text not in known:
        raise ValueError(f"{text!r} is not one of {', '.join(map(repr, known))}")
    return text


def _read_tiles(values: dict[str, Any]) -> TileRequirements:
    fixed, edge = values["fixed"], values["edge"]
    return TileRequirements(
        period=int(values["period"]),
        fixed=None if fixed is None else _size(fixed),
        least=_size(values["least"]),
        shrinks=_size(values["shrinks"]),
        edge=None if edge is None else (_size(edge[0]), _size(edge[1])),
        explanation=str(values["explanation"]),
    )


def _size(values: Any) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-x) is infinite where the result is 0
        return np.asarray(1 / (1 + np.exp(-x)), x.dtype)


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), x.dtype)
