"""The configuration of a prediction, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from unetkit.errors import OptionError
from unetkit.utils.config_fields import check_fields, config_field
from unetkit.utils.formatting import Size
from unetkit.utils.parsing import parse_nodata, parse_size

MASK_FORMATS = ("index", "binary", "color")


@dataclass(frozen=True)
class PredictConfig:
    """The configuration of a prediction. Every field is an option of the command.

    Raises:
        OptionError: A value is out of range.
    """

    format: str | None = config_field(
        None,
        "Numbers in masks, see above.",
        choices=MASK_FORMATS,
        default_text="index",
    )
    probabilities: bool = config_field(default=False, help="Also write NAME-probabilities.tif (float32).")
    overlay: bool = config_field(default=False, help="Also write NAME-overlay.png, the mask drawn over the image.")
    tta: bool = config_field(
        default=False, help="Test-time augmentation: average over the image and its three mirror images."
    )
    tile: Size | None = config_field(
        None, "Tile size, such as 512 or 512x768.", metavar="HxW", default_text="512", parse=parse_size
    )
    overlap: int | None = config_field(None, "Blend tiles that overlap by N pixels.", metavar="N", least=0)
    batch_size: int = config_field(1, "Tiles in a forward pass.", metavar="N", least=1)
    channels: str | None = config_field(
        None,
        "Convert images of one or three channels.",
        choices=("grey", "rgb"),
        default_text="as in training",
    )
    nodata: float | None = config_field(
        None,
        "Number in images that means that there are no data, such as -9999 or nan.",
        metavar="VALUE",
        default_text="as in training, and what a TIFF file declares",
        parse=parse_nodata,
    )
    check: bool = config_field(default=False, help="Compare with a single pass over the whole image.")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tile and min(self.tile) < 1:
            raise OptionError(f"--tile {self.tile[0]}x{self.tile[1]}: must be at least 1x1")
