"""A small folder of data, networks, runs and plugins, good and bad, for tests of what the command line says of them."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import chdir
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tifffile
import torch
from safetensors.torch import save_file

import unetkit
from tests.bench.trained_runs import write_trained_run
from tests.data.example_folders import GREEN, RED, SPREAD, made, noise, put, stripes
from tests.predict.onnx_files import INFO, graph, write
from unetkit import train
from unetkit.predict.model_info import PREFIX

PLUGIN = """
import torch
import unetkit
{before}

@unetkit.hookimpl
def unetkit_register(parts):
    {register}
"""
PLUGINS = {
    "takes_add": ("class Gate:\n    pass", "parts.fusions.add('add', Gate)"),
    "broken": ("1 / 0", "pass"),
    "unknown": ("", "parts.fusions.add('mine', 'nowhere:Mine')"),
    "named": ("", "parts.fusions.add('my gate', torch.nn.Identity)"),
    "number": ("", "parts.fusions.add('mine', 3)"),
    "metric": ("", "parts.metrics.add('encoder', lambda subject: 1)"),
    "list": ("def make(in_channels, out_channels):\n    return []", "parts.blocks.add('mine', make)"),
    "raising": ("def make(in_channels, out_channels):\n    raise KeyError('x')", "parts.blocks.add('mine', make)"),
    "lazy": (
        "def make(in_channels, out_channels):\n    return torch.nn.LazyConv2d(out_channels, 1)",
        "parts.blocks.add('mine', make)",
    ),
    "narrow": (
        "def make(in_channels, out_channels):\n    return torch.nn.Conv2d(in_channels, out_channels, 3)",
        "parts.blocks.add('mine', make)",
    ),
    "needing": (
        "def make(in_channels, out_channels, *, size: int):\n    return torch.nn.Conv2d(in_channels, out_channels, 1)",
        "parts.blocks.add('mine', make)",
    ),
    "fusing": (
        "class Fusion(torch.nn.Module):\n"
        "    def __init__(self, x_channels, skip_channels):\n        super().__init__()",
        "parts.fusions.add('mine', Fusion)",
    ),
    "encoding": (
        "class Encoder(torch.nn.Identity):\n    channels, strides = (4, 8), (2, 2)\n"
        "    def __init__(self, in_channels):\n        super().__init__()",
        "parts.encoders.add('mine', Encoder)",
    ),
    "recipe": ("def make():\n    return 3", "parts.recipes.add('mine', make)"),
    "reading": ("def make():\n    open('/no/such/file')", "parts.recipes.add('mine', make)"),
    "data": ("def make():\n    return 3", "parts.datasets.add('mine', make)"),
}
OTHER_PLUGINS = {
    "unmarked": "def unetkit_register(parts):\n    pass\n",
    "empty": "",
    "misspelt": "import unetkit\n\n@unetkit.hookimpl\ndef unetkit_registr(parts):\n    pass\n",
    "arguments": "import unetkit\n\n@unetkit.hookimpl\ndef unetkit_register(part):\n    pass\n",
    "wrapping": "import unetkit\n\n@unetkit.hookimpl\ndef unetkit_wrap_model(model):\n    return 3\n",
    "command": (
        "import click\nimport unetkit\n\n@unetkit.hookimpl\ndef unetkit_register_commands(cli):\n"
        "    @cli.command()\n    def divide():\n        1 / 0\n"
    ),
}


def make_workplace(folder: Path) -> Path:
    """Write the folder. Everything in it is the same on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    with chdir(folder):
        _make_data()
        _make_annotations()
        _make_networks()
        _make_runs()
        _make_exported()
        for name, (before, register) in PLUGINS.items():
            Path(f"{name}.py").write_text(PLUGIN.format(before=before, register=register))
        for name, text in OTHER_PLUGINS.items():
            Path(f"{name}.py").write_text(text)
        Path("notes.txt").write_text("notes\n")
        Path("empty").mkdir()
        write_trained_run(Path("bench"), images=3, seeds=3)
    return folder


