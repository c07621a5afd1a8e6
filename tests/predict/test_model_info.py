"""What prediction knows of a network: the same decisions as in training, and a way through a file's metadata."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unetkit.data.types import Target
from unetkit.errors import FileError
from unetkit.predict.model_info import ModelInfo
from unetkit.tiling.layout import TileRequirements

TARGETS = (
    (Target("binary", ("ground", "cell")), 1),
    (Target("binary", ("ground", "cell"), ((1, 2, 3), (4, 5, 6))), 2),
    (Target("multiclass", ("ground", "Zellkern, groß", "edge")), 3),
    (Target("multilabel", ("hot", "wet")), 2),
)


def make_info(target: Target, tiles: TileRequirements | None = None) -> ModelInfo:
    tiles = tiles or TileRequirements(32, None, (32, 64), (2, 4), ((1, 2), (3, 4)), "a pixel depends on 9x9 pixels")
    return ModelInfo("runs/a", "--encoder plain", target, 2, (0.1, 0.2), (1.0, 1e-3), tiles)


@pytest.mark.parametrize(("target", "outputs"), TARGETS)
@pytest.mark.parametrize("scale", [1, 1000])
def test_probabilities_and_masks_are_those_of_training(target: Target, outputs: int, scale: float) -> None:
    logits = scale * torch.randn(1, outputs, 40, 30, generator=torch.Generator().manual_seed(0))
    logits[..., :4, :4] = 0  # equal logits
    info, expected = make_info(target), target.probabilities(logits)
    found = info.to_probabilities(logits.numpy())
    assert found.dtype == np.float32
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-6, atol=1e-7)
    chosen = info.to_mask(expected[0].numpy())
    assert np.array_equal(chosen, target.to_mask(expected)[0].numpy())
    activated = replace(info, output="probabilities")
    own = logits.softmax(1) if target.activation(outputs) == "softmax" else logits.sigmoid()
    assert np.array_equal(activated.to_probabilities(own.numpy()), expected.numpy())


sides = st.integers(1, 2000)
sizes = st.tuples(sides, sides)
tiles = st.builds(
    TileRequirements, sides, st.none() | sizes, sizes, sizes, st.none() | st.tuples(sizes, sizes), st.text(max_size=20)
)


@settings(max_examples=50)
@given(
    tiles,
    st.sampled_from(TARGETS),
    st.sampled_from([None, 0.0, -9999.0, math.inf]),
    st.sampled_from(["", "grey", "rgb"]),
)
def test_metadata_are_read_as_they_were(
    required: TileRequirements, target: tuple[Target, int], nodata: float | None, conversion: str
) -> None:
    info = replace(make_info(target[0], required), nodata=nodata, conversion=conversion, output="probabilities")
    metadata = info.to_metadata()
    assert ModelInfo.from_metadata(metadata | {"other": "key"}, "runs/a") == info
    assert all(isinstance(text, str) for text in metadata.values())


def test_nan_as_nodata_is_read_back() -> None:
    metadata = replace(make_info(TARGETS[0][0]), nodata=math.nan).to_metadata()
    found = ModelInfo.from_metadata(metadata, "a.onnx")
    assert found.nodata is not None
    assert math.isnan(found.nodata)


def test_what_is_wrong_with_metadata_is_said() -> None:
    metadata = make_info(TARGETS[0][0]).to_metadata()
    with pytest.raises(FileError, match="was not exported by unetkit"):
        ModelInfo.from_metadata({"class_names": "[]"}, "m.onnx")
    with pytest.raises(FileError, match="version 99"):
        ModelInfo.from_metadata(metadata | {"unetkit.version": "99"}, "m.onnx")
    for key in set(metadata) - {"unetkit.version"}:
        rest = {name: text for name, text in metadata.items() if name != key}
        with pytest.raises(FileError, match=key.replace(".", r"\.")):
            ModelInfo.from_metadata(rest, "m.onnx")
    for key, text in (
        ("kind", "regression"),
        ("tiles", "{"),
        ("classes", "3"),
        ("mean", "[null]"),
        ("output", "x"),
        ("std", "[1]"),
        ("std", "[1, 0]"),
        ("colours", "[[1, 2, 3]]"),
        ("classes", '["a"]'),
    ):
        with pytest.raises(FileError, match="damaged"):
            ModelInfo.from_metadata(metadata | {f"unetkit.{key}": text}, "m.onnx")


def test_an_image_is_normalized_as_in_training() -> None:
    image = torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(0))
    image[:, 2, 3] = torch.nan
    info = make_info(TARGETS[0][0])
    mean, std = (image.new_tensor(values)[:, None, None] for values in (info.mean, info.std))
    expected = ((image - mean) / std).nan_to_num_(0)
    assert np.array_equal(info.normalize(image.numpy()), expected.numpy())
    assert image[:, 2, 3].isnan().all()
