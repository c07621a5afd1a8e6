"""The report: what it says, that nothing gets into it or out of it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.example_runs import BASELINE, made_run
from unetkit.bench.columns import make_columns
from unetkit.bench.effects import MAX_PAIRWISE_VALUES, list_effects
from unetkit.bench.report.charts import MAX_DOTS, make_cost_data, pareto_front
from unetkit.bench.report.page import render_report
from unetkit.bench.results import BenchRow, BenchRun, ResultsWriter
from unetkit.bench.show import describe_missing_rows, fold_problems
from unetkit.cli.bench_results import report
from unetkit.errors import FileError, OptionError, UnetkitError
from unetkit.registry import MetricInfo

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, ViewportSize

#: What would run, load, close or open something, wherever it stood unescaped.
EVIL = (
    "</script><script>window.hacked=1</script><img src='http://evil.example/x' onerror=\"window.hacked=1\">"
    "<a href='http://evil.example'>e</a>&lt;{{7*7}}"
)
WIDE: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}


def hostile(made: BenchRun) -> BenchRun:
    """The same with names and words that are made to break out."""

    def spoilt(row: BenchRow) -> BenchRow:
        factors = {**row.factors, "encoder": row.factors["encoder"] + EVIL, EVIL: row.factors["batch_size"]}
        words = [f"{EVIL} {text}" for text in (row.line, row.command, row.device)]
        said = replace(row, line=words[0], command=words[1], device=words[2], error=row.error and EVIL)
        return replace(said, factors=factors, warnings=(EVIL,))

    metrics = (*made.header.metrics, MetricInfo(EVIL, EVIL, False, EVIL, EVIL))
    known = {EVIL: EVIL}
    header = replace(made.header, metrics=metrics, machine=known, settings=known, versions=known, baseline=EVIL)
    rows = tuple(
        replace(spoilt(row), values={**row.values, EVIL: 1.0}, failures={EVIL: EVIL})
        if row.is_measured
        else spoilt(row)
        for row in made.rows
    )
    return replace(
        made, header=header, rows=rows, command=EVIL, started_at=EVIL, folder=Path("x") / EVIL.replace("/", "_")
    )


@cache
def run() -> BenchRun:
    return made_run(Path("runs/first"))


@cache
def html() -> str:
    return render_report(run())


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text of the data block."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][1].get("id") == "data":
            self.texts.append(data)

    def embedded(self) -> Any:
        return json.loads("".join(self.texts).strip())


@given(st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] <= b[1] and a != b

    found = pareto_front(points)
    assert sorted(found) == [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]
    assert [points[i] for i in found] == sorted(points[i] for i in found)


def test_a_point_without_a_number_is_on_no_front() -> None:
    assert pareto_front([(1.0, float("nan")), (2.0, 2.0), (float("nan"), 0.0), (3.0, float("inf"))]) == [1]
    assert pareto_front([]) == []


def test_it_says_what_was_run_and_what_became_of_every_row() -> None:
    told = Tags(html())
    text = re.sub(r'</?span( class="flag")?>', "", html())
    for said in (run().command, BASELINE, "Example CPU 2.0 GHz", "16.0 GiB", "2.9.0", "28 rows, 2 of which failed"):
        assert said in text
    for metric in run().header.metrics:
        assert metric.summary.replace("'", "&#39;") in text
    for row in run().rows:
        assert row.command.replace("'", "&#39;") in text
        assert row.error.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "training-memory failed: " in text
    assert "(from unetkit-energy)" in text
    assert sum(tag == "tr" and "data-search" in attributes for tag, attributes in told.found) == len(run().rows)


def test_the_charts_have_the_runs_numbers() -> None:
    drawn = Tags(html()).embedded()
    names = [axis["name"] for axis in drawn["costs"]["axes"]]
    assert {"latency", "latency-rate", "latency-ratio", "training", "parameters", "memory", "energy"} <= {*names}
    point = drawn["costs"]["points"][2]
    assert (point["name"], point["condition"]) == ("unet · resnet18 · bilinear · add", 0)
    assert point["values"][names.index("parameters")] == run().rows[2].values["parameters"]
    (effect,) = (item for item in drawn["effects"]["latency"] if item["name"] == "fuse: concat → add")
    assert effect["low"] <= effect["ratio"] <= effect["high"] < 1
    assert "faster" in effect["text"]
    assert 0.85 < effect["ratio"] < 0.95  # 0.9 by how the run was made
    (counted,) = (item for item in drawn["effects"]["macs"] if item["name"] == "fuse: concat → add")
    assert counted["text"] == "0.80 less"
    at = drawn["costs"]["conditions"].index("256x256, batch size 1")
    assert [len(item["dots"]) for item in drawn["rounds"]["latency"][at]] == [24] * 14


def test_where_nobody_knows_what_is_better_there_is_no_front() -> None:
    costs = Tags(html()).embedded()["costs"]
    names = [axis["name"] for axis in costs["axes"]]
    energy, rate, macs = (names.index(name) for name in ("energy", "latency-rate", "macs"))
    fronts = costs["fronts"][0]
    assert not any(str(energy) in pair.split() for pair in fronts)
    x, y = sorted((rate, macs))
    quick = max(
        (i for i, point in enumerate(costs["points"]) if point["condition"] == 0),
        key=lambda i: costs["points"][i]["values"][rate],
    )
    assert quick in fronts[f"{x} {y}"]  # more images a second are better


def test_rows_of_different_conditions_share_no_front() -> None:
    costs = Tags(html()).embedded()["costs"]
    for condition, fronts in enumerate(costs["fronts"]):
        assert fronts
        assert all(costs["points"][row]["condition"] == condition for rows in fronts.values() for row in rows)


def test_many_rounds_are_drawn_in_part_and_it_says_so() -> None:
    text = render_report(
        replace(made_run(Path("runs/long"), rounds=500), rows=made_run(Path("x"), rounds=500).rows[:2])
    )
    drawn = Tags(text).embedded()
    assert len(drawn["rounds"]["latency"][0][0]["dots"]) == MAX_DOTS
    assert f"At most {MAX_DOTS} evenly spaced rounds" in text
    assert "All rounds are shown." in html()
    assert "evenly spaced" not in html()


def test_of_many_values_each_is_compared_with_the_first() -> None:
    rows = tuple(
        replace(row, id=f"{row.id}{number}", factors={**row.factors, "encoder": f"e{number}"})
        for number in range(MAX_PAIRWISE_VALUES + 2)
        for row in run().rows[:2]
    )
    (metric,) = {info.name for info, _ in list_effects(replace(run(), rows=rows)) if info.name == "macs"}
    told = [one for info, one in list_effects(replace(run(), rows=rows)) if info.name == metric]
    assert [(one.a, one.b) for one in told] == [("e0", f"e{number}") for number in range(1, MAX_PAIRWISE_VALUES + 2)]


@pytest.mark.parametrize("rows", ["none", "failed", "one", "untimed"])
def test_it_is_written_of_every_run(rows: str) -> None:
    chosen = {
        "none": (),
        "failed": tuple(row for row in run().rows if row.error),
        "one": run().rows[:1],
        "untimed": tuple(replace(row, timings={}) for row in run().rows),
    }[rows]
    text = render_report(replace(run(), rows=chosen))
    for line in describe_missing_rows(replace(run(), rows=chosen)):
        assert line in text
    assert ("No metric was timed." in text) == (rows != "one")


def test_nothing_is_loaded_and_nothing_gets_in() -> None:
    told = Tags(render_report(hostile(run())))
    tags = [tag for tag, _ in told.found]
    assert tags.count("script") == 4  # the data, plotly and our two
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & {*tags}
    for tag, attributes in told.found:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
    assert EVIL in json.dumps(told.embedded(), ensure_ascii=False).replace('\\"', '"')


def test_the_baseline_is_marked_and_warnings_are_said_once() -> None:
    found = Tags(html()).found
    assert sum(tag == "tr" and attributes.get("class") == "baseline" for tag, attributes in found) == 2
    said = ["others used {}% of 1.5 GiB; --threads 1 helps", "once"]
    rows = [replace(row, warnings=(said[0].format(20 + index),)) for index, row in enumerate(run().rows[:5])]
    folded = fold_problems([*rows, replace(run().rows[5], warnings=("once",))])
    assert [text for text, _ in folded] == ["others used 20% to 24% of 1.5 GiB; --threads 1 helps", "once"]
    assert [len(alike) for _, alike in folded] == [5, 1]
    page = render_report(replace(run(), rows=(*rows, *run().rows[5:])))
    assert page.count('others used 20% to 24% of 1.5 GiB; <span class="flag">--threads</span> 1 helps') == 1


def test_quality_is_shown_against_cost() -> None:
    metrics = (*run().header.metrics[:-1], replace(run().header.metrics[-1], better="more"))
    rising = replace(run(), header=replace(run().header, metrics=metrics))
    assert [make_cost_data(one, make_columns(one))["rising"] for one in (run(), rising)] == [None, "energy"]


def test_without_plotly_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UnetkitError, match=r"pip install 'unetkit\[report\]'$"):
        render_report(run())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = made_run(tmp_path / "first")
    ledger = ResultsWriter(made.folder)
    ledger.start(made.header, made.command, [row.id for row in made.rows])
    for row in made.rows:
        ledger.append(row)
    ledger.close()
    return made.folder


def called(*words: Path | str) -> Result:
    return CliRunner().invoke(report, [*map(str, words)])


def test_the_command_writes_it_beside_the_rows_or_where_it_is_told(folder: Path) -> None:
    done = called(folder)
    assert done.output == f"28 rows written to {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    other = folder.parent / "there" / "one.html"
    assert called(folder, "--out", other).exit_code == 0
    assert other.read_text(encoding="utf-8") == (folder / "report.html").read_text(encoding="utf-8")


def test_the_command_refuses_in_one_line_and_leaves_nothing(folder: Path) -> None:
    assert isinstance(called(folder, "--out", "report.pdf").exception, OptionError)
    assert isinstance(called(folder.parent / "none").exception, FileError)
    assert not (folder.parent / "none").exists()
    (folder / "taken.html").mkdir()
    error = called(folder, "--out", folder / "taken.html").exception
    assert isinstance(error, FileError)
    assert f"{folder / 'taken.html'} cannot be written: it is a folder" in str(error)
    assert {path.suffix for path in folder.iterdir()} <= {".jsonl", ".html", ".lock"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """Open a page in a browser, and note what went wrong or was requested as it ran."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self.page: Page = browser.new_context(viewport=WIDE).new_page()
        self.page.set_default_timeout(30_000)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "request", lambda request: self.wrong.append(request.url) if request.url != path.as_uri() else None
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_selector('[data-chart="costs"] .main-svg')

    def choice(self, name: str) -> Locator:
        return self.page.locator(f'[data-choice="{name}"]')

    def said(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def column(self, title: str) -> list[str]:
        """Return the cells of a column from top to bottom, of the rows that are seen and have it."""
        return self.page.evaluate(  # type: ignore[no-any-return]
            """title => {
              const table = document.getElementById("table-rows");
              const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.startsWith(title));
              return [...table.tBodies[0].rows].filter((row) => !row.hidden && !row.classList.contains("failed"))
                .map((row) => row.cells[at].innerText);
            }""",
            title,
        )


@pytest.fixture(scope="module")
def shared(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html(), encoding="utf-8")
    opened = Opened(browser, path)
    yield opened
    opened.page.context.close()


@pytest.fixture
def opened(shared: Opened) -> Iterator[Opened]:
    """The page as any of these tests may find it: each sets what it goes by."""
    yield shared
    assert shared.wrong == []


def milliseconds(texts: list[str]) -> list[float]:
    return [float(text.removesuffix(" ms").replace(",", "")) for text in texts]


def test_a_heading_sorts_by_click_and_by_key(opened: Opened) -> None:
    heading = opened.page.locator("#table-rows thead button", has_text="latency p50")
    cell = opened.page.locator("#table-rows thead th", has_text="latency p50")
    before = milliseconds(opened.column("latency p50"))
    heading.click()
    assert cell.get_attribute("aria-sort") == "ascending"
    assert milliseconds(opened.column("latency p50")) == sorted(before) != before
    heading.focus()
    opened.page.keyboard.press("Enter")
    assert cell.get_attribute("aria-sort") == "descending"
    assert milliseconds(opened.column("latency p50")) == sorted(before, reverse=True)
    assert all(
        "failed" in (row or "")
        for row in opened.page.evaluate(
            "[...document.querySelectorAll('#table-rows tbody tr')].slice(-2).map(row => row.className)"
        )
    )


def test_numbers_sort_as_numbers_and_names_as_names(opened: Opened) -> None:
    opened.page.locator("#table-rows thead button", has_text="batch size").click()
    assert opened.column("batch size") == ["1"] * 14 + ["8"] * 12
    opened.page.locator("#table-rows thead button", has_text="encoder").click()
    assert opened.column("encoder") == ["resnet18"] * 15 + ["resnet34"] * 11
    assert opened.page.locator("#table-rows thead [aria-sort]").count() == 1


def test_the_filter_keeps_rows_with_all_its_words(opened: Opened) -> None:
    opened.page.get_by_label("Filter").fill("Resnet34 add")
    assert {*opened.column("encoder")} == {"resnet34"}
    assert {*opened.column("fuse")} == {"add"}
    assert opened.said("output") == ["6 of 28 rows"]
    opened.page.get_by_label("Filter").fill("")


def test_all_columns_are_shown_where_asked(opened: Opened) -> None:
    heading = opened.page.locator("#table-rows thead button", has_text="latency fluctuation")
    opened.page.get_by_label("all columns").uncheck()
    assert not heading.is_visible()
    opened.page.get_by_label("all columns").check()
    assert heading.is_visible()
    widths = opened.page.evaluate("[...document.querySelectorAll('#table-rows tr')].map(row => row.clientWidth)")
    assert len({*widths}) == 1


def test_the_front_is_drawn_and_its_rows_are_named(opened: Opened) -> None:
    for x, y, more in (("macs", "memory (MiB)", False), ("parameters", "latency rate (images/s)", True)):
        opened.choice("x").select_option(label=x)
        opened.choice("y").select_option(label=y)
        names = opened.said(".front li")
        drawn = opened.page.evaluate("document.querySelector('[data-chart=costs]').data.find(t => t.mode === 'lines')")
        assert len(drawn["x"]) == len(names) > 1
        assert drawn["y"] == sorted(drawn["y"], reverse=not more)
        assert opened.page.locator('[data-chart="costs"] .scatterlayer .point').count() == 14
    assert all("row" in name for name in names)
    assert not opened.page.locator(".single").is_visible()
    opened.choice("x").select_option(label="latency p50 (ms)")
    assert opened.page.locator(".single").is_visible()  # the quickest row has the highest rate, too
    assert len(opened.said(".front li")) == 1
    opened.choice("y").select_option(label="energy (J)")
    assert opened.page.locator(".nofront").is_visible()


def test_a_point_says_its_row(opened: Opened) -> None:
    opened.page.locator('[data-chart="costs"]').scroll_into_view_if_needed()
    # Points lie under the layer that catches the mouse, so the mouse goes where one is.
    box = opened.page.locator('[data-chart="costs"] .scatterlayer .point').last.bounding_box()
    assert box
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.wait_for_selector('[data-chart="costs"] .hoverlayer .hovertext')
    assert "--encoder resnet34" in (opened.page.locator(".hovertext").text_content() or "")


def test_the_effects_of_a_metric_are_drawn_and_listed(opened: Opened) -> None:
    for metric in ("latency", "macs"):
        opened.choice("effect").select_option(metric)
        listed = opened.page.locator("#table-effects tbody tr:visible")
        assert {*opened.said("#table-effects tbody tr:visible td:first-child")} == {metric}
        marks = opened.page.evaluate("document.querySelector('[data-chart=effects]').data[1].x.length")
        assert listed.count() == marks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_the_page_down_and_only_tables_sideways(
    opened: Opened, scheme: Literal["light", "dark"]
) -> None:
    opened.page.set_viewport_size(PHONE)
    opened.page.emulate_media(color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert opened.page.evaluate("document.querySelector('.scroll').scrollWidth") > PHONE["width"]
    assert opened.page.locator("#table-rows td.narrow").first.inner_text().endswith(("same", "faster", "slower"))
    assert opened.page.locator("#table-rows .hint").is_visible()
    for name in ("costs", "effects", "rounds"):
        chart = opened.page.locator(f'[data-chart="{name}"] .main-svg').first
        opened.page.wait_for_function("([svg, width]) => svg.clientWidth <= width", arg=[chart.element_handle(), 390])
    paper, ink = opened.page.evaluate(
        """["backgroundColor", "color"]
          .map((name) => getComputedStyle(document.documentElement)[name].match(/\\d+/g))
          .map((parts) => parts.reduce((sum, part) => sum + Number(part), 0))"""
    )
    assert (paper < ink) == (scheme == "dark")
    drawn = opened.page.evaluate("document.querySelector('[data-chart=costs]').layout.font.color")
    assert (drawn == "#e8e6e0") == (scheme == "dark")
    opened.page.set_viewport_size(WIDE)


def test_names_made_to_break_out_run_and_load_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "evil.html"
    path.write_text(render_report(hostile(run())), encoding="utf-8")
    opened = Opened(browser, path)
    opened.page.locator("#table-rows thead button:visible").nth(1).click()
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("img, .chart a").count() == 0
    assert EVIL in opened.page.locator("#run").inner_text()
    assert any(EVIL in name for name in opened.said(".front li"))
    assert opened.wrong == []
    # And were something to get in, the page's policy would not let it run.
    opened.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p id=p onclick=\"window.hacked=1\">x</p>')")
    opened.page.locator("#p").click()
    assert opened.page.evaluate("window.hacked") is None
    assert "Content Security Policy" in opened.wrong[0]
    opened.page.context.close()
