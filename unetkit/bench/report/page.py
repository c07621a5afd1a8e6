"""The page itself: a run in, HTML out."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetkit.bench.columns import HIDDEN, Column, columns_of, constants, varying
from unetkit.bench.effects import VALUES, Told, verdict
from unetkit.bench.effects import list_effects as effects_of_all
from unetkit.bench.report.charts import (
    DOTS,
    ROWS,
    condition_of,
    costs_of,
    doubtful_rows,
    effects_data,
    is_complete,
    naming,
    rounds_data,
    timed_metrics,
)
from unetkit.bench.results import BenchRun
from unetkit.bench.show import missing
from unetkit.errors import FileError, UnetkitError
from unetkit.utils.files import atomic_write

if TYPE_CHECKING:
    from jinja2 import Environment

#: What JSON may not hold as it is where HTML reads it first: the end of a script, the start of a comment, an entity.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write(run: BenchRun, path: Path) -> None:
    """Write the report of a run: whole, or not at all.

    Raises:
        UnetkitError: plotly is not installed.
        FileError: it cannot be written there.
    """
    html = page_of(run)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}") from error


def page_of(run: BenchRun) -> str:
    """The report of a run: one HTML document that holds all it shows, and asks nothing of the network.

    Names come from users and plugins, so whatever is not ours is escaped; and by the page's own policy a browser loads
    nothing for it and runs no script but those that it is written with.

    Raises:
        UnetkitError: plotly is not installed.
    """
    columns, effects = sorted(columns_of(run), key=lambda column: column.rank > 0), effects_of_all(run)
    scripts = [_plotly(), _asset("table.js"), _asset("charts.js")]
    drawn = {
        "costs": costs_of(run, columns),
        "effects": effects_data(effects, run),
        "rounds": rounds_data(run),
    }
    return (
        _environment()
        .from_string(_asset("page.html"))
        .render(
            **_said(run, columns, effects),
            axes=drawn["costs"]["axes"],
            data=_embedded(drawn),
            scripts=scripts,
            style=_asset("page.css"),
            policy=_policy(scripts),
        )
    )


def _said(run: BenchRun, columns: Sequence[Column], effects: Sequence[Told]) -> dict[str, Any]:
    """What the template says in words."""
    return {
        "run": run,
        "name_of": naming(run),
        "condition_of": condition_of,
        "columns": columns,
        "factors": varying(run),
        "constants": constants(run),
        "hidden": HIDDEN,
        "effects": effects,
        "missing": missing(run),
        "failed": [row for row in run.rows if not row.is_measured],
        "verdict": verdict,
        "doubtful": doubtful_rows(run),
        "uncut": is_complete(run),
        "caps": (DOTS, ROWS),
        "many": VALUES,
        "timed": timed_metrics(run),
    }


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UnetkitError("bench report draws with plotly, which is missing: pip install 'unetkit[report]'") from error
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _environment() -> Environment:
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _asset(name: str) -> str:
    return (files("unetkit.bench.report") / name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that can stand in a <script>: the browser reads it as the same JSON, and HTML sees no mark in it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _policy(scripts: Sequence[str]) -> str:
    """What a browser lets the page do: nothing is loaded, and only these scripts run."""
    digests = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
