"""An exported network for images in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unetkit.predict.config import PredictConfig
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.onnx_engine import open_onnx
from unetkit.predict.predictor import Predictor
from unetkit.utils.config_fields import make_config
from unetkit.utils.formatting import Size


class Model:
    """An exported network, ready to segment images in memory.

    Args:
        path: the .onnx file that `unetkit export` wrote.

    Attributes:
        info: what the file says of the network: `info.target.names` are its classes or labels, `info.channels` is the
            number of channels that images need.

    Raises:
        UnetkitError: The file does not exist, is no ONNX file, or has no metadata of unetkit that fit it.
    """

    def __init__(self, path: str | Path) -> None:
        self.info: ModelInfo
        self.info, self._engine = open_onnx(path)

    def predict(
        self,
        image: np.ndarray,
        *,
        tile: Size | int | str | None = None,
        overlap: int | None = None,
        tta: bool = False,
        batch_size: int = 1,
        channels: str | None = None,
        nodata: float | None = None,
    ) -> np.ndarray:
        """Segment an image.

        Args:
            image: the numbers of an image file, (H, W) or (H, W, C), in their own type: 8-bit values from 0 to 255,
                16-bit values from 0 to 65535, and others as they were in training. An alpha channel is not dropped.
            tile: the side of tiles in pixels, or (height, width); None for 512, or for a single pass if the image is at
                most 1024x1024.
            overlap: blend tiles that overlap by this number of pixels.
            tta: average over the image and its three mirror images.
            batch_size: the number of tiles in a pass.
            channels: "grey" or "rgb" converts images of one or three channels; None does what training did.
            nodata: the number that means that there are no data; None for that of training.

        Returns:
            The class of each pixel (H, W), or 0 and 1 for each label (L, H, W), int16; -1 where there are no data.

        Raises:
            UnetkitError: The image has other channels than the network needs, or the network accepts no such tiles.
        """
        predictor = self._predictor(tile, overlap, tta, batch_size, channels, nodata)
        return predictor.to_mask(predictor.predict_array(image))

    def probabilities(
        self,
        image: np.ndarray,
        *,
        tile: Size | int | str | None = None,
        overlap: int | None = None,
        tta: bool = False,
        batch_size: int = 1,
        channels: str | None = None,
        nodata: float | None = None,
    ) -> np.ndarray:
        """Compute the probability of each class or label, (L, H, W) float32; NaN where there are no data.

        For arguments and errors see `predict`.
        """
        return self._predictor(tile, overlap, tta, batch_size, channels, nodata).predict_array(image)

    def _predictor(
        self,
        tile: Size | int | str | None,
        overlap: int | None,
        tta: bool,
        batch_size: int,
        channels: str | None,
        nodata: float | None,
    ) -> Predictor:
        given = {
            "tile": tile,
            "overlap": overlap,
            "tta": tta,
            "batch_size": batch_size,
            "channels": channels,
            "nodata": nodata,
        }
        return Predictor(self.info, self._engine, make_config(PredictConfig, given, "predict"))
