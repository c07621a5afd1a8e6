"""`unetkit eval`: a run's scores on its own data and on other, beside those counted here; files, refusals, pictures."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

import unetkit
from unetkit.cli import main
from unetkit.cli.eval import eval_run
from unetkit.cli.predict import predict
from unetkit.data.datasets import open_data
from unetkit.data.export import write_dataset
from unetkit.data.io import read_mask
from unetkit.data.statistics import ValueRange
from unetkit.data.types import IGNORE
from unetkit.errors import FileError, UnetkitError
from unetkit.network import Network
from unetkit.predict import evaluate as evaluating
from unetkit.tiling.sliding_window import tiled
from unetkit.train.checkpoint import TrainRun, read_run
from unetkit.train.config import TrainConfig
from unetkit.train.metrics import confusion_matrix, scores
from unetkit.train.plots import draw_confusion, format_short
from unetkit.train.runner import list_fingerprints

CELLS = "cells:count=3,val=2,test=4,size=48"
NAMES = ("sky", "tree", "road")


def trained(folder: Path, text: str, encoder: str = "plain:widths=[4,6]", **words: Any) -> Path:
    """A run as training leaves it, with weights that it began with, moved so that every class is predicted."""
    data = open_data(text)
    channels, outputs = data.channels, words.pop("classes", data.target.outputs)
    model = unetkit.build(encoder, in_channels=channels, classes=outputs, seed=0, **words)
    balance(model, (data.splits["val"][0].image[None] - 0.4) / 0.3)
    run = TrainRun(
        folder,
        model.plan,
        TrainConfig(data=text),
        data.target,
        channels,
        (0.4,) * channels,
        (0.3,) * channels,
        ValueRange((0.0,), (1.0,)),
    )
    run.write()
    unetkit.save(model, folder / "best.safetensors")
    return folder


def balance(model: Network, image: Tensor) -> None:
    with torch.no_grad():
        model.head.conv.bias -= tiled(model, image[0]).mean((1, 2))


def drawn(folder: Path, count: int = 6, names: tuple[str, ...] = NAMES, *, told: bool = True, channels: int = 3) -> str:
    """Images and masks of class indices on disk, some pixels IGNORE; the last class in few of them."""
    source = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        mask = source.integers(0, len(names) - (number > 1), (20, 24)).repeat(2, 0).repeat(2, 1)
        image = mask[..., None] * 60 + source.integers(0, 60, (40, 48, channels))
        Image.fromarray(image.astype(np.uint8).squeeze()).save(folder / "images" / f"photo{number}.png")
        mask[:3] = 255
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"photo{number}.png")
    if told:
        (folder / "classes.txt").write_text("\n".join(names))
    return str(folder)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "cells", CELLS)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder of its own."""
    folder = tmp_path_factory.mktemp("photos")
    return trained(folder / "run", drawn(folder / "data"), classes=3)


def called(*words: Any) -> Result:
    return CliRunner().invoke(eval_run, [*map(str, words)])


def told(*words: Any) -> dict[str, Any]:
    result = called(*words, "--json")
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*words: Any) -> str:
    """The one line that a call is refused with."""
    result = called(*words)
    assert isinstance(result.exception, UnetkitError), result.output
    assert len(str(result.exception).splitlines()) == 1
    return str(result.exception)


def test_python_scores_as_the_command_does(cells: Path) -> None:
    other = "cells:count=1,val=1,test=2,size=32"
    for data, split, boundary in ((None, None, None), (other, "test", 2.0)):
        words = ["--data", data, "--split", split, "--boundary", boundary] if data else []
        scored = unetkit.evaluate(cells, data, split=split, boundary=boundary, device="cpu")
        assert evaluating.report(scored).items() <= told(cells, *words).items()
        assert (scored.data, scored.split) == (data or CELLS, "test")
    opened = unetkit.evaluate(read_run(cells), open_data(other), split="test", boundary=2.0, device="cpu")
    assert evaluating.report(opened) == evaluating.report(scored)
    head, _, *rows = str(opened).splitlines()
    assert f"({opened.split}), 2 images, mIoU {opened.micro().miou:.3f}" in head
    assert [row.split()[0] for row in rows] == [*opened.target.names]
    wrong: tuple[dict[str, Any], ...] = (
        {"weights": "worst"},
        {"boundary": -1},
        {"nodata": "x"},
        {"data": 3},
        {"run": 3},
    )
    for options in wrong:
        with pytest.raises(UnetkitError, match=next(iter(options))):
            unetkit.evaluate(**{"run": cells, **options})
    with pytest.raises(UnetkitError, match="images of 3 channels"):
        unetkit.evaluate(read_run(cells), replace(open_data(other), channels=3))


