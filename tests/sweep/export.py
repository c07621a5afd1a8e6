"""Export networks with a seeded sample of timm's encoders to ONNX, and compare the files at sizes of their own.

`python -m tests.sweep.export` appends a line of JSON for each network to a file; the same command continues it. Beside
unetkit's networks stand those of smp, exported as its documentation does.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from unetkit.utils.json_lines import JsonLinesWriter, read_json_lines
from unetkit.utils.processes import Emit, run_tasks
from unetkit.utils.system import available_cores, limit_memory

#: The networks: the line of unetkit's, or "" for smp's.
NETWORKS = {
    "bilinear, concat": "--up bilinear --fuse concat",
    "transposed, add": "--up transposed --fuse add",
    "smp": "",
}
#: The batches that every file is run on: the number of images, and their height and width.
SHAPES = ((1, 128, 128), (1, 97, 81), (1, 33, 65), (2, 160, 96))
#: The largest difference, as a share of the range of the outputs, and the most parameters of an encoder.
TOLERANCE, MOST_PARAMETERS = 1e-4, 40e6
_PRELOAD = ("unetkit.exporter.export", "torch.onnx", "onnxruntime", "segmentation_models_pytorch")


def export_network(task: tuple[str, str], memory: int, emit: Emit) -> None:
    """Export one network in this process, and emit what came of it."""
    limit_memory(memory)
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, network = task
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        (_export_smp if network == "smp" else _export_unetkit)(name, network, path, emit)


def _export_unetkit(name: str, network: str, path: Path, emit: Emit) -> None:
    import numpy as np

    from unetkit.builder import build_plan
    from unetkit.errors import UnetkitError
    from unetkit.exporter.export import export
    from unetkit.plan import Plan
    from unetkit.plugins import load_parts
    from unetkit.tiling.requirements import find_tile_requirements, full_size

    parts = load_parts(isolated=True)
    line = f"--encoder timm/{name} --size 128 --classes 3 {NETWORKS[network]}"
    model = build_plan(Plan.parse(line), parts, device="cpu").eval()
    emit({"built": True})
    _randomize(model)
    fixed = find_tile_requirements(model).fixed
    try:
        report = export(model, path, parts=parts)
    except UnetkitError as error:
        emit({"result": "refused", "error": str(error)})
        report = export(model, path, parts=parts, fixed_size=128)
        emit({"result": "equal at one size", "difference": report.difference})
        return
    emit({"sizes": report.sizes})
    shapes = [(batch, *fixed) for batch in (1, 2)] if fixed else SHAPES
    _compare(path, lambda x: full_size(model, x), shapes, emit)
    assert np.isfinite(report.difference)


def _export_smp(name: str, network: str, path: Path, emit: Emit) -> None:
    import segmentation_models_pytorch as smp
    import torch

    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3).eval()
    _randomize(model)
    emit({"result": "error", "built": True})
    axes = {0: "batch_size", 2: "height", 3: "width"}
    torch.onnx.export(
        model,
        (torch.randn(1, 3, 128, 128),),
        path,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": axes, "output": axes},
        external_data=False,
        verbose=False,
    )
    _compare(path, model, SHAPES, emit)


def _randomize(model: Any) -> None:
    """Give norms statistics other than 0 and 1, and layers that are initialized with 0 other values."""
    import torch

    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() and not tensor.any():
                tensor.normal_(std=0.02)


def _compare(path: Path, model: Any, shapes: Iterable[tuple[int, ...]], emit: Emit) -> None:
    """Run a file on each batch, compare with the network, and emit the largest difference or what failed."""
    import numpy as np
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: dict[str, Any] = {}
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        key = f"{batch}x{height}x{width}"
        try:
            with torch.no_grad():
                expected = model(images).numpy()
        except Exception as error:
            found[key] = f"the network refuses it: {' '.join(str(error).split())[:100]}"
            continue
        try:
            output = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        except Exception as error:
            found[key] = f"the file fails: {' '.join(str(error).split())[:100]}"
            continue
        if output.shape != expected.shape:
            found[key] = f"the file returns another shape: {output.shape}"
        else:
            found[key] = float(np.abs(output - expected).max() / np.ptp(expected))
    texts = [value for value in found.values() if isinstance(value, str)]
    worst = max((value for value in found.values() if not isinstance(value, str)), default=0.0)
    shaped = [text for text in texts if "another shape" in text]
    result = "different" if shaped or not worst <= TOLERANCE else "partly" if texts else "equal"
    emit({"result": result, "difference": worst, "checks": found})


def draw_names(seed: int) -> list[str]:
    """Return all names of timm in a random order."""
    from unetkit.parts.encoders.timm_catalog import timm_model_names

    names = timm_model_names()
    random.Random(seed).shuffle(names)
    return names


def _is_small(name: str) -> bool:
    import timm
    import torch

    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
    except Exception:
        return False
    return bool(sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS)


@click.command()
@click.option("--sample", default=60, show_default=True, help="Number of encoders.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sample.")
@click.option("--jobs", default=1, show_default=True, help="Number of processes.")
@click.option("--timeout", default=240.0, show_default=True, help="Seconds for one network.")
@click.option("--memory", default=5.0, show_default=True, help="GiB for one process.")
@click.option("--table", is_flag=True, help="Print the table of --out, and export nothing.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/sweep-export.jsonl"), show_default=True)
def main(sample: int, seed: int, jobs: int, timeout: float, memory: float, table: bool, out: Path) -> None:
    """Export every network of the sample that the file does not have yet."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    read_json_lines(out, lambda row: rows.update({(row["name"], row["network"]): row}), "sweep of exports")
    if table:
        click.echo(format_table(rows.values()))
        return
    names: list[str] = []
    for name in draw_names(seed):
        if len(names) == sample:
            break
        if any(row[0] == name for row in rows) or _is_small(name):
            names.append(name)
    tasks = [(name, network) for name in names for network in NETWORKS if (name, network) not in rows]
    writer = JsonLinesWriter(out, "sweep of exports")
    try:
        limits = [int(memory * 2**30)] * min(jobs, len(available_cores()))
        for result in run_tasks(tasks, "tests.sweep.export:export_network", limits, timeout=timeout, preload=_PRELOAD):
            name, network = result.task
            row = {
                "name": name,
                "network": network,
                "result": "error",
                **result.facts,
                "seconds": round(result.seconds),
            }
            if result.error and row["result"] != "refused":
                row |= {"result": "error", "error": result.error[:300]}
            writer.append(row)
            print(json.dumps(row)[:250], file=sys.stderr, flush=True)
    finally:
        writer.close()


def format_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return how many networks of each kind ended how, as a Markdown table."""
    heads = {
        "equal": "equal at all sizes",
        "different": "file differs",
        "partly": "file or network fails at some size",
        "equal at one size": "equal at one size only (`--fixed-size`)",
        "refused": "refused by the export",
        "error": "the exporter fails",
        "not built": "not built",
    }
    counts = {network: Counter[str]() for network in NETWORKS}
    for row in rows:
        counts[row["network"]][row["result"] if row.get("built") or row["result"] != "error" else "not built"] += 1
    lines = [f"| network | networks | {' | '.join(heads.values())} |", "| --- " * (2 + len(heads)) + "|"]
    for network, count in counts.items():
        total = sum(count.values())
        lines.append(f"| {network} | {total} | {' | '.join(str(count[key]) for key in heads)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
