"""Static quantization of an ONNX file to 8 bits, by ONNX Runtime's tools, and the images that it is calibrated on.

Shapes: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unetkit.data.datasets import open_data
from unetkit.data.layout import find_folders
from unetkit.data.rng import numpy_rng
from unetkit.data.source import is_named_dataset
from unetkit.data.types import Dataset
from unetkit.errors import ExportError, FileError, OptionError, UnetkitError
from unetkit.exporter.capture import silence
from unetkit.predict.evaluate import open_evaluation
from unetkit.predict.image_reader import open_image
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.predictor import NormalizedReader, find_images
from unetkit.registry import Parts
from unetkit.tiling.stitching import InMemoryImage, Source, mirrored_window
from unetkit.train.checkpoint import TrainRun
from unetkit.utils.formatting import format_plural
from unetkit.utils.isolation import INTERRUPTS, one_line

#: The number of images to calibrate on. On CamVid, 16, 48 and 64 differ by less than 0.03 points of mIoU.
CALIBRATION_IMAGES = 48


def read_calibration_tiles(
    data: str | Path | None, run: TrainRun | None, info: ModelInfo, parts: Parts
) -> tuple[str, list[np.ndarray]]:
    """Read tiles of a random sample of images, one of each, normalized and cut as prediction does it.

    Args:
        data: the name of a data set, a data folder, or a folder of images without masks; None for the training images
            of the run. Of data with splits, the training images are used.
        run: the run of the network, if it is from one.
        info: what prediction must know of the network.
        parts: the registered parts.

    Returns:
        A description of the images, and the tiles, (1, C, H, W) float32.

    Raises:
        FileError: An image cannot be read, or there is none.
        OptionError: There are no data, or the images have another number of channels than the network.
    """
    rng = numpy_rng(0, "calibrate")
    if data is not None and not is_named_dataset(str(data), parts) and not _has_masks(Path(data)):
        files = [*find_images([Path(data)])]
        name, count = Path(data).name, len(files)
        tiles = [_read_file(files[index], info, rng) for index in _sample(count, rng)]
    else:
        images = _open_training_images(data, run, info, parts)
        name, count = Path(str(data or (run and run.config.data))).name, len(images)
        tiles = []
        for index in _sample(count, rng):
            sample = images[index]
            _check_channels(sample.name, len(sample.image), info)
            tiles.append(_cut_tile(InMemoryImage(info.normalize(sample.image.numpy())), info, rng))
    return f"{len(tiles)} of {format_plural(count, 'image')} of {name}", tiles


def _sample(count: int, rng: np.random.Generator) -> list[int]:
    if not count:
        raise OptionError("--calibrate: there are no images; give a folder or a data set that contains some")
    chosen = rng.choice(count, min(count, CALIBRATION_IMAGES), replace=False)
    return sorted(chosen.tolist())


def _has_masks(folder: Path) -> bool:
    try:
        find_folders(folder, [])
    except FileError:
        return False
    return True


def _open_training_images(data: str | Path | None, run: TrainRun | None, info: ModelInfo, parts: Parts) -> Dataset:
    if data is not None:
        return open_data(str(data), nodata=info.nodata, channels=_conversion(data, info, parts), parts=parts).splits[
            "train"
        ]
    if run is None:
        raise OptionError("--int8 needs images to calibrate with; give a folder or a data set by --calibrate")
    try:
        return open_evaluation(run, None, parts).splits["train"]
    except UnetkitError as error:
        raise OptionError(
            f"--int8: the training data of {run.folder}, {run.config.data!r}, cannot be opened; give images to "
            "calibrate with by --calibrate"
        ) from error


def _conversion(data: str | Path, info: ModelInfo, parts: Parts) -> str:
    return "" if is_named_dataset(str(data), parts) else info.conversion


def _read_file(path: Path, info: ModelInfo, rng: np.random.Generator) -> np.ndarray:
    with open_image(path, info.nodata) as picture:
        if not info.conversion:
            _check_channels(str(path), picture.channels, info)
        return _cut_tile(NormalizedReader(picture, info, info.conversion, path), info, rng)


def _check_channels(name: str, channels: int, info: ModelInfo) -> None:
    if channels != info.channels:
        has = format_plural(channels, "channel")
        raise OptionError(
            f"--calibrate: {name} has {has}, but the network needs {info.channels}; give images like those that it was "
            "trained on"
        )


def _cut_tile(image: Source, info: ModelInfo, rng: np.random.Generator) -> np.ndarray:
    """Return one of the tiles of an image, (1, C, H, W)."""
    layout = info.tiles.layout(image.size)
    row, column = (int(rng.integers(len(axis.starts))) for axis in (layout.rows, layout.columns))
    tile = mirrored_window(image, layout.rows.input_range(row), layout.columns.input_range(column))
    return np.asarray(tile[None], np.float32)


def quantize(source: Path, path: Path, tiles: Sequence[np.ndarray], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write an ONNX file whose convolutions and the operations between them compute with 8 bits.

    Weights are int8, with a scale for each output channel, and activations uint8, with the ranges that they have on
    the tiles. With int8 activations, ONNX Runtime and OpenVINO are as slow as with float32 on x86 processors.

    Args:
        source: the file in float32.
        path: the file to write.
        tiles: images to calibrate on, (1, C, H, W).
        metadata: the metadata of the file that is written.

    Returns:
        How it was quantized, by keys.

    Raises:
        ExportError: ONNX Runtime cannot quantize the network.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise ExportError(f"--int8 needs the package {error.name}; pip install 'unetkit[onnx]'") from error

    class Tiles(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.left = ({name: tile} for tile in tiles)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    name = onnx.load(source, load_external_data=False).graph.input[0].name
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared, written = Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
        try:
            with silence():
                # Symbolic shapes are for transformers, as its documentation says, and fail at dynamic padding.
                quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
                quantize_static(
                    str(prepared),
                    str(written),
                    Tiles(name),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    activation_type=QuantType.QUInt8,
                )
        except INTERRUPTS:
            raise
        except Exception as error:  # ONNX Runtime raises whatever it meets
            raise ExportError(
                f"ONNX Runtime cannot quantize this network: {one_line(error)}; leave --int8 out"
            ) from error
        model = onnx.load(written)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    operations = [node.op_type for node in model.graph.node]
    return {"weights": "int8 per channel", "activations": "uint8", "quantizers": operations.count("QuantizeLinear")}
