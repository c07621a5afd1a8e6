"""The file of a sweep: JSON lines, each on disk before the next model begins.

A header line says what a sweep was made with and has an `id`; a row says by `at` which header it belongs to. A name
that appears twice was measured again, and the later row counts. A last line that was cut off is no row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.sweep.settings import ANSWERS, Settings
from unetkit.errors import FileError
from unetkit.utils.files import JsonLinesWriter, atomic_write, encode_json_line, read_json_lines


@dataclass
class Recorded:
    """What a file holds: headers by their id, and for each (who was asked, name) its last row."""

    headers: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Take a line. Raises KeyError where it is neither a header nor a row of one."""
        if "id" in line:
            self.headers[line["id"]] = line
        else:
            self.rows[self.headers[line["at"]]["of"], line["name"]] = line

    def done(self, name: str, settings: Settings, *, again: bool) -> bool:
        """Whether a name needs not be measured: it was, with these versions and code, as truly as now would be.

        `again`: also what failed.
        """
        row = self.rows.get((settings.of, name))
        if row is None or (again and any(row[answer] != "ok" for answer in ANSWERS)):
            return False
        versions = settings.versions()
        if {key: self.headers[row["at"]].get(key) for key in versions} != versions:
            return False
        fits = row.get("needs", 0) <= settings.share and row.get("parameters", 0) <= settings.real_up_to
        return not ("why" in row and fits)


def read(path: Path) -> Recorded:
    """Read a file; one that is not there holds nothing.

    Raises:
        FileError: a line, other than one at the end that was cut off, is none of a sweep's.
    """
    recorded = Recorded()
    read_json_lines(path, recorded.add, "sweep")
    return recorded


class Record:
    """A file that a sweep writes to, by one process at a time."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Open it, cut off a torn last line, and write the header that is to go above the rows.

        Raises:
            FileError: it cannot be written, is no sweep's, or another sweep is writing to it.
        """
        self.path = path
        self._lines = JsonLinesWriter(path, "sweep")
        try:
            self.recorded = read(path)
        except FileError:
            self._lines.close()
            raise
        header = settings.header()
        told = json.dumps({**header, "date": ""}, sort_keys=True).encode()
        self.id = hashlib.sha256(told).hexdigest()[:8]
        if self.id not in self.recorded.headers:
            self._append({"id": self.id, **header})

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; when this returns, it is on disk."""
        self._append({**row, "at": self.id})

    def tidy(self) -> None:
        """Leave out rows that later ones took the place of, and headers without rows."""
        used = {row["at"] for row in self.recorded.rows.values()}
        headers = [header for key, header in self.recorded.headers.items() if key in used]
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(b"".join(map(encode_json_line, (*headers, *self.recorded.rows.values()))))

    def close(self) -> None:
        self._lines.close()

    def _append(self, line: dict[str, Any]) -> None:
        self.recorded.add(line)
        self._lines.append(line)


def combined(paths: Iterable[Path]) -> Recorded:
    """What several files hold together."""
    together = Recorded()
    for path in paths:
        if not path.exists():
            raise FileError(f"the file {path} does not exist; `python -m tests.sweep --out {path}` makes it")
        found = read(path)
        together.headers.update(found.headers)
        together.rows.update(found.rows)
    return together