def test_the_scores_are_those_of_the_networks_masks(photos: Path) -> None:
    run = read_run(photos)
    network, data = run.network(), open_data(run.config.data)
    table = torch.zeros(3, 3, dtype=torch.int64)
    each = {}
    for index in range(len(data.splits["val"])):
        sample = data.splits["val"][index]
        with torch.no_grad():
            logits = network((sample.image[None] - 0.4) / 0.3)
        assert (sample.mask == IGNORE).any()
        one = confusion_matrix(logits.argmax(1)[0], sample.mask, 3)
        each[sample.name], table = scores(one, NAMES).to_dict(), table + one
    found = told(photos)
    assert found["confusion"] == table.tolist()
    expected = scores(table, NAMES).to_dict()
    assert {name: found[name] for name in expected if name != "boundary"} == expected
    assert {image["name"]: image["iou"] for image in found["each"]} == {name: one["iou"] for name, one in each.items()}
    assert (found["split"], found["data"], found["images"]) == ("val", run.config.data, len(each))
    means = [image["miou"] for image in found["each"]]
    assert means == sorted(means)


def test_a_perfect_network_has_every_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    data = open_data(read_run(photos).config.data)
    split = data.splits["val"]
    truths = iter([split[index].mask for index in range(len(split))])

    def perfect(*_: Any) -> np.ndarray:
        return torch.nn.functional.one_hot(next(truths).clamp_min(0), 3).movedim(-1, 0).float()[None].numpy()

    monkeypatch.setattr("unetkit.exporter.engines.TorchEngine", lambda network, info: perfect)
    found = told(photos)
    occurring = [value for rate in ("iou", "dice", "precision", "recall", "boundary") for value in found[rate].values()]
    assert {*occurring} <= {1.0, None}
    assert found["miou"] == found["accuracy"] == found["macro"]["miou"] == 1


def test_the_tables_show_classes_images_and_objects(cells: Path) -> None:
    result = called(cells, "--worst", 2)
    assert result.exit_code == 0, result.exception
    for text in (
        f"4 images of {CELLS} (test)",
        "Over all pixels (micro):",
        "Mean over the images in which the class occurs (macro):",
        "IoU of each image, the lowest 2 of 4:",
        "background",
        "touching objects separated: ",
        "boundary: F-score of the outlines, with a tolerance of 0.75% of the diagonal",
    ):
        assert text in result.stdout
    assert result.stdout.count("test-0000") == 2
    assert "with a tolerance of 3 px" in called(cells, "--boundary", 3).stdout
    assert "IoU of each" not in called(cells, "--worst", 0).stdout


def test_json_holds_all_of_it_and_alone_stands_on_the_output(cells: Path, tmp_path: Path) -> None:
    assert called(cells, "--json-out", tmp_path / "new" / "scores.json").exit_code == 0
    found = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert found == told(cells)
    assert set(found) == {
        *("run", "weights", "plan", "data", "split", "kind", "classes", "images", "miou", "mdice", "accuracy"),
        *("mboundary", "iou", "dice", "precision", "recall", "boundary", "macro", "touching", "confusion", "each"),
    }
    assert set(found["touching"]) == {"separated_instances", "of"}
    assert sum(image["touching"]["of"] for image in found["each"]) == found["touching"]["of"] > 0
    assert np.array(found["confusion"]).sum() == 4 * 48 * 48
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scores.json"]


@pytest.mark.slow
def test_the_split_is_test_where_there_is_one_then_val_and_all_of_other_data(cells: Path, photos: Path) -> None:
    assert (told(cells)["split"], told(cells)["images"]) == ("test", 4)
    assert (told(cells, "--split", "all")["images"], told(cells, "--split", "train")["images"]) == (9, 3)
    assert told(cells, "--data", CELLS + ",seed=7")["split"] == "test"
    own = read_run(photos).config.data
    assert told(photos, "--data", own)["split"] == told(photos, "--data", f"{own}/../data")["split"] == "val"
    copied = shutil.copytree(own, Path(own).parent / "copied")
    found = told(photos, "--data", copied)
    assert (found["split"], found["images"]) == ("all", 6)
    assert "trained on some of these images" in called(photos, "--split", "all").stdout
    assert "the network was trained on" not in called(photos, "--data", copied).stdout


