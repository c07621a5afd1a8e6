"""Render the report of a benchmark as HTML and write it to a file."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetkit.bench.columns import HIDDEN, Column, find_constant_factors, find_varying_factors, make_columns
from unetkit.bench.effects import MAX_PAIRWISE_VALUES, MetricEffect, judge_effect, list_effects
from unetkit.bench.quality import RunQuality, describe_trainings, describe_uncertain_verdicts, read_quality
from unetkit.bench.quality_effects import list_quality_effects
from unetkit.bench.report.charts import (
    MAX_DOTS,
    MAX_ROWS,
    find_baseline_rows,
    find_doubtful_rows,
    format_condition,
    has_all_rounds,
    list_timed_metrics,
    make_cost_data,
    make_effect_data,
    make_round_data,
    make_row_namer,
)
from unetkit.bench.report.quality_charts import (
    make_class_table,
    make_curve_data,
    make_difference_data,
    make_image_data,
    make_quality_effect_data,
    mean_half_width,
)
from unetkit.bench.results import BenchRow, BenchRun
from unetkit.bench.show import describe_missing_rows, fold_problems
from unetkit.errors import UnetkitError
from unetkit.utils.files import write_requested_file

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

#: Characters that are escaped in JSON inside HTML, which would read them first: as the end of the script, the start of
#: a comment, or an entity.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_report(run: BenchRun, path: Path) -> None:
    """Write the report of a run to a file. If this fails, an existing file is left unchanged.

    Args:
        run: the results of a benchmark.
        path: the HTML file.

    Raises:
        UnetkitError: plotly or jinja2 is not installed.
        FileError: The file cannot be written.
    """
    html = render_report(run)
    with write_requested_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render_report(run: BenchRun) -> str:
    """Render the report of a run as one HTML document that contains everything it shows.

    Names come from users and plugins, so all text is escaped. In addition, the content security policy of the page
    forbids a browser to load anything, and to run any scripts other than its own.

    Args:
        run: the results of a benchmark.

    Raises:
        UnetkitError: plotly or jinja2 is not installed.
    """
    require_plotly()
    columns, effects = sorted(make_columns(run), key=lambda column: column.rank > 0), list_effects(run)
    scripts = [_load_plotly(), _read_asset("table.js"), _read_asset("charts.js")]
    quality = read_quality(run)
    chart_data: dict[str, Any] = {
        "costs": make_cost_data(run, columns, _half_widths(quality)),
        "effects": make_effect_data(effects, run),
        "rounds": make_round_data(run),
        "quality": None,
    }
    context: dict[str, Any] = {"quality": quality, "failed_trainings": []}
    if quality is not None:
        name_row = make_row_namer(run)
        of_quality = list_quality_effects(run)
        images = make_image_data(quality, name_row)
        chart_data["quality"] = {
            "metric": quality.rules.metric,
            "differences": make_difference_data(quality, name_row),
            "effects": make_quality_effect_data(of_quality, name_row),
            "curves": make_curve_data(quality, name_row),
            "images": images,
        }
        context |= {
            "training_lines": describe_trainings(quality),
            "uncertain": describe_uncertain_verdicts(quality),
            "quality_effects": of_quality,
            "class_table": make_class_table(quality),
            "has_images": images is not None,
            "failed_trainings": [one for one in run.trainings if one.error or one.failures],
        }
    return (
        _make_environment()
        .from_string(_read_asset("page.html"))
        .render(
            **_make_context(run, columns, effects),
            **context,
            axes=chart_data["costs"]["axes"],
            data=_embed_json(chart_data),
            scripts=scripts,
            style=_read_asset("page.css"),
            policy=_make_content_policy(scripts),
        )
    )


def _half_widths(quality: RunQuality | None) -> Callable[[BenchRow, str], float | None]:
    """Return a function to the half-width of the interval of a row's mean score, for columns of scores."""
    names = {metric.name for metric in quality.metrics} if quality is not None else set()
    return lambda row, name: mean_half_width(quality.of(row, name)) if quality is not None and name in names else None


def _make_context(run: BenchRun, columns: Sequence[Column], effects: Sequence[MetricEffect]) -> dict[str, Any]:
    """Return the variables of the template."""
    return {
        "run": run,
        "name_row": make_row_namer(run),
        "format_condition": format_condition,
        "columns": columns,
        "factors": find_varying_factors(run.rows),
        "constants": find_constant_factors(run.rows),
        "hidden_rank": HIDDEN,
        "effects": effects,
        "missing": describe_missing_rows(run),
        "num_failed": sum(not row.is_measured for row in run.rows),
        "judge_effect": judge_effect,
        "doubtful": find_doubtful_rows(run),
        "baseline_rows": find_baseline_rows(run),
        "main_column": _find_main_column(run, columns),
        "problems": fold_problems(run.rows),
        "has_all_rounds": has_all_rounds(run),
        "max_dots": MAX_DOTS,
        "max_rows": MAX_ROWS,
        "max_values": MAX_PAIRWISE_VALUES,
        "timed": list_timed_metrics(run),
    }


def _find_main_column(run: BenchRun, columns: Sequence[Column]) -> Column | None:
    """Return the column that a phone shows beside the number of a row: the score, a ratio, or the first value."""
    quality = read_quality(run)
    timed = list_timed_metrics(run)
    wanted = quality.rules.metric if quality is not None else f"{timed[0]}-ratio" if timed else ""
    values = [column for column in columns if not column.is_factor and column.rank < HIDDEN]
    return next((column for column in values if column.name == wanted), values[0] if values else None)


def _mark_flags(text: object) -> Markup:
    """Escape a text, and keep lines from being broken after the dashes of an option."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"--[\w-]+", r'<span class="flag">\g<0></span>', str(escape(text))))  # noqa: S704  # escaped


def require_plotly() -> None:
    """Raise UnetkitError if a package is missing that a report needs. Nothing is imported, so that this takes no time.

    Raises:
        UnetkitError: plotly or jinja2 is not installed.
    """
    for name in ("plotly", "jinja2"):
        if find_spec(name) is None:
            raise UnetkitError(f"bench report needs {name}, which is not installed: pip install 'unetkit[report]'")


def _load_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _make_environment() -> Environment:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["flags"] = _mark_flags
    return environment


def _read_asset(name: str) -> str:
    return (files("unetkit.bench.report") / name).read_text(encoding="utf-8")


def _embed_json(data: Any) -> str:
    """Format data as JSON that contains no characters with a meaning in HTML, so that it can be put in a <script>."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_ESCAPES.get(character, character) for character in text)


def _make_content_policy(scripts: Sequence[str]) -> str:
    """Return a content security policy with which a browser loads nothing and runs only the given scripts."""
    digests = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
