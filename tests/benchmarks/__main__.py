"""Compare unetkit with smp and with plain loops: `uv run python -m tests.benchmarks [NAME ...] [--rounds N]`.

Each benchmark is a function that yields ratios; docs/benchmarks.md describes them and shows results.
"""

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

from tests.benchmarks.paired import TABLE_HEADER, Ratio, compare, run_python
from unetkit import bench

#: The options of a network with the decoder of smp, so that both have the same architecture and equal parameters.
SMP_DECODER: dict[str, Any] = {
    "up": "nearest",
    "fuse": "concat",
    "widths": "256,128,64,32,16",
    "head": "conv:kernel=3",
    "classes": 1,
}


def startup(rounds: int) -> Iterator[Ratio]:
    """Time the command line against an import of smp, each as a whole process."""
    import_smp = run_python("-c", "import segmentation_models_pytorch")
    for words in ("--help", "list encoders", "list fuse add"):
        yield compare(
            f"`unetkit {words}` / `import smp`", run_python("-m", "unetkit", *words.split()), import_smp, rounds
        )


_PLUGIN = """
import unetkit
{imports}

@unetkit.hookimpl
def unetkit_register(parts):
    parts.fusions.add("mine", "nowhere:Mine")
"""


def plugins(rounds: int) -> Iterator[Ratio]:
    """Time help as a whole process with a plugin, which registers by name or imports torch or timm, against without."""
    without = run_python("-m", "unetkit", "--help")
    cases = {"registers by name": "", "imports torch": "import torch", "imports timm": "import timm"}
    with TemporaryDirectory() as folder:
        for case, imports in cases.items():
            file = Path(folder, f"{case.replace(' ', '_')}.py")
            file.write_text(_PLUGIN.format(imports=imports), encoding="utf-8")
            with_plugin = run_python("-m", "unetkit", "--plugin", str(file), "--help")
            yield compare(f"`unetkit --help` with a plugin that {case} / without", with_plugin, without, rounds)


def building(rounds: int) -> Iterator[Ratio]:
    """Time building a ResNet-101 U-Net, and tracing one on the meta device, against building that of smp."""
    import segmentation_models_pytorch as smp

    import unetkit

    def build_smp() -> Any:
        return smp.Unet("resnet101", encoder_weights=None)

    meta_model = unetkit.build("resnet101", **SMP_DECODER, device="meta")
    cases: dict[str, Callable[[], Any]] = {
        "build resnet101, smp's decoder": lambda: unetkit.build("resnet101", **SMP_DECODER),
        "build resnet101, our defaults": lambda: unetkit.build("resnet101"),
        "build resnet101 on meta": lambda: unetkit.build("resnet101", **SMP_DECODER, device="meta"),
        "trace resnet101 at 224": lambda: unetkit.trace(meta_model, 224),
    }
    for name, candidate in cases.items():
        yield compare(f"{name} / `smp.Unet('resnet101')`", candidate, build_smp, rounds)


