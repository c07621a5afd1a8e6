"""Test that sizes which a captured network leaves open can be derived, and that no size in its file is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import timm.layers
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

import unetkit
from unetkit.exporter.capture import capture, same_padding
from unetkit.exporter.formats import Onnx


@given(*(st.integers(1, most) for most in (400, 9, 9, 4)))
def test_padding_is_that_of_timm(size: int, kernel: int, stride: int, dilation: int) -> None:
    expected = timm.layers.get_same_padding(size, kernel, stride, dilation)
    assert same_padding(size, kernel, stride, dilation) == expected


class Same(nn.Module):
    """An encoder that pads like TensorFlow, and has attention, in whose program ONNX knows some sizes by no formula."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.channels, self.strides = (4, 8, 8, 8, 8), (2, 4, 8, 16, 32)
        widths = (in_channels, *self.channels)
        self.stages = nn.ModuleList(
            Conv2dSame(width, channels, 3 + 2 * (index % 2), 2)
            for index, (width, channels) in enumerate(zip(widths, self.channels, strict=False))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return [*maps[:-1], mixed[:, 0].transpose(1, 2).reshape(x.shape)]


@pytest.mark.slow
def test_open_sizes_are_derived_and_unknown_ones_have_no_name(tmp_path: Path) -> None:
    model = unetkit.build(encoder=Same, seed=0).eval()
    path = tmp_path / "model.onnx"
    Onnx().write(capture(model), path, {})
    run = Onnx().open(path)
    for shape in ((1, 3, 32, 32), (2, 3, 97, 81), (1, 3, 33, 160)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            np.testing.assert_allclose(run(images.numpy()), model(images).numpy(), atol=1e-5)
    graph = onnx.load(path).graph
    names = [[side.dim_param for side in value.type.tensor_type.shape.dim] for value in graph.value_info]
    assert [side.dim_param for side in graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "height", "width"]
    # ONNX Runtime takes sizes of the same name to be equal, and so would reuse memory of another size.
    assert names
    assert "None" not in {name for of_value in names for name in of_value}
