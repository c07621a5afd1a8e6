"""`uv run python -m tests.benchmarks [NAME ...] [--rounds N]`: against smp and plain loops."""

from __future__ import annotations

import argparse
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.paired import HEADER, Ratio, compare, process
from unetkit import bench

#: smp's own decoder, word for word, so that both are one architecture with equal parameters.
AS_SMP: dict[str, Any] = {
    "up": "nearest",
    "fuse": "concat",
    "widths": "256,128,64,32,16",
    "head": "conv:kernel=3",
    "classes": 1,
}


def startup(rounds: int) -> Iterator[Ratio]:
    """Whole processes: the command line against importing smp."""
    imports = process("-c", "import segmentation_models_pytorch")
    for words in ("--help", "list encoders", "list fuse add"):
        yield compare(f"`unetkit {words}` / `import smp`", process("-m", "unetkit", *words.split()), imports, rounds)


_PLUGIN = """
import unetkit
{imports}

@unetkit.hookimpl
def unetkit_register(parts):
    parts.fusions.add("mine", "nowhere:Mine")
"""


def plugins(rounds: int) -> Iterator[Ratio]:
    """Whole processes: help with a plugin that registers by name, and with one that imports torch, against without."""
    alone = process("-m", "unetkit", "--help")
    cases = {"registers by name": "", "imports torch": "import torch", "imports timm": "import timm"}
    with TemporaryDirectory() as folder:
        for what, imports in cases.items():
            file = Path(folder, f"{what.replace(' ', '_')}.py")
            file.write_text(_PLUGIN.format(imports=imports), encoding="utf-8")
            with_it = process("-m", "unetkit", "--plugin", str(file), "--help")
            yield compare(f"`unetkit --help` with a plugin that {what} / without", with_it, alone, rounds)


def building(rounds: int) -> Iterator[Ratio]:
    """Making a ResNet-101 U-Net, and tracing one on meta, against making smp's."""
    import segmentation_models_pytorch as smp

    import unetkit

    def theirs() -> Any:
        return smp.Unet("resnet101", encoder_weights=None)

    ghost = unetkit.build("resnet101", **AS_SMP, device="meta")
    cases: dict[str, Callable[[], Any]] = {
        "build resnet101, smp's decoder": lambda: unetkit.build("resnet101", **AS_SMP),
        "build resnet101, our defaults": lambda: unetkit.build("resnet101"),
        "build resnet101 on meta": lambda: unetkit.build("resnet101", **AS_SMP, device="meta"),
        "trace resnet101 at 224": lambda: unetkit.trace(ghost, 224),
    }
    for name, ours in cases.items():
        yield compare(f"{name} / `smp.Unet('resnet101')`", ours, theirs, rounds)


def running(rounds: int) -> Iterator[Ratio]:
    """Forward pass and training step of ResNet-34 with smp's decoder, 2x3x128x128, against smp's own."""
    import segmentation_models_pytorch as smp
    import torch

    import unetkit

    ours, theirs = unetkit.build("resnet34", **AS_SMP), smp.Unet("resnet34", encoder_weights=None)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    if counts[0] != counts[1]:
        raise SystemExit(f"not one architecture: {counts[0]:,} parameters against {counts[1]:,}")
    x = torch.randn(2, 3, 128, 128)

    def forward(model: torch.nn.Module) -> Callable[[], Any]:
        def run() -> Any:
            model.eval()
            with torch.inference_mode():
                return model(x)

        return run

    def step(model: torch.nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def run() -> None:
            model.train()
            optimizer.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
            optimizer.step()

        return run

    yield compare("forward, resnet34 as smp's / smp's", forward(ours), forward(theirs), rounds)
    yield compare("training step, resnet34 as smp's / smp's", step(ours), step(theirs), rounds)


def training(rounds: int) -> Iterator[Ratio]:
    """A step of `unetkit train` on smp's ResNet-18 U-Net, 8x3x128x128, against a plain loop's on the same batch."""
    import segmentation_models_pytorch as smp
    import torch

    from unetkit import train
    from unetkit.bench.builtin_metrics import PeakMemory
    from unetkit.data.datasets import open_data
    from unetkit.train.trainer import TrainCallback, Trainer

    class Caught(TrainCallback):
        def on_train_begin(self, trainer: Trainer) -> None:
            self.trainer = trainer
            raise KeyboardInterrupt

    watch, plain = Caught(), smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)
    with TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        data = open_data("cells:count=8,val=1,test=1,size=128")
        train.run("--model smp/unet --encoder resnet18", folder, data=data, loss="bce+dice", watch=watch, epochs=10**6)
    trainer, batch = watch.trainer, next(watch.trainer.loader.epoch(0))
    trainer.stepper.begin_epoch(0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    bce, dice, truth = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary"), batch.masks[:, None].float()

    def theirs() -> None:
        plain.train()
        logits = plain(batch.images)
        loss = bce(logits, truth) + dice(logits, truth)
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    def ours() -> None:
        trainer.stepper.step(batch, 0)

    yield compare("step of `unetkit train`, smp's resnet18 U-Net / of a plain loop", ours, theirs, rounds)
    for name, step in (("unetkit train", ours), ("a plain loop", theirs)):
        print(f"{name}: {PeakMemory(torch.device('cpu')).measure(step) / 2**20:.0f} MiB at most in a step", flush=True)


_ARCHITECTURES = ("unet", "linknet", "fpn", "pspnet")
_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "dpn68", "mobileone_s0", "mit_b0")


def grid(rounds: int) -> Iterator[Ratio]:
    """24 small models of smp's at 64x64: `unetkit bench` against a plain loop that calls each as many times."""
    models, encoders = (",".join(f"smp/{name}" for name in names) for names in (_ARCHITECTURES, _ENCODERS))
    words = ("bench", "--model", models, "--encoder", encoders, "--exclude", "--model unet", "--size", "64")
    metrics = ("--metrics", "parameters,macs,latency", "--baseline", "--model smp/unet --encoder resnet18")
    with TemporaryDirectory() as folder:
        first = Path(folder, "first")
        process("-m", "unetkit", *words, *metrics, "--out", str(first))()
        calls = [*_calls(bench.read(first))]
        loop = process("-m", "tests.benchmarks.loop", "64", *calls)
        numbers = count()

        def fresh() -> Any:
            return process("-m", "unetkit", *words, *metrics, "--out", str(Path(folder, str(next(numbers)))))()

        ratio = compare("`unetkit bench`, 24 rows / a plain loop of as many calls", fresh, loop, rounds)
    for name, seconds in (("unetkit bench", ratio.timing.candidate), ("a plain loop", ratio.timing.baseline)):
        print(f"{name}: {60 * len(calls) / 3 / median(seconds):.1f} rows a minute", flush=True)
    yield ratio


def _calls(rows: bench.BenchRows) -> Iterator[str]:
    """Architecture, encoder and timed calls of each row, those of its baseline included."""
    for row in rows:
        timing = row.timings["latency"]
        calls = 2 * len(timing.candidate) * timing.calls_per_sample
        yield from (row.factors["model"].removeprefix("smp/"), row.factors["encoder"].removeprefix("smp/"), str(calls))


BENCHMARKS = {each.__name__: each for each in (startup, plugins, building, running, training, grid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", help=f"{', '.join(BENCHMARKS)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n{HEADER}")
    for name in arguments.which or BENCHMARKS:
        for ratio in BENCHMARKS[name](arguments.rounds):
            print(ratio, flush=True)


if __name__ == "__main__":
    main()
