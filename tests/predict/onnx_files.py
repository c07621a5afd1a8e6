"""Networks as .onnx files, for tests of what runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from unetkit.data.types import Target
from unetkit.predict.model_info import ModelInfo
from unetkit.predict.torch_engine import describe_run
from unetkit.tiling.layout import TileRequirements
from unetkit.tiling.requirements import full_size
from unetkit.train.checkpoint import TrainRun


class _Exported(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return full_size(self.network, image)


def export_run(run: TrainRun, path: Path) -> Path:
    """Write the network of a run with its metadata."""
    network = run.network("cpu")
    info, dynamic = describe_run(run, network), torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        _Exported(network).eval(),
        (torch.zeros(2, run.channels, 64, 64),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
        input_names=["image"],
        output_names=["logits"],
    )
    assert program is not None
    return write(program.model_proto, path, info)


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
