"""Benchmarks that train: every row with every seed, once, whatever interrupts it; and the same as `unetkit train`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.bench.conftest import run_cli
from unetkit import bench, train
from unetkit.bench.quality import RunQuality, load_scores
from unetkit.bench.quality_statistics import QualityRules
from unetkit.bench.results import TrainingRecord, read_results
from unetkit.bench.training import training_folder
from unetkit.bench.training_runner import find_discardable
from unetkit.cli import cli
from unetkit.data.datasets import open_data
from unetkit.data.export import write_dataset
from unetkit.data.folder import split_again
from unetkit.data.splits import SplitConfig
from unetkit.data.types import fingerprint
from unetkit.errors import FileError, OptionError, UnknownNameError
from unetkit.plan import Plan
from unetkit.predict.evaluate import score_images
from unetkit.train.checkpoint import read_run

CELLS = "cells:count=8,val=2,test=3,size=32"
TINY = "--encoder plain:widths=[4,8]"
QUICK = ["--data", CELLS, "--steps", "2", "--epochs", "2", "--batch-size", "4", "--metrics", "parameters,miou,val-loss"]
#: Without these, each training has both cores, whose threads wait for each other beside other tests.
THREADS = ["--threads", "1", "--jobs", "2"]
GRID = ["--encoder", "plain:widths=[4,8]", "--fuse", "concat,add", *QUICK, *THREADS]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "unetkit", "bench", *arguments]


def trainings_in(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rows.jsonl").read_bytes().split(b"\n")[:-1]  # one that is being written has no end yet
    return [json.loads(line)["training"] for line in lines if line.startswith(b'{"training"')]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two rows with two seeds by a command that is killed twice while it trains, and add a third row later."""
    folder, moments = tmp_path_factory.mktemp("bench") / "run", random.Random(5)
    whole = [*GRID, "--seeds", "2", "--out", str(folder)]

    def recorded() -> int:
        return len(trainings_in(folder)) if (folder / "rows.jsonl").exists() else 0

    kills = [((folder / "trainings").exists, moments.uniform(0, 0.5)), (lambda: recorded() > 0, 0.0)]
    left = []
    for is_due, seconds in kills:
        process = subprocess.Popen(command(*whole), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not is_due() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
        process.wait()
        left.append(recorded())
    assert any(0 < number < 4 for number in left)  # a kill fell between the first and the last training
    for arguments in (whole, ["--encoder", "plain:widths=[4,8]", "--up", "transposed", "--out", str(folder)]):
        result = run_cli(*arguments)
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
def test_though_killed_each_row_is_trained_once_with_each_seed_and_a_later_command_adds_rows(trained: Path) -> None:
    run = read_results(trained)
    written = Counter((one["row_id"], one["seed"]) for one in trainings_in(trained))
    assert written == Counter((one.row_id, one.seed) for one in run.trainings)
    assert written == Counter({(row.id, seed): 1 for row in run.rows for seed in (0, 1)})
    assert [row.factors["fuse"] for row in run.rows] == ["concat", "add", "concat"]
    assert run.rows[2].training == {"batch_size": "4", "epochs": "2", "steps": "2"}  # inherited
    assert run.header.training is not None
    assert run.header.training.baseline_row == run.rows[0].id
    assert (run.header.training.scored, run.header.training.outputs) == ("test", 1)
    for one in run.trainings:
        assert (one.error, one.failures, {*one.values}) == ("", {}, {"miou", "val-loss"})


@pytest.mark.slow
def test_a_training_is_that_of_train_and_eval(trained: Path, tmp_path: Path) -> None:
    run = read_results(trained)
    row, record = run.rows[1], next(one for one in run.trainings if (one.row_id, one.seed) == (run.rows[1].id, 1))
    settings: dict[str, Any] = {"steps": 2, "epochs": 2, "batch_size": 4, "preview_every": 0, "device": "cpu"}
    again = train.run(f"{row.line} --seed 1", tmp_path / "again", data=CELLS, **settings)
    folder = training_folder(trained, row.id, 1)
    logs = [
        [json.loads(line) for line in (one / "log.jsonl").read_text().splitlines()] for one in (folder, again.folder)
    ]
    for name in ("loss", "val_loss", "miou"):
        assert [line[name] for line in logs[0]] == pytest.approx([line[name] for line in logs[1]])
    scored = score_images(again, again.network(), open_data(CELLS, seed=1).splits["test"])
    assert record.values["miou"] == pytest.approx(scored.micro().miou, abs=1e-6)
    stored = load_scores(trained, row.id, 1)
    assert stored is not None
    assert (stored["confusion"] == np.stack([image.matrix.numpy() for image in scored.images])).mean() > 0.9


@pytest.mark.slow
def test_only_the_best_rows_weights_are_left(trained: Path) -> None:
    run = read_results(trained)
    best = RunQuality(run).best_row
    kept = {path.parent.parent.name for path in trained.glob("trainings/*/*/best.safetensors")}
    assert kept == {best}
    assert not [*trained.glob("trainings/*/*/state.pt")]
    found = read_run(training_folder(trained, best, 1))
    assert found.network().plan.encoder == Plan.parse(TINY).encoder


def test_weights_of_a_training_that_is_not_recorded_are_kept() -> None:
    """A row that a later command adds may finish its second seed before its first, which still runs."""
    finished = [("a", 0, 0.5), ("a", 1, 0.5), ("b", 0, 0.7), ("b", 1, 0.7), ("c", 1, 0.4)]
    records = [TrainingRecord(row_id, "key", seed, values={"miou": score}) for row_id, seed, score in finished]
    records.append(TrainingRecord("d", "key", 0, error="out of memory"))
    rules = QualityRules(metric="miou", better="more", margin=0.005, looks=(2,), race=False)
    assert [(one.row_id, one.seed) for one in find_discardable(records, rules, 0)] == [("a", 0), ("a", 1)]


@pytest.mark.slow
def test_costs_are_those_of_the_datas_channels_and_classes(trained: Path) -> None:
    run = read_results(trained)
    assert run.rows[0].size == (32, 32)
    assert run.rows[0].line.endswith("--in-channels 1 --classes 1")


@pytest.mark.slow
def test_what_is_there_is_not_trained_again_and_other_rules_are_refused(trained: Path) -> None:
    before = (trained / "rows.jsonl").read_text()
    result = run_cli("--encoder", "plain:widths=[4,8]", "--fuse", "concat,add", "--out", str(trained))
    assert result.exit_code == 0, result.output
    assert len(trainings_in(trained)) == sum(line.startswith('{"training"') for line in before.splitlines()) == 6
    for option, value in (("--margin", "0.1"), ("--seeds", "7")):
        result = run_cli("--encoder", "plain:widths=[4,8]", option, value, "--out", str(trained))
        assert isinstance(result.exception, FileError)
        assert f"leave out {option}: the rules of verdicts are fixed" in str(result.exception)


@pytest.mark.slow
def test_a_training_that_fails_is_said_and_its_row_has_no_verdict(tmp_path: Path) -> None:
    plans = [f"{TINY}", f"{TINY} --fuse add"]
    rows = bench.run(
        plans, data=CELLS, out=tmp_path / "run", seeds=2, metrics=["parameters", "miou"], threads=1, jobs=2,
        steps=2, epochs=2, batch_size=[4], lr=[1e-3, "1e30"],
    )  # fmt: skip
    quality = RunQuality(rows.run)
    verdicts = {(row.factors["fuse"], row.factors["lr"]): quality.of(row, "miou").verdict for row in rows}
    assert verdicts["concat", "0.001"] == "baseline"
    assert verdicts["concat", "1e30"] == verdicts["add", "1e30"] == "failed on 2 of 2 seeds"
    assert verdicts["add", "0.001"].startswith("exploratory")
    failed = [one for one in rows.run.trainings if one.error]
    assert len(failed) == 4
    assert all("NaN" in one.error or "nan" in one.error or "inf" in one.error for one in failed)


@pytest.mark.slow
def test_seeds_split_data_that_have_no_split_alike_for_all_rows(tmp_path: Path) -> None:
    write_dataset(open_data("cells:count=10,val=1,test=0,size=32"), tmp_path / "made")
    flat = tmp_path / "flat"
    (flat / "images").mkdir(parents=True)
    (flat / "masks").mkdir()
    for kind in ("images", "masks"):
        for path in (tmp_path / "made" / "train" / kind).iterdir():
            path.rename(flat / kind / path.name)
    opened = open_data(str(flat), seed=0)
    assert not opened.is_split
    for seed in (1, 2):
        again, anew = split_again(opened, SplitConfig(seed)), open_data(str(flat), seed=seed)
        assert [fingerprint(again.splits[name]) for name in again.splits] == [
            fingerprint(anew.splits[name]) for name in anew.splits
        ]
    rows = bench.run(
        [TINY, f"{TINY} --fuse add"], data=str(flat), out=tmp_path / "run", seeds=2, metrics=["miou"],
        threads=1, jobs=2, steps=2, epochs=1, batch_size=[4],
    )  # fmt: skip
    names = {
        (row.id, seed): tuple(found["names"].tolist())
        for row in rows
        for seed in (0, 1)
        if (found := load_scores(rows.run.folder, row.id, seed))
    }
    assert names[rows[0].id, 0] == names[rows[1].id, 0]
    assert names[rows[0].id, 1] == names[rows[1].id, 1] != names[rows[0].id, 0]
    quality = RunQuality(rows.run)
    assert not quality.has_common_images
    assert quality.image_interval(rows[1], "miou") is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--encoder", "plain", "--metrics", "miou"], OptionError, "--metrics miou: .* give --data"),
        (["--encoder", "plain", "--loss", "bce"], OptionError, "--loss: only applies to trainings; give --data"),
        (["--encoder", "plain", "--pretrained"], OptionError, "--pretrained: only applies to trainings"),
        (["--encoder", "plain", "--seeds", "3"], OptionError, "--seeds: only applies to trainings"),
        (["--encoder", "plain", "--data", "nowhere"], FileError, "nowhere: the folder does not exist"),
        (["--encoder", "plain", *QUICK, "--loss", "bec"], UnknownNameError, "bec"),
        (["--encoder", "plain", *QUICK, "--seeds", "some"], OptionError, "--seeds some: must be a number of seeds"),
        (["--encoder", "plain", *QUICK, "--race"], OptionError, "--race: .* --seeds auto, not 6"),
        (["--encoder", "plain", *QUICK, "--seeds", "auto", "--max-seeds", "5"], OptionError, "--max-seeds 5: .* 6"),
        (["--encoder", "plain", *QUICK, "--margin", "-1"], OptionError, "--margin -1: must be at least 0"),
        (["--encoder", "plain", *QUICK, "--lr", "0.1,x"], OptionError, "--lr x: .* a number"),
        (["--encoder", "plain", *QUICK, "--mode", "eager,compiled"], OptionError, "--mode: give one mode"),
        (["--encoder", "plain", "--data", CELLS, "--metrics", "macs"], OptionError, "no metric of trained networks"),
        (["--encoder", "plain", "--data", CELLS, "--metrics", "iou"], OptionError, "--metrics iou: .* iou:CLASS"),
        (["--encoder", "plain", "--data", CELLS, "--metrics", "miou:cell"], OptionError, "does not belong to a class"),
        (["--encoder", "plain", "--data", CELLS, "--steps", "3"], OptionError, "--steps 3: must be at least .* epochs"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_starts(
    arguments: list[str], error: type[Exception], words: str, tmp_path: Path
) -> None:
    result = run_cli(*arguments, "--out", str(tmp_path / "run"))
    assert isinstance(result.exception, error), result.output
    with pytest.raises(error, match=words):
        raise result.exception
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_class_that_the_data_do_not_have_is_refused(tmp_path: Path) -> None:
    result = run_cli("--encoder", "plain", "--data", CELLS, "--metrics", "iou:dog", "--out", str(tmp_path / "run"))
    assert isinstance(result.exception, OptionError)
    assert str(result.exception).startswith("--metrics iou:dog: ")
    assert str(result.exception).endswith(" background, cell")
    assert not (tmp_path / "run").exists()


def test_rows_that_differ_only_in_training_have_other_ids_and_the_same_costs() -> None:
    from unetkit.cli.bench import parse_grid
    from unetkit.plugins import default_parts

    given = {"encoder": ("plain",), "loss": ("bce,bce+dice",), "augment": ("hflip,scale", "none"), "data": "cells"}
    cases = parse_grid(given, default_parts())
    assert len({case.id for case in cases}) == 4
    assert len({case.cost_id for case in cases}) == 1
    assert [dict(case.factors)["augment"] for case in cases] == ["hflip,scale", "none"] * 2
    assert len({replace(case, factors=()) for case in cases}) == 4


@pytest.mark.slow
def test_seeds_are_added_at_the_looks_until_all_is_decided_and_what_failed_is_trained_again(tmp_path: Path) -> None:
    plugin = tmp_path / "flaky.py"
    plugin.write_text(FLAKY.format(marker=str(tmp_path / "marker")))
    plans = [TINY, f"{TINY} --fuse add"]
    options: dict[str, Any] = {"data": CELLS, "metrics": ["flaky"], "threads": 1, "jobs": 2, "out": tmp_path / "run"}
    options |= {"steps": 1, "epochs": 1, "batch_size": [4], "seeds": "auto", "max_seeds": 8, "race": True}
    options["plugins"] = [str(plugin)]
    rows = bench.run(plans, **options)
    assert sum(bool(one.failures) for one in rows.run.trainings) == 1
    rows = bench.run(plans, **options, retry_failed=True)
    assert not [one for one in rows.run.trainings if one.failures or one.error]
    assert {*Counter((one.row_id, one.seed) for one in rows.run.trainings).values()} == {1}
    counts = Counter(one.row_id for one in rows.run.trainings)
    quality = RunQuality(rows.run)
    assert quality.rules.looks == (6, 8)
    assert counts[rows[0].id] == max(counts.values())
    for row in rows[1:]:
        found = quality.of(row, "flaky").comparison
        assert found is not None
        is_final = found.is_decided or found.is_hopeless or found.worse_than or counts[row.id] == 8
        assert is_final
        assert counts[row.id] in (6, 8)
    again = bench.run(plans, **options)
    assert Counter(one.row_id for one in again.run.trainings) == counts


#: A metric of trained networks that fails the first time that it is called.
FLAKY = """
from pathlib import Path
import unetkit

def flaky(scored):
    "Fails the first time."
    try:
        Path({marker!r}).touch(exist_ok=False)
    except FileExistsError:
        return scored.evaluation.micro().miou
    raise RuntimeError("the first time")

@unetkit.hookimpl
def unetkit_register(parts):
    parts.metrics.add("flaky", flaky, better="more", trained=True)
"""


@pytest.mark.slow
def test_trainings_may_load_data_in_processes_of_their_own(tmp_path: Path) -> None:
    rows = bench.run(
        [TINY], data=CELLS, out=tmp_path / "run", seeds=1, metrics=["miou"], threads=1, workers=1,
        steps=1, epochs=1, batch_size=[4],
    )  # fmt: skip
    assert [one.error for one in rows.run.trainings] == [""]


@pytest.mark.slow
def test_costs_are_measured_at_the_crop_of_each_row_and_plans_take_any_number_of_seeds(tmp_path: Path) -> None:
    arguments = ["--encoder", "plain:widths=[4,8]", "--data", CELLS, "--crop", "16,32", *THREADS]
    arguments += ["--steps", "1", "--epochs", "1"]
    out = ["--seeds", "1", "--metrics", "macs,disk,miou", "--batch-size", "4", "--out", str(tmp_path / "run")]
    result = run_cli(*arguments, *out)
    assert result.exit_code == 0, result.output
    rows = read_results(tmp_path / "run").rows
    assert [row.size for row in rows] == [(16, 16), (32, 32)]
    assert rows[1].values["macs"] == 4 * rows[0].values["macs"]
    planned = CliRunner().invoke(cli, ["bench", "plan", *arguments, "--seeds", "auto", "--max-seeds", "24"])
    assert planned.exit_code == 0, planned.output
    assert "2 rows" in planned.output
    dry = run_cli(*arguments, *out, "--dry-run")
    assert "2 trainings, 2 done" in " ".join(dry.output.split())


@pytest.mark.slow
def test_added_rows_take_size_and_steps_from_the_folder(trained: Path, tmp_path: Path) -> None:
    first = ["--encoder", "plain:widths=[4,8]", "--size", "16", *QUICK, *THREADS, "--seeds", "1"]
    first += ["--out", str(tmp_path / "run")]
    assert run_cli(*first).exit_code == 0
    result = run_cli("--encoder", "plain:widths=[4,8,16]", *THREADS, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    rows = read_results(tmp_path / "run").rows
    assert [row.size for row in rows] == [(16, 16)] * 2
    assert rows[0].training == rows[1].training
    wrong = run_cli("--encoder", "plain", "--baseline", "--encoder plain:widths=[2,4]", "--out", str(tmp_path / "run"))
    assert isinstance(wrong.exception, OptionError)
    train.run(TINY, tmp_path / "trained", data=CELLS, epochs=1, preview_every=0)
    wrong = run_cli(*first[:-1], str(tmp_path / "trained"))
    assert "contains a run of `unetkit train`" in str(wrong.exception)