def _make_data() -> None:
    binary = stripes(0, 255)
    four = dict.fromkeys("abcd", binary)
    numbers = dict.fromkeys("abcd", stripes(0, 1))
    made(Path("scans"), four)
    made(Path("one"), {"a": binary})
    made(Path("labels"), dict.fromkeys("ab", binary))
    shutil.rmtree("labels/masks")
    for label, name in product(("left", "right"), "ab"):
        put(Path("labels/masks", label, f"{name}.png"), binary)
    made(Path("names"), dict.fromkeys("abcd", stripes(0, 1, 2)))
    Path("names/classes.txt").write_text("ground\ncell\n")
    made(Path("names-twice"), numbers)
    Path("names-twice/classes.txt").write_text("ground\nground\n")
    made(Path("half-coloured"), numbers)
    Path("half-coloured/classes.txt").write_text("ground 0 0 0\ncell\n")
    made(Path("bright"), numbers)
    Path("bright/classes.txt").write_text("ground 0 0 0\ncell 0 0 256\n")
    made(Path("latin"), numbers)
    Path("latin/classes.txt").write_bytes(b"ground\nz\xe9bre\n")
    colours = np.array([(0, 0, 0), RED, GREEN], np.uint8)[stripes(0, 1, 2)]
    made(Path("colours"), dict.fromkeys("abcd", colours))
    Path("colours/classes.txt").write_text("ground 0 0 0\ncell 255 0 0\n")
    made(Path("palette"), dict.fromkeys("abcd", stripes(0, 1, 2)), SPREAD)
    made(Path("unlabelled"), four)
    for name in "ab":
        Path("unlabelled/masks", f"{name}.png").unlink()
    made(Path("unpictured"), four)
    Path("unpictured/images/c.png").unlink()
    made(Path("sizes"), four)
    put(Path("sizes/masks/b.png"), np.zeros((6, 7), np.uint8))
    made(Path("channels"), four)
    put(Path("channels/images/b.png"), noise(12, 24, 3))
    made(Path("damaged"), four)
    Path("damaged/masks/b.png").write_text("not a picture")
    made(Path("grey-masks"), dict.fromkeys("abcd", noise(12, 24, seed=5)))
    made(Path("float-masks"), dict.fromkeys("abcd", np.full((12, 24), 0.5, np.float32)), ending="tif")
    made(Path("ignored"), dict.fromkeys("abcd", np.full((12, 24), 255, np.uint8)))
    made(Path("not-numbers"), four)
    values = np.zeros((12, 24), np.float32)
    values[0, 0] = np.nan
    Path("not-numbers/images/a.png").unlink()
    put(Path("not-numbers/images/a.tif"), values)
    made(Path("stack"), four)
    Path("stack/images/a.png").unlink()
    tifffile.imwrite("stack/images/a.tif", noise(5, 12, 24), metadata={"axes": "ZYX"})
    made(Path("twice"), four)
    put(Path("twice/images/a.tif"), noise(12, 24))
    for split in ("train", "val"):
        made(Path("leak", split), dict.fromkeys(("a-1", "b-1") if split == "train" else ("a-2",), binary))
    made(Path("objects"), four)
    put(Path("objects/instances/a.tif"), noise(12, 24, 3))
    Path("no-images/images").mkdir(parents=True)
    Path("no-images/masks").mkdir(parents=True)
    put(Path("pictures/a.png"), noise(12, 24))
    put(Path("colour.png"), noise(12, 24, 3))


def _make_annotations() -> None:
    for name in ("labelme", "labelme-line", "labelme-lost", "labelme-json"):
        put(Path(name, "a.png"), noise(12, 24))
    shape = {"label": "cell", "points": [[0, 0], [5, 5]], "shape_type": "line"}
    found = {"imagePath": "a.png", "imageHeight": 12, "imageWidth": 24, "shapes": [shape]}
    Path("labelme-line/a.json").write_text(json.dumps(found))
    Path("labelme-lost/a.json").write_text(json.dumps({**found, "imagePath": "b.png", "shapes": []}))
    Path("labelme-json/a.json").write_text("{")
    put(Path("coco-box/a.png"), noise(12, 24))
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 12, "width": 24}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
    }
    Path("coco-box/a.json").write_text(json.dumps(coco))
    Path("coco-lost").mkdir()
    outlined = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 5]]}
    Path("coco-lost/a.json").write_text(json.dumps({**coco, "annotations": [outlined]}))
    lines = {"box": "0 0.1 0.1 0.2 0.2", "class": "3 0 0 1 0 1 1", "words": "cell 0 0 1 0 1 1", "names": ""}
    for name, line in lines.items():
        put(Path(f"yolo-{name}/images/a.png"), noise(12, 24))
        Path(f"yolo-{name}/labels").mkdir()
        Path(f"yolo-{name}/labels/a.txt").write_text(line + "\n")
        if name != "names":
            Path(f"yolo-{name}/data.yaml").write_text("names: [cell]\n")


def _make_networks() -> None:
    model = unetkit.build("plain:widths=[4,8]")
    unetkit.save(model, "net.safetensors")
    whole = Path("net.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("nothing.safetensors").touch()
    save_file({"conv.weight": torch.zeros(3)}, "weights.safetensors")
    torch.save(model.state_dict(), "pickle.safetensors")
    torch.save({"other.weight": torch.zeros(3)}, "other.pth")
    torch.save([1, 2], "list.pth")


def _make_runs() -> None:
    settings: dict[str, Any] = {"steps": 1, "epochs": 1, "batch_size": 2, "preview_every": 0, "device": "cpu"}
    train.run("--encoder plain:widths=[4,8]", "run", data="scans", **settings)
    shutil.copytree("run", "run-from-python")
    header = json.loads(Path("run/run.json").read_text())
    header["config"]["data"] = "squares"
    Path("run-from-python/run.json").write_text(json.dumps(header))
    shutil.copytree("run", "run-damaged")
    Path("run-damaged/run.json").write_text("{")
    shutil.copytree("run", "run-unfinished")
    for path in Path("run-unfinished").glob("*.safetensors"):
        path.unlink()
    shutil.copytree("run", "run-stateless")
    for path in Path("run-stateless").glob("state*"):
        path.unlink()


def _make_exported() -> None:
    write(graph(), Path("net.onnx"), INFO)
    write(graph(), Path("foreign.onnx"), None)
    Path("nothing.onnx").touch()
    model = graph()
    onnx.helper.set_model_props(model, {**INFO.to_metadata(), f"{PREFIX}version": "99"})
    onnx.save(model, "future.onnx")
    write(graph(["B", 3, "H", "W"]), Path("wide.onnx"), INFO)


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files and folders in a folder."""
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*"))