def test_a_folder_that_names_no_classes_is_read_by_those_of_the_run(photos: Path, tmp_path: Path) -> None:
    other = drawn(tmp_path / "other", count=4, told=False)
    for path in Path(other, "masks").iterdir():  # so that the third class is in none
        with Image.open(path) as mask:
            values = np.array(mask)
        Image.fromarray(np.minimum(values, 1)).save(path)
    found = told(photos, "--data", other)
    assert (found["classes"], found["images"]) == ([*NAMES], 4)
    assert found["recall"]["road"] is None


def test_a_folder_of_one_image_or_of_tests_alone_is_scored(photos: Path, tmp_path: Path) -> None:
    assert told(photos, "--data", drawn(tmp_path / "one", 1))["split"] == "all"
    data = Path(drawn(tmp_path / "tests" / "test", 2, told=False)).parent
    (data / "classes.txt").write_text("\n".join(NAMES))
    found = told(photos, "--data", data)
    assert (found["split"], found["images"]) == ("test", 2)


@pytest.mark.parametrize(("kind", "outputs"), [("binary", 1), ("binary", 2), ("multilabel", 3)])
def test_every_kind_of_mask_has_scores_and_a_picture(kind: Any, outputs: int, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    drawn(folder, names=("no", "yes"), count=3)
    if kind == "multilabel":
        shutil.rmtree(folder / "masks")
        (folder / "classes.txt").unlink()
        for label in NAMES:
            (folder / "masks" / label).mkdir(parents=True)
            for number in range(3):
                plane = np.random.default_rng(number).integers(0, 2, (40, 48)) * 255
                Image.fromarray(plane.astype(np.uint8)).save(folder / "masks" / label / f"photo{number}.png")
    run = trained(tmp_path / "run", str(folder), classes=outputs)
    found = told(run, "--picture", tmp_path / "confusion.png", "--split", "all")
    assert (found["kind"], found["images"]) == (kind, 3)
    assert np.array(found["confusion"]).shape == ((3, 2, 2) if kind == "multilabel" else (2, 2))
    assert width_of(tmp_path / "confusion.png") > 200
    assert all(f"\n{name} " in called(run).stdout for name in found["classes"])


def test_a_split_that_is_no_longer_what_it_was_is_refused(tmp_path: Path) -> None:
    data = drawn(tmp_path / "data")
    splits = list_fingerprints(open_data(data))
    folder = trained(tmp_path / "run", data, classes=3)
    replace(read_run(folder), splits=splits).write()
    assert told(folder)["split"] == "val"
    gone = open_data(data).splits["val"][0].name
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / f"{gone}.png").unlink()
    assert "contains other images than when" in refused(folder)
    assert told(folder, "--split", "all")["images"] == 5


@pytest.mark.slow
def test_scores_are_those_of_the_masks_that_predict_writes(tmp_path: Path) -> None:
    write_dataset(open_data("cells:count=1,val=1,test=3,size=51"), tmp_path / "cells")
    folder = trained(tmp_path / "run", str(tmp_path / "cells"), encoder="test_resnet")
    images = tmp_path / "cells" / "test" / "images"
    done = CliRunner().invoke(predict, [str(folder), str(images), "--out", str(tmp_path / "masks")])
    assert done.exit_code == 0, done.output
    table = torch.zeros(2, 2, dtype=torch.int64)
    for path in sorted(images.iterdir()):
        found, truth = tmp_path / "masks" / path.name, images.parent / "masks" / path.name
        predicted, true = (torch.from_numpy(read_mask(mask).values.astype(np.int64)) for mask in (found, truth))
        table += confusion_matrix(predicted, true, 2)
    assert told(folder)["confusion"] == table.tolist()


@pytest.mark.slow
def test_networks_of_valid_convolutions_and_ones_that_end_at_a_stride_are_scored_on_all_pixels(tmp_path: Path) -> None:
    text = "cells:count=2,val=1,test=1,size=40"
    networks: dict[str, dict[str, Any]] = {
        "valid": {"recipe": "unet-2015", "encoder": "plain:widths=[4,6],padding=0"},
        "stride": {"encoder": "test_resnet", "decode_to": 4, "logits": "none"},
    }
    for name, words in networks.items():
        found = told(trained(tmp_path / name, text, **words))
        assert np.array(found["confusion"]).sum() == 40 * 40


