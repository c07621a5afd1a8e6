"""The file of a sweep: JSON lines, each of which is on disk before the next model is measured.

A header describes how its rows were measured, and has an `id`. A row has the `header_id` of its header. If a name
appears twice, it was measured again, and the later row counts. An incomplete last line is ignored. Keys of a row:

- `name`, `family` and `size`: the timm model, its module in timm, and its own input size;
- `built` and the checks `own`, `odd`, `small` and `backward`: "ok", or the error in one line;
- `real`: whether the checks ran on real tensors; if not, `meta_reason` says why;
- `strides`, `channels` and `parameters`: of the encoder's feature maps, and of the network;
- `seconds`: time to build the network on the meta device; `duration`: time for everything;
- `required_memory`: estimated memory of the checks on real tensors, in bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.sweep.config import RESULTS, SweepConfig
from unetkit.errors import FileError
from unetkit.utils.files import atomic_write
from unetkit.utils.json_lines import JsonLinesWriter, encode_json_line, read_json_lines


@dataclass
class SweepResults:
    """The content of a file.

    Attributes:
        headers: headers by id.
        rows: the last row of each library and name.
    """

    headers: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Add a line.

        Args:
            line: a header, or a row of a header that was added before.

        Raises:
            KeyError: The line is neither.
        """
        if "id" in line:
            self.headers[line["id"]] = line
        else:
            self.rows[self.headers[line["header_id"]]["library"], line["name"]] = line

    def is_done(self, name: str, config: SweepConfig, *, retry_failed: bool) -> bool:
        """Return whether a model need not be measured again.

        It must be measured again with other versions, or if it was checked on meta tensors and now fits into memory.

        Args:
            name: name of a timm model.
            config: configuration of the sweep.
            retry_failed: measure a model again that failed.
        """
        row = self.rows.get((config.library, name))
        if row is None or (retry_failed and any(row[key] != "ok" for key in RESULTS)):
            return False
        versions = config.get_versions()
        if {key: self.headers[row["header_id"]].get(key) for key in versions} != versions:
            return False
        fits = row.get("required_memory", 0) <= config.memory_per_job and row.get("parameters", 0) <= config.real_up_to
        return not ("meta_reason" in row and fits)


def read_results(path: Path) -> SweepResults:
    """Read a file of a sweep. If it does not exist, the results are empty.

    Args:
        path: the file.

    Raises:
        FileError: A line is not one of a sweep, other than an incomplete last line.
    """
    results = SweepResults()
    read_json_lines(path, results.add, "sweep")
    return results


def read_all_results(paths: Iterable[Path]) -> SweepResults:
    """Read several files of sweeps; of the rows with one library and name, that of the last file counts.

    Args:
        paths: the files.

    Raises:
        FileError: A file does not exist, or is not one of a sweep.
    """
    results = SweepResults()
    for path in paths:
        if not path.exists():
            raise FileError(f"the file {path} does not exist; `python -m tests.sweep --out {path}` creates it")
        part = read_results(path)
        results.headers.update(part.headers)
        results.rows.update(part.rows)
    return results


class SweepWriter:
    """A file to which a sweep appends its rows. Only one process at a time can write to a file.

    Attributes:
        path: the file.
        results: the content of the file.
        header_id: id of the header of this sweep.
    """

    def __init__(self, path: Path, config: SweepConfig) -> None:
        """Open the file, remove an incomplete last line, and append the header if the file does not have it.

        Args:
            path: the file.
            config: configuration of the sweep.

        Raises:
            FileError: The file cannot be written, is not one of a sweep, or is being written by another sweep.
        """
        self.path = path
        self._writer = JsonLinesWriter(path, "sweep")
        try:
            self.results = read_results(path)
        except FileError:
            self._writer.close()
            raise
        header = config.make_header()
        content = json.dumps({**header, "date": ""}, sort_keys=True).encode()
        self.header_id = hashlib.sha256(content).hexdigest()[:8]
        if self.header_id not in self.results.headers:
            self._append_line({"id": self.header_id, **header})

    def append(self, row: dict[str, Any]) -> None:
        """Append a row; it is on disk when this returns.

        Args:
            row: results of a model.
        """
        self._append_line({**row, "header_id": self.header_id})

    def compact(self) -> None:
        """Remove rows that later rows replace, and headers without rows."""
        used = {row["header_id"] for row in self.results.rows.values()}
        headers = [header for id_, header in self.results.headers.items() if id_ in used]
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(b"".join(map(encode_json_line, (*headers, *self.results.rows.values()))))

    def close(self) -> None:
        """Allow other processes to write to the file."""
        self._writer.close()

    def _append_line(self, line: dict[str, Any]) -> None:
        self.results.add(line)
        self._writer.append(line)
