"""Reading a benchmark: columns, filters, order, the table, CSV, JSON, Markdown and pandas."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.bench.example_runs import made_run
from unetkit.bench.columns import (
    HIDDEN,
    Column,
    filter_rows,
    find_constant_factors,
    make_columns,
    select_columns,
    sort_rows,
)
from unetkit.bench.results import BenchRow, BenchRun, ResultsWriter, Timing, read_results
from unetkit.bench.show import format_run, rows_to_dataframe, run_to_dict
from unetkit.bench.statistics import estimate_ratio
from unetkit.cli.bench_results import show
from unetkit.errors import OptionError, UnetkitError, UnknownNameError
from unetkit.registry import MetricInfo
from unetkit.utils.formatting import format_digits, format_metric, format_ratio
from unetkit.utils.tables import Listing, TableData, render_listing, to_markdown


@cache
def run() -> BenchRun:
    return made_run(Path("runs/made"))


@cache
def columns() -> dict[str, Column]:
    return {column.name: column for column in make_columns(run())}


def written(folder: Path, made: BenchRun, missing: int = 0) -> str:
    """The same run as a folder, without its last rows."""
    ledger = ResultsWriter(folder)
    ledger.start(made.header, made.command, [row.id for row in made.rows])
    for row in made.rows[: len(made.rows) - missing]:
        ledger.append(row)
    ledger.close()
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("runs") / "first", run())


def latency(row: BenchRow) -> float:
    """Return the row's ratio times the median of the baseline's medians over the rows with its input."""
    alike = [one.timings["latency"] for one in run().rows if one.is_measured and one.batch_size == row.batch_size]
    return estimate_ratio(row.timings["latency"]).ratio * median(median(one.baseline) for one in alike)


def called(*words: str) -> Result:
    return CliRunner().invoke(show, [*words])


def refused(folder: str, *words: str) -> str:
    error = called(folder, *words).exception
    assert isinstance(error, UnetkitError)
    return str(error)


def by_csv(*words: str) -> list[dict[str, str]]:
    result = called(*words, "--csv")
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.output)))


def chosen(*filters: str, sort: str | None = None) -> list[BenchRow]:
    known = list(columns().values())
    return sort_rows(filter_rows(run().rows, known, filters), known, sort)


def test_factors_that_vary_come_first_and_those_that_do_not_stand_once() -> None:
    assert [*columns()][:7] == ["model", "encoder", "up", "fuse", "batch_size", "size", "mode"]
    assert [column.rank for column in columns().values()][4:7] == [0, HIDDEN, HIDDEN]
    assert find_constant_factors(run().rows) == {"size": "256", "mode": "eager"}


def test_names_of_columns_are_unique_and_each_says_what_it_is() -> None:
    assert len(columns()) == len(make_columns(run()))
    assert all(column.summary for column in columns().values())


def test_numbers_are_raw_and_texts_have_units() -> None:
    row = run().rows[0]
    seconds = latency(row)
    assert columns()["latency"].value(row) == seconds
    assert columns()["latency"].text(row) == f"{format_digits(seconds * 1e3)} ms"
    assert columns()["latency-rate"].value(row) == row.batch_size / seconds
    assert columns()["latency-rate"].better == "more"
    assert columns()["parameters"].text(row) == "14.3 M"
    assert columns()["disk"].text(row).endswith(" MiB")
    assert columns()["energy"].text(row) == "1.70 J"
    assert columns()["batch_size"].value(row) == 1


def test_the_ratio_says_its_interval_and_verdict() -> None:
    row = next(row for row in run().rows if row.line == "--encoder resnet34" and row.batch_size == 1)
    ratio, low, high = (columns()[f"latency-ratio{end}"].value(row) for end in ("", "-low", "-high"))
    assert isinstance(ratio, float)
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low < 1.45 < high
    assert columns()["latency-ratio"].text(row) == (
        f"{format_ratio(ratio)} ({format_ratio(low)} to {format_ratio(high)}) slower"
    )
    assert columns()["latency-verdict"].value(row) == "slower"


def test_every_column_takes_every_row_and_says_what_failed() -> None:
    for column in columns().values():
        for row in run().rows:
            assert isinstance(column.text(row), str)
            if not row.is_measured:
                assert column.value(row) == (row.factors.get(column.name) and column.value(row))
    alone = next(row for row in run().rows if row.failures)
    assert columns()["training-memory"].text(alone) == "failed"
    assert columns()["training-memory"].value(alone) is None


def test_a_metric_may_be_neither_better_nor_worse() -> None:
    assert columns()["energy"].better == ""
    assert columns()["memory"].better == "less"


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0.0123456, "s", "12.3 ms"),
        (1.2345, "s", "1,230 ms"),
        (12.345, "s", "12.3 s"),
        (0.9999, "s", "1,000 ms"),
        (100.0, "J", "100 J"),
        (1.0, "J", "1.00 J"),
        (24.4e6, "", "24.4 M"),
        (0.513, "", "0.513"),
        (1234.0, "J", "1,230 J"),
        (0.0, "", "0"),
        (0.0, "J", "0 J"),
        (1.5 * 2**20, "B", "1.5 MiB"),
    ],
)
def test_figures_have_three_digits(number: float, unit: str, text: str) -> None:
    assert format_metric(number, unit) == text


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        ("encoder=resnet*", lambda row: True),
        ("encoder!=resnet18", lambda row: row.factors["encoder"] != "resnet18"),
        ("batch_size>=8", lambda row: row.batch_size >= 8),
        ("batch-size>=8", lambda row: row.batch_size >= 8),
        ("batch_size = 8", lambda row: row.batch_size == 8),
        ("batch_size==8", lambda row: row.batch_size == 8),
        ("up!=bilinear", lambda row: row.factors.get("up") != "bilinear"),
        ("model=smp/*", lambda row: row.factors["model"] != "unet"),
        ("latency<0.05", lambda row: row.is_measured and latency(row) < 0.05),
        ("memory<=1e8", lambda row: row.is_measured and row.values["memory"] <= 1e8),
        ("parameters>20e6", lambda row: row.is_measured and row.values["parameters"] > 20e6),
        ("energy>2", lambda row: row.is_measured and row.values["energy"] > 2),
        (
            "latency-rate>=30",
            lambda row: row.is_measured and row.batch_size / latency(row) >= 30,
        ),
    ],
)
def test_filters_keep_the_rows_that_pass(asked: str, passes: object) -> None:
    assert callable(passes)
    kept = chosen(asked)
    assert {row.id for row in kept} == {row.id for row in run().rows if passes(row)}
    assert kept


def test_filters_must_all_pass() -> None:
    assert {(row.batch_size, row.factors["up"]) for row in chosen("batch_size=1", "up=nearest")} == {(1, "nearest")}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("latncy<1", "'latncy' (did you mean latency"),
        ("latency", "is not a test; "),
        ("latency<50ms", "'50ms' is not a number; "),
        ("memory<5MiB", "'5MiB' is not a number; "),
        ("parameters<30M", "'30M' is not a number; "),
    ],
)
def test_a_bad_filter_is_refused_in_a_line(asked: str, message: str) -> None:
    with pytest.raises((OptionError, UnknownNameError), match=r"^--filter ") as refused:
        chosen(asked)
    assert message in str(refused.value)


def test_rows_are_sorted_either_way_with_failed_ones_last() -> None:
    up, down = chosen(sort="latency"), chosen(sort="-latency")
    assert [row.is_measured for row in up] == [row.is_measured for row in down] == [True] * 26 + [False] * 2
    values = [columns()["latency"].value(row) for row in up[:26]]
    assert values == sorted(values, key=lambda value: float(str(value)))
    assert [columns()["latency"].value(row) for row in down[:26]] == values[::-1]


def test_sorting_goes_by_the_second_column_where_the_first_is_equal() -> None:
    rows = chosen("latency>0", sort="-batch_size,encoder")
    keys = [(-row.batch_size, row.factors["encoder"]) for row in rows]
    assert keys == sorted(keys)


def test_a_row_without_the_figure_comes_after_those_with_it_whichever_way() -> None:
    for sort in ("training-memory", "-training-memory"):
        assert chosen("latency>0", sort=sort)[-1].failures


def test_names_are_sorted_by_their_numbers() -> None:
    names = ("resnet101", "resnet34", "plain", "resnet18d", "7")
    rows = [replace(run().rows[0], factors={"encoder": name}) for name in names]
    known = make_columns(replace(run(), rows=tuple(rows)))
    found = [row.factors["encoder"] for row in sort_rows(rows, known, "encoder")]
    assert found == ["7", "plain", "resnet18d", "resnet34", "resnet101"]


def drawn(made: Listing, width: int) -> str:
    out = io.StringIO()
    render_listing(made, Console(file=out, width=width, color_system=None))
    return out.getvalue()


def shown_within(width: int | None) -> Listing:
    return format_run(run(), run().rows, select_columns([*columns().values()], None), width)


def test_a_narrow_terminal_loses_lesser_columns_and_says_which() -> None:
    made = shown_within(120)
    heads = made.tables[0].headers
    assert {"latency p50", "latency ratio", "encoder"} <= {*heads}
    assert "latency p90" not in heads
    assert any(note.startswith("columns hidden") and "latency-p90" in note for note in made.notes)
    table = drawn(Listing([], made.tables[:1], []), 120)
    assert max(map(len, table.splitlines())) <= 120
    assert len(table.splitlines()) <= len(run().rows) + 5  # no row is folded


def test_columns_that_nobody_asked_for_are_not_said_to_be_left_out() -> None:
    made = format_run(run(), run().rows, [*columns().values()], 160)
    assert not any("latency-rounds" in note for note in made.notes)


def test_without_a_width_no_column_is_left_out() -> None:
    made = shown_within(None)
    assert len(made.tables[0].headers) == 1 + sum(column.rank < 9 for column in columns().values())
    assert not any("hidden" in note for note in made.notes)


def test_what_others_said_is_no_markup() -> None:
    made = Listing(["[bold]x"], [TableData(["a|b"], [["[red]<b>|"]])], [])
    assert "[bold]x" in drawn(made, 80)
    assert "[red]<b>|" in drawn(made, 80)
    assert to_markdown(made) == "- \\[bold\\]x\n\n| a\\|b |\n| --- |\n| \\[red\\]\\<b>\\| |"


def test_show_says_baseline_machine_failures_and_warnings(folder: str) -> None:
    result = called(folder)
    assert result.exit_code == 0, result.output
    for text in (
        "baseline --encoder resnet18, eager\n",
        "on cpu 0-1, 2 threads, Example CPU 2.0 GHz, 8 cores, 16 GiB",
        "28 rows, 2 of which failed; common to all rows: size 256, mode eager",
        "failed rows: 2",
        "out of memory: 14.2 GiB asked",
        ": training-memory failed: the child was killed at 12 GiB; give --batch-size 4",
        "the rounds fluctuate by 34%",
    ):
        assert text in result.output, text
    assert "not measured yet" not in result.output


def test_show_says_how_to_go_on(tmp_path: Path) -> None:
    result = called(written(tmp_path / "half", run(), missing=3))
    assert "\n25 rows" in result.output
    assert "3 of 28 rows" in result.output
    assert f"continue with: {run().command}" in result.output


def test_a_run_without_rows_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    held = written(folder, run(), missing=27)
    lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(line for line in lines if not line.startswith('{"row"')))
    result = called(held)
    assert result.exit_code == 0, result.output
    assert "28 of 28 rows are not measured yet" in result.output


def test_csv_has_every_row_and_column_in_base_units(folder: str) -> None:
    rows = by_csv(folder)
    assert len(rows) == 28
    first = run().rows[0]
    assert float(rows[0]["latency"]) == pytest.approx(latency(first))
    assert float(rows[0]["latency-raw"]) == median(first.timings["latency"].candidate)
    assert float(rows[0]["disk"]) == first.values["disk"]
    assert [row["error"] != "" for row in rows] == [False] * 26 + [True] * 2
    assert rows[0]["line"] == first.line


def test_columns_top_and_filter_choose(folder: str) -> None:
    rows = by_csv(
        folder, "--columns", "fuse,latency-min", "--sort", "-latency-min", "--top", "3", "--filter", "batch_size=1"
    )
    assert [*rows[0]] == [
        "id",
        "model",
        "encoder",
        "up",
        "batch_size",
        "fuse",
        "latency-min",
        "line",
        "error",
        "warnings",
    ]
    least = sorted(
        (min(row.timings["latency"].candidate) for row in chosen("batch_size=1") if row.is_measured), reverse=True
    )
    assert [float(row["latency-min"]) for row in rows] == least[:3]


def test_json_tells_all(folder: str) -> None:
    data = json.loads(called(folder, "--json").output)
    assert data["header"] == json.loads(json.dumps(asdict(run().header)))
    assert (data["planned"], data["done"]) == (28, 28)
    assert {column["name"] for column in data["columns"]} == {*columns()}
    assert data["rows"][0]["latency"] == pytest.approx(latency(run().rows[0]))
    assert sum(bool(row["warnings"]) for row in data["rows"]) == 1


def test_json_has_no_infinity() -> None:
    endless = replace(columns()["latency"], value=lambda row: float("inf"))
    assert run_to_dict(run(), run().rows[:1], [endless])["rows"][0]["latency"] is None


def test_markdown_is_a_table(folder: str) -> None:
    lines = called(folder, "--markdown", "--columns", "encoder,latency,latency-ratio", "--top", "2").output.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[:2] == [
        "| # | model | up | fuse | batch size | encoder | latency p50 | latency ratio |",
        "| ---: | --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    assert len(table) == 4


def test_a_column_that_is_not_there_is_refused_with_the_list(folder: str) -> None:
    message = refused(folder, "--columns", "latensy")
    assert re.match("--columns: .*'latensy' .did you mean latency", message)
    message = refused(folder, "--columns", "q")
    assert "model, encoder, up, fuse, batch_size, size, mode, parameters" in message
    assert "miou was not measured" in refused(folder, "--columns", "miou")
    assert "miou was not measured" in refused(folder, "--effects", "--columns", "miou")
    assert refused(folder, "--sort", "-speed").startswith("--sort: there is no column 'speed'")


def test_a_folder_without_a_benchmark_is_refused(tmp_path: Path) -> None:
    assert "nowhere does not exist; give the folder that" in refused(str(tmp_path / "nowhere"))
    assert "contains no benchmark results" in refused(str(tmp_path))


@pytest.mark.slow
def test_pandas_has_a_column_for_each_of_ours() -> None:
    table = rows_to_dataframe(run())
    assert [*table.columns] == ["id", *columns(), "line", "error", "warnings"]
    assert table["latency"].notna().sum() == 26
    assert table["latency"][0] == pytest.approx(latency(run().rows[0]))
    assert table.attrs["units"]["disk"] == "B"
    assert str(table["latency"].dtype) == "float64"


def test_without_pandas_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UnetkitError, match="pip install pandas"):
        rows_to_dataframe(run())


def test_times_agree_with_ratios_although_the_machine_became_slower(tmp_path: Path) -> None:
    slower = [
        replace(row, timings={name: scaled(timing, 2.0 ** (index % 3)) for name, timing in row.timings.items()})
        for index, row in enumerate(run().rows)
    ]
    known = {column.name: column for column in make_columns(replace(run(), rows=tuple(slower)))}
    for a, b in pairwise([row for row in slower if row.is_measured and row.batch_size == 8]):
        for metric in ("latency", "training"):
            times, ratios, raw, rates = (
                [known[f"{metric}{suffix}"].value(row) for row in (a, b)] for suffix in ("", "-ratio", "-raw", "-rate")
            )
            assert times[1] / times[0] == pytest.approx(ratios[1] / ratios[0])  # type: ignore[operator]
            assert rates[0] / rates[1] == pytest.approx(ratios[1] / ratios[0])  # type: ignore[operator]
            assert raw == [median(row.timings[metric].candidate) for row in (a, b)]


def scaled(timing: Timing, factor: float) -> Timing:
    samples = {name: tuple(factor * one for one in getattr(timing, name)) for name in ("candidate", "baseline")}
    return replace(timing, **samples)  # type: ignore[arg-type]


def test_a_narrow_terminal_keeps_what_says_most() -> None:
    shown = select_columns([*columns().values()], None)
    heads = {width: format_run(run(), run().rows, shown, width).tables[0].headers for width in (None, 150, 100, 60)}
    for width, kept in heads.items():
        assert "latency ratio" in kept
        if width is not None:
            assert len(kept) < len(heads[None])
    assert {"parameters", "macs", "latency p50"} <= {*heads[100]}
    assert not {"latency p90", "training p50", "energy"} & {*heads[100]}
    [*_, ratio] = format_run(run(), run().rows[1:2], shown, 60).tables[0].rows[0]
    assert ratio.endswith(("faster", "slower", "same", "inconclusive"))
    assert " to " not in ratio


def test_rows_keep_their_numbers(tmp_path: Path) -> None:
    rows = [json.dumps({"row": asdict(row)}) + "\n" for row in run().rows[:4]]
    ids = [row.id for row in run().rows[:4]]

    def numbers(*events: str | list[int]) -> list[int]:
        written = [json.dumps({"header": asdict(run().header), "started_at": ""}) + "\n"]
        for event in events:
            planned = [] if isinstance(event, str) else [ids[index] for index in event]
            command = json.dumps({"command": str(planned), "planned": planned, "started_at": ""}) + "\n"
            written.append(event if isinstance(event, str) else command)
        (tmp_path / "rows.jsonl").write_text("".join(written))
        found = read_results(tmp_path)
        return [found.numbers.get(row_id, 0) for row_id in ids]

    assert numbers([0, 1, 2, 3], rows[2]) == [0, 0, 3, 0]  # rows of several devices end in any order
    assert numbers([0, 1, 2, 3], rows[2], rows[0], rows[2]) == [1, 0, 3, 0]  # measured again
    assert numbers([1, 0, 2], rows[1], [3], rows[3]) == [0, 1, 0, 2]  # the others were given up
    assert numbers([1, 0, 2], rows[1], [3], rows[3], [0], rows[0]) == [3, 1, 0, 2]


def test_a_run_of_one_metric_is_read() -> None:
    alone = replace(run().header, metrics=(MetricInfo("training", "s", True, "one step"),))
    names = [column.name for column in make_columns(replace(run(), header=alone)) if column.rank == 0]
    assert names == ["model", "encoder", "up", "fuse", "batch_size", "training", "training-ratio"]


def test_help_needs_neither_torch_nor_rich() -> None:
    imports = "from unetkit.cli.bench_results import show, diff"
    code = f"import sys; {imports}; print([n for n in sys.argv[1:] if n in sys.modules])"
    command = [sys.executable, "-c", code, "torch", "rich", "numpy", "pandas"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def effects(folder: str, *words: str) -> list[dict[str, Any]]:
    told = json.loads(called(folder, "--effects", "--json", *words).output)
    assert isinstance(told, list)
    return told


def test_effects_say_what_each_choice_changes(folder: str) -> None:
    told = {(one["factor"], one["a"], one["b"], one["metric"]): one for one in effects(folder)}
    add, null = (told[key] for key in (("fuse", "concat", "add", "latency"), ("up", "bilinear", "nearest", "latency")))
    assert add["verdict"] == "faster"
    assert null["verdict"] in ("same", "inconclusive")  # one of its pairs fluctuates by 34%
    assert add["low"] < 0.9 < add["high"]
    assert null["low"] < 0.995 < null["high"]
    assert len(add["pairs"]) == 11  # of 12, one of which ran out of memory
    assert told["encoder", "resnet18", "resnet34", "macs"]["verdict"] == "more"
    assert told["encoder", "resnet18", "resnet34", "build"]["verdict"] == "not judged"


def test_effects_are_of_the_rows_and_metrics_that_are_asked_for(folder: str) -> None:
    told = effects(folder, "--columns", "latency", "--filter", "batch_size=1", "--filter", "up=bilinear")
    assert {one["metric"] for one in told} == {"latency"}
    assert {len(one["pairs"]) for one in told if one["factor"] == "fuse"} == {2}


def test_effects_are_a_table(folder: str) -> None:
    words = (folder, "--effects", "--columns", "latency")
    assert "| factor | change | metric | ratio | verdict | pairs |" in called(*words, "--markdown").output
    assert "concat -> add" in called(*words).output
    rows = list(csv.DictReader(io.StringIO(called(*words, "--csv").output)))
    assert {row["factor"]: row["pairs"] for row in rows}["encoder"] == "11"
    assert "there are no effects to show" in called(*words, "--filter", "model=smp/unet").output


def test_effects_take_neither_an_order_nor_a_column_that_is_no_metric(folder: str) -> None:
    assert refused(folder, "--effects", "--sort", "latency").startswith("--effects cannot be combined with --sort")
    assert "'latency-p90' (did you mean latency" in refused(folder, "--effects", "--columns", "latency-p90")
