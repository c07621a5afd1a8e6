"""Reading runs with trainings: verdicts, effects, tables, the report and comparisons of two runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.bench.trained_runs import write_trained_run
from unetkit import bench
from unetkit.bench.columns import make_columns, select_columns
from unetkit.bench.compare import diff_runs
from unetkit.bench.quality import RunQuality, describe_trainings, image_iou
from unetkit.bench.quality_effects import estimate_quality_effects
from unetkit.bench.report.page import render_report
from unetkit.bench.results import BenchRun
from unetkit.bench.show import describe_missing_rows, format_run, rows_to_latex
from unetkit.cli import cli
from unetkit.errors import OptionError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> BenchRun:
    return write_trained_run(tmp_path_factory.mktemp("trained") / "run")


def verdicts(run: BenchRun) -> dict[str, str]:
    quality = RunQuality(run)
    return {row.id: quality.of(row, "miou").verdict for row in run.rows}


def test_rows_are_judged_against_the_first(run: BenchRun) -> None:
    assert verdicts(run) == {
        "resnet18-concat": "baseline",
        "resnet18-add": "better",
        "resnet34-concat": "same",
        "resnet34-add": "worse",
    }
    quality = RunQuality(run)
    assert quality.best_row == "resnet18-add"
    assert quality.of(run.rows[1], "val-loss").verdict == ""  # verdicts are those of the metric of the rules
    lines = describe_trainings(quality)
    assert "cells (40 train, 10 val, 20 test)" in lines[0]
    assert "test images" in lines[0]
    assert "6 seeds, margin 0.005" in lines[1]
    assert "the chance that any verdict of this benchmark is false is at most 5%" in lines[1]
    assert re.match(r"correlation .*: 0\.9", lines[2])


def test_seeds_and_images_give_wider_intervals_than_seeds(run: BenchRun) -> None:
    quality = RunQuality(run)
    found = quality.of(run.rows[1], "miou").comparison
    interval = quality.image_interval(run.rows[1], "miou")
    assert found is not None
    assert interval is not None
    assert interval[0] < found.difference < interval[1]
    assert quality.image_interval(run.rows[1], "val-loss") is None


def test_columns_without_a_value_are_left_out_and_named_metrics_hidden_last(run: BenchRun) -> None:
    names = [column.name for column in select_columns(make_columns(run), None)]
    assert "miou-images" in names
    assert "val-loss-images" not in names  # a loss does not follow from confusion matrices
    extra = replace(run.header.metrics[0], name="depth")
    header = replace(run.header, metrics=(*run.header.metrics, extra))
    commands = (replace(run.commands[0], command="unetkit bench --metrics depth,miou,val-loss"),)
    ranks = {one.name: one.rank for one in make_columns(replace(run, header=header, commands=commands))}
    assert ranks["depth"] < ranks["val-loss-difference"] < ranks["miou-images"]


def test_a_failed_training_takes_the_verdict_and_is_said(tmp_path: Path) -> None:
    failed = write_trained_run(tmp_path / "run", failed={("resnet18", "add"): 2})
    assert verdicts(failed)["resnet18-add"] == "failed on 1 of 6 seeds"
    assert verdicts(failed)["resnet34-add"] == "worse"
    columns = make_columns(failed)
    listing = format_run(failed, failed.rows, columns)
    assert any(note.startswith("row 2, seed 2: the loss is nan") for note in listing.notes)
    baseline = write_trained_run(tmp_path / "other", failed={("resnet18", "concat"): 0})
    assert verdicts(baseline)["resnet34-add"] == "no comparison"


def test_few_seeds_are_exploratory_and_looks_say_what_is_missing(tmp_path: Path) -> None:
    few = write_trained_run(tmp_path / "few", seeds=3)
    assert verdicts(few)["resnet18-add"].startswith("exploratory")
    lines = describe_trainings(RunQuality(few))
    assert "no verdicts on miou with fewer than 6 seeds" in lines[1]
    assert not any("correlation" in line for line in lines)
    assert describe_missing_rows(few) == []
    begun = write_trained_run(tmp_path / "begun", seeds=3, looks=(6, 8))
    assert re.match("12 trainings .*: unetkit bench", describe_missing_rows(begun)[0])
    decided = write_trained_run(tmp_path / "decided", seeds=6, looks=(6, 8))
    assert {*verdicts(decided).values()} >= {"better", "worse"}


def test_effects_are_differences_over_matched_pairs_with_their_interactions(run: BenchRun) -> None:
    quality = RunQuality(run)
    effects = {(one.factor, one.a, one.b): one for one in estimate_quality_effects(quality, "miou")}
    fuse, encoder = effects["fuse", "concat", "add"], effects["encoder", "resnet18", "resnet34"]
    means = {row.id: np.array(quality.of(row, "miou").scores) for row in run.rows}
    expected = (means["resnet18-add"] - means["resnet18-concat"] + means["resnet34-add"] - means["resnet34-concat"]) / 2
    assert fuse.difference == pytest.approx(expected.mean())
    assert fuse.low < fuse.difference < fuse.high
    assert (len(fuse.pairs), fuse.seeds, fuse.has_images) == (2, 6, True)
    assert [text.partition(":")[0] for text in fuse.interactions] == ["depends on encoder"]
    assert encoder.difference < 0


def test_only_a_verdict_makes_a_score_bold(run: BenchRun, tmp_path: Path) -> None:
    columns = select_columns(make_columns(run), "encoder,fuse,miou,miou-verdict")
    latex = rows_to_latex(run, run.rows, columns)
    assert latex.count(r"\textbf{") == 1
    bold = next(line for line in latex.splitlines() if r"\textbf{" in line)
    assert bold.startswith(r"resnet18 & add & \textbf{0.")
    assert bold.endswith(r"& better \\")
    few = write_trained_run(tmp_path / "few", seeds=3)
    assert r"\textbf{" not in rows_to_latex(few, few.rows, make_columns(few))


def test_the_report_has_verdicts_curves_effects_and_classes(run: BenchRun) -> None:
    html = render_report(run)
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])["quality"]
    assert data["metric"] == "miou"
    assert [item["verdict"] for item in data["differences"]["miou"]] == ["better", "same", "worse"]
    assert all(len(item["dots"]) == 6 for item in data["differences"]["miou"])
    assert [len(row["seeds"]) for row in data["curves"]] == [6] * 4
    assert data["curves"][0]["seeds"]["0"] == [[1, 0.51], [2, 0.52], [3, 0.53]]
    assert {item["name"] for item in data["effects"]["miou"]} == {"fuse: concat → add", "encoder: resnet18 → resnet34"}
    assert data["images"] is None
    for section in ("verdicts", "curves", "quality-effects", "classes"):
        assert f'<section id="{section}">' in html
    assert len(html) < 8e6


def test_data_frames_are_long_by_seed_and_by_image(run: BenchRun) -> None:
    rows = bench.read(run.folder)
    by_row, by_seed, by_image = (rows.to_pandas(by) for by in ("row", "seed", "image"))
    assert (len(by_row), len(by_seed), len(by_image)) == (4, 24, 4 * 6 * 20)
    assert by_seed.groupby("id")["miou"].mean()["resnet18-add"] == pytest.approx(
        by_row.set_index("id")["miou"]["resnet18-add"]
    )
    assert {"seed", "image", "iou:road", "iou:car", "encoder", "fuse"} <= {*by_image.columns}
    with pytest.raises(OptionError, match="by='epoch' must be 'row', 'seed' or 'image'"):
        rows.to_pandas("epoch")


def test_iou_of_an_image_is_undefined_for_a_class_in_neither_mask() -> None:
    assert np.isnan(image_iou(np.array([[[5, 0], [0, 0]]], float))[0]).tolist() == [False, True]
    assert image_iou(np.array([[[[5, 1], [2, 4]]]], float)).tolist() == [[4 / 7]]


def test_two_runs_are_compared_seed_by_seed(run: BenchRun, tmp_path: Path) -> None:
    worse = write_trained_run(tmp_path / "worse", shift=0.05)
    diff = diff_runs(run, worse)
    trained = [change for change in diff.changes if change.metric is not None and change.metric.name == "miou"]
    assert [change.verdict for change in trained] == ["worse"] * 4
    assert diff.is_worse
    assert all(change.difference is not None and change.difference[2] < 0 for change in trained)
    again = write_trained_run(tmp_path / "again")
    assert not diff_runs(run, again).is_worse
    other = write_trained_run(tmp_path / "other", images=10)
    assert any("other images" in note for note in diff_runs(run, other).notes)


def test_runs_of_one_seed_are_compared_without_an_interval(tmp_path: Path) -> None:
    for name, shift in (("a", 0.0), ("b", 0.1)):
        write_trained_run(tmp_path / name, seeds=1, images=3, shift=shift)
    done = CliRunner().invoke(cli, ["bench", "diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    changes = [one for one in json.loads(done.output)["changes"] if one["metric"] == "miou"]
    assert {one["verdict"] for one in changes} == {"inconclusive"}
    assert all(one["difference"][0] < 0 and one["difference"][1:] == [None, None] for one in changes)


def test_commands_print_what_is_stored(run: BenchRun) -> None:
    for arguments in (
        ["--sort=-miou"],
        ["--effects"],
        ["--csv"],
        ["--markdown"],
        ["--latex"],
        ["--json"],
        ["--effects", "--csv"],
    ):
        result = CliRunner().invoke(cli, ["bench", "show", str(run.folder), *arguments])
        assert result.exit_code == 0, result.output
        assert "miou" in result.output
    result = CliRunner().invoke(
        cli, ["bench", "show", str(run.folder), "--filter", "miou-verdict=better", "--columns", "fuse"]
    )
    assert "1 of 4 rows is shown" in result.output


def test_the_selftest_reads_a_folder_and_refuses_one_without_trainings(run: BenchRun, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "selftest", "--quality", "--runs", "40", str(run.folder), "--json"])
    assert result.exit_code in (0, 1), result.output
    found = json.loads(result.output[result.output.index("{") :])
    assert found["network"] == "--encoder resnet18 --fuse concat"
    assert found["trainings"] == 6
    result = CliRunner().invoke(cli, ["bench", "selftest", str(run.folder)])
    assert isinstance(result.exception, OptionError)
