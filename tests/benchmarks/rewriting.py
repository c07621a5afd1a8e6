"""Networks rewritten by `unetkit.fast` against the same with one rewrite left out, and against the given network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import unetkit
from tests.benchmarks.paired import Ratio, compare
from unetkit.predict.openvino_engine import compile_file
from unetkit.rewrites import CHANNELS_LAST, KINDS, rewrite

#: The lines of the networks, with the size of their images.
NETWORKS = {
    "--encoder resnet34": 256,
    "--encoder resnet101 --fuse add": 256,
    "--encoder resnet34 --decode-to 4": 256,
    "--encoder vit_tiny_patch16_224": 224,
    "--encoder repvgg_a0": 256,
}
#: The networks that are timed under each engine.
UNDER_ENGINES = ("--encoder resnet34", "--encoder resnet101 --fuse add")

Call = Callable[[], Any]


def fast(rounds: int) -> Iterator[Ratio]:
    """Time a forward pass of one image with and without each rewrite, by the processor time of one thread."""
    torch.set_num_threads(1)
    for line in NETWORKS:
        yield from compare_rewrites(line, rounds)
    for line in UNDER_ENGINES:
        model, x = _build(line)
        rewritten = unetkit.fast(model)
        for engine, prepare in ENGINES.items():
            name = f"`{line}`, fast / as built, both by {engine}"
            yield _compare(name, prepare(rewritten, x), prepare(model, x), rounds)


def compare_rewrites(line: str, rounds: int) -> Iterator[Ratio]:
    """Time a network with all rewrites against the network as it was built, and against it without each of them."""
    model, x = _build(line)
    rewritten: Any = unetkit.fast(model)
    yield _compare(f"`{line}`, fast / as built", _run_eager(rewritten, x), _run_eager(model, x), rounds)
    found = {record.name for record in rewritten.rewrites}
    without = {
        kind.name: rewrite(model, [other for other in KINDS if other is not kind])
        for kind in KINDS
        if kind.name in found
    }
    without[CHANNELS_LAST] = rewrite(model, KINDS, channels_last=False)
    for what, other in without.items():
        name = f"`{line}`, fast / without {what}"
        yield _compare(name, _run_eager(rewritten, x), _run_eager(other, x), rounds)


def _build(line: str) -> tuple[nn.Module, Tensor]:
    """Build a network, and an image for it."""
    size = NETWORKS[line]
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return unetkit.build(f"{line} --seed 0").eval(), x


def _compare(name: str, first: Call, second: Call, rounds: int) -> Ratio:
    return compare(name, first, second, rounds, clock=time.process_time)


def _run_eager(model: Any, x: Tensor) -> Call:
    def run() -> Any:
        with torch.inference_mode():
            return model(x)

    return run


def _compile(model: nn.Module, x: Tensor) -> Call:
    compiled = torch.compile(model)

    def run() -> Any:
        with torch.no_grad():
            return compiled(x)

    return run


def _run_onnxruntime(model: nn.Module, x: Tensor) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with TemporaryDirectory() as folder:
        file = _export(model, x, folder)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    image = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, image)


def _run_openvino(model: nn.Module, x: Tensor) -> Call:
    with TemporaryDirectory() as folder:
        compiled = compile_file(_export(model, x, folder), threads=1)
    request, image = compiled.create_infer_request(), [x.numpy()]
    return lambda: request.infer(image)


def _export(model: nn.Module, x: Tensor, folder: str) -> Path:
    file = Path(folder, "model.onnx")
    torch.onnx.export(model, (x,), file, dynamo=True, external_data=False, verbose=False)
    return file


ENGINES = {"torch.compile": _compile, "ONNX Runtime": _run_onnxruntime, "OpenVINO": _run_openvino}
