"""A run on disk: a folder with one file of JSON lines, each on disk before the next trial begins.

The first line is the header. Each start of the command adds a line that says what it planned; each trial a row. A row
whose id stands twice was measured again, and the later one counts. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unetkit.bench.rows import Header, Row, Run
from unetkit.errors import BadFile
from unetkit.jobs.lines import Line, Lines, read_lines

#: Of the file in the folder.
_NAME = "rows.jsonl"
_WHAT = "benchmark"


class ResultsFile:
    """What a file holds."""

    def __init__(self, folder: Path) -> None:
        self.header: Header | None = None
        self.began = ""
        self.start: Line = {"command": "", "planned": []}
        self.rows: dict[str, Row] = {}
        read_lines(folder / _NAME, self._take, _WHAT)

    def _take(self, line: Line) -> None:
        if "header" in line:
            self.header, self.began = Header.of(line["header"]), line["at"]
        elif "planned" in line:
            self.start = line
        else:
            row = Row.of(line["row"])
            self.rows.pop(row.id, None)  # so that a later one stands where it was measured
            self.rows[row.id] = row

    def done(self, id_: str, key: str, *, again: bool) -> bool:
        """Whether a row needs not be measured; `again`: what failed, or ran short of its budget, does."""
        row = self.rows.get(id_)
        return row is not None and row.key == key and not (again and _weak(row))


def _weak(row: Row) -> bool:
    """Whether measuring again may tell more."""
    short = any(timing.ended == "budget" for timing in row.timings.values())
    return bool(row.cause or row.failures or short)


def read_results(folder: Path) -> Run:
    """A run as it stands, also while it goes on.

    Raises:
        BadFile: there is none, or it is damaged.
    """
    held = ResultsFile(folder)
    if held.header is None:
        made = f"`unetkit bench ... --out {folder}` makes one"
        raise BadFile(f"{folder} holds no benchmark: there is no {_NAME} with rows in it; {made}")
    ids = dict.fromkeys(held.start["planned"])
    planned = [held.rows[id_] for id_ in ids if id_ in held.rows]
    others = [row for row in held.rows.values() if row.id not in ids]
    number = len(ids)
    missing = number - len(planned)
    return Run(folder, held.header, (*planned, *others), number, missing, held.start["command"], held.began)


class ResultsWriter:
    """The folder of a run that this process alone adds to, until `close`."""

    def __init__(self, folder: Path) -> None:
        """Make it if it is not there.

        Raises:
            BadFile: it cannot be written, is no benchmark's, or another one is writing to it.
        """
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise BadFile(f"--out {folder}: is a file; give a folder")
        self._lines = Lines(folder / _NAME, _WHAT)
        try:
            held = ResultsFile(folder)
        except BadFile:
            self._lines.close()
            raise
        self.header, self.rows, self.done = held.header, held.rows, held.done

    def start(self, header: Header, command: str, planned: Iterable[str]) -> None:
        """Say what is planned, by the ids of its rows.

        Raises:
            BadFile: rows stand here under another header.
        """
        if self.header is None or not self.rows:
            self._lines.append({"header": asdict(header), "at": now()})
        elif other := differs(self.header, header):
            raise BadFile(f"{self.folder} was measured with {other}; give another --out, or the same again")
        self.header = header
        self._lines.append({"command": command, "planned": [*planned], "at": now()})

    def append(self, row: Row) -> None:
        """Add a row; when this returns, it is on disk."""
        self._lines.append({"row": asdict(row)})
        self.rows[row.id] = row

    def close(self) -> None:
        """Let others write. A folder without rows is none, and what was made of it goes."""
        self._lines.close()
        if not self.rows:
            self._lines.remove()


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def differs(one: Header, other: Header) -> str:
    """In what two headers differ, in words; "" where in nothing."""
    flat = [_flat(json.loads(json.dumps(asdict(header)))) for header in (one, other)]
    for name in [name for name in {**flat[0], **flat[1]} if name not in _PRECISION]:
        was, is_ = (found.get(name, "none") for found in flat)
        if was != is_:
            return f"{name} {was}, and this is {is_}"
    return ""


#: Settings that change how well figures are known, and not what they are.
_PRECISION = {"budget", "precision", "timeout"}


def _flat(header: dict[str, Any]) -> dict[str, str]:
    """One name for each thing that a header says; of the metrics their names alone."""
    metrics = ",".join(metric["name"] for metric in header.pop("metrics"))
    named = {"baseline": header["baseline"], "baseline mode": header["baseline_mode"], "--metrics": metrics}
    return {
        **named,
        **{name: str(v) for part in ("settings", "versions", "machine") for name, v in header[part].items()},
    }
