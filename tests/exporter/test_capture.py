"""Sizes that are left open in a captured network: expressions that can be derived, and none that is wrong."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import timm.layers
from hypothesis import given
from hypothesis import strategies as st

import unetkit
from unetkit.exporter.capture import same_padding


@given(*(st.integers(1, most) for most in (400, 9, 9, 4)))
def test_padding_is_that_of_timm(size: int, kernel: int, stride: int, dilation: int) -> None:
    expected = timm.layers.get_same_padding(size, kernel, stride, dilation)
    assert same_padding(size, kernel, stride, dilation) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "--encoder test_efficientnet:pad_type=same",
        "--encoder tiny_vit_5m_224:depths=[1,1,1,1],embed_dims=[8,8,8,8],num_heads=[1,1,1,1]",
    ],
    ids=["SAME padding", "unknown sizes"],
)
def test_files_are_equal(line: str, tmp_path: Path) -> None:
    report = unetkit.export(unetkit.build(line, seed=0), tmp_path / "model.onnx")
    assert report.difference < 1e-5
    values = onnx.load(report.path).graph.value_info
    # ONNX Runtime takes sizes of the same name to be equal, and so would reuse memory of another size.
    assert "None" not in {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim}