def test_the_last_weights_are_taken_where_they_are_asked_for(cells: Path, tmp_path: Path) -> None:
    run = shutil.copytree(cells, tmp_path / "run")
    assert f"{run} has no last.safetensors" in refused(run, "--weights", "last")
    other = unetkit.build("plain:widths=[4,6]", in_channels=1, classes=1, seed=5)
    balance(other, torch.rand(1, 1, 48, 48))
    unetkit.save(other, run / "last.safetensors")
    assert told(run, "--weights", "last")["confusion"] != told(run)["confusion"]


def test_what_does_not_fit_is_refused_in_one_line(cells: Path, photos: Path, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a training run" in refused(tmp_path)
    said = refused(photos, "--data", drawn(tmp_path / "named", names=("sky", "tree", "sea")))
    assert "has 3 classes (sky, tree, sea), but" in said
    assert said.endswith("was trained on 3 classes (sky, tree, road)")
    said = refused(cells, "--data", "cells:classes=4")
    assert said.startswith("--data cells:classes=4: has 4 classes ")
    assert said.endswith(f"but {cells} was trained on 2 classes (background, cell)")
    grey = drawn(tmp_path / "grey", channels=1)
    assert refused(photos, "--data", grey).endswith(f"has images of 1 channel, but {photos} needs 3")
    assert "nowhere: the folder does not exist" in refused(photos, "--data", "nowhere")
    assert refused(photos, "--split", "test").endswith("has train, val; give one of them, or all")
    assert refused(cells, "--data", CELLS + ",test=0", "--split", "test")
    assert "--picture a.svg: only PNG can be drawn" in refused(cells, "--picture", "a.svg")
    assert "--boundary -1: must be 0 or more" in refused(cells, "--boundary", "-1")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(cells, "--json-out", tmp_path / "file" / "scores.json")
    assert "cannot be written" in refused(cells, "--picture", tmp_path / "file" / "confusion.png")
    assert called(cells, "--split", "most").exit_code == 2


def test_what_a_benchmark_left_is_refused_with_its_own_advice(cells: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seed-0"
    folder.mkdir()
    shutil.copy(cells / "run.json", folder)
    assert f"give {folder}" in refused(tmp_path)
    (folder / "result.json").touch()
    assert "--keep-weights" in refused(folder)


def test_masks_with_more_classes_than_the_run_are_refused_by_file(photos: Path, tmp_path: Path) -> None:
    other = drawn(tmp_path / "other", names=(*NAMES, "sea", "car"), told=False)
    assert "photo0.png" in refused(photos, "--data", other)


def test_an_image_that_cannot_be_read_is_refused_by_its_name(photos: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(read_run(photos).config.data, tmp_path / "copied")
    path = copied / "images" / "photo3.png"
    path.write_bytes(path.read_bytes()[:200])
    assert "photo3.png" in refused(photos, "--data", copied)


def test_the_command_is_refused_with_2_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["unetkit", "eval", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"Error: {tmp_path} is not a training run")


# The picture


def width_of(path: Path) -> int:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.width


@pytest.mark.slow
def test_a_picture_is_drawn_of_any_number_of_classes(tmp_path: Path) -> None:
    for classes in (2, 9, 31):
        matrix = torch.arange(classes**2).reshape(classes, classes) * 1000
        draw_confusion(matrix, tuple(f"class number {index}" for index in range(classes)), tmp_path / f"{classes}.png")
        assert width_of(tmp_path / f"{classes}.png") > 200
    draw_confusion(torch.ones(5, 2, 2).long(), ("a", "b", "c", "d", "e"), tmp_path / "labels.png")
    assert len([*tmp_path.iterdir()]) == 4
    with pytest.raises(FileError, match="cannot be written"):
        draw_confusion(torch.ones(2, 2).long(), ("a", "b"), tmp_path / "2.png" / "x.png")


def test_a_class_that_does_not_occur_has_an_empty_row(tmp_path: Path) -> None:
    draw_confusion(torch.tensor([[5, 0], [0, 0]]), ("a", "b"), tmp_path / "a.png")
    assert width_of(tmp_path / "a.png") > 200


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (12_345, "12.3k"), (999_900, "1M"), (4_560_000, "4.56M"), (7 * 10**9, "7G")],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert format_short(count) == text