def running(rounds: int) -> Iterator[Ratio]:
    """Time a forward pass and a training step of ResNet-34 with the decoder of smp, 2x3x128x128, against smp."""
    import segmentation_models_pytorch as smp
    import torch

    import unetkit

    unetkit_model = unetkit.build("resnet34", **SMP_DECODER)
    smp_model = smp.Unet("resnet34", encoder_weights=None)
    counts = [sum(p.numel() for p in model.parameters()) for model in (unetkit_model, smp_model)]
    if counts[0] != counts[1]:
        raise SystemExit(f"the architectures differ: {counts[0]:,} parameters in unetkit, {counts[1]:,} in smp")
    x = torch.randn(2, 3, 128, 128)

    def make_forward(model: torch.nn.Module) -> Callable[[], Any]:
        def run() -> Any:
            model.eval()
            with torch.inference_mode():
                return model(x)

        return run

    def make_step(model: torch.nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def run() -> None:
            model.train()
            optimizer.zero_grad(set_to_none=True)
            model(x).square().mean().backward()
            optimizer.step()

        return run

    yield compare("forward, resnet34 as smp's / smp's", make_forward(unetkit_model), make_forward(smp_model), rounds)
    yield compare("training step, resnet34 as smp's / smp's", make_step(unetkit_model), make_step(smp_model), rounds)


def training(rounds: int) -> Iterator[Ratio]:
    """Time a step of `unetkit train` with smp's ResNet-18 U-Net, 8x1x128x128, against a plain loop; print memory."""
    import segmentation_models_pytorch as smp
    import torch

    from unetkit import train
    from unetkit.bench.builtin_metrics import PeakMemory
    from unetkit.data.datasets import open_data
    from unetkit.train.trainer import TrainCallback, Trainer

    class StopBeforeFirstStep(TrainCallback):
        def on_train_begin(self, trainer: Trainer) -> None:
            self.trainer = trainer
            raise KeyboardInterrupt

    callback = StopBeforeFirstStep()
    smp_model = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)
    with TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        data = open_data("cells:count=8,val=1,test=1,size=128")
        line = "--model smp/unet --encoder resnet18"
        train.run(line, folder, data=data, loss="bce+dice", callback=callback, epochs=10**6)
    trainer, batch = callback.trainer, next(callback.trainer.loader.epoch(0))
    trainer.stepper.begin_epoch(0)
    optimizer = torch.optim.AdamW(smp_model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    bce, dice = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
    target = batch.masks[:, None].float()

    def plain_step() -> None:
        smp_model.train()
        logits = smp_model(batch.images)
        loss = bce(logits, target) + dice(logits, target)
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(smp_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    def unetkit_step() -> None:
        trainer.stepper.step(batch, 0)

    yield compare("step of `unetkit train`, smp's resnet18 U-Net / of a plain loop", unetkit_step, plain_step, rounds)
    for name, step in (("unetkit train", unetkit_step), ("plain loop", plain_step)):
        peak = PeakMemory(torch.device("cpu")).measure(step)
        print(f"{name}: peak memory of a step {peak / 2**20:.0f} MiB", flush=True)


_ARCHITECTURES = ("unet", "linknet", "fpn", "pspnet")
_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0", "dpn68", "mobileone_s0", "mit_b0")


def grid(rounds: int) -> Iterator[Ratio]:
    """Time `unetkit bench` on 23 small models of smp at 64x64 against a plain loop with as many calls of each."""
    models, encoders = (",".join(f"smp/{name}" for name in names) for names in (_ARCHITECTURES, _ENCODERS))
    excluded = ("--exclude", "--model unet", "--exclude", "--model smp/linknet --encoder smp/mit_b0")  # smp has none
    words = ("bench", "--model", models, "--encoder", encoders, *excluded, "--size", "64")
    metrics = ("--metrics", "parameters,macs,latency", "--baseline", "--model smp/unet --encoder resnet18")
    with TemporaryDirectory() as folder:
        first = Path(folder, "first")
        run_python("-m", "unetkit", *words, *metrics, "--out", str(first))()
        cases = [*_list_loop_cases(bench.read(first))]
        loop = run_python("-m", "tests.benchmarks.loop", "64", *cases)
        numbers = count()

        def run_bench() -> Any:
            return run_python("-m", "unetkit", *words, *metrics, "--out", str(Path(folder, str(next(numbers)))))()

        ratio = compare("`unetkit bench`, 23 rows / a plain loop of as many calls", run_bench, loop, rounds)
    for name, seconds in (("unetkit bench", ratio.timing.candidate), ("plain loop", ratio.timing.baseline)):
        print(f"{name}: {60 * len(cases) / 3 / median(seconds):.1f} rows per minute", flush=True)
    yield ratio


#: A grid of two small networks, and the settings of their trainings.
_GRID = [
    "--encoder",
    "plain:widths=[16,32,64]",
    "--fuse",
    "concat,add",
    "--data",
    "cells:count=80,val=8,test=20,size=96",
]
_NUMBERS = count()
_TRAINING: dict[str, Any] = {"batch_size": 8, "crop": (64, 64)}


def _bench_trainings(folder: str, steps: int, seeds: int, *options: str) -> Callable[[], Any]:
    """Return a function that trains the grid of two networks by `unetkit bench` into a new folder."""
    settings = ["--steps", str(steps), "--epochs", "2", "--batch-size", "8", "--crop", "64", "--seeds", str(seeds)]

    def run() -> None:
        out = Path(folder, f"bench-{next(_NUMBERS)}")
        run_python("-m", "unetkit", "bench", *_GRID, *settings, "--metrics", "miou", *options, "--out", str(out))()

    return run


def ablation(rounds: int) -> Iterator[Ratio]:
    """Time `unetkit bench --data` against its trainings alone, and two trainings at a time against one."""
    from unetkit import train

    number = count()
    with TemporaryDirectory() as folder:

        def train_both() -> None:
            for fuse in ("concat", "add"):
                plan = f"--encoder plain:widths=[16,32,64] --fuse {fuse} --seed 0"
                out = Path(folder, f"train-{next(number)}")
                settings: dict[str, Any] = {
                    "data": _GRID[-1],
                    "steps": 600,
                    "epochs": 2,
                    "preview_every": 0,
                    "device": "cpu",
                }
                train.run(plan, out, **settings, **_TRAINING)

        bench_both = _bench_trainings(folder, 600, 1, "--device", "cpu")
        yield compare("`unetkit bench --data` / its 2 trainings", bench_both, train_both, rounds)
        two, one = (_bench_trainings(folder, 100, 3, "--device", "cpu", "--jobs", jobs) for jobs in ("2", "1"))
        yield compare("6 trainings with `--jobs 2` / with `--jobs 1`", two, one, rounds)


def fast(rounds: int) -> Iterator[Ratio]:
    """Time networks rewritten by `unetkit.fast`, as a whole and without each rewrite, by processor time."""
    from tests.benchmarks import rewriting

    yield from rewriting.fast(rounds)


def _list_loop_cases(rows: bench.BenchRows) -> Iterator[str]:
    """Yield the architecture, the encoder and the number of timed calls of each row, including the baseline's."""
    for row in rows:
        timing = row.timings["latency"]
        calls = 2 * len(timing.candidate) * timing.calls_per_sample
        yield from (row.factors["model"].removeprefix("smp/"), row.factors["encoder"].removeprefix("smp/"), str(calls))


BENCHMARKS = {
    function.__name__: function for function in (startup, plugins, building, running, training, grid, ablation, fast)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"benchmarks to run: {', '.join(BENCHMARKS)}  [default: all]")
    parser.add_argument("--rounds", type=int, default=21, help="number of rounds  [default: 21]")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n{TABLE_HEADER}")
    for name in arguments.names or BENCHMARKS:
        for ratio in BENCHMARKS[name](arguments.rounds):
            print(ratio, flush=True)


if __name__ == "__main__":
    main()
