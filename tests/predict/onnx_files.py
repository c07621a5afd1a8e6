"""Small graphs as .onnx files, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from unetkit.data.types import Target
from unetkit.predict.model_info import ModelInfo
from unetkit.tiling.layout import TileRequirements


def write(model: onnx.ModelProto, path: Path, info: ModelInfo | None) -> Path:
    """Write a graph with its metadata."""
    if info is not None:
        helper.set_model_props(model, info.to_metadata())
    onnx.save(model, path)
    return path


#: What the metadata say of `graph()`.
INFO = ModelInfo(
    "", "--encoder plain", Target("binary", ("ground", "cell")), 1, (0.5,), (0.25,), TileRequirements(1, None, (1, 1))
)


def graph(
    shape: Sequence[str | int] = ("B", 1, "H", "W"),
    output: Sequence[str | int] = ("B", 1, "H", "W"),
    *,
    operator: str = "Identity",
    dtype: int = TensorProto.FLOAT,
    inputs: int = 1,
) -> onnx.ModelProto:
    """Make a graph of one operator."""
    names = [f"image{index}" for index in range(inputs)]
    made = helper.make_graph(
        [helper.make_node(operator, names, ["logits"])],
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name in names],
        [helper.make_tensor_value_info("logits", dtype, output)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
