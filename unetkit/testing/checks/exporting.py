"""Checks of export formats: a small network is written, opened, run and compared."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from unetkit.builder import build
from unetkit.errors import UnetkitError
from unetkit.exporter.capture import capture
from unetkit.exporter.check import make_test_images, run_reference
from unetkit.testing.catalog import Nonconformity, SkipCheck, one_line
from unetkit.testing.subject import PartSubject
from unetkit.utils.file_digest import DIGEST_KEY, PLACEHOLDER

#: The largest difference that is allowed, as a fraction of the range of the outputs.
_TOLERANCE = 1e-3
_METADATA = {"unetkit.plan": "--encoder plain", "class_names": '{"0": "Zellkern Ø", "1": "<a & b>"}'}


def check_format(subject: PartSubject) -> None:
    """Check that what a format writes runs on several sizes and batches, and keeps its metadata.

    Raises SkipCheck if the format rejects the network with an UnetkitError, for instance because a package is missing.
    """
    try:
        form = subject.factory(**subject.options)
        _check(form)
    except UnetkitError as error:
        raise SkipCheck(f"it rejects a small network: {error}") from error


def _check(form: Any) -> None:
    suffix = getattr(form, "suffix", None)
    if not (isinstance(suffix, str) and re.fullmatch(r"\.[a-z0-9_]+", suffix)):
        raise Nonconformity(
            f"declares suffix={suffix!r}; expected the ending of its files in lower case, as in '.onnx'"
        )
    captured = capture(build("plain:widths=[4,8]", in_channels=1, classes=2, seed=0))
    metadata = _METADATA | {DIGEST_KEY: PLACEHOLDER}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{suffix}")
        _call("write", form.write, captured, path, metadata)
        expected = {path.name, *(f"model{ending}" for ending in getattr(form, "companions", ()))}
        written = {file.name for file in Path(folder).iterdir()}
        if written != expected:
            raise Nonconformity(
                f"write leaves {', '.join(sorted(written)) or 'no file'}; expected {', '.join(sorted(expected))}, "
                "the path that it is given and a file for each ending in `companions`"
            )
        run = _call("open", form.open, path)
        for batch, size in ((1, (16, 16)), (2, (19, 33))):
            images = make_test_images(batch, 1, size)
            found = np.asarray(_call("a file, opened and run,", run, images))
            wanted = run_reference(captured.reference, images)
            if found.shape != wanted.shape:
                raise Nonconformity(f"a file returns {found.shape} for images {images.shape}; expected {wanted.shape}")
            difference = float(np.abs(found - wanted).max() / np.ptp(wanted))
            if not difference <= _TOLERANCE:
                raise Nonconformity(
                    f"a file returns outputs that differ by {difference:.1e} of their range for images {images.shape}"
                )
        kept = _call("read_metadata", form.read_metadata, path)
        if lost := [key for key, value in _METADATA.items() if not isinstance(kept, dict) or kept.get(key) != value]:
            raise Nonconformity(f"read_metadata does not return {lost[0]} as it was written")


def _call(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call code of a plugin. Raises Nonconformity for any exception but UnetkitError."""
    try:
        return function(*arguments)
    except UnetkitError:
        raise
    except Exception as error:
        raise Nonconformity(f"{what} fails with {one_line(error)}") from error
