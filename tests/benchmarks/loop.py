"""A plain loop that compares networks in one process: `python -m tests.benchmarks.loop SIZE [ARCH ENCODER CALLS ...]`.

It prints the parameters, MACs and mean latency of each model of smp, timed by torch.utils.benchmark.
"""

from __future__ import annotations

import sys

import segmentation_models_pytorch as smp
import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode


def main(size: int, *cases: str) -> None:
    """Measure models of smp one after the other.

    Args:
        size: height and width of the input.
        cases: architecture, encoder and number of timed calls of each model.
    """
    torch.set_num_threads(torch.get_num_threads())
    x = torch.randn(1, 3, size, size)
    for arch, encoder, calls in zip(cases[::3], cases[1::3], cases[2::3], strict=True):
        model = smp.create_model(arch, encoder, encoder_weights=None, classes=2).eval()
        with torch.inference_mode():
            with FlopCounterMode(display=False) as counter:
                model(x)
            measurement = Timer("model(x)", globals={"model": model, "x": x}).timeit(int(calls))
        parameters = sum(p.numel() for p in model.parameters())
        print(arch, encoder, parameters, counter.get_total_flops() // 2, measurement.mean, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
